"""The class of every patch from its token: what is counted, beside what, and what cannot be measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from test_segment import tiny
from unveil.evaluation.dense.data import DenseData
from unveil.evaluation.features import RawPixels
from unveil.evaluation.outcomes import standard_error
from unveil.evaluation.protocols.patches import Patches, _majority
from unveil.evaluation.types import Context
from unveil.modeling.types import RGB

SIDE, PATCH = 16, 4


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory):
    """Pictures of patches in two colours, with the colour for their class; one corner of each has no class."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for kind in ("rgb", "semseg"):
            (folder / split / kind).mkdir(parents=True)
        for number in range(count):
            ids = np.kron(rng.integers(0, 2, (SIDE // PATCH,) * 2), np.ones((PATCH, PATCH))).astype(np.uint8)
            colours = np.array([(200, 40, 40), (40, 40, 200)], np.uint8)[ids]
            ids[:PATCH, :PATCH] = 255
            Image.fromarray(colours).save(folder / split / "rgb" / f"{number}.png")
            Image.fromarray(ids).save(folder / split / "semseg" / f"{number}.png")
    return folder


def test_the_class_of_a_patch_is_that_of_most_of_its_pixels_that_have_one():
    truth = torch.tensor([[1, 1, 0, 0], [1, 2, 0, 2], [2, 2, 9, 9], [2, 2, 9, 9]])[None, None]
    valid = truth != 9
    valid[0, 0, 0, :2] = False
    assert _majority(truth, valid, 2, 10).tolist() == [[1, 0, 2, -1]]


def test_colours_are_told_by_tokens_and_by_pixels_and_patches_without_a_class_do_not_count(squares):
    data = DenseData(str(squares / "train"), str(squares / "test"))
    for subject in (tiny(), RawPixels(RGB, (SIDE, SIDE), patch=PATCH)):
        score = Patches().run(subject, data, Context())
        assert score is not None
        assert score.metrics["accuracy"] > 0.95
        assert (score.settings["train_patches"], score.settings["test_patches"]) == (12 * 15, 6 * 15)
        shares = np.array(score.outcomes["accuracy"])
        assert len(shares) == 6
        assert shares.mean() == pytest.approx(score.metrics["accuracy"])
        assert standard_error(shares) < 0.05


def test_it_learns_from_about_as_many_patches_as_asked(squares):
    data = DenseData(str(squares / "train"), str(squares / "test"))
    score = Patches(train_patches=40).run(tiny(), data, Context())
    assert score is not None
    assert score.settings["train_images"] == 3
    assert score.settings["train_patches"] == 45


def test_what_has_no_tokens_is_left_out_and_what_cannot_be_is_said(squares):
    data = DenseData(str(squares / "train"), str(squares / "test"))
    assert Patches().run(RawPixels(RGB, (SIDE, SIDE)), data, Context()) is None
    with pytest.raises(ValueError, match="at least 1"):
        Patches(train_patches=0)
