"""The picture files of a run, and the image operations that make them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from report_fakes import fake_images
from unveil.reporting.pictures import (
    Near,
    NearRow,
    Probe,
    attention_overlay,
    colours,
    hide_patches,
    how_viewed,
    paste,
    viewable,
    write_neighbours,
    write_probes,
)


def probe(name: str = "cat", shade: int = 7) -> Probe:
    image = np.full((8, 12, 3), shade, np.uint8)
    return Probe(name, {"original": image, "hidden": image, "reconstructed": image})


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.data())
def test_hide_and_paste_split_the_image_between_hidden_and_visible(rows, columns, patch, data):
    rng = np.random.default_rng(0)
    image, guess = rng.integers(0, 128, (2, rows * patch, columns * patch, 3), np.uint8)
    ids = data.draw(st.lists(st.integers(0, rows * columns - 1), unique=True))
    hidden, pasted = hide_patches(image, ids, (rows, columns), shade=200), paste(image, guess, ids, (rows, columns))
    for i in range(rows * columns):
        y, x = i // columns * patch, i % columns * patch
        cell = (slice(y, y + patch), slice(x, x + patch))
        assert (hidden[cell] == (200 if i in ids else image[cell])).all()
        assert (pasted[cell] == (guess if i in ids else image)[cell]).all()


def test_a_grid_that_does_not_divide_the_image_is_refused():
    with pytest.raises(ValueError, match="3 x 4 patches does not divide an image of 8 x 12"):
        hide_patches(probe().pictures["original"], [0], (3, 4))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_any_number_of_channels_becomes_viewable_and_says_how(channels):
    image = np.random.default_rng(channels).random((channels, 5, 6)) * 0.2
    picture = viewable(image)
    assert picture.shape == (5, 6, 3)
    assert picture.dtype == np.uint8
    if channels == 1:
        assert (picture == np.round(image[0, ..., None] * 255)).all()
        assert how_viewed(channels) == ""
    elif channels == 3:
        assert (picture == np.round(image.transpose(1, 2, 0) * 255)).all()
    else:
        assert picture.max() > 240
        assert "contrast stretched" in how_viewed(channels)


def test_a_reconstruction_is_stretched_as_its_original():
    image = np.random.default_rng(0).random((5, 8, 8))
    assert np.ptp(viewable(image * 0.5).astype(int)) > 250
    assert viewable(image * 0.5, like=image).max() < 140
    assert viewable(np.full((2, 4, 4), np.nan)).max() == 0


def test_colours_rise_evenly_in_lightness():
    ramp = colours(np.linspace(0, 1, 64)).astype(float) / 255
    linear = np.where(ramp <= 0.04045, ramp / 12.92, ((ramp + 0.055) / 1.055) ** 2.4)
    lightness = np.cbrt(linear @ [0.2126, 0.7152, 0.0722])
    steps = np.diff(lightness)
    assert (steps > 0).all()
    assert steps.max() < 3 * steps.min()


def test_attention_is_bright_where_it_is_high():
    image = np.full((16, 32, 3), 100, np.uint8)
    attention = np.zeros((2, 4), np.float32)
    attention[0, 3] = 5.0
    picture = attention_overlay(image, attention)
    assert picture.shape == image.shape
    assert picture[1, -2].sum() > picture[-2, 1].sum() + 150
    assert attention_overlay(image, np.ones((2, 4))).shape == image.shape


def test_attention_has_one_scale_whatever_the_image_and_the_epoch():
    image = np.full((16, 16, 3), 100, np.uint8)
    sharp, soft = np.ones((4, 4)), np.ones((4, 4))
    sharp[0, 0], soft[0, 0] = 16, 1.2
    one, other = attention_overlay(image, sharp).astype(int), attention_overlay(image, soft).astype(int)
    assert one[0, 0].sum() - other[0, 0].sum() > 60, "a map that is almost even has no bright spot"
    assert (attention_overlay(image, sharp) == attention_overlay(image, 7 * sharp)).all(), "shares alone count"
    even = attention_overlay(image, np.ones((4, 4)))
    assert (even == even[0, 0]).all()
    assert (attention_overlay(image, np.zeros((4, 4))) == even).all()


def test_probes_are_added_in_order_and_the_same_step_is_replaced(tmp_path):
    write_probes(tmp_path, 2.0, 20, [probe(shade=2)], norm_pix=True, note="first")
    write_probes(tmp_path, 1.0, 10, [probe(shade=1)], norm_pix=True)
    write_probes(tmp_path, 2.0, 20, [probe("dog", shade=3)], norm_pix=True, note="second")
    index = json.loads((tmp_path / "pictures/index.json").read_text())
    assert [e["step"] for e in index["epochs"]] == [10, 20]
    assert index["probes"] == [{"name": "dog"}]
    assert index["norm_pix"] is True
    assert index["note"] == "second"
    item = index["epochs"][1]["items"][0]
    assert item["attention"] is None
    assert np.asarray(Image.open(tmp_path / "pictures" / item["reconstructed"]))[0, 0, 0] == 3


def test_an_index_that_cannot_be_read_is_begun_again_and_no_part_is_left(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/index.json").write_text('{"epochs": [{"st')
    write_probes(tmp_path, 1.0, 10, [probe()], norm_pix=False)
    assert len(json.loads((tmp_path / "pictures/index.json").read_text())["epochs"]) == 1
    assert not [p for p in (tmp_path / "pictures").iterdir() if p.name.endswith(".part")]


def test_neighbours_are_written_with_labels_and_distances(tmp_path):
    a, b = fake_images(2, (8, 8))
    row = NearRow(Near(a, label="cat"), [Near(b, 0.25), Near(a, 0.5, "cat", alike=3)], [Near(b, 0.1)])
    write_neighbours(tmp_path, [row])
    (row,) = json.loads((tmp_path / "pictures/neighbours.json").read_text())
    assert row["query_label"] == "cat"
    assert [n["alike"] for n in row["neighbours"]] == [0, 3]
    assert [n["distance"] for n in row["by_colour"]] == [0.1]
    assert [(n["distance"], n["label"]) for n in row["neighbours"]] == [(0.25, None), (0.5, "cat")]
    assert (np.asarray(Image.open(tmp_path / "pictures" / row["neighbours"][0]["image"])) == b).all()
