"""Images as patches, and back: what encoder, targets and pictures agree on.

Shapes: B batch, C channels, H height, W width, N patches, T numbers of a patch.
"""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def patchify(image: Float[Tensor, "B C H W"], patch: int) -> Float[Tensor, "B N T"]:
    """Patches in raster order, each laid out row, column, channel (MAE's order)."""
    return rearrange(image, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(patches: Float[Tensor, "B N T"], patch: int, grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """The inverse of `patchify`."""
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], p=patch, q=patch)
