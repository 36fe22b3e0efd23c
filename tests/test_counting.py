"""Every sample of an epoch goes to one process, once: over nodes, processes and threads, of folders and of shards."""

from __future__ import annotations

from collections import Counter

import pytest

from tiny_runs import write_images
from unveil.cli import main
from unveil.data.loader import Loader
from unveil.data.sources import Source, open_source
from unveil.data.transforms import View

COUNT = 53  # a prime, which no number of processes divides


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    """The same images as files, as shards of unequal numbers, and as shards in a random order."""
    folder = tmp_path_factory.mktemp("counted")
    images = str(write_images(folder / "images", COUNT))
    for name, more in (("shards", []), ("shuffled", ["--shuffle", "1"])):
        assert main(["pack", images, "--out", str(folder / name), "--shard-size", "30kB", *more]) == 0
        assert len(list((folder / name).glob("*.tar"))) > 2
    opened = {name: open_source(str(folder / name)) for name in ("images", "shards", "shuffled")}
    assert {len(source) for source in opened.values()} == {COUNT}
    return opened


@pytest.mark.scale
@pytest.mark.parametrize("kind", ["images", "shards", "shuffled"])
@pytest.mark.parametrize(("size", "workers", "batch"), [(1, 2, 10), (2, 1, 10), (3, 3, 10), (5, 2, 10), (4, 1, COUNT)])
def test_an_epoch_has_every_sample_once(
    sources: dict[str, Source], kind: str, size: int, workers: int, batch: int
) -> None:
    """All but those that fill no batch; epoch by epoch other samples are left over, and the order is another."""
    source = sources[kind]
    alone = Loader(source, View((8, 8)), batch, seed=3, workers=1)
    ranks = [Loader(source, View((8, 8)), batch, seed=3, workers=workers, shard=(k, size)) for k in range(size)]
    left = []
    for epoch in range(2):
        whole = [(rows.tolist(), made.key.tolist()) for made, rows in alone.numbered(epoch)]
        own = [[(rows.tolist(), made.key.tolist()) for made, rows in rank.numbered(epoch)] for rank in ranks]
        assert {len(batches) for batches in own} == {COUNT // batch}
        for step, (rows, keys) in enumerate(whole):  # the batch of one process, cut
            assert [row for batches in own for row in batches[step][0]] == rows
            assert [key for batches in own for key in batches[step][1]] == keys
        counts = Counter(source.name(row) for batches in own for rows, _ in batches for row in rows)
        assert {*counts.values()} == {1}
        assert len(counts) == COUNT // batch * batch
        left.append({source.name(i) for i in range(COUNT)} - counts.keys())
    assert batch == COUNT or left[0] != left[1]


@pytest.mark.scale
def test_views_that_are_repeated_go_through_all_samples_in_a_cycle(sources: dict[str, Source]) -> None:
    ranks = [Loader(sources["shards"], View((8, 8)), 12, repeats=3, workers=1, shard=(k, 2)) for k in range(2)]
    counts = Counter[int]()
    for epoch in range(3):
        for rank in ranks:
            counts.update(row for _, rows in rank.numbered(epoch) for row in rows.tolist())
    assert {*counts.values()} == {3}
    assert len(counts) == 3 * (COUNT // 12 * 12 // 3)
