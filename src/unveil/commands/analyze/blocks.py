"""`unveil analyze blocks`: what each block of a run's decoder adds to a prediction, in numbers and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.columns import with_columns
from ...data.given_types import Data
from ...evaluation.analysis.attention import hidden_tokens
from ...evaluation.analysis.conclusions import of_blocks
from ...evaluation.analysis.decoder_blocks import (
    BlockContribution,
    DecoderContributions,
    decoder_contributions,
    decompose,
    up_to_block,
)
from ...evaluation.visualize.panels import MapRenderer, map_renderers
from ...evaluation.visualize.reconstructions import reconstruct_map
from ...modeling.targets import Pixels
from ...modeling.types import Batch
from ...recipes.options import accept_python_values, as_text
from ...recipes.run import Run
from ...reporting.figures import Panel, PanelBlock, draw_sheet
from ...reporting.pictures import Picture, hide_patches, png
from ...runs.atomic import write_bytes
from ...runs.console import table
from ...runs.folder import check_writable
from ..subject import Subject, chunks, print_conclusions, write_analysis

_NOTE = (
    "First row: the prediction after each block of the decoder. Second row: what each block adds, grey for nothing. The"
    " last norm uses the deviation of the whole sum, so that the contributions sum to the prediction."
)
_NORM_PIX = (
    "Predictions are of pixels normalised by each patch's mean and standard deviation; those of the true patch are put"
    " back, as a part of the queries' contribution."
)


@accept_python_values
def analyze_blocks(
    run: str | PathLike[str] | Run,
    *,
    data: Data | None = None,
    image_column: str | None = None,
    limit: int = 128,
    samples: int = 3,
    device: str = "auto",
    trust: bool = False,
) -> dict[str, Any]:
    """Measure what each block of a run's decoder adds to its prediction; printed, and written to
    `analysis/blocks.json` and `analysis/blocks.png` (CrossMAE, appendix D).

    A prediction is the sum of what the mask tokens and each block add. For each: its share of the whole, the loss with
    it and those before, and how much of it is detail (0: flat, 1: noise). Where blocks read blends of encoder maps
    (inter-block attention), also the weight of each map.

    data: samples to measure on; by default those that the run held out
    image_column: the column of a Parquet file that holds the images, where there are several
    limit: use at most so many samples, evenly spread
    samples: how many the picture shows
    device: cpu, cuda, mps; auto takes the best
    trust: execute the run's own recipe file where you have not run it before: this needs its whole model

    >>> import unveil
    >>> measured = unveil.analyze_blocks("runs/a", samples=1)
    a, epoch 0.5, decoder pixels: contributions to the prediction of hidden patches ...
    >>> len(measured["decoders"][0]["parts"])  # the mask tokens and two blocks
    3
    """
    if limit < 1 or samples < 1:
        raise ValueError(f"--limit and --samples are 1 or more; got {limit} and {samples}")
    stored = Run.open(as_text(run), trust)
    subject = Subject.of_run(stored, with_columns(as_text(data), image_column), device)
    check_writable(stored.path)
    views, batch = subject.load(limit)
    parts = [decoder_contributions(subject.model, chunk) for chunk in chunks(batch)]
    if not parts[0]:
        raise ValueError(
            f"{stored.path} has no decoder whose blocks add up to a prediction of pixels, as those of MAE and CrossMAE"
        )
    weights = [len(chunk) for chunk in chunks(batch)]
    decoders = [_mean(of_chunks, weights) for of_chunks in zip(*parts, strict=True)]
    alone = zip(*(decoder_contributions(subject.model, sample) for sample in batch.split(1)), strict=True)
    errors = [torch.tensor([[part.error for part in one.parts] for one in of_samples]) for of_samples in alone]
    content = {
        "data": subject.samples.address,
        "samples": len(views),
        "epoch": subject.epoch,
        "weights": stored.checkpoint().identity,
        "decoders": [asdict(d) for d in decoders],
        "conclusions": [s for d, own in zip(decoders, errors, strict=True) for s in of_blocks(d.decoder, own)],
    }
    write_analysis(stored.path, "blocks", content)
    picture = stored.path / "analysis" / "blocks.png"
    write_bytes(picture, png(_draw(subject, views.names[:samples], batch[:samples])))
    for d in decoders:
        print(f"{subject.title}, decoder {d.decoder}: contributions to the prediction of hidden patches")
        rows = [[_name(k), p.share, p.error, p.detail] for k, p in enumerate(d.parts)]
        print(table([["", "share of the sum", "loss up to here", "detail (0 flat, 1 noise)"], *rows]))
        if d.reads:
            print("\nshare of each encoder map (0: the embedded patches) in the input of each block")
            print(table([["", *d.maps], *([_name(k), *row] for k, row in enumerate(d.reads, start=1))]))
    print_conclusions(content)
    print(picture)
    return content


def _name(block: int) -> str:
    return f"block {block}" if block else "mask tokens"


def _mean(of_chunks: Sequence[DecoderContributions], weights: list[int]) -> DecoderContributions:
    """The mean of one decoder's contributions over chunks of a batch."""
    first = of_chunks[0]
    parts = np.average([[(p.share, p.error, p.detail) for p in d.parts] for d in of_chunks], axis=0, weights=weights)
    reads = np.average([d.reads for d in of_chunks], axis=0, weights=weights) if first.reads else np.zeros((0, 0))
    return DecoderContributions(
        first.decoder,
        tuple(BlockContribution(*values) for values in parts.tolist()),
        first.maps,
        tuple(map(tuple, reads.tolist())),
    )


@torch.no_grad()
def _draw(subject: Subject, names: list[str], batch: Batch) -> Picture:
    """For each sample and decoder the image, the prediction after each block, and what each block adds."""
    renderers = map_renderers(subject.modalities, subject.samples, batch)
    output, decompositions = decompose(subject.model, batch)
    layout = output.latents.tokens.layout
    is_hidden = hidden_tokens(output.mask.visible, layout.num_tokens)
    blocks, is_norm_pix = [], False
    for decoder, decomposition in decompositions.items():
        target = decomposition.objective.target
        assert isinstance(target, Pixels)
        is_norm_pix |= target.norm_pix
        modality = target.modality.name
        render, truth = renderers[modality], batch.maps[modality]
        steps = [
            reconstruct_map(decomposition.objective, batch, up_to_block(decomposition, output, k))
            for k in range(len(decomposition.added))
        ]
        for i, name in enumerate(names):
            hidden = is_hidden[i, layout.spans.get(modality, slice(0))].nonzero()[:, 0].cpu().numpy()
            given = hide_patches(render(truth[i], _everywhere(truth[i])), hidden, layout.grid)
            rows = _rows(render, truth[i], [step[i] for step in steps])
            rows[1][:0] = [Panel("given", given), Panel("", None, "each block adds")]
            blocks.append(PanelBlock(name if len(decompositions) == 1 else f"{name} · {decoder}", rows))
    return draw_sheet(f"{subject.title}: block by block", blocks, [], [_NOTE, *([_NORM_PIX] if is_norm_pix else [])])


def _rows(render: MapRenderer, truth: Tensor, steps: list[Tensor]) -> list[list[Panel]]:
    everywhere = _everywhere(truth)
    low, high = render.limits or (0.0, 1.0)
    above = [Panel("image", render(truth, everywhere))]
    above += [Panel(_name(k), render(step, everywhere, like=truth)) for k, step in enumerate(steps)]
    added = [(low + high) / 2 + after - before for before, after in pairwise(steps)]
    return [above, [Panel(f"+ block {k}", render(x, everywhere, like=truth)) for k, x in enumerate(added, start=1)]]


def _everywhere(truth: Tensor) -> Tensor:
    return torch.ones_like(truth[:1], dtype=torch.bool)
