"""Masking: score every token, sort once, keep the lowest visible, ask for some of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from einops import reduce, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from ..types import Batch, Layout, Mask, Observations, Queries, Tokens


class TokenScore(Protocol):
    """The order in which tokens are hidden: high = first."""

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]: ...


@dataclass(frozen=True)
class Uniform:
    """Every token is equally likely to be hidden (MAE, arXiv 2111.06377, section 3)."""

    purpose: str = "mask"

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        return batch.rng.uniform(self.purpose, tokens.ids.shape[1])


def as_units(score: Float[Tensor, "B N"], layout: Layout, side: int) -> Float[Tensor, "B N"]:
    """One score for each square of `side` x `side` tokens, so that it is hidden whole (SimMIM's units).

    It is the rank of the square's mean score: two squares of one mean still come one after the other.
    """
    rows, columns = layout.grid
    shape = {"h": rows // side, "w": columns // side}
    units = reduce(score, "b (m h s w t) -> b (m h w)", "mean", s=side, t=side, **shape)
    ranks = units.argsort(dim=1, stable=True).argsort(dim=1).to(score.dtype)
    return repeat(ranks, "b (m h w) -> b (m h s w t)", s=side, t=side, **shape)


@dataclass(frozen=True)
class Masker:
    """Which tokens the encoder reads and which the decoders are asked for, as shares of all N tokens.

    The tokens with the lowest scores are visible. Of the hidden ones, those that `predict_score` scores highest are
    predicted: a uniform subset by default, for which a partial loss is unbiased (CrossMAE, section 3.3); where not all
    are, as many of every modality. Counts are floors. With `unit` above 1 whole squares of tokens are hidden. Tokens of
    a modality that a sample lacks are never visible.
    """

    score: TokenScore
    visible: float = 0.25
    predicted: float | None = None  # None: all that are hidden
    predict_score: TokenScore = field(default_factory=Uniform)
    unit: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.visible < 1:
            raise ValueError(
                f"visible is the share of tokens that the encoder reads, between 0 and 1; got {self.visible}"
            )
        if self.predicted is not None and not 0 < self.predicted <= 1 - self.visible + 1e-9:
            raise ValueError(
                f"predicted is a share of all tokens, above 0 and at most the hidden share 1 - visible ="
                f" {1 - self.visible:.4g}; got {self.predicted}"
            )

    @property
    def predicted_share(self) -> float:
        """The share of all tokens that is predicted."""
        return 1 - self.visible if self.predicted is None else self.predicted

    def predict_all(self) -> Masker:
        """The same masks, with every hidden token predicted."""
        return replace(self, predicted=None)

    def counts(self, layout: Layout) -> tuple[int, int]:
        """How many tokens of a layout are visible, and how many predicted."""
        if layout.grid[0] % self.unit or layout.grid[1] % self.unit:
            raise ValueError(f"masking units of {self.unit} x {self.unit} tokens do not tile a grid of {layout.grid}")
        units = layout.num_tokens // self.unit**2
        visible = floor(self.visible * units)
        skipped = floor((1 - self.visible - self.predicted_share) * units)
        predicted = units - visible - skipped
        if skipped > 0:
            predicted -= predicted % len(layout.spans)
        if visible < 1 or predicted < 1:
            raise ValueError(
                f"of {units} masking units, visible={self.visible} leaves {visible} to read and predicted="
                f"{self.predicted_share} leaves {predicted} to predict; both need one, and one of every modality to"
                " predict: use more tokens or other shares"
            )
        return visible * self.unit**2, predicted * self.unit**2

    def check(self, layout: Layout, present: Mapping[str, Bool[Tensor, " B"]]) -> None:
        """Raise ValueError where a sample has fewer tokens than are to be visible: some of its modalities are missing.

        It looks at numbers, so it belongs before the step, on tensors that are on the processor.
        """
        missing = [~present[name] for name in layout.spans if name in present]
        if missing:
            fewest = layout.num_tokens - int(torch.stack(missing).sum(dim=0).max()) * layout.num_cells
            if self.counts(layout)[0] > fewest:
                raise ValueError(
                    f"visible={self.visible} reads {self.counts(layout)[0]} of {layout.num_tokens} tokens, but a sample"
                    f" has {fewest}: some of its modalities are missing; use a smaller share, or leave such samples out"
                )

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Mask:
        num_visible, num_predicted = self.counts(tokens.layout)
        score = self.score(tokens, observations, batch)
        if self.unit > 1:
            score = as_units(score, tokens.layout, self.unit)
        if tokens.missing is not None:
            score = score.masked_fill(tokens.missing, torch.inf)
        order = score.argsort(dim=1, stable=True)
        visible, hidden = order[:, :num_visible], order[:, num_visible:]
        if num_predicted >= hidden.shape[1]:
            return Mask(visible, hidden)
        layout, score = tokens.layout, self.predict_score(tokens, observations, batch)
        score = score.scatter(1, visible, -torch.inf).unflatten(1, (len(layout.spans), layout.num_cells))  # B M cells
        most = num_predicted // len(layout.spans)
        cells = score.argsort(dim=2, stable=True)[..., layout.num_cells - most :]
        starts = torch.arange(0, layout.num_tokens, layout.num_cells, device=cells.device)[:, None]
        return Mask(visible, (cells + starts).flatten(1), most)


def floor(share: float) -> int:
    """A count from a share of tokens; 49.0 stored as 48.999999 is 49."""
    return int(share + 1e-6)


def modality_queries(mask: Mask, layout: Layout, modality: str) -> Queries:
    """The predicted tokens of one modality, in raster order; all of one that is no input.

    There are as many queries as any sample can need, so shapes stay static; tokens beyond a sample's own number have
    weight 0.
    """
    batch_size, device = len(mask.predicted), mask.predicted.device
    if modality not in layout.spans:
        cells = torch.arange(layout.num_cells, device=device).expand(batch_size, -1)
        return Queries(cells + layout.num_tokens, cells, torch.ones_like(cells, dtype=torch.float32))
    span = layout.spans[modality]
    no_tokens = torch.zeros(batch_size, layout.num_tokens, dtype=torch.int32, device=device)
    is_predicted = no_tokens.scatter(1, mask.predicted, 1).scatter(1, mask.visible, 0)[:, span]
    num_queries = min(mask.most or mask.predicted.shape[1], layout.num_cells)
    cells = is_predicted.argsort(dim=1, descending=True, stable=True)[:, :num_queries]
    return Queries(cells + span.start, cells, is_predicted.gather(1, cells).float())


def unit_in_tokens(side: int, patch: int) -> int:
    """A masking unit's side in pixels -> in tokens; the patch must divide it."""
    if side < patch or side % patch:
        raise ValueError(f"mask_unit is a side in pixels that the patch divides; got {side} with a patch of {patch}")
    return side // patch
