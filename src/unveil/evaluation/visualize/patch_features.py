"""What the patches of an image are to the encoder: features as colours, likeness of patches, attention of all heads.

Shapes: B images, N patches, D width, L blocks, K heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from ...modeling.encoder import Encoder
from ...modeling.types import Batch, FeatureSpec
from ...reporting.pictures import ATTENTION_SPAN, PatchImage, Picture, colours

_CODES = 16  # numbers of a patch that are stored, and compared in the page
_CELL, _GAP = 64, 2  # pixels of an attention map on the sheet of all heads


@torch.no_grad()
def patch_images(
    encoder: Encoder, batch: Batch, others: Batch, modality: str, names: Sequence[str], originals: Sequence[Picture]
) -> list[PatchImage]:
    """The pictures of each image of a batch, from features of whole images; the encoder is in eval mode.

    From features is subtracted what `others` have at the same place on average: the place is most of what differs
    between patches, and would be all that the first principal components show.
    """
    grid = encoder.embed(batch[:1]).layout.grid
    patches = _features(encoder, batch, modality) - _features(encoder, others, modality).mean(dim=0)
    painted, codes = principal_colours(patches), compressed(patches)
    heads = attention_by_head(encoder, batch, modality).cpu().numpy()
    return [
        PatchImage(
            name, original, _enlarged(paint.reshape(*grid, 3), original.shape), head_sheet(maps, grid), code, grid
        )
        for name, original, paint, code, maps in zip(names, originals, painted, codes, heads, strict=True)
    ]


def _features(encoder: Encoder, batch: Batch, modality: str) -> Float[Tensor, "B N D"]:
    tokens = encoder.embed(batch)
    features = encoder.observe(tokens, FeatureSpec(attention=None)).features
    assert features is not None
    return features[:, tokens.layout.spans[modality]].float().cpu()


def principal_colours(patches: Float[Tensor, "B N D"]) -> UInt8[np.ndarray, "B N 3"]:
    """The first three principal components of all patches together as red, green and blue, 2nd to 98th percentile."""
    flat = patches.flatten(0, 1)
    centred = flat - flat.mean(dim=0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:3]
    values = F.pad(centred @ directions.T, (0, 3 - len(directions))).numpy()
    low, high = np.percentile(values, (2, 98), axis=0)
    unit = ((values - low) / np.maximum(high - low, 1e-9)).clip(0, 1)
    painted: np.ndarray = (unit * 255 + 0.5).astype(np.uint8).reshape(*patches.shape[:2], 3)
    return painted


def compressed(patches: Float[Tensor, "B N D"]) -> Int8[np.ndarray, "B N M"]:
    """Patches in their own 16 principal directions, of unit length times 127: products are about their cosines."""
    flat = patches.flatten(0, 1)
    centred = flat - flat.mean(dim=0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:_CODES]
    codes = (F.normalize(centred @ directions.T, dim=1) * 127).round().to(torch.int8)
    stored: np.ndarray = codes.unflatten(0, patches.shape[:2]).numpy()
    return stored


@torch.no_grad()
def attention_by_head(encoder: Encoder, batch: Batch, modality: str) -> Float[Tensor, "B L K N"]:
    """The class token's attention in each block and head to the patches of a modality."""
    tokens = encoder.embed(batch)
    span = tokens.layout.spans[modality]
    blocks = []
    for layer in range(encoder.depth):
        attention = encoder.observe(tokens, FeatureSpec(layer=layer, features=0)).attention
        assert attention is not None
        blocks.append(attention[:, :, span].float())
    return torch.stack(blocks, dim=1)


def head_sheet(maps: Float[np.ndarray, "L K N"], grid: tuple[int, int]) -> Picture:
    """One picture of all maps, a row for each block and a column for each head, on the scale of `attention_overlay`."""
    layers, heads = maps.shape[:2]
    size = _CELL + _GAP
    sheet = np.full((layers * size - _GAP, heads * size - _GAP, 3), 128, np.uint8)
    for row in range(layers):
        for column in range(heads):
            one = maps[row, column].reshape(grid)
            doublings = np.log2(np.maximum(one / max(float(one.mean()), 1e-12), 1e-6))
            cell = _enlarged(colours(doublings / (2 * ATTENTION_SPAN) + 0.5), (_CELL, _CELL))
            sheet[row * size : row * size + _CELL, column * size : column * size + _CELL] = cell
    return sheet


def _enlarged(cells: UInt8[np.ndarray, "h w 3"], shape: Sequence[int]) -> Picture:
    """Each cell as a block of pixels, in a picture of a given height and width."""
    down, across = (np.arange(shape[i]) * cells.shape[i] // shape[i] for i in (0, 1))
    picture: Picture = cells[down[:, None], across[None]]
    return picture
