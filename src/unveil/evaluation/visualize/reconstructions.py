"""Predictions of hidden tokens as maps in the units of the data."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...modeling.masked_model import ForwardOutput, MaskedModel, Objective
from ...modeling.masking import Masker
from ...modeling.patches import statistics, unpatchify, validity
from ...modeling.targets import Classes, Pixels, patch_statistics
from ...modeling.types import Batch, Observations, Tokens, take


def map_objectives(model: MaskedModel) -> list[tuple[Objective, Pixels | Classes]]:
    """The objectives that predict maps, pixels or classes, each with its target."""
    objectives = [o for o in model.objectives if isinstance(o, Objective)]
    return [(o, o.target) for o in objectives if isinstance(o.target, Pixels | Classes)]


def image_objectives(model: MaskedModel) -> dict[str, Objective]:
    """For each modality whose map is predicted, the objective to show it by: raw pixels or classes, else norm-pix."""
    by_modality: dict[str, Objective] = {}
    for objective, target in map_objectives(model):
        other = by_modality.get(target.modality.name)
        if other is None or (isinstance(other.target, Pixels) and other.target.norm_pix):
            by_modality[target.modality.name] = objective
    return by_modality


@torch.no_grad()
def reconstructions(model: MaskedModel, batch: Batch, output: ForwardOutput) -> dict[str, Tensor]:
    """The map of each predicted modality, B C H W in the units of the batch (class ids B 1 H W): predicted patches
    where there are any, else the input's."""
    return {name: reconstruct_map(objective, batch, output) for name, objective in image_objectives(model).items()}


@torch.no_grad()
def feature_distances(model: MaskedModel, batch: Batch, output: ForwardOutput) -> dict[str, Float[Tensor, "B N"]]:
    """For each modality of which features are predicted and no map, 1 - cos of predicted and true features.

    NaN where nothing is predicted. Of several objectives of one modality the first counts.
    """
    distances: dict[str, Tensor] = {}
    has_map = image_objectives(model)
    for objective in (o for o in model.objectives if isinstance(o, Objective)):
        name = model.decoders[objective.decoder].modality
        if name in has_map or name in distances:
            continue
        queries = output.queries[objective.decoder]
        prediction, target, _ = objective.prediction_and_target(output, batch)
        distance = 1 - F.cosine_similarity(prediction, target, dim=-1)
        blank = distance.new_full((len(distance), output.latents.tokens.layout.num_cells), math.nan)
        distances[name] = blank.scatter(1, queries.cells, torch.where(queries.weight > 0, distance, math.nan))
    return distances


def reconstruct_map(objective: Objective, batch: Batch, output: ForwardOutput) -> Tensor:
    """The map of an objective's modality, with every predicted patch in place of the true one.

    Where targets are normalised by the map's own statistics (norm-pix, robust depth), the true map's are put back.
    """
    target = objective.target
    assert isinstance(target, Pixels | Classes)
    queries = output.queries[objective.decoder]
    prediction = objective.head(output.decoded[objective.decoder]).float()
    values, _ = target(batch, output.observations)
    side = target.modality.side(target.patch)
    if isinstance(target, Classes):
        prediction = prediction.unflatten(-1, (side**2, target.modality.num_classes)).argmax(dim=-1)
    elif target.norm_pix:
        values = target.patches(batch)
        mean, std = (take(s, queries.cells) for s in patch_statistics(values))
        prediction = prediction * std + mean
    index = queries.cells[..., None].expand_as(prediction)
    prediction = torch.where(queries.weight[..., None] > 0, prediction.to(values.dtype), values.gather(1, index))
    rows, columns = (length // side for length in batch.maps[target.modality.name].shape[-2:])
    whole = unpatchify(values.scatter(1, index, prediction), side, (rows, columns))
    if isinstance(target, Classes):
        return whole
    mean, std = statistics(batch, target.modality, validity(batch, target.modality))
    return whole * std + mean


@dataclass(frozen=True)
class HideModalities:
    """Every token of some modalities is hidden, none of the others."""

    modalities: frozenset[str]

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        score = torch.zeros_like(tokens.ids, dtype=torch.float32)
        for name in self.modalities:
            score[:, tokens.layout.spans[name]] = 1
        return score


def only_visible(visible: Collection[str], inputs: Collection[str]) -> Masker:
    """A masker under which some of the inputs, but not all, are whole, and the others hidden and predicted."""
    share = len(visible) / len(inputs)
    return Masker(HideModalities(frozenset(inputs) - frozenset(visible)), share, 1 - share)
