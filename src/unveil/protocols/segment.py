"""Semantic segmentation: a head on the encoder's tokens tells the class of every pixel."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Literal

import torch

from ..data.layouts import DensePair, Layout, Reading, open_dense
from ..records import Modality
from .dense import Confusion, DenseTask, DenseTraining, HeadName, Trainer, Truth, check_dense, fitted
from .dense.counting import class_counts
from .dense.encoder import chosen_inputs
from .dense.truth import classes_loss
from .protocol import Score
from .task import unreadable_facts

Training = Literal["auto", "probe", "small", "multimae-ade20k", "multimae-hypersim", "multimae-nyuv2", "mae-ade20k"]
_MULTIMAE = DenseTraining(64, scales=(0.1, 2.0), fit="inside", image_size=512)
PRESETS: dict[str, tuple[DenseTraining, int]] = {  # settings, and the updates that are made at most; 0 is any number
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
    layout: Layout = "auto",
    classes: int | None = None,
    ignore: int | None = None,
    first_class: int | None = None,
    training: Training = "auto",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    image_size: int | None = None,
) -> Score | None:
    """The class of every pixel, judged by mean IoU; None for an encoder without tokens.

    head: linear; convnext (MultiMAE's); upernet (as MAE is fine-tuned); dpt
    frozen: only the head learns; --no-frozen trains the encoder too
    inputs: the modalities to read, of those that the encoder knows: rgb, depth, or both; by default its first
    layout: how images and labels lie: folders (rgb/ and semseg/, in train/ and test/ where there are two), ade20k,
        nyuv2, hypersim, camvid; auto looks
    classes: their number, where only the labels tell it otherwise
    ignore: the id of pixels without a class (void); the layout's own by default, 255 for folders
    first_class: the id of the first class; lower ones are no class
    training: published settings: multimae-ade20k, multimae-hypersim, multimae-nyuv2, mae-ade20k; probe for a frozen
        encoder and small for one that learns fit about 1000 and 2000 updates to the set; auto is one of the two
    epochs: times that every image is seen
    batch_size: images of one update
    lr: peak learning rate, for a batch as it is
    image_size: side of the views that are learned from, and of the windows that are judged
    """
    encoder = check_dense(task.encoder)
    if encoder is None:
        return None
    opened = open_dense(task.data, task.test_data, Reading(layout, classes, ignore, first_class))
    sets = DensePair(
        *(s.limited(task.limit).with_channels(encoder.channels) for s in (opened.train, opened.test)),
        opened.is_held_out,
    )
    modalities = chosen_inputs(encoder, inputs, list(sets.train.files), "semseg")
    for samples in (sets.train, sets.test):
        samples.check([*(m.name for m in modalities), "semseg"])
    names, counts = class_counts(sets.train)
    sets = DensePair(sets.train.labelled(names), sets.test.labelled(names), sets.is_held_out)
    name = ("probe" if frozen else "small") if training == "auto" else training
    settings = fitted(
        *(PRESETS[name][0], len(sets.train), PRESETS[name][1]),
        {"epochs": epochs, "batch_size": batch_size, "lr": lr, "image_size": image_size},
    )
    truth = Truth(
        Modality("semseg", 1, (0.0,), (1.0,), kind="categorical", num_classes=len(names)), len(names), classes_loss
    )
    trainer = Trainer(task, sets, encoder, modalities, truth, head, frozen, settings, seed)
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
        settings={
            "head": head,
            "frozen": frozen,
            "inputs": [m.name for m in modalities],
            "training": name,
            **asdict(settings),
            "image_size": list(trainer.view.size),
            "micro_batch": trainer.micro_batch,
            "optimizer": "AdamW(betas=(0.9, 0.999))",
            "classes": list(names),
            "train_images": len(sets.train),
            "test_images": len(sets.test),
            **unreadable_facts(tuple(trainer.unreadable)),
        },
        card=_card(trainer, head, frozen, name, sets.is_held_out),
        trains_encoder=not frozen,
        beside={f"majority class ({names[most]})": majority.metrics()},
        details={
            "iou": {name: value for name, value in zip(names, found.iou.tolist(), strict=True) if not math.isnan(value)}
        },
    )


HEAD_WORDS = {
    "linear": "A linear layer on each token after a BatchNorm without affine",
    "convnext": "MultiMAE's head of four ConvNeXt blocks",
    "upernet": "UPerNet, without its auxiliary head,",
    "dpt": "DPT's head",
}


def _card(trainer: Trainer, head: HeadName, frozen: bool, training: str, is_held_out: bool) -> str:
    settings = trainer.settings
    learned = "the encoder is frozen" if frozen else f"the encoder learns too, layer decay {settings.layer_decay:g}"
    scratch = "" if frozen else " From scratch is the same training of the untrained encoder, without layer decay."
    held = " No test set was given: the last fifth of the training images is held out." if is_held_out else ""
    fit = "cover" if settings.fit == "cover" else "hold the whole image, padded,"
    return (
        f"{HEAD_WORDS[head]} reads {' and '.join(m.name for m in trainer.inputs)}; {learned}. AdamW at a rate of"
        f" {settings.lr:g}, {settings.epochs} epochs in batches of {settings.batch_size} ({training} settings),"
        f" {settings.warmup_epochs:g} of warm-up, then a cosine; views of {trainer.view.size[0]} x"
        f" {trainer.view.size[1]} pixels at {settings.scales[0]:g} to {settings.scales[1]:g} times the scale at which"
        f" they {fit} the image, one box and flip for all maps, brightness, contrast and saturation jittered half of"
        " the time. Judged after the last epoch, not the best one, at the labels' own size, on windows that overlap by"
        " a third and whose scores are averaged. Mean IoU is over classes that occur; pixels without a class do not"
        f" count.{scratch}{held}"
    )
