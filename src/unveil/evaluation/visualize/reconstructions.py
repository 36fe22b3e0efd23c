"""What a model makes of hidden tokens, as maps in the units of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...modeling.masked_model import ForwardOutput, MaskedModel, Objective
from ...modeling.masking import Masker, Uniform
from ...modeling.patches import statistics, unpatchify, validity
from ...modeling.targets import Classes, Pixels, patch_statistics
from ...modeling.types import Batch, Observations, Tokens, take


def image_objectives(model: MaskedModel) -> dict[str, Objective]:
    """The objective that tells most plainly what a modality looks like, for each that has one: raw pixels or classes,
    else pixels normalised by their own patch."""
    found: dict[str, Objective] = {}
    for objective in model.objectives:
        if isinstance(objective, Objective) and isinstance(objective.target, Pixels | Classes):
            name = objective.target.modality.name
            before = found.get(name)
            if before is None or (isinstance(before.target, Pixels) and before.target.norm_pix):
                found[name] = objective
    return found


@torch.no_grad()
def reconstructions(model: MaskedModel, batch: Batch, seen: ForwardOutput) -> dict[str, Tensor]:
    """Each modality's map, B C H W in the units of the batch (class ids B 1 H W), every patch that was asked for
    replaced by what the model says."""
    return {name: reconstruct_map(objective, batch, seen) for name, objective in image_objectives(model).items()}


@torch.no_grad()
def feature_distances(model: MaskedModel, batch: Batch, seen: ForwardOutput) -> dict[str, Float[Tensor, "B N"]]:
    """Of each modality whose look nobody predicts, how far what is predicted of a patch points from the truth: 1 - cos.

    NaN where nothing is asked. Where several objectives predict such a modality, as a teacher's and a student's
    features, the first one tells.
    """
    found: dict[str, Tensor] = {}
    shown = image_objectives(model)
    for objective in (o for o in model.objectives if isinstance(o, Objective)):
        name = model.decoders[objective.decoder].modality
        if name in shown or name in found:
            continue
        queries = seen.queries[objective.decoder]
        guess, truth, _ = objective.prediction_and_target(seen, batch)
        apart = 1 - F.cosine_similarity(guess, truth, dim=-1)
        nothing = apart.new_full((len(apart), seen.latents.tokens.layout.num_cells), math.nan)
        found[name] = nothing.scatter(1, queries.cells, torch.where(queries.weight > 0, apart, math.nan))
    return found


def reconstruct_map(objective: Objective, batch: Batch, seen: ForwardOutput) -> Tensor:
    """The map of an objective's modality with every patch that was asked for replaced by what the model says.

    What was taken out of the truth by its own statistics (norm-pix, robust depth) is put back from the truth: without
    it such predictions cannot be looked at.
    """
    target = objective.target
    assert isinstance(target, Pixels | Classes)
    queries = seen.queries[objective.decoder]
    guess = objective.head(seen.decoded[objective.decoder]).float()
    truth, _ = target(batch, seen.observations)
    side = target.modality.side(target.patch)
    if isinstance(target, Classes):
        guess = guess.unflatten(-1, (side**2, target.modality.num_classes)).argmax(dim=-1)
    elif target.norm_pix:
        truth = target.patches(batch)
        mean, std = (take(s, queries.cells) for s in patch_statistics(truth))
        guess = guess * std + mean
    index = queries.cells[..., None].expand_as(guess)
    guess = torch.where(queries.weight[..., None] > 0, guess.to(truth.dtype), truth.gather(1, index))
    rows, columns = (length // side for length in batch.maps[target.modality.name].shape[-2:])
    whole = unpatchify(truth.scatter(1, index, guess), side, (rows, columns))
    if isinstance(target, Classes):
        return whole
    mean, std = statistics(batch, target.modality, validity(batch, target.modality))
    return whole * std + mean


@dataclass(frozen=True)
class _Others:
    """Every token but those of one modality is hidden."""

    modality: str

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        span = tokens.layout.spans[self.modality]
        return torch.logical_or(tokens.ids < span.start, tokens.ids >= span.stop).float()


def only_visible(modality: str, count: int) -> Masker:
    """A masker that shows one whole modality of `count`, hides the others and asks for all that is hidden."""
    return Masker(_Others(modality), 1 / count, 1 - 1 / count, Uniform())
