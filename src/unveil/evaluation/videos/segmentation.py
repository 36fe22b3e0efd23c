"""The objects of a video from those of its first frame: frames are read ahead, and a few of them are remembered."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from ...data.decode import Unreadable
from ...data.label_palette import VOID
from ...data.prefetch import prefetch
from ...data.transforms import resize_nearest
from ...data.video_folders import Video
from .frames import FrameFeatures, working_size
from .measures import boundary_accuracy, region_similarity
from .propagation import Memory, Propagation

T = TypeVar("T")
AHEAD = 4  # frames that are read before they are needed
_UNLIKE = 0.02  # by which the sides of a frame and of its mask may be of other proportions

Read = tuple[Shaped[Tensor, "C H W"] | Unreadable, UInt8[np.ndarray, "h w"] | Unreadable | None]


class UnusableVideo(ValueError):  # noqa: N818, it says what a video is
    """A video in which nothing can be segmented: the message says why."""


@dataclass(frozen=True)
class Segmentation:
    """How videos are read and segmented.

    short_side: pixels of the working size's short side, at most
    soft: a cell's first labels are the shares of its pixels, not the label at its centre
    stretch: each label's map is stretched to [0, 1] in each frame before the highest is taken
    gives_late: an object that comes later is given where it first appears; else it is ignored
    """

    how: Propagation
    short_side: int
    soft: bool = False
    stretch: bool = True
    gives_late: bool = False


@dataclass
class Segmented:
    """What became of a video: J and F of each frame of each object that is measured, and how it was read."""

    name: str
    grid: tuple[int, int] = (0, 0)
    regions: dict[int, list[float]] = field(default_factory=dict)
    boundaries: dict[int, list[float]] = field(default_factory=dict)
    copied: dict[int, list[tuple[float, float]]] = field(default_factory=dict)  # of the first mask, in every frame
    frames: int = 0
    unreadable: list[str] = field(default_factory=list)
    late: int = 0
    feature_seconds: float = 0.0
    propagation_seconds: float = 0.0

    @property
    def objects(self) -> list[int]:
        """Those that are measured in at least one frame."""
        return [number for number, values in self.regions.items() if values]


@dataclass(frozen=True)
class SegmentedFrame:
    """A frame with its predicted object ids, and the true ones where there are some."""

    number: int
    picture: Shaped[Tensor, "C H W"] | None
    ids: UInt8[np.ndarray, "h w"]
    truth: UInt8[np.ndarray, "h w"] | None


def segment(
    video: Video,
    features: FrameFeatures,
    settings: Segmentation,
    result: Segmented,
    also_copies: bool = False,
) -> Generator[SegmentedFrame]:
    """The frames of a video, the first with its own labels; measures are added to `result` as frames go by.

    The first and the last frame are not measured, as in the benchmark. A frame that cannot be read has the prediction
    of the one before. Raises UnusableVideo where the first frame or its mask cannot be read, and for a mask of other
    proportions than its frame.
    """
    jobs: list[Callable[[], Read]] = [
        partial(_read, video, number, features.encoder.channels) for number in range(len(video))
    ]
    with closing(prefetch(jobs, AHEAD)) as frames:
        picture, mask = next(frames)
        first = _Objects.of(picture, mask)
        assert isinstance(picture, Tensor)
        height, width = picture.shape[-2:]
        size = working_size(height, width, settings.short_side, features.encoder.patch)
        state = _State(first, features, settings, size, result)
        result.grid = features.grid(size)
        result.regions |= {int(number): [] for number in first.numbers}
        state.start(picture)
        result.frames = 1
        ids = first.ids(first.mask.shape)
        yield SegmentedFrame(0, picture, ids, first.mask)
        for number, (picture, mask) in enumerate(frames, start=1):
            shown = picture if isinstance(picture, Tensor) else None
            result.unreadable += [str(one) for one in (picture, mask) if isinstance(one, Unreadable)]
            truth = mask if isinstance(mask, np.ndarray) else None
            if shown is None:
                ids = ids if truth is None else _nearest(ids, truth.shape)
            else:
                _check_proportions(shown, truth, f"{video.name}/{video.stem(number)}")
                ids = state.step(shown, truth, tuple(shown.shape[-2:]) if truth is None else truth.shape)
            result.frames += 1
            if truth is not None and number < len(video) - 1:
                state.measure(ids, truth, also_copies)
            yield SegmentedFrame(number, shown, ids, truth)


def _read(video: Video, number: int, channels: int) -> Read:
    return _or_unreadable(partial(video.frame, number, channels)), _or_unreadable(partial(video.mask, number))


def _or_unreadable(read: Callable[[], T]) -> T | Unreadable:
    try:
        return read()
    except Unreadable as error:
        return error


def _check_proportions(picture: Tensor, mask: UInt8[np.ndarray, "h w"] | None, name: str) -> None:
    if mask is None:
        return
    ratios = (picture.shape[-1] / picture.shape[-2], mask.shape[1] / mask.shape[0])
    if abs(ratios[0] / ratios[1] - 1) > _UNLIKE:
        raise UnusableVideo(
            f"the mask of {name} has {mask.shape[1]} x {mask.shape[0]} pixels, its frame {picture.shape[-1]} x"
            f" {picture.shape[-2]}: they are not of one picture"
        )


@dataclass
class _Objects:
    """The objects of a video: their ids, and the mask that names them.

    Where 255 is the only id of the first mask it is the one object, as in DAVIS 2016; else it is void.
    """

    numbers: list[int]
    mask: UInt8[np.ndarray, "h w"]
    is_binary: bool

    @classmethod
    def of(cls, picture: object, mask: object) -> _Objects:
        for what in (picture, mask):
            if isinstance(what, Unreadable):
                raise UnusableVideo(f"its first frame or mask cannot be read: {what}")
        if mask is None:
            raise UnusableVideo("its first frame has no mask")
        assert isinstance(mask, np.ndarray)
        assert isinstance(picture, Tensor)
        _check_proportions(picture, mask, "its first frame")
        numbers = [int(n) for n in np.unique(mask) if 0 < n < VOID]
        is_binary = not numbers and bool((mask == VOID).any())
        if not numbers and not is_binary:
            raise UnusableVideo("the mask of its first frame holds no object")
        return cls([VOID] if is_binary else numbers, mask, is_binary)

    def void(self, mask: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"] | None:
        void = mask == VOID
        return None if self.is_binary or not void.any() else void

    def ids(self, shape: tuple[int, ...]) -> UInt8[np.ndarray, "h w"]:
        """The first mask at a size, without what is void."""
        mask = _nearest(self.mask, shape)
        return mask if self.is_binary else np.where(mask == VOID, np.uint8(0), mask)


def _nearest(ids: UInt8[np.ndarray, "H W"], shape: tuple[int, ...]) -> UInt8[np.ndarray, "h w"]:
    resized: UInt8[np.ndarray, "h w"] = resize_nearest(torch.from_numpy(ids)[None], (shape[0], shape[1]))[0].numpy()
    return resized


class _State:
    """What a video's propagation knows while it goes on."""

    def __init__(
        self,
        objects: _Objects,
        features: FrameFeatures,
        settings: Segmentation,
        size: tuple[int, int],
        result: Segmented,
    ):
        self.objects, self.features, self.settings, self.size, self.result = objects, features, settings, size, result
        self.memory = Memory(features.grid(size), settings.how, features.encoder.device)
        self.ignored: set[int] = set()
        self.given: set[int] = set()  # in the present frame

    def start(self, picture: Shaped[Tensor, "C H W"]) -> None:
        labels = self._labels(self.objects.mask, [0, *self.objects.numbers])
        self.memory.remember(self._read(picture), labels, is_anchor=True)

    def step(
        self, picture: Shaped[Tensor, "C H W"], mask: UInt8[np.ndarray, "h w"] | None, shape: tuple[int, ...]
    ) -> UInt8[np.ndarray, "y x"]:
        """The object ids of the next frame, at a size."""
        own = self._read(picture)
        began = time.perf_counter()
        with torch.inference_mode():
            labels = self.memory.propagate(own)
            labels, has_new = self._with_late(labels, mask)
            self.memory.remember(own, labels, is_anchor=has_new)
            ids = self._ids(labels)
        self.result.propagation_seconds += time.perf_counter() - began
        return _nearest(ids, shape)

    def measure(self, ids: UInt8[np.ndarray, "h w"], mask: UInt8[np.ndarray, "h w"], also_copies: bool) -> None:
        void = self.objects.void(mask)
        for number in {*self.objects.numbers} - self.given:
            truth = mask == number
            self.result.regions[number].append(region_similarity(ids == number, truth, void))
            self.result.boundaries.setdefault(number, []).append(boundary_accuracy(ids == number, truth, void))
            if also_copies:
                copy = self.objects.ids(mask.shape) == number
                both = region_similarity(copy, truth, void), boundary_accuracy(copy, truth, void)
                self.result.copied.setdefault(number, []).append(both)

    def _read(self, picture: Shaped[Tensor, "C H W"]) -> Float[Tensor, "h w D"]:
        began = time.perf_counter()
        own = self.features(picture, self.size)
        if not own.isfinite().all():
            raise ValueError("the encoder gives features that are not finite; its weights are broken or diverged")
        self.result.feature_seconds += time.perf_counter() - began
        return own

    def _labels(self, mask: UInt8[np.ndarray, "H W"], numbers: Sequence[int]) -> Float[Tensor, "h w K"]:
        """How much of each cell is of each label: of the pixel at its centre, or the share of its pixels."""
        grid = self.features.grid(self.size)
        own = torch.tensor(np.stack([mask == number for number in numbers]))
        if not self.objects.is_binary and 0 in numbers:
            own[0] |= torch.from_numpy(mask == VOID)
        if self.settings.soft:
            cells = F.adaptive_avg_pool2d(own[None].float(), grid)[0]
        else:
            cells = resize_nearest(own, grid).float()
        return cells.permute(1, 2, 0).to(self.features.encoder.device)

    def _with_late(
        self, labels: Float[Tensor, "h w K"], mask: UInt8[np.ndarray, "H W"] | None
    ) -> tuple[Float[Tensor, "h w L"], bool]:
        """The labels with those of objects that appear for the first time, where these are given."""
        self.given = set()
        if mask is None or self.objects.is_binary:
            return labels, False
        new = [int(n) for n in np.unique(mask) if 0 < n < VOID and n not in {*self.objects.numbers, *self.ignored}]
        self.result.late += len(new)
        if not new or not self.settings.gives_late:
            self.ignored |= set(new)
            return labels, False
        given = self._labels(mask, new)
        rest = (1 - given.sum(2, keepdim=True)).clamp_min(0)
        self.objects.numbers += new
        self.given = set(new)
        self.memory.add_labels(len(new))
        self.result.regions |= {number: [] for number in new}
        return torch.cat([labels * rest, given], dim=2), True

    def _ids(self, labels: Float[Tensor, "h w K"]) -> UInt8[np.ndarray, "H W"]:
        """The object of the highest label at each pixel of the working size."""
        cells = labels.permute(2, 0, 1).contiguous()  # label by label: else each step below reads across memory
        maps = F.interpolate(cells[None], self.size, mode="bilinear", align_corners=False)[0]
        if self.settings.stretch:
            low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
            maps.sub_(torch.where(high > 0, low, 0)).div_(torch.where(high > low, high - low, 1))
        best, ids = maps[0], torch.zeros(self.size, dtype=torch.uint8, device=maps.device)
        for number, own in zip(self.objects.numbers, maps[1:], strict=True):  # argmax takes ten times as long
            ids.masked_fill_(own > best, number)
            best = torch.maximum(best, own)
        return ids.cpu().numpy()
