"""Pictures of one's own as an encoder reads them: a path, a Pillow image, an array or a tensor to C H W in [0, 1]."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from ..modeling.types import RGB, Modality, to_float
from ..runs.console import user_path
from .decode import Unreadable, decode, pixels_of, to_channels
from .picture_arrays import in_range
from .transforms import center_view

Picture = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class ImageTransform:
    """A picture to C H W float32 in [0, 1], as `unveil embed` and `unveil evaluate` read files.

    It is resized, bicubic and antialiased, until `image_size` (height, width) fits, and cropped at the centre; of one
    whose short side exceeds 96 pixels a margin is cut all round (256/224). Grey becomes three channels and colour one
    where the encoder reads so many; alpha is dropped. The encoder normalises its input itself.

    Pictures are paths of files, Pillow images, arrays (H W or H W C) or tensors (C H W), of bytes, 16 bits or floats in
    [0, 1]. Raises `Unreadable`, a ValueError, for files that are damaged and numbers without a known range, and
    TypeError for anything else.
    """

    modality: Modality
    image_size: tuple[int, int]

    def __call__(self, picture: Picture) -> Float[Tensor, "C H W"]:
        pixels = to_channels(pixels_of_picture(picture, self.modality), self.modality.channels, _name(picture))
        return to_float(center_view(pixels, self.image_size))

    def batch(self, pictures: Sequence[Picture]) -> Float[Tensor, "B C H W"]:
        """Several pictures, of any sizes, as one batch."""
        return torch.stack([self(picture) for picture in pictures])


def pixels_of_picture(picture: Picture, modality: Modality) -> Shaped[Tensor, "C H W"]:
    """The pixels of a picture as they are: bytes, or floats in [0, 1]; what `ImageTransform` raises is raised."""
    name = _name(picture)
    if isinstance(picture, (str, os.PathLike)):
        if modality.name != RGB.name:
            raise ValueError(f"this encoder reads {modality.name}: give arrays in its unit, or use `unveil embed`")
        return decode(user_path(os.fspath(picture)).read_bytes(), name)
    if isinstance(picture, Image.Image):
        return pixels_of(picture, name)
    if isinstance(picture, np.ndarray):
        own = np.ascontiguousarray(picture[..., None] if picture.ndim == 2 else picture)
        pixels = torch.from_numpy(own if own.flags.writeable else own.copy())  # those of Pillow may not be written
        pixels = pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels
    elif isinstance(picture, Tensor):
        pixels = picture.detach().cpu()
    else:
        raise TypeError(f"a picture is a path, a Pillow image, an array or a tensor; got a {type(picture).__name__}")
    if pixels.ndim != 3 or not pixels.numel():
        raise Unreadable(name, f"has the shape {tuple(picture.shape)}; H W or H W C of an array, C H W of a tensor")
    if modality.name != RGB.name:
        return pixels.float()
    pixels = pixels[:3] if (len(pixels), modality.channels) == (4, 3) else pixels
    try:
        return torch.from_numpy(in_range(pixels.numpy()))
    except ValueError as error:
        raise Unreadable(name, str(error)) from error


def _name(picture: Picture) -> str:
    return os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else f"the {type(picture).__name__}"
