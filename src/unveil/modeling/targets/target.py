"""The contract of a target: what it is called with and what it returns."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..types import Batch, Observations

TargetValues = tuple[Tensor, Tensor]


class Target(Protocol):
    """The truth at every token; `dim` numbers guess it."""

    @property
    def dim(self) -> int: ...

    def __call__(self, batch: Batch, observations: Observations) -> TargetValues: ...
