"""The data of a dense protocol: how they are opened, the statistics of their labels, and the views of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...data import augment
from ...data.decode import Unreadable
from ...data.dense_dataset import DensePair, DenseSet, LabelEncoding
from ...data.dense_layouts import StorageOptions, numbered, open_dense
from ...data.prefetch import prefetch
from ...data.read_map import Map
from ...data.sources import Source, Subset
from ...data.transforms import Cut, Keys, Sample, resize_known, view_of
from ...modeling.rng import SampleRng
from ...modeling.types import Batch, Modality
from ...runs.hardware import num_cores
from .model import DenseEncoder, chosen_inputs


@dataclass(frozen=True)
class DenseData:
    """Where images with a label per pixel are; a protocol opens them, since its options say how they are stored."""

    address: str
    test_address: str | None = None
    check_test: Callable[[Source], None] = lambda test: None  # called with the test samples
    opened: dict[tuple[StorageOptions, str], DensePair] = field(default_factory=dict, compare=False, repr=False)

    def open(
        self, encoder: DenseEncoder, stored: StorageOptions, wanted: Sequence[str], target: str, limit: int | None
    ) -> tuple[DensePair, list[Modality]]:
        """The two sets, of at most `limit` samples each, and the modalities to read.

        Raises ValueError where a set lacks one of them or the target, and where the encoder does not read one.
        """
        if (stored, target) not in self.opened:  # once for all subjects: all labels are read to count their classes
            sets = open_dense(self.address, self.test_address, stored)
            self.check_test(Subset(sets.test.source, sets.test.rows))
            if target == "semseg" and target in sets.train.maps:
                sets = with_classes(sets)  # before the limit: a class may only be in what is left out
            self.opened[stored, target] = sets
        sets = self.opened[stored, target]
        train, test = (s.limited(limit).with_channels(encoder.channels) for s in (sets.train, sets.test))
        inputs = chosen_inputs(encoder, wanted, list(train.maps), target)
        kinds = [*(m.name for m in inputs), target]
        return replace(sets, train=train.select(kinds), test=test.select(kinds)), inputs


Fit = Literal["cover", "inside", "bounded"]
LONGEST = 4  # times the view: the longer side of an image whose shorter side is that of the view, at most
CROPS = 10  # draws of a box in which no class fills too much, before one more is taken as it is
STRIDE = 2 / 3  # of a window, from one to the next
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2}
ENOUGH = 1000  # samples, for what need not be exact
MAX_CLASSES = 4096


def with_classes(sets: DensePair) -> DensePair:
    """The sets with names for all classes, where these are not declared: as many as all labels at their addresses hold.

    Labels of samples that are skipped, or that lack another map, count too. A declaration of one set holds for both.
    Raises ValueError where the ignore index lies among the classes, and for two unlike declarations.
    """
    train, test = (samples.labels for samples in (sets.train, sets.test))
    labels, count = train if train.names else test, 0
    for samples in sets.every:
        if "semseg" in samples.maps and not labels.names:
            source = samples.source.settled((samples.maps["semseg"],))
            rows = [row for row in range(len(source)) if source.has(row)[0]]
            for stored in _maps(replace(samples, source=source, rows=rows), "semseg"):
                count = max(count, int(stored.values.max()) + 1)
    if count > MAX_CLASSES:
        raise ValueError(f"{sets.train.address} holds class ids of {MAX_CLASSES} and more: these are no classes")
    labels = labels if labels.names else LabelEncoding(numbered(count, labels.first), labels.first, labels.void)
    both = [s if s.labels.names else replace(s, labels=labels) for s in (sets.train, sets.test)]
    if len(both[0].labels.names) != len(both[1].labels.names):
        numbers = " and ".join(f"{s.address} {len(s.labels.names)}" for s in both)
        raise ValueError(f"the sets are declared with different classes: {numbers}; correct one of the declarations")
    return replace(sets, train=both[0], test=both[1])


def class_counts(train: DenseSet) -> Int[Tensor, " K"]:
    """The pixels of each class, of up to 1,000 samples. Raises ValueError where there are fewer than two."""
    counts = torch.zeros(len(train.labels.names), dtype=torch.int64)
    for stored in _maps(train.limited(ENOUGH), "semseg"):
        ids = stored.values[stored.valid] if stored.valid is not None else stored.values.flatten()
        counts += torch.bincount(ids.flatten().long(), minlength=len(counts))
    if (counts > 0).sum() < 2:
        raise ValueError(
            f"the labels of {train.address} hold {int((counts > 0).sum())} class; at least two are needed: look at the"
            f" ignore index ({train.labels.void}), and whether the right folder was taken for labels"
        )
    return counts


def depth_mean(train: DenseSet) -> tuple[float, float, Float[Tensor, "1 H W"]]:
    """Mean and deviation of valid depth in metres, and the mean of every pixel, at the size of the first map.

    A pixel that is never valid has the mean of all. Raises ValueError where no depth is valid.
    """
    total = square = count = 0.0
    summed: Tensor | None = None
    for stored in _maps(train.limited(ENOUGH), "depth"):
        values = stored.values.double()
        valid = values > 0
        total += values.sum().item()
        square += values.square().sum().item()
        count += valid.sum().item()
        size = (values.shape[-2], values.shape[-1]) if summed is None else (summed.shape[-2], summed.shape[-1])
        both = resize_known(torch.cat([values, valid]).float(), size)
        summed = both if summed is None else summed + both
    if summed is None or not count:
        below = "" if train.max_depth is None else f" up to {train.max_depth:g} m"
        raise ValueError(
            f"no pixel of {train.address} has a depth{below}: 0, and what is not finite, is none; look at the files and"
            " at --depth-scale, the metres of a stored unit"
        )
    mean = total / count
    std = max(square / count - mean**2, 0.0) ** 0.5 or 1.0
    return mean, std, torch.where(summed[1:] > 0, summed[:1] / summed[1:].clamp_min(1), mean)


def _maps(samples: DenseSet, kind: str) -> Iterator[Map]:
    """The maps of one kind that can be read, in order; ValueError where there is none."""
    failed: list[Unreadable] = []

    def read(index: int) -> Map | Unreadable:
        try:
            return samples.read(index, kind)
        except Unreadable as error:
            return error

    jobs = (partial(read, index) for index in range(len(samples)))
    with closing(prefetch(jobs, 4 * num_cores())) as results:
        for result in results:
            if isinstance(result, Unreadable):
                failed.append(result)
            else:
                yield result
    if len(failed) == len(samples):
        raise ValueError(f"none of the {len(samples)} {kind} maps of {samples.address} can be read; {failed[0]}")


@dataclass(frozen=True)
class DenseView:
    """How views of `image_size` (height, width) are drawn: scaled, cut at random, and padded where the image is small.

    The scale is drawn evenly between `scales` and counts from the one at which the image just covers the view, lies
    just inside it, or, `bounded`, covers it unless a side would be more than four times that of the view. Views are
    mirrored half of the time. A class fills at most `class_share` of the known pixels, where ten draws find such a box;
    classes are the last modality.
    """

    image_size: tuple[int, int]
    scales: tuple[float, float] = (0.5, 2.0)
    fit: Fit = "cover"
    class_share: float | None = None

    def base(self, height: int, width: int) -> float:
        both = (self.image_size[0] / height, self.image_size[1] / width)
        longest = LONGEST * max(self.image_size) / max(height, width)
        return {"cover": max(both), "inside": min(both), "bounded": min(max(both), longest)}[self.fit]

    def __call__(self, samples: Sequence[Sample], modalities: Sequence[Modality], keys: Keys) -> list[Sample]:
        """A random view of each sample, drawn by its key."""
        rng = SampleRng(keys)
        draws = rng.uniform("dense view", 4).tolist()
        more = rng.uniform("dense view crops", 2 * CROPS).tolist() if self.class_share else [[]] * len(samples)
        return [self._view(sample, modalities, *own) for sample, *own in zip(samples, draws, more, strict=True)]

    def _view(
        self, sample: Sample, modalities: Sequence[Modality], numbers: Sequence[float], more: Sequence[float]
    ) -> Sample:
        scale, down, right, mirror = numbers
        height, width = sample.size
        factor = self.base(height, width) * (self.scales[0] + scale * (self.scales[1] - self.scales[0]))
        tall, wide = (min(s, max(1, round(v / factor))) for s, v in zip((height, width), self.image_size, strict=True))
        corners = [(down, right), *zip(more[::2], more[1::2], strict=True)]
        boxes = [(int(y * (height - tall + 1)), int(x * (width - wide + 1))) for y, x in corners]
        top, left = next((b for b in boxes[:-1] if self._is_mixed(sample, modalities[-1], b, (tall, wide))), boxes[-1])
        made = tuple(min(v, max(1, round(s * factor))) for s, v in zip((tall, wide), self.image_size, strict=True))
        cut = Cut(top, left, tall, wide, turned=False, mirrored=mirror < 0.5, upside_down=False)
        return padded(view_of(sample, cut, (made[0], made[1]), _full(modalities)), self.image_size, modalities)

    def _is_mixed(self, sample: Sample, classes: Modality, corner: tuple[int, int], size: tuple[int, int]) -> bool:
        """Whether a box has two classes at least, none of which fills too much, at about the view's resolution."""
        steps = [max(1, side // own) for side, own in zip(size, self.image_size, strict=True)]
        box = (slice(None), *(slice(a, a + n, step) for a, n, step in zip(corner, size, steps, strict=True)))
        ids, known = sample.maps[classes.name][box], sample.valid.get(classes.name)
        counts = (ids.flatten() if known is None else ids[known[box]]).long().bincount()
        return int((counts > 0).sum()) > 1 and int(counts.max()) < (self.class_share or 1) * int(counts.sum())

    def whole(self, sample: Sample, modalities: Sequence[Modality]) -> tuple[Sample, tuple[int, int]]:
        """The whole image at scale 1, padded to the view at least, and how much of it is image."""
        height, width = sample.size
        factor = self.base(height, width)
        made = (max(1, round(height * factor)), max(1, round(width * factor)))
        cut = Cut(0, 0, height, width, turned=False, mirrored=False, upside_down=False)
        size = (max(self.image_size[0], made[0]), max(self.image_size[1], made[1]))
        return padded(view_of(sample, cut, made, _full(modalities)), size, modalities), made


def _full(modalities: Sequence[Modality]) -> list[Modality]:
    """The modalities with a pixel for each pixel of the view: strides come last."""
    return [replace(m, stride=1) for m in modalities]


def padded(sample: Sample, size: tuple[int, int], modalities: Sequence[Modality]) -> Sample:
    """A sample filled up to a size, to the right and below, with what is not valid: pictures with their mean colour."""
    height, width = sample.size
    maps, valid = {}, {}
    for m in modalities:
        image, known = sample.maps[m.name], sample.valid.get(m.name)
        if (height, width) != size:
            made = image.new_zeros(image.shape[0], *size)
            if m.name not in sample.valid:
                mean = torch.tensor(m.mean) * (255 if image.dtype == torch.uint8 else 1)
                made += (mean.round() if image.dtype == torch.uint8 else mean).to(image.dtype)[:, None, None]
            made[:, :height, :width] = image
            there = torch.ones(1, height, width, dtype=torch.bool) if known is None else known
            image, known = made, F.pad(there, (0, size[1] - width, 0, size[0] - height))
        first = m.stride // 2
        maps[m.name] = image[:, first :: m.stride, first :: m.stride]
        valid[m.name] = None if known is None else known[:, first :: m.stride, first :: m.stride]
    return Sample(maps, valid)


def starts(length: int, window: int) -> list[int]:
    """Where windows begin that cover a length, at most two thirds of a window apart; the last ends with it."""
    step = max(1, int(window * STRIDE))
    return [min(k * step, length - window) for k in range(math.ceil((length - window) / step) + 1)]


def places(size: tuple[int, int], window: tuple[int, int]) -> list[tuple[int, int]]:
    """The top left corners of windows that cover an image of a size."""
    return list(product(starts(size[0], window[0]), starts(size[1], window[1])))


def window_of(
    sample: Sample, corner: tuple[int, int], window: tuple[int, int], modalities: Sequence[Modality]
) -> Sample:
    """The part of a sample that lies in a window."""

    maps, valid = {}, {}
    for m in modalities:
        rows, columns = (slice(a // m.stride, (a + w) // m.stride) for a, w in zip(corner, window, strict=True))
        known = sample.valid.get(m.name)
        maps[m.name] = sample.maps[m.name][:, rows, columns]
        valid[m.name] = None if known is None else known[:, rows, columns]
    return Sample(maps, valid)


def jittered(batch: Batch, probability: float) -> Batch:
    """The batch with the colours of some of its images changed: brightness, contrast, saturation, in this order."""
    images = batch.maps.get("rgb")
    if not probability or images is None:
        return batch
    draws = batch.rng.uniform("colour jitter", 1 + len(JITTER))
    changed: Float[Tensor, "B C H W"] = images
    for k, (name, strength) in enumerate(JITTER.items(), start=1):
        changed = getattr(augment, name)(changed, 1 + strength * (2 * draws[:, k] - 1))
    return _recoloured(batch, changed, draws[:, 0] < probability)


def distorted(batch: Batch, probability: float | None) -> Batch:
    """The batch with the photometric distortion of SSD (Liu et al., 2016) in the strengths of mmsegmentation.

    Brightness, contrast, saturation and hue are each changed with this probability, contrast as the second or, half of
    the time, as the last; on real numbers, not on bytes.
    """
    images = batch.maps.get("rgb")
    if not probability or images is None:
        return batch
    draws = batch.rng.uniform("photometric distortion", 9)
    is_changed, is_early = draws[:, :4] < probability, draws[:, 4] < 0.5
    brightness, contrast, saturation, hue = draws[:, 5:].unbind(1)
    factor = torch.where(is_changed[:, 1], 0.5 + contrast, 1)
    changed: Float[Tensor, "B C H W"] = (
        images + (is_changed[:, 0] * (2 * brightness - 1) * 32 / 255)[:, None, None, None]
    )
    changed = augment.brightness(changed.clamp(0, 1), torch.where(is_early, factor, 1))
    turn = torch.where(is_changed[:, 3], ((36 * hue).floor() - 18) / 180, 0)  # whole steps of 2 degrees
    changed = augment.hue_and_saturation(changed, turn, torch.where(is_changed[:, 2], 0.5 + saturation, 1))
    changed = augment.brightness(changed, torch.where(is_early, 1, factor))
    return _recoloured(batch, changed, torch.ones_like(is_early))


def _recoloured(batch: Batch, changed: Float[Tensor, "B C H W"], which: Bool[Tensor, " B"]) -> Batch:
    """The batch with other colours in some of its pictures, where there is a picture."""
    where = which[:, None, None, None]
    if "rgb" in batch.valid:
        where = where & batch.valid["rgb"]
    return replace(batch, maps={**batch.maps, "rgb": torch.where(where, changed, batch.maps["rgb"])})
