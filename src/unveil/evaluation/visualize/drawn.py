"""What a run makes of images, as tensors and pictures: reconstructions, guidance, neighbours."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from ...data.extras import optional
from ...reporting.figures import Panel, Sheet

if TYPE_CHECKING:  # matplotlib is an extra
    from matplotlib.figure import Figure

_INCHES = 1.7  # of a picture's side in a figure
_NEEDED = "figures are drawn by matplotlib: pip install 'unveil[figures]'; .image() needs nothing"


@dataclass(frozen=True, repr=False)
class Drawn:
    """A result that can be looked at; a notebook shows its picture. `names` are those of the samples, in their order.

    Tensors are on the processor. B samples, h and w rows and columns of patches.
    """

    names: list[str]
    sheet: Sheet = field(repr=False, compare=False)

    def image(self) -> Image.Image:
        """All pictures on one sheet, as a Pillow image that is 1280 pixels wide."""
        return Image.fromarray(self.sheet.draw())

    def figure(self) -> Figure:
        """The pictures as a matplotlib figure, an axis for each, to be changed or saved as a PDF.

        Raises ValueError where matplotlib is not installed.
        """
        optional("matplotlib", _NEEDED)
        from matplotlib.figure import Figure

        rows: list[tuple[str, list[Panel]]] = []
        for block in self.sheet.blocks:
            own = [[*([block.lead] if block.lead and i == 0 else []), *row] for i, row in enumerate(block.rows)]
            rows += [(block.title if i == 0 else "", row) for i, row in enumerate(own)]
        columns = max(len(row) for _, row in rows)
        figure = Figure(figsize=(_INCHES * columns, _INCHES * 1.15 * len(rows)), layout="constrained")
        for axes, (title, row) in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
            for place, axis in enumerate(axes):
                axis.set_axis_off()
                if place < len(row) and row[place].picture is not None:
                    axis.imshow(row[place].picture)
                    axis.set_title(
                        "\n".join(filter(None, (title if place == 0 else "", row[place].caption))), fontsize=7
                    )
        return figure

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.image().save(buffer, "PNG")
        return buffer.getvalue()

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        facts = {f.name: _shape(getattr(self, f.name)) for f in fields(self) if f.name not in ("names", "sheet")}
        words = "; ".join(f"{name} {shape}" for name, shape in facts.items() if shape)
        return f"<{type(self).__name__} of {', '.join(self.names[:4])}{', ...' * (len(self) > 4)}: {words}>"


def _shape(value: object) -> str:
    """The shapes of tensors, by name: rgb 4 x 3 x 32 x 32; nothing of anything else."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shape(one)}" for name, one in value.items())
    return " x ".join(map(str, value.shape)) if isinstance(value, Tensor) else ""


@dataclass(frozen=True, repr=False)
class Reconstruction(Drawn):
    """Predictions of hidden patches, by modality.

    images: what was given, cut to the run's size, in the unit of the data; class ids of semantic maps
    predicted: the same with hidden patches as the model predicts them. Of a target that each patch's own mean and
        deviation normalise, or a map's own, those of the truth are put back
    hidden: which patches the encoder did not see
    """

    images: Mapping[str, Float[Tensor, "B C H W"] | Int[Tensor, "B C H W"]]
    predicted: Mapping[str, Float[Tensor, "B C H W"] | Int[Tensor, "B C H W"]]
    hidden: Mapping[str, Bool[Tensor, "B h w"]]


@dataclass(frozen=True, repr=False)
class Guidance(Drawn):
    """What guides the masks of a run, by modality.

    student: attention of the student's class token in its last block, the mean over heads, summing to one over all
        patches of a sample
    teacher: that of the teacher, where the run has one
    guide: the map that masks are sampled from, where they are guided by attention
    hidden: patches hidden by the run's own masks; of a run of one modality whose masks are guided, `masks` holds them
        by sampler
    """

    student: Mapping[str, Float[Tensor, "B h w"]]
    teacher: Mapping[str, Float[Tensor, "B h w"]]
    guide: Mapping[str, Float[Tensor, "B h w"]]
    hidden: Mapping[str, Bool[Tensor, "B h w"]]
    masks: Mapping[str, Bool[Tensor, "B h w"]]


@dataclass(frozen=True, repr=False)
class Neighbours(Drawn):
    """The nearest images by the cosine of features, the nearest first.

    indices: their places in the source that was searched; `neighbours` are their names
    similarity: the cosine
    """

    indices: Int[Tensor, "B k"]
    similarity: Float[Tensor, "B k"]
    neighbours: list[list[str]]
