"""The rendered scenes: the same bits everywhere, true depth and classes, and harder than their pixels."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unveil.experiments.scenes import CLASSES, FAR, SEMANTIC_CLASSES, SceneSource, parse, render
from unveil.experiments.scenes.solids import BOX, CABIN, GABLE, PYRAMID, Ball, Dome, Frustum, Torus

SKY, FLOOR = SEMANTIC_CLASSES.index("sky"), SEMANTIC_CLASSES.index("floor")

DIGEST = """
import hashlib
from unveil.experiments.scenes import render
s = render((5, 11), (40, 48))
print(hashlib.sha256(s.rgb.tobytes() + s.depth.tobytes() + s.semseg.tobytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def scenes():
    return [render((3, index), 48) for index in range(60)]


def test_another_process_renders_the_same_bits():
    scene = render((5, 11), (40, 48))
    here = hashlib.sha256(scene.rgb.tobytes() + scene.depth.tobytes() + scene.semseg.tobytes()).hexdigest()
    there = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True).stdout.strip()
    assert here == there


def test_other_keys_give_other_scenes():
    pictures = {render(key, 32).rgb.tobytes() for key in [0, 1, 2, (1, 0), (1, 1), (2, 0)]}
    assert len(pictures) == 6
    assert render(4, 32).rgb.tobytes() == render((0, 4), 32).rgb.tobytes()


@pytest.mark.parametrize("index", range(4))
def test_a_larger_size_is_the_same_scene_seen_sharper(index):
    small, large = render((1, index), 32), render((1, index), 128)
    shrunk = large.rgb.reshape(3, 32, 4, 32, 4).mean((2, 4))
    other = render((1, index + 1), 32).rgb
    assert np.abs(shrunk - small.rgb).mean() < 6 < np.abs(shrunk - other).mean()
    assert (large.semseg[2::4, 2::4] == small.semseg).mean() > 0.93
    assert small.label == large.label


@settings(max_examples=12, deadline=None)
@given(st.integers(32, 90), st.integers(32, 90), st.integers(0, 10**6), st.integers(0, 10**6))
def test_every_size_and_key_renders(height, width, seed, index):
    scene = render((seed, index), (height, width))
    assert scene.rgb.shape == (3, height, width)
    assert scene.rgb.dtype == np.uint8
    assert scene.depth.shape == (1, height, width)
    assert scene.depth.dtype == np.float32
    assert scene.semseg.shape == (height, width)
    assert scene.semseg.dtype == np.uint8
    assert scene.semseg.max() < len(SEMANTIC_CLASSES)
    assert scene.depth.min() > 0
    assert scene.depth.max() <= FAR


def test_the_main_thing_is_seen(scenes):
    for scene in scenes:
        main = scene.semseg == SEMANTIC_CLASSES.index(CLASSES[scene.label])
        assert main.mean() > 0.04
        others = [c for c in CLASSES if c != CLASSES[scene.label]]
        assert not np.isin(scene.semseg, [SEMANTIC_CLASSES.index(c) for c in others]).any()


def test_depth_and_classes_tell_the_same_story(scenes):
    for scene in scenes:
        depth, main = scene.depth[0], scene.semseg == SEMANTIC_CLASSES.index(CLASSES[scene.label])
        sky, floor = scene.semseg == SKY, scene.semseg == FLOOR
        assert (depth[sky] == FAR).all()
        assert np.median(depth[~sky]) < 12
        assert depth[main].max() - depth[main].min() < 2.5  # it is about 1 m tall
        if floor[-1].all():  # the floor runs away from the camera
            assert depth[-1].mean() < depth[floor].mean()
        background = floor | sky | (scene.semseg == SEMANTIC_CLASSES.index("wall"))
        assert depth[background].max() > depth[main].min()


def test_pictures_have_light_and_contrast(scenes):
    for scene in scenes:
        assert 30 < scene.rgb.mean() < 235
        assert scene.rgb.std() > 10


def test_labels_are_balanced_and_match_the_pictures(scenes):
    source = SceneSource(count=60, size=32, seed=3)
    assert source.labels == [scene.label for scene in scenes]
    assert np.bincount(source.labels).tolist() == [6] * len(CLASSES)
    assert source.classes == list(CLASSES)
    assert SceneSource(count=60, seed=4).labels != source.labels


def test_pixels_alone_do_not_give_the_class():
    def pixels(seed, count):
        source = SceneSource(count, size=32, seed=seed)
        images = torch.stack([source.image(i) for i in range(count)]).flatten(1).float()
        return torch.nn.functional.normalize(images - images.mean(1, keepdim=True)), torch.tensor(source.labels)

    (known, labels), (queries, truth) = pixels(0, 120), pixels(1, 50)
    nearest = labels[(queries @ known.T).argmax(1)]
    assert (nearest == truth).float().mean() < 0.4


def test_the_source_speaks_of_its_scenes():
    source = parse("scenes:count=20,size=40,seed=7")
    assert source == SceneSource(20, 40, 7)
    assert parse(source.address) == source
    assert parse("scenes") == SceneSource()
    assert len(source) == 20
    assert source.channels == 3
    assert source.name(13) == "scenes/seed7/000013"
    maps = source.maps(13)
    assert {name: (tuple(m.shape), m.dtype) for name, m in maps.items()} == {
        "rgb": ((3, 40, 40), torch.uint8),
        "depth": ((1, 40, 40), torch.float32),
        "semseg": ((40, 40), torch.uint8),
    }
    assert torch.equal(source.image(13), maps["rgb"])
    with pytest.raises(IndexError, match="0 to 19"):
        source.image(20)


@pytest.mark.parametrize(
    "address",
    [
        "scenes:sise=64", "scenes:size=big", "scenes:size=225", "scenes:size=31", "scenes:count=0", "scenes:seed=-1",
        "scenes:size", "scenes:,", "scenes:size=64,size=32", "scenes:size=6.4",
    ],
)  # fmt: skip
def test_a_wrong_address_names_what_is_accepted(address):
    with pytest.raises(ValueError, match=r"count .*size \(32 to 224 pixels\) and seed"):
        parse(address)


def test_a_foreign_address_is_refused():
    with pytest.raises(ValueError, match="names no scenes"):
        parse("photos")


SOLIDS = [BOX, CABIN, GABLE, PYRAMID, Ball(), Dome(), Frustum(), Frustum(0.5), Frustum(0.0), Torus(0.3)]


@pytest.mark.parametrize("solid", SOLIDS, ids=lambda s: type(s).__name__)
def test_rays_stop_at_a_surface_that_faces_them(solid):
    rng = np.random.default_rng(0)
    o = rng.normal(size=(3, 2000))
    o = (4 * o / np.linalg.norm(o, axis=0)).astype(np.float32)
    d = (rng.uniform(-2, 2, (3, 2000)) - o).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = solid.hit(o, d)
        hit = t < np.inf
        assert 0.1 < hit.mean() < 1
        p, d, o = (o + t * d)[:, hit], d[:, hit], o[:, hit]
        assert np.abs(p).max() < 1.01
        assert ((solid.normal(p) * d).sum(0) <= 0.05).mean() > 0.99
        assert np.isinf(solid.hit(p, -d)).mean() > 0.99  # the way back is free
