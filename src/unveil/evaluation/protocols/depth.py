"""Depth from images: a head on the encoder's tokens predicts the distance of every pixel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ...data.transforms import resize
from ...modeling.types import DEPTH
from ..dense.data import DenseData, depth_mean
from ..dense.metrics import DepthErrors
from ..dense.presets import PROBE, SMALL, DensePreset, DenseTraining
from ..dense.training import DenseOptions, DenseTarget
from ..types import Context, FeatureEncoder, Score

BERHU_SHARE, BERHU_LEAST = 0.2, 1e-5
ONCE = (1.0, 1.0)  # one scale: a larger picture of a room would look like a nearer one
PRESETS: dict[str, DensePreset] = {
    "probe": replace(PROBE, training=replace(PROBE.training, scales=ONCE)),
    "small": replace(SMALL, training=replace(SMALL.training, scales=ONCE)),
    "multimae-nyuv2": DensePreset(
        DenseTraining(2000, 128, 1e-4, 100, 1e-4, drop_path=0.0, image_size=256, scales=ONCE), "dpt"
    ),
}


@dataclass(frozen=True)
class Depth(DenseOptions):
    """The depth of every pixel in metres.

    layout: layout of images and depth: folders (rgb/ and depth/, in train/ and test/ where there are two), nyuv2,
        hypersim; auto detects it
    depth_scale: metres of a stored unit, 0.001 by default; floats are metres
    max_depth: metres, beyond which pixels are ignored, in training and in the metrics
    loss: berhu (as MultiMAE) or l1, on pixels with a known depth
    preset: multimae-nyuv2, as published, with its head and the encoder trained; probe for a frozen encoder and small
        for a trained one make about 1000 and 2000 updates; auto is one of the two
    """

    preset: Literal["auto", "probe", "small", "multimae-nyuv2"] = "auto"
    depth_scale: float | None = None
    max_depth: float | None = None
    loss: Literal["berhu", "l1"] = "berhu"

    def run(self, subject: FeatureEncoder, data: DenseData, context: Context) -> Score | None:
        """The metrics after the last epoch; None for an encoder without tokens."""
        opened = self.opened(subject, data, context, "depth", depth_scale=self.depth_scale, max_depth=self.max_depth)
        if opened is None:
            return None
        mean, std, mean_map = depth_mean(opened.sets.train)
        loss = DepthLoss(mean, std, self.loss == "berhu")
        trainer = self.trained(opened, DenseTarget(DEPTH, 1, loss), PRESETS, context)
        errors, mean_errors = DepthErrors(), DepthErrors()
        for prediction, sample in trainer.predictions():
            truth = sample.maps["depth"]
            errors.add(loss.metres(prediction), truth, truth > 0)
            mean_errors.add(resize(mean_map / mean_map.max(), sample.size) * mean_map.max(), truth, truth > 0)
        if context.keep is not None:
            context.keep(trainer.head("depth", mean=mean, std=std))
        return trainer.score(
            errors.metrics(),
            {"loss": self.loss, "max_depth": self.max_depth, "train_depth_mean": mean, "train_depth_std": std},
            notes=(
                f" The loss is {'BerHu' if self.loss == 'berhu' else 'L1'} on pixels with a known depth, normalised by"
                " the training set's mean and deviation.",
                " Errors are over all known pixels of all test images together, in metres; delta1 is the share within"
                " a ratio of 1.25 (Eigen et al., 2014). Training mean: at each pixel the mean depth of the training"
                " set.",
            ),
            baselines={"training mean": mean_errors.metrics()},
        )


@dataclass(frozen=True)
class DepthLoss:
    """The error of depth that is normalised by the training set's mean and deviation, in metres.

    L1, or BerHu: above c, a fifth of the largest error in the batch, the square (e^2 + c^2) / 2c takes over (Laina et
    al., 2016, section 3.2).
    """

    mean: float
    std: float
    is_berhu: bool = True

    def __call__(
        self, prediction: Float[Tensor, "B K H W"], target: Shaped[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"]
    ) -> Float[Tensor, ""]:
        error = torch.where(valid, (prediction - (target - self.mean) / self.std).abs(), 0)
        if self.is_berhu:
            c = (BERHU_SHARE * error.detach().amax()).clamp_min(BERHU_LEAST)
            error = torch.where(error < c, error, (error.square() + c.square()) / (2 * c))
        return error.sum()

    def metres(self, prediction: Float[Tensor, "*_"]) -> Float[Tensor, "*_"]:
        return prediction * self.std + self.mean
