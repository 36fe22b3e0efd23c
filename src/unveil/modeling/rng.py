"""Random numbers as a pure function: every draw is a hash of (seed, epoch, sample) and the name of its purpose.

Nothing random is hidden state, so nothing depends on workers, ranks, micro-batches or devices, and a resumed run
needs no luck. The hash is SplitMix64 (Steele et al., 2014) in wrapping int64 arithmetic, which gives the same bits on
every device and traces into a compiled step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_GOLDEN_INVERSE = pow(_GOLDEN, -1, 1 << 64) - (1 << 64)
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's own copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Int[Tensor, "*_"]) -> Int[Tensor, "*_"]:
    """SplitMix64's finaliser: a bijection of int64 that looks random."""
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def sample_keys(seed: int, epoch: int, samples: Sequence[int] | Tensor) -> Int[Tensor, " B"]:
    """One key per sample, of which all its random numbers of this epoch are derived."""
    key = mix(torch.tensor(seed + 1, dtype=torch.int64) * _GOLDEN)
    key = mix(key + torch.tensor(epoch + 1, dtype=torch.int64) * _GOLDEN)
    return mix(key + (torch.as_tensor(samples, dtype=torch.int64) + 1) * _GOLDEN)


def step_key(seed: int, step: int) -> Int[Tensor, ""]:
    """The key of the random numbers that all samples of a step share, in every process."""
    return SampleRng(sample_keys(seed, step, [0])).fold("step").key[0]


def seed_stage(seed: int, stage: int) -> None:
    """Seed torch for building a stage, by the run's seed and the stage alone; stage -1 is the recipe itself."""
    with torch.device("cpu"):  # the stage may be built on the meta device, which has no values
        torch.manual_seed(int(sample_keys(seed, stage, [0])[0]) & (2**63 - 1))


def _salt(purpose: str) -> int:
    """A number that stands for a purpose, from its CRC-32.

    In plain Python, which a compiler folds to a constant: it cannot look into zlib, and to tell it so takes seconds.
    """
    crc = 0xFFFFFFFF
    for letter in purpose:
        crc ^= ord(letter)
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return (crc ^ 0xFFFFFFFF) * 0x7FFFFFFF + 1


@dataclass(frozen=True)
class SampleRng:
    """The draws of a batch of samples. The same purpose gives the same draw; another purpose an independent one."""

    key: Int[Tensor, " B"]

    def fold(self, purpose: str) -> SampleRng:
        return SampleRng(mix(self.key ^ _salt(purpose)))

    def uniform(self, purpose: str, n: int) -> Float[Tensor, "B {n}"]:
        """`n` numbers per sample, uniform in [0, 1), with 24 random bits each."""
        # key + step * golden, written so that a compiler, whose index arithmetic does not wrap, cannot fold the product
        key = self.fold(purpose).key[:, None] * _GOLDEN_INVERSE
        bits = mix((key + torch.arange(1, n + 1, device=key.device)) * _GOLDEN)
        return _shift(bits, 40).to(torch.float32) * 2.0**-24

    def normal(self, purpose: str, n: int) -> Float[Tensor, "B {n}"]:
        """`n` numbers per sample from the standard normal distribution (Box-Muller)."""
        radius, angle = self.uniform(purpose, 2 * n).chunk(2, dim=1)
        return (-2 * (1 - radius).log()).sqrt() * (2 * math.pi * angle).cos()
