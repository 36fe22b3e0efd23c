"""Runs of several declared modalities, from the command line to the run folder, and back from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from test_data_aligned import write
from tiny_runs import at_steps, interrupt, journal
from unveil.cli import main
from unveil.modeling.public_vits import adapt_channels, with_channels
from unveil.recipes.run import Run
from unveil.training.data_setup import open_data

RECIPE = '''
"""Two: a tiny ViT that reads several modalities and predicts the continuous ones."""

from unveil.parts import (
    DEPTH, RGB, Encoder, MaskedModel, Masker, Objective, Optim, Pixels, Recipe, SelfDecoder, Stage, Uniform, View
)


def recipe(*, modalities=(RGB, DEPTH), image_size: tuple[int, ...] = (16,), patch: int = 4, visible: float = 0.25,
           epochs: float = 2, warmup_epochs: float = 1, batch_size: int = 10, lr: float = 0.05) -> Recipe:
    encoder = Encoder(modalities, image_size, patch, dim=16, depth=2, heads=2)
    outputs = [m for m in modalities if m.kind == "continuous"]

    def build():
        decoders = {m.name: SelfDecoder(m.name, encoder, 16, 1, 2) for m in outputs}
        objectives = [Objective(m.name, m.name, 16, Pixels(m, patch, norm_pix=False)) for m in outputs]
        return MaskedModel(encoder, Masker(Uniform(), visible, 1 - visible), decoders, objectives)

    return Recipe(encoder, (Stage(build, epochs),), Optim(lr, batch_size, warmup_epochs), View(encoder.image_size))
'''
FEW = ("--epochs", "2", "--batch-size", "10", "--image-size", "16", "--patch", "4", "--device", "cpu", "--workers", "1")


def two(folder: Path) -> str:
    (folder / "two.py").write_text(RECIPE)
    return str(folder / "two.py")


def facts(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


class TestPretraining:
    def test_missing_maps_train_on_what_is_there(self, tmp_path: Path):
        data = write(tmp_path / "data", 40, without={"depth": set(range(0, 40, 3))})
        (tmp_path / "labels.toml").write_text("[semseg]\nclasses = 4\nvoid = 11\n")
        words = ["--modalities", "rgb", "depth", str(tmp_path / "labels.toml"), "--held-out", "last"]
        run = tmp_path / "run"
        assert main(["pretrain", two(tmp_path), "--data", str(data), "--out", str(run), *words, *FEW]) == 0
        metadata = facts(run)
        assert [d.name for d in Run.open(run).declared] == ["rgb", "depth", "semseg"]
        assert metadata["modality"]["name"] == "rgb"
        assert metadata["data"]["held_out"] == 2
        assert metadata["status"] == "finished"
        last = journal(run, "signals")[-1]
        assert set(last["heldout_losses"]) == {"rgb", "depth"}
        assert last["heldout_loss"] == pytest.approx(sum(last["heldout_losses"].values()))
        assert "semseg" in [m["name"] for m in json.loads((run / "inspection.json").read_text())["maps"]]
        assert list((run / "pictures").glob("*.png"))
        assert unveil.load(run, device="cpu")(torch.rand(2, 3, 16, 16)).shape == (2, 16)

    def test_a_stopped_run_ends_with_the_same_bits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        data = write(tmp_path / "data", 40, without={"depth": {3, 5}})
        words = ["pretrain", two(tmp_path), "--data", str(data), *FEW]
        assert main([*words, "--out", str(tmp_path / "whole")]) == 0
        at_steps(monkeypatch, {3}, interrupt)
        with pytest.raises(KeyboardInterrupt):
            unveil.pretrain(
                two(tmp_path), data=str(data), out=str(tmp_path / "halved"), epochs=2.0, batch_size=10,
                image_size=(16,), patch=4, device="cpu", workers=1,
            )  # fmt: skip
        assert main([*words, "--out", str(tmp_path / "halved")]) == 0
        ends = [sorted((tmp_path / r / "checkpoints").iterdir())[-1] for r in ("whole", "halved")]
        one, other = ((end / "model.safetensors").read_bytes() for end in ends)
        assert one == other

    def test_a_recipe_of_one_modality_takes_any_one(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        place = tmp_path / "data/thermal"
        place.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for i in range(20):
            np.save(place / f"{i}.npy", rng.normal(20, 5, (16, 16)).astype(np.float32))
        (tmp_path / "t.toml").write_text("[thermal]\nunit = '°C'\n")
        run = tmp_path / "run"
        words = ["--data", str(place.parent), "--modalities", str(tmp_path / "t.toml"), "--out", str(run)]
        assert main(["pretrain", "mae", *words, *FEW, "--decoder-dim", "16", "--decoder-depth", "1"]) == 0
        assert facts(run)["modality"]["mean"] == pytest.approx([20], abs=0.5)
        (key,) = json.loads((run / "pictures/index.json").read_text())["keys"]
        assert key["name"] == "thermal"
        assert key["high"].endswith(" °C"), "degrees are shown in colours that a bar explains"
        capsys.readouterr()
        assert main(["pretrain", "mae", "--data", "scenes", "--modalities", "rgb", "depth"]) == 2
        assert "reads one modality, got rgb depth" in capsys.readouterr().err

    def test_more_visible_tokens_than_a_sample_has(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        data = write(tmp_path / "data", 20, without={"depth": {3}})
        words = ["--data", str(data), "--modalities", "rgb", "depth", "--out", str(tmp_path / "run"), *FEW]
        assert main(["pretrain", two(tmp_path), *words, "--visible", "0.6"]) == 2
        assert "but a sample has 16: some of its modalities are missing" in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "run").exists()


def test_features_are_measured_on_the_folder_that_a_run_learned_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The user need not say that its pictures are in rgb; where nothing is labelled, that is told."""
    data, run = write(tmp_path / "data", 40), str(tmp_path / "run")
    words = ("--modalities", "rgb", "depth", "--out", run, *FEW)
    assert main(["pretrain", two(tmp_path), "--data", str(data), *words]) == 0
    result = [unveil.evaluate(run, data=str(d), protocol=("knn",), device="cpu")[0] for d in (data, data / "rgb")]
    assert result[0].metrics == result[1].metrics
    assert result[0].baselines == result[1].baselines
    unveil.embed(run, data=str(data), out=str(tmp_path / "f.npz"), device="cpu")
    with np.load(tmp_path / "f.npz") as features:
        assert features["features"].shape == (40, 16)
    for kind in ("rgb", "depth"):
        for scene in sorted((data / kind).iterdir()):
            for file in scene.iterdir():
                file.rename(data / kind / file.name)
            scene.rmdir()
    assert main(["evaluate", run, "--data", str(data), "--protocol", "knn", "--device", "cpu"]) == 2
    assert "has no labels, and this protocol needs them" in " ".join(capsys.readouterr().err.split())


def test_a_folder_of_modalities_is_seen_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write(tmp_path / "data", 6, without={"depth": {3}})
    assert main(["inspect", str(data)]) == 0
    stdout = capsys.readouterr().out
    assert "missing in 1 sample: scene1/003" in stdout
    assert f"next: unveil pretrain multimae --data {data} --modalities rgb depth semseg" in stdout
    open_data(str(data), ())
    assert "has a folder for each of rgb depth semseg" in capsys.readouterr().err


class TestBands:
    rgb = torch.arange(2 * 4 * 3, dtype=torch.float32).reshape(2, 12)  # 2 wide, patches of 2 x 2, 3 channels

    def test_mean_and_repeat_keep_what_equal_bands_give(self):
        flat = torch.full((4,), 0.7)
        before = self.rgb @ flat.repeat_interleave(3)
        for bands in (3, 6, 9):
            for how in ("mean", "repeat"):
                after = adapt_channels(self.rgb, 3, bands, (how,)) @ flat.repeat_interleave(bands)
                assert torch.allclose(after, before)
        assert torch.equal(adapt_channels(self.rgb, 3, 3, ("repeat",)), self.rgb)

    def test_named_bands_keep_their_filters(self):
        made = adapt_channels(self.rgb, 3, 4, ("2", "1", "0", "mean")).unflatten(1, (4, 4))
        trained = self.rgb.unflatten(1, (4, 3))
        assert torch.equal(made[..., :3], trained.flip(-1))
        assert torch.allclose(made[..., 3], trained.mean(-1))

    @pytest.mark.parametrize("how", [("3",) * 4, ("0", "1"), ("meen",), ("mean", "mean")])
    def test_words_that_are_no_bands(self, how: tuple[str, ...]):
        with pytest.raises(ValueError, match="one word for each of 4 channels"):
            adapt_channels(self.rgb, 3, 4, how)

    def test_rgb_weights_stand_in_for_another_modality(self):
        name = "encoder.adapters.rgb.proj"
        made = with_channels({f"{name}.weight": self.rgb, f"{name}.bias": torch.ones(2)}, "bands", 5, 2, ("mean",))
        assert {n: tuple(t.shape) for n, t in made.items()} == {
            "encoder.adapters.bands.proj.weight": (2, 20),
            "encoder.adapters.bands.proj.bias": (2,),
        }
        with pytest.raises(ValueError, match="another patch than 5 x 5"):
            with_channels({f"{name}.weight": self.rgb}, "bands", 5, 5, ("mean",))
        with pytest.raises(ValueError, match="no projection of bands or rgb"):
            with_channels({}, "bands", 5, 2, ("mean",))

    def test_a_run_starts_from_one_of_other_bands(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        rng = np.random.default_rng(0)
        for name, shape in (("rgb", (16, 16, 3)), ("bands", (5, 16, 16))):
            (tmp_path / "data" / name).mkdir(parents=True)
            for i in range(20):
                if name == "rgb":
                    Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(tmp_path / f"data/rgb/{i}.png")
                else:
                    np.save(tmp_path / f"data/bands/{i}.npy", rng.random(shape, np.float32))
        (tmp_path / "b.toml").write_text("[bands]\nchannels = 5\n")
        words = ["pretrain", two(tmp_path), "--data", str(tmp_path / "data"), *FEW]
        assert main([*words, "--modalities", "rgb", "--out", str(tmp_path / "first")]) == 0
        words += ["--modalities", str(tmp_path / "b.toml"), "--init-from", str(tmp_path / "first")]
        capsys.readouterr()
        assert main([*words, "--init-channels", "repeat", "--out", str(tmp_path / "second")]) == 0
        assert main([*words, "--init-channels", "0", "--out", str(tmp_path / "third")]) == 2
        assert "one word for each of 5 channels" in " ".join(capsys.readouterr().err.split())
