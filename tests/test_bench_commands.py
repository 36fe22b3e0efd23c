"""`unveil bench data`, `evaluate` and `videos`: what they time and print, however long it took."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.cli import main
from unveil.experiments.bench import bench_data, bench_evaluate, bench_videos, data_speed, evaluation_speed
from unveil.experiments.bench.data_speed import pillow_pass, random_box
from unveil.experiments.bench.evaluation_speed import RandomImages, random_features
from unveil.experiments.bench.video_speed import MovingNoise
from unveil.modeling.encoder import vit
from unveil.modeling.image_encoder import ImageEncoder

PROBES = {"train_images": 40, "test_images": 20, "classes": 2, "width": (8, 12)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(256, size=(40, 48, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled to find out what is fastest."""
    monkeypatch.setattr(
        data_speed, "choose_fastest", lambda config, recipe, settings, modalities, planned: (settings, 1)
    )


class TestData:
    @pytest.mark.usefixtures("quick")
    def test_reading_is_held_against_pillow_and_a_step(self, photos: Path, tmp_path: Path, capsys):
        out = tmp_path / "data.json"
        words = ["--size", "nano", "--patch", "8", "--image-size", "16", "--batch-size", "2", "--rounds", "2"]
        code = main(
            ["bench", "data", str(photos), "--packed", str(photos), *words, "--device", "cpu", "--out", str(out)]
        )
        assert code == 0
        results = json.loads(out.read_text())
        assert results["images"] == 4
        assert results["view"] == [16, 16]
        rates = results["images_per_second"]
        assert {name: len(of) for name, of in rates.items()} == dict.fromkeys(
            ("Pillow alone", "as it is", "packed", "step"), 2
        )
        assert all(0 <= share < 1 for name in ("as it is", "packed") for share in results["waiting"][name])
        printed = capsys.readouterr().out
        assert "times Pillow" in printed
        assert "cores for a step" in printed

    @pytest.mark.usefixtures("quick")
    def test_of_several_modalities_pillow_has_no_part(self, red_bars: Path, capsys):
        shape = {"size": "nano", "patch": 8, "image_size": (16,), "batch_size": 2, "device": "cpu"}
        results = bench_data(str(red_bars / "train"), recipe="multimae", rounds=1, images=4, **shape)
        assert results["images_per_second"].keys() == {"as it is", "step"}
        assert "Pillow was not timed" in capsys.readouterr().out

    def test_pillow_reads_each_file_once(self, monkeypatch: pytest.MonkeyPatch, photos: Path):
        from unveil.data.sources import open_source

        source, reads = open_source(photos), []
        encoded = type(source).encoded
        monkeypatch.setattr(type(source), "encoded", lambda self, i: reads.append(i) or encoded(self, i))
        pillow_pass(source, [2, 0], (16, 24), seed=0)
        assert reads == [2, 0]

    def test_crops_lie_in_the_image(self):
        rng = np.random.default_rng(0)
        boxes = np.array([random_box(rng, (48, 40)) for _ in range(200)])
        assert boxes[:, :2].min() >= 0
        assert boxes[:, 2].max() <= 48
        assert boxes[:, 3].max() <= 40
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (48 * 40)
        assert 0.15 < areas.min() < 0.3
        assert areas.max() > 0.9


class TestEvaluate:
    def test_features_are_held_against_the_forward_pass_alone(self, capsys):
        shape = {"size": "nano", "patch": 8, "image_size": (16,), "device": "cpu"}
        results = bench_evaluate(images=6, micro_batch=4, rounds=2, protocol=("knn", "linear-lbfgs"), **shape, **PROBES)
        ratios = [a / b for a, b in zip(results["forward_seconds"], results["features_seconds"], strict=True)]
        assert len(ratios) == 2
        assert results["ratio"]["median"] == pytest.approx(sum(ratios) / 2)
        assert {name: set(of) for name, of in results["probe_seconds"].items()} == {
            "knn": {"8", "12"},
            "linear-lbfgs": {"8", "12"},
        }
        printed = capsys.readouterr().out
        assert "forward pass alone" in printed
        assert "12 numbers" in printed

    def test_of_a_run_its_encoder_is_timed(self, monkeypatch: pytest.MonkeyPatch, photos: Path, capsys):
        encoder = ImageEncoder(vit("nano", 8, (16,)))
        opened = []
        monkeypatch.setattr(evaluation_speed, "load", lambda run, device, trust: opened.append(run) or encoder)
        words = ["--data", str(photos), "--images", "3", "--rounds", "1", "--protocol", "knn", "--width", "8"]
        words += ["--train-images", "40", "--test-images", "20", "--json"]
        assert main(["bench", "evaluate", "runs/a", *words]) == 0
        results = json.loads(capsys.readouterr().out)
        assert opened == [results["encoder"]] == ["runs/a"]
        assert results["data"].startswith(str(photos))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"protocol": ("finetune",)}, "finetune is no probe of features"),
            ({"run": "runs/a", "size": "nano"}, "runs/a has a size"),
            ({"preset": "huge"}, "preset is one of base, cifar"),
            ({"classes": 0}, "classes is a whole number"),
        ],
    )
    def test_a_mistake_is_found_first(self, options, message):
        with pytest.raises(ValueError, match=message):
            bench_evaluate(**options)

    def test_random_images_are_a_source(self):
        source = RandomImages(torch.zeros(2, 3, 4, 5, dtype=torch.uint8))
        assert (len(source), source.channels, source.image(1).shape) == (2, 3, (3, 4, 5))

    def test_random_features_can_be_told_apart(self):
        data = random_features(40, 20, 2, 64, seed=0)
        means = torch.stack([data.train[data.train_labels == k].mean(0) for k in (0, 1)])
        guessed = torch.cdist(data.test, means).argmin(dim=1)
        assert (guessed == data.test_labels).float().mean() > 0.9


class TestVideos:
    def test_the_encoder_and_all_else_are_timed_apart(self, capsys):
        words = ["--patch", "8", "--image-size", "16", "--frame-size", "48", "80", "--objects", "2", "--frames", "3"]
        assert main(["bench", "videos", *words, "--device", "cpu", "--json"]) == 0
        results = json.loads(capsys.readouterr().out)
        assert results["grid"] == [6, 10]
        for name in ("features_seconds", "propagation_seconds"):
            assert len(results[name]) == 3
            assert min(results[name]) > 0

    def test_its_frames_move_and_only_the_first_has_a_mask_of_all_objects(self):
        video = MovingNoise("noise", (Path("frame"),) * 2, (None,) * 2, (4, 28), objects=3)
        first, second = video.frame(0), video.frame(1)
        assert torch.equal(second[..., 8:], first[..., :-8])
        assert video.mask(1) is None
        stripes = np.repeat([0, 1, 0, 2, 0, 3, 0], 4)
        assert np.array_equal(video.mask(0), np.tile(stripes, (4, 1)))

    @pytest.mark.parametrize("options", [{"frame_size": (48,)}, {"objects": 101}, {"frames": 0}])
    def test_what_cannot_be_timed_is_refused(self, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            bench_videos(**options)


@pytest.mark.parametrize("words", [["data"], ["data", "a", "b"], ["evaluate", "a", "b"], ["photos"]])
def test_words_that_do_not_fit_are_refused(words: list[str], capsys):
    assert main(["bench", *words]) == 2
    assert "bench" in capsys.readouterr().err


def test_help_lists_the_flags_of_each(capsys):
    assert main(["bench", "--help"]) == 0
    printed = capsys.readouterr().out
    for flag in ("--preset", "--profile", "--packed", "--train-images", "--mfu"):
        assert flag in printed
