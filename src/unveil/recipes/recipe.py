"""A recipe: one encoder taken through stages, how it is optimised and how images become views."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal, ParamSpec, TypeVar, cast

import torch

from ..data.transforms import Flip, View
from ..modeling.encoder import Encoder, MlpKind, vit
from ..modeling.layers import ResizePositions
from ..modeling.losses import LOSSES, Loss, smooth_l1
from ..modeling.masked_model import MaskedModel
from ..modeling.masking import Masker
from ..modeling.optim import Optim, OptimizerName
from ..modeling.position_table import PositionKind
from ..modeling.types import Modality
from .options import check_choices as check_choices  # for recipe files, which import it from here

ENCODER = "imported"  # in the place of a recipe: of a run that is an imported encoder alone
LrScale = Literal["predicted", "inverse", "none"]
P = ParamSpec("P")
T = TypeVar("T")


def once(make: Callable[P, T]) -> Callable[P, T]:
    """A part that stages share but that can be made only when the first of them is built, such as a head as wide as a
    teacher's features. It is made once, from chance that is drawn now: whichever stage asks first, it is the same."""
    seed = int(torch.randint(2**62, (), device="cpu"))

    @cache
    def made(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make(*args, **kwargs)

    return cast("Callable[P, T]", made)


@dataclass(frozen=True)
class Stage:
    """A part of the training. Its model is built when it is reached, so it starts from what the encoder has become."""

    build: Callable[[], MaskedModel]
    epochs: float

    def __post_init__(self) -> None:
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs is a number of passes over the data, above 0; got {self.epochs}")


@dataclass(frozen=True)
class Recipe:
    """A paper as data: the encoder that all stages share, the stages, the optimiser and the views.

    One schedule of the learning rate spans all stages, unless `restart`: then each stage warms up and decays anew.
    """

    encoder: Encoder
    stages: tuple[Stage, ...]
    optim: Optim
    view: View
    restart: bool = False

    @property
    def epochs(self) -> float:
        """The length of all stages together."""
        return sum(stage.epochs for stage in self.stages)


@dataclass(frozen=True)
class Hyperparameters:
    """Model size, schedule, optimiser and augmentation. The defaults are MAE's (arXiv 2111.06377, table 8).

    size: width and depth of the ViT: nano, tiny, small, base, large, huge, giant
    patch: side of a patch in pixels
    image_size: side of a training view in pixels, or its height and width
    epochs: passes over the data
    warmup_epochs: epochs in which the learning rate rises
    batch_size: images per update, over all devices and micro-batches
    lr: learning rate per 256 images of the batch
    min_lr: learning rate at which the cosine ends, whatever the batch
    optimizer: adamw; muon for the matrices of the blocks and AdamW for the rest, at AdamW's rates; or sgd, which needs
        a rate of its own
    weight_decay: on matrices and tokens, of every optimizer
    clip: largest norm of the gradient; none: no limit
    crop_scale: smallest share of the image's area that a view shows
    resize_positions: what images of another size than the training's get for positions: those of the training,
        interpolated (MAE, MultiMAE), or the same waves further on (extrapolate)
    encoder_positions: sincos, which are computed (MAE); learned, a table that trains (ViT, DINOv2); or fixed, a table
        that stays as --init-from has it
    registers: number of tokens beside the class token (DINOv2)
    layer_scale: first value of a learned factor of each channel of a residual branch (DINOv2: 1e-5); none: no factor
    mlp: gelu, four times as wide as its input; or swiglu, gated (DINOv2's giant)
    flip: none, h, hv, or d4 (flips and quarter turns: satellite, microscopy)
    """

    size: str = "base"
    patch: int = 16
    image_size: tuple[int, ...] = (224,)
    epochs: float = 800
    warmup_epochs: float = 40
    batch_size: int = 4096
    lr: float = 1.5e-4
    min_lr: float = 0.0
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.05
    clip: float | None = None
    crop_scale: float = 0.2
    resize_positions: ResizePositions = "interpolate"
    encoder_positions: PositionKind = "sincos"
    registers: int = 0
    layer_scale: float | None = None
    mlp: MlpKind = "gelu"
    flip: Flip = "h"

    def vit(self, *modalities: Modality, final_norm: bool = True) -> Encoder:
        """A new ViT of this size, patch and image size that reads the given modalities."""
        parts: dict[str, Any] = {"registers": self.registers, "layer_scale": self.layer_scale, "mlp": self.mlp}
        parts |= {"resize_positions": self.resize_positions, "positions": self.encoder_positions}
        return vit(self.size, self.patch, self.image_size, modalities, final_norm, **parts)

    def optim(self, betas: tuple[float, float] = (0.9, 0.95), lr_factor: float = 1.0) -> Optim:
        """The optimizer, with `betas` of AdamW, a linear warm-up and a cosine decay."""
        schedule = (self.lr, self.batch_size, self.warmup_epochs)
        own = Optim(*schedule, self.weight_decay, betas, self.clip, lr_factor, min_lr=self.min_lr)
        return replace(own, optimizer=self.optimizer)

    def view(self, encoder: Encoder) -> View:
        """Random resized crops of the encoder's image size, flipped."""
        return View(encoder.image_size, (self.crop_scale, 1.0), flip=self.flip)


@dataclass(frozen=True)
class DecoderShape:
    """The size of the decoder, a group of options of the recipes that have one. The defaults are MAE's.

    decoder_dim: width of the decoder
    decoder_depth: number of the decoder's blocks
    decoder_heads: number of the decoder's attention heads
    """

    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16

    @property
    def dims(self) -> tuple[int, int, int]:
        """Width, depth and heads, in the order in which decoders take them."""
        return self.decoder_dim, self.decoder_depth, self.decoder_heads


def lr_factor(lr_scale: LrScale, masker: Masker) -> float:
    """The factor of the learning rate: predicted/hidden patches (CrossMAE's released code), its inverse, or 1."""
    share = masker.predicted_share / (1 - masker.visible)
    return {"predicted": share, "inverse": 1 / share, "none": 1.0}[lr_scale]


def make_loss(name: str, beta: float = 1.0) -> Loss:
    """The loss of a name; `beta` is that of the smooth-l1 loss. Raises ValueError for a beta below 0."""
    if beta < 0:
        raise ValueError(f"beta is the error below which the smooth-l1 loss is squared, at least 0; got {beta}")
    return partial(smooth_l1, beta=beta) if name == "smooth-l1" else LOSSES[name]
