"""A module from images to features as an encoder that protocols measure: one of `unveil.load`, or of any other code."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..modeling.image_encoder import FeatureExtractor, ImageEncoder
from ..modeling.public_vits import PublicViT, untrained_vit
from ..modeling.types import Pool
from ..recipes.stored_encoder import StoredEncoder
from .choice import Reading
from .types import FeatureEncoder


class ModuleFeatures(nn.Module):
    """A module of other code in eval mode: B C H W in [0, 1] -> B D; it normalises images itself.

    `image_size` is height and width of its images. Raises ValueError where no attribute says it.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.image_size, self.channels = _size(module), int(getattr(module, "channels", 3))
        self.statistics = ((0.0,) * self.channels, (1.0,) * self.channels)
        self.patch = 0

    @property
    def device(self) -> torch.device:
        first = next((t for t in (*self.parameters(), *self.buffers())), None)
        return torch.device("cpu") if first is None else first.device

    def features(self, images: Float[Tensor, "B C H W"], pool: Pool) -> Float[Tensor, "B D"]:
        """What the module returns, whatever the pool. Raises ValueError where that is no vector for each image."""
        features = self.module(images)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"{type(self.module).__name__} gives {shape} for {len(images)} images; a tensor of features, B x D, is"
                " needed: wrap it in a module that returns them"
            )
        return features


@contextmanager
def module_encoder(module: nn.Module, device: torch.device) -> Iterator[FeatureExtractor | ModuleFeatures]:
    """A module in eval mode on a device, as an encoder; it is afterwards as it was.

    One of `unveil.load` has all that protocols know of an encoder, another gives features alone. Raises ValueError for
    one that does not say the size of its images.
    """
    before = {part: part.training for part in module.modules()}
    encoder: FeatureExtractor | ModuleFeatures
    if isinstance(module, FeatureExtractor):
        encoder = copy.copy(module)  # which shares the weights, and is read otherwise
        encoder._modules = dict(module._modules)
    else:
        encoder = ModuleFeatures(module)
    try:
        yield encoder.to(device).eval()
    finally:
        for part, training in before.items():
            part.training = training


def check_module(kind: str, needs_run: bool) -> None:
    """Raise ValueError for data of another kind than labelled images, and for options that are of runs and files."""
    if kind != "labelled images" or needs_run:
        raise ValueError(
            "a module is measured on labelled images, by knn, knn-whitened, linear, linear-lbfgs, lowshot, transfer,"
            " and one of `unveil.load` by attentive and finetune; other protocols, inputs, at_epoch and keep need a run"
        )


def check_reading(encoder: FeatureEncoder, is_plain: bool) -> None:
    """Raise ValueError where tokens and blocks are chosen of a module that gives one vector an image."""
    if not is_plain and not isinstance(encoder, FeatureExtractor):
        raise ValueError(
            "layer, pool and normalize choose among the tokens of an encoder; a module of your own has none"
        )


def untrained_like(encoder: FeatureEncoder, pool: Pool) -> FeatureEncoder | None:
    """The same encoder with first weights; None for a module of other code, whose first weights nobody knows."""
    if isinstance(encoder, PublicViT):
        return untrained_vit(encoder.config, 0, pool)
    if not isinstance(encoder, ImageEncoder) or (own := StoredEncoder.of(encoder.encoder)) is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ImageEncoder(own.build(), pool)


def reading_of(encoder: FeatureEncoder) -> Reading:
    """How a module reads its features by itself."""
    if not isinstance(encoder, FeatureExtractor):
        return Reading()
    return Reading(encoder.pool, encoder.layers, encoder.combine)


def _size(module: nn.Module) -> tuple[int, int]:
    """Height and width of a module's images: its `image_size`, or what models of timm and transformers say."""
    cfg: Any = getattr(module, "pretrained_cfg", None) or {}
    of_timm = cfg.get("input_size", (None,))[-2:] if isinstance(cfg, dict) else (None,)
    said: Any = getattr(module, "image_size", None) or getattr(getattr(module, "config", None), "image_size", None)
    size: Sequence[Any] = said if isinstance(said, Sequence) else (said,) if said else of_timm
    if not size or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(
            f"{type(module).__name__} does not say the size of its images; set it: module.image_size = (224, 224), and"
            " module.channels where they have other than 3"
        )
    return int(size[0]), int(size[-1])
