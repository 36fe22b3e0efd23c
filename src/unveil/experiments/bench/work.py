"""What a contender of the bench is: a model that maps a batch to its loss, and the work that all of them do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ...modeling.encoder import SIZES, token_grid
from ...modeling.optim import Optim, OptimizerName
from ...modeling.rng import sample_keys
from ...modeling.types import DEPTH, RGB, SEMSEG, Batch
from ...recipes.recipe import Recipe

MODALITIES = (RGB, DEPTH, SEMSEG)  # of a batch, of which each contender reads its own


@dataclass(frozen=True)
class Work:
    """The work of every contender: a step of a ViT of this size on `batch_size` images of this size.

    Our models are updated by the `optimizer`, peers by AdamW.
    """

    size: str
    patch: int
    image_size: tuple[int, ...]
    batch_size: int
    seed: int
    optimizer: OptimizerName = "adamw"

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}; got {self.size!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is a number of images, at least 1; got {self.batch_size}")
        token_grid(self.image_size, self.patch)
        Optim(optimizer=self.optimizer)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return self.image_size[0], self.image_size[-1]

    def batch(self, device: torch.device | str) -> Batch:
        """The maps that all contenders read: random numbers, the same for the same seed."""
        torch.manual_seed(self.seed)
        height, width = self.sides
        coarse = (self.batch_size, 1, height // SEMSEG.stride, width // SEMSEG.stride)
        maps = {
            RGB.name: torch.rand(self.batch_size, RGB.channels, height, width),
            DEPTH.name: torch.rand(self.batch_size, 1, height, width),
            SEMSEG.name: torch.randint(SEMSEG.num_classes, coarse),
        }
        return Batch(maps, sample_keys(self.seed, 0, range(self.batch_size)), torch.zeros(())).on(device)


class TimedModel(nn.Module):
    """A module `Batch -> loss`, with a hook before a step as the training loop calls it."""

    optimizer: OptimizerName = "adamw"

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def before_step(self, step: int) -> None:
        """Sets the number of the step, for modules that do not run in every one."""


@dataclass(frozen=True)
class Contender:
    """A way to train the ViT, with a description of one line.

    One of ours has the `recipe` of its model, as one stage. `absent` says why it cannot run here, or nothing.
    """

    name: str
    summary: str
    make: Callable[[Work], TimedModel]
    period: int = 1  # steps of which one differs, so that a time is the mean over all of them
    recipe: Callable[[Work], Recipe] | None = None
    absent: Callable[[Work], str] = lambda work: ""

    def build(self, work: Work) -> TimedModel:
        """The module `Batch -> loss`, initialised from the seed."""
        torch.manual_seed(work.seed)
        return self.make(work)
