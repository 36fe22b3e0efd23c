"""What the auto makes of data and machine: the time of an image as a run will have it, looks, schedules."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tiny import OPTIONS
from unveil.data.loader import Loader
from unveil.data.transforms import View
from unveil.modeling.encoder import SIZES
from unveil.recipes import cmtmae, crossmae, mae, mim, multimae, simmim
from unveil.recipes.registry import build_recipe, defaults_of
from unveil.training.autoconfig import (
    MIN_BATCH,
    AutoConfig,
    configure_schedule,
    configure_shape,
    configure_size,
    largest_batch,
    validation_interval,
)
from unveil.training.timing import time_with_data
from unveil.training.trainer import Settings

SIZE = (16, 24)
SETTINGS = Settings("cpu", "float32", 4, compile=False, save_minutes=10.0, val_every=1.0)


class Slow:
    """Images that take a while to read."""

    address, channels, labels, classes = "slow", 3, None, None

    def __init__(self, seconds: float, count: int = 8):
        self.seconds, self.count = seconds, count

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return str(index)

    def image(self, index: int) -> Tensor:
        time.sleep(self.seconds)
        return torch.full((3, 20, 30), index, dtype=torch.uint8)


def loader(seconds: float, cache_bytes: int = 0) -> Loader:
    return Loader(Slow(seconds), View(SIZE), batch_size=4, seed=0, workers=1, cache_bytes=cache_bytes)


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SIZES, "tiny", (24, 1, 2))
    return build_recipe(mim.recipe, (), {**OPTIONS, "decoder_depth": 1})


class TestTimeWithData:
    def test_what_reading_takes_is_in_it(self, recipe):
        assert time_with_data(recipe, SETTINGS, loader(0.02), step_seconds=0.0) >= 0.015
        assert time_with_data(recipe, SETTINGS, loader(0.0), step_seconds=9.0) < 9.0  # a step alone is another batch's

    def test_where_the_step_leaves_the_cores_alone_the_slower_decides(self, recipe):
        compiled = Settings(**{**vars(SETTINGS), "compile": True})
        assert time_with_data(recipe, compiled, loader(0.0), step_seconds=9.0) == 9.0
        assert 0.015 <= time_with_data(recipe, compiled, loader(0.02), step_seconds=0.0) < 9.0

    def test_it_goes_over_the_end_of_the_data_and_leaves_no_thread(self, recipe):
        before = threading.active_count()
        assert time_with_data(recipe, SETTINGS, loader(0.0), step_seconds=0.0) > 0
        assert threading.active_count() == before


def test_a_long_run_is_looked_at_ten_times_and_a_short_one_less():
    assert validation_interval(100.0, epoch_seconds=60.0) == 10.0
    assert validation_interval(10.0, epoch_seconds=6.0) == 2.5  # a minute: every 15 s
    assert validation_interval(2.0, epoch_seconds=1.0) == 2.0  # two seconds: at its end
    assert validation_interval(2.0, epoch_seconds=0.0) == 2.0


class TestSize:
    def size(self, device: str, minutes: float | None, **given) -> str:
        auto = AutoConfig(mim.recipe, given)
        images = SimpleNamespace(median=(32, 32))
        configure_shape(auto, images, 50_000, torch.device(device), minutes and 60 * minutes)
        return auto.options["size"]

    def test_without_a_gpu_a_short_run_trains_a_small_encoder(self):
        assert self.size("cpu", 10) == self.size("mps", 30) == self.size("cpu", 60) == "nano"
        assert self.size("cpu", 120) == self.size("cpu", None) == "tiny"  # None: the epochs are given
        assert self.size("cuda", 10) == "base"
        assert self.size("cpu", 10, size="small") == "small"

    def test_images_have_tokens_enough_for_the_patch_of_given_weights(self):
        auto = AutoConfig(mim.recipe, {"patch": 16})
        configure_shape(auto, SimpleNamespace(median=(32, 32)), 100, torch.device("cpu"), least_side=128)
        assert auto.options["image_size"] == (128,)


class TestFitSchedule:
    def auto(self, **given) -> AutoConfig:
        auto = AutoConfig(mim.recipe, given)
        configure_schedule(auto, num_train=1000, image_seconds=0.01, minutes=1.0)
        return auto

    def test_the_epochs_fill_the_time(self):
        assert self.auto().options["epochs"] == 6.0

    def test_few_views_have_small_batches_and_a_rate_that_fits_them(self):
        options = self.auto().options
        assert options["batch_size"] == MIN_BATCH
        assert options["lr_scale"] == "none"
        assert 0 < options["lr"] * options["batch_size"] / 256 <= 1e-3

    def test_what_was_given_stays(self):
        options = self.auto(epochs=3.0, batch_size=64, lr=1e-4).options
        assert (options["epochs"], options["batch_size"], options["lr"]) == (3.0, 64, 1e-4)

    def test_a_batch_that_was_measured_to_be_faster_is_taken(self):
        auto = AutoConfig(mim.recipe, {})
        configure_schedule(auto, num_train=1000, image_seconds=0.01, minutes=1.0, fast_batch=64)
        assert auto.options["batch_size"] == 64
        assert "100 a second" in next(c.why for c in auto.changes if c.option == "batch_size")

    def test_a_long_run_has_larger_batches_up_to_a_limit_or_where_they_are_faster(self):
        for device, fast, batch in (("cuda", 1, 1024), ("cpu", 1, 128), ("cpu", 512, 512)):
            auto = AutoConfig(mim.recipe, {})
            configure_schedule(auto, 50_000, 0.0003, minutes=60, fast_batch=fast, device=device)
            assert auto.options["batch_size"] == batch

    @pytest.mark.parametrize(("num_train", "batch"), [(28, 28), (40, 20), (100, 16), (10, 10), (1000, 16)])
    def test_batches_of_few_images_leave_as_few_out_of_an_epoch_as_they_can(self, num_train, batch):
        auto = AutoConfig(mim.recipe, {})
        configure_schedule(auto, num_train=num_train, image_seconds=0.1, minutes=1.0)
        assert auto.options["batch_size"] == batch
        updates = round(auto.options["epochs"] * (num_train // batch))
        why = next(c.why for c in auto.changes if c.option == "batch_size")
        assert why.startswith(f"{updates * batch:,} images in {updates:,} updates")

    def test_larger_batches_leave_enough_updates_and_are_tried_where_nothing_is_given(self):
        assert largest_batch(AutoConfig(mim.recipe, {}), 64_000, 50_000) == 64
        assert largest_batch(AutoConfig(mim.recipe, {}), 64_000, 50) == 50
        assert largest_batch(AutoConfig(mim.recipe, {}), 1e9, 10_000_000) == defaults_of(mim.recipe)["batch_size"]
        assert largest_batch(AutoConfig(mim.recipe, {"batch_size": 16}), 64_000, 50_000) == 0
        assert largest_batch(AutoConfig(mim.recipe, {"epochs": 3.0}), 64_000, 50_000) == 0

    def test_every_dial_it_sets_is_the_recipes(self):
        assert self.auto().options.keys() <= defaults_of(mim.recipe).keys()

    @pytest.mark.parametrize(
        ("given", "fits"),
        [
            ({}, False),  # nothing follows the student
            ({"teacher": "random"}, False),
            ({"teacher": "student"}, True),
            ({"teacher": "student", "momentum": 0.996}, False),  # asked for
            ({"teacher": "student", "epochs": 800.0}, False),  # long enough for the paper's
        ],
    )
    def test_in_a_short_run_an_average_follows_closely(self, given, fits):
        auto = self.auto(**given)
        assert (auto.options["momentum"] < 0.996) == fits == ("momentum" in {c.option for c in auto.changes})
        updates = auto.options["epochs"] * 1000 / auto.options["batch_size"]
        if fits:
            assert 1 / (1 - auto.options["momentum"]) <= 0.051 * updates

    def test_an_average_of_no_more_than_a_few_updates_is_the_student_itself(self):
        assert self.auto(teacher="student", epochs=0.1).options["momentum"] == 0.0

    @pytest.mark.parametrize(("student", "fits"), [("momentum", True), ("online", False)])
    def test_a_student_as_it_is_has_no_momentum_to_fit(self, student, fits):
        auto = AutoConfig(cmtmae.recipe, {"student": student})
        configure_schedule(auto, num_train=1000, image_seconds=0.01, minutes=1.0)
        assert ("momentum" in {c.option for c in auto.changes}) == fits


@pytest.mark.parametrize(
    ("recipe", "given", "expected"),
    [
        (crossmae, {"size": "small"}, {"decoder_dim": 256, "decoder_heads": 8, "patch": 16}),
        (mae, {"size": "small", "decoder_dim": 384}, {"decoder_dim": 384, "decoder_heads": 8}),
        (mae, {"size": "huge"}, {"decoder_dim": 512, "decoder_heads": 16, "patch": 14}),
        (mae, {"size": "huge", "patch": 16}, {"patch": 16}),
        (mae, {"size": "huge", "image_size": (32,)}, {"patch": 16}),
        (mae, {}, {"decoder_dim": 512, "decoder_heads": 16, "patch": 16}),
        (multimae, {"size": "huge"}, {"decoder_dim": 256, "patch": 16}),
        (simmim, {"size": "huge"}, {"patch": 16}),
    ],
)
def test_a_size_has_its_paper_s_decoder_and_patch_unless_they_are_given(recipe, given: dict, expected: dict):
    auto = AutoConfig(recipe.recipe, given)
    configure_size(auto)
    assert {name: auto.options[name] for name in expected} == expected
