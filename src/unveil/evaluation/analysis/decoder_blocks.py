"""What each block of a decoder adds to a prediction, and which encoder maps it reads (CrossMAE, appendix D)."""

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
from ...modeling.targets import Pixels
from ...modeling.types import Batch, Latents
from .attention import record_inputs


@dataclass(frozen=True)
class BlockContribution:
    """What the mask tokens with their positions (the first contribution) or one block add to a prediction of pixels.

    `share` is the inner product with the whole prediction over its square: shares sum to 1, and one may be negative.
    `error` is the objective's mean loss with this contribution and those before it. `detail` is the mean square of
    differences between neighbouring pixels in a patch over twice the variance in it: 0 for a flat patch, 1 for noise.
    """

    share: float
    error: float
    detail: float


@dataclass(frozen=True)
class DecoderContributions:
    """A decoder's contributions; `reads` has for each block the weight of each encoder map of `maps` in its input."""

    decoder: str
    parts: tuple[BlockContribution, ...]
    maps: tuple[int, ...] = ()
    reads: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Decomposition:
    """A prediction of pixels as a sum of contributions: `added[0]` is that of the queries, `added[k]` of block k.

    `objective` has no head: it takes sums of them as predictions.
    """

    objective: Objective
    added: Float[Tensor, "K B Q T"]


def contributions(
    states: Sequence[Float[Tensor, "B Q D"]], norm: nn.LayerNorm, head: nn.Linear
) -> Float[Tensor, "K B Q T"]:
    """What each difference of a residual stream's states adds to `head(norm(states[-1]))`: they sum to it.

    LayerNorm is linear once its deviation is that of the whole sum (CrossMAE, arXiv 2401.14391, appendix D, does not
    say which it takes). Biases belong to the first contribution.
    """
    deviation = (states[-1].var(dim=-1, correction=0, keepdim=True) + norm.eps).sqrt()
    steps = [states[0], *(after - before for before, after in pairwise(states))]
    scaled = [(x - x.mean(dim=-1, keepdim=True)) / deviation * norm.weight for x in steps]
    return torch.stack(
        [F.linear(scaled[0] + norm.bias, head.weight, head.bias), *(F.linear(x, head.weight) for x in scaled[1:])]
    )


@torch.no_grad()
def decompose(model: MaskedModel, batch: Batch) -> tuple[ForwardOutput, dict[str, Decomposition]]:
    """A forward pass that predicts every hidden patch, and the decomposition of each decoder's prediction of pixels.

    Decoders other than MAE's and CrossMAE's are left out.
    """
    decoders = {name: d for name, d in model.decoders.items() if isinstance(d, SelfDecoder | CrossDecoder)}
    with record_inputs([module for d in decoders.values() for module in (*d.blocks, d.norm)]) as inputs:
        output = model.encode_decode(batch, model.masker.predict_all())
    states_of = {id(module): x for module, (x, *_) in inputs}
    decompositions = {}
    for name, decoder in decoders.items():
        objective = next((o for o in model.objectives if _predicts_pixels(o, name)), None)
        if isinstance(objective, Objective):
            num_queries = output.queries[name].ids.shape[1]
            states = [states_of[id(module)][:, -num_queries:] for module in (*decoder.blocks, decoder.norm)]
            added = contributions(states, decoder.norm, objective.head)
            decompositions[name] = Decomposition(without_head(objective), added)
    return output, decompositions


def _predicts_pixels(objective: object, decoder: str) -> bool:
    return isinstance(objective, Objective) and objective.decoder == decoder and isinstance(objective.target, Pixels)


def without_head(o: Objective) -> Objective:
    """The same objective, for predictions that have passed its head already."""
    return Objective(o.name, o.decoder, o.target.dim, o.target, o.loss, o.weight, cast("nn.Linear", nn.Identity()))


def up_to_block(decomposition: Decomposition, output: ForwardOutput, block: int) -> ForwardOutput:
    """The forward pass as if the decoder ended after a block (0: before the first), for the objective without head."""
    prediction = decomposition.added[: block + 1].sum(dim=0)
    return replace(output, decoded={**output.decoded, decomposition.objective.decoder: prediction})


@torch.no_grad()
def decoder_contributions(model: MaskedModel, batch: Batch) -> list[DecoderContributions]:
    """The contributions of each decoder's blocks, on every hidden patch of a batch."""
    output, decompositions = decompose(model, batch)
    results = []
    for name, decomposition in decompositions.items():
        objective, weight = decomposition.objective, output.queries[name].weight[..., None]
        whole = decomposition.added.sum(dim=0) * weight
        blocks = []
        for k, added in enumerate(decomposition.added):
            total, count = objective(up_to_block(decomposition, output, k), batch)
            share = (added * whole).sum() / whole.square().sum().clamp_min(1e-12)
            error = total / objective.weight / count.clamp_min(1)
            blocks.append(BlockContribution(float(share), float(error), detail(added[weight[..., 0] > 0], objective)))
        decoder = model.decoders[name]
        blend = decoder.blend if isinstance(decoder, SelfDecoder | CrossDecoder) else None
        reads = () if blend is None else tuple(map(tuple, map_weights(blend, output.latents).tolist()))
        results.append(DecoderContributions(name, tuple(blocks), () if blend is None else blend.maps, reads))
    return results


def detail(patches: Float[Tensor, "N T"], objective: Objective) -> float:
    """How much neighbouring pixels of patches differ, as `BlockContribution.detail`."""
    target = objective.target
    assert isinstance(target, Pixels)
    side = target.modality.side(target.patch)
    x = patches.unflatten(-1, (side, side, -1))
    x = x - x.mean(dim=(1, 2), keepdim=True)
    steps = [x.diff(dim=dim).square().mean() for dim in (1, 2)] if side > 1 else []
    return float(sum(steps) / 2 / (2 * x.square().mean()).clamp_min(1e-12)) if steps else 0.0


def map_weights(blend: Blend, latents: Latents) -> Float[Tensor, "L K"]:
    """The weight of each encoder map in the input of each block: |weight| times the map's root mean square, as shares.

    Maps differ in norm, so their weights alone do not compare.
    """
    maps = [latents.layers[m] for m in blend.maps]
    if blend.projections is not None:
        maps = [project(x) for project, x in zip(blend.projections, maps, strict=True)]
    sizes = torch.stack([x.float().square().mean().sqrt() for x in maps])
    weight = (blend.weight.softmax(dim=1) if blend.softmax else blend.weight).abs() * sizes
    return weight / weight.sum(dim=1, keepdim=True).clamp_min(1e-12)
