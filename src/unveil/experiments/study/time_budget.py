"""Equal time: every run trains for so many minutes, by the step of its arm as this machine made it, timed once."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...runs.atomic import write_json
from ...runs.console import log
from ...runs.hardware import choose_device
from ...runs.lock import hold
from ...training.config import PretrainConfig
from ...training.timing import measure_step, tune_step
from .cost_estimate import arm_modalities, build, num_images
from .design import Arm, Scale, ScaleName, Setting, Study
from .jobs import OF_PRETRAIN, settled

FILE = "epochs.json"
_ROUNDS = 4  # of timing all arms in turns, after the first: what else the machine does then hits them alike
_WAIT = 0.1  # seconds until another process has written
Epochs = Mapping[str, float]


def with_minutes(study: Study, scale: ScaleName, minutes: float | None) -> Study:
    """The study with this training time for every run, where one is given.

    Raises ValueError for no time at all, and for a scale of several settings, each of which has its own epochs.
    """
    at = study.scales[scale]
    minutes = at.minutes if minutes is None else minutes
    if minutes is None:
        return study
    if not minutes > 0:
        raise ValueError(f"--minutes {minutes}: a time above 0 is needed")
    if len(at.settings) > 1:
        named = ", ".join(setting.name for setting in at.settings)
        raise ValueError(f"equal time is for a scale of one setting; this one has {len(at.settings)}: {named}")
    return replace(study, scales={**study.scales, scale: replace(at, minutes=minutes)})


def fit_epochs(study: Study, scale: ScaleName, folder: Path, device: str) -> Epochs:
    """How many epochs each arm has time for: those that the folder holds, else timed now.

    Raises ValueError where the folder's runs have another training time.
    """
    at = study.scales[scale]
    assert at.minutes is not None
    known = read_epochs(folder, at)
    missing = [arm for arm in study.arms_at(scale) if arm.name not in known]
    if missing:
        log(f"timing a step of {len(missing)} arm{'s' * (len(missing) > 1)} ...")
    steps = {arm.name: _Step(arm, at, at.settings[0], device) for arm in missing}
    for _ in range(_ROUNDS):
        for step in steps.values():
            step.time_again()
    return {**known, **{name: step.epochs_in(at.minutes) for name, step in steps.items()}}


def with_epochs(study: Study, epochs: Epochs) -> Study:
    """The study with these epochs for its arms."""
    fitted = {name: {"epochs": number} for name, number in epochs.items()}
    return replace(
        study, arms=tuple(replace(arm, dials={**arm.dials, **fitted.get(arm.name, {})}) for arm in study.arms)
    )


def store_epochs(epochs: Epochs, at: Scale, folder: Path) -> Epochs:
    """The epochs as the folder holds them from now on: those of whoever came first."""
    while True:
        with hold(folder / "locks" / "epochs") as other:
            if other is None:
                kept = {**epochs, **read_epochs(folder, at)}
                write_json(folder / FILE, {"minutes": at.minutes, "epochs": kept})
                return kept
        time.sleep(_WAIT)


def read_epochs(folder: Path, at: Scale) -> Epochs:
    """The epochs that a folder holds; none where it has not begun."""
    if not (folder / FILE).exists():
        return {}
    told: dict[str, Any] = json.loads((folder / FILE).read_text())
    if told["minutes"] != at.minutes:
        raise ValueError(
            f"the runs in {folder} train for {told['minutes']:g} minutes each, not {at.minutes:g}; give another --out"
        )
    return {name: float(number) for name, number in told["epochs"].items()}


class _Step:
    """An arm's training step, and the least time that an image of it took."""

    def __init__(self, arm: Arm, at: Scale, setting: Setting, device: str):
        given = settled(arm, at, setting)
        told = {n: v for n, v in given.items() if n in OF_PRETRAIN and n not in ("paper", "minutes")}
        asked = PretrainConfig(arm.recipe, **told)
        self.recipe = build(arm, at, setting, teacher_as_given=True)
        self.modalities = arm_modalities(arm, at, setting)
        self.num_train = num_images(setting) * (1 - asked.held_out_share)
        self.settings, self.seconds = tune_step(asked, self.recipe, self.modalities, choose_device(device))

    def time_again(self) -> None:
        """Other programs make a step slower, never faster, so the least counts. A compiled step is timed once."""
        if not self.settings.compile:
            batch = self.recipe.optim.batch_size
            self.seconds = min(self.seconds, measure_step(self.recipe, self.settings, batch, self.modalities) / batch)

    def epochs_in(self, minutes: float) -> float:
        """The epochs that there is time for, to three figures."""
        return float(f"{60 * minutes / (self.seconds * self.num_train):.3g}")
