"""Checkpoints that several processes write, each its part (`--checkpoint-format dcp`), and that every command reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from test_sharding import train
from tiny_runs import facts, write_images, write_recipe
from unveil import load
from unveil.cli import main
from unveil.runs import checkpoint_parts
from unveil.runs.checkpoint import Checkpoint, read, read_latest, save
from unveil.runs.checkpoint_state import STATE, checksum_of, lost

WEIGHTS = {"a.weight": torch.arange(15.0).reshape(5, 3), "scale": torch.tensor(2.5), "count": torch.arange(3)}
MOMENTS = {"a.weight:exp_avg": torch.ones(5, 3), "a.weight:step": torch.tensor(7.0)}


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one process of gloo."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def written(run: Path, step: int = 3) -> Path:
    return save(run, step, WEIGHTS, MOMENTS, {"epoch": 1.0, "stage": 0}, {}, in_parts=True)


@pytest.mark.usefixtures("alone")
def test_what_is_written_in_parts_is_read_whole(tmp_path: Path):
    folder = written(tmp_path)
    assert sorted(f.name for f in folder.iterdir()) == ["model", "optimizer", STATE]
    found = read(folder)
    for name, tensor in (WEIGHTS | MOMENTS).items():
        assert torch.equal((found.model | found.optimizer)[name], tensor), name
    assert found.identity["checksum"] == checksum_of(
        {k: v for k, v in found.state["checksums"].items() if k.startswith("model/")}
    )
    assert lost(tmp_path) == []
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "more", "state"])
def test_damaged_parts_are_noticed_and_the_checkpoint_before_is_read(tmp_path: Path, damage: str):
    written(tmp_path, 3)
    folder = written(tmp_path, 4)
    (part,) = (folder / "model").iterdir()
    if damage == "flipped":
        content = bytearray(part.read_bytes())
        content[-1] ^= 1
        part.write_bytes(content)
    elif damage == "cut":
        part.write_bytes(part.read_bytes()[:-4])
    elif damage == "gone":
        part.unlink()
    elif damage == "more":
        shutil.copy(part, folder / "model" / "shard-00002-model-00001-of-00001.safetensors")
    else:
        (folder / STATE).write_text("{}")
    found, complaints = read_latest(tmp_path)
    assert found
    assert found.state["step"] == 3
    assert str(folder) in complaints[0]
    assert lost(tmp_path)


@pytest.mark.usefixtures("alone")
def test_a_part_that_was_never_written_is_no_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The checksums hold, and a tensor is not whole: the files of one of two processes, say."""
    from safetensors.torch import save_file

    folder = written(tmp_path)
    (part,) = (folder / "model").iterdir()
    offsets = json.dumps({"a.weight": {"saved_offsets": [3, 0]}})
    save_file({"a.weight": torch.ones(2, 3)}, part, metadata={"DCP_SHARDING_INFO": offsets})
    with pytest.raises(ValueError, match=r"damaged: not all parts of a\.weight are there"):
        checkpoint_parts.read_parts(folder / "model")


@pytest.mark.usefixtures("alone")
def test_a_disk_that_fails_leaves_the_checkpoints_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written(tmp_path, 3)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_parts, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path, 4)
    assert [f.name for f in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


@pytest.mark.scale
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["--shard", "--no-shard"])
def test_a_run_of_checkpoints_in_parts_ends_in_the_bits_of_one_in_whole_files(tmp_path: Path, kind: str):
    """Stopped in two processes, gone on with in three, and alone; every command reads what two have written."""
    write_images(tmp_path / "images")
    write_recipe(tmp_path)
    for way in ("dcp", "safetensors"):
        words = (kind, "--checkpoint-format", way)
        assert train(tmp_path, way, 2, *words, stop_at=5) == {143}
        assert facts(tmp_path / way)["settings"]["checkpoint_format"] == way
    folder = newest(tmp_path / "dcp").path
    assert len(list((folder / "model").iterdir())) == 2
    assert not (folder / "model.safetensors").exists()
    same(tmp_path)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(load(tmp_path / "dcp")(images), load(tmp_path / "safetensors")(images))
    for words in (
        ["evaluate", "dcp", "--data", "images", "--protocol", "knn"],
        ["embed", "dcp", "--data", "images", "--out", "dcp.npz"],
        ["export", "dcp", "--to", "safetensors"],
        ["report", "dcp"],
        ["look", "dcp"],
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            assert main(words) == 0, words
    assert np.load(tmp_path / "dcp.npz")["features"].shape == (40, 16)
    from unveil.modeling.public_vits.weight_files import find_weights

    assert find_weights(folder).config["unveil"]["recipe"] == "tiny"
    for size, stop in ((3, 15), (1, None)):
        for way in ("dcp", "safetensors"):
            words = (kind, "--checkpoint-format", way) if size > 1 else ()
            assert train(tmp_path, way, size, *words, stop_at=stop) == ({143} if stop else {0})
        same(tmp_path)
    assert (newest(tmp_path / "dcp").path / "model.safetensors").exists()  # one process writes one file


def newest(run: Path) -> Checkpoint:
    found, complaints = read_latest(run)
    assert found
    assert not complaints
    return found


def same(folder: Path) -> None:
    one, other = newest(folder / "dcp"), newest(folder / "safetensors")
    assert one.state["step"] == other.state["step"]
    for of in ("model", "optimizer"):
        a, b = getattr(one, of), getattr(other, of)
        assert a.keys() == b.keys()
        assert [n for n in a if not torch.equal(a[n], b[n])] == []
