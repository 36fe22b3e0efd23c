"""Fine-tuning's settings: the published ones, what is fitted to the data, and the rate over time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unveil.evaluation.finetuning import PRESETS, FineTuning, preset_for, settle


def test_the_rate_warms_up_and_falls_to_its_least():
    settings = FineTuning(epochs=100, batch_size=1024, lr=5e-4, warmup_epochs=5, min_lr=1e-6)
    peak = 5e-4 * 4
    assert settings.rate(0) == 0
    assert settings.rate(2.5) == pytest.approx(peak / 2)
    assert settings.rate(5) == pytest.approx(peak)
    assert settings.rate(5 + 95 / 2) == pytest.approx(1e-6 + (peak - 1e-6) / 2)
    assert settings.rate(100) == pytest.approx(1e-6)


def test_the_published_presets():
    named = {
        "mae-b": (100, 1024, 5e-4, 0.65, 0.1, 0.25),
        "mae-l": (50, 1024, 1e-3, 0.75, 0.2, 0.25),
        "mae-h": (50, 1024, 1e-3, 0.75, 0.3, 0.25),
        "crossmae-paper": (100, 1024, 1e-3, 1.0, 0.1, 0.0),
        "crossmae-released": (100, 1024, 5e-4, 0.65, 0.1, 0.25),
        "multimae": (100, 1024, 5e-4, 0.65, 0.1, 0.0),
    }
    for name, wanted in named.items():
        p = PRESETS[name]
        assert (p.epochs, p.batch_size, p.lr, p.layer_decay, p.drop_path, p.erasing) == wanted
        assert (p.mixup, p.cutmix, p.smoothing, p.randaugment, p.warmup_epochs) == (0.8, 1.0, 0.1, 9, 5)
    assert PRESETS["multimae"].pool == "all"


def test_the_preset_fits_the_data_and_what_is_given_stays():
    assert [preset_for(n, dim) for n, dim in ((5000, 768), (10**6, 768), (10**6, 1024), (10**6, 1280))] == [
        *("small", "mae-b", "mae-l", "mae-h")
    ]
    few, many = settle("small", 300, {}), settle("small", 50_000, {})
    assert (few.batch_size, few.epochs) == (64, 100)
    assert (many.batch_size, many.epochs) == (128, 10)
    assert settle("mae-b", 10**6, {"epochs": 20}).warmup_epochs == 1
    assert settle("mae-b", 10**6, {"epochs": 20, "warmup_epochs": 3.0}).warmup_epochs == 3
    assert settle("small", 5000, {"updates": 400}).epochs == 10  # of batches of 128
    assert settle("mae-b", 10**6, {"updates": 2000, "batch_size": 2000}).epochs == 4
    assert settle("small", 50_000, {"updates": 1}).epochs == 1
    for wrong in ({"updates": 0}, {"updates": 10, "epochs": 3}):
        with pytest.raises(ValueError, match="in place of --epochs; got --updates"):
            settle("small", 300, wrong)
    assert settle("mae-b", 10**6, {"lr": 0.1, "mixup": None}) == replace(PRESETS["mae-b"], lr=0.1)
