"""What each block of a decoder adds to a reconstruction, and which encoder maps it reads (CrossMAE, appendix D)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...modeling.decoder import Blend, CrossDecoder, SelfDecoder
from ...modeling.masked_model import ForwardOutput, MaskedModel, Objective
from ...modeling.masking import Masker
from ...modeling.targets import Pixels
from ...modeling.types import Batch, Latents
from .hooks import record_inputs


@dataclass(frozen=True)
class BlockContribution:
    """What the mask tokens with their positions (the first part) or one block add to a prediction of pixels.

    `share` is how much of the whole prediction it is (their inner product over the square of the whole: all shares sum
    to 1, and one may be below 0), `error` the objective's mean loss with this part and those before it, and `detail`
    how the part changes from pixel to pixel: the mean square of steps between neighbours in a patch over twice the
    variance in it, 0 for what is flat and about 1 for noise.
    """

    share: float
    error: float
    detail: float


@dataclass(frozen=True)
class DecoderContributions:
    """A decoder's parts; `reads` tells of each block how much each encoder map weighs in what it reads, by `maps`."""

    decoder: str
    parts: tuple[BlockContribution, ...]
    maps: tuple[int, ...] = ()
    reads: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Decomposition:
    """A prediction of pixels as the sum of what the queries and each block add to it.

    `objective` has no head: it takes sums of these parts for guesses.
    """

    objective: Objective
    added: Float[Tensor, "K B Q T"]


def contributions(
    states: Sequence[Float[Tensor, "B Q D"]], norm: nn.LayerNorm, head: nn.Linear
) -> Float[Tensor, "K B Q T"]:
    """What each difference of a residual stream's states adds to `head(norm(states[-1]))`: they sum to it.

    LayerNorm is linear once its deviation is that of the whole sum (CrossMAE, arXiv 2401.14391, appendix D, leaves open
    which it takes). Biases belong to the first part.
    """
    deviation = (states[-1].var(dim=-1, correction=0, keepdim=True) + norm.eps).sqrt()
    steps = [states[0], *(after - before for before, after in pairwise(states))]
    scaled = [(x - x.mean(dim=-1, keepdim=True)) / deviation * norm.weight for x in steps]
    return torch.stack(
        [F.linear(scaled[0] + norm.bias, head.weight, head.bias), *(F.linear(x, head.weight) for x in scaled[1:])]
    )


@torch.no_grad()
def decompose(model: MaskedModel, batch: Batch) -> tuple[ForwardOutput, dict[str, Decomposition]]:
    """One forward that asks for every hidden patch, and of each decoder whose blocks add up its prediction of pixels.

    Those are MAE's and CrossMAE's decoders; of others nothing is told.
    """
    own = model.masker
    parts = {name: d for name, d in model.decoders.items() if isinstance(d, SelfDecoder | CrossDecoder)}
    with record_inputs([part for d in parts.values() for part in (*d.blocks, d.norm)]) as read:
        seen = model.encode_decode(batch, Masker(own.score, own.visible, 1 - own.visible, own.predict_score, own.unit))
    given = {id(part): x for part, (x, *_) in read}
    found = {}
    for name, decoder in parts.items():
        objective = next((o for o in model.objectives if _tells_pixels(o, name)), None)
        if isinstance(objective, Objective):
            asked = seen.queries[name].ids.shape[1]
            states = [given[id(part)][:, -asked:] for part in (*decoder.blocks, decoder.norm)]
            found[name] = Decomposition(without_head(objective), contributions(states, decoder.norm, objective.head))
    return seen, found


def _tells_pixels(objective: object, decoder: str) -> bool:
    return isinstance(objective, Objective) and objective.decoder == decoder and isinstance(objective.target, Pixels)


def without_head(objective: Objective) -> Objective:
    """The same objective, for guesses that are made already."""
    as_it_is = cast("nn.Linear", nn.Identity())
    told = objective.name, objective.decoder, objective.target.dim, objective.target, objective.loss, objective.weight
    return Objective(*told, as_it_is)


def up_to_block(found: Decomposition, seen: ForwardOutput, blocks: int) -> ForwardOutput:
    """The forward as if the decoder ended after so many of its blocks, for the objective without a head."""
    guess = found.added[: blocks + 1].sum(dim=0)
    return replace(seen, decoded={**seen.decoded, found.objective.decoder: guess})


@torch.no_grad()
def decoder_contributions(model: MaskedModel, batch: Batch) -> list[DecoderContributions]:
    """The parts of each decoder's prediction, on every hidden patch of a batch."""
    seen, found = decompose(model, batch)
    told = []
    for name, its in found.items():
        weight = seen.queries[name].weight[..., None]
        whole = its.added.sum(dim=0) * weight
        parts = []
        for k, part in enumerate(its.added):
            total, count = its.objective(up_to_block(its, seen, k), batch)
            share = (part * whole).sum() / whole.square().sum().clamp_min(1e-12)
            error = total / its.objective.weight / count.clamp_min(1)
            parts.append(BlockContribution(float(share), float(error), detail(part[weight[..., 0] > 0], its.objective)))
        decoder = model.decoders[name]
        blend = decoder.blend if isinstance(decoder, SelfDecoder | CrossDecoder) else None
        reads = () if blend is None else tuple(map(tuple, map_weights(blend, seen.latents).tolist()))
        told.append(DecoderContributions(name, tuple(parts), () if blend is None else blend.maps, reads))
    return told


def detail(part: Float[Tensor, "N T"], objective: Objective) -> float:
    """How patches change from pixel to pixel, as `Part.detail`."""
    target = objective.target
    assert isinstance(target, Pixels)
    side = target.modality.side(target.patch)
    x = part.unflatten(-1, (side, side, -1))
    x = x - x.mean(dim=(1, 2), keepdim=True)
    steps = [x.diff(dim=dim).square().mean() for dim in (1, 2)] if side > 1 else []
    return float(sum(steps) / 2 / (2 * x.square().mean()).clamp_min(1e-12)) if steps else 0.0


def map_weights(blend: Blend, latents: Latents) -> Float[Tensor, "L K"]:
    """How much each encoder map weighs in what each block reads: |weight| times the map's root mean square, as shares.

    Maps differ in length, so their weights alone do not tell.
    """
    maps = [latents.layers[m] for m in blend.maps]
    if blend.projections is not None:
        maps = [project(x) for project, x in zip(blend.projections, maps, strict=True)]
    sizes = torch.stack([x.float().square().mean().sqrt() for x in maps])
    weight = (blend.weight.softmax(dim=1) if blend.softmax else blend.weight).abs() * sizes
    return weight / weight.sum(dim=1, keepdim=True).clamp_min(1e-12)
