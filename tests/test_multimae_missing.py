"""MultiMAE: what is hidden leaks nowhere; what is missing, void or invalid is neither read nor counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from multimodal import GUIDED, LACKING, SEMANTICS, batch, build, flags, name
from unveil.modeling.masked_model import mean_loss
from unveil.modeling.optim import Optim
from unveil.modeling.patches import normalised, statistics, validity
from unveil.modeling.types import DEPTH, RGB, Modality
from unveil.training.trainer import Settings, Trainer


@pytest.mark.parametrize("which", ["rgb", "depth", "semseg"])
@pytest.mark.parametrize("options", [{}, {"decoder": "cross", "blend": "linear"}], ids=name)
def test_nothing_hidden_leaks(which: str, options: dict):
    """Other numbers at hidden tokens change no latent and no guess. For depth they come after standardisation, whose
    statistics may read hidden pixels."""
    depth = Modality("depth", 1, (2.0,), (1.0,))
    model, on = build(modalities=(RGB, depth, SEMANTICS), **options), batch()
    before = model.encode_decode(on)
    layout = before.latents.tokens.layout
    is_visible = torch.zeros(4, layout.num_tokens, dtype=torch.bool).scatter(1, before.mask.visible, True)
    side = on.maps[which].shape[-1] // 4
    shown = (
        is_visible[:, layout.spans[which]].unflatten(1, (1, 4, 4)).repeat_interleave(side, 2).repeat_interleave(side, 3)
    )
    other = batch(count=8).maps[which][4:]
    noisy = torch.where(shown, on.maps[which], other)
    assert not torch.equal(noisy, on.maps[which])
    after = model.encode_decode(replace(on, maps={**on.maps, which: noisy}))
    assert torch.equal(before.mask.visible, after.mask.visible)
    assert torch.equal(before.latents.final, after.latents.final)
    for key, decoded in before.decoded.items():
        assert torch.equal(decoded, after.decoded[key])
    everything = model.encode_decode(replace(on, maps={**on.maps, which: other}))
    assert not torch.equal(before.latents.final, everything.latents.final), "what is visible is read"


@pytest.mark.parametrize("options", [{}, {"query": "mean"}, {"query": "all"}, {"guide_scale": "half"}], ids=name)
def test_a_missing_modality_is_read_by_nobody(options: dict):
    """Whatever stands in its map: same look, same mask, same loss, and no sample counts that lacks it."""
    model, on = build(GUIDED, visible=0.15, **options), batch(present=LACKING)
    there = {n: LACKING.get(n, flags(1, 1, 1, 1))[:, None, None, None] for n in on.maps}
    other = {n: torch.where(there[n], m, batch(count=8).maps[n][4:]) for n, m in on.maps.items()}
    changed = replace(on, maps=other)
    assert not torch.equal(on.maps["depth"], changed.maps["depth"])
    before, after = model.encode_decode(on), model.encode_decode(changed)
    torch.testing.assert_close(before.observations["student"].attention, after.observations["student"].attention)
    assert torch.equal(before.mask.visible, after.mask.visible)
    for key, (total, count) in model(on).items():
        expected = int(LACKING.get(key, flags(1, 1, 1, 1)).sum())
        assert int(count) == expected
        torch.testing.assert_close(model(changed)[key][0], total)


def test_attention_to_a_missing_modality_is_zero():
    model, on = build(GUIDED), batch(present=LACKING)
    output = model.encode_decode(on).observations["student"]
    assert output.attention is not None
    assert (output.of("depth").attention[1] == 0).all()
    assert (output.of("depth").attention[0] > 0).all()


def test_more_visible_tokens_than_a_sample_has():
    model = build(visible=0.5)
    settings = Settings("cpu", "fp32", 4, False, 10, 1)
    with pytest.raises(ValueError, match=r"reads 24 of 48 tokens, but a sample has 16: .* smaller share"):
        Trainer(model, Optim(), settings).update(batch(present=LACKING), 0.0)


@pytest.mark.parametrize("which", ["rgb", "depth", "semseg"])
def test_what_is_not_valid_is_neither_read_nor_counted(which: str):
    model, on = build(), batch()
    valid = torch.rand(4, 1, *on.maps[which].shape[-2:], generator=torch.Generator().manual_seed(3)) > 0.4
    valid[2] = False  # a sample without a single truth
    other = on.maps[which].clone()
    other[~valid.expand_as(other)] = 255 if which == "semseg" else torch.nan
    losses = model(replace(on, valid={which: valid}))
    spoiled = model(replace(on, valid={which: valid}, maps={**on.maps, which: other}))
    whole = model(on)
    for key, (total, count) in losses.items():
        assert total.isfinite()
        torch.testing.assert_close(spoiled[key][0], total)
        assert int(count) == (3 if key.endswith(which) else 4)
        assert total != whole[key][0]
    mean_loss(spoiled).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_void_ids_count_nothing_even_if_nobody_says_so():
    model, on = build(), batch()
    void = on.maps["semseg"].clone()
    void[0] = 255
    void[1] = -1
    total, count = model(replace(on, maps={**on.maps, "semseg": void}))["semseg"]
    assert total.isfinite()
    assert int(count) == 2


def test_robust_statistics_are_the_truncated_ones_of_valid_pixels():
    on = batch()
    valid = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(3)) > 0.3
    on = replace(on, valid={"depth": valid})
    mean, std = statistics(on, DEPTH, validity(on, DEPTH))
    out = normalised(on, DEPTH, valid)
    for i in range(4):
        pixels = on.maps["depth"][i][valid[i]].sort().values
        middle = pixels[int(0.1 * len(pixels)) : int(0.9 * len(pixels))]
        assert mean[i].item() == pytest.approx(middle.mean().item(), rel=1e-5)
        assert std[i].item() == pytest.approx((middle.var() + 1e-6).sqrt().item(), rel=1e-5)
        torch.testing.assert_close(
            out[i][valid[i]], (on.maps["depth"][i][valid[i]] - mean[i].squeeze()) / std[i].squeeze()
        )
        assert (out[i][~valid[i]] == 0).all()


def test_percentiles_become_0_and_1():
    thermal = replace(DEPTH, normalise="percentile")
    on = batch()
    out = normalised(on, thermal, validity(on, thermal)).flatten(1).sort(dim=1).values
    assert torch.allclose(out[:, 1024 * 2 // 100], torch.zeros(4), atol=1e-6)
    assert torch.allclose(out[:, 1024 * 98 // 100], torch.ones(4), atol=1e-6)
