"""Random views: pure, well distributed, and resized as Pillow would."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unveil.data.transforms import Sample, View, center_view, draw_cuts, resize
from unveil.modeling.rng import sample_keys
from unveil.modeling.types import RGB

sides = st.integers(1, 60)


def photo(height: int, width: int, channels: int = 3) -> torch.Tensor:
    """A smooth image with some noise."""
    y, x = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 9, width), indexing="ij")
    waves = torch.stack([(x * (1 + c / 3)).sin() + (y * (1 + c / 2)).cos() for c in range(channels)])
    noise = torch.rand(waves.shape, generator=torch.Generator().manual_seed(0))
    return ((waves / 8 + 0.4 + noise / 8) * 255).clamp(0, 255).to(torch.uint8)


def random_view(image: torch.Tensor, view: View, key: torch.Tensor) -> torch.Tensor:
    (made,) = view([Sample({"rgb": image})], [RGB], key[None])
    return made.maps["rgb"]


@given(sides, sides, sides, sides, st.integers(0, 2**31), st.sampled_from(["none", "h", "hv", "d4"]))
@settings(max_examples=60, deadline=None)
def test_a_view_is_pure_and_has_its_size(height, width, h, w, seed, flip):
    image, view = photo(height, width), View((h, w), flip=flip)
    key = sample_keys(seed, 0, [5])[0]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = random_view(image, view, key)
    assert first.shape == (3, h, w)
    assert first.dtype == torch.uint8
    assert torch.equal(first, random_view(image, view, key))
    assert torch.equal(torch.get_rng_state(), state)


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=8), st.sampled_from(["h", "d4"]))
@settings(max_examples=40, deadline=None)
def test_a_view_does_not_depend_on_its_batch(sizes, flip):
    view, keys = View((8, 12), flip=flip), sample_keys(1, 2, range(len(sizes)))
    together = draw_cuts(sizes, view, keys)
    assert together == [draw_cuts([size], view, keys[i : i + 1])[0] for i, size in enumerate(sizes)]
    for cut, (height, width) in zip(together, sizes, strict=True):
        assert 0 <= cut.top <= cut.top + cut.height <= height
        assert 0 <= cut.left <= cut.left + cut.width <= width
        assert min(cut.height, cut.width) >= 1


@pytest.mark.parametrize("image_size", [(64, 64), (64, 128)])
def test_crops_have_the_areas_and_shapes_that_were_asked_for(image_size):
    height, width, n = 300, 400, 4000
    view = View(image_size, crop_scale=(0.2, 0.6))
    cuts = draw_cuts([(height, width)] * n, view, sample_keys(0, 0, range(n)))
    share = np.array([cut.height * cut.width for cut in cuts]) / (height * width)
    stretch = np.array([cut.width / cut.height for cut in cuts]) * image_size[0] / image_size[1]
    assert share.min() > 0.19
    assert share.max() < 0.61
    assert abs(stretch.min() - 3 / 4) < 0.02
    assert abs(stretch.max() - 4 / 3) < 0.03
    if image_size == (64, 64):  # all boxes fit, so nothing biases the draw
        assert abs(share.mean() - 0.4) < 0.01
        assert abs(np.log(stretch).mean()) < 0.01
    middle = np.array([(cut.top + cut.height / 2, cut.left + cut.width / 2) for cut in cuts]).mean(0)
    assert np.abs(middle / (height, width) - 0.5).max() < 0.01
    assert len({(cut.top, cut.left) for cut in cuts}) > n / 2


def test_where_no_box_fits_the_middle_is_taken():
    cut = draw_cuts([(10, 1000)], View((8, 8), crop_scale=(0.9, 1.0)), sample_keys(0, 0, [0]))[0]
    assert (cut.height, cut.width, cut.top, cut.left) == (10, 13, 0, 494)


def test_flips_and_turns_are_uniform_over_their_poses():
    image = photo(16, 16)
    image[:] = 0
    image[:, 1, 3:8] = 255  # no pose of it looks like another
    poses = {"none": 1, "h": 2, "hv": 4, "d4": 8}
    for flip, expected in poses.items():
        view = View((16, 16), crop_scale=(1, 1), crop_ratio=(1, 1), flip=flip)
        cuts = draw_cuts([(16, 16)] * 1600, view, sample_keys(3, 0, range(1600)))
        counts = Counter(cut.of(image, view.image_size).numpy().tobytes() for cut in cuts)
        assert len(counts) == expected
        share = 1 / expected
        for count in counts.values():
            assert abs(count / 1600 - share) < 5 * math.sqrt(share * (1 - share) / 1600) + 1e-9


def test_turns_keep_the_shape_of_the_view():
    view = View((20, 40), crop_scale=(0.3, 0.3), crop_ratio=(1, 1), flip="d4")
    cuts = draw_cuts([(200, 300)] * 200, view, sample_keys(0, 0, range(200)))
    for cut in cuts:
        tall, wide = (cut.width, cut.height) if cut.turned else (cut.height, cut.width)
        assert abs(wide / tall - 2) < 0.05


@pytest.mark.parametrize(("source", "target"), [((100, 140), (32, 48)), ((20, 14), (64, 64)), ((64, 64), (64, 40))])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_agrees_with_pillow(source, target, channels):
    image = photo(*source, channels)
    pixels = image[0].numpy() if channels == 1 else image.permute(1, 2, 0).numpy()
    theirs = np.array(Image.fromarray(pixels).resize(target[::-1], Image.Resampling.BICUBIC)).reshape(*target, channels)
    for layout in (image, image.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        ours = resize(layout, target).permute(1, 2, 0).int()
        assert (ours - torch.from_numpy(theirs).int()).abs().max() <= 1
    for channel in image.float():
        theirs = np.array(Image.fromarray(channel.numpy()).resize(target[::-1], Image.Resampling.BICUBIC))
        assert (resize(channel[None] / 255, target)[0] * 255 - torch.from_numpy(theirs)).abs().max() < 1e-3


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_any_number_of_channels_is_resized_alike(channels):
    image = photo(40, 50, channels)
    alone = torch.cat([resize(image[c : c + 1], (16, 16)) for c in range(channels)])
    assert (resize(image, (16, 16)).int() - alone.int()).abs().max() <= 1


def test_a_map_in_metres_keeps_its_range():
    """Depth is no picture in [0, 1]: bicubic weights may overshoot an edge, but not beyond the values of the map."""
    depth = torch.full((1, 40, 40), 2.0)
    depth[:, :, 20:] = 7.5
    for view in (center_view(depth, (16, 16)), resize(depth, (23, 31))):
        assert (view.min(), view.max()) == (2.0, 7.5)
    below = resize(-depth, (16, 16))
    assert (below.min(), below.max()) == (-7.5, -2.0)


def test_float_images_stay_in_the_unit_range():
    edge = torch.zeros(1, 8, 8)
    edge[:, :, 4:] = 1
    big = resize(edge, (64, 64))
    assert big.min() == 0
    assert big.max() == 1


def test_center_view():
    square = photo(256, 256)
    assert torch.equal(center_view(square, (224, 224)), square[:, 16:240, 16:240])  # the usual protocol on ImageNet
    small = photo(32, 32)
    assert torch.equal(center_view(small, (32, 32)), small)
    assert torch.equal(center_view(photo(96, 96), (48, 48)), resize(photo(96, 96), (48, 48)))  # no margin up to 96 px
    wide = photo(100, 300)
    assert torch.equal(center_view(wide, (100, 100)), wide[:, :, 100:200])  # not large enough for a margin
    assert center_view(photo(20, 90), (64, 48)).shape == (3, 64, 48)


@given(sides, sides, sides, sides)
@settings(max_examples=60, deadline=None)
def test_center_view_always_has_its_size(height, width, h, w):
    assert center_view(photo(height, width, 1), (h, w)).shape == (1, h, w)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"image_size": (0, 224)}, "image size"),
        ({"crop_scale": (0.5, 1.7)}, "crop scale"),
        ({"crop_scale": (0.0, 1.0)}, "crop scale"),
        ({"crop_ratio": (2, 1)}, "crop ratio"),
        ({"flip": "x"}, "none, h, hv, d4"),
    ],
)
def test_a_view_that_cannot_be_is_refused(settings_, message):
    with pytest.raises(ValueError, match=message):
        View(**{"image_size": (224, 224), **settings_})
