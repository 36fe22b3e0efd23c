"""Patch projections of images with other bands than those that the weights were trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .files import StateDict


def adapt_channels(
    weight: Float[Tensor, "D K"], trained: int, channels: int, how: Sequence[str]
) -> Float[Tensor, "D L"]:
    """A patch projection for `channels` bands from one for `trained`, laid out row, column, channel.

    `how` is `mean`: every band gets the mean filter; `repeat`: the filters in turn; or one word for each band: the
    number of a trained one (0 is red) or `mean`. For mean and repeat the filters are scaled by trained / channels,
    which keeps the size of what they give; bands that are named keep their filters as they are.
    """
    if weight.shape[1] % trained:
        raise ValueError(f"a projection of {weight.shape[1]} numbers is not one of patches with {trained} channels")
    filters = rearrange(weight, "d (s c) -> c d s", c=trained)
    mean = filters.mean(dim=0)
    if tuple(how) == ("mean",):
        taken = [mean * trained / channels] * channels
    elif tuple(how) == ("repeat",):
        taken = [filters[band % trained] * trained / channels for band in range(channels)]
    else:
        wrong = [word for word in how if word != "mean" and not (word.isdecimal() and int(word) < trained)]
        if wrong or len(how) != channels:
            raise ValueError(
                f"--init-channels {' '.join(how)}: mean, repeat, or one word for each of {channels} bands is needed:"
                f" a number from 0 to {trained - 1}, or mean"
            )
        taken = [mean if word == "mean" else filters[int(word)] for word in how]
    return rearrange(torch.stack(taken), "c d s -> d (s c)")


def with_channels(state: StateDict, modality: str, channels: int, side: int, how: Sequence[str]) -> StateDict:
    """Weights whose projection of a modality is adapted to its bands; one trained on rgb stands in for it.

    Raises ValueError when the weights have no such projection, or one of another patch.
    """
    names = (f"encoder.adapters.{modality}.proj", "encoder.adapters.rgb.proj")
    found = next((name for name in names if f"{name}.weight" in state), None)
    if found is None:
        raise ValueError(f"--init-channels: the weights have no projection of {modality} or rgb patches to adapt")
    weight = state[f"{found}.weight"]
    if weight.shape[1] % side**2:
        raise ValueError(f"--init-channels: the weights have another patch than {side} x {side}; give --patch")
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(f"{found}.")}
    kept[f"{names[0]}.weight"] = adapt_channels(weight, weight.shape[1] // side**2, channels, how)
    if f"{found}.bias" in state:
        kept[f"{names[0]}.bias"] = state[f"{found}.bias"]
    return kept
