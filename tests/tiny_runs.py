"""Runs small enough for tests: a user's recipe file of a ViT with two blocks, 40 images of 32 pixels, a few steps."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unveil.cli import main

RECIPE = '''
"""Tiny: a ViT of two blocks, trained in one stage or in two that share the encoder."""

from unveil.parts import (
    RGB, CrossDecoder, Encoder, MaskedModel, Masker, Objective, Optim, Pixels, Recipe, SelfDecoder, Stage, Uniform, View
)


def recipe(*, modality=RGB, image_size: tuple[int, ...] = (16,), patch: int = 4, visible: float = 0.25,
           predicted: float = 0.5, decoder_heads: int = 2, stages: int = 1, epochs: float = 3, warmup_epochs: float = 1,
           batch_size: int = 10, lr: float = 0.05, clip: float | None = None, optimizer: str = "adamw") -> Recipe:
    encoder = Encoder([modality], image_size, patch, dim=16, depth=2, heads=2)
    masker = Masker(Uniform(), visible, predicted)

    def model(decoder, dim):
        objective = Objective("pixels", "pixels", dim, Pixels(modality, patch))
        return MaskedModel(encoder, masker, {"pixels": decoder}, [objective])

    def first():
        return model(SelfDecoder(modality.name, encoder, 16, 1, decoder_heads), 16)

    def second():
        return model(CrossDecoder(modality.name, encoder, 32, 1, decoder_heads, None), 32)

    parts = tuple(Stage(build, epochs / stages) for build in (first, second)[:stages])
    optim = Optim(lr, batch_size, warmup_epochs, clip=clip, optimizer=optimizer)
    return Recipe(encoder, parts, optim, View(encoder.image_size))
'''
EPOCHS, PER_EPOCH = 3, 3  # 38 images to train on, in batches of 10
STEPS = EPOCHS * PER_EPOCH


def write_recipe(folder: Path) -> str:
    """The recipe as a user's file."""
    file = folder / "tiny.py"
    file.write_text(RECIPE)
    return str(file)


def write_images(folder: Path, count: int = 40) -> Path:
    """Images of smooth colours, no two alike, in two classes."""
    rng = np.random.default_rng(0)
    for i in range(count):
        place = folder / ("even", "odd")[i % 2] / f"{i:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        small.resize((32, 32), Image.Resampling.BICUBIC).save(place)
    return folder


def weights(run: Path, step: int = STEPS) -> tuple[bytes, bytes]:
    """The bytes of a run's checkpoint at a step: the model's and the optimizer's."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    return (folder / "model.safetensors").read_bytes(), (folder / "optimizer.safetensors").read_bytes()


def facts(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def journal(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


_TIMED = {"time", "seconds", "images_per_second", "data_wait", "memory_mb"}


def rows(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics, without what depends on the clock and on the machine."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in _TIMED} for line in lines]


def listing(folder: Path) -> dict[str, float]:
    """Everything below a folder, with the time it was last written: what has changed shows."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()} | {
        str(p.relative_to(folder)): 0 for p in folder.rglob("*") if p.is_dir()
    }


class Killed(BaseException):
    """Stands for a process that ends where it is, with nothing tidied up."""


def at_steps(monkeypatch: pytest.MonkeyPatch, steps: Collection[int], do: Callable[[], None]) -> None:
    """Do something in the middle of certain steps of training, once each."""
    from unveil.training.metrics import SkippedSteps

    rest, add = set(steps), SkippedSteps.add

    def added(self: Any, update: Any, step: int) -> None:
        add(self, update, step)
        if step in rest:
            rest.remove(step)
            do()

    monkeypatch.setattr(SkippedSteps, "add", added)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def kill() -> None:
    raise Killed


TRAIN = ("--epochs", "3", "--batch-size", "10", "--lr", "0.05", "--warmup-epochs", "1", "--image-size", "16")
WARM = ("--warmup-epochs", "1")
VALIDATED = (*TRAIN, "--val-every", "1")  # when to validate does not depend on the speed of the machine
TWO = (*VALIDATED, "--stages", "2")


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
