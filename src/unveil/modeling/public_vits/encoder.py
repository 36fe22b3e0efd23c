"""Encoders of other projects as functions of images: `load_encoder("clip.safetensors")`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...runs.console import log
from ..layers import EPS
from ..types import Batch, FeatureSpec, Layout, Modality, Observation, Pool, to_float
from . import clip, dino, multimae
from . import timm_vit as plain
from . import unveil_runs as own
from .files import StateDict
from .load_report import load_weights
from .locate import WeightFiles, find_weights
from .spec_from_weights import Traits, assemble
from .vit import ViT, ViTConfig

FAMILIES: tuple[
    Callable[[WeightFiles], tuple[StateDict, Traits] | None], ...
] = (  # the first that knows the names reads them
    own.read,
    multimae.read,
    clip.read,
    dino.read,
    plain.read,
)
MATCHED = 0.9  # of an encoder's tensors; with fewer the file is of something else


class PublicViT(nn.Module):
    """Images in [0, 1] -> features, with the normalisation that the encoder was trained with."""

    mean: Tensor
    std: Tensor

    def __init__(self, vit: ViT, pool: Pool = "mean"):
        super().__init__()
        self.vit, self.pool = vit, pool
        self.register_buffer("mean", torch.tensor(vit.config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(vit.config.std)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    @property
    def config(self) -> ViTConfig:
        return self.vit.config

    @property
    def channels(self) -> int:
        """Channels of the images it reads."""
        return self.config.channels

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width it was trained at; other sizes that the patch divides work too."""
        return self.config.grid[0] * self.config.patch, self.config.grid[1] * self.config.patch

    @property
    def device(self) -> torch.device:
        return self.vit.prefix.device

    @property
    def dim(self) -> int:
        """Width of a token's features before any projection."""
        return self.config.width

    @property
    def depth(self) -> int:
        return self.config.depth

    @property
    def num_prefix(self) -> int:
        """How many tokens come before those of the patches: class token, registers."""
        return self.config.num_prefix

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block; an identity where there is none."""
        return self.vit.norm

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The mean and the standard deviation of each channel, by which it normalises images itself."""
        return self.config.mean, self.config.std

    def normalised(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Images as the ViT reads them. Raises ValueError where the patch does not divide them."""
        if images.shape[-2] % self.config.patch or images.shape[-1] % self.config.patch:
            raise ValueError(
                f"images of {images.shape[-2]} x {images.shape[-1]} are not divided by this encoder's patches of"
                f" {self.config.patch}; give another size, such as {self.image_size[0]} x {self.image_size[1]}"
            )
        return (images - self.mean) / self.std

    def observe(
        self, images: Float[Tensor, "B C H W"], grid: tuple[int, int], spec: FeatureSpec, modality: str = "rgb"
    ) -> Observation:
        """What it sees in images that are resized to this grid of its patches; nothing beyond the reading is run."""
        fitted = resized(images, (grid[0] * self.config.patch, grid[1] * self.config.patch))
        attention, features = self.vit.read(self.normalised(fitted), spec)
        features, class_token = None if features is None else features.float(), None
        if features is not None and spec.class_token:
            class_token, features = features[:, 0], features[:, self.num_prefix :]
        layout = Layout({modality: slice(0, grid[0] * grid[1])}, grid)
        return Observation(layout, attention, features, class_token=class_token)

    def feature_dim(self, spec: FeatureSpec) -> int:
        """The width of the features that a reading gives."""
        return self.config.projection if spec.projected else self.config.width

    def features(self, images: Float[Tensor, "B C H W"], pool: Pool) -> Float[Tensor, "B F"]:
        """The class token, the mean of the patch tokens, or both side by side.

        The final norm is applied where its source does; elsewhere tokens are normalised without parameters.
        """
        if pool != "mean" and not self.num_prefix:
            raise ValueError("this encoder has no class token; use --pool mean")
        x, start = self.vit(self.normalised(images)), self.num_prefix
        plain = x if self.config.final_norm == "all" else F.layer_norm(x, x.shape[-1:], eps=EPS)
        mean = plain[:, start:].mean(dim=1)
        if pool == "mean":
            return mean
        cls = self.vit.norm(x[:, 0]) if self.config.final_norm == "cls" else plain[:, 0]
        return cls if pool == "cls" else torch.cat([cls, mean], dim=1)

    def maps(self, images: Float[Tensor, "B C H W"], blocks: Sequence[int]) -> list[Float[Tensor, "B K D"]]:
        """The outputs of these blocks, counted from 1, before any final norm: prefix tokens, then patches by rows."""
        x, rotation = self.vit.begin(self.normalised(images))
        outputs = []
        for block in self.vit.blocks:
            x = block(x, None, None, rotation)
            outputs.append(x)
        return [outputs[block - 1] for block in blocks]

    @property
    def modalities(self) -> Sequence[Modality]:
        return (Modality("rgb", self.channels, *self.statistics),)

    @property
    def patch(self) -> int:
        return self.config.patch

    def tokens(self, batch: Batch, blocks: Sequence[int]) -> list[Float[Tensor, "B K D"]]:
        """The outputs of these blocks, as `maps`, of a batch's pictures."""
        return self.maps(batch.maps["rgb"], blocks)

    def layer_of(self, name: str) -> int:
        """Where a parameter sits: 0 before the blocks, k in block k counted from 1, depth + 1 after them."""
        _, part, *rest = name.split(".")
        return int(rest[0]) + 1 if part == "blocks" else self.depth + 1 if part in ("norm", "projection") else 0

    def branches(self) -> Sequence[Sequence[nn.Module]]:
        """Of each block, the modules whose outputs are added to its input."""
        return [(block.ls1, block.ls2) for block in self.vit.blocks]

    @torch.no_grad()  # not inference_mode: a head may be trained on the features
    def forward(self, images: Tensor) -> Float[Tensor, "B F"]:
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(f"images are B x {self.channels} x H x W in [0, 1]; got {tuple(images.shape)}")
        return self.features(to_float(images.to(self.device)), self.pool)


def resized(images: Float[Tensor, "B C H W"], size: tuple[int, int]) -> Float[Tensor, "B C h w"]:
    """Images in [0, 1] at another size: bicubic, antialiased."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def untrained_vit(config: ViTConfig, seed: int, pool: Pool = "mean") -> PublicViT:
    """An encoder of this description as it is before any training; torch's own chance is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PublicViT(ViT(config), pool)


def load_encoder(address: str | Path, pool: Pool = "mean") -> PublicViT:
    """A public ViT, frozen, from a weight file, a folder with its configuration, a run of ours or a name on the hub.

    What it is, and a table of what became of every key, are told. Raises FileNotFoundError when there is nothing at
    the address, OSError when the hub does not answer, ValueError for weights that are no ViT, that hold more than
    tensors, or that fill less than 90 % of the encoder they look like.
    """
    found = find_weights(address)
    config, state, family = _recognise(found)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten, and no part of the run's chance
        vit = ViT(config)
    report = load_weights(vit, state)
    needed = len(vit.state_dict())
    if len(report.loaded) < MATCHED * needed:
        raise ValueError(
            f"{address} looks like {family}, but only {len(report.loaded)} of that encoder's {needed} tensors are in"
            f" it. Missing: {_some(report.missing)}. Of another shape: {_some(report.reshaped)}."
            f" Left out: {_some(report.unexpected)}"
        )
    encoder = PublicViT(vit, pool)
    height, width = encoder.image_size
    heads = f"{config.heads} head{'s' * (config.heads > 1)}"
    log(
        f"{address}: {family}, {config.depth} blocks of width {config.width}, {heads}, patch {config.patch} at"
        f" {height} x {width}, {config.activation}; images normalised by mean {_numbers(config.mean)} and std"
        f" {_numbers(config.std)}\n{report}"
    )
    return encoder


def describe(address: str | Path) -> ViTConfig:
    """What the encoder at an address is, as `load_encoder` would make it."""
    return _recognise(find_weights(address))[0]


def _recognise(found: WeightFiles) -> tuple[ViTConfig, StateDict, str]:
    for read in FAMILIES:
        known = read(found)
        if known is not None:
            state, traits = known
            try:
                return *assemble(state, traits), traits.family
            except ValueError as error:
                raise ValueError(f"{found.address} cannot be read as {traits.family}: {error}") from error
    raise ValueError(f"{found.address} holds no ViT that is known here; its tensors are {_some(tuple(found.state))}")


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}" if names else "none"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
