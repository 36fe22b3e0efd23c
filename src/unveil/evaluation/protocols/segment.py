"""Semantic segmentation: a head on the encoder's tokens predicts the class of every pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ...data.dense_layouts import StorageOptions
from ...data.modality_config import declare
from ...modeling.types import Modality
from ..dense.data import DenseData, class_counts
from ..dense.metrics import Confusion
from ..dense.model import check_dense
from ..dense.training import DenseOptions, DenseTarget, DenseTrainer, DenseTraining
from ..types import Context, FeatureEncoder, Score

_MULTIMAE = DenseTraining(64, scales=(0.1, 2.0), fit="inside", image_size=512)
SCHEDULES: dict[str, tuple[DenseTraining, int]] = {  # settings, and the updates that are made at most; 0 is any number
    "probe": (DenseTraining(100, lr=2e-3, warmup_epochs=10, layer_decay=1.0, drop_path=0.0), 1000),
    "small": (DenseTraining(100, lr=3e-4, warmup_epochs=10), 2000),
    "multimae-ade20k": (_MULTIMAE, 0),
    "multimae-hypersim": (DenseTraining(25, scales=(0.1, 2.0), fit="inside", image_size=512), 0),
    "multimae-nyuv2": (DenseTraining(200, 8, scales=(0.1, 2.0), fit="inside", image_size=640), 0),
    # 160,000 updates of 16 of ADE20K's 20,210 images
    "mae-ade20k": (DenseTraining(127, lr=8e-5, warmup_epochs=1.2, layer_decay=0.8, image_size=512), 0),
}


@dataclass(frozen=True)
class Segment(DenseOptions):
    """The class of every pixel, measured by mean IoU.

    layout: layout of images and labels: folders (rgb/ and semseg/, in train/ and test/ where there are two), ade20k,
        nyuv2, hypersim, camvid; auto detects it
    classes: the number of classes; by default from the layout, or counted in the labels
    ignore: the id of pixels without a class (void); the layout's own by default, 255 for folders
    first_class: the id of the first class; lower ones are no class
    schedule: published settings: multimae-ade20k, multimae-hypersim, multimae-nyuv2, mae-ade20k; probe for a frozen
        encoder and small for a trained one make about 1000 and 2000 updates; auto is one of the two
    """

    classes: int | None = None
    ignore: int | None = None
    first_class: int | None = None

    def run(self, subject: FeatureEncoder, data: DenseData, context: Context) -> Score | None:
        """The metrics after the last epoch; None for an encoder without tokens."""
        encoder = check_dense(subject)
        if encoder is None:
            return None
        stored = StorageOptions(
            self.layout, self.classes, self.ignore, self.first_class, declared=declare(self.modalities)
        )
        sets, inputs = data.open(encoder, stored, self.inputs, "semseg", context.limit)
        names, counts = sets.train.labels.names, class_counts(sets.train)
        schedule, settings = self.training(SCHEDULES, len(sets.train))
        labels = Modality("semseg", 1, (0.0,), (1.0,), kind="categorical", num_classes=len(names))
        target = DenseTarget(labels, len(names), classes_loss)
        trainer = DenseTrainer(encoder, sets, inputs, target, self.head, self.frozen, settings, context)
        trainer.train()
        confusion, majority = Confusion(len(names)), Confusion(len(names))
        most_frequent = int(counts.argmax())
        for prediction, sample in trainer.predictions():
            truth, known = sample.maps["semseg"][0], sample.valid["semseg"]
            valid = torch.ones_like(truth, dtype=torch.bool) if known is None else known[0]
            confusion.add(prediction.argmax(0), truth, valid)
            majority.add(torch.full_like(truth, most_frequent), truth, valid)
        ious = dict(zip(names, confusion.iou.tolist(), strict=True))
        return trainer.score(
            schedule,
            confusion.metrics(),
            {"classes": list(names)},
            notes=("", " Mean IoU is over classes that occur; pixels without a class do not count."),
            baselines={f"majority class ({names[most_frequent]})": majority.metrics()},
            details={"iou": {name: iou for name, iou in ious.items() if not math.isnan(iou)}},
        )


def classes_loss(
    prediction: Float[Tensor, "B K H W"], target: Shaped[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"]
) -> Float[Tensor, ""]:
    """The sum of the cross-entropy over the valid pixels."""
    error = F.cross_entropy(prediction, torch.where(valid, target, 0)[:, 0].long(), reduction="none")
    return (error * valid[:, 0]).sum()
