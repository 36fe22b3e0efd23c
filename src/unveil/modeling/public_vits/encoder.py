"""Encoders of other projects as functions of images: `load_encoder("clip.safetensors")`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...runs.console import log
from ..image_encoder import FeatureExtractor
from ..layers import EPS, Block
from ..types import Batch, FeatureSpec, Layout, Modality, Observation, Pool
from .families import FAMILIES, UNVEIL, assemble, saved_statistics
from .vit import ViT, ViTConfig
from .weight_files import StateDict, WeightFiles, find_weights, load_weights, summarise

MATCHED = 0.9  # of an encoder's tensors; with fewer the file is of something else


class PublicViT(FeatureExtractor):
    """A public ViT as a feature extractor, with the normalisation that it was trained with."""

    mean: Tensor
    std: Tensor

    def __init__(self, vit: ViT, pool: Pool = "mean"):
        config = vit.config
        modality = Modality("rgb", config.channels, config.mean, config.std)
        super().__init__([modality], config.patch, config.grid, config.width, config.num_prefix, pool)
        self.vit, self.config = vit, config
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    @property
    def blocks(self) -> Sequence[Block]:
        return self.vit.blocks

    @property
    def device(self) -> torch.device:
        return self.vit.prefix.device

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block; an identity where there is none."""
        return self.vit.norm

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
        """What `spec` reads of images that are resized to this grid of its patches; no further block is run."""
        fitted = resized(images, (grid[0] * self.config.patch, grid[1] * self.config.patch))
        attention, features = self.vit.read(self.normalised(fitted), spec)
        features, class_token = None if features is None else features.float(), None
        if features is not None and spec.class_token:
            class_token, features = features[:, 0], features[:, self.num_prefix :]
        layout = Layout({modality: slice(0, grid[0] * grid[1])}, grid)
        return Observation(layout, attention, features, class_token=class_token)

    def feature_dim(self, spec: FeatureSpec) -> int:
        return self.config.projection if spec.projected else self.config.width

    def features(self, images: Float[Tensor, "B C H W"], pool: Pool) -> Float[Tensor, "B F"]:
        """The class token, the mean of the patch tokens, or both side by side.

        The final norm is applied to the tokens that the public model applies it to; others are normalised without
        parameters. Raises ValueError for a class token that the encoder does not have.
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

    def tokens(self, batch: Batch, blocks: Sequence[int]) -> list[Float[Tensor, "B K D"]]:
        x, rotation = self.vit.first_input(self.normalised(batch.maps["rgb"]))
        outputs = []
        for block in self.vit.blocks:
            x = block(x, None, None, rotation)
            outputs.append(x)
        return [outputs[block - 1] for block in blocks]


def resized(images: Float[Tensor, "B C H W"], size: tuple[int, int]) -> Float[Tensor, "B C h w"]:
    """Images in [0, 1] at another size: bicubic, antialiased."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def untrained_vit(config: ViTConfig, seed: int, pool: Pool = "mean") -> PublicViT:
    """An encoder of this description with the weights of its initialisation; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PublicViT(ViT(config), pool)


def load_encoder(address: str | Path, pool: Pool = "mean") -> PublicViT:
    """A public ViT, frozen, from a weight file, a folder with its configuration, an unveil run or a name on the hub.

    Its description and the report of its keys are logged. Raises FileNotFoundError when there is nothing at the
    address, OSError when the hub does not answer, ValueError for weights that are no ViT, that hold more than tensors,
    or that fill less than 90 % of the encoder that is recognised.
    """
    config, state, family = _recognise(find_weights(address))
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten: the run's generator is left as it was
        vit = ViT(config)
    report = load_weights(vit, state)
    needed = len(vit.state_dict())
    if len(report.loaded) < MATCHED * needed:
        raise ValueError(
            f"{address} looks like {family}, but only {len(report.loaded)} of that encoder's {needed} tensors are in"
            f" it. Missing: {summarise(report.missing)}. Of another shape: {summarise(report.reshaped)}."
            f" Left out: {summarise(report.unexpected)}"
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
    """The description of the encoder at an address; raises as `load_encoder`."""
    return _recognise(find_weights(address))[0]


def _recognise(files: WeightFiles) -> tuple[ViTConfig, StateDict, str]:
    for read in FAMILIES:
        if (known := read(files)) is not None:
            family, state, options = known
            if family != UNVEIL:
                options |= saved_statistics(files)
            try:
                return *assemble(state, **options), family
            except ValueError as error:
                raise ValueError(f"{files.address} cannot be read as {family}: {error}") from error
    raise ValueError(f"{files.address} holds no ViT that is known here; its tensors are {summarise(files.state)}")


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
