"""Features of frames on a grid: of an encoder's last block, or the pixels themselves; of patches or parts of them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor

from ...data.transforms import resize
from ...modeling.image_encoder import FeatureExtractor
from ...modeling.layers import ResizePositions
from ...modeling.resized_positions import position_choices, positions_resized
from ...modeling.types import to_float
from ..features import RawPixels
from ..types import Context, FeatureEncoder

LARGE = 256  # pixels of a short side from which on the longer one is cut to a multiple of 64, as DINO's is
_MULTIPLE = 64


class RawPatches:
    """The pixels of each patch as its feature, normalised per channel."""

    resize_positions: ResizePositions = "interpolate"  # of no meaning: pixels have no positions

    def __init__(self, pixels: RawPixels):
        self.modality, self.patch, self.channels = pixels.modality, pixels.patch, pixels.channels
        self.device = pixels.device

    def patch_features(self, images: Float[Tensor, "B C H W"], layer: int = -1) -> Float[Tensor, "B D h w"]:
        mean, std = (images.new_tensor(s)[:, None, None] for s in (self.modality.mean, self.modality.std))
        cells: Tensor = F.unfold((images - mean) / std, self.patch, stride=self.patch)
        return rearrange(cells, "b d (h w) -> b d h w", h=images.shape[-2] // self.patch)


Patches = FeatureExtractor | RawPatches


def patches_of(subject: FeatureEncoder) -> Patches | None:
    """A subject as what gives features of patches; None where it gives none.

    Raises ValueError for an encoder that reads no pictures.
    """
    if isinstance(subject, RawPixels):
        return RawPatches(subject) if subject.patch else None
    if not isinstance(subject, FeatureExtractor):
        return None
    first = subject.modalities[0]
    if first.name != "rgb" or first.channels not in (1, 3):
        raise ValueError(f"videos are pictures, and this encoder reads {first.name} of {first.channels} channels first")
    return subject


def ways_of(encoder: Patches) -> tuple[ResizePositions, ...]:
    """How it could give frames of another size their positions, its own way first; none where that means nothing."""
    choices = position_choices(encoder) if isinstance(encoder, FeatureExtractor) else ()
    return tuple(sorted(choices, key=lambda way: way != encoder.resize_positions))


def resizing(encoder: Patches, way: ResizePositions) -> AbstractContextManager[None]:
    """Within, frames get their positions in this way, where the encoder has a choice."""
    if isinstance(encoder, FeatureExtractor) and position_choices(encoder):
        return positions_resized(encoder, way)
    return nullcontext()


@dataclass(frozen=True)
class FrameFeatures:
    """What reads the features of frames.

    `stride` is the side of a cell in pixels, which divides the patch. At less than a patch the image is moved by each
    multiple of the stride and encoded anew, and the grids are interleaved: every pass has as many tokens as one image,
    at the distances that the encoder was trained on, where overlapping patches would have so many times more.
    """

    encoder: Patches
    stride: int
    context: Context

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The cells of a frame at this working size."""
        return size[0] // self.stride, size[1] // self.stride

    def __call__(self, frame: Shaped[Tensor, "C H W"], size: tuple[int, int]) -> Float[Tensor, "h w D"]:
        """Features of length 1 of a frame, float32; it is resized to the working size, bicubic and antialiased."""
        device, steps = self.encoder.device, self.encoder.patch // self.stride
        images = to_float(resize(frame, size)).to(device)[None]
        if steps > 1:
            before = (self.encoder.patch - self.stride) // 2  # so that a cell lies in the middle of its patch
            sides = (before, self.encoder.patch - self.stride - before)
            padded = F.pad(images, (*sides, *sides), mode="replicate")
            starts = [step * self.stride for step in range(steps)]
            images = torch.cat([padded[..., y : y + size[0], x : x + size[1]] for y in starts for x in starts])
        with torch.inference_mode(), self.context.autocast(device):
            features = self.encoder.patch_features(images).float()
        grids = rearrange(features, "(a b) d h w -> (h a) (w b) d", a=steps)
        return F.normalize(grids, dim=-1)


def working_size(height: int, width: int, short_side: int, patch: int) -> tuple[int, int]:
    """The size at which a frame is read: its short side at most `short_side`, both multiples of the patch.

    From 256 pixels on the longer side is cut to a multiple of 64 where the patch divides that, as in DINO's protocol:
    480 x 854 is read at 480 x 832. No frame is enlarged, but to one patch.
    """
    short, longest = min(short_side, height, width), max(height, width)
    short = max(patch, round(short / patch) * patch if short < short_side else short // patch * patch)
    multiple = _MULTIPLE if short >= LARGE and _MULTIPLE % patch == 0 else patch
    long = max(short, int(longest * short / min(height, width) + 1e-6) // multiple * multiple)
    return (short, long) if height <= width else (long, short)
