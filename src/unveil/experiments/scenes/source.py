"""Rendered scenes as a source of images: `scenes`, or `scenes:count=2000,size=64,seed=1`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import UInt8
from torch import Tensor

from .raycast import label_of, render
from .things import CLASSES

ACCEPTED = "count (1 or more), size (32 to 224 pixels) and seed (0 or more)"


@dataclass(frozen=True)
class SceneSource:
    """`count` scenes of one seed, rendered when asked for, `size` pixels square; another seed gives held-out scenes.

    Raises ValueError for a count below 1, a size outside 32..224 or a negative seed.
    """

    count: int = 4000
    size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or not 32 <= self.size <= 224 or self.seed < 0:
            raise ValueError(f"{self.address} cannot be rendered: scenes take {ACCEPTED}")

    def __len__(self) -> int:
        return self.count

    @property
    def address(self) -> str:
        """The words that `parse` reads back."""
        return f"scenes:count={self.count},size={self.size},seed={self.seed}"

    @property
    def channels(self) -> int:
        return 3

    @cached_property
    def labels(self) -> list[int]:
        """The class of every scene; nothing is rendered for it."""
        return [label_of(self.seed, index) for index in range(self.count)]

    @property
    def classes(self) -> list[str]:
        return list(CLASSES)

    def name(self, index: int) -> str:
        """What tells this scene from every other, whatever its size."""
        return f"scenes/seed{self.seed}/{self._inside(index):06d}"

    def location(self, index: int) -> str:
        return self.name(index)

    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        return self.maps(index)["rgb"]

    def maps(self, index: int) -> dict[str, Tensor]:
        """The picture with its truth: rgb uint8 3 H W, depth float32 1 H W in metres, semseg uint8 H W."""
        scene = render((self.seed, self._inside(index)), self.size)
        return {name: torch.from_numpy(getattr(scene, name)) for name in ("rgb", "depth", "semseg")}

    def _inside(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} was asked of {self.address}, which has scenes 0 to {self.count - 1}")
        return index


def parse(address: str) -> SceneSource:
    """The source that an address names; ValueError for an unknown key or a value that is no whole number."""
    kind, _, rest = address.partition(":")
    settings: dict[str, int] = {}
    for word in rest.split(",") if rest else ():
        key, _, value = (part.strip() for part in word.partition("="))
        if kind != "scenes" or key not in ("count", "size", "seed") or key in settings or not value.isdecimal():
            raise ValueError(f"{address!r} has {word!r}: scenes take {ACCEPTED}, as in scenes:size=64,seed=1")
        settings[key] = int(value)
    if kind != "scenes":
        raise ValueError(f"{address!r} names no scenes: the address is scenes or scenes:key=number,...")
    return SceneSource(**settings)
