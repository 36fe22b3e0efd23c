"""Shards of another machine: by ranges of bytes, or copied one by one from a server that sends whole files only."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import unveil
from test_shards import pixels, write_shards
from tiny_runs import facts, write_images, write_recipe
from unveil.data.decode import Unreadable
from unveil.data.loader import Loader
from unveil.data.shards import ShardSource
from unveil.data.sources import open_source
from unveil.data.splits import hold_out
from unveil.data.transforms import View

fsspec = pytest.importorskip("fsspec")


class Whole(SimpleHTTPRequestHandler):
    """A server of whole files, as that of Python is; it counts requests."""

    counts: Counter[str]

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.counts[self.path.rsplit("/", 1)[-1]] += 1
        super().do_GET()


class Ranges(Whole):
    """A server of ranges of bytes (RFC 9110, section 14)."""

    def do_GET(self) -> None:
        asked_for = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if asked_for is None or not path.is_file():
            return super().do_GET()
        self.counts[f"range of {path.name}"] += 1
        content, first, last = path.read_bytes(), int(asked_for[1]), int(asked_for[2])
        sent = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(sent)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(sent) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(sent)
        return None


@contextmanager
def served(folder: Path, kind: type[Whole]) -> Iterator[tuple[str, Counter[str]]]:
    """The address of a folder on a server, and the number of requests for each file."""
    handler = type("Handler", (kind,), {"counts": Counter()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.counts
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("kind", [Ranges, Whole])
@pytest.mark.parametrize("is_pack", [True, False])
def test_shards_of_a_server_are_those_of_the_folder(is_pack: bool, kind: type[Whole], tmp_path: Path):
    pytest.importorskip("aiohttp")
    folder = tmp_path / "shards"
    if is_pack:
        unveil.pack(str(write_images(tmp_path / "images", 12)), out=str(folder), shard_size="8kB", lossless=True)
    else:
        write_shards(folder, cls=lambda n: str(n % 3).encode())
    local = open_source(folder)
    last = len(list(folder.glob("*.tar"))) - 1
    assert last > 1
    pattern = "" if is_pack else f"/part-{{000..{last:03}}}.tar"
    with served(tmp_path, kind) as (address, counts):
        remote = open_source(f"{address}/shards{pattern}")
        assert [remote.name(i) for i in range(len(remote))] == [local.name(i) for i in range(len(local))]
        assert remote.labels == local.labels
        assert all(map(torch.equal, pixels(remote), pixels(local)))
        loaders = [Loader(source, View((16, 16)), 4, seed=1, workers=2) for source in (remote, local)]
        orders = [loader.order(0) for loader in loaders]
        assert torch.equal(*(order.sort().values for order in orders))
        assert torch.equal(*orders) == (kind is Ranges)  # by ranges a run is that of local shards
        whole = sum(n for name, n in counts.items() if name.endswith(".tar") and not name.startswith("range"))
        assert whole <= 2 * (last + 1) if kind is Whole else not whole
        with pytest.raises(FileNotFoundError):
            open_source(f"{address}/nothing/{{000..001}}.tar")


def test_a_pack_in_a_store_of_objects(tmp_path: Path):
    """`memory://` stands for s3://: the same file system interface."""
    unveil.pack(str(write_images(tmp_path / "images", 10)), out=str(tmp_path / "pack"), shard_size="8kB")
    store = fsspec.filesystem("memory")
    for path in (tmp_path / "pack").glob("[!.]*"):
        store.pipe_file(f"/bucket/pack/{path.name}", path.read_bytes())
    local = open_source(tmp_path / "pack")
    for address in ("memory://bucket/pack", "memory://bucket/pack/*.tar", "memory://bucket/pack/00000{0..1}.tar"):
        remote = open_source(address)
        assert len(remote) <= len(local)
        assert torch.equal(remote.image(0), local.image(0))
    shard = "/bucket/pack/000000.tar"
    store.pipe_file(shard, store.cat_file(shard)[:600])
    with pytest.raises(Unreadable, match=r"000000\.tar is cut off"):
        open_source("memory://bucket/pack").image(0)
    assert unveil.inspect("memory://bucket/pack").unreadable


def test_a_run_on_remote_shards(tmp_path: Path):
    write_recipe(tmp_path)
    unveil.pack(str(write_images(tmp_path / "images")), out=str(tmp_path / "pack"))
    store = fsspec.filesystem("memory")
    for path in (tmp_path / "pack").glob("[!.]*"):
        store.pipe_file(f"/run/pack/{path.name}", path.read_bytes())
    options = {"epochs": 1, "batch_size": 10, "out": str(tmp_path / "run")}
    run = unveil.pretrain(str(tmp_path / "tiny.py"), data="memory://run/pack", **options)
    assert facts(run)["status"] == "finished"


def test_the_order_by_shards_is_a_function_of_seed_and_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = open_source(write_shards(tmp_path / "shards", shards=12, each=10))
    assert isinstance(source, ShardSource)
    monkeypatch.setattr(type(source.shards.place), "is_copied", True)
    train, _ = hold_out(source, 0.1, 0)
    loaders = [Loader(train, View((16, 16)), 12, seed=3, shard=(k, 2)) for k in (0, 1)]
    order = loaders[0].order(5)
    assert torch.equal(order, Loader(train, View((16, 16)), 12, seed=3).order(5))
    assert not torch.equal(order, loaders[0].order(6))
    assert sorted(order.tolist()) == list(range(len(train)))
    rows = [torch.cat([rows for _, rows in loader.numbered(5, start_step=2)]) for loader in loaders]
    assert not {*rows[0].tolist()} & {*rows[1].tolist()}
    assert {*rows[0].tolist(), *rows[1].tolist()} == {*order[24 : len(train) // 12 * 12].tolist()}
    shard = torch.tensor([source.shards.table.shard[train.indices[i]] for i in order])
    opened = [len(shard[: k + 1].unique()) for k in range(len(shard))]
    left = [len(shard[:k].unique()) - len({*shard[:k].tolist()} & {*shard[k:].tolist()}) for k in range(len(shard))]
    assert max(a - b for a, b in zip(opened, left, strict=True)) <= 8  # shards in use at once
