"""Optimisation as the papers have it: what decays, how fast, from which first weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tiny import build
from unveil.modeling.layers import initialise
from unveil.modeling.optim import Optim, adamw, parameter_groups, warmup_cosine


def test_what_decays():
    model = build(hide="blank", decoder="cross-self", blend="linear")
    decayed, free = parameter_groups(model.named_parameters(), 0.05)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    groups = {id(p): where for where in (decayed, free) for p in where["params"]}
    assert len(groups) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        is_free = name.endswith("bias") or "norm" in name
        assert groups[id(p)] is (free if is_free else decayed), name
    decays = {name for name, p in model.named_parameters() if groups[id(p)] is decayed}
    assert {"encoder.prefix", "hide.mask_token", "decoders.pixels.mask_token", "decoders.pixels.blend.weight"} <= decays


def test_what_is_frozen_is_not_optimised():
    model = build()
    model.encoder.requires_grad_(False)
    trained = {id(p) for group in adamw(model, Optim()).param_groups for p in group["params"]}
    assert trained == {id(p) for name, p in model.named_parameters() if not name.startswith("encoder.")}


@given(st.integers(1, 500), st.integers(0, 60), st.integers(1, 20))
def test_the_schedule_is_the_papers_formula(epochs: int, warmup: int, per_epoch: int):
    """papers: lr e / w while e < w, then half a cosine to zero, per step."""
    peak, steps = 2.4e-3, epochs * per_epoch
    for step in sorted({0, 1, steps // 3, steps // 2, steps - 1, warmup * per_epoch}):
        if not 0 <= step < steps:
            continue
        e, w = step / per_epoch, warmup
        expected = peak * e / w if e < w else peak * 0.5 * (1 + math.cos(math.pi * (e - w) / (epochs - w)))
        assert peak * warmup_cosine(step, steps, w * per_epoch) == pytest.approx(expected, abs=1e-12)


def test_the_peak_rate():
    assert Optim().peak_lr == pytest.approx(2.4e-3)
    assert Optim(lr_factor=1 / 3).peak_lr == pytest.approx(8e-4)
    assert warmup_cosine(10, 10, 5) == pytest.approx(0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1e-3}, {"lr": float("nan")}, {"batch_size": 0}, {"warmup_epochs": -1.0}, {"weight_decay": -0.1},
        {"clip": 0.0}, {"lr": float("inf")},
    ],
)  # fmt: skip
def test_an_optimiser_s_numbers(wrong: dict):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name} .*; got {value}"):
        Optim(**wrong)


def test_first_weights_are_mae_s():
    layer = nn.Linear(300, 900)
    initialise(layer)
    bound = math.sqrt(6 / 1200)
    assert 0.99 * bound < layer.weight.abs().max() <= bound
    assert layer.bias.abs().max() == 0
    model = build(depth=3, hide="blank", decoder="cross", blend="linear")
    tokens = torch.cat([p.flatten() for name, p in model.named_parameters() if "token" in name or "prefix" in name])
    assert 0.01 < tokens.std() < 0.03
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert module.eps == 1e-6


def test_position_tables_are_not_saved():
    assert not [name for name in build(hide="blank").state_dict() if "table" in name]
