"""Masks of one image: by a pattern, by attention, as a run trains, or drawn by hand; counted by modality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...evaluation.visualize.given_masks import Drawn
from ...modeling.masked_model import MaskedModel
from ...modeling.masking import PATTERNS, SAMPLERS, Masker
from ...modeling.rng import sample_keys
from ...modeling.types import Batch, Layout, Tokens
from .models import Unmasked

OWN, DRAWN = "own", "drawn"
METHODS = {  # as the page names them
    OWN: "as the run trains",
    "uniform": "random",
    "block": "blocks",
    "inverse-block": "all but blocks",
    "grid": "grid",
    "gumbel": "drawn by attention",
    "hard": "highest attention",
    "noisy": "highest attention, with noise",
    "hint": "highest attention, with hints",
    "low": "lowest attention",
    "keep": "visible ones drawn by attention",
    DRAWN: "drawn by hand",
}
assert METHODS.keys() == {OWN, DRAWN, *PATTERNS, *SAMPLERS}

Cells = Mapping[str, list[int]]  # the visible cells of each modality, in order


@dataclass(frozen=True)
class Asked:
    """A mask that is asked for: `visible` counts the patches of each modality, `drawn` names them, of a grid."""

    method: str
    visible: Mapping[str, int]
    seed: int = 0
    drawn: Cells | None = None
    grid: tuple[int, int] | None = None


def make_mask(
    asked: Asked, layout: Layout, batch: Batch, model: MaskedModel | None, unmasked: Unmasked,
    guide: Mapping[str, Float[Tensor, "h w"]],
) -> dict[str, list[int]]:  # fmt: skip
    """The visible cells of each modality of a layout; one at least is visible and one hidden.

    `guide` has the attention to each modality, on any grid; the first serves for those that are not in it. Raises
    ValueError for a method that there is not, or that this model does not have.
    """
    cells = layout.num_cells
    if asked.method not in METHODS:
        raise ValueError(f"there is no masking {asked.method!r}; there are {', '.join(METHODS)}")
    if asked.drawn is not None:
        drawn = {
            name: on_grid(asked.drawn.get(name, []), asked.grid or layout.grid, layout.grid) for name in layout.spans
        }
        return _neither_all_nor_none(drawn, cells)
    batch = replace(batch, key=sample_keys(asked.seed, 0, [0]).to(batch.key.device))
    if asked.method == OWN:
        if model is None or unmasked.tokens is None:
            raise ValueError("the masks of this run need its recipe; choose another masking")
        share = sum(asked.visible.values()) / layout.num_tokens
        masker = replace(model.masker, predicted=None, visible=min(max(share, 1 / layout.num_tokens), 1 - 1e-4))
        visible = masker(unmasked.tokens, unmasked.observations, batch).visible[0].sort().values
        return {name: [int(i) - s.start for i in visible if s.start <= i < s.stop] for name, s in layout.spans.items()}
    chosen = {}
    for name in layout.spans:
        own = batch if len(layout.spans) == 1 else replace(batch, key=batch.rng.fold(name).key)
        if asked.method in PATTERNS:
            alone = Layout({name: slice(0, cells)}, layout.grid)
            ids = torch.arange(cells, device=batch.key.device)[None]
            tokens = Tokens(torch.zeros(1, cells, 1, device=ids.device), ids, alone)
            score = PATTERNS[asked.method](tokens, {}, own)
        else:
            score = SAMPLERS[asked.method](_on(guide, name, layout.grid).flatten()[None], own)
        count = max(0, min(cells, asked.visible.get(name, cells // 4)))
        chosen[name] = sorted(score[0].argsort(stable=True)[:count].tolist())
    return _neither_all_nor_none(chosen, cells)


def masker_of(visible: Cells, layout: Layout) -> Masker:
    """The masker that leaves these cells visible and has all others predicted."""
    hidden = torch.ones(layout.num_tokens, dtype=torch.bool)
    hidden[[layout.spans[name].start + cell for name, cells in visible.items() for cell in cells]] = False
    return Masker(Drawn(hidden), 1 - float(hidden.float().mean()))


def on_grid(cells: list[int], grid: tuple[int, int], other: tuple[int, int]) -> list[int]:
    """Cells of a grid as those of another whose centres lie in them. Raises ValueError for a cell that there is not."""
    if any(not 0 <= cell < grid[0] * grid[1] for cell in cells):
        raise ValueError(f"a patch of a grid of {grid[0]} x {grid[1]} is a number below {grid[0] * grid[1]}")
    if grid == other:
        return sorted(set(cells))
    inside = torch.zeros(grid, dtype=torch.bool)
    inside.view(-1)[cells] = True
    rows, columns = (((torch.arange(n) + 0.5) * m / n).long() for n, m in zip(other, grid, strict=True))
    found: list[int] = inside[rows][:, columns].flatten().nonzero()[:, 0].tolist()
    return found


def _on(guide: Mapping[str, Float[Tensor, "h w"]], name: str, grid: tuple[int, int]) -> Float[Tensor, "r c"]:
    """The map of a modality on a grid."""
    if not guide:
        raise ValueError("this masking follows an attention map, and there is none: choose whose")
    own = guide.get(name, next(iter(guide.values()))).float()
    if tuple(own.shape) == grid:
        return own
    return F.interpolate(own[None, None], grid, mode="bilinear", align_corners=False)[0, 0]


def _neither_all_nor_none(visible: dict[str, list[int]], cells: int) -> dict[str, list[int]]:
    """With one patch visible and one hidden, which a model needs."""
    count = sum(map(len, visible.values()))
    if count == 0:
        first = next(iter(visible))
        return {**visible, first: [cells // 2]}
    if count == cells * len(visible):
        last = next(reversed(visible))
        return {**visible, last: visible[last][:-1]}
    return visible
