"""The seed of a stage's initialisation, from the seed of the run."""

from __future__ import annotations

import torch

from .rng import sample_keys


def seed_stage(seed: int, stage: int) -> None:
    """Seed torch for building a stage, by the run's seed and the stage alone; stage -1 is the recipe itself."""
    torch.manual_seed(int(sample_keys(seed, stage, [0])[0]) & (2**63 - 1))
