"""Runs that were stopped, that died or found the disk full: they go on where they were, to the same bits."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import unveil
from tiny_runs import (
    PER_EPOCH,
    STEPS,
    TWO,
    Killed,
    Place,
    at_steps,
    facts,
    interrupt,
    journal,
    kill,
    listing,
    rows,
    weights,
    write_images,
)
from tiny_runs import VALIDATED as TRAIN
from unveil.cli import main
from unveil.runs import checkpoint


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
            ((*TRAIN, "--repeats", "2"), [4]),  # in the second of the two epochs that read all images
            ((*TWO, "--optimizer", "muon"), [2, 5]),
        ],
    )
    def test_a_run_that_was_stopped_ends_with_the_same_bits(
        self, place: Place, whole: Callable, monkeypatch: pytest.MonkeyPatch, capsys, words, stops
    ):
        at_steps(monkeypatch, stops, interrupt)
        for step in stops:
            assert place.pretrain(*words) == 130
            stderr = capsys.readouterr().err
            assert f"To continue: {facts(place.run)['command']}" in stderr
            assert facts(place.run)["status"] == "stopped"
            assert weights(place.run, step)
        assert place.pretrain(*words, "--workers", "3") == 0  # other workers change nothing
        assert "continuing" in capsys.readouterr().err
        assert weights(place.run) == weights(whole(*words))
        assert is_in_order(place.run)
        assert facts(place.run)["status"] == "finished"
        assert rows(place.run) == rows(whole(*words))

    def test_ctrl_c_in_the_last_update_ends_the_command_when_the_run_is_finished(
        self, place: Place, whole: Callable, monkeypatch: pytest.MonkeyPatch, capsys
    ):
        at_steps(monkeypatch, [STEPS], interrupt)
        assert place.pretrain(*TRAIN) == 130
        assert f"{place.run} was finished before it could be stopped" in capsys.readouterr().err
        assert facts(place.run)["status"] == "finished"
        assert weights(place.run) == weights(whole(*TRAIN))
        assert is_in_order(place.run)

    @pytest.mark.parametrize(
        ("words", "save_minutes", "at"),
        [
            (TRAIN, "10", 5),  # before the first checkpoint
            (TRAIN, "0", 5),
            (TWO, "10", 7),
            (TWO, "0", 5),
            ((*TWO, "--optimizer", "muon"), "0", 5),
        ],
    )
    def test_a_run_that_died_ends_with_the_same_bits(
        self, place: Place, whole: Callable, monkeypatch: pytest.MonkeyPatch, words, save_minutes: str, at: int
    ):
        at_steps(monkeypatch, [at], kill)
        with pytest.raises(Killed):
            place.pretrain(*words, "--save-minutes", save_minutes)
        assert place.pretrain(*words) == 0
        assert weights(place.run) == weights(whole(*words))
        assert rows(place.run) == rows(whole(*words))
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
        assert "was started on the 40 images" in capsys.readouterr().err
        assert place.pretrain(*TRAIN, "--data", "scenes:count=40,size=32") == 2
        now = listing(place.run)
        for name in (".lock", ".lock.owner"):
            before.pop(name), now.pop(name)
        assert now == before
        assert place.pretrain(*TRAIN, "--data", str(moved)) == 0

    def test_a_run_killed_before_its_first_step_makes_way_for_another(
        self, place: Place, whole: Callable, monkeypatch: pytest.MonkeyPatch
    ):
        at_steps(monkeypatch, [1], kill)  # before it is written down
        with pytest.raises(Killed):
            place.pretrain(*TRAIN, "--batch-size", "20")
        assert (place.run / "run.json").exists()
        assert place.pretrain(*TRAIN) == 0
        assert weights(place.run) == weights(whole(*TRAIN))

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
        stderr = capsys.readouterr().err
        assert f"{newest} is damaged" in stderr
        assert "at step 5" in stderr
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
        stderr = capsys.readouterr().err
        assert "no whole checkpoint to continue from" in stderr
        assert stderr.count("state.json is damaged") == 2
        assert listing(place.run / "checkpoints") == before
        with pytest.raises(ValueError, match="no whole checkpoint"):
            unveil.load(place.run)


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
        assert "No space left on device; training continues" in capsys.readouterr().err
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
        stderr = capsys.readouterr().err
        assert "No space left on device; once there is room, the same command continues" in stderr
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
        stderr = capsys.readouterr().err
        assert "metrics.jsonl cannot be written" in stderr
        assert "pictures cannot be written" in stderr
        assert weights(place.run) == weights(whole(*TRAIN))
