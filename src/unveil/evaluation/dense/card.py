"""Settings and cards of dense protocols: how a head was trained and evaluated."""

from __future__ import annotations

from dataclasses import asdict

from ..datasets import unreadable_facts
from .heads import HeadName
from .training import DenseTrainer

FROM_SCRATCH = "From scratch is the same training of the untrained encoder, without layer decay."
HEAD_WORDS: dict[HeadName, str] = {
    "linear": "A linear layer on each token after a BatchNorm without affine",
    "convnext": "MultiMAE's head of four ConvNeXt blocks",
    "upernet": "UPerNet, with an auxiliary head at a weight of 0.4 while it learns,",
    "dpt": "DPT's head",
}


def settings_of(trainer: DenseTrainer, schedule: str) -> dict[str, object]:
    """The settings of a result, as `eval/<protocol>.json` holds them."""
    return {
        "head": trainer.head,
        "frozen": trainer.is_frozen,
        "inputs": [m.name for m in trainer.inputs],
        "schedule": schedule,
        **asdict(trainer.settings),
        "image_size": list(trainer.view.image_size),
        "micro_batch": trainer.micro_batch,
        "optimizer": "AdamW(betas=(0.9, 0.999))",
        "train_images": len(trainer.sets.train),
        "test_images": len(trainer.sets.test),
        **unreadable_facts(tuple(trainer.unreadable)),
    }


def training_summary(trainer: DenseTrainer, schedule: str) -> str:
    """How the head was trained, in sentences."""
    settings, (height, width), (low, high) = trainer.settings, trainer.view.image_size, trainer.settings.scales
    learned = (
        "the encoder is frozen"
        if trainer.is_frozen
        else f"the encoder learns too, its rates by layer decay {settings.layer_decay:g}"
    )
    fit = "cover the image" if settings.fit == "cover" else "hold the whole image, padded"
    scale = f"{low:g} times" if low == high else f"{low:g} to {high:g} times"
    jitter = (
        f", brightness, contrast and saturation changed in {settings.jitter:.0%} of them" if settings.jitter else ""
    )
    return (
        f"{HEAD_WORDS[trainer.head]} reads {' and '.join(m.name for m in trainer.inputs)}, as tokens before any final"
        f" norm; {learned}. AdamW at a rate of {settings.lr:g}, {settings.epochs}"
        f" epoch{'s' * (settings.epochs > 1)} in batches of {settings.batch_size} (schedule {schedule}),"
        f" {settings.warmup_epochs:g} of warm-up, then a cosine. Views of {height} x {width} pixels at {scale} the"
        f" scale at which they {fit}; one box and flip for all maps{jitter}."
    )


def evaluation_summary(trainer: DenseTrainer) -> str:
    """How the head was evaluated, in sentences."""
    scratch = "" if trainer.is_frozen else f" {FROM_SCRATCH}"
    held = " No test set was given: the last fifth of the images is held out." if trainer.sets.is_held_out else ""
    return (
        " Judged after the last epoch, not the best one, at the truth's own size, on windows that overlap by a third,"
        f" whose answers are averaged.{'' if trainer.is_frozen else scratch}{held}"
    )
