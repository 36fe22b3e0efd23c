"""MultiMAE and its guided masks: every variant trains, as one graph, with the paper's sizes; roles; the trainer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from multimodal import ALL, GUIDED, LACKING, SEMANTICS, batch, build, flags, name
from unveil.modeling.encoder import Encoder
from unveil.modeling.masked_model import mean_loss
from unveil.modeling.objectives import UncertaintyWeighted
from unveil.modeling.optim import Optim, adamw
from unveil.modeling.types import DEPTH, RGB, SEMSEG, Batch
from unveil.recipes import multimae
from unveil.recipes.registry import build_recipe
from unveil.training.autoconfig import AutoConfig
from unveil.training.trainer import Settings, Trainer

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
    {"guide": "foreseen"},
    {"guide": "error", "decoder": "cross", "blend": "linear"},
    {"guide_every": 4, "guide_warmup": 0.2},
    {"budget": "joint"},
    {"budget": "adaptive"},
    {"teacher": "random"},
    {"teacher": "random", "decoder": "cross", "blend": "linear", "predicted": 0.25, "guide_heads": "random"},
]


@pytest.mark.parametrize("lacks", [{}, LACKING], ids=["whole", "lacking"])
@pytest.mark.parametrize(
    ("recipe", "options"),
    [*((multimae.recipe, d) for d in VARIANTS), *((GUIDED, d) for d in GUIDES)],
    ids=lambda x: name(x) if isinstance(x, dict) else x.__module__.rpartition("_")[2],
)
def test_every_variant_trains_every_parameter(recipe, options: dict, lacks: dict):
    present = {n: known.repeat(3) for n, known in lacks.items()}
    model, on = build(recipe, **{"visible": 0.15, **options}), batch(12, present=present)
    loss = mean_loss(model(on))
    loss.backward()
    assert loss.isfinite()
    is_shared = options.get("budget") == "joint"  # a joint ranking may show nothing of a modality
    trained = {
        n: p
        for n, p in model.named_parameters()
        if p.requires_grad and not (is_shared and (".adapters." in n or ".tasks." in n))
    }
    assert not [n for n, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0]
    mask = model.encode_decode(on).mask
    assert mask.visible.shape == (12, int(0.15 * 48))
    for span, known in zip(model.encoder.layout(on).spans.items(), ALL, strict=True):
        assert span[0] == known.name
        is_own = (mask.visible >= span[1].start) & (mask.visible < span[1].stop)
        assert not (is_own.any(dim=1) & ~present.get(span[0], flags(*[1] * 12))).any(), "what is missing is not visible"
    model.after_step({n: torch.tensor(1.0) for n in ("rgb", "norm_rgb", "depth", "semseg")}, torch.tensor(True))
    assert mean_loss(model(on)).isfinite()


@pytest.mark.parametrize(
    "options",
    [
        {"guide_heads": "random", "draw": "noisy", "guide_every": 3},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                {"guide": "error", "budget": "adaptive"},
                {"guide_scale": "half", "decoder": "cross", "blend": "linear", "predicted": 0.25, "tasks": "uniform"},
                {"query": "all", "student": "momentum", "budget": "joint"},
            )
        ),
    ],
    ids=name,
)
def test_a_step_is_one_graph(options: dict):
    """And a guide that looks in every third step makes two of them, no third."""
    modalities = ALL if "guide" in options else (RGB, SEMANTICS)  # tracing takes a second a decoder
    model, on = build(GUIDED, modalities, extra_norm_pix=False, **options), batch(present=LACKING)
    torch._dynamo.reset()
    counted = CompileCounter()
    step = torch.compile(lambda batch: mean_loss(model(batch)), fullgraph=True, backend=counted)
    for number in range(5):
        model.before_step(number, 0.5)
        assert step(on).item() == pytest.approx(mean_loss(model(on)).item(), rel=1e-5)
    assert counted.frame_count == (2 if "guide_every" in options else 1)


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


def test_the_released_code_decays_every_tensor_and_draws_queries_keys_and_values_apart():
    """Both only move variances: the two models begin with the same signs."""
    mae, released = build(), build(weight_decay_on="all", qkv_init="separate")
    optim = build_recipe(multimae.recipe, ALL, {"weight_decay_on": "all"}).optim
    decayed, free = adamw(released, optim).param_groups
    assert (len(decayed["params"]), free["params"]) == (len(list(released.parameters())), [])
    assert decayed["weight_decay"] == 0.05
    for path, weight in released.named_parameters():
        matrices = 3 if path.endswith("qkv.weight") else 2 if path.endswith(".kv.weight") else 0
        if matrices:
            outs, ins = weight.shape
            for own in weight.chunk(matrices):  # each is as wide as Xavier makes a matrix of its own: 2 / (ins + outs)
                assert own.var().item() == pytest.approx(2 / (ins + outs // matrices), rel=0.15), path
        before = mae.get_parameter(path)
        wider = (weight.abs().max() / before.abs().max().clamp_min(1e-12)).clamp_min(1)
        torch.testing.assert_close(weight, before * wider, msg=path)
        assert (wider > 1.1) == bool(matrices), path


@pytest.mark.parametrize(
    ("given", "paper", "expected"),
    [
        ({}, True, ("all", "separate")),
        ({}, False, ("matrices", "fused")),
        ({"qkv_init": "fused"}, True, ("all", "fused")),
        ({"size": "small"}, True, ("matrices", "fused")),  # of no published training
    ],
)
def test_the_published_model_is_trained_as_released(given: dict, paper: bool, expected: tuple[str, str]):
    for recipe in (multimae.recipe, GUIDED):
        auto = AutoConfig(recipe, given, paper)
        assert (auto.options["weight_decay_on"], auto.options["qkv_init"]) == expected
        assert not auto.changes, "it is the paper's own"


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
    output = model.encode_decode(on)
    assert (output.queries["semseg"].weight == 1).all()
    assert output.queries["semseg"].cells.shape == (4, 16)
    other = replace(on, maps={**on.maps, "semseg": 4 - on.maps["semseg"]})
    assert torch.equal(model.encode_decode(other).decoded["semseg"], output.decoded["semseg"])
    assert model(other)["semseg"][0] != model(on)["semseg"][0]
    depth = replace(DEPTH, role="input")
    assert [o.name for o in build(modalities=(RGB, depth, semantics)).objectives] == ["rgb", "norm_rgb", "semseg"]


@pytest.mark.parametrize(
    ("options", "message"),
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
        ({"recipe": GUIDED, "guide": "foreseen", "budget": "joint"}, "foreseen inside each modality, not across"),
        ({"recipe": GUIDED, "teacher": "random", "budget": "joint"}, "no say across modalities"),
        ({"recipe": GUIDED, "guide_scale": "half", "image_size": (40,)}, r"even grid of tokens; this one is \(5, 5\)"),
        ({"recipe": GUIDED, "guide_every": 0}, "every 1 or more steps"),
        ({"recipe": GUIDED, "layer": 7}, "an encoder of 2 blocks has layers from -2 to 1"),
    ],
    ids=lambda x: x if isinstance(x, str) else "options",
)
def test_an_illegal_choice_gets_one_clear_error(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build(**options)(batch())


# The trainer


def gradients(micro_batch: int, recipe, on: Batch, **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model = build(recipe, **options)
    settings = Settings("cpu", "fp32", micro_batch, False, 10, 1)
    trainer = Trainer(model, Optim(), settings)
    collected: dict[str, Tensor] = {}
    trainer.optimizer.step = lambda: collected.update({n: p.grad.clone() for n, p in model.named_parameters()})  # type: ignore
    update = trainer.update(on, 0.0)
    return collected, dict(update.losses)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (multimae.recipe, {}), (GUIDED, {}), (multimae.recipe, {"weighting": "uncertainty"}),
        (multimae.recipe, {"decoder": "cross", "blend": "linear", "predicted": 0.25}),
    ],
    ids=lambda x: name(x) if isinstance(x, dict) else x.__module__.rpartition("_")[2],
)  # fmt: skip
def test_micro_batches_change_nothing(recipe, options: dict):
    """One or four: the same losses and the same gradients, though each has other samples that count."""
    present = {"depth": flags(1, 0, 0, 0, 1, 1, 1, 0), "semseg": flags(1, 1, 0, 1, 0, 0, 1, 1)}
    valid = torch.ones(8, 1, 8, 8, dtype=torch.bool)
    valid[3] = False
    on = batch(8, present=present, valid={"semseg": valid})
    whole, losses = gradients(8, recipe, on, visible=0.15, **options)
    for size in (2, 3):
        parts, others = gradients(size, recipe, on, visible=0.15, **options)
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
        assert isinstance(objective, UncertaintyWeighted)
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
