"""Maps as pictures: measured ones in colours with a unit, classes in colours with a legend, images as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...data.modality_config import Declared
from ...data.samples import SampleSource, origin
from ...data.sources import Source
from ...modeling.patches import validity
from ...modeling.types import Batch, Modality
from ...reporting.figures import Bar, Key, Legend
from ...reporting.pictures import Picture, class_picture, how_viewed, scalar_colours, scalar_picture, viewable


@dataclass(frozen=True)
class MapRenderer:
    """Draws the maps of one modality.

    `limits` are those of the colours, in the unit of the data, None for an image in [0, 1]; `places` are the class ids
    that occur, with -1 for unlabelled pixels.
    """

    modality: Modality
    limits: tuple[float, float] | None = None
    unit: str = ""
    classes: tuple[str, ...] = ()
    places: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.modality.name} ({self.unit})" if self.unit else self.modality.name

    @property
    def is_measured(self) -> bool:
        """Whether it is one number a pixel, shown in colours."""
        return self.limits is not None and self.modality.channels == 1

    def __call__(self, image: Tensor, known: Tensor, like: Tensor | None = None) -> Picture:
        """A map C H W as a picture; `known` 1 H W says where it is valid."""
        values, valid = image.cpu().numpy(), known[0].cpu().numpy()
        if self.modality.kind == "categorical":
            return class_picture(values[0], valid, self.modality.num_classes)
        if self.is_measured and self.limits is not None:
            return scalar_picture(values[0], valid, self.limits)
        if self.limits is not None:
            values = (values - self.limits[0]) / max(self.limits[1] - self.limits[0], 1e-12)
        return viewable(values, None if like is None else like.cpu().numpy())

    @property
    def key(self) -> Key | None:
        """What its colours mean; None for images."""
        if self.modality.kind == "categorical":
            names = [self.classes[i] if i < len(self.classes) else f"class {i}" for i in self.places if i >= 0]
            names += ["no class"] * (-1 in self.places)
            return Legend(self.modality.name, self.modality.num_classes, self.places, names)
        if self.is_measured and self.limits is not None:
            low, high = (f"{limit:.3g}" for limit in self.limits)
            return Bar(self.modality.name, scalar_colours, low, f"{high} {self.unit}".strip())
        return None

    @property
    def note(self) -> str:
        """A sentence for the caption, where one is needed."""
        return "" if self.modality.kind == "categorical" else how_viewed(self.modality.channels)


def map_renderers(modalities: Sequence[Modality], source: Source, batch: Batch) -> dict[str, MapRenderer]:
    """A renderer for each modality; the limits of its colours are the 1st and 99th percentile of a batch's maps."""
    whole = origin(source)[0]
    declared: Mapping[str, Declared] = {}
    if isinstance(whole, SampleSource):
        declared = {d.name: d for d in whole.declared}
    renderers = {}
    for m in modalities:
        own = declared.get(m.name)
        unit, classes = (own.unit, own.classes) if own else ("", ())
        image, known = batch.maps[m.name], validity(batch, m)
        limits: tuple[float, float] | None = None
        places: tuple[int, ...] = ()
        if m.kind == "categorical":
            places = tuple(image[known].unique().tolist()) + (() if known.all() else (-1,))
        else:
            values = image[known.expand_as(image)].cpu().numpy()
            is_picture = bool(((values >= 0) & (values <= 1)).all())  # what has a unit of its own lies elsewhere
            if not is_picture or (m.channels == 1 and (unit or m.normalise != "fixed")):
                low, high = np.percentile(values, (1, 99)).tolist() if len(values) else (0.0, 1.0)
                limits = (low, high)
        renderers[m.name] = MapRenderer(m, limits, unit, classes, places)
    return renderers
