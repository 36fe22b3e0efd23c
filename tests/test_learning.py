"""A short run learns something: its features tell classes apart that those of its untrained encoder do not."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from test_training import CPU
from unveil.evaluation.protocols.knn import Knn
from unveil.evaluation.protocols.linear_lbfgs import LinearLBFGS
from unveil.evaluation.types import Context, FeatureSplit
from unveil.modeling.encoder import SIZES, Encoder
from unveil.modeling.image_encoder import pooled
from unveil.modeling.rng import sample_keys
from unveil.modeling.types import Batch
from unveil.recipes import crossmae, mae
from unveil.recipes.registry import build_recipe
from unveil.training.trainer import Trainer

CLASSES, SIDE, STEPS, BATCH, LR = 8, 16, 400, 64, 2e-3
OPTIONS = {"patch": 4, "image_size": (SIDE,), "decoder_dim": 48, "decoder_depth": 1, "decoder_heads": 4}


def gratings(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Grey sine gratings in noise, B C H W, and the class of each: one of eight orientations. Frequency, phase and
    contrast say nothing of the class, and to fill a masked patch in, a model has to find the orientation."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    labels = np.arange(count) % CLASSES
    angle = (np.pi * labels / CLASSES)[:, None, None]
    frequency, phase, contrast = (rng.uniform(*limits, (count, 1, 1)) for limits in ((0.7, 1.1), (0, 6.28), (0.5, 1)))
    waves = contrast * (0.5 + 0.5 * np.sin(frequency * (np.cos(angle) * x + np.sin(angle) * y) + phase))
    images = waves[:, None] + rng.normal(0, 0.25, (count, 3, SIDE, SIDE))
    return torch.tensor(images.clip(0, 1), dtype=torch.float32), torch.tensor(labels)


def accuracies(encoder: Encoder, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Of k-NN and of a linear probe on frozen features."""
    with torch.no_grad():
        features = [pooled(encoder.eval(), images, "mean") for images, _ in (train, test)]
    data = FeatureSplit(features[0], train[1], features[1], test[1], CLASSES)
    scores = [protocol.run(encoder, data, Context()) for protocol in (Knn(), LinearLBFGS())]
    return scores[0].metrics["accuracy"], scores[1].metrics["accuracy"]


SLOW = [pytest.param(recipe, seed, marks=pytest.mark.slow) for recipe in (mae, crossmae) for seed in (0, 1, 2)]


@pytest.mark.parametrize(("recipe", "seed"), [(mae, 0), *SLOW[1:]])
def test_features_of_a_short_run_are_better_than_those_of_the_untrained_encoder(
    recipe: ModuleType, seed: int, monkeypatch: pytest.MonkeyPatch
):
    """Measured over these seeds: k-NN rises by 0.08 to 0.36, the linear probe by 0.12 to 0.24."""
    monkeypatch.setitem(SIZES, "tiny", (64, 3, 4))
    torch.manual_seed(seed)
    built = build_recipe(recipe.recipe, (), {"size": "tiny", **OPTIONS})
    trainer = Trainer(built.stages[0].build(), built.optim, CPU)
    train, test = gratings(1000, 100 + seed), gratings(600, 200 + seed)
    before = accuracies(built.encoder, train, test)
    trainer.model.train()
    for step in range(STEPS):
        rows = torch.randint(len(train[0]), (BATCH,))
        batch = Batch({"rgb": train[0][rows]}, sample_keys(seed, step, range(BATCH)), torch.tensor(step / STEPS))
        warmup, cosine = min(1, (step + 1) / 20), 0.5 + 0.5 * math.cos(math.pi * step / STEPS)
        trainer.update(batch, LR * warmup * cosine)
    after = accuracies(built.encoder, train, test)
    assert after[0] > before[0] + 0.04
    assert after[1] > before[1] + 0.08
