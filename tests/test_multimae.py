"""MultiMAE and its guided masks: every variant trains, nothing hidden leaks, nothing missing is read or counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from unveil.chance import sample_keys
from unveil.encoder import SIZES, Encoder
from unveil.masking import Masker
from unveil.model import MaskedModel, mean_loss
from unveil.objectives import Uncertain
from unveil.optim import Optim
from unveil.patches import normalised, statistics, validity
from unveil.recipes import multimae, multimae_attention
from unveil.records import DEPTH, RGB, SEMSEG, Batch, Mask, Modality, Observation, Reading
from unveil.teachers import Coarse, ComplementaryErrors, OnlineTeacher, Sometimes
from unveil.trainer import Settings, Trainer

SEMANTICS = replace(SEMSEG, num_classes=5)
ALL = (RGB, DEPTH, SEMANTICS)
SHAPE = {"size": "tiny", "patch": 8, "image_size": (32,), "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
GUIDED = multimae_attention.recipe


def build(recipe=multimae.recipe, modalities: tuple[Modality, ...] = ALL, **dials: Any) -> MaskedModel:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", (24, 2, 2))
        return recipe(modalities=modalities, **{**SHAPE, "visible": 0.25, **dials}).stages[0].build()


def batch(count: int = 4, progress: float = 0.5, **said: Mapping[str, Tensor]) -> Batch:
    chance = torch.Generator().manual_seed(1)
    maps = {
        "rgb": torch.rand(count, 3, 32, 32, generator=chance),
        "depth": 1 + 4 * torch.rand(count, 1, 32, 32, generator=chance),
        "semseg": torch.randint(0, 5, (count, 1, 8, 8), generator=chance),
    }
    return Batch(maps, sample_keys(0, 0, range(count)), torch.tensor(progress), **said)


def flags(*present: int) -> Tensor:
    return torch.tensor(present, dtype=torch.bool)


LACKING = {"depth": flags(1, 0, 1, 0), "semseg": flags(1, 1, 0, 0)}

VARIANTS = [
    *({"masking": masking} for masking in ("uniform", "block", "inverse-block", "grid")),
    *({"budget": budget} for budget in ("adaptive", "joint")),
    {"budget": "adaptive", "harder_gets": "hidden", "budget_temperature": 0.5},
    {"concentration": (0.5, 1.0, 3.0)},
    {"tasks": "uniform"},
    {"decoder": "cross"},
    {"decoder": "cross-self", "predicted": 0.25},
    *({"decoder": "cross", "blend": blend, "predicted": 0.25} for blend in ("linear", "softmax", "project")),
    {"weighting": "uncertainty"},
    {"extra_norm_pix": False},
]
GUIDES = [
    *({"draw": draw} for draw in ("hard", "low", "noisy", "hint", "gumbel", "keep")),
    *({"query": query} for query in ("mean", "all")),
    {"guide_heads": "random"},
    {"layer": 0},
    {"student": "momentum"},
    {"guide_scale": "half"},
    {"guide_scale": "half", "student": "momentum"},
    {"guide": "error"},
    {"guide": "error", "decoder": "cross", "blend": "linear"},
    {"guide_every": 4, "guide_warmup": 0.2},
    {"budget": "joint"},
    {"budget": "adaptive"},
    {"teacher": "random"},
    {"teacher": "random", "decoder": "cross", "blend": "linear", "predicted": 0.25, "guide_heads": "random"},
]


def name(dials: dict) -> str:
    return "-".join(map(str, dials.values()))


@pytest.mark.parametrize("lacks", [{}, LACKING], ids=["whole", "lacking"])
@pytest.mark.parametrize(
    ("recipe", "dials"),
    [*((multimae.recipe, d) for d in VARIANTS), *((GUIDED, d) for d in GUIDES)],
    ids=lambda x: name(x) if isinstance(x, dict) else x.__module__.rpartition("_")[2],
)
def test_every_variant_trains_every_parameter(recipe, dials: dict, lacks: dict):
    present = {n: known.repeat(3) for n, known in lacks.items()}
    model, on = build(recipe, **{"visible": 0.15, **dials}), batch(12, present=present)
    loss = mean_loss(model(on))
    loss.backward()
    assert loss.isfinite()
    is_shared = dials.get("budget") == "joint"  # a joint ranking may show nothing of a modality
    trained = {
        n: p
        for n, p in model.named_parameters()
        if p.requires_grad and not (is_shared and (".adapters." in n or ".tasks." in n))
    }
    assert not [n for n, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0]
    mask = model.imagine(on).mask
    assert mask.visible.shape == (12, int(0.15 * 48))
    for span, known in zip(model.encoder.layout(on).spans.items(), ALL, strict=True):
        assert span[0] == known.name
        seen = (mask.visible >= span[1].start) & (mask.visible < span[1].stop)
        assert not (seen.any(dim=1) & ~present.get(span[0], flags(*[1] * 12))).any(), "what is missing is not visible"
    model.after_step({n: torch.tensor(1.0) for n in ("rgb", "norm_rgb", "depth", "semseg")}, torch.tensor(True))
    assert mean_loss(model(on)).isfinite()


@pytest.mark.parametrize(
    "dials",
    [
        {"guide_heads": "random", "draw": "noisy", "guide_every": 3},
        *(
            pytest.param(dials, marks=pytest.mark.slow)
            for dials in (
                {"guide": "error", "budget": "adaptive"},
                {"guide_scale": "half", "decoder": "cross", "blend": "linear", "predicted": 0.25, "tasks": "uniform"},
                {"query": "all", "student": "momentum", "budget": "joint"},
            )
        ),
    ],
    ids=name,
)
def test_a_step_is_one_graph(dials: dict):
    """And a guide that looks in every third step makes two of them, no third."""
    modalities = ALL if "guide" in dials else (RGB, SEMANTICS)  # tracing takes a second a decoder
    model, on = build(GUIDED, modalities, extra_norm_pix=False, **dials), batch(present=LACKING)
    torch._dynamo.reset()
    counted = CompileCounter()
    step = torch.compile(lambda batch: mean_loss(model(batch)), fullgraph=True, backend=counted)
    for number in range(5):
        model.before_step(number, 0.5)
        assert step(on).item() == pytest.approx(mean_loss(model(on)).item(), rel=1e-5)
    assert counted.frame_count == (2 if "guide_every" in dials else 1)


# Numbers of the paper


def test_the_papers_sizes_and_rate():
    with torch.device("meta"):
        built = multimae.recipe()
        model = built.stages[0].build()
    encoder = model.encoder
    assert sum(p.numel() for p in (*encoder.blocks.parameters(), encoder.prefix)) == 85_055_232
    assert sum(p.numel() for p in encoder.adapters.parameters()) == 1_583_680
    heads = {o.decoder: o.head for o in model.objectives}
    sizes = {
        n: sum(p.numel() for p in (*decoder.parameters(), *heads[n].parameters()))
        for n, decoder in model.decoders.items()
    }
    assert sizes == {"rgb": 2_765_056, "norm_rgb": 2_765_056, "depth": 2_633_472, "semseg": 3_114_576}
    assert sum(p.numel() for p in model.parameters()) == 97_917_072
    cells = slice(0, 196), slice(196, 392), slice(392, 588)
    layout = replace(
        build().encoder.layout(batch()), spans=dict(zip(("a", "b", "c"), cells, strict=True)), grid=(14, 14)
    )
    assert model.masker.counts(layout) == (98, 490)
    assert built.optim.peak_lr == pytest.approx(8e-4)
    assert (built.epochs, built.optim.warmup_epochs, built.optim.batch_size) == (1600, 40, 2048)


# What is hidden, missing or invalid


@pytest.mark.parametrize("which", ["rgb", "depth", "semseg"])
@pytest.mark.parametrize("dials", [{}, {"decoder": "cross", "blend": "linear"}], ids=name)
def test_nothing_hidden_leaks(which: str, dials: dict):
    """Other numbers at hidden tokens change no latent and no guess. For depth they come after standardisation, whose
    statistics may read hidden pixels."""
    depth = Modality("depth", 1, (2.0,), (1.0,))
    model, on = build(modalities=(RGB, depth, SEMANTICS), **dials), batch()
    before = model.imagine(on)
    layout = before.latents.tokens.layout
    seen = torch.zeros(4, layout.num_tokens, dtype=torch.bool).scatter(1, before.mask.visible, True)
    side = on.maps[which].shape[-1] // 4
    shown = seen[:, layout.spans[which]].unflatten(1, (1, 4, 4)).repeat_interleave(side, 2).repeat_interleave(side, 3)
    other = batch(count=8).maps[which][4:]
    noisy = torch.where(shown, on.maps[which], other)
    assert not torch.equal(noisy, on.maps[which])
    after = model.imagine(replace(on, maps={**on.maps, which: noisy}))
    assert torch.equal(before.mask.visible, after.mask.visible)
    assert torch.equal(before.latents.final, after.latents.final)
    for key, decoded in before.decoded.items():
        assert torch.equal(decoded, after.decoded[key])
    everything = model.imagine(replace(on, maps={**on.maps, which: other}))
    assert not torch.equal(before.latents.final, everything.latents.final), "what is visible is read"


@pytest.mark.parametrize("dials", [{}, {"query": "mean"}, {"query": "all"}, {"guide_scale": "half"}], ids=name)
def test_a_missing_modality_is_read_by_nobody(dials: dict):
    """Whatever stands in its map: same look, same mask, same loss, and no sample counts that lacks it."""
    model, on = build(GUIDED, visible=0.15, **dials), batch(present=LACKING)
    there = {n: LACKING.get(n, flags(1, 1, 1, 1))[:, None, None, None] for n in on.maps}
    other = {n: torch.where(there[n], m, batch(count=8).maps[n][4:]) for n, m in on.maps.items()}
    changed = replace(on, maps=other)
    assert not torch.equal(on.maps["depth"], changed.maps["depth"])
    before, after = model.imagine(on), model.imagine(changed)
    torch.testing.assert_close(before.observations["student"].attention, after.observations["student"].attention)
    assert torch.equal(before.mask.visible, after.mask.visible)
    for key, (total, count) in model(on).items():
        expected = int(LACKING.get(key, flags(1, 1, 1, 1)).sum())
        assert int(count) == expected
        torch.testing.assert_close(model(changed)[key][0], total)


def test_attention_to_a_missing_modality_is_zero():
    model, on = build(GUIDED), batch(present=LACKING)
    seen = model.imagine(on).observations["student"]
    assert seen.attention is not None
    assert (seen.of("depth").attention[1] == 0).all()
    assert (seen.of("depth").attention[0] > 0).all()


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
        kept = pixels[int(0.1 * len(pixels)) : int(0.9 * len(pixels))]
        assert mean[i].item() == pytest.approx(kept.mean().item(), rel=1e-5)
        assert std[i].item() == pytest.approx((kept.var() + 1e-6).sqrt().item(), rel=1e-5)
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


# Roles


def test_features_from_rgb_alone():
    model, on = build(), batch()
    alone = replace(on, maps={"rgb": on.maps["rgb"]})
    latents = model.encoder(model.encoder.embed(alone))
    assert latents.final.shape == (4, 1 + 16, 24)
    lacking = replace(on, present={n: flags(0, 0, 0, 0) for n in ("depth", "semseg")})
    together = model.encoder(model.encoder.embed(lacking))
    torch.testing.assert_close(together.final[:, :17], latents.final, msg="missing and not given are the same")
    with pytest.raises(ValueError, match="a batch needs one of rgb, depth, semseg; got thermal"):
        model.encoder.embed(replace(on, maps={"thermal": on.maps["rgb"]}))


@pytest.mark.parametrize("decoder", ["task", "cross"])
def test_an_output_alone_is_predicted_and_never_read(decoder: str):
    semantics = replace(SEMANTICS, role="output")
    model, on = build(modalities=(RGB, DEPTH, semantics), decoder=decoder), batch()
    assert list(model.encoder.adapters) == ["rgb", "depth"]
    seen = model.imagine(on)
    assert (seen.queries["semseg"].weight == 1).all()
    assert seen.queries["semseg"].cells.shape == (4, 16)
    other = replace(on, maps={**on.maps, "semseg": 4 - on.maps["semseg"]})
    assert torch.equal(model.imagine(other).decoded["semseg"], seen.decoded["semseg"])
    assert model(other)["semseg"][0] != model(on)["semseg"][0]
    depth = replace(DEPTH, role="input")
    assert [o.name for o in build(modalities=(RGB, depth, semantics)).objectives] == ["rgb", "norm_rgb", "semseg"]


@pytest.mark.parametrize(
    ("dials", "told"),
    [
        ({"blend": "linear"}, "no place in decoder=task"),
        ({"concentration": (1.0, 2.0)}, "one for each of rgb, depth, semseg; got 2"),
        ({"concentration": (0.0,)}, "concentration of a Dirichlet is above 0"),
        ({"budget": "adaptive", "tasks": "uniform"}, "takes all tasks"),
        ({"modalities": (replace(RGB, role="output"),)}, "all that are given are outputs"),
        ({"modalities": (replace(RGB, role="input"),)}, "every modality is an input only"),
        ({"modalities": (RGB, replace(DEPTH, loss="cross-entropy"))}, "'depth' is continuous, which the loss"),
        ({"modalities": (RGB, replace(SEMSEG, stride=3, num_classes=5))}, "no whole number of pixels of 'semseg'"),
        ({"recipe": GUIDED, "guide": "error", "guide_scale": "half"}, "guide=error reads no attention"),
        ({"recipe": GUIDED, "teacher": "random", "budget": "joint"}, "no say across modalities"),
        ({"recipe": GUIDED, "guide_scale": "half", "image_size": (40,)}, r"even grid of tokens; this one is \(5, 5\)"),
        ({"recipe": GUIDED, "guide_every": 0}, "every 1 or more steps"),
        ({"recipe": GUIDED, "layer": 7}, "an encoder of 2 blocks has layers from -2 to 1"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_an_illegal_choice_gets_one_clear_error(dials: dict, told: str):
    with pytest.raises(ValueError, match=told):
        build(**dials)(batch())


# Guides


def test_the_guided_mask_hides_what_is_attended_most():
    model, on = build(GUIDED), batch()
    seen = model.imagine(on)
    attention = model.encoder.observe(model.encoder.embed(on), Reading("cls", features=0)).attention.mean(dim=1)
    visible = torch.zeros(4, 48, dtype=torch.bool).scatter(1, seen.mask.visible, True)
    for span in seen.latents.tokens.layout.spans.values():
        for sample in range(4):
            own, shown = attention[sample, span], visible[sample, span]
            if shown.any() and not shown.all():
                assert own[shown].max() <= own[~shown].min()


def test_a_saved_look_is_a_pass_that_is_not_made():
    class Counting(OnlineTeacher):
        looks = 0

        def observe(self, batch, tokens) -> Observation:
            self.looks += 1
            return super().observe(batch, tokens)

    model, on = build(), batch(1)
    teacher = Counting(model.encoder, Reading("cls", features=0))
    sometimes = Sometimes(teacher, every=4, after=0.25)
    for step in range(16):
        sometimes.before_step(step, step / 16)
        sometimes.observe(on, model.encoder.embed(on))
    assert teacher.looks == 3  # steps 4, 8 and 12
    sometimes.eval().before_step(1, 0.0)
    assert sometimes.observe(on, model.encoder.embed(on)).attention is not None, "out of training it always looks"


def test_a_coarse_look_sees_the_same_at_a_quarter_of_the_tokens():
    model, on = build(), batch()
    reading = Reading("cls", features=0)
    flat = replace(on, maps={n: m.new_full((), 1).expand_as(m) for n, m in on.maps.items()})
    seen = []

    class Watching(OnlineTeacher):
        def observe(self, batch, tokens) -> Observation:
            seen.append((batch, tokens))
            return super().observe(batch, tokens)

    coarse = Coarse(Watching(model.encoder, reading), model.encoder)
    attention = coarse.observe(flat, model.encoder.embed(flat)).attention
    small, tokens = seen[0]
    assert tokens.ids.shape == (4, 12)
    assert attention.shape == (4, 2, 48)
    assert (small.maps["rgb"] == 1).all()
    assert small.maps["semseg"].shape == (4, 1, 4, 4)
    valid = torch.zeros(4, 1, 32, 32, dtype=torch.bool)
    valid[..., ::2, ::2] = True  # one valid pixel of four: it alone is averaged
    holes = torch.where(valid, on.maps["depth"], 1e6)
    coarse.observe(replace(on, maps={**on.maps, "depth": holes}, valid={"depth": valid}), tokens)
    torch.testing.assert_close(seen[1][0].maps["depth"], on.maps["depth"][..., ::2, ::2])


def test_errors_are_those_of_guesses_from_the_other_half():
    model, on = build(visible=0.5), batch(present={"depth": flags(1, 0, 1, 1)})
    teacher = ComplementaryErrors(model.encoder, model.decoders, model.objectives)
    tokens = model.encoder.embed(on)
    error = teacher.observe(on, tokens).error
    assert error is not None
    assert not error.requires_grad
    order = on.chance.uniform("halves", 48).argsort(dim=1)

    class Fixed(Masker):
        def __call__(self, tokens, observations, batch) -> Mask:
            return Mask(order[:, :24], order[:, 24:])

    seen = model.imagine(on, Fixed(model.masker.score, 0.5, 0.5))
    depth = next(o for o in model.objectives if o.name == "depth")
    found, known = depth.errors(seen, on)
    for sample in (0, 2, 3):
        ids = seen.queries["depth"].ids[sample][known[sample] > 0]
        torch.testing.assert_close(error[sample, ids], found[sample][known[sample] > 0])
    assert (error[1, 16:32] == 0).all()
    assert (error[0] > 0).all()


# The trainer


def gradients(micro_batch: int, recipe, on: Batch, **dials: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model = build(recipe, **dials)
    settings = Settings("cpu", "fp32", micro_batch, False, 10, 1)
    trainer = Trainer(model, Optim(), settings)
    found: dict[str, Tensor] = {}
    trainer.optimizer.step = lambda: found.update({n: p.grad.clone() for n, p in model.named_parameters()})  # type: ignore
    update = trainer.update(on, 0.0)
    return found, dict(update.losses)


@pytest.mark.parametrize(
    ("recipe", "dials"),
    [
        (multimae.recipe, {}), (GUIDED, {}), (multimae.recipe, {"weighting": "uncertainty"}),
        (multimae.recipe, {"decoder": "cross", "blend": "linear", "predicted": 0.25}),
    ],
    ids=lambda x: name(x) if isinstance(x, dict) else x.__module__.rpartition("_")[2],
)  # fmt: skip
def test_micro_batches_change_nothing(recipe, dials: dict):
    """One or four: the same losses and the same gradients, though each has other samples that count."""
    present = {"depth": flags(1, 0, 0, 0, 1, 1, 1, 0), "semseg": flags(1, 1, 0, 1, 0, 0, 1, 1)}
    valid = torch.ones(8, 1, 8, 8, dtype=torch.bool)
    valid[3] = False
    on = batch(8, present=present, valid={"semseg": valid})
    whole, losses = gradients(8, recipe, on, visible=0.15, **dials)
    for size in (2, 3):
        parts, others = gradients(size, recipe, on, visible=0.15, **dials)
        for key, value in losses.items():
            assert others[key].item() == pytest.approx(value.item(), rel=1e-5)
        for key, gradient in whole.items():
            torch.testing.assert_close(parts[key], gradient, rtol=1e-3, atol=1e-6)


def test_a_modality_that_may_be_wholly_visible_is_counted_first():
    on = batch(8)
    assert build(visible=0.5).is_uneven(on)
    assert not build(visible=0.25).is_uneven(on)
    assert not build(visible=0.25).is_uneven(replace(on, present={"depth": flags(*[1] * 8)}))
    whole, _ = gradients(8, multimae.recipe, on, visible=0.5, concentration=(0.1,))
    parts, _ = gradients(2, multimae.recipe, on, visible=0.5, concentration=(0.1,))
    for key, gradient in whole.items():
        torch.testing.assert_close(parts[key], gradient, rtol=1e-3, atol=1e-6)


def test_uncertainty_weighs_a_loss():
    model, on = build(weighting="uncertainty"), batch()
    plain = build()(on)
    for objective in model.objectives:
        assert isinstance(objective, Uncertain)
        objective.log_variance.data.fill_(0.7)
    for key, (total, count) in model(on).items():
        expected = torch.exp(torch.tensor(-0.7)) * mean_loss({key: plain[key]}) + 0.7
        torch.testing.assert_close(total / count, expected)


def test_the_budget_s_memory_is_saved_with_the_model():
    model = build(budget="adaptive")
    losses = {n: torch.tensor(float(i + 1)) for i, n in enumerate(("rgb", "norm_rgb", "depth", "semseg"))}
    model.after_step(losses, torch.tensor(True))
    model.after_step({**losses, "depth": torch.tensor(0.1)}, torch.tensor(True))
    other = build(budget="adaptive")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.masker.score.concentrations, model.masker.score.concentrations)
    assert other.masker.score.concentrations.std() > 0


def test_an_encoder_needs_something_to_read():
    with pytest.raises(ValueError, match="needs a modality to read"):
        Encoder((replace(RGB, role="output"),), (32,), 8, 24, 1, 2)
