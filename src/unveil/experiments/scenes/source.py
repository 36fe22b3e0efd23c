"""Rendered scenes as images (`scenes`, or `scenes:count=2000,size=64,seed=1`), as samples of several maps, as files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from ...data.modality_config import BUILT_IN, Declared
from ...data.read_map import Map
from ...data.source_bases import DeclaredSamples
from ...data.sources import Source
from ...runs.console import log
from .raycast import label_of, render
from .things import CLASSES
from .world import SEMANTIC_CLASSES
from .writing import all_or_none

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

    location = name

    def image(self, index: int) -> Shaped[Tensor, "C H W"]:
        return self.maps(index)["rgb"]

    def maps(self, index: int) -> dict[str, Tensor]:
        """The picture with its truth: rgb uint8 3 H W, depth float32 1 H W in metres, semseg uint8 H W."""
        scene = render((self.seed, self._inside(index)), self.size)
        return {name: torch.from_numpy(getattr(scene, name)) for name in ("rgb", "depth", "semseg")}

    def _inside(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} was asked of {self.address}, which has scenes 0 to {self.count - 1}")
        return index


@dataclass(frozen=True)
class SceneSamples(DeclaredSamples, SceneSource):
    """Rendered scenes with their truth: rgb, depth in metres, semseg. `image` is the map of the first modality."""

    declared: tuple[Declared, ...] = ()
    name = SceneSource.name

    def has(self, index: int) -> tuple[bool, ...]:
        return (True,) * len(self.declared)

    def complete(self) -> frozenset[str]:
        """All of them: a renderer knows every pixel."""
        return frozenset(d.name for d in self.declared)

    def read(self, index: int) -> dict[str, Map]:
        """The declared maps, rendered at once."""
        maps = self.maps(index)
        values = {d.name: maps[d.name] for d in self.declared}
        return {n: Map(m[None] if m.ndim == 2 else m, None, "made here", n == "rgb") for n, m in values.items()}

    def _map(self, index: int, declared: Declared) -> Map:
        return self.read(index)[declared.name]


def parse(address: str) -> SceneSource:
    """The source that an address names; ValueError for an unknown key or a value that is no whole number."""
    kind, _, rest = address.partition(":")
    settings: dict[str, int] = {}
    for word in rest.split(",") if rest else ():
        key, _, value = (piece.strip() for piece in word.partition("="))
        if kind != "scenes" or key not in ("count", "size", "seed") or key in settings or not value.isdecimal():
            raise ValueError(f"{address!r} has {word!r}: scenes take {ACCEPTED}, as in scenes:size=64,seed=1")
        settings[key] = int(value)
    if kind != "scenes":
        raise ValueError(f"{address!r} names no scenes: the address is scenes or scenes:key=number,...")
    return SceneSource(**settings)


def of_scenes(declared: tuple[Declared, ...]) -> tuple[Declared, ...]:
    """The modalities, with the classes of the scenes. Raises ValueError for one that is not rendered."""
    resolved = []
    for d in declared:
        if d.name not in BUILT_IN:
            raise ValueError(f"scenes have no {d.name!r}: they are rendered with {', '.join(BUILT_IN)}")
        if d.is_categorical:
            number = len(SEMANTIC_CLASSES)
            if not d.measured and d.modality.num_classes != number:
                raise ValueError(f"scenes have {number} classes, not {d.modality.num_classes}; leave classes out")
            modality = replace(d.modality, num_classes=number)
            d = replace(d, modality=modality, classes=tuple(SEMANTIC_CLASSES), void=None, measured=False)
        elif d.modality.channels != BUILT_IN[d.name].modality.channels:
            raise ValueError(f"{d.name} of scenes has {BUILT_IN[d.name].modality.channels} channels; leave them out")
        resolved.append(d)
    return tuple(resolved)


def open_scenes(address: str, declared: tuple[Declared, ...]) -> Source:
    """The entry point `scenes` of `unveil.sources`: images, or samples of the declared maps."""
    source = parse(address)
    return SceneSamples(source.count, source.size, source.seed, of_scenes(declared)) if declared else source


def render_scenes(source: SceneSource, folder: Path) -> None:
    """Write scenes as aligned folders `rgb`, `depth` and `semseg` of class folders; those that are there stay.

    Depth is in millimetres. All scenes are there or none.
    """
    if folder.exists():
        log(f"{folder} is there already")
        return
    with all_or_none(folder, len(source)) as (unfinished, draw):
        for modality in ("rgb", "depth", "semseg"):
            for name in CLASSES:
                (unfinished / modality / name).mkdir(parents=True)
        draw(partial(_draw, unfinished, source.seed, source.size), range(len(source)))


def _draw(folder: Path, seed: int, size: int, index: int) -> None:
    scene = render((seed, index), size)
    file = f"{CLASSES[scene.label]}/{index:06d}.png"
    Image.fromarray(scene.rgb.transpose(1, 2, 0)).save(folder / "rgb" / file)
    Image.fromarray((1000 * scene.depth[0]).round().astype(np.uint16)).save(folder / "depth" / file)
    Image.fromarray(scene.semseg).save(folder / "semseg" / file)
