"""What a model predicts of one image under a mask, in pictures and numbers, beside what needs no learning."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ...evaluation.visualize.panels import DISTANCES, MapRenderer
from ...evaluation.visualize.reconstructions import (
    feature_distances,
    image_objectives,
    interpolations,
    map_errors,
    predicted_pixels,
    reconstructions,
    unaided_reconstructions,
)
from ...modeling.masked_model import ForwardOutput, MaskedModel, Objective
from ...modeling.patches import validity
from ...modeling.targets import Classes, PatchStatistics, Pixels
from ...modeling.types import Batch, Modality
from ...reporting.pictures import Picture, patch_values, png, scalar_picture

TRUTH = "The mean and the spread of each hidden patch are the true ones, which the model has not seen."
OWN = "Mean and spread of each patch as the model predicts them."
NEUTRAL = "It predicts no mean and no spread: a neutral mean, and the spread of the visible patches."
SCALE = "The true scale of the map is put back."
FEATURES = "Features are predicted, and no pixels: colours are 1 - cos of predicted and true features, from 0 to 1."


@dataclass(frozen=True)
class MapPrediction:
    """The pictures of one modality by name, their notes by the same names, and the errors of hidden pixels.

    `errors` are those of what the model itself says (prediction) and of filling in (filled), in `unit`.
    """

    pictures: Mapping[str, Picture] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    unit: str = ""

    def to_json(self) -> dict[str, Any]:
        pictures = {name: as_url(picture) for name, picture in self.pictures.items()}
        errors = {name: value for name, value in self.errors.items() if math.isfinite(value)}
        return {"pictures": pictures, "notes": dict(self.notes), "errors": errors, "unit": self.unit}


def as_url(picture: Picture) -> str:
    """A picture as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png(picture)).decode()}"


def predictions(
    model: MaskedModel, batch: Batch, output: ForwardOutput, renderers: Mapping[str, MapRenderer]
) -> dict[str, MapPrediction]:
    """What is predicted of each modality of one image, every hidden token predicted."""
    predicted, alone = reconstructions(model, batch, output), unaided_reconstructions(model, batch, output)
    filled = interpolations(model, batch, output)
    judged = predicted | alone
    errors = {
        "prediction": map_errors(model, batch, output, judged),
        "filled": map_errors(model, batch, output, filled),
    }
    drawn = {}
    for name, objective in image_objectives(model).items():
        target, renderer, image = objective.target, renderers[name], batch.maps[name]
        assert isinstance(target, Pixels | Classes)
        pictures, notes = {"prediction": _drawn(renderer, predicted[name], image)}, dict[str, str]()
        if name in alone:
            pictures["alone"] = _drawn(renderer, alone[name], image)
            notes |= {"prediction": TRUTH, "alone": OWN if _predicts_statistics(model, name) else NEUTRAL}
        elif target.modality.normalise != "fixed":
            notes["prediction"] = SCALE
        own = {kind: float(of[name][0]) for kind, of in errors.items() if name in of}
        if math.isfinite(own.get("filled", math.nan)):
            pictures["filled"] = _drawn(renderer, filled[name], image)
        pixels = predicted_pixels(output.queries[objective.decoder], target, batch)[0, 0].cpu().numpy()
        if isinstance(target, Classes):
            limit, unit, notes["error"] = 1.0, "of pixels are wrong", "Wrong pixels are light."
        else:
            limit, unit = 0.4 * renderer.range, renderer.unit or "of full scale"
            notes["error"] = f"From 0 to {limit:.3g} {unit}."
        pictures["error"] = scalar_picture(_difference(judged[name], image, target.modality), pixels, (0.0, limit))
        drawn[name] = MapPrediction(pictures, notes, own, unit)
    for name, distances in feature_distances(model, batch, output).items():
        values = distances[0].reshape(output.latents.tokens.layout.grid).float().cpu().numpy()
        original = renderers[name](batch.maps[name][0], validity(batch, renderers[name].modality)[0])
        error = {"prediction": float(np.nanmean(values))} if np.isfinite(values).any() else {}
        picture = patch_values(original, values, DISTANCES)
        drawn[name] = MapPrediction({"features": picture}, {"features": FEATURES}, error, "1 - cos")
    return drawn


def _drawn(renderer: MapRenderer, values: Tensor, image: Tensor) -> Picture:
    known = values[0, :1] >= 0 if renderer.modality.kind == "categorical" else values[0, :1].isfinite()
    return renderer(values[0], known, like=image[0])


def _difference(predicted: Tensor, image: Tensor, modality: Modality) -> np.ndarray:
    """The mean absolute difference over channels, H W; of classes 1 where they differ."""
    if modality.kind == "categorical":
        return (predicted != image)[0, 0].float().cpu().numpy()
    return (predicted - image).abs().mean(dim=1)[0].float().cpu().numpy()


def _predicts_statistics(model: MaskedModel, modality: str) -> bool:
    """Whether a model predicts mean and spread of the patches of a modality."""
    own = (o.target for o in model.objectives if isinstance(o, Objective))
    return any(isinstance(target, PatchStatistics) and target.modality.name == modality for target in own)
