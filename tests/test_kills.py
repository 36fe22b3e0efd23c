"""Processes that end at any operation on their run: the same command goes on to the same bits, with other workers.

A kill is an exception at a drawn operation, after which nothing of the process reaches the folder any more, as after
SIGKILL; real signals are in test_processes. Every recipe, in its variants that keep more than weights: two stages,
accumulation, learned fusion, adaptive budget, teachers that follow the student, bf16.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import unveil
from crash_journal import watching
from test_golden_curves import CURVES, SHARED
from tiny_runs import Killed, facts, journal, write_images, write_recipe
from unveil.cli import main
from unveil.training import loop

KILLS = int(os.environ.get("UNVEIL_KILLS", 10))  # of each of the variants in the proof: over 200 together
CHANGES = {"write", "fsync", "os.rename", "os.remove", "os.mkdir"}
SMALL: dict[str, Any] = {
    **SHARED, "epochs": 2.0, "warmup_epochs": 0.5, "batch_size": 20, "image_size": (16,), "threads": 1,
    "save_minutes": 0.0,
}  # fmt: skip
ACCUMULATING: dict[str, Any] = {"micro_batch": 7}  # the last of a batch is smaller
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **CURVES,
    "simmim": ("simmim", {**CURVES["simmim"][1], "image_size": (32,)}),  # it hides squares of 2 x 2 patches
    "unveil": ("unveil", {**CURVES["unveil"][1], "image_size": (32,)}),  # it shows 15 % of the patches
    "mae, accumulating": ("mae", {**CURVES["mae"][1], **ACCUMULATING}),
    "mae, muon": ("mae", {**CURVES["mae"][1], "optimizer": "muon"}),
    "mae, bf16": ("mae", {**CURVES["mae"][1], "precision": "bf16"}),
    "cmtmae, learned fusion, accumulating": (
        "cmtmae",
        {**CURVES["cmtmae, cross decoder, learned fusion, pixels"][1], **ACCUMULATING},
    ),
    "multimae-attention, adaptive budget, accumulating": (
        "multimae-attention",
        {**CURVES["multimae-attention, errors, adaptive budget"][1], **ACCUMULATING},
    ),
}
OWN: dict[str, Any] = {  # of the recipe in tiny_runs: two stages, Muon and gradients that add up
    "stages": 2, "optimizer": "muon", "epochs": 3.0, "warmup_epochs": 1.0, "batch_size": 10, "micro_batch": 4,
    "lr": 0.05, "image_size": (16,), "threads": 1, "workers": 1, "save_minutes": 0.0,
}  # fmt: skip


class Machine:
    """Ends at an operation on a folder; nothing reaches the folder afterwards."""

    def __init__(self, folder: Path, last: int):
        self.folder, self.last, self.count = folder, last, 0

    def meet(self, event: str, what: Any) -> None:
        if event in CHANGES and (isinstance(what, int) or str(what).startswith(str(self.folder))):
            self.count += 1
            if self.count > self.last:
                raise Killed


class Trained:
    """A variant trained without disturbance: its bits, its rows and the number of its operations."""

    def __init__(self, folder: Path, variant: str, images: Path):
        own = (write_recipe(folder), OWN)
        self.folder, (self.recipe, options) = folder, VARIANTS.get(variant, own)
        self.options = {"data": str(images), **(SMALL if variant in VARIANTS else {}), **options}
        if "stage1_epochs" in options:
            self.options["stage1_epochs"] = 1.0
        whole = Machine(folder / "whole", 10**9)
        with watching(whole.meet):
            self.run(folder / "whole")
        self.operations, self.expected = whole.count, result(folder / "whole")

    def run(self, out: Path, **options: Any) -> None:
        unveil.pretrain(self.recipe, out=str(out), **{**self.options, **options})

    def kill(self, number: int, rng: random.Random) -> None:
        """Kill once or twice, each time with another number of workers, and go on to the end."""
        run = self.folder / f"killed-{number}"
        for workers in range(1, rng.randint(2, 3)):
            with watching(Machine(run, rng.randint(1, self.operations)).meet):
                try:
                    self.run(run, workers=workers)
                except Killed:
                    continue
                break  # it was finished before
        self.run(run, workers=rng.randint(1, 4))
        assert facts(run)["status"] == "finished"
        assert result(run) == self.expected
        assert not list(run.rglob("*.part"))


def result(run: Path) -> dict[str, Any]:
    """Weights, moments and rows of metrics of a run, without its times."""
    newest = max((run / "checkpoints").iterdir())
    files: dict[str, Any] = {p.name: p.read_bytes() for p in newest.glob("*.safetensors")}
    files["model.safetensors"] = files["model.safetensors"][-100_000:]  # without the header, which names the folder
    keys = ("step", "loss", "losses", "grad_norm", "lr", "skipped")
    return {**files, "rows": [{k: row[k] for k in keys} for row in journal(run, "step")]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    made: dict[str, Trained] = {}
    images = write_images(tmp_path_factory.mktemp("images") / "images", 42)  # 40 to train on

    def of(variant: str) -> Trained:
        if variant not in made:
            made[variant] = Trained(tmp_path_factory.mktemp("kills"), variant, images)
        return made[variant]

    return of


def test_a_killed_run_ends_with_the_same_bits(trained: Callable[[str], Trained]):
    rng = random.Random(0)
    for number in range(3):
        trained("own").kill(number, rng)


def test_a_line_of_several_updates_has_those_before_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a line of metrics for every three updates, and a checkpoint after each."""
    monkeypatch.setattr(loop, "LINES", 4)
    own = Trained(tmp_path, "own", write_images(tmp_path / "images", 42))
    assert [row["step"] for row in own.expected["rows"]][:2] == [3, 6]
    for number, last in enumerate(range(own.operations // 5, own.operations * 4 // 5, own.operations // 5)):
        run = tmp_path / f"killed-{number}"
        with watching(Machine(run, last).meet), pytest.raises(Killed):
            own.run(run)
        own.run(run)
        assert result(run) == own.expected


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_recipe_killed_many_times_ends_with_the_same_bits(trained: Callable[[str], Trained], variant: str):
    rng = random.Random(variant)
    for number in range(KILLS):
        trained(variant).kill(100 + number, rng)


def test_a_killed_pack_ends_with_the_same_bytes(tmp_path: Path):
    images = str(write_images(tmp_path / "images", 12))

    def pack(name: str, workers: int) -> int:
        words = ("--shard-size", "10kB", "--workers", str(workers))
        return main(["pack", images, "--out", str(tmp_path / name), *words])

    whole = Machine(tmp_path / "whole", 10**9)
    with watching(whole.meet):
        assert pack("whole", 1) == 0
    for last in range(1, whole.count, max(1, whole.count // 9)):  # nine kills
        with watching(Machine(tmp_path / f"p{last}", last).meet), pytest.raises(Killed):
            pack(f"p{last}", 1)
        assert pack(f"p{last}", 2) == 0
        for file in (tmp_path / "whole").iterdir():
            if file.is_file() and not file.name.startswith("."):
                assert (tmp_path / f"p{last}" / file.name).read_bytes() == file.read_bytes()
