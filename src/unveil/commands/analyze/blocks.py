"""`unveil analyze blocks`: what each block of a run's decoder adds to a reconstruction, in numbers and as a picture."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...evaluation.analysis.attention_maps import hidden_tokens
from ...evaluation.analysis.decoder_blocks import (
    BlockContribution,
    DecoderContributions,
    Decomposition,
    decoder_contributions,
    decompose,
    up_to_block,
)
from ...evaluation.visualize import MapRenderer, load_samples, map_renderers
from ...evaluation.visualize.reconstructions import reconstruct_map
from ...modeling.targets import Pixels
from ...modeling.types import Batch
from ...recipes.run import Run
from ...reporting.figures import Panel, PanelBlock, draw_sheet
from ...reporting.pictures import Picture, hide_patches, png
from ...runs.atomic import write_bytes, write_json
from ...runs.console import table
from ...runs.folder import check_writable
from ..open_run import Opened, device_of, open_run

_BATCH = 32
_NOTE = (
    "Above, what the decoder says of the hidden patches after so many of its blocks; below, what each block adds: grey"
    " is nothing. Deviations of the last norm are those of the whole sum, so the parts sum to the prediction."
)
_NORM_PIX = (
    "Predictions are relative to each patch's own mean and standard deviation; those of the truth, which the model"
    " never saw, are put back, and count as the queries' part."
)


def analyze_blocks(
    run: str, *, data: str | None = None, limit: int = 128, samples: int = 3, device: str = "auto"
) -> dict[str, Any]:
    """What each block of a run's decoder adds to its reconstruction: printed, and kept in its `analysis/blocks.json`;
    a picture lies beside it (CrossMAE, appendix D).

    A prediction is the sum of what the mask tokens and each block add. Of each: its share of the whole, the loss with
    it and those before, and how much of it is detail (0 flat, 1 noise). Where blocks read blends of encoder maps
    (inter-block attention), also how much each map weighs in them.

    data: samples to look at; by default the run's own held-out ones
    limit: look at most at so many samples, evenly spread
    samples: how many the picture shows
    device: cpu, cuda, mps; auto takes the best
    """
    if limit < 1 or samples < 1:
        raise ValueError(f"--limit and --samples are 1 or more; got {limit} and {samples}")
    stored = Run.open(run)
    path, opened = stored.path, open_run(stored, data, device=device)
    check_writable(path)
    seen = load_samples(opened.samples, opened.modalities, opened.model.encoder.image_size, limit)
    if not len(seen):
        raise ValueError(f"no sample of {opened.samples.address} can be read; see `unveil inspect`")
    whole = seen.batch(device_of(opened.model))
    batches = [whole[start : start + _BATCH] for start in range(0, len(seen), _BATCH)]
    parts = [decoder_contributions(opened.model, batch) for batch in batches]
    if not parts[0]:
        raise ValueError(
            f"{path} has no decoder whose blocks add up to a prediction of pixels, as those of MAE and CrossMAE do"
        )
    decoders = [_mean(one, list(map(len, batches))) for one in zip(*parts, strict=True)]
    told = {
        "data": opened.samples.address,
        "samples": len(seen),
        "epoch": opened.epoch,
        "decoders": [asdict(d) for d in decoders],
    }
    (path / "analysis").mkdir(parents=True, exist_ok=True)
    write_json(path / "analysis" / "blocks.json", told)
    write_bytes(path / "analysis" / "blocks.png", png(_drawn(opened, seen.names[:samples], whole[:samples])))
    for d in decoders:
        print(f"decoder {d.decoder}: what each part adds to the prediction of hidden patches")
        rows = [[_named(k), p.share, p.error, p.detail] for k, p in enumerate(d.parts)]
        print(table([["", "share", "loss so far", "detail"], *rows]))
        if d.reads:
            print("\nhow much each encoder map (0: the patches) weighs in what each block reads")
            rows = [[f"block {k}", *row] for k, row in enumerate(d.reads, start=1)]
            print(table([["", *d.maps], *rows]))
    print(path / "analysis" / "blocks.png")
    return told


def _named(part: int) -> str:
    return f"block {part}" if part else "mask tokens"


def _mean(parts: tuple[DecoderContributions, ...], counts: list[int]) -> DecoderContributions:
    first = parts[0]

    def mean(values: list[float]) -> float:
        return float(np.average(values, weights=counts))

    return DecoderContributions(
        first.decoder,
        tuple(
            BlockContribution(
                *(mean([getattr(p.parts[k], name) for p in parts]) for name in ("share", "error", "detail"))
            )
            for k in range(len(first.parts))
        ),
        first.maps,
        tuple(
            tuple(mean([p.reads[k][j] for p in parts]) for j in range(len(first.maps))) for k in range(len(first.reads))
        ),
    )


@torch.no_grad()
def _drawn(opened: Opened, names: list[str], batch: Batch) -> Picture:
    """A block for each sample and decoder: the image, then the prediction block by block, and what each adds."""
    views = map_renderers(opened.modalities, opened.samples, batch)
    seen, found = decompose(opened.model, batch)
    blocks = []
    for decoder, its in found.items():
        target = its.objective.target
        assert isinstance(target, Pixels)
        view, truth = views[target.modality.name], batch.maps[target.modality.name]
        steps = [reconstruct_map(its.objective, batch, up_to_block(its, seen, k)) for k in range(len(its.added))]
        layout = seen.latents.tokens.layout
        unseen = hidden_tokens(seen.mask.visible, layout.num_tokens)[
            :, layout.spans.get(target.modality.name, slice(0))
        ]
        for i, name in enumerate(names):
            title = name if len(found) == 1 else f"{name} · {decoder}"
            patches = unseen[i].nonzero()[:, 0].cpu().numpy()
            given = hide_patches(view(truth[i], _everywhere(truth[i])), patches, layout.grid)
            rows = _rows(view, truth[i], [step[i] for step in steps])
            rows[1][:0] = [Panel("given", given), Panel("", None, "each block adds")]
            blocks.append(PanelBlock(title, rows))
    notes = [_NOTE, *([_NORM_PIX] if any(_is_norm_pix(its) for its in found.values()) else [])]
    return draw_sheet(f"{opened.name}, epoch {opened.epoch:.4g}: block by block", blocks, [], notes)


def _rows(view: MapRenderer, truth: Tensor, steps: list[Tensor]) -> list[list[Panel]]:
    everywhere = _everywhere(truth)
    low, high = view.limits or (0.0, 1.0)
    above = [Panel("image", view(truth, everywhere))]
    above += [Panel(_named(k), view(step, everywhere, like=truth)) for k, step in enumerate(steps)]
    added = [(low + high) / 2 + after - before for before, after in pairwise(steps)]
    return [above, [Panel(f"+ block {k}", view(x, everywhere, like=truth)) for k, x in enumerate(added, start=1)]]


def _everywhere(truth: Tensor) -> Tensor:
    return torch.ones_like(truth[:1], dtype=torch.bool)


def _is_norm_pix(found: Decomposition) -> bool:
    return isinstance(found.objective.target, Pixels) and found.objective.target.norm_pix
