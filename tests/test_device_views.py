"""Views made on the device: the boxes and flips are those of the processor, the pixels within two levels of 255."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_runs import TRAIN, Place
from unveil.data.device_views import CUTS, seen_on
from unveil.data.loader import Loader
from unveil.data.sources import open_source
from unveil.data.transforms import View
from unveil.data.upload import uploaded

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    """Pictures of many sizes, JPEG and PNG, one much larger than a view."""
    rng = np.random.default_rng(0)
    sizes = [(60, 80), (33, 47), (17, 90), (64, 64), (8, 9), (400, 300), (120, 31), (50, 50)]
    for number, (height, width) in enumerate(sizes):
        noise = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.{('png', 'jpg')[number % 2]}")
    return tmp_path


@pytest.mark.parametrize("flip", ["none", "hv", "d4"])
@pytest.mark.parametrize("options", [{}, {"repeats": 2}, {"workers": 3, "shard": (1, 2)}])
def test_views_are_those_of_the_processor(folder, flip, options):
    view = View((24, 20), flip=flip)
    theirs = Loader(open_source(folder), view, 8, seed=3, **options)
    ours = Loader(open_source(folder), view, 8, seed=3, on_device=True, **options)
    for epoch in (0, 1, 5):
        for (a, rows), (b, others) in zip(theirs.numbered(epoch), ours.numbered(epoch), strict=True):
            assert torch.equal(rows, others)
            (made,) = uploaded([b], CPU)
            assert torch.equal(made.key, a.key)
            assert CUTS not in made.maps
            assert made.maps["rgb"].dtype == torch.uint8
            difference = (made.maps["rgb"].int() - a.maps["rgb"].int()).abs()
            assert difference.max() <= 2
            assert difference.float().mean() < 0.3


def test_a_box_of_the_size_of_the_view_is_not_changed(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    view = View((32, 32), crop_scale=(1, 1), crop_ratio=(1, 1), flip="none")
    (made,) = uploaded(Loader(open_source(tmp_path), view, 1, on_device=True).batches(0), CPU)
    assert torch.equal(made.maps["rgb"][0], torch.from_numpy(pixels).permute(2, 0, 1))


def test_pictures_of_16_bits_are_floats_beside_bytes(tmp_path):
    rng = np.random.default_rng(2)
    Image.fromarray(rng.integers(0, 65536, (40, 30), dtype=np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(rng.integers(0, 256, (30, 40), dtype=np.uint8)).save(tmp_path / "b.png")
    view, source = View((16, 16)), open_source(tmp_path)
    (theirs,) = Loader(source, view, 2, seed=1).batches(0)
    (ours,) = uploaded(Loader(source, view, 2, seed=1, on_device=True).batches(0), CPU)
    assert ours.maps["rgb"].dtype == torch.float32
    assert (ours.maps["rgb"] - theirs.maps["rgb"]).abs().max() < 2 / 255
    assert ours.maps["rgb"].min() >= 0
    assert ours.maps["rgb"].max() <= 1


def test_broken_pictures_are_replaced_as_on_the_processor(folder):
    for number in range(10, 40):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(folder / f"{number}.png")
    (folder / "1.jpg").write_bytes((folder / "1.jpg").read_bytes()[:600])
    loaders = [Loader(open_source(folder), View((8, 8)), 19, seed=2, on_device=d) for d in (False, True)]
    theirs, ours = (list(uploaded(loader.batches(0), CPU)) for loader in loaders)
    assert loaders[0].unreadable == loaders[1].unreadable
    assert "1.jpg" in loaders[1].unreadable
    for a, b in zip(theirs, ours, strict=True):
        assert (a.maps["rgb"].int() - b.maps["rgb"].int()).abs().max() <= 2
        assert seen_on(a, CPU) is a


def test_a_run_whose_views_are_made_on_the_device_learns_the_same(place: Place, capsys):
    losses = []
    for out, words in (("cpu", ()), ("device", ("--augment-on", "device"))):
        assert place.pretrain(*TRAIN, "--precision", "float32", *words, out=out) == 0
        lines = (place.path / out / "metrics.jsonl").read_text().splitlines()
        losses.append([line["loss"] for line in map(json.loads, lines) if line["kind"] == "step"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    capsys.readouterr()
    (place.path / "tiles").mkdir()
    assert place.pretrain(*TRAIN, "--tile", "16", "--augment-on", "device", out="tiles") == 2
    assert "--augment-on device makes views of plain pictures" in capsys.readouterr().err
