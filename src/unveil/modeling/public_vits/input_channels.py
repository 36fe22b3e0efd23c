"""Patch projections of images with other input channels than those that the weights were trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .weight_files import StateDict


def adapt_channels(
    weight: Float[Tensor, "D K"], trained: int, channels: int, how: Sequence[str]
) -> Float[Tensor, "D L"]:
    """A patch projection for `channels` input channels from one for `trained`, laid out row, column, channel.

    `how` is `mean`: every channel gets the mean filter; `repeat`: the filters in turn; or one word for each channel:
    the number of a trained one (0 is red) or `mean`. For mean and repeat the filters are scaled by trained / channels,
    which keeps the scale of the outputs; filters chosen by number are not scaled. Raises ValueError for other words.
    """
    if weight.shape[1] % trained:
        raise ValueError(f"a projection of {weight.shape[1]} numbers is not one of patches with {trained} channels")
    filters = rearrange(weight, "d (s c) -> c d s", c=trained)
    mean = filters.mean(dim=0)
    if tuple(how) == ("mean",):
        adapted = [mean * trained / channels] * channels
    elif tuple(how) == ("repeat",):
        adapted = [filters[channel % trained] * trained / channels for channel in range(channels)]
    else:
        wrong = [word for word in how if word != "mean" and not (word.isdecimal() and int(word) < trained)]
        if wrong or len(how) != channels:
            raise ValueError(
                f"--init-channels {' '.join(how)}: mean, repeat, or one word for each of {channels} channels is needed:"
                f" a number from 0 to {trained - 1}, or mean"
            )
        adapted = [mean if word == "mean" else filters[int(word)] for word in how]
    return rearrange(torch.stack(adapted), "c d s -> d (s c)")


def with_channels(state: StateDict, modality: str, channels: int, side: int, how: Sequence[str]) -> StateDict:
    """Weights whose projection of a modality is adapted to its channels; without one, that of rgb is.

    Raises ValueError when the weights have no such projection, or one of another patch.
    """
    names = (f"encoder.adapters.{modality}.proj", "encoder.adapters.rgb.proj")
    source = next((name for name in names if f"{name}.weight" in state), None)
    if source is None:
        raise ValueError(f"--init-channels: the weights have no projection of {modality} or rgb patches to adapt")
    weight = state[f"{source}.weight"]
    if weight.shape[1] % side**2:
        raise ValueError(f"--init-channels: the weights have another patch than {side} x {side}; give --patch")
    others = {name: tensor for name, tensor in state.items() if not name.startswith(f"{source}.")}
    bias = {f"{names[0]}.bias": state[f"{source}.bias"]} if f"{source}.bias" in state else {}
    adapted = adapt_channels(weight, weight.shape[1] // side**2, channels, how)
    return others | {f"{names[0]}.weight": adapted} | bias
