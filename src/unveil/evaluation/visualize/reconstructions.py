"""Predictions of hidden tokens as maps in the units of the data."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ...modeling.masked_model import ForwardOutput, MaskedModel, Objective
from ...modeling.masking import Masker
from ...modeling.patches import statistics, unpatchify, validity
from ...modeling.rng import sample_keys
from ...modeling.targets import Classes, PatchStatistics, Pixels, patch_statistics
from ...modeling.types import Batch, Observations, Queries, Tokens, take
from ..analysis.attention import hidden_tokens
from ..inpainting import inverse_distance, nearest_visible


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


@torch.no_grad()
def unaided_reconstructions(model: MaskedModel, batch: Batch, output: ForwardOutput) -> dict[str, Tensor]:
    """The maps of `reconstructions` whose patches are predicted normalised, without the true patches' statistics.

    Mean and deviation are those that the model predicts beside the pixels (`PatchStatistics`). Where it predicts none,
    the mean is the modality's, which is a neutral colour, and the deviation that of the visible patches on average.
    """
    maps = {}
    predicted = {
        o.target.modality.name: o
        for o in model.objectives
        if isinstance(o, Objective) and isinstance(o.target, PatchStatistics)
    }
    for name, objective in image_objectives(model).items():
        target = objective.target
        if not (isinstance(target, Pixels) and target.norm_pix):
            continue
        queries, own = output.queries[objective.decoder], predicted.get(name)
        if own is not None and own.decoder == objective.decoder:
            means, deviations = own.head(output.decoded[own.decoder]).float().chunk(2, dim=-1)  # of each channel
            mean = means.mean(dim=-1, keepdim=True)
            variance = deviations.clamp_min(0).square() + (means - mean).square()
            std = variance.mean(dim=-1, keepdim=True).sqrt()
        else:
            std = patch_statistics(target.patches(batch))[1]
            visible = torch.ones_like(std).scatter(1, queries.cells[..., None], 1 - queries.weight[..., None].float())
            std = (std * visible).sum(dim=1, keepdim=True) / visible.sum(dim=1, keepdim=True).clamp_min(1)
            mean = torch.zeros_like(std)
        maps[name] = reconstruct_map(objective, batch, output, (mean, std))
    return maps


def reconstruct_map(
    objective: Objective, batch: Batch, output: ForwardOutput, patches: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """The map of an objective's modality, with every predicted patch in place of the true one.

    Where targets are normalised by the map's own statistics (norm-pix, robust depth), the true map's are put back;
    `patches` are a mean and a deviation of each predicted patch, B (Q or 1) 1, to put back instead of the true ones.
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
        mean, std = patches or (take(s, queries.cells) for s in patch_statistics(values))
        prediction = prediction * std + mean
    index = queries.cells[..., None].expand_as(prediction)
    prediction = torch.where(queries.weight[..., None] > 0, prediction.to(values.dtype), values.gather(1, index))
    rows, columns = (length // side for length in batch.maps[target.modality.name].shape[-2:])
    whole = unpatchify(values.scatter(1, index, prediction), side, (rows, columns))
    if isinstance(target, Classes):
        return whole
    mean, std = statistics(batch, target.modality, validity(batch, target.modality))
    return whole * std + mean


def pixels_of_cells(cells: Bool[Tensor, "B N"], target: Pixels | Classes, batch: Batch) -> Bool[Tensor, "B 1 H W"]:
    """What holds for patches, for each of their pixels."""
    side, image = target.modality.side(target.patch), batch.maps[target.modality.name]
    grid = (image.shape[-2] // side, image.shape[-1] // side)
    return unpatchify(cells[..., None].expand(-1, -1, side * side), side, grid)


def predicted_pixels(queries: Queries, target: Pixels | Classes, batch: Batch) -> Bool[Tensor, "B 1 H W"]:
    """The pixels of the patches that are predicted, where they have a truth."""
    side, (height, width) = target.modality.side(target.patch), batch.maps[target.modality.name].shape[-2:]
    cells = queries.weight.new_zeros(len(batch), (height // side) * (width // side))
    predicted = cells.scatter(1, queries.cells, queries.weight) > 0
    return pixels_of_cells(predicted, target, batch) & validity(batch, target.modality)


@torch.no_grad()
def interpolations(model: MaskedModel, batch: Batch, output: ForwardOutput) -> dict[str, Tensor]:
    """What the visible pixels alone give for each predicted map: the mean of all of them, weighted by their inverse
    squared distance; of classes the nearest one. A map without a visible pixel is NaN there, of classes -1."""
    maps = {}
    hides = hidden_tokens(output.mask.visible, output.latents.tokens.layout.num_tokens)
    for name, objective in image_objectives(model).items():
        target, image = objective.target, batch.maps[name].cpu()
        assert isinstance(target, Pixels | Classes)
        span = output.latents.tokens.layout.spans.get(name)
        known = validity(batch, target.modality)
        known = known & ~pixels_of_cells(hides[:, span], target, batch) if span is not None else known & False
        known = known.cpu()
        is_empty = ~known.flatten(1).any(dim=1)[:, None, None, None]
        nothing = -1 if isinstance(target, Classes) else math.nan
        fill = nearest_visible if isinstance(target, Classes) else inverse_distance
        filled = fill(torch.where(known, image, 0), known)
        maps[name] = torch.where(is_empty, nothing, filled)
    return maps


@torch.no_grad()
def map_errors(
    model: MaskedModel, batch: Batch, output: ForwardOutput, maps: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, " B"]]:
    """The root mean square error of the predicted pixels of each map, in its unit; of classes the share that is wrong.

    Pictures, whose values are in [0, 1], are compared as they are drawn: clipped. NaN where no pixel is predicted.
    """
    errors = {}
    for name, objective in image_objectives(model).items():
        if name not in maps:
            continue
        target, truth = objective.target, batch.maps[name].cpu()
        assert isinstance(target, Pixels | Classes)
        counted = predicted_pixels(output.queries[objective.decoder], target, batch).cpu()
        prediction = maps[name].cpu()
        if isinstance(target, Classes):
            wrong = (prediction != truth).float()
            errors[name] = (wrong * counted).flatten(1).sum(dim=1) / counted.flatten(1).sum(dim=1)
            errors[name][(prediction < 0).flatten(1).any(dim=1)] = math.nan
            continue
        if bool(((truth >= 0) & (truth <= 1) | ~truth.isfinite()).all()):
            prediction = prediction.clamp(0, 1)
        squared = torch.where(counted, (prediction - truth).square(), 0)
        number = counted.flatten(1).sum(dim=1) * truth.shape[1]
        errors[name] = (squared.flatten(1).sum(dim=1) / number).sqrt()
    return errors


def under_other_masks(model: MaskedModel, batch: Batch, count: int) -> tuple[Batch, ForwardOutput]:
    """The first sample of a batch, as often as `count`, each time under another mask of the model's own."""
    same = batch[torch.zeros(count, dtype=torch.int64, device=batch.key.device)]
    keys = sample_keys(1, 0, range(count)).to(batch.key.device)  # epoch 0 of seed 1: the batch's own are of seed 0
    same = replace(same, key=keys)
    return same, model.encode_decode(same, model.masker.predict_all())


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
