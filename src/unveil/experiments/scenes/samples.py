"""Rendered scenes as samples of several maps: rgb, depth in metres, semseg."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Shaped
from torch import Tensor

from ...data.modality_config import BUILT_IN, Declared
from ...data.read_map import Map
from ...data.transforms import Sample, as_sample
from .source import SceneSource
from .world import SEMANTIC_CLASSES


@dataclass(frozen=True)
class SceneSamples:
    """Rendered scenes with their truth: rgb, depth in metres, semseg."""

    scenes: SceneSource
    declared: tuple[Declared, ...]

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def address(self) -> str:
        return self.scenes.address

    @property
    def channels(self) -> int:
        return self.declared[0].modality.channels

    @property
    def labels(self) -> list[int]:
        return self.scenes.labels

    @property
    def classes(self) -> list[str]:
        return self.scenes.classes

    def name(self, index: int) -> str:
        return self.scenes.name(index)

    def location(self, index: int) -> str:
        return self.scenes.location(index)

    def has(self, index: int) -> tuple[bool, ...]:
        return (True,) * len(self.declared)

    def complete(self) -> frozenset[str]:
        """All of them: whatever is seen is known."""
        return frozenset(d.name for d in self.declared)

    def read(self, index: int) -> dict[str, Map]:
        made = self.scenes.maps(index)
        found = {d.name: made[d.name] for d in self.declared}
        return {n: Map(m[None] if m.ndim == 2 else m, None, "made here", n == "rgb") for n, m in found.items()}

    def image(self, index: int) -> Shaped[Tensor, "C H W"]:
        """The map of the first modality."""
        return self.read(index)[self.declared[0].name].values

    def sample(self, index: int) -> Sample:
        return as_sample(self.read(index), [d.modality for d in self.declared], self.name(index))

    def settled(self, declared: tuple[Declared, ...]) -> SceneSamples:
        return replace(self, declared=declared)


def of_scenes(declared: tuple[Declared, ...]) -> tuple[Declared, ...]:
    """The modalities, with the classes of the scenes. Raises ValueError for one that is not rendered."""
    found = []
    for d in declared:
        if d.name not in BUILT_IN:
            raise ValueError(f"scenes have no {d.name!r}: they are rendered with {', '.join(BUILT_IN)}")
        if d.is_categorical:
            number = len(SEMANTIC_CLASSES)
            if not d.measured and d.modality.num_classes != number:
                raise ValueError(f"scenes have {number} classes, not {d.modality.num_classes}; leave classes out")
            d = replace(
                d,
                modality=replace(d.modality, num_classes=number),
                classes=tuple(SEMANTIC_CLASSES),
                void=None,
                measured=False,
            )
        elif d.modality.channels != BUILT_IN[d.name].modality.channels:
            raise ValueError(f"{d.name} of scenes has {BUILT_IN[d.name].modality.channels} channels; leave them out")
        found.append(d)
    return tuple(found)
