"""A recipe: one encoder taken through stages, how it is optimised and how images become views."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ParamSpec, TypeVar, cast

import torch

from ..data.transforms import Flip, View
from ..modeling.encoder import Encoder
from ..modeling.masked_model import MaskedModel
from ..modeling.optim import Optim
from .hyperparameters import Hyperparameters, LrScale, lr_factor
from .options import check_choices

__all__ = ["Flip", "Hyperparameters", "LrScale", "Recipe", "Stage", "View", "check_choices", "lr_factor", "once"]

P = ParamSpec("P")
T = TypeVar("T")


def once(make: Callable[P, T]) -> Callable[P, T]:
    """A part that stages share but that can be made only when the first of them is built, such as a head as wide as a
    teacher's features. It is made once, from chance that is drawn now: whichever stage asks first, it is the same."""
    seed = int(torch.randint(2**62, (), device="cpu"))

    @cache
    def made(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make(*args, **kwargs)

    return cast("Callable[P, T]", made)


@dataclass(frozen=True)
class Stage:
    """A part of the training. Its model is built when it is reached, so it starts from what the encoder has become."""

    build: Callable[[], MaskedModel]
    epochs: float

    def __post_init__(self) -> None:
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs is a number of passes over the data, above 0; got {self.epochs}")


@dataclass(frozen=True)
class Recipe:
    """A paper as data: the encoder that all stages share, the stages, the optimiser and the views.

    One schedule of the learning rate spans all stages, unless `restart`: then each stage warms up and decays anew.
    """

    encoder: Encoder
    stages: tuple[Stage, ...]
    optim: Optim
    view: View
    restart: bool = False

    @property
    def epochs(self) -> float:
        """The length of all stages together."""
        return sum(stage.epochs for stage in self.stages)
