"""MultiMAE small enough to build by the dozen, on three maps of random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from unveil.modeling.encoder import SIZES
from unveil.modeling.masked_model import MaskedModel
from unveil.modeling.rng import sample_keys
from unveil.modeling.types import DEPTH, RGB, SEMSEG, Batch, Modality
from unveil.recipes import multimae, multimae_attention
from unveil.recipes.registry import build_recipe

SEMANTICS = replace(SEMSEG, num_classes=5)
ALL = (RGB, DEPTH, SEMANTICS)
SHAPE = {"size": "tiny", "patch": 8, "image_size": (32,), "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
GUIDED = multimae_attention.recipe


def build(recipe=multimae.recipe, modalities: tuple[Modality, ...] = ALL, **options: Any) -> MaskedModel:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", (24, 2, 2))
        return build_recipe(recipe, modalities, {**SHAPE, "visible": 0.25, **options}).stages[0].build()


def batch(count: int = 4, progress: float = 0.5, **said: Mapping[str, Tensor]) -> Batch:
    rng = torch.Generator().manual_seed(1)
    maps = {
        "rgb": torch.rand(count, 3, 32, 32, generator=rng),
        "depth": 1 + 4 * torch.rand(count, 1, 32, 32, generator=rng),
        "semseg": torch.randint(0, 5, (count, 1, 8, 8), generator=rng),
    }
    return Batch(maps, sample_keys(0, 0, range(count)), torch.tensor(progress), **said)


def flags(*present: int) -> Tensor:
    return torch.tensor(present, dtype=torch.bool)


LACKING = {"depth": flags(1, 0, 1, 0), "semseg": flags(1, 1, 0, 0)}


def name(options: dict) -> str:
    """Dials as a test is called."""
    return "-".join(map(str, options.values()))
