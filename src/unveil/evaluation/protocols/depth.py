"""Depth from images: a head on the encoder's tokens tells how far away every pixel is."""

from __future__ import annotations

from typing import Literal

from ...data.dense_layouts import Layout, Stored
from ...data.modality_config import declare
from ...data.transforms import resize
from ...modeling.types import DEPTH
from ..dense import DenseTask, DenseTraining, DepthErrors, HeadName, Schedule, Trainer, Truth, check_dense, fitted
from ..dense.card import judging_words, learning_words, settings_of
from ..dense.data import opened
from ..dense.label_statistics import depth_mean
from ..dense.losses import DepthLoss
from ..types import Score

ONCE = (1.0, 1.0)  # one scale: a larger picture of a room would look like a nearer one
SCHEDULES: dict[str, tuple[DenseTraining, int]] = {  # settings, and the updates made at most; 0 is any number
    "probe": (DenseTraining(100, lr=2e-3, warmup_epochs=10, layer_decay=1.0, drop_path=0.0, scales=ONCE), 1000),
    "small": (DenseTraining(100, lr=3e-4, warmup_epochs=10, scales=ONCE), 2000),
    "multimae-nyuv2": (DenseTraining(2000, 128, 1e-4, 100, 1e-4, drop_path=0.0, image_size=256, scales=ONCE), 0),
}


def depth(
    task: DenseTask,
    seed: int = 0,
    *,
    head: HeadName = "linear",
    frozen: bool = True,
    inputs: tuple[str, ...] = (),
    modalities: tuple[str, ...] = (),
    layout: Layout = "auto",
    depth_scale: float | None = None,
    max_depth: float | None = None,
    loss: Literal["berhu", "l1"] = "berhu",
    schedule: Schedule = "auto",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    image_size: int | None = None,
) -> Score | None:
    """The depth of every pixel in metres; None for an encoder without tokens.

    head: linear; convnext (MultiMAE's); upernet (as MAE is fine-tuned); dpt
    frozen: only the head learns; --no-frozen trains the encoder too
    inputs: the modalities to read, of those that the encoder knows; by default its first
    modalities: how the maps of a folder are declared: .toml files, and rgb, depth, semseg; by default the layout says
    layout: how images and depth lie: folders (rgb/ and depth/, in train/ and test/ where there are two), nyuv2,
        hypersim; auto looks
    depth_scale: metres of a stored unit, 0.001 by default; floats are metres
    max_depth: metres, beyond which pixels neither teach nor count
    loss: berhu (as MultiMAE) or l1, on pixels with a known depth
    schedule: multimae-nyuv2, as published; probe for a frozen encoder and small for one that learns fit about
        1000 and 2000 updates to the set; auto is one of the two
    epochs: times that every image is seen
    batch_size: images of one update
    lr: peak learning rate, for a batch as it is
    image_size: side of the views that are learned from, and of the windows that are judged
    """
    encoder = check_dense(task.encoder)
    if encoder is None:
        return None
    stored = Stored(layout, depth_scale=depth_scale, max_depth=max_depth, declared=declare(modalities))
    sets, chosen = opened(task, encoder, stored, inputs, "depth")
    mean, std, everywhere = depth_mean(sets.train)
    name = ("probe" if frozen else "small") if schedule == "auto" else schedule
    if name not in SCHEDULES:
        raise ValueError(f"depth has the schedules {', '.join(SCHEDULES)}; got {name!r}")
    settings, updates = SCHEDULES[name]
    given = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "image_size": image_size}
    settings = fitted(settings, len(sets.train), updates, given)
    truth = DepthLoss(mean, std, loss == "berhu")
    trainer = Trainer(task, sets, encoder, chosen, Truth(DEPTH, 1, truth), head, frozen, settings, seed)
    trainer.train()
    found, trivial = DepthErrors(), DepthErrors()
    for guess, sample in trainer.predictions():
        true = sample.maps["depth"]
        found.add(truth.metres(guess), true, true > 0)
        trivial.add(resize(everywhere / everywhere.max(), sample.size) * everywhere.max(), true, true > 0)
    return Score(
        metrics=found.metrics(),
        settings=settings_of(trainer, head, frozen, name)
        | {"loss": loss, "max_depth": max_depth, "train_depth_mean": mean, "train_depth_std": std},
        card=(
            learning_words(trainer, head, frozen, name)
            + f" The loss is {'BerHu' if loss == 'berhu' else 'L1'} on pixels with a known depth, normalised by"
            + " the training set's mean and deviation."
            + judging_words(trainer, frozen)
            + " Errors are over all known pixels of all test images together, in metres; delta1 is the share within a"
            + " ratio of 1.25 (Eigen et al., 2014). Training mean: at each pixel the mean depth of the training set."
        ),
        trains_encoder=not frozen,
        beside={"training mean": trivial.metrics()},
    )
