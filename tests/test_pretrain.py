"""`unveil pretrain` from words to run folder, in this process: stopped and continued, begun from weights, refused."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import unveil
from test_runs import read_only
from tiny_runs import (
    PER_EPOCH,
    STEPS,
    Killed,
    at_steps,
    facts,
    interrupt,
    journal,
    kill,
    listing,
    weights,
    write_images,
    write_recipe,
)
from unveil import checkpoint
from unveil.cli import main
from unveil.data.loader import Loader
from unveil.trainer import Trainer


@dataclass(frozen=True)
class Place:
    """A folder with a user's recipe and images, and the command there."""

    path: Path
    recipe: str
    data: str

    def pretrain(self, *words: str, out: str = "run") -> int:
        return main(["pretrain", self.recipe, "--data", self.data, "--out", str(self.path / out), *words])

    @property
    def run(self) -> Path:
        return self.path / "run"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, write_recipe(tmp_path), str(write_images(tmp_path / "images")))


TRAIN = ("--epochs", "3", "--batch-size", "10", "--lr", "0.05", "--warmup-epochs", "1", "--image-size", "16")
WARM = ("--warmup-epochs", "1")
TWO = (*TRAIN, "--stages", "2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run that was never stopped, made once for each set of dials."""
    made: dict[tuple[str, ...], Path] = {}

    def make(*words: str) -> Path:
        if words not in made:
            path = tmp_path_factory.mktemp("whole")
            here = Place(path, write_recipe(path), str(write_images(path / "images")))
            assert here.pretrain(*words) == 0
            made[words] = here.run
        return made[words]

    return make


def is_in_order(run: Path) -> bool:
    """Whether the journal reads as one run: steps rise, and each time of looking is there once."""
    steps = [line["step"] for line in journal(run, "step")]
    looks = [line["step"] for line in journal(run, "signals")]
    return steps == sorted(set(steps)) and looks == sorted(set(looks)) and steps[-1] == looks[-1] == STEPS


class TestContinuing:
    @pytest.mark.parametrize(
        ("words", "stops"),
        [
            (TRAIN, [4]),  # in the middle of an epoch
            (TRAIN, [PER_EPOCH]),  # at its end
            ((*TRAIN, "--micro-batch", "4"), [1, 2, 8]),  # with accumulation, again and again
            (TWO, [2, 5]),  # two stages (steps 1-4 and 5-9): in the first, at the second's first step
            (TWO, [4]),  # between them
        ],
    )
    def test_a_run_that_was_stopped_ends_with_the_same_bits(
        self, place: Place, whole: Callable, monkeypatch: pytest.MonkeyPatch, capsys, words, stops
    ):
        at_steps(monkeypatch, stops, interrupt)
        for step in stops:
            assert place.pretrain(*words) == 130
            told = capsys.readouterr().err
            assert f"To go on: {facts(place.run)['command']}" in told
            assert facts(place.run)["status"] == "stopped"
            assert weights(place.run, step)
        assert place.pretrain(*words, "--workers", "3") == 0  # other workers change nothing
        assert "continuing" in capsys.readouterr().err
        assert weights(place.run) == weights(whole(*words))
        assert is_in_order(place.run)
        assert facts(place.run)["status"] == "finished"
        losses = [[line["heldout_loss"] for line in journal(r, "signals")] for r in (place.run, whole(*words))]
        assert losses[0] == losses[1]

    @pytest.mark.parametrize(
        ("words", "save_minutes", "at"),
        [(TRAIN, "10", 5), (TRAIN, "0", 5), (TWO, "10", 7), (TWO, "0", 5)],  # 10: before the first checkpoint
    )
    def test_a_run_that_died_ends_with_the_same_bits(
        self, place: Place, whole: Callable, monkeypatch: pytest.MonkeyPatch, words, save_minutes: str, at: int
    ):
        at_steps(monkeypatch, [at], kill)
        with pytest.raises(Killed):
            place.pretrain(*words, "--save-minutes", save_minutes)
        assert place.pretrain(*words) == 0
        assert weights(place.run) == weights(whole(*words))
        assert is_in_order(place.run)
        assert facts(place.run)["error"] is None

    def test_the_command_in_run_json_goes_on_even_without_a_name_for_the_run(
        self, place: Place, whole: Callable, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.chdir(place.path)
        at_steps(monkeypatch, [5], interrupt)
        assert main(["pretrain", "tiny.py", "--data", "images", *TRAIN]) == 130
        run = place.path / "runs" / "tiny-1"
        words = shlex.split(facts(run)["command"])
        assert words[:2] == ["unveil", "pretrain"]
        assert main(words[1:]) == 0
        assert weights(run) == weights(whole(*TRAIN))
        assert [p.name for p in (place.path / "runs").iterdir()] == ["tiny-1"]

    def test_images_may_move_but_must_be_the_same(self, place: Place, monkeypatch: pytest.MonkeyPatch, capsys):
        at_steps(monkeypatch, [4], interrupt)
        assert place.pretrain(*TRAIN) == 130
        moved = shutil.move(place.data, place.path / "elsewhere")
        write_images(Path(place.data), 41)
        before = listing(place.run)
        assert place.pretrain(*TRAIN) == 2
        assert "was begun on the 40 images" in capsys.readouterr().err
        assert place.pretrain(*TRAIN, "--data", "scenes:count=40,size=32") == 2
        before.pop(".lock"), (now := listing(place.run)).pop(".lock")
        assert now == before
        assert place.pretrain(*TRAIN, "--data", str(moved)) == 0

    def test_a_recipe_that_changed_meanwhile_is_refused(self, place: Place, monkeypatch: pytest.MonkeyPatch, capsys):
        at_steps(monkeypatch, [4], interrupt)
        assert place.pretrain(*TRAIN) == 130
        with Path(place.recipe).open("a") as file:
            file.write("# better\n")
        assert place.pretrain(*TRAIN) == 2
        assert "has changed since" in capsys.readouterr().err

    def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
        self, place: Place, whole: Callable, monkeypatch: pytest.MonkeyPatch, capsys
    ):
        at_steps(monkeypatch, [6], interrupt)
        assert place.pretrain(*TRAIN, "--save-minutes", "0") == 130
        newest = place.run / "checkpoints" / "step-00000006" / "model.safetensors"
        content = bytearray(newest.read_bytes())
        content[-7] ^= 4
        newest.write_bytes(content)
        assert place.pretrain(*TRAIN) == 0
        told = capsys.readouterr().err
        assert f"{newest} is damaged" in told
        assert "at step 5" in told
        assert weights(place.run) == weights(whole(*TRAIN))

    def test_without_a_whole_checkpoint_it_says_so_and_touches_nothing(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, capsys
    ):
        at_steps(monkeypatch, [6], interrupt)
        assert place.pretrain(*TRAIN, "--save-minutes", "0") == 130
        for state in (place.run / "checkpoints").glob("*/state.json"):
            state.write_text(state.read_text()[:40])
        before = listing(place.run / "checkpoints")
        assert place.pretrain(*TRAIN) == 2
        told = capsys.readouterr().err
        assert "no whole checkpoint to go on from" in told
        assert told.count("state.json is damaged") == 2
        assert listing(place.run / "checkpoints") == before
        with pytest.raises(ValueError, match="no whole checkpoint"):
            unveil.load(place.run)


class TestIntents:
    def test_other_dials_are_named_and_a_finished_run_is_left_alone(self, place: Place, capsys):
        assert place.pretrain(*TRAIN) == 0
        before = listing(place.run)
        assert place.pretrain(*TRAIN) == 2
        assert "finished" in capsys.readouterr().err
        assert place.pretrain(*TRAIN, "--visible", "0.5") == 2
        assert "visible: None then, 0.5 now" in capsys.readouterr().err
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
        told = capsys.readouterr().err
        assert "missing (start fresh): " in told
        assert "1 unexpected (left out): head.weight" in told

    def test_weights_that_do_not_fit_are_refused_before_anything_is_written(self, place: Place, capsys):
        torch.save({"model": {"blocks.0.attn.qkv.weight": torch.zeros(48, 17)}}, place.path / "other.pth")
        torch.save(torch.zeros(3), place.path / "tensor.pth")
        (place.path / "text.pth").write_text("no weights")
        (place.path / "cut.safetensors").write_bytes(b"\x10\0\0")
        (place.path / "empty").mkdir()
        before = listing(place.path)
        for name, part in (
            ("other.pth", "nothing in --init-from fits"),
            ("tensor.pth", "holds no weights"),
            ("text.pth", "was refused"),
            ("cut.safetensors", "not a whole safetensors file"),
            ("empty", "no whole checkpoint"),
            ("none.pth", "no weight file"),
        ):
            assert place.pretrain(*TRAIN, "--init-from", str(place.path / name)) == 2
            assert part in capsys.readouterr().err
        assert listing(place.path) == before


def whole_model(place: Place) -> dict[str, torch.Tensor]:
    assert place.pretrain(*TRAIN, out="public") == 0
    found, _ = checkpoint.read_latest(place.path / "public")
    assert found
    return found.model


BAD = [
    ("--data nowhere", "no data at"),
    ("--data empty", "no images in"),
    ("--data tiny.py", "is a file"),
    ("--visble 0.3", "did you mean --visible 0.3"),
    ("--visible 1.7", "between 0 and 1; got 1.7"),
    ("--visible 0", "between 0 and 1; got 0"),
    ("--visible 1", "between 0 and 1; got 1"),
    ("--visible nan", "got nan"),
    ("--predicted 0.9", "at most the hidden share"),
    ("--patch 5 --image-size 16", "does not divide"),
    ("--patch 0", "patch"),
    ("--image-size 0", "image"),
    ("--decoder-heads 3", "3 heads do not divide"),
    ("--decoder-heads 0", "0 heads do not divide"),
    ("--epochs 0", "epochs"),
    ("--epochs -1", "epochs"),
    ("--epochs nan", "epochs"),
    ("--batch-size 0", "batch_size"),
    ("--lr nan", "lr"),
    ("--lr -1", "lr"),
    ("--warmup-epochs -1", "warmup_epochs"),
    ("--clip 0", "clip"),
    ("--minutes 0", "--minutes 0.0: a time above 0 is needed"),
    ("--minutes nan", "--minutes nan"),
    ("--micro-batch 0", "--micro-batch 0"),
    ("--workers 0", "--workers 0"),
    ("--seed -1", "--seed -1"),
    ("--save-minutes -1", "--save-minutes -1"),
    ("--signals-every 0", "--signals-every 0"),
    ("--max-broken 5", "--max-broken 5"),
    ("--paper --minutes 3", "give one of the two"),
    ("--device cuda", "cannot be used here"),
    ("--device toaster", "cannot be used here"),
    ("--precision nonsense", "expected one of auto, float32, bf16"),
    ("--compile maybe", "expected one of auto, on, off"),
    ("--out tiny.py", "is a file"),
    ("--out images/even/000.png/run", "is a file"),
    ("--out images/run", "would be taken for images"),
    ("--data .", "would be taken for images"),
]


class TestBadInput:
    @pytest.mark.parametrize(("words", "part"), BAD)
    def test_a_mistake_is_one_clear_error_and_leaves_nothing(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, capsys, words: str, part: str
    ):
        if "--device cuda" in words and torch.cuda.is_available():
            pytest.skip("there is a GPU here")
        monkeypatch.chdir(place.path)
        (place.path / "empty").mkdir()
        before = listing(place.path)
        assert place.pretrain(*words.split()) == 2
        told = capsys.readouterr()
        assert sum(line.startswith("error: ") for line in told.err.splitlines()) == 1
        assert part in told.err
        assert "Traceback" not in told.err
        assert "said by" not in told.err  # the message is our own
        assert listing(place.path) == before

    def test_a_place_that_cannot_be_written(self, place: Place, capsys):
        (place.path / "fixed").mkdir()
        assert place.pretrain("--out", str(read_only(place.path / "fixed"))) == 2
        assert "cannot be written" in capsys.readouterr().err

    def test_a_mistake_shows_before_all_of_many_images_are_read(self, place: Place, capsys):
        for words in ("--visible 1.7", "--decoder-heads 3", "--lr nan"):
            assert place.pretrain("--data", "scenes:count=201,size=32", *words.split()) == 2
            told = capsys.readouterr().err
            assert "looking at" not in told
            assert told.startswith("error: ")

    def test_one_image_is_too_few(self, place: Place, capsys):
        write_images(place.path / "one", 1)
        assert place.pretrain("--data", str(place.path / "one")) == 2
        assert "at least 2 are needed" in capsys.readouterr().err

    def test_a_users_recipe_that_fails_is_told_in_its_own_terms(self, place: Place, capsys):
        source = Path(place.recipe).read_text()
        Path(place.recipe).write_text(source.replace("def first():", "def first():\n        1 / 0"))
        assert place.pretrain(*TRAIN) == 2
        told = capsys.readouterr().err
        assert "ZeroDivisionError" in told
        assert "tiny.py, line" in told
        assert not place.run.exists()

    def test_python_gets_the_same_errors(self, place: Place):
        with pytest.raises(ValueError, match=r"no dial 'visble'; did you mean visible\?"):
            unveil.pretrain(place.recipe, data=place.data, out=str(place.run), visble=0.3)
        with pytest.raises(ValueError, match="--precision half"):
            unveil.pretrain(place.recipe, data=place.data, out=str(place.run), precision="half")  # type: ignore[arg-type]
        assert not place.run.exists()


class TestBrokenImages:
    def spoil(self, place: Place, count: int) -> list[str]:
        names = sorted(str(p.relative_to(place.data)) for p in Path(place.data).rglob("*.png"))[5 : 5 + count]
        for name in names:
            file = Path(place.data) / name
            file.write_bytes(file.read_bytes()[:100])
        return names

    def test_one_of_forty_is_listed_and_replaced(self, place: Place):
        (name,) = self.spoil(place, 1)
        assert place.pretrain(*TRAIN) == 0
        told = json.loads((place.run / "broken.json").read_text())
        assert list(told) == [name]
        assert told[name]
        assert journal(place.run, "step")[-1]["step"] == STEPS

    def test_too_many_stop_it_before_it_begins(self, place: Place, capsys):
        names = self.spoil(place, 3)
        before = listing(place.path)
        assert place.pretrain(*TRAIN) == 2
        told = capsys.readouterr().err
        assert all(name in told for name in names)
        assert listing(place.path) == before
        assert place.pretrain(*TRAIN, "--max-broken", "0.2") == 0

    def test_images_that_break_while_it_trains_stop_it_with_a_word(self, place: Place, monkeypatch, capsys):
        at_steps(monkeypatch, [2], lambda: self.spoil(place, 30) and None)
        assert place.pretrain(*TRAIN, "--epochs", "30") in (0, 2)  # all may be in memory by then
        assert facts(place.run)["status"] in ("finished", "failed")


class TestStorage:
    def test_a_disk_that_is_full_for_a_while_costs_checkpoints_not_the_run(
        self, place: Place, whole: Callable, monkeypatch: pytest.MonkeyPatch, capsys
    ):
        save, calls = checkpoint.save_file, []

        def full_at_first(*words: object, **named: object) -> None:
            calls.append(1)
            if len(calls) < 6:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save(*words, **named)

        monkeypatch.setattr(checkpoint, "save_file", full_at_first)
        assert place.pretrain(*TRAIN, "--save-minutes", "0") == 0
        assert "No space left on device; training goes on" in capsys.readouterr().err
        assert weights(place.run) == weights(whole(*TRAIN))

    def test_a_disk_that_is_full_at_the_end_fails_the_run_which_can_go_on_later(
        self, place: Place, whole: Callable, monkeypatch: pytest.MonkeyPatch, capsys
    ):
        save = checkpoint.save

        def full_at_last(run: Path, step: int, *words: object) -> Path:
            if step == STEPS:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return save(run, step, *words)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", full_at_last)
            assert place.pretrain(*TRAIN, "--save-minutes", "0") == 2
        told = capsys.readouterr().err
        assert "No space left on device; once there is room, the same command goes on" in told
        assert facts(place.run)["status"] == "failed"
        assert "No space left" in facts(place.run)["error"]
        assert place.pretrain(*TRAIN) == 0
        assert weights(place.run) == weights(whole(*TRAIN))

    def test_metrics_and_pictures_that_cannot_be_written_cost_themselves_only(
        self, place: Place, whole: Callable, monkeypatch: pytest.MonkeyPatch, capsys
    ):
        def block() -> None:
            for name in ("metrics.jsonl", "pictures"):
                path = place.run / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            (place.run / "metrics.jsonl").mkdir()
            (place.run / "pictures").touch()

        at_steps(monkeypatch, [2], block)
        assert place.pretrain(*TRAIN) == 0
        told = capsys.readouterr().err
        assert "metrics.jsonl cannot be written" in told
        assert "pictures cannot be written" in told
        assert weights(place.run) == weights(whole(*TRAIN))


class TestTelling:
    def test_what_is_printed_is_what_is_done(self, place: Place, monkeypatch: pytest.MonkeyPatch, capsys):
        rates, sizes = [], []
        update = Trainer.update

        def noted(self, batch, lr):
            rates.append(lr)
            sizes.append(len(batch))
            return update(self, batch, lr)

        monkeypatch.setattr(Trainer, "update", noted)
        assert place.pretrain("--epochs", "4", "--batch-size", "12", "--micro-batch", "5", "--lr", "0.32", *WARM) == 0
        told = capsys.readouterr().err
        assert "batch of 12 images per update, 5 at once, 3 times; peak learning rate 1.50e-02; float32 on cpu" in told
        assert sizes[-1] == 12
        assert max(rates) == pytest.approx(0.015)
        estimate, first = told.index("training 4 epochs of 38 images: about "), told.index("step 1/12")
        assert estimate < first
        settings = facts(place.run)["settings"]
        assert (settings["micro_batch"], settings["accumulation"]) == (5, 3)

    def test_a_batch_larger_than_all_images_is_cut_and_its_rate_with_it(self, place: Place, capsys):
        assert place.pretrain("--paper", "--batch-size", "4096", "--epochs", "2") == 0
        told = capsys.readouterr().err
        assert "--batch-size 38  (paper: 4096; there are no more images)" in told
        assert facts(place.run)["optim"]["peak_lr"] == pytest.approx(0.05 * 38 / 256)

    def test_signals_come_at_their_epochs(self, place: Place):
        assert place.pretrain(*TRAIN, "--epochs", "5", "--signals-every", "2") == 0
        assert [line["epoch"] for line in journal(place.run, "signals")] == [0, 2, 4, 5]
        assert all({"heldout_loss", "rankme", "feature_std"} <= set(line) for line in journal(place.run, "signals"))

    def test_held_out_images_are_never_trained_on(self, place: Place, monkeypatch: pytest.MonkeyPatch):
        read: set[str] = set()
        sample = Loader._read

        def noted(self, index):
            read.add(self.source.name(index))
            return sample(self, index)

        monkeypatch.setattr(Loader, "_read", noted)
        assert place.pretrain(*TRAIN, "--epochs", "6") == 0
        shown = {p["name"] for p in json.loads((place.run / "pictures" / "index.json").read_text())["probes"]}
        assert len(read) == 38
        assert len(shown) == 2
        assert not read & shown

    def test_a_compiler_that_fails_is_told_and_done_without(self, place: Place, whole: Callable, monkeypatch, capsys):
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("no C++ compiler here\nand more")

        monkeypatch.setattr("unveil.trainer.compiled", fail)
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
            if lr > 0.001:
                batch = type(batch)({"rgb": batch.maps["rgb"].float() * torch.nan}, batch.key, batch.progress)
            return update(self, batch, lr)

        monkeypatch.setattr(Trainer, "update", spoilt)
        assert place.pretrain(*TRAIN, "--epochs", "20") == 2
        assert "updates in a row were not finite" in capsys.readouterr().err
        assert facts(place.run)["status"] == "failed"
        found, _ = checkpoint.read_latest(place.run)
        assert found
        assert all(v.isfinite().all() for v in found.model.values())


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
            told = [(e.step, e.value) for e in events.Scalars(f"{kind}/{name}")]
            assert told == [(line["step"], pytest.approx(line[name])) for line in journal(place.run, kind)]

    def test_without_the_extra_it_is_asked_for(self, place: Place, monkeypatch: pytest.MonkeyPatch, capsys):
        monkeypatch.setattr("unveil.board.find_spec", lambda name: None)
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
        found, _ = checkpoint.read_latest(run)
        assert found
        from unveil.loading import rebuild
        from unveil.pretrained import pooled

        model = rebuild(run).stages[0].build()
        model.load_state_dict(found.model)
        with torch.no_grad():
            assert torch.equal(pooled(model.encoder.eval(), images, "mean"), once)

    def test_embed_writes_names_and_labels(self, place: Place, whole: Callable):
        out = place.path / "features.npz"
        assert main(["embed", str(whole(*TRAIN)), "--data", place.data, "--out", str(out)]) == 0
        found = np.load(out)
        assert found["features"].shape == (40, 16)
        assert found["names"][0] == "even/000.png"
        assert found["labels"].tolist() == [0] * 20 + [1] * 20

    def test_evaluate_keeps_its_figures_with_the_run(self, place: Place, whole: Callable):
        run = shutil.copytree(whole(*TRAIN), place.path / "copy")
        assert main(["evaluate", str(run), "--data", place.data, "--protocol", "knn"]) == 0
        told = json.loads((run / "eval" / "knn.json").read_text())
        assert 0 <= told["metrics"]["accuracy"] <= 1
        assert set(told["baselines"]) == {"pixels", "untrained"}

    @pytest.mark.parametrize(
        ("words", "part"),
        [
            ("evaluate RUN --data nowhere", "no data at"),
            ("evaluate nothing --data IMAGES", "is no run folder"),
            ("evaluate RUN --data IMAGES --protocol nose", "nose"),
            ("embed RUN --data IMAGES --out features.txt", "ends so"),
            ("embed nothing --data IMAGES", "is no run folder"),
        ],
    )
    def test_mistakes(self, place: Place, whole: Callable, monkeypatch, capsys, words: str, part: str):
        monkeypatch.chdir(place.path)
        before = listing(place.path)
        words = words.replace("RUN", str(whole(*TRAIN))).replace("IMAGES", place.data)
        assert main(words.split()) == 2
        told = capsys.readouterr().err
        assert part in told
        assert "said by" not in told
        assert listing(place.path) == before
