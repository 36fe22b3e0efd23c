"""Samples of one or several maps, and their views: one frame, one crop and one flip for all maps of a sample.

A random view is a pure function of the sample and its key. Missing maps and unknown pixels are marked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import interpolate

from ..modeling.rng import SampleRng
from ..modeling.types import Modality
from .decode import Unreadable
from .encoded import EncodedPicture, reduction
from .read_map import Map

Resize = Callable[[Tensor, tuple[int, int]], Tensor]
MapView = Callable[[Tensor, Modality, Resize], Tensor]  # what a map becomes, resized in this way
Keys = Int[Tensor, " B"]  # of samples in a batch
Flip = Literal["none", "h", "hv", "d4"]
Oversize = Literal["redraw", "clip"]
_ATTEMPTS = 10  # boxes drawn before the centre is taken


@dataclass(frozen=True)
class Sample:
    """The maps of one sample, C H W by modality, and their valid pixels, 1 H W; None: all.

    A map that is not in `valid` is a picture: bytes, or floats in [0, 1], whole. A modality that the sample lacks is
    in neither.
    """

    maps: Mapping[str, Tensor]
    valid: Mapping[str, Tensor | None] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first map: the frame of the sample."""
        first = next(iter(self.maps.values()))
        return first.shape[-2], first.shape[-1]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.maps.values(), *self.valid.values()) if t is not None)

    held_nbytes = nbytes  # while it is viewed


@dataclass(frozen=True)
class View:
    """How random views are drawn: a crop of random area and shape, resized to `image_size` (height, width), flipped.

    `crop_scale` bounds the share of the image's area, `crop_ratio` the stretch: width over height of the box, divided
    by that of `image_size` (Szegedy et al., 2015; the defaults are MAE's, appendix A.1). `flip` is "none"; "h":
    mirrored half of the time; "hv": also upside down half of the time; "d4": also turned by a quarter half of the
    time, so that all eight poses are equally likely. A box that exceeds the image is drawn anew, or its sides are cut
    to the image's with an `oversize` of "clip" (BYOL, and the public code of MAE's linear probe).
    """

    image_size: tuple[int, int]
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: Flip = "h"
    oversize: Oversize = "redraw"

    def __post_init__(self) -> None:
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image size {self.image_size} is not (height, width) in pixels, such as (224, 224)")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop scale {self.crop_scale} is not (low, high) with 0 < low <= high <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop ratio {self.crop_ratio} is not (low, high) with 0 < low <= high")
        if self.flip == "turns":  # of release 0.1, in recipe files of that time
            object.__setattr__(self, "flip", "d4")
        if self.flip not in get_args(Flip):
            raise ValueError(f"flip {self.flip!r} is not one of: {', '.join(get_args(Flip))}")

    def __call__(
        self, samples: Sequence[Sample | EncodedPicture], modalities: Sequence[Modality], keys: Keys
    ) -> list[Sample]:
        """A random view of each sample, drawn by its key."""
        cuts = draw_cuts([sample.size for sample in samples], self, keys)
        return [view_of(s, cut, self.image_size, modalities) for s, cut in zip(samples, cuts, strict=True)]


@dataclass(frozen=True)
class CenterView:
    """The middle of images, as `center_view` cuts it."""

    image_size: tuple[int, int]

    def __call__(self, samples: Sequence[Sample], modalities: Sequence[Modality], keys: Keys) -> list[Sample]:
        """The centre view of each sample; the keys have no influence."""
        return [_viewed(s, modalities, lambda image, _, way: center_view(image, self.image_size, way)) for s in samples]


@dataclass(frozen=True)
class Cut:
    """One drawn view: the box in the image, then a quarter turn, a mirror, upside down."""

    top: int
    left: int
    height: int
    width: int
    turned: bool
    mirrored: bool
    upside_down: bool

    def of(
        self, image: Shaped[Tensor, "C H W"], size: tuple[int, int], way: Resize | None = None
    ) -> Shaped[Tensor, "C h w"]:
        """The view of this image, `size` (height, width) large, by `resize` or another way."""
        view = image[:, self.top : self.top + self.height, self.left : self.left + self.width]
        view = (way or resize)(view.transpose(1, 2) if self.turned else view, size)
        dims = [axis for axis, flipped in ((1, self.upside_down), (2, self.mirrored)) if flipped]
        return view.flip(dims) if dims else view

    def reduced(self, by: int, size: tuple[int, int]) -> Cut:
        """The same box, to the pixel, in the image of this size (height, width) whose sides are `by` times smaller."""
        height, width = (
            min(max(1, round(side / by)), full) for side, full in zip((self.height, self.width), size, strict=True)
        )
        top, left = min(round(self.top / by), size[0] - height), min(round(self.left / by), size[1] - width)
        return replace(self, top=top, left=left, height=height, width=width)


def draw_cuts(sizes: Sequence[tuple[int, int]], view: View, keys: Keys) -> list[Cut]:
    """The views of a batch of images of these sizes (height, width), all numbers drawn at once."""
    rng = SampleRng(keys)
    flips = rng.uniform("view flips", 3).numpy() < 0.5
    mirrored = flips[:, 0] & (view.flip != "none")
    upside_down = flips[:, 1] & (view.flip in ("hv", "d4"))
    turned = flips[:, 2] & (view.flip == "d4")

    height, width = np.array(sizes, dtype=int).reshape(-1, 2).T
    # A transposition, with the two flips, makes the eight poses. It comes before the crop, so its box has the shape
    # that the view will have.
    height, width = np.where(turned, (width, height), (height, width))
    draws = rng.uniform("view crop", 2 * _ATTEMPTS + 2).numpy().astype(np.float64)
    area, ratio = draws[:, 2:].reshape(-1, _ATTEMPTS, 2).transpose(2, 0, 1)  # each B A
    area = (view.crop_scale[0] + area * (view.crop_scale[1] - view.crop_scale[0])) * (height * width)[:, None]
    ratios = np.array(view.crop_ratio) * view.image_size[1] / view.image_size[0]
    low, high = np.log(ratios)
    ratio = np.exp(low + ratio * (high - low))
    tall, wide = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    if view.oversize == "clip":
        tall, wide = tall.clip(1, height[:, None]), wide.clip(1, width[:, None])
    fits = (tall >= 1) & (wide >= 1) & (tall <= height[:, None]) & (wide <= width[:, None])
    first = fits.argmax(1)
    rows = np.arange(len(sizes))
    # Where no box fits, the largest of an allowed shape, in the middle.
    limit = np.clip(width / height, *ratios)
    tall = np.where(fits.any(1), tall[rows, first], np.minimum(height, np.rint(width / limit)).clip(1))
    wide = np.where(fits.any(1), wide[rows, first], np.minimum(width, np.rint(height * limit)).clip(1))
    place = np.where(fits.any(1)[:, None], draws[:, :2], 0.5)
    top = np.floor(place[:, 0] * (height - tall + 1))
    left = np.floor(place[:, 1] * (width - wide + 1))

    boxes = np.stack([top, left, tall, wide], 1).astype(int)
    boxes = np.where(turned[:, None], boxes[:, [1, 0, 3, 2]], boxes)  # back in the frame of the image
    poses = np.stack([turned, mirrored, upside_down], 1)
    return [Cut(*box, *pose) for box, pose in zip(boxes.tolist(), poses.tolist(), strict=True)]


def center_view(
    image: Shaped[Tensor, "C H W"], image_size: tuple[int, int], way: Resize | None = None
) -> Shaped[Tensor, "C h w"]:
    """The middle of an image for evaluation: resized until `image_size` fits, then cropped at the centre.

    An image whose short side exceeds 96 px and that is large enough is resized to 256/224 of the size first, so that
    a margin is cut all round (the usual protocol on ImageNet); from smaller ones no margin is cut.
    """
    size = (image.shape[-2], image.shape[-1])
    scale = _center_scale(size, image_size)
    height, width = (max(target, round(side * scale)) for target, side in zip(image_size, size, strict=True))
    image = (way or resize)(image, (height, width))
    top, left = (height - image_size[0]) // 2, (width - image_size[1]) // 2
    return image[:, top : top + image_size[0], left : left + image_size[1]]


def center_cut(size: tuple[int, int], image_size: tuple[int, int]) -> Cut:
    """The same middle as a box in an image of this size (height, width), to the pixel."""
    scale = _center_scale(size, image_size)
    height, width = (min(side, max(1, round(t / scale))) for t, side in zip(image_size, size, strict=True))
    return Cut((size[0] - height) // 2, (size[1] - width) // 2, height, width, False, False, False)


def _center_scale(size: tuple[int, int], image_size: tuple[int, int]) -> float:
    scale = max(target / side for target, side in zip(image_size, size, strict=True))
    return scale * 256 / 224 if min(size) > 96 and scale * 256 / 224 <= 1 else scale


def view_of(sample: Sample | EncodedPicture, cut: Cut, size: tuple[int, int], modalities: Sequence[Modality]) -> Sample:
    """One view of every map: the same box and flips, each map at `size` over its own stride."""
    sample, cut = in_decoded(sample, cut, size)

    def view(image: Tensor, modality: Modality, way: Resize) -> Tensor:
        return cut.of(image, (size[0] // modality.stride, size[1] // modality.stride), way)

    return _viewed(sample, modalities, view)


def in_decoded(sample: Sample | EncodedPicture, cut: Cut, size: tuple[int, int]) -> tuple[Sample, Cut]:
    """The decoded sample, reduced where a view of this size needs no more, and the cut in it."""
    if isinstance(sample, Sample):
        return sample, cut
    by = reduction((cut.height, cut.width), size[::-1] if cut.turned else size)
    pixels = sample.pixels(by)
    if by > 1 and tuple(pixels.shape[-2:]) != sample.size:
        cut = cut.reduced(by, (pixels.shape[-2], pixels.shape[-1]))
    return Sample({sample.modality: pixels}), cut


def as_sample(read: Mapping[str, Map], modalities: Sequence[Modality], name: str) -> Sample:
    """Maps as they were read, as one sample in the frame of the first; raises `Unreadable` where they do not fit."""
    maps = {modality: m.values for modality, m in read.items()}
    valid = {modality: m.valid for modality, m in read.items() if not m.is_picture}
    return in_one_frame(Sample(maps, valid), modalities, name)


def in_one_frame(sample: Sample, modalities: Sequence[Modality], name: str) -> Sample:
    """A sample whose maps all have the size of the first. Raises `Unreadable` for one of another shape."""
    return at_size(sample, sample.size, modalities, name)


def at_size(sample: Sample, size: tuple[int, int], modalities: Sequence[Modality], name: str) -> Sample:
    """A sample whose maps all have this size (height, width). Raises `Unreadable` for one of another shape.

    Width over height may differ from that of the first by what rounding a side to pixels explains.
    """
    height, width = sample.size
    for m in modalities:
        own = sample.maps[m.name].shape[-2:] if m.name in sample.maps else sample.size
        if abs(own[0] * width - own[1] * height) > max(*own, height, width):
            raise Unreadable(
                name,
                f"{m.name} has {own[1]} x {own[0]} pixels and {next(iter(sample.maps))} {width} x {height}: another"
                " shape, so their pixels do not correspond",
            )
    others = [m for m in modalities if m.name in sample.maps and tuple(sample.maps[m.name].shape[-2:]) != size]
    resized = _viewed(sample, others, lambda image, _, way: way(image, size))
    return Sample({**sample.maps, **resized.maps}, {**sample.valid, **resized.valid})


def _viewed(sample: Sample, modalities: Sequence[Modality], view: MapView) -> Sample:
    """A view of each map that the sample has: ids by the nearest pixel, measured maps by their known pixels alone."""
    maps: dict[str, Tensor] = {}
    valid: dict[str, Tensor | None] = {}
    for m in modalities:
        name, image, known = m.name, sample.maps.get(m.name), sample.valid.get(m.name)
        if image is None:
            continue
        if name not in sample.valid:
            maps[name] = view(image, m, resize)
        elif m.kind == "categorical":
            maps[name] = view(image, m, resize_nearest)
            valid[name] = None if known is None else view(known, m, resize_nearest)
        else:
            weight = torch.ones_like(image[:1]) if known is None else known.to(image.dtype)
            made = view(torch.cat([image, weight]), m, resize_known)
            maps[name], valid[name] = made[:-1], None if known is None else made[-1:] > 0
    return Sample(maps, valid)


def resize(image: Shaped[Tensor, "C H W"], size: tuple[int, int]) -> Shaped[Tensor, "C h w"]:
    """The image at `size` (height, width): antialiased bicubic, in bytes for uint8, else in float.

    Floats stay in [0, 1], or, where they exceed that (such as depth in metres), between their least and greatest.
    """
    if tuple(image.shape[-2:]) == size:
        return image
    resized = interpolate(image[None], size, mode="bicubic", antialias=True)[0]
    if image.dtype == torch.uint8:
        return resized
    low, high = map(float, image.aminmax())
    return resized.clamp(0, 1) if low >= 0 and high <= 1 else resized.clamp(low, high)


def resize_nearest(image: Shaped[Tensor, "C H W"], size: tuple[int, int]) -> Shaped[Tensor, "C h w"]:
    """The image at `size`, each pixel that of the old one in whose cell its centre lies: class ids stay ids."""
    if tuple(image.shape[-2:]) == size:
        return image
    sides = zip(size, image.shape[-2:], strict=True)
    rows, columns = ((2 * torch.arange(new) + 1) * old // (2 * new) for new, old in sides)
    return image[:, rows][:, :, columns]


def resize_known(image: Float[Tensor, "C H W"], size: tuple[int, int]) -> Float[Tensor, "C h w"]:
    """Values with what is known of them, 1 or 0, as the last channel, at `size`: means over known pixels alone.

    Weights are those of an antialiased triangle, none below 0, so that no mean lies outside the values. A new pixel
    is known where at least half of its weight is; where it is not, its values are 0.
    """
    if tuple(image.shape[-2:]) == size:
        return torch.cat([image[:-1] * image[-1:], image[-1:]])
    known = image[-1:]
    weighed = torch.cat([image[:-1] * known, known])[None]
    summed = interpolate(weighed, size, mode="bilinear", antialias=True)[0]
    share = summed[-1:]
    is_known = (share >= 0.5 - 1e-6).to(image.dtype)
    return torch.cat([summed[:-1] / share.clamp_min(1e-6) * is_known, is_known])
