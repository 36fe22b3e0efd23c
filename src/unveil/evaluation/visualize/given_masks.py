"""Masks that a user chooses to look at: a share, a pattern, patches that he has drawn, whole modalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...modeling.masked_model import MaskedModel
from ...modeling.masking import PATTERNS, ByModality, Masker, Uniform
from ...modeling.types import Batch, Layout, Observations, Tokens
from ...runs.console import suggest

_KINDS = "a share of the patches, a pattern, a boolean array of patches (True: hidden), or such for each modality"


@dataclass(frozen=True)
class Drawn:
    """The score of a mask that is given: 1 for the tokens that are hidden."""

    hidden: Bool[Tensor, " N"]

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        return self.hidden.to(tokens.ids.device).float().expand(len(tokens.ids), -1)


def masked_parts(model: MaskedModel, mask: Any, layout: Layout, batch: Batch) -> list[tuple[Batch, Masker]]:
    """A batch in parts, each with the masker of its samples: all hidden tokens are predicted.

    `mask` is None for the model's own, or one of what the message lists. Raises ValueError for any other, and where
    nothing is left to see, or nothing is hidden.
    """
    own = model.masker
    if mask is None:
        return [(batch, own.predict_all())]
    if isinstance(mask, str):
        if mask not in PATTERNS:
            raise ValueError(f"there is no mask {mask!r}; {suggest(mask, PATTERNS)}. Give {_KINDS}")
        several = len(layout.spans) > 1
        return [(batch, Masker(ByModality(PATTERNS[mask]) if several else PATTERNS[mask], own.visible, unit=own.unit))]
    if isinstance(mask, (int, float)) and not isinstance(mask, bool):
        if not 0 < mask < 1:
            raise ValueError(f"mask is the share of the patches that is hidden, between 0 and 1; got {mask}")
        masker = Masker(Uniform(), 1 - float(mask))
        masker.counts(layout)
        return [(batch, masker)]
    hidden = _tokens_of(mask, layout, len(batch))
    for name, span in layout.spans.items():
        if name in batch.present:
            hidden[~batch.present[name].cpu(), span] = True  # what a sample lacks cannot be seen
    parts = []
    for place, row in enumerate(hidden):
        count = int(row.sum())
        if not 0 < count < len(row):
            what = (
                "hides every patch, and one is needed to see" if count else "hides no patch, and nothing is predicted"
            )
            raise ValueError(f"the mask of sample {place} {what}")
        parts.append((batch[place : place + 1], Masker(Drawn(row), 1 - count / len(row))))
    return parts


def _tokens_of(mask: Any, layout: Layout, count: int) -> Bool[Tensor, "B N"]:
    """The tokens that are hidden, of each sample."""
    given = mask if isinstance(mask, Mapping) else {next(iter(layout.spans)): mask}
    if unknown := [name for name in given if name not in layout.spans]:
        raise ValueError(f"the mask names {unknown[0]!r}, which is no input; there are {', '.join(layout.spans)}")
    hidden = torch.zeros(count, layout.num_tokens, dtype=torch.bool)
    for name, own in given.items():
        values = own.cpu() if isinstance(own, Tensor) else torch.from_numpy(np.array(own))
        if values.dtype != torch.bool:
            raise ValueError(f"a mask of {values.dtype} numbers was given; give {_KINDS}")
        if values.ndim and tuple(values.shape[-2:]) != layout.grid:
            rows, columns = layout.grid
            raise ValueError(
                f"a mask of the shape {tuple(values.shape)} does not fit {rows} x {columns} patches; give a boolean"
                f" array {rows} x {columns}, or one for each of the {count} samples"
            )
        if values.ndim == 3 and len(values) not in (1, count):
            raise ValueError(f"{len(values)} masks were given for {count} samples; give one, or as many")
        hidden[:, layout.spans[name]] = values.flatten(-2) if values.ndim else values
    return hidden
