"""Fine-tuning: the whole encoder learns the classes, beside the same training from scratch."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from ...runs.console import user_path
from ..datasets import ImageSplit, unreadable_facts
from ..finetuning import FEW, FineTuner, FineTuning, Preset, TokenPool, preset_for, settle
from ..kept_heads import KeptHead
from ..types import Context, FeatureEncoder, Needs, SavableEncoder, Score, TrainableEncoder, check_trainable


@dataclass(frozen=True)
class Finetune:
    """Fine-tuning as MAE does it (He et al., 2022, appendix A.1).

    preset: published settings: mae-b, mae-l, mae-h, crossmae-paper, crossmae-released, multimae; small for few images;
        auto is small below 200,000 images, else MAE's for the encoder's size
    epochs: passes over the training images
    updates: about how many updates, whatever the number of images; in place of epochs
    batch_size: images of one update
    lr: learning rate per 256 images of a batch
    warmup_epochs: epochs of linear warm-up
    weight_decay: weight decay of matrices; vectors have none
    layer_decay: ratio of the learning rates of a layer and the next one; 1 is one rate for all
    drop_path: rate of stochastic depth in the last block; it grows linearly from 0 in the first
    randaugment: magnitude of RandAugment, 0 to 10; 0 is off
    mixup: alpha of mixup; 0 is off
    cutmix: alpha of CutMix; 0 is off
    smoothing: label smoothing
    erasing: probability of random erasing
    ema: decay of the averaged weights that are evaluated; 0 evaluates the last ones
    keep: a new .safetensors file for the fine-tuned encoder, without its head: a teacher for cmtmae
    """

    needs: ClassVar[Needs] = "images"
    reads_tokens: ClassVar[bool] = True
    keeps_head: ClassVar[bool] = True

    preset: Preset = "auto"
    epochs: int | None = None
    updates: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    warmup_epochs: float | None = None
    weight_decay: float | None = None
    layer_decay: float | None = None
    drop_path: float | None = None
    randaugment: float | None = None
    mixup: float | None = None
    cutmix: float | None = None
    smoothing: float | None = None
    erasing: float | None = None
    ema: float | None = None
    keep: str | None = None

    def __post_init__(self) -> None:
        settle("small" if self.preset == "auto" else self.preset, FEW, self._given())  # refuses before images are read

    def _given(self) -> dict[str, object]:
        return {option: value for option, value in asdict(self).items() if option not in ("preset", "keep")}

    def run(self, subject: FeatureEncoder, data: ImageSplit, context: Context) -> Score | None:
        """Accuracy and cross-entropy after the last epoch; None for an encoder that cannot be trained."""
        encoder = check_trainable(subject)
        if encoder is None:
            return None
        file = _file_for(self.keep, encoder) if self.keep and context.is_trained else None
        num_images = len(data.train)
        name = preset_for(num_images, encoder.dim) if self.preset == "auto" else self.preset
        given = self._given()
        settings = settle(name, num_images, given if context.is_trained else {**given, "layer_decay": 1.0})
        pool = settings.pool or context.pool
        if pool not in ("cls", "mean", "all"):
            raise ValueError(
                "fine-tuning reads the class token or the mean of the patches; give --pool cls or --pool mean"
            )
        if pool == "cls" and not encoder.has_class_token:
            raise ValueError("this encoder has no class token; give --pool mean")
        if self.preset == "auto":
            context.note(
                f"finetune: preset {name} for {num_images:,} images: {settings.epochs}"
                f" epoch{'s' * (settings.epochs > 1)} in batches of {settings.batch_size};"
                " --preset, --epochs, --updates and --batch-size say otherwise"
            )
        tuner = FineTuner(encoder, data, settings, pool, context)
        loader = tuner.train()
        metrics, missing = tuner.evaluate()
        if file is not None and isinstance(tuner.model.encoder, SavableEncoder):
            tuner.model.encoder.save(file)
            context.note(f"the fine-tuned encoder is kept in {file}; unveil pretrain cmtmae --teacher {file}")
        if context.keep is not None:
            context.keep(KeptHead("classes", "finetune", {"pool": pool}, tuner.model.state_dict(), True))
        unreadable = (*loader.unreadable, *missing)
        return Score(
            metrics=metrics,
            settings={
                "preset": name,
                **asdict(settings),
                "pool": pool,
                "batch_size": loader.batch_size,
                "optimizer": "AdamW(betas=(0.9, 0.999))",
                "train_images": num_images - len(loader.unreadable),
                "test_images": len(data.test) - len(missing),
                **unreadable_facts(unreadable),
            },
            card=_card(name, settings, loader.batch_size, pool),
            trains_encoder=True,
            outcomes={"accuracy": tuner.hits},
            shown=tuner.by_class,
        )


def _file_for(keep: str, encoder: TrainableEncoder) -> Path:
    """The file for the encoder, checked before the training."""
    file = user_path(keep)
    if not isinstance(encoder, SavableEncoder):
        raise ValueError("--keep is for encoders of our runs; a public ViT keeps its own file")
    if file.suffix != ".safetensors" or file.exists() or not os.access(file.absolute().parent, os.W_OK | os.X_OK):
        raise ValueError(f"--keep is a new .safetensors file in a folder that can be written; got {keep}")
    return file


def _card(name: str, settings: FineTuning, batch_size: int, pool: TokenPool) -> str:
    read = {"cls": "the class token", "mean": "the mean of the patch tokens", "all": "the mean of all tokens"}[pool]
    regularisers = {
        "RandAugment": settings.randaugment,
        "mixup": settings.mixup,
        "CutMix": settings.cutmix,
        "label smoothing": settings.smoothing,
        "random erasing": settings.erasing,
        "drop path": settings.drop_path,
        "averaged weights": settings.ema,
    }
    used = ", ".join(f"{word} {value:g}" for word, value in regularisers.items() if value)
    return (
        f"The whole encoder and a linear head on {read} after a LayerNorm, trained by AdamW in {settings.epochs}"
        f" epoch{'s' * (settings.epochs > 1)} with batches of {batch_size} (preset {name}): base rate"
        f" {settings.lr:g} per 256 images, layer decay {settings.layer_decay:g}, weight decay"
        f" {settings.weight_decay:g}, {settings.warmup_epochs:g} epochs of warm-up, then a cosine. Random resized"
        f" crops, flips; {used or 'nothing else'}. Judged on centre views after the last epoch, not the best"
        " one. From scratch is the same training of the untrained encoder, without layer decay, which would hold its"
        " first layers back. RandAugment is bilinear here and bicubic in the public code."
    )
