"""Metrics of attention maps and of features.

Shapes: B images, N tokens, H heads, D and E widths.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...modeling.masking import entropy


def evenness(attention: Float[Tensor, "B N"]) -> float:
    """Entropy over its maximum, log N, the mean over images: 1 for uniform attention, 0 for all of it on one token."""
    return float(entropy(attention).mean() / torch.tensor(float(attention.shape[1])).log())


def rank_correlation(first: Float[Tensor, "B N"], second: Float[Tensor, "B N"]) -> float:
    """Spearman's correlation of two maps, the mean over images; ties have the mean of their ranks."""
    a, b = (_ranks(m) - (m.shape[1] + 1) / 2 for m in (first, second))
    spread = (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()
    return float(((a * b).sum(dim=1) / spread.clamp_min(1e-12)).mean())


def _ranks(attention: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    values = attention.contiguous()
    ordered = values.sort(dim=1).values
    below, upto = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + upto + 1) / 2


def top_tokens(attention: Float[Tensor, "B N"], share: float) -> Bool[Tensor, "B N"]:
    """The share of all tokens, at least one, with the most attention."""
    count = max(1, int(share * attention.shape[1] + 1e-6))
    return torch.zeros_like(attention, dtype=torch.bool).scatter(1, attention.topk(count, dim=1).indices, True)


def top_overlap(first: Float[Tensor, "B N"], second: Float[Tensor, "B N"], share: float) -> float:
    """The share of the most attended tokens of one map that are among those of the other; `share` by chance."""
    a, b = top_tokens(first, share), top_tokens(second, share)
    return float(((a & b).sum(dim=1) / a.sum(dim=1)).mean())


def attention_share(attention: Float[Tensor, "B N"], on: Tensor) -> float:
    """The share of the attention on some tokens, given as booleans or as weights from 0 to 1, the mean over images."""
    total = attention.sum(dim=1).clamp_min(1e-12)
    return float(((attention * on).sum(dim=1) / total).mean())


def linear_cka(x: Float[Tensor, "B D"], y: Float[Tensor, "B E"]) -> float:
    """Linear centred kernel alignment of features of the same images, from 0 to 1 (Kornblith et al., 2019, arXiv
    1905.00414): |Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms. It does not change with rotation or scale.
    """
    x, y = (m.double() - m.double().mean(dim=0) for m in (x, y))
    norms = (x.T @ x).norm() * (y.T @ y).norm()
    return float((y.T @ x).square().sum() / norms.clamp_min(1e-30))


def attention_distance(attention: Float[Tensor, "B H N N"], grid: tuple[int, int], patch: int) -> Float[Tensor, " H"]:
    """Mean attention distance of each head in pixels: from a patch to the patches, weighted by attention (ViT, arXiv
    2010.11929, section 4.5). Attention to prefix tokens is left out."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    cells = torch.stack([rows.flatten(), columns.flatten()], dim=1).to(attention)
    distance = torch.cdist(cells, cells) * patch
    weight = attention / attention.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return (weight * distance).sum(dim=-1).mean(dim=(0, 2))
