"""`unveil pretrain` from words to run folder, in this process: what it is asked, what it tells, what is made of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import unveil
from tiny_runs import (
    STEPS,
    TRAIN,
    WARM,
    Killed,
    Place,
    at_steps,
    facts,
    journal,
    kill,
    listing,
    weights,
    write_images,
)
from unveil.cli import main
from unveil.data.loader import Loader
from unveil.runs import checkpoint
from unveil.training.trainer import Trainer


class TestIntents:
    def test_other_dials_are_named_and_a_finished_run_is_left_alone(self, place: Place, capsys):
        assert place.pretrain(*TRAIN) == 0
        before = listing(place.run)
        assert place.pretrain(*TRAIN) == 0  # a job that is queued again, or a rule of make, has nothing to do
        assert "holds this run, finished; to train it for longer" in capsys.readouterr().err
        assert place.pretrain(*TRAIN, "--visible", "0.5") == 2
        assert "visible: 0.25 then, 0.5 now" in capsys.readouterr().err
        assert place.pretrain(*TRAIN, "--repeats", "2") == 2
        assert "repeats: None then, 2 now" in capsys.readouterr().err
        assert main(["pretrain", "mae", "--data", place.data, "--out", str(place.run)]) == 2
        assert "recipe: 'tiny' then, 'mae' now" in capsys.readouterr().err
        assert listing(place.run) == before

    def test_overwrite_begins_anew_but_only_once_the_new_run_is_possible(self, place: Place):
        assert place.pretrain(*TRAIN) == 0
        (place.run / "notes.txt").write_text("mine")
        before = listing(place.run)
        for wrong in (
            ["--visible", "1.7"],
            ["--decoder-heads", "3"],
            ["--init-from", "nothing.pth"],
            ["--epochs", "0"],
        ):
            assert place.pretrain(*TRAIN, "--overwrite", *wrong) == 2
        assert listing(place.run) == before
        assert place.pretrain(*TRAIN, "--overwrite", "--epochs", "1") == 0
        assert [p.name for p in (place.run / "checkpoints").iterdir()] == ["step-00000003"]
        assert journal(place.run, "step")[-1]["step"] == 3
        assert (place.run / "notes.txt").read_text() == "mine"
        assert "--overwrite" not in facts(place.run)["command"]

    def test_a_folder_of_other_files_is_never_touched(self, place: Place, capsys):
        write_images(place.path / "mine", 1)
        before = listing(place.path)
        for words in ([], ["--overwrite"]):
            assert place.pretrain(*TRAIN, *words, out="mine") == 2
            assert "holds files that are no run" in capsys.readouterr().err
        assert listing(place.path) == before

    @pytest.mark.parametrize("kind", ["run", "file"])
    def test_a_run_starts_from_our_weights(self, place: Place, whole: Callable, monkeypatch, capsys, kind: str):
        source = whole(*TRAIN)
        given = source if kind == "run" else source / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors"
        at_steps(monkeypatch, [1], kill)
        words = (*TRAIN, "--seed", "5", "--init-from", str(given))
        with pytest.raises(Killed):
            place.pretrain(*words)
        assert "tensors loaded" in capsys.readouterr().err
        assert place.pretrain(*words) == 0  # it died before its first checkpoint: the weights are loaded again
        first, cold = journal(place.run, "signals")[0], journal(source, "signals")[0]
        assert first["heldout_loss"] < cold["heldout_loss"]

    def test_a_run_starts_from_public_weights_with_a_table_of_keys(self, place: Place, capsys):
        ours = whole_model(place)
        projection = ours["encoder.adapters.rgb.proj.weight"].reshape(16, 4, 4, 3).permute(0, 3, 1, 2)
        theirs = {
            "cls_token": ours["encoder.prefix"][None],
            "patch_embed.proj.weight": projection,
            "patch_embed.proj.bias": ours["encoder.adapters.rgb.proj.bias"],
            "head.weight": torch.zeros(10, 16),
        }
        for name, tensor in ours.items():
            if name.startswith("encoder.blocks."):
                public = name.removeprefix("encoder.").replace("mlp.0.", "mlp.fc1.").replace("mlp.2.", "mlp.fc2.")
                theirs[public] = tensor
        torch.save({"model": theirs, "epoch": 3}, place.path / "mae.pth")
        assert place.pretrain(*TRAIN, "--init-from", str(place.path / "mae.pth"), out="warm") == 0
        stderr = capsys.readouterr().err
        assert "missing (start fresh): " in stderr
        assert "1 unexpected (left out): head.weight" in stderr

    def test_weights_that_do_not_fit_are_refused_before_anything_is_written(self, place: Place, capsys):
        torch.save({"model": {"blocks.0.attn.qkv.weight": torch.zeros(48, 17)}}, place.path / "other.pth")
        torch.save(torch.zeros(3), place.path / "tensor.pth")
        (place.path / "text.pth").write_text("no weights")
        (place.path / "cut.safetensors").write_bytes(b"\x10\0\0")
        (place.path / "empty").mkdir()
        before = listing(place.path)
        for name, text in (
            ("other.pth", "--init-from: no weights fit this encoder"),
            ("tensor.pth", "holds no weights"),
            ("text.pth", "was refused"),
            ("cut.safetensors", "not a whole safetensors file"),
            ("empty", "is not a run folder"),
            ("none.pth", "no weight file"),
        ):
            assert place.pretrain(*TRAIN, "--init-from", str(place.path / name)) == 2
            assert text in capsys.readouterr().err
        assert listing(place.path) == before


def whole_model(place: Place) -> dict[str, torch.Tensor]:
    assert place.pretrain(*TRAIN, out="public") == 0
    latest, _ = checkpoint.read_latest(place.path / "public")
    assert latest
    return latest.model


class TestTelling:
    def test_what_is_printed_is_what_is_done(self, place: Place, monkeypatch: pytest.MonkeyPatch, capsys):
        rates, sizes = [], []
        update = Trainer.update

        def noted(self, batch, lr):
            rates.append(lr)
            sizes.append(len(batch))
            return update(self, batch, lr)

        monkeypatch.setattr(Trainer, "update", noted)
        assert (
            place.pretrain(
                "--epochs",
                "4",
                "--batch-size",
                "12",
                "--micro-batch",
                "5",
                "--lr",
                "0.32",
                *WARM,
                "--precision",
                "float32",
            )
            == 0
        )
        stderr = capsys.readouterr().err
        assert "batch of 12 images per update, 5 at once, 3 times; float32 on cpu" in stderr
        assert "peak 1.50e-02" in stderr
        assert sizes[-1] == 12
        assert max(rates) == pytest.approx(0.015)
        estimate, first = stderr.index("training 4 epochs of 38 images: about "), stderr.index("step 1/12")
        assert estimate < first
        settings = facts(place.run)["settings"]
        assert (settings["micro_batch"], settings["accumulation"]) == (5, 3)

    def test_a_batch_larger_than_all_images_is_cut_and_its_rate_with_it(self, place: Place, capsys):
        assert place.pretrain("--paper", "--batch-size", "4096", "--epochs", "2") == 0
        stderr = capsys.readouterr().err
        assert "--batch-size 38  (paper: 4096; there are no more images)" in stderr
        assert facts(place.run)["optim"]["peak_lr"] == pytest.approx(0.05 * 38 / 256)

    def test_signals_come_at_their_epochs(self, place: Place):
        assert place.pretrain(*TRAIN, "--epochs", "5", "--val-every", "2") == 0
        assert [line["epoch"] for line in journal(place.run, "signals")] == [0, 2, 4, 5]
        assert all({"heldout_loss", "rankme", "feature_std"} <= set(line) for line in journal(place.run, "signals"))

    def test_held_out_images_are_never_trained_on(self, place: Place, monkeypatch: pytest.MonkeyPatch):
        read: set[str] = set()
        sample = Loader._read

        def noted(self, index, decoding=False):
            read.add(self.source.name(index))
            return sample(self, index, decoding)

        monkeypatch.setattr(Loader, "_read", noted)
        assert place.pretrain(*TRAIN, "--epochs", "6") == 0
        shown = {p["name"] for p in json.loads((place.run / "pictures" / "index.json").read_text())["probes"]}
        assert len(read) == 38
        assert len(shown) == 2
        assert not read & shown

    def test_a_compiler_that_fails_is_told_and_done_without(self, place: Place, whole: Callable, monkeypatch, capsys):
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("no C++ compiler here\nand more")

        monkeypatch.setattr("unveil.training.trainer.CompiledModel", fail)
        assert place.pretrain(*TRAIN, "--compile", "on") == 0
        assert "torch.compile does not work here (no C++ compiler here)" in capsys.readouterr().err
        assert facts(place.run)["settings"]["compile"] is False
        assert weights(place.run)[1] == weights(whole(*TRAIN))[1]

    def test_a_compiled_run_has_no_break_in_its_graph(self, place: Place, monkeypatch: pytest.MonkeyPatch):
        compile = torch.compile
        monkeypatch.setattr(torch, "compile", lambda model, **given: compile(model, backend="eager", **given))
        assert place.pretrain(*TRAIN, "--compile", "on") == 0
        assert facts(place.run)["settings"]["compile"] is True

    def test_bf16_can_be_forced(self, place: Place):
        assert place.pretrain(*TRAIN, "--precision", "bf16") == 0
        assert facts(place.run)["settings"]["precision"] == "bf16"
        assert all(np.isfinite(line["loss"]) for line in journal(place.run, "step"))

    def test_a_run_that_diverges_says_failed(self, place: Place, monkeypatch: pytest.MonkeyPatch, capsys):
        update = Trainer.update

        def spoilt(self, batch, lr):
            if float(batch.progress) > 0.4:  # at whatever rate
                batch = type(batch)({"rgb": batch.maps["rgb"].float() * torch.nan}, batch.key, batch.progress)
            return update(self, batch, lr)

        monkeypatch.setattr(Trainer, "update", spoilt)
        assert place.pretrain(*TRAIN, "--epochs", "20", "--save-minutes", "0") == 3
        assert "updates in a row were not finite" in capsys.readouterr().err
        assert facts(place.run)["status"] == "failed"
        latest, _ = checkpoint.read_latest(place.run)
        assert latest
        assert all(v.isfinite().all() for v in latest.model.values())


class TestTensorBoard:
    def test_it_reads_what_the_journal_says(self, place: Place, monkeypatch: pytest.MonkeyPatch):
        pytest.importorskip("tensorboard", reason="the extra is not installed")
        at_steps(monkeypatch, [5], kill)
        with pytest.raises(Killed):
            place.pretrain(*TRAIN, "--tensorboard")
        assert place.pretrain(*TRAIN, "--tensorboard") == 0
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(place.run / "tensorboard"))
        events.Reload()
        for kind, name in (("step", "loss"), ("step", "lr"), ("signals", "rankme")):
            events_of = [(e.step, e.value) for e in events.Scalars(f"{kind}/{name}")]
            assert events_of == [(line["step"], pytest.approx(line[name])) for line in journal(place.run, kind)]

    def test_without_the_extra_it_is_asked_for(self, place: Place, monkeypatch: pytest.MonkeyPatch, capsys):
        monkeypatch.setattr("unveil.training.trackers.find_spec", lambda name: None)
        assert place.pretrain(*TRAIN, "--tensorboard") == 2
        assert "pip install 'unveil[tensorboard]'" in capsys.readouterr().err
        assert not place.run.exists()


class TestUsing:
    def test_features_are_those_of_the_model_wherever_the_run_lies(self, place: Place, whole: Callable):
        run = shutil.copytree(whole(*TRAIN), place.path / "moved")
        Path(whole(*TRAIN).parent / "tiny.py").rename(place.path / "gone.py")  # the run has its own copy
        images = torch.rand(5, 3, 16, 16)
        once, twice = unveil.load(run)(images), unveil.load(str(run))(images)
        Path(place.path / "gone.py").rename(whole(*TRAIN).parent / "tiny.py")
        assert torch.equal(once, twice)
        latest, _ = checkpoint.read_latest(run)
        assert latest
        from unveil.modeling.image_encoder import pooled

        model = unveil.Run.open(run).recipe().stages[0].build()
        model.load_state_dict(latest.model)
        with torch.no_grad():
            assert torch.equal(pooled(model.encoder.eval(), images, "mean"), once)

    def test_embed_writes_names_and_labels(self, place: Place, whole: Callable):
        out = place.path / "features.npz"
        assert main(["embed", str(whole(*TRAIN)), "--data", place.data, "--out", str(out)]) == 0
        result = np.load(out)
        assert result["features"].shape == (40, 16)
        assert result["names"][0] == "even/000.png"
        assert result["labels"].tolist() == [0] * 20 + [1] * 20

    def test_evaluate_keeps_its_figures_with_the_run(self, place: Place, whole: Callable):
        run = shutil.copytree(whole(*TRAIN), place.path / "copy")
        words = ["--data", place.data, "--test-data", place.data]  # of one neighbour: each image is its own
        assert main(["evaluate", str(run), *words, "--protocol", "knn"]) == 0
        result = json.loads((run / "eval" / "knn.json").read_text())
        assert result["metrics"]["accuracy_k1"] == 1
        assert result["metrics"]["accuracy"] < 1
        assert {name: b["accuracy_k1"] for name, b in result["baselines"].items()} == {"pixels": 1, "untrained": 1}

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("evaluate RUN --data nowhere", "no data at"),
            ("evaluate nothing --data IMAGES", "is not a run folder"),
            ("evaluate RUN --data IMAGES --protocol nose", "nose"),
            ("embed RUN --data IMAGES --out features.txt", "a name that ends in .npz"),
            ("embed nothing --data IMAGES", "is not a run folder"),
        ],
    )
    def test_mistakes(self, place: Place, whole: Callable, monkeypatch, capsys, words: str, message: str):
        monkeypatch.chdir(place.path)
        before = listing(place.path)
        words = words.replace("RUN", str(whole(*TRAIN))).replace("IMAGES", place.data)
        assert main(words.split()) == 2
        stderr = capsys.readouterr().err
        assert message in stderr
        assert "said by" not in stderr
        assert listing(place.path) == before
