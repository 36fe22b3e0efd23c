"""Semantic segmentation: a head on the encoder's tokens predicts the class of every pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ...modeling.types import Modality
from ..by_class import of_counts
from ..dense.data import DenseData, class_counts
from ..dense.metrics import Confusion
from ..dense.presets import PROBE, SMALL, DensePreset, DenseTraining
from ..dense.training import DenseOptions, DenseTarget
from ..types import Context, FeatureEncoder, Score

_MULTIMAE = DensePreset(DenseTraining(64, scales=(0.1, 2.0), fit="inside", image_size=512), "convnext")
PRESETS: dict[str, DensePreset] = {
    "probe": PROBE,
    "small": SMALL,
    # mae-base_upernet_8xb2-amp-160k_ade20k-512x512 of mmsegmentation; 127 epochs are 160,000 updates of 16 of ADE20K
    "mae": DensePreset(
        DenseTraining(
            127,
            lr=1e-4,
            layer_decay=0.65,
            image_size=512,
            fit="bounded",
            jitter=0.0,
            updates=160_000,
            warmup_updates=1500,
            class_share=0.75,
            distortion=0.5,
            blocks=(4, 6, 8, 12),
            dropout=0.1,
        ),
        "upernet",
    ),
    # https://github.com/facebookresearch/long_seq_mae/issues/1: 160,000 updates
    "mae-ade20k": DensePreset(
        DenseTraining(127, lr=8e-5, warmup_epochs=1.2, layer_decay=0.8, image_size=512), "upernet"
    ),
    "multimae-ade20k": _MULTIMAE,
    "multimae-hypersim": replace(_MULTIMAE, training=replace(_MULTIMAE.training, epochs=25)),
    "multimae-nyuv2": replace(
        _MULTIMAE, training=replace(_MULTIMAE.training, epochs=200, batch_size=8, image_size=640)
    ),
}


@dataclass(frozen=True)
class Segment(DenseOptions):
    """The class of every pixel, measured by mean IoU.

    layout: layout of images and labels: folders (rgb/ and semseg/, in train/ and test/ where there are two), ade20k,
        nyuv2, hypersim, camvid; auto detects it
    classes: the number of classes; by default from the layout, or counted in the labels
    ignore: the id of pixels without a class (void); the layout's own by default, 255 for folders
    first_class: the id of the first class; lower ones are no class
    preset: published settings, with their head and the encoder trained: mae (mmsegmentation's for ADE20K), mae-ade20k
        (long_seq_mae's), multimae-ade20k, multimae-hypersim, multimae-nyuv2; probe for a frozen encoder and small for a
        trained one make about 1000 and 2000 updates; auto is one of the two
    """

    classes: int | None = None
    ignore: int | None = None
    first_class: int | None = None

    def run(self, subject: FeatureEncoder, data: DenseData, context: Context) -> Score | None:
        """The metrics after the last epoch; None for an encoder without tokens."""
        stored = {"classes": self.classes, "ignore": self.ignore, "first_class": self.first_class}
        opened = self.opened(subject, data, context, "semseg", **stored)
        if opened is None:
            return None
        names, counts = opened.sets.train.labels.names, class_counts(opened.sets.train)
        labels = Modality("semseg", 1, (0.0,), (1.0,), kind="categorical", num_classes=len(names))
        trainer = self.trained(opened, DenseTarget(labels, len(names), classes_loss), PRESETS, context)
        confusion, majority = Confusion(len(names)), Confusion(len(names))
        most_frequent = int(counts.argmax())
        for prediction, sample in trainer.predictions():
            truth, known = sample.maps["semseg"][0], sample.valid["semseg"]
            valid = torch.ones_like(truth, dtype=torch.bool) if known is None else known[0]
            confusion.add(prediction.argmax(0), truth, valid)
            majority.add(torch.full_like(truth, most_frequent), truth, valid)
        if context.keep is not None:
            ids = opened.sets.train.labels
            context.keep(trainer.head("semseg", names, first=ids.first, void=ids.void))
        ious = dict(zip(names, confusion.iou.tolist(), strict=True))
        score = trainer.score(
            confusion.metrics(),
            {"classes": list(names)},
            notes=("", " Mean IoU is over classes that occur; pixels without a class do not count."),
            baselines={f"majority class ({names[most_frequent]})": majority.metrics()},
        )
        iou_of = {name: iou for name, iou in ious.items() if not math.isnan(iou)}
        return replace(score, details={"iou": iou_of}, shown=of_counts(confusion.counts, names=names, unit="pixels"))


def classes_loss(
    prediction: Float[Tensor, "B K H W"], target: Shaped[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"]
) -> Float[Tensor, ""]:
    """The sum of the cross-entropy over the valid pixels."""
    error = F.cross_entropy(prediction, torch.where(valid, target, 0)[:, 0].long(), reduction="none")
    return (error * valid[:, 0]).sum()
