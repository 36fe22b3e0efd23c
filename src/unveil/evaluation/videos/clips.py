"""Small clips of segmented videos: frames with the predicted masks over them, beside those with the true ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image, features
from torch import Tensor

from ...data.label_palette import COLOURS
from ...data.transforms import resize_nearest
from ...modeling.types import to_float
from ...reporting.clips import FOLDER, MOST_CLIPS, file_name
from ...runs.atomic import make_folder, write_bytes
from .segmentation import SegmentedFrame

HEIGHT, MOST_FRAMES = 128, 40  # of a clip: pixels, and frames, evenly spaced in a longer video
_MILLISECONDS, _QUALITY = 120, 60
_MASKED = 0.55  # of the colour of an object over the picture


class Clips:
    """Writes a clip for each of the first videos of a set to a folder; without one it does nothing.

    Of a video as many frames are kept as a clip has: of a longer one every second, then every fourth.
    """

    def __init__(self, folder: Path | None):
        self.folder, self.written = folder, 0
        self.frames: list[Image.Image] = []
        self.every = 1

    def add(self, frame: SegmentedFrame) -> None:
        """The next frame of a video."""
        if self.folder is None or self.written >= MOST_CLIPS or frame.number % self.every or frame.picture is None:
            return
        self.frames.append(Image.fromarray(_beside(frame)))
        if len(self.frames) > MOST_FRAMES:
            self.frames, self.every = self.frames[::2], 2 * self.every

    def finish(self, name: str) -> None:
        """Write the clip of a video whose frames were added."""
        frames, self.frames, self.every = self.frames, [], 1
        if self.folder is None or len(frames) < 2:
            return
        size = frames[0].size
        first, *others = (frame if frame.size == size else frame.resize(size) for frame in frames)
        kind = "WEBP" if features.check("webp") else "PNG"
        options = {"quality": _QUALITY, "method": 4} if kind == "WEBP" else {}
        content = io.BytesIO()
        first.save(content, kind, save_all=True, append_images=others, duration=_MILLISECONDS, loop=0, **options)
        make_folder(self.folder / FOLDER)
        write_bytes(self.folder / FOLDER / file_name(name), content.getvalue())
        self.written += 1


def _beside(frame: SegmentedFrame) -> UInt8[np.ndarray, "H W 3"]:
    """The picture with the predicted masks and, right of it, with the true ones where there are some."""
    assert frame.picture is not None
    height, width = frame.picture.shape[-2:]
    size = (HEIGHT, max(1, round(width * HEIGHT / height))) if height > HEIGHT else (height, width)
    pixels = _picture(frame.picture, size)
    truth = frame.truth if frame.truth is not None else np.zeros((1, 1), np.uint8)
    return np.concatenate([_over(pixels, frame.ids, size), _over(pixels, truth, size)], axis=1)


def _picture(picture: Shaped[Tensor, "C H W"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    small = torch.nn.functional.interpolate(to_float(picture)[None], size, mode="bilinear", antialias=True)[0]
    colour = small if len(small) == 3 else small[:1].expand(3, -1, -1)
    pixels: UInt8[np.ndarray, "h w 3"] = (colour.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return pixels


def _over(
    pixels: UInt8[np.ndarray, "h w 3"], ids: UInt8[np.ndarray, "H W"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    small = resize_nearest(torch.from_numpy(ids)[None], size)[0].numpy()
    mixed = (1 - _MASKED) * pixels + _MASKED * COLOURS[small]
    return np.where(small[..., None] > 0, mixed.round().astype(np.uint8), pixels)
