"""Views of images with a label per pixel: boxes, flips, padding, windows, colours; the published augmentation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from test_segment import LABELS
from unveil.data.dense_layouts import open_dense
from unveil.data.loader import Loader
from unveil.data.transforms import Sample
from unveil.evaluation.dense.data import DenseView, jittered, places, starts
from unveil.modeling.rng import SampleRng, sample_keys
from unveil.modeling.types import RGB, Batch, Modality


def chance_of(count: int) -> SampleRng:
    return SampleRng(sample_keys(0, 0, range(count)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20))
def test_windows_cover_everything(length, window):
    length = max(length, window)
    result = starts(length, window)
    assert result[0] == 0
    assert result[-1] == length - window
    assert all(0 < b - a <= max(1, window * 2 // 3) for a, b in pairwise(result))
    assert places((length, window), (window, window)) == [(start, 0) for start in result]


def test_one_box_and_one_flip_for_all_maps():
    """The picture's own numbers are its labels: whatever the view, they have to stay so."""
    rng = np.random.default_rng(0)
    modalities = (Modality("rgb", 3, (0.0,) * 3, (1.0,) * 3), LABELS)
    for size in ((12, 16), (40, 24)):
        squares = np.kron(rng.integers(0, 2, (size[0] // 4, size[1] // 4)), np.ones((4, 4)))
        ids = torch.from_numpy(squares).long()[None]
        sample = Sample({"rgb": ids.expand(3, -1, -1).float(), "semseg": ids}, {"semseg": None})
        view = DenseView((16, 16), scales=(0.5, 2.0))
        drawn = view([sample] * 32, modalities, chance_of(32).key)
        again = view([sample] * 32, modalities, chance_of(32).key)
        padded = 0
        for one, other in zip(drawn, again, strict=True):
            assert one.maps["rgb"].shape == (3, 16, 16)
            assert torch.equal(one.maps["rgb"], other.maps["rgb"]), "a view is a pure function of its key"
            near = (one.maps["rgb"][:1] > 0.5) == (one.maps["semseg"] == 1)
            known = one.valid["semseg"]
            padded += known is not None and not bool(known.all())
            there = torch.ones_like(near) if known is None else known
            assert near[there].float().mean() > 0.85  # but for the edges, where the picture is smooth
            assert (one.maps["semseg"][~there] == 0).all()
        assert padded > 0, "some views are smaller than the window"
    assert len({d.maps["rgb"].sum().item() for d in drawn}) > 20


def test_half_of_the_views_are_mirrored():
    image = torch.arange(64, dtype=torch.float32).view(1, 8, 8) / 64
    plain = [Modality("rgb", 1, (0.0,), (1.0,))]
    views = DenseView((8, 8), scales=(1.0, 1.0))([Sample({"rgb": image})] * 64, plain, chance_of(64).key)
    mirrored = [torch.equal(v.maps["rgb"], image.flip(2)) for v in views]
    assert all(is_turned or torch.equal(v.maps["rgb"], image) for v, is_turned in zip(views, mirrored, strict=True))
    assert 20 < sum(mirrored) < 44


def test_padding_of_pictures_is_their_mean():
    sample = Sample({"rgb": torch.zeros(3, 8, 4, dtype=torch.uint8)})
    view, made = DenseView((8, 8), fit="inside").whole(sample, [RGB])
    assert made == (8, 4)
    assert view.maps["rgb"][:, :, 4:].float().mean((1, 2)).tolist() == pytest.approx([124, 116, 104])
    assert not view.valid["rgb"][:, :, 4:].any()
    assert view.valid["rgb"][:, :, :4].all()


def test_colours_change_by_chance_and_only_where_there_is_a_picture():
    images, valid = torch.rand(16, 3, 8, 8), torch.ones(16, 1, 8, 8, dtype=torch.bool)
    valid[:, :, 4:] = False
    batch = Batch({"rgb": images}, sample_keys(0, 0, range(16)), torch.zeros(()), {"rgb": valid})
    result = jittered(batch, 0.5).maps["rgb"]
    assert torch.equal(result[:, :, 4:], images[:, :, 4:])
    assert 2 <= (result[:, :, :4] != images[:, :, :4]).flatten(1).any(1).sum() <= 14
    assert jittered(batch, 0.0) is batch


def test_a_batch_is_a_function_of_seed_epoch_and_sample(red_bars):
    train, view = open_dense(str(red_bars)).train.select(["rgb", "semseg"]), DenseView((16, 16))
    loader, of_three = (Loader(train, view, n, 0, max_broken=None, modality=[RGB, LABELS]) for n in (4, 3))
    one, other = (next(loader.batches(epoch)) for epoch in (0, 0))
    assert torch.equal(one.maps["rgb"], other.maps["rgb"])
    assert not torch.equal(one.maps["rgb"], next(loader.batches(1)).maps["rgb"])
    assert len(list(of_three.batches(0))) == of_three.steps_per_epoch == 2
