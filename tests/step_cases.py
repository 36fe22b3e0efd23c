"""Every recipe and what changes its step, at a size that is built by the dozen: what is run on every kind of device.

The cases are those of the golden curves, and more of one or several modalities.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from multimodal import ALL, LACKING
from test_golden_curves import CURVES
from unveil.modeling.encoder import SIZES
from unveil.modeling.rng import sample_keys, seed_stage, step_key
from unveil.modeling.types import RGB, Batch, Modality
from unveil.recipes.recipe import Recipe
from unveil.recipes.registry import build_recipe, load_recipe
from unveil.training.distributed import SINGLE_PROCESS, Group
from unveil.training.trainer import Settings, Trainer

SIZE = 32
SHARED = {"size": "nano", "patch": 8, "image_size": (SIZE,), "epochs": 4.0, "batch_size": 6, "warmup_epochs": 1.0}
DECODER = {"decoder_dim": 32, "decoder_depth": 2, "decoder_heads": 2}
TEACHER = {"teacher": "random"}
MAIN = ("mae", "crossmae", "cmtmae", "multimae-attention")  # what is never left out


@dataclass(frozen=True)
class Case:
    """A recipe with its options; samples `lack` maps where it says so."""

    recipe: str
    options: dict[str, Any] = field(default_factory=dict)
    lacks: bool = False

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return ALL if self.recipe.startswith("multimae") else (RGB,)

    def build(self, depth: int = 2) -> Recipe:
        """The recipe, on an encoder of `depth` blocks; stages are built while `small` is entered."""
        seed_stage(0, -1)
        own = {k: v for k, v in self.options.items() if k not in ("data", "modalities")}
        with small(depth):
            return build_recipe(load_recipe(self.recipe), self.modalities, {**SHARED, **own})

    def batch(self, step: int = 0, count: int = 6, progress: float = 0.5) -> Batch:
        """Random samples as a loader gives them: bytes, on the CPU."""
        rng = torch.Generator().manual_seed(step)
        maps = {"rgb": torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=rng, dtype=torch.uint8)}
        if len(self.modalities) > 1:
            maps["depth"] = 1 + 4 * torch.rand(count, 1, SIZE, SIZE, generator=rng)
            maps["semseg"] = torch.randint(0, 5, (count, 1, SIZE // 4, SIZE // 4), generator=rng)
        there = {n: torch.cat([flags, flags[: count - 4]]) for n, flags in LACKING.items()} if self.lacks else {}
        valid = {"depth": torch.rand(count, 1, SIZE, SIZE, generator=rng) > 0.1} if self.lacks else {}
        keys = sample_keys(0, step, range(count))
        return Batch(maps, keys, torch.tensor(progress), valid, there, step_key(0, step))


def small(depth: int = 2) -> Any:
    """The size `nano` as one of few blocks, while the context lasts."""
    patch = pytest.MonkeyPatch.context()

    class Entered:
        def __enter__(self) -> None:
            patch.__enter__().setitem(SIZES, "nano", (32, depth, 2))

        def __exit__(self, *error: Any) -> None:
            patch.__exit__(*error)

    return Entered()


def _cases() -> Iterator[tuple[str, Case]]:
    for name, (recipe, options) in CURVES.items():
        own = {k: v for k, v in options.items() if k != "num_maps"}
        yield name, Case(recipe, own)
    cross = {"decoder": "cross", "blend": "linear", "predicted": 0.25}
    for name, options in {
        "grid": {"masking": "grid", "hide": "blank", "decoder": "linear"},
        "inverse-block, units, hardest": {"masking": "inverse-block", "mask_unit": 16, "predicted": 0.25}
        | {"ask": "hardest", "visible": 0.5},
        "attention of the average": {"masking": "attention", "teacher": "student", "target": "features"},
        "data2vec": {"target": "data2vec", "target_norm": "instance", "decoder": "cross"},
        "maskdistill": {"target": "maskdistill", "teacher": "random", "loss": "l1", "hide": "blank"},
    }.items():
        yield f"mim, {name}", Case("mim", {**DECODER, **options})
    for name, options in {
        "noisy draw, all fusions": {"draw": "noisy", "fusion": "entropy-gated", "query": "all", "map_clip": 0.9},
        "hint draw, ranks": {"draw": "hint", "fusion": "mean-rank", "map_norm": "rank", "positions": "all"},
    }.items():
        yield f"cmtmae, {name}", Case("cmtmae", {**DECODER, **TEACHER, "stage1_epochs": 2.0, **options})
    yield "hpm, easy", Case("hpm", {**DECODER, "hardest": 0.5, "hardest_end": 1.0})
    yield "attmask, hint", Case("attmask", {**DECODER, "masking": "hint"})
    yield "milan, predicted", Case("milan", {**DECODER, **TEACHER, "positions": "predicted"})
    maps = {**DECODER, "decoder_depth": 1}
    for name, options in {
        "lacking maps": {},
        "tasks, uncertainty": {"tasks": "uniform", "weighting": "uncertainty", "concentration": (1.0, 2.0, 0.5)},
        "hog, blank": {"target": "hog", "hide": "blank", "decoder": "linear"},
        "collaborative targets": {**TEACHER, "target": "collaborative", **cross},
    }.items():
        yield f"multimae, {name}", Case("multimae", {**maps, **options}, lacks=True)
    for name, options in {
        "random heads, half scale": {"guide_heads": "random", "heads_drawn": "image", "guide_scale": "half"},
        "heads of a step, every second": {"guide_heads": "random", "guide_every": 2, "draw": "gumbel"},
        "predicted attention": {"guidance": "fast"},
        "foreseen, adaptive budget": {"guide": "foreseen", "budget": "adaptive"},
        "errors": {"guide": "error"},
        "blended with a teacher": {**TEACHER, "student": "momentum", "query": "mean"},
    }.items():
        yield f"multimae-attention, {name}", Case("multimae-attention", {**maps, **options}, lacks=True)
    yield "multimae-attention, joint budget", Case("multimae-attention", {**maps, "budget": "joint"})


CASES: dict[str, Case] = dict(_cases())


def losses(case: Case, settings: Settings, updates: int = 5, depth: int = 2, group: Group = SINGLE_PROCESS) -> Tensor:
    """The losses of some updates, one row each, with all stages one after another; in a group, on its shares."""
    rows = []
    with small(depth):
        recipe, before = case.build(depth), None
        for index, stage in enumerate(recipe.stages):
            seed_stage(0, index)
            trainer = Trainer(stage.build(), recipe.optim, settings, group)
            if before is not None:
                trainer.adopt(before)
            for step in range(updates):
                trainer.before_step(step, step / updates)
                batch = case.batch(step, progress=step / updates)
                share = len(batch) // group.size
                update = trainer.update(batch[group.rank * share : (group.rank + 1) * share], 1e-3)
                assert not update.skipped
                rows.append(torch.stack(list(update.losses.values())).sum())
            with trainer.whole():  # the next stage is built on its encoder
                before = trainer
    return torch.stack(rows).double().cpu()


def settings_on(device: str, precision: str = "float32", compile: bool = False) -> Settings:
    return Settings(device, precision, micro_batch=8, compile=compile, save_minutes=10, val_every=1.0)
