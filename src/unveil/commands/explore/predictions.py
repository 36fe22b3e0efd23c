"""What a model predicts of one image under a mask, in pictures and numbers, beside what needs no learning."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...evaluation.inpainting import inverse_distance, nearest_visible
from ...evaluation.visualize.panels import DISTANCES, MapRenderer
from ...evaluation.visualize.reconstructions import as_map, feature_distances, image_objectives, reconstruct_map
from ...modeling.masked_model import ForwardOutput, MaskedModel, Objective
from ...modeling.patches import unpatchify, validity
from ...modeling.targets import Classes, PatchStatistics, Pixels, patch_statistics
from ...modeling.types import Batch, Modality
from ...reporting.pictures import Picture, patch_values, png, scalar_picture

TRUTH = "The mean and the spread of each hidden patch are the true ones, which the model has not seen."
OWN = "Mean and spread of each patch as the model predicts them."
NEUTRAL = (
    "The model predicts no mean and no spread: each patch at the mean colour of the data, with the spread of the"
    " visible patches."
)
SCALE = "The true scale of the map is put back."


@dataclass(frozen=True)
class MapPrediction:
    """The pictures of one modality, PNG by name, their notes by the same names, and mean errors of hidden pixels.

    `errors` are those of the prediction, or of what the model alone says, and of filling in; `unit` is theirs.
    """

    pictures: Mapping[str, Picture]
    notes: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    unit: str = ""

    def to_json(self) -> dict[str, Any]:
        pictures = {name: as_url(picture) for name, picture in self.pictures.items()}
        return {"pictures": pictures, "notes": dict(self.notes), "errors": dict(self.errors), "unit": self.unit}


def as_url(picture: Picture) -> str:
    """A picture as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png(picture)).decode()}"


def predictions(
    model: MaskedModel | None,
    batch: Batch,
    output: ForwardOutput | None,
    modality: Modality,
    visible: list[int] | None,
    renderer: MapRenderer,
) -> MapPrediction:
    """The prediction of one modality: `visible` are its cells that the model reads, None where it is no input."""
    image = batch.maps[modality.name]
    known = validity(batch, modality)
    if model is None or output is None:
        return MapPrediction({})
    objective = image_objectives(model).get(modality.name)
    if objective is None:
        distances = feature_distances(model, batch, output).get(modality.name)
        if distances is None:
            return MapPrediction({})
        grid = output.latents.tokens.layout.grid
        values = distances[0].reshape(grid).float().cpu().numpy()
        original = renderer(image[0], known[0])
        picture = patch_values(original, values, DISTANCES)
        finite = values[np.isfinite(values)]
        note = "Features are predicted, and no pixels: colours are 1 - cos of predicted and true features, from 0 to 1."
        errors = {"prediction": float(finite.mean())} if len(finite) else {}
        return MapPrediction({"features": picture}, {"features": note}, errors, "1 - cos")
    target = objective.target
    assert isinstance(target, Pixels | Classes)
    hidden = _hidden_pixels(objective, target, batch, output) & known
    predicted = reconstruct_map(objective, batch, output)
    pictures = {"prediction": _drawn(renderer, predicted, image)}
    notes: dict[str, str] = {}
    judged = predicted
    if isinstance(target, Pixels) and target.norm_pix:
        alone, has_own = _by_itself(model, objective, target, batch, output, visible)
        judged = alone
        pictures["alone"] = _drawn(renderer, alone, image)
        notes |= {"prediction": TRUTH, "alone": OWN if has_own else NEUTRAL}
    elif modality.normalise != "fixed":
        notes["prediction"] = SCALE
    errors, unit = {}, _unit(modality, renderer)
    if hidden.any():
        errors["prediction"] = _mean_error(judged, image, hidden, modality)
        seen = known & ~hidden
        if visible and seen.any():
            filled = _filled(image, seen, modality)
            pictures["filled"] = _drawn(renderer, filled, image)
            errors["filled"] = _mean_error(filled, image, hidden, modality)
    limits = (0.0, 1.0) if modality.kind == "categorical" else (0.0, 0.4 * _range(renderer))
    difference = _difference(judged, image, modality)[0].float().cpu().numpy()
    pictures["error"] = scalar_picture(difference, hidden[0, 0].cpu().numpy(), limits)
    notes["error"] = (
        "Wrong pixels are light." if modality.kind == "categorical" else f"From 0 to {limits[1]:.3g} {unit}."
    )
    return MapPrediction(pictures, notes, errors, unit)


def _drawn(renderer: MapRenderer, values: Tensor, image: Tensor) -> Picture:
    return renderer(values[0], torch.ones_like(values[0, :1], dtype=torch.bool), like=image[0])


def _range(renderer: MapRenderer) -> float:
    return 1.0 if renderer.limits is None else max(renderer.limits[1] - renderer.limits[0], 1e-6)


def _unit(modality: Modality, renderer: MapRenderer) -> str:
    return "of pixels are wrong" if modality.kind == "categorical" else renderer.unit or "of full scale"


def _difference(predicted: Tensor, image: Tensor, modality: Modality) -> Float[Tensor, "B H W"]:
    """The mean absolute difference over channels; of classes 1 where they differ."""
    if modality.kind == "categorical":
        return (predicted != image)[:, 0].float()
    return (predicted - image).abs().mean(dim=1)


def _mean_error(predicted: Tensor, image: Tensor, hidden: Bool[Tensor, "B 1 H W"], modality: Modality) -> float:
    return float(_difference(predicted, image, modality)[hidden[:, 0]].mean())


def _hidden_pixels(
    objective: Objective, target: Pixels | Classes, batch: Batch, output: ForwardOutput
) -> Bool[Tensor, "B 1 H W"]:
    queries, image = output.queries[objective.decoder], batch.maps[target.modality.name]
    side = target.modality.side(target.patch)
    rows, columns = image.shape[-2] // side, image.shape[-1] // side
    cells = queries.weight.new_zeros(len(batch), rows * columns).scatter(1, queries.cells, queries.weight) > 0
    return unpatchify(cells[..., None].expand(-1, -1, side * side), side, (rows, columns))


def _filled(image: Tensor, seen: Bool[Tensor, "B 1 H W"], modality: Modality) -> Tensor:
    """Hidden pixels from the visible ones: a weighted mean, of classes the nearest."""
    if modality.kind == "categorical":
        return nearest_visible(image.float(), seen).long()
    return inverse_distance(torch.where(seen, image, 0), seen)


def _by_itself(
    model: MaskedModel, objective: Objective, target: Pixels, batch: Batch, output: ForwardOutput,
    visible: list[int] | None,
) -> tuple[Float[Tensor, "B C H W"], bool]:  # fmt: skip
    """What a model of norm-pix says without the true patch, and whether it predicts mean and spread itself."""
    queries = output.queries[objective.decoder]
    prediction = objective.head(output.decoded[objective.decoder]).float()
    statistics = next(
        (
            o
            for o in model.objectives
            if isinstance(o, Objective)
            and isinstance(o.target, PatchStatistics)
            and o.target.modality.name == target.modality.name
        ),
        None,
    )
    if statistics is not None:
        means, spreads = statistics.head(output.decoded[statistics.decoder]).float().chunk(2, dim=-1)
        mean = means.mean(dim=-1, keepdim=True)  # of all channels together, as norm-pix takes them
        variance = spreads.square().mean(dim=-1, keepdim=True) + (means - mean).square().mean(dim=-1, keepdim=True)
        spread = variance.sqrt()
    else:
        spreads = patch_statistics(target.patches(batch))[1][0, visible] if visible else None
        mean = torch.zeros_like(prediction[..., :1])
        spread = torch.full_like(mean, 1.0 if spreads is None else float(spreads.mean()))
    return as_map(target, batch, queries, prediction * spread + mean), statistics is not None
