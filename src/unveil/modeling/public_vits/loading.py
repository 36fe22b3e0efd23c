"""Encoders of other projects from their files: `load_encoder("clip.safetensors")`."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ...runs.console import log
from ..types import Pool
from .families import FAMILIES, UNVEIL, assemble
from .vit import PublicViT, ViT, ViTConfig
from .weight_files import BESIDE, StateDict, WeightFiles, find_weights, load_weights, saved_statistics, summarise

GIVEN = "given"  # an entry of the configuration: what `unveil import` was told beside the file
_UNLIKE = re.compile(  # timm's, of rotary positions, norms or heads that no tensor shows
    r"_rope_|_pe_|eva02|naflex|relpos|_rpn_|vit_base_patch16_gap_|test_vit"
)


def load_encoder(address: str | Path, pool: Pool = "mean") -> PublicViT:
    """A public ViT, frozen, from a weight file, a folder with its configuration, an unveil run or a name on the hub.

    Its description and the report of its keys are logged. Raises FileNotFoundError when there is nothing at the
    address, OSError when the hub does not answer, ValueError for weights that are no ViT, that hold more than tensors,
    or whose tensors and the encoder's do not all fit.
    """
    return encoder_of(find_weights(address), pool)


def encoder_of(files: WeightFiles, pool: Pool = "mean", allow_left: bool = False, quiet: bool = False) -> PublicViT:
    """The public ViT in weights that are read; as `load_encoder`. `allow_left` goes on where tensors are left over."""
    config, state, family = recognise(files)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten: the run's generator is left as it was
        vit = ViT(config)
    report = load_weights(vit, state)
    left = [name for name in report.unexpected if not BESIDE.match(name)]
    if (left and not allow_left) or report.missing or report.reshaped:
        raise ValueError(
            f"{files.address} looks like {family}, but has {len(report.loaded)} of that encoder's"
            f" {len(vit.state_dict())} tensors and {len(left)} others, so its features would be wrong. Missing:"
            f" {summarise(report.missing)}. Of another shape: {summarise(report.reshaped)}. Left over:"
            f" {summarise(left)}. Give a plain ViT, or compute its features with the project that made it"
        )
    encoder = PublicViT(vit, pool)
    if quiet:
        return encoder
    height, width = encoder.image_size
    heads = f"{config.heads} head{'s' * (config.heads > 1)}"
    mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (config.mean, config.std))
    is_alone = not (files.config or files.preprocessing)
    log(
        f"{files.address}: {family}, {config.depth} blocks of width {config.width}, {heads}, patch {config.patch} at"
        f" {height} x {width}, {config.activation}; images normalised by mean {mean} and std {std}"
        f"{'; no config.json is beside it, so heads, activation and these are the usual ones' * is_alone}"
        f"{'; it has no final norm: features are normalised without' * (config.final_norm == 'none')}\n{report}"
    )
    return encoder


def describe(address: str | Path) -> ViTConfig:
    """The description of the encoder at an address; raises as `load_encoder`."""
    return recognise(find_weights(address))[0]


def recognise(files: WeightFiles) -> tuple[ViTConfig, StateDict, str]:
    """The description of the ViT in weights, its tensors under our names, and its family. Raises as `load_encoder`.

    What the configuration has under `GIVEN` overrides what is read: heads, activation, mean, std, image_size (H, W).
    """
    architecture = files.config.get("architecture", "")
    if _UNLIKE.search(architecture):
        raise ValueError(
            f"{files.address} is timm's {architecture}, which is no plain ViT; take its features with timm"
        )
    for read in FAMILIES:
        family = "a ViT"
        try:
            if (known := read(files)) is not None:
                family, state, options = known
                if family != UNVEIL:
                    options |= saved_statistics(files)
                given = dict(files.config.get(GIVEN, {}))
                if size := given.pop("image_size", None):
                    patch = state["patch_embed.proj.weight"].shape[-1]
                    options["grid"] = size[0] // patch, size[-1] // patch
                options |= {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
                return *assemble(state, **options), family
        except KeyError as error:
            raise ValueError(f"{files.address} cannot be read as {family}: it has no tensor {error}") from error
        except ValueError as error:
            raise ValueError(f"{files.address} cannot be read as {family}: {error}") from error
    raise ValueError(f"{files.address} holds no ViT that is known here; its tensors are {summarise(files.state)}")
