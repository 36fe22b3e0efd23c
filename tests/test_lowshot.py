"""Few labels and several sets: what is drawn, what is averaged, what is refused."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from measuring import on_images, score
from test_evaluate import PIXELS, Memory, Patches, coloured
from test_finetune import tiny
from unveil.data.sources import open_source
from unveil.evaluation.datasets import ImageSplit, open_sets
from unveil.evaluation.finetuning import PRESETS, FineTuner
from unveil.evaluation.protocols.finetune import Finetune
from unveil.evaluation.protocols.linear import Linear
from unveil.evaluation.protocols.lowshot import Lowshot, count_of, stratified_draw
from unveil.evaluation.protocols.transfer import Transfer
from unveil.evaluation.registry import choose, options_of
from unveil.evaluation.results import table
from unveil.evaluation.statistics import estimate


def noisy(count: int, seed: int = 0) -> Memory:
    """Colours under so much noise that few images are not enough."""
    source = coloured(count, seed)
    rng = torch.Generator().manual_seed(seed + 9)
    images = [(x + torch.randn(3, 1, 1, generator=rng) * 90).clamp(0, 255).to(torch.uint8) for x in source.images]
    return replace(source, images=images)


def small(note=print):
    """A low-shot score on 90 images."""
    data = ImageSplit.of(noisy(90), noisy(30, 1))
    return lambda **options: score(Lowshot(**{"by": "knn", **options}), Patches(), data, note=note)


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=20, max_size=80), share=st.floats(0.3, 0.99), seed=st.integers(0, 9))
def test_draws_keep_the_proportions_of_the_classes(labels, share, seed):
    y = torch.tensor(labels)
    count = max(int(share * len(y)), 2 * len(set(labels)))
    if count >= len(y):
        return
    rows = stratified_draw(y, count, seed)
    assert len(rows) == count
    assert rows.tolist() == sorted(set(rows.tolist()))
    for label in set(labels):
        own, size = int((y[rows] == label).sum()), labels.count(label)
        exact = size * count / len(y)
        assert min(2, size) <= own <= size
        if all(labels.count(other) * count / len(y) >= 2 for other in set(labels)):
            assert exact - 1 < own < exact + 1
    assert torch.equal(rows, stratified_draw(y, count, seed))


def test_other_draws_are_other_images():
    y = torch.arange(200) % 4
    assert not torch.equal(stratified_draw(y, 40, 0), stratified_draw(y, 40, 1))


@pytest.mark.parametrize(("shot", "count"), [("1%", 500), ("10%", 5000), ("0.1%", 50), ("10k", 10_000), ("64", 64)])
def test_shots_in_words(shot, count):
    assert count_of(shot, 50_000) == count


def test_intervals_are_students():
    result = estimate([0.1, 0.2, 0.4])
    assert result.mean == pytest.approx(0.7 / 3)
    assert result.half == pytest.approx(4.303 * 0.152753 / 3**0.5, rel=1e-4)
    stats = pytest.importorskip("scipy.stats")
    for count in (2, 5, 31, 60):
        values = torch.rand(count, generator=torch.Generator().manual_seed(count)).tolist()
        low, high = stats.t.interval(0.95, count - 1, loc=sum(values) / count, scale=stats.sem(values))
        assert estimate(values).half == pytest.approx((high - low) / 2, rel=1e-9)


@pytest.mark.parametrize("by", ["knn", "linear-lbfgs"])
def test_more_labels_help_and_the_numbers_stay(by):
    data, protocol = ImageSplit.of(noisy(240), noisy(120, 1)), Lowshot(shots=("9", "50%"), draws=4, by=by)
    result = score(protocol, Patches(), data)
    assert result == score(protocol, Patches(), data)
    assert result is not None
    assert result.metrics["accuracy_50%"] > result.metrics["accuracy_9"] > 0.34
    assert 0 < result.metrics["plus_minus_50%"] < 1
    assert result.settings["images"] == {"9": 9, "50%": 120}
    assert not result.trains_encoder


def test_a_single_draw_has_no_interval():
    result = small()(shots=("20%",), draws=1)
    assert result is not None
    assert set(result.metrics) == {"accuracy_20%"}
    assert "drawn once" in result.card
    assert "interval" not in result.card


def test_what_a_set_cannot_give_is_left_out_and_said():
    notes = []
    result = small(notes.append)(shots=("1%", "20%", "10k"), draws=2)
    assert result is not None
    assert set(result.metrics) == {"accuracy_20%", "plus_minus_20%"}
    assert len(notes) == 2
    assert any("10k of 90 training images is left out" in note for note in notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": ("1%",)}, "none of 1% can be drawn from 90 training images: 6 are needed"),
        ({"shots": ("many",)}, "such as 1% or 500 or 10k; got 'many'"),
        ({"draws": 0}, "at least 1, and 2 for an interval; got 0"),
    ],
)
def test_bad_shots_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small()(**{"shots": ("20%",), **options})


def test_a_row_per_shot_with_its_interval():
    (result,) = on_images(
        Patches(),
        ["lowshot"],
        coloured(60),
        coloured(30, 1),
        baselines={"pixels": PIXELS},
        options={"shots": ("9", "30"), "by": "knn", "draws": 2},
    )
    rows = table([result]).splitlines()
    assert [row.split()[:2] for row in rows[1:]] == [["lowshot", "9"], ["lowshot", "30"]]
    assert rows[2].endswith("100.0 ± 0.0 %")


def test_fine_tuning_on_few_images_takes_every_option_of_fine_tuning(monkeypatch):
    """MultiMAE's published settings on few labels in one command, and single options over them."""
    monkeypatch.setattr("unveil.evaluation.protocols.finetune.FineTuner.train", train := Recorder())
    options = {"shots": ("20%",), "draws": 2, "by": "finetune", "preset": "multimae", "epochs": 2, "randaugment": 0}
    with pytest.raises(StopTrainingError):
        on_images(tiny(), ["lowshot"], coloured(60), coloured(30, 1), options=options, pool="mean")
    (tuner,) = train.tuners
    published = PRESETS["multimae"]
    assert tuner.settings == replace(published, epochs=2, warmup_epochs=published.warmup_epochs / 50, randaugment=0)
    assert len(tuner.data.train) == 12
    assert set(options_of(Finetune)) - set(options_of(Lowshot, {"by": "finetune"})) == {"keep"}
    assert set(options_of(Linear)) < set(options_of(Transfer, {"by": "linear"}))


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["lowshot"], {"by": "finetune", "keep": "a.safetensors"}, "lowshot has no option 'keep'; finetune has it"),
        (["lowshot"], {"by": "knn", "preset": "multimae"}, "no option 'preset'; .*finetune.* lowshot --by linear"),
        (["lowshot"], {"by": "finetune", "preset": "multimea"}, "preset of lowshot is one of auto, mae-b"),
        (["lowshot"], {"by": "finetune", "lr": -1.0}, "lr is at least 0"),
        (["transfer"], {"by": "finetune", "epochs": 3, "updates": 9}, "--updates is a number of at least 1"),
        (["lowshot"], {"by": "segment"}, "by of lowshot is one of knn"),
        (["lowshot"], {"by": "attentive", "epochs": 0}, "epochs are at least 1; got 0"),
        (["lowshot"], {"by": "linear", "lrs": (0.1, -1.0)}, "learning rates are numbers above 0"),
        (["transfer"], {"by": "linear", "preset": "mae", "probe_epochs": 0, "to": "a"}, "probe_epochs is at least 1"),
        (["transfer"], {"by": "finetune"}, "transfer needs data sets to go to: give --to"),
        (["reconstruct"], {"hidden": (1.0,)}, "hidden is one share between 0 and 1"),
    ],
)
def test_options_of_a_repeated_protocol_are_checked_before_images_are_read(names, options, message):
    with pytest.raises(ValueError, match=message):
        choose(names, options)


class StopTrainingError(Exception):
    """Raised in place of a training."""


class Recorder:
    """Keeps the trainers that would train."""

    def __init__(self):
        self.tuners: list[FineTuner] = []

    def __get__(self, tuner, owner=None):
        def train():
            self.tuners.append(tuner)
            raise StopTrainingError

        return train


def folder_of(place, count: int, seed: int):
    source = coloured(count, seed)
    for i, (image, label) in enumerate(zip(source.images, source.labels, strict=True)):
        file = place / source.classes[label] / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    return place


def test_a_folder_of_splits_is_both_sets(tmp_path):
    folder_of(tmp_path / "places" / "train", 12, 0)
    folder_of(tmp_path / "places" / "val", 6, 1)
    train, test = open_sets(str(tmp_path / "places"), None, 3)
    assert (len(train), len(test)) == (12, 6)
    assert train.classes == test.classes == ["blue", "green", "red"]
    train, test = open_sets(str(tmp_path / "places" / "train"), None, 3)
    assert test is None
    train, test = open_sets(str(tmp_path / "places" / "train"), str(tmp_path / "places" / "val"), 3)
    assert (len(train), len(test)) == (12, 6)


def test_transfer_is_the_protocol_on_each_set(tmp_path):
    places = folder_of(tmp_path / "places" / "train", 24, 0).parent
    folder_of(places / "val", 9, 1)
    birds = folder_of(tmp_path / "birds", 30, 2)
    data = ImageSplit.of(coloured(30), coloured(12, 1))
    result = score(Transfer(to=(str(places), str(birds)), by="knn"), Patches(), data)
    assert result is not None
    assert set(result.metrics) == {"accuracy_places", "accuracy_birds", "accuracy_mean"}
    alone = on_images(Patches(), ["knn"], open_source(birds), pool="mean")[0]
    assert result.metrics["accuracy_birds"] == alone.metrics["accuracy"]
    assert result.settings["sets"]["places"]["test_images"] == 9
    with pytest.raises(ValueError, match="give --to FOLDER"):
        score(Transfer(), Patches(), data)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        score(Transfer(to=(str(tmp_path / "nowhere"),)), Patches(), data)


def test_groups_are_held_out_whole(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    for patient in range(10):
        for name in ("ill", "well"):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            for scan in range(2):
                Image.fromarray(pixels).save(tmp_path / "data" / name / f"patient{patient}_{scan}.png")
    by = r"patient(\d+)_"
    train, test = open_sets(str(tmp_path / "data"), None, 3, group_by=by)
    sides = [{re.search(by, side.name(i))[1] for i in range(len(side))} for side in (train, test)]
    assert not sides[0] & sides[1]
    assert len(sides[0]) == 8
    assert len(test) == 8
    other = open_sets(str(tmp_path / "data"), None, 3, by, seed=1)[1]
    assert {other.name(i) for i in range(8)} != {test.name(i) for i in range(8)}
    with pytest.raises(ValueError, match="with test images of their own"):
        open_sets(str(tmp_path / "data"), str(tmp_path / "data"), 3, by)
