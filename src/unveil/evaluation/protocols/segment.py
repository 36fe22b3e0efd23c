"""Semantic segmentation: a head on the encoder's tokens tells the class of every pixel."""

from __future__ import annotations

import math

import torch

from ...data.dense_dataset import DensePair
from ...data.dense_layouts import Layout, Stored
from ...data.modality_config import declare
from ...modeling.types import Modality
from ..dense import Confusion, DenseTask, DenseTraining, HeadName, Schedule, Trainer, Truth, check_dense, fitted
from ..dense.card import judging_words, learning_words, settings_of
from ..dense.data import opened
from ..dense.label_statistics import class_counts
from ..dense.losses import classes_loss
from ..types import Score

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


def segment(
    task: DenseTask,
    seed: int = 0,
    *,
    head: HeadName = "linear",
    frozen: bool = True,
    inputs: tuple[str, ...] = (),
    modalities: tuple[str, ...] = (),
    layout: Layout = "auto",
    classes: int | None = None,
    ignore: int | None = None,
    first_class: int | None = None,
    schedule: Schedule = "auto",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    image_size: int | None = None,
) -> Score | None:
    """The class of every pixel, judged by mean IoU; None for an encoder without tokens.

    head: linear; convnext (MultiMAE's); upernet (as MAE is fine-tuned); dpt
    frozen: only the head learns; --no-frozen trains the encoder too
    inputs: the modalities to read, of those that the encoder knows: rgb, depth, or both; by default its first
    modalities: how the maps of a folder are declared: .toml files, and rgb, depth, semseg; by default the layout says
    layout: how images and labels lie: folders (rgb/ and semseg/, in train/ and test/ where there are two), ade20k,
        nyuv2, hypersim, camvid; auto looks
    classes: their number, where only the labels tell it otherwise
    ignore: the id of pixels without a class (void); the layout's own by default, 255 for folders
    first_class: the id of the first class; lower ones are no class
    schedule: published settings: multimae-ade20k, multimae-hypersim, multimae-nyuv2, mae-ade20k; probe for a frozen
        encoder and small for one that learns fit about 1000 and 2000 updates to the set; auto is one of the two
    epochs: times that every image is seen
    batch_size: images of one update
    lr: peak learning rate, for a batch as it is
    image_size: side of the views that are learned from, and of the windows that are judged
    """
    encoder = check_dense(task.encoder)
    if encoder is None:
        return None
    stored = Stored(layout, classes, ignore, first_class, declared=declare(modalities))
    sets, chosen = opened(task, encoder, stored, inputs, "semseg")
    names, counts = class_counts(sets.train)
    sets = DensePair(sets.train.labelled(names), sets.test.labelled(names), sets.is_held_out)
    name = ("probe" if frozen else "small") if schedule == "auto" else schedule
    settings = fitted(
        *(SCHEDULES[name][0], len(sets.train), SCHEDULES[name][1]),
        {"epochs": epochs, "batch_size": batch_size, "lr": lr, "image_size": image_size},
    )
    truth = Truth(
        Modality("semseg", 1, (0.0,), (1.0,), kind="categorical", num_classes=len(names)), len(names), classes_loss
    )
    trainer = Trainer(task, sets, encoder, chosen, truth, head, frozen, settings, seed)
    trainer.train()
    found, majority = Confusion(len(names)), Confusion(len(names))
    most = int(counts.argmax())
    for guess, sample in trainer.predictions():
        true, known = sample.maps["semseg"][0], sample.valid["semseg"]
        valid = torch.ones_like(true, dtype=torch.bool) if known is None else known[0]
        found.add(guess.argmax(0), true, valid)
        majority.add(torch.full_like(true, most), true, valid)
    return Score(
        metrics=found.metrics(),
        settings=settings_of(trainer, head, frozen, name) | {"classes": list(names)},
        card=(
            learning_words(trainer, head, frozen, name)
            + judging_words(trainer, frozen)
            + " Mean IoU is over classes that occur; pixels without a class do not count."
        ),
        trains_encoder=not frozen,
        beside={f"majority class ({names[most]})": majority.metrics()},
        details={
            "iou": {name: value for name, value in zip(names, found.iou.tolist(), strict=True) if not math.isnan(value)}
        },
    )
