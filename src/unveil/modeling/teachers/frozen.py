"""A pretrained public encoder as a teacher, whose weights do not change."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from ...runs.console import log, user_path
from ...runs.hardware import has_native_bf16
from ..encoder import FEATURE_SPEC, Encoder
from ..public_vits import PublicViT, ViTConfig, load_encoder, untrained_vit
from ..types import Batch, FeatureSpec, Modality, Observation, Tokens

Channels = tuple[int, ...] | None  # of a modality, counted from 1; None for all

RANDOM = "random"
LARGE_RESIZE = 2  # factor beyond which images differ from those that a teacher was trained on
_log_once = cache(log)  # a recipe is built several times before its run begins
_SALT = 0x7EAC  # so that a random teacher does not have the initial weights of the student


class FrozenTeacher(nn.Module):
    """An encoder that observes each batch once, and is neither trained nor saved: it is loaded from its address.

    Its input is the images of a modality, of them `channels` (counted from 1) where given; a single channel is repeated
    to as many as the encoder has. They are resized to the student's grid times the teacher's patch and normalised by
    the teacher's statistics. It runs in bf16 where the device has it in hardware (else as the student does), and no
    block that `spec` does not need. Its weights are buffers outside the state dict: they move with the model, and no
    optimizer has them. Raises ValueError for a `spec` of what the encoder does not have.
    """

    def __init__(
        self, encoder: PublicViT, spec: FeatureSpec = FEATURE_SPEC, modality: str = "rgb", channels: Channels = None
    ):
        super().__init__()
        encoder.vit.check(spec)
        self.encoder, self.spec, self.modality, self.channels = unsaved(encoder), spec, modality, channels
        self.dim = encoder.feature_dim(spec)
        self.in_bf16 = has_native_bf16(encoder.device)
        self.eval()

    @torch.no_grad()  # not inference_mode: its outputs are kept for the backward of the student
    def observe(self, batch: Batch, tokens: Tokens, student: Encoder) -> Observation:
        images = batch.maps[self.modality]
        if self.channels is not None:
            images = torch.cat([images[:, channel - 1 : channel] for channel in self.channels], dim=1)
        images = images.expand(-1, self.encoder.channels, -1, -1)
        in_bf16 = self.in_bf16 and not images.is_meta  # shapes alone are computed there
        with torch.autocast(images.device.type, torch.bfloat16) if in_bf16 else nullcontext():
            return self.encoder.observe(images, tokens.layout.grid, self.spec, self.modality)

    def checksum(self) -> str:
        """CRC-32 of its weights, in the order of their names."""
        value = 0
        for _, weights in sorted(self.encoder.named_buffers()):
            content = weights.detach().cpu().contiguous().flatten().view(torch.uint8)
            value = zlib.crc32(content.numpy().tobytes(), value)
        return f"crc32:{value:08x}"

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        moved = super()._apply(fn, recurse)
        self.in_bf16 = has_native_bf16(self.encoder.device)
        return moved


def frozen_teachers(model: nn.Module) -> dict[str, FrozenTeacher]:
    """The frozen teachers in a model by their names."""
    of = ((name, module) for name, module in model.named_modules() if isinstance(module, FrozenTeacher))
    return {name.removeprefix("teachers."): teacher for name, teacher in of}


def unsaved(encoder: PublicViT) -> PublicViT:
    """The same encoder, its parameters turned into buffers that are no part of a checkpoint."""
    for module in encoder.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)
    return encoder


def load_teacher(
    address: str,
    student: Encoder,
    spec: FeatureSpec = FEATURE_SPEC,
    channels: Channels = None,
    modality: str | None = None,
    seed: int = 0,
) -> FrozenTeacher:
    """The frozen teacher at an address (see `load_encoder`), for a student of this patch and image size.

    `random` is an untrained encoder of the student's own shape, drawn from `seed`: the control of a trained teacher.
    Projected features are read where the teacher has a projection, else those before it. How images are resized for
    it is logged once, with a warning beyond a factor of 2. Raises ValueError where the channels of images and teacher
    differ, and as `load_encoder`.
    """
    images = _modality(student, modality)
    if wrong := [channel for channel in channels or () if not 1 <= channel <= images.channels]:
        raise ValueError(
            f"the teacher's channels are from 1 to {images.channels}, as {images.name} has; got {wrong[0]}"
        )
    if address == RANDOM:
        encoder = untrained_vit(_like(student, images, channels), seed ^ _SALT)
    else:
        encoder = _read(address, _stamp(user_path(address)))
    count = len(channels) if channels else images.channels
    if count not in (1, encoder.channels):
        raise ValueError(
            f"the teacher {address} reads images of {encoder.channels} channels, and those of {images.name} have"
            f" {count}; choose {encoder.channels} of them with --teacher-channels, such as"
            f" {' '.join(str(min(c, images.channels)) for c in range(encoder.channels, 0, -1))}"
        )
    _log_resizing(address, encoder.config.patch, student.image_size, student.grid)
    if spec.projected and not encoder.config.projection:
        if address != RANDOM:
            _log_once(f"the teacher {address} has no output projection: its features are those of its last block")
        spec = replace(spec, projected=False)
    return FrozenTeacher(encoder, spec, images.name, channels)


def _modality(student: Encoder, name: str | None) -> Modality:
    """The teacher's modality among the student's continuous ones: the named one, else rgb, else the first."""
    known = {m.name: m for m in student.modalities if m.kind == "continuous"}
    if not known or (name is not None and name not in known):
        raise ValueError(f"a teacher sees images; the student reads {', '.join(known) or 'none'}, not {name or 'any'}")
    return known[name] if name is not None else known.get("rgb", next(iter(known.values())))


def _like(student: Encoder, modality: Modality, channels: Channels) -> ViTConfig:
    indices = [c - 1 for c in channels] if channels else list(range(modality.channels))
    mean, std = (tuple(values[c] for c in indices) for values in (modality.mean, modality.std))
    shape = (student.dim, student.depth, student.blocks[0].attn.heads, student.patch, 4 * student.dim, student.grid)
    return ViTConfig(*shape, channels=len(indices), positions="sincos", mean=mean, std=std)


def _stamp(path: Path) -> int:
    """The last modification of a file, or in a folder, in ns; 0 for a name on the hub."""
    return max((place.stat().st_mtime_ns for place in (path, *path.glob("*")) if place.exists()), default=0)


@lru_cache(maxsize=1)
def _read(address: str, stamp: int) -> PublicViT:
    """A recipe is built several times before its run begins; its teacher is read, and logged, once."""
    with torch.device("cpu"):  # also for a student on the meta device
        return unsaved(load_encoder(address))


def _log_resizing(address: str, patch: int, image_size: tuple[int, int], grid: tuple[int, int]) -> None:
    size = (grid[0] * patch, grid[1] * patch)
    if size == image_size:
        return
    factor = max(max(theirs / ours, ours / theirs) for theirs, ours in zip(size, image_size, strict=True))
    text = f"images of {image_size[0]} x {image_size[1]} are resized to {size[0]} x {size[1]} for the teacher {address}"
    if factor > LARGE_RESIZE:
        text = (
            f"warning: {text}, by a factor of {factor:.3g}: it was not trained on images so"
            f" {'blurred' if size > image_size else 'small'}; another --patch or --image-size brings them nearer"
        )
    _log_once(text)
