"""A pretrained encoder as a function of images: its normalisation included, nothing hidden, the same every time."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..runs.checkpoint import write_weights
from .encoder import Encoder
from .layers import EPS
from .types import Batch, Latents, Modality, Pool, to_float

CACHED_TOKENS = 2048


def pooled(encoder: Encoder, images: Float[Tensor, "B C H W"], pool: Pool) -> Float[Tensor, "B D"]:
    """The class token of whole images, the mean of their patch tokens, or both side by side.

    An encoder without a final norm (CrossMAE's) has its last map normalised without parameters, token by token.
    On a processor a few images are read at a time, so that their activations stay in its cache: 1.4 times as fast.
    """
    if images.device.type == "cpu":
        per_image = images.shape[-2] * images.shape[-1] // encoder.patch**2
        parts = images.split(max(1, CACHED_TOKENS // max(1, per_image)))
        return torch.cat([_pooled(encoder, part, pool) for part in parts])
    return _pooled(encoder, images, pool)


def _latents(encoder: Encoder, images: Float[Tensor, "B C H W"], keep: Collection[int] = ()) -> Latents:
    key = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    batch = Batch({encoder.modalities[0].name: images}, key, torch.ones((), device=images.device))
    return encoder(encoder.embed(batch), keep)


def _pooled(encoder: Encoder, images: Float[Tensor, "B C H W"], pool: Pool) -> Float[Tensor, "B D"]:
    latents = _latents(encoder, images)
    x = latents.final
    if isinstance(encoder.norm, nn.Identity):
        x = F.layer_norm(x, x.shape[-1:], eps=EPS)
    cls, mean = x[:, 0], x[:, latents.num_prefix :].mean(dim=1)
    if pool == "both":
        return torch.cat([cls, mean], dim=1)
    return cls if pool == "cls" else mean


class ImageEncoder(nn.Module):
    """Images, float in [0, 1] or bytes -> features: what `unveil.load` returns, and what the evaluate room measures."""

    def __init__(self, encoder: Encoder, pool: Pool = "mean"):
        super().__init__()
        self.encoder, self.pool = encoder, pool
        self.eval().requires_grad_(False)

    @property
    def channels(self) -> int:
        """Channels of the images it reads."""
        return self.encoder.modalities[0].channels

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width it was trained at; other sizes that the patch divides work too."""
        return self.encoder.image_size

    @property
    def device(self) -> torch.device:
        return self.encoder.prefix.device

    @property
    def dim(self) -> int:
        """Width of a token's features; a pool of both has twice as many."""
        return self.encoder.dim

    @property
    def depth(self) -> int:
        return self.encoder.depth

    @property
    def num_prefix(self) -> int:
        """How many tokens come before those of the patches."""
        return len(self.encoder.prefix)

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block; an identity where the recipe has none."""
        return self.encoder.norm

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The mean and the standard deviation of each channel, by which it normalises images itself."""
        return self.encoder.modalities[0].mean, self.encoder.modalities[0].std

    def maps(self, images: Float[Tensor, "B C H W"], blocks: Sequence[int]) -> list[Float[Tensor, "B K D"]]:
        """The outputs of these blocks, counted from 1, before any final norm: prefix tokens, then patches by rows."""
        latents = _latents(self.encoder, images, blocks)
        return [latents.layers[block] for block in blocks]

    @property
    def modalities(self) -> Sequence[Modality]:
        """What it can read; the first is that of `features`."""
        return self.encoder.modalities

    @property
    def patch(self) -> int:
        return self.encoder.patch

    def tokens(self, batch: Batch, blocks: Sequence[int]) -> list[Float[Tensor, "B K D"]]:
        """The outputs of these blocks, as `maps`, of all modalities that the batch has, one after another."""
        latents = self.encoder(self.encoder.embed(batch), blocks)
        return [latents.layers[block] for block in blocks]

    def layer_of(self, name: str) -> int:
        """Where a parameter sits: 0 before the blocks, k in block k counted from 1, depth + 1 after them."""
        _, part, *rest = name.split(".")
        return int(rest[0]) + 1 if part == "blocks" else self.depth + 1 if part == "norm" else 0

    def branches(self) -> Sequence[Sequence[nn.Module]]:
        """Of each block, the modules whose outputs are added to its input."""
        return [(block.ls1, block.ls2) for block in self.encoder.blocks]

    def save(self, file: Path) -> None:
        """Keep the encoder in a safetensors file that `load`, `--teacher` and `--init-from` read."""
        shape = {"heads": self.encoder.blocks[0].attn.heads}
        told = {"modality": asdict(self.modalities[0]), "dials": {"image_size": self.image_size}, "model": shape}
        state = {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        write_weights(file, state, {"unveil": json.dumps(told)})

    def features(self, images: Float[Tensor, "B C H W"], pool: Pool) -> Float[Tensor, "B D"]:
        """The class token, the mean of the patch tokens, or both side by side."""
        return pooled(self.encoder, images, pool)

    @torch.no_grad()  # not inference_mode: a head may be trained on the features
    def forward(self, images: Tensor) -> Float[Tensor, "B D"]:
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(f"images are B x {self.channels} x H x W in [0, 1]; got {tuple(images.shape)}")
        return self.features(to_float(images.to(self.device)), self.pool)
