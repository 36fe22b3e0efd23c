"""Detection and instance segmentation: ViTDet on boxes and masks, measured by COCO's average precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ...data.detection.layouts import BoxLayout
from ...data.extras import optional
from ..datasets import unreadable_facts
from ..detection.average_precision import average_precision
from ..detection.data import DetectionData
from ..detection.drawing import examples
from ..detection.model import check_windowed, whole_blocks
from ..detection.ops import NEEDED, detection_modules
from ..detection.presets import FEW, DetectionTraining, PresetName, preset
from ..detection.training import DetectionTrainer
from ..types import THIS_RUN, Context, FeatureEncoder, Needs, Score


@dataclass(frozen=True)
class Detect:
    """Boxes and masks of objects by ViTDet (Li et al., 2022), measured by average precision.

    layout: coco (annotations/instances_*.json beside folders of images, or one JSON beside images/), yolo (labels/
        beside images/) or voc (Annotations/ beside JPEGImages/); auto detects it
    preset: vitdet, as published; small for few images makes about 1500 updates of thinner heads; auto is small below
        20,000 images
    frozen: train pyramid and heads alone
    cascade: three stages of box heads (Cascade Mask R-CNN) in place of one
    positions: of images of another size: interpolate, extrapolate, or auto, as the encoder does
    relative_positions: add relative positions to the attention, which begin as zeros
    window: side in tokens of the windows in which all blocks attend, but for the last of each quarter
    image_size: side of the square views, into which whole images fit
    epochs: passes over the training images
    batch_size: images of one update
    lr: learning rate, whatever the batch size
    weight_decay: weight decay of matrices; vectors have none
    layer_decay: ratio of the learning rates of a layer and the next one; 1 is one rate for all
    drop_path: rate of stochastic depth in the last block; it grows linearly from 0 in the first
    ema: decay of the averaged weights that are evaluated; 0 evaluates the last ones
    """

    needs: ClassVar[Needs] = "boxes"
    keeps_head: ClassVar[bool] = True

    layout: BoxLayout = "auto"
    preset: PresetName = "auto"
    frozen: bool | None = None
    cascade: bool = False
    positions: Literal["auto", "interpolate", "extrapolate"] = "auto"
    relative_positions: bool = False
    window: int | None = None
    image_size: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    layer_decay: float | None = None
    drop_path: float | None = None
    ema: float | None = None

    def __post_init__(self) -> None:
        preset("small" if self.preset == "auto" else self.preset, FEW, 1, self._given(), self.cascade)

    def _given(self) -> dict[str, Any]:
        names = (
            "window",
            "image_size",
            "epochs",
            "batch_size",
            "lr",
            "weight_decay",
            "layer_decay",
            "drop_path",
            "ema",
        )
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def run(self, subject: FeatureEncoder, data: DetectionData, context: Context) -> Score | None:
        """The average precision after the last epoch; None for an encoder without tokens."""
        encoder = check_windowed(subject)
        if encoder is None:
            return None
        detection_modules()
        optional("faster_coco_eval", NEEDED)
        sets = data.open(self.layout, context.limit, context.note)
        given = self._given() if context.is_trained else {**self._given(), "layer_decay": 1.0}
        name: PresetName = ("small" if len(sets.train) < FEW else "vitdet") if self.preset == "auto" else self.preset
        settings = preset(name, len(sets.train), encoder.dim, given, self.cascade)
        if not sets.has_masks:
            context.note("not every object has a mask, so boxes alone are learned and measured")
        positions = None if self.positions == "auto" else self.positions
        trainer = DetectionTrainer(
            encoder, sets, settings, bool(self.frozen), positions, self.relative_positions, context
        )
        trainer.train()
        found = trainer.predictions()
        if context.keep is not None:
            context.keep(trainer.head(positions, self.relative_positions, bool(self.frozen)))
        kinds = {"box": "bbox", "mask": "segm"} if sets.has_masks else {"box": "bbox"}
        precisions = {kind: average_precision(sets.test, found, coco) for kind, coco in kinds.items()}
        shown: dict[str, Any] = {
            "curves": {k: [round(p, 4) for p in own.curve.tolist()] for k, own in precisions.items()}
        }
        if context.subject == THIS_RUN:
            shown["images"] = examples(sets.test, found)
        return Score(
            metrics={
                f"{kind}_{name}": value for kind, own in precisions.items() for name, value in own.metrics.items()
            },
            settings={
                "preset": name,
                "frozen": bool(self.frozen),
                "relative_positions": self.relative_positions,
                "positions": positions or encoder.resize_positions,
                "whole_blocks": list(whole_blocks(encoder.depth)),
                **settings.facts,
                "image_size": list(trainer.view.image_size),
                "optimizer": "AdamW(betas=(0.9, 0.999))",
                "classes": list(sets.train.classes),
                "masks": sets.has_masks,
                "train_images": len(sets.train),
                "test_images": len(found),
                "annotations_changed": {**sets.train.counts, **sets.test.counts},
                "missing_images": len(sets.train.missing) + len(sets.test.missing),
                **unreadable_facts(tuple(trainer.unreadable)),
            },
            card=_card(self, name, settings, trainer, sets.is_held_out, whole_blocks(encoder.depth)),
            trains_encoder=not self.frozen,
            details={f"{kind}_ap": own.per_class for kind, own in precisions.items()},
            shown=shown,
        )


def _card(
    options: Detect,
    name: str,
    settings: DetectionTraining,
    trainer: DetectionTrainer,
    is_held_out: bool,
    whole: tuple[int, ...],
) -> str:
    heads = settings.heads
    kind = "Cascade Mask R-CNN" if heads.cascade else "Mask R-CNN"
    kind = kind if trainer.has_masks else kind.replace("Mask", "Faster")
    learns = (
        "the encoder is frozen"
        if options.frozen
        else f"the encoder learns too, with layer decay {settings.layer_decay:g} and drop path {settings.drop_path:g}"
    )
    low, high = settings.scales
    side = trainer.view.image_size[0]
    held = " No test set was given: the last fifth of the images is held out." if is_held_out else ""
    scratch = (
        "" if options.frozen else " From scratch is the same training of the untrained encoder, without layer decay."
    )
    boxes = "" if trainer.has_masks else " Not every object has a mask: there is no mask AP."
    return (
        f"ViTDet: {kind} on a simple feature pyramid {heads.width} wide, made from the last map; attention in windows"
        f" of {settings.window} x {settings.window} tokens, but for blocks {', '.join(map(str, whole))};"
        f" {'relative positions from zero; ' if options.relative_positions else ''}{learns}. AdamW at a rate of"
        f" {settings.lr:g}, weight decay {settings.weight_decay:g}, {settings.epochs}"
        f" epoch{'s' * (settings.epochs > 1)} in batches of {settings.batch_size} (preset {name}), a tenth of the rate"
        f" from {settings.steps[0]:.1%} and from {settings.steps[1]:.1%} on. Views of {side} x {side} pixels at"
        f" {low:g} to {high:g} times the scale at which the whole image fits; tested on whole images. AP is the mean"
        " over overlaps of .5 to .95 and over classes, after the last epoch; crowds count as neither right nor wrong."
        f"{boxes}{held}{scratch}"
    )
