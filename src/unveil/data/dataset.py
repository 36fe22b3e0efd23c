"""Any data that unveil opens as a map-style `torch.utils.data.Dataset`, for a loop of your own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ..modeling.types import to_float
from .aligned_folders import open_samples
from .columns import with_columns
from .inspection import inspect_samples
from .modality_config import declare
from .sources import SampleSource, Source, Subset, open_source, sampler, spread
from .transforms import Sample, center_cut, center_view, view_of

_INSPECTED = 64  # samples that settle what the declaration of a map leaves to the data


class ImageDataset(Dataset[Any]):
    """Images, with labels where there are any, by number: `len(data)`, `data[3]`. `open` makes one.

    An item is an image C H W (bytes, or floats in [0, 1]); where there are labels it is (image, label), of -1 for
    none; of several modalities a dict of their maps, in their units, with `label`. Workers of a `DataLoader` may
    share it. `source` is what it reads, `classes` are the names of the labels. An unreadable image raises `Unreadable`.
    """

    def __init__(
        self,
        source: Source,
        image_size: tuple[int, int] | None = None,
        transform: Callable[[Any], Any] | None = None,
    ):
        self.source, self.image_size, self.transform = source, image_size, transform

    @cached_property
    def labels(self) -> Sequence[int] | None:
        """The class of each image; None where there are no labels."""
        return self.source.labels

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes; None where they have none."""
        return self.source.classes

    def __repr__(self) -> str:
        size = "" if self.image_size is None else f", {self.image_size[0]} x {self.image_size[1]} pixels"
        return f"<ImageDataset {self.source.address}: {len(self):,} images{size}>"

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        item = self._maps(number) if isinstance(self.source, SampleSource) else self._image(number)
        item = item if self.transform is None else self.transform(item)
        if self.labels is None:
            return item
        return {**item, "label": self.labels[number]} if isinstance(item, dict) else (item, self.labels[number])

    def _image(self, index: int) -> Tensor:
        image = self.source.image(index)
        return image if self.image_size is None else to_float(center_view(image, self.image_size))

    def _maps(self, index: int) -> dict[str, Tensor]:
        assert isinstance(self.source, SampleSource)
        modalities = [d.modality for d in self.source.declared]
        sample: Sample = sampler(self.source, modalities[0].name)(index)
        if self.image_size is not None:
            sample = view_of(sample, center_cut(sample.size, self.image_size), self.image_size, modalities)
        return dict(sample.maps)


def open(
    data: Any,
    *,
    modalities: Sequence[str] = (),
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    transform: Callable[[Any], Any] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageDataset:
    """The images at an address, or given in Python, as a `torch.utils.data.Dataset`.

    data: what `unveil.pretrain` takes: a folder, a Parquet file, shards, hf:OWNER/NAME, an array, a list of pictures
    modalities: rgb, depth, semseg, or .toml files that declare others; by default plain images
    image_size: pixels a side, or height and width, to which images are resized and cropped at the centre, as floats in
        [0, 1]; by default they stay as they are, each of its own size
    channels: 1 for grey, 3 for colour; by default what most images have
    transform: called with each image, or dict of maps, and returns what the item is to be
    image_column: the column of a table that holds the images, where there are several
    label_column: the column of a table that holds the classes

    Raises FileNotFoundError and ValueError as `unveil.inspect` does.

    >>> import unveil.data
    >>> photographs = unveil.data.open("images", image_size=32)
    >>> image, label = photographs[0]
    >>> tuple(image.shape)
    (3, 32, 32)
    """
    from .given import address_of

    address = str(data) if isinstance(data, (str, Path)) else address_of(data)
    address = with_columns(address, image_column, label_column)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    source: Source
    if declared := declare(modalities):
        samples = open_samples(address, declared)
        inspection = inspect_samples(Subset(samples, spread(len(samples), _INSPECTED)))
        source = samples.settled(inspection.settle(samples.declared))
    else:
        source = open_source(address, channels)
    return ImageDataset(source, size, transform)
