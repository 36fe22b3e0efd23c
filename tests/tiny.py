"""Models small enough to build by the dozen, made by the real recipes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from unveil.modeling.encoder import SIZES
from unveil.modeling.masked_model import MaskedModel
from unveil.modeling.rng import sample_keys
from unveil.modeling.types import Batch, Modality
from unveil.recipes import mim
from unveil.recipes.registry import build_recipe, options_of

OPTIONS = {
    "size": "tiny",
    "patch": 4,
    "image_size": (16, 24),
    "decoder_dim": 16,
    "decoder_depth": 2,
    "decoder_heads": 2,
}


def modality(channels: int) -> Modality:
    return Modality("rgb", channels, (0.4,) * channels, (0.3,) * channels)


def build(depth: int = 2, channels: int = 3, **options: Any) -> MaskedModel:
    """The model of the recipe `mim` with these options, on an encoder of two heads that is 24 wide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", (24, depth, 2))
        return build_recipe(mim.recipe, [modality(channels)], {**OPTIONS, **options}).stages[0].build()


def batch(count: int = 3, channels: int = 3, size: tuple[int, int] = (16, 24), epoch: int = 0) -> Batch:
    """Random images of the samples 0, 1, ..."""
    images = torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(1))
    return Batch({"rgb": images}, sample_keys(0, epoch, range(count)), torch.zeros(()))


def build_of(recipe: ModuleType, stage: int = -1, **options: Any) -> MaskedModel:
    """The model of a stage of any recipe of images, the last by default, with half of the tokens visible."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", (24, 2, 2))
        return build_recipe(recipe.recipe, (), {**OPTIONS, "visible": 0.5, **options}).stages[stage].build()


def maps(seed: int = 0, count: int = 4, num_tokens: int = 12) -> tuple[Tensor, Tensor]:
    """Two maps of attention that sum to one."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(2, count, num_tokens, generator=generator).pow(3) + 1e-4
    teacher, student = draw / draw.sum(dim=2, keepdim=True)
    return teacher, student


def check_options(recipe: Callable[..., Any]) -> None:
    """Every argument of a recipe is a keyword with a default, and its own options are explained in their order."""
    parameters = inspect.signature(recipe).parameters
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters.values())
    own: list[str] = []
    expected: list[str] = []
    for name, parameter in parameters.items():
        if is_dataclass(parameter.default) and name not in ("modality", "modalities"):
            group = type(parameter.default)
            names = [f.name for f in fields(group)]
            assert re.findall(r"^    (\w+): \S", group.__doc__ or "", re.MULTILINE) == names
            expected += names
        elif name not in ("modality", "modalities"):
            own.append(name)
            expected.append(name)
    assert re.findall(r"^    (\w+): \S", recipe.__doc__ or "", re.MULTILINE) == own
    assert [option.name for option in options_of(recipe)] == expected
    assert all(option.meaning for option in options_of(recipe))
