"""From a map of attention to an order of tokens: sampled or sorted, high hidden or high kept.

Shapes: B batch, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..types import Batch

TINY = torch.finfo(torch.float32).tiny


class Sampler(Protocol):
    """An order of tokens: the highest is hidden first."""

    def __call__(self, attention: Float[Tensor, "B N"], batch: Batch) -> Float[Tensor, "B N"]: ...


@dataclass(frozen=True)
class Gumbel:
    """Tokens are drawn one after another without replacement, each with a chance in proportion to its attention.

    Sorting log attention plus Gumbel noise is that draw (Kool et al., 2019, arXiv 1903.06059), and stands zeros. A
    higher `temperature` draws more evenly, one near 0 as `Hard`.
    """

    temperature: float = 1.0
    purpose: str = "mask"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"the temperature of a draw is above 0; got {self.temperature}. To sort, draw hard")

    def __call__(self, attention: Float[Tensor, "B N"], batch: Batch) -> Float[Tensor, "B N"]:
        waits = -batch.rng.uniform(self.purpose, attention.shape[1]).clamp_min(2.0**-25).log()
        return attention.float().clamp_min(TINY).log() / self.temperature - waits.log()


@dataclass(frozen=True)
class Hard:
    """The tokens with the most attention, without chance (AttMask-High, arXiv 2203.12719, section 3.2)."""

    def __call__(self, attention: Float[Tensor, "B N"], batch: Batch) -> Float[Tensor, "B N"]:
        return attention


@dataclass(frozen=True)
class Noisy:
    """Attention with noise of each image's own mean and spread: beta N(mean, std) + (1 - beta) A."""

    beta: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is the share of noise in a map, from 0 to 1; got {self.beta}")

    def __call__(self, attention: Float[Tensor, "B N"], batch: Batch) -> Float[Tensor, "B N"]:
        std, mean = torch.std_mean(attention, dim=1, keepdim=True)
        noise = mean + std * batch.rng.normal("mask", attention.shape[1])
        return noise.lerp(attention, 1 - self.beta)


@dataclass(frozen=True)
class Hint:
    """`Hard`, but of the share `top` of tokens with the most attention a random few, a share `shown` of all, stay
    visible (AttMask-Hint, arXiv 2203.12719, section 3.2)."""

    top: float = 0.1
    shown: float = 0.03

    def __post_init__(self) -> None:
        if not 0 <= self.shown <= self.top <= 1:
            raise ValueError(
                f"hints are a share of the tokens with the most attention, 0 <= shown <= top <= 1; got shown="
                f"{self.shown} of top={self.top}"
            )

    def __call__(self, attention: Float[Tensor, "B N"], batch: Batch) -> Float[Tensor, "B N"]:
        num_tokens = attention.shape[1]
        place = attention.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # 0 for the highest
        lot = torch.where(place < self.top * num_tokens, batch.rng.uniform("hint", num_tokens), -1.0)
        is_shown = lot.argsort(dim=1, descending=True, stable=True).argsort(dim=1) < int(self.shown * num_tokens + 1e-6)
        return -torch.where(is_shown, num_tokens, place).to(attention.dtype)


@dataclass(frozen=True)
class Reversed:
    """Another draw the other way round: what it would hide first stays visible.

    Of `Gumbel` it is MILAN's semantic-aware sampling (arXiv 2208.06049, section 3.3), of `Hard` AttMask-Low.
    """

    sampler: Sampler

    def __call__(self, attention: Float[Tensor, "B N"], batch: Batch) -> Float[Tensor, "B N"]:
        return -self.sampler(attention, batch)


SamplerName = Literal["gumbel", "hard", "noisy", "hint", "low", "keep"]


def make_sampler(name: SamplerName, temperature: float = 1.0, noise: float = 0.25) -> Sampler:
    """A sampler by name. `temperature` is that of gumbel and keep, `noise` the share of noise of noisy."""
    samplers: dict[SamplerName, Sampler] = {
        "gumbel": Gumbel(temperature),
        "hard": Hard(),
        "noisy": Noisy(noise),
        "hint": Hint(),
        "low": Reversed(Hard()),
        "keep": Reversed(Gumbel(temperature)),
    }
    return samplers[name]


SAMPLERS: dict[str, Sampler] = {name: make_sampler(name) for name in get_args(SamplerName)}
