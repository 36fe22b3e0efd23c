"""Recipes: the papers' numbers, every legal choice of words trains, and an illegal one is answered."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from tiny import OPTIONS, batch, build, check_options
from unveil.modeling.encoder import SIZES
from unveil.modeling.masked_model import mean_loss
from unveil.modeling.types import Layout
from unveil.recipes import crossmae, mae, mim, simmim
from unveil.recipes.recipe import Recipe, Stage
from unveil.recipes.registry import build_recipe, options_of

SCORES = ("uniform", "block", "inverse-block", "grid")
HIDE_AND_DECODER = (
    ("drop", "self"), ("drop", "cross"), ("drop", "cross-self"),
    ("blank", "linear"), ("blank", "self"), ("blank", "cross"), ("blank", "cross-self"),
)  # fmt: skip
TARGETS = ("norm-pixels", "pixels")
MATRIX = [
    {"masking": masking, "hide": hide, "decoder": decoder, "target": target}
    for masking, (hide, decoder), target in itertools.product(SCORES, HIDE_AND_DECODER, TARGETS)
]
OTHER_WORDS = [
    *(
        {"hide": hide, "decoder": decoder, "blend": blend}
        for hide, decoder in (("drop", "self"), ("drop", "cross"), ("blank", "cross-self"))
        for blend in ("linear", "softmax", "project")
    ),
    {"decoder": "cross", "blend": "linear", "num_maps": 1, "use_input": False},
    {"decoder": "cross", "blend": "linear", "maps": (2,)},
    {"mask_unit": 8},
    {"mask_unit": 8, "masking": "block", "hide": "blank", "decoder": "linear"},
    {"predicted": 0.25, "ask": "hardest", "masking": "block"},
    {"predicted": 0.25, "decoder": "cross"},
    {"loss": "l1"},
    {"loss": "smooth-l1", "hide": "blank", "decoder": "linear"},
    {"masking": "attention", "teacher": "student"},
    {"masking": "attention", "teacher": "random", "draw": "hard", "hide": "blank", "decoder": "linear"},
    {"masking": "attention", "teacher": "student", "draw": "low", "mask_unit": 8},
    {"masking": "attention", "teacher": "random", "draw": "keep", "target": "features", "loss": "cosine"},
    {"target": "features", "teacher": "student", "loss": "smooth-l1", "decoder": "cross", "blend": "linear"},
    {"target": "hog", "masking": "block", "hide": "blank", "decoder": "linear"},
    {"target": "data2vec", "masking": "block", "hide": "blank", "decoder": "linear"},
    {"target": "data2vec", "target_norm": "instance", "teacher_features": 1, "decoder": "cross"},
    {"target": "maskdistill", "teacher": "random", "masking": "block", "hide": "blank", "decoder": "linear"},
    {"target": "maskdistill", "teacher": "random", "target_norm": "instance", "teacher_features": 2, "loss": "l1"},
]
EVERY_WORD_ONCE = [  # one cell of each pair of hide and decoder, and what else changes the graph
    *(MATRIX[14 * (i % 4) + 2 * i + i % 2] for i in range(7)),
    *({"decoder": "cross", "blend": blend} for blend in ("linear", "softmax", "project")),
    {"mask_unit": 8, "predicted": 0.25, "ask": "hardest", "masking": "block"},
    {"masking": "attention", "teacher": "student", "target": "features"},
    {"target": "hog"},
]
COMPILED = EVERY_WORD_ONCE + [
    pytest.param(options, marks=pytest.mark.slow) for options in MATRIX + OTHER_WORDS if options not in EVERY_WORD_ONCE
]


def name(options: dict) -> str:
    return "-".join(map(str, options.values()))


@pytest.mark.parametrize("options", MATRIX + OTHER_WORDS, ids=name)
def test_every_legal_cell_trains_every_parameter(options: dict):
    model = build(visible=0.5, **options)
    loss = mean_loss(model(batch()))
    loss.backward()
    assert loss.isfinite()
    trained = ((n, p.grad) for n, p in model.named_parameters() if p.requires_grad)
    assert not [n for n, gradient in trained if gradient is None or not gradient.abs().sum() > 0]


@pytest.mark.parametrize("options", COMPILED, ids=name)
def test_every_legal_cell_compiles_to_one_graph(options: dict):
    """No graph break, and the same loss as without compilation. Each word in one cell at least; all cells with --slow.

    Tracing takes a second a cell, so the models are a block deep and the compiler behind the trace is the slow test's.
    """
    model, on = build(depth=2 if "maps" in options else 1, visible=0.5, **{"decoder_depth": 1, **options}), batch()
    torch._dynamo.reset()
    step = torch.compile(lambda batch: mean_loss(model(batch)), fullgraph=True, backend="eager")
    assert step(on).item() == pytest.approx(mean_loss(model(on)).item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"masking": "block", "decoder": "cross", "blend": "linear", "predicted": 0.25}, MATRIX[6]], ids=name
)
def test_the_compiled_step_is_the_plain_one(options: dict):
    """Through the real compiler: same masks, same loss, same gradients."""
    model, on = build(visible=0.5, **options), batch()
    torch._dynamo.reset()
    mean_loss(model(on)).backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    loss = mean_loss(compiled(on))
    loss.backward()
    assert loss.item() == pytest.approx(mean_loss(model(on)).item(), rel=1e-5)
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.grad, plain[n], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hide": "drop", "decoder": "linear"}, "it needs --hide blank"),
        ({"hide": "blank", "decoder": "linear", "blend": "linear"}, "no place in decoder=linear"),
        ({"hide": "blank", "decoder": "self", "blend": "softmax"}, "use --decoder cross"),
        ({"mask_unit": 6}, "got 6 with a patch of 4"),
        ({"mask_unit": 12}, r"do not tile a grid of \(4, 6\)"),
        ({"visible": 1.7}, "between 0 and 1; got 1.7"),
        ({"visible": 0.5, "predicted": 0.6}, "at most the hidden share"),
        ({"visible": 0.01}, "leaves 0 to read"),
        ({"size": "titan"}, "one of nano, tiny, small, base, large, huge, giant; got 'titan'"),
        ({"patch": 5}, "does not divide an image of 16 x 24"),
        ({"decoder_heads": 3}, "3 heads do not divide a width of 16"),
        ({"decoder_dim": 18, "decoder_heads": 3}, "a width that 4 divides; got 18"),
        ({"decoder_depth": 0}, "at least one block"),
        ({"decoder_depth": 0, "decoder": "cross"}, "at least one block"),
        ({"decoder_depth": 0, "hide": "blank"}, "at least one block"),
        ({"decoder": "cross", "blend": "linear", "num_maps": 3}, "got num_maps=3"),
        ({"decoder": "cross", "blend": "linear", "maps": (1,)}, "block 2 must be among"),
        ({"epochs": 0}, "epochs .* above 0; got 0"),
        ({"batch_size": 0}, "batch_size .* at least 1; got 0"),
        ({"masking": "blok"}, r"masking must be one of uniform, block, inverse-block, grid, attention .*; got 'blok'"),
        ({"hide": "dropp"}, "hide must be one of drop, blank; got 'dropp'"),
        ({"decoder": "cros"}, "decoder must be one of self, cross, cross-self, linear; got 'cros'"),
        ({"blend": "sum"}, "blend must be one of linear, softmax, project, none; got 'sum'"),
        (
            {"target": "dino"},
            "target must be one of norm-pixels, pixels, hog, features, data2vec, maskdistill; got 'dino'",
        ),
        ({"target": "data2vec", "teacher": "random"}, "the features of student, not of random; use --target features"),
        ({"target": "maskdistill", "teacher": "student"}, "not of student; use --target features, or leave --teacher"),
        ({"target": "data2vec", "teacher_features": 0}, "teacher_features .* at least 1; got 0"),
        ({"target": "data2vec", "teacher_features": 3}, "features of up to 2 blocks"),
        ({"target": "data2vec", "beta": -1.0}, "at least 0; got -1.0"),
        ({"loss": "l3"}, "loss must be one of l2, l1, smooth-l1, cosine; got 'l3'"),
        ({"masking": "attention"}, "need --teacher student, or an encoder's address"),
        ({"target": "features"}, "need --teacher student, or an encoder's address"),
        ({"ask": "easiest"}, "ask must be one of uniform, hardest; got 'easiest'"),
        ({"lr_scale": "both"}, "lr_scale must be one of predicted, inverse, none; got 'both'"),
        ({"blend_init": "zeros"}, "blend_init must be one of paper, released; got 'zeros'"),
        ({"flip": "v"}, "flip"),
        ({"crop_scale": 1.5}, "crop"),
    ],
    ids=lambda x: name(x) if isinstance(x, dict) else "",
)
def test_an_illegal_choice_gets_one_clear_error(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build(**options).encode_decode(batch())


# The papers' numbers


def layout(grid: tuple[int, int]) -> Layout:
    return Layout({"rgb": slice(0, grid[0] * grid[1])}, grid)


def sizes(recipe, **options) -> tuple[int, int]:
    """Trained parameters of the encoder and of the rest, without making a single number."""
    with torch.device("meta"):
        model = build_recipe(recipe, (), options).stages[0].build()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    encoder = sum(p.numel() for p in model.encoder.parameters() if p.requires_grad)
    return encoder, trained - encoder


NARROW = {"decoder_dim": 256, "decoder_heads": 8}  # as CrossMAE pairs it with the small encoder


@pytest.mark.parametrize(
    ("options", "mae_sizes", "cross_sizes"),
    [
        ({"size": "small", **NARROW}, (21_590_016, 6_614_784), (21_589_248, 10_471_068)),
        ({"size": "base"}, (85_647_360, 26_008_320), (85_645_824, 41_388_444)),
        ({"size": "large"}, (303_099_904, 26_139_392), (303_097_856, 44_540_460)),
        ({"size": "huge", "patch": 14}, (630_435_840, 26_178_124), (630_433_280, 47_600_088)),
    ],
    ids=lambda x: x["size"] if isinstance(x, dict) else "",
)
def test_the_papers_parameter_counts(options: dict, mae_sizes: tuple[int, int], cross_sizes: tuple[int, int]):
    assert sizes(mae.recipe, **options) == mae_sizes
    assert sizes(crossmae.recipe, **options) == cross_sizes


def test_a_norm_is_trained_only_where_it_is_read():
    """CrossMAE has no final norm; reading the last map alone brings it back (paper, appendix A.3)."""
    assert sizes(crossmae.recipe, blend="none")[0] == sizes(mae.recipe)[0]
    assert sizes(crossmae.recipe)[0] == sizes(mae.recipe)[0] - 2 * 768


@pytest.mark.parametrize(
    ("recipe", "options", "expected"),
    [
        (mae.recipe, {}, (49, 147)),
        (mae.recipe, {"visible": 0.35}, (68, 128)),
        (crossmae.recipe, {}, (49, 49)),
        (crossmae.recipe, {"predicted": 0.15}, (49, 30)),
        (crossmae.recipe, {"image_size": (448,)}, (196, 196)),
        (simmim.recipe, {}, (76, 120)),
    ],
)
def test_the_papers_token_counts(recipe, options: dict, expected: tuple[int, int]):
    with torch.device("meta"):
        built = build_recipe(recipe, (), options)
        model = built.stages[0].build()
    assert model.masker.counts(layout(built.encoder.grid)) == expected


def test_the_papers_rates():
    with torch.device("meta"):
        assert mae.recipe().optim.peak_lr == pytest.approx(2.4e-3)
        assert crossmae.recipe().optim.peak_lr == pytest.approx(8e-4)
        assert crossmae.recipe(predicted=0.75).optim.peak_lr == pytest.approx(2.4e-3)
        assert crossmae.recipe(lr_scale="none").optim.peak_lr == pytest.approx(2.4e-3)
        assert crossmae.recipe(lr_scale="inverse").optim.peak_lr == pytest.approx(7.2e-3)
        assert simmim.recipe().optim.peak_lr == pytest.approx(4e-4)


@pytest.mark.parametrize(("recipe", "epochs", "warmup"), [(mae, 800, 40), (crossmae, 800, 40), (simmim, 800, 20)])
def test_the_papers_schedules(recipe, epochs: int, warmup: int):
    with torch.device("meta"):
        built = recipe.recipe()
    assert (built.epochs, built.optim.warmup_epochs, built.optim.weight_decay) == (epochs, warmup, 0.05)
    assert built.optim.betas == ((0.9, 0.999) if recipe is simmim else (0.9, 0.95))
    assert built.optim.clip == (5.0 if recipe is simmim else None)
    assert built.view.image_size == (224, 224)


@pytest.mark.parametrize(
    ("paper", "words"),
    [
        (mae, {}),
        (crossmae, {"decoder": "cross", "blend": "linear", "predicted": 0.25, "decoder_depth": 12}),
        (
            simmim,
            {"hide": "blank", "decoder": "linear", "target": "pixels", "loss": "l1", "mask_unit": 32, "visible": 0.4},
        ),
    ],
)
def test_a_paper_is_a_choice_of_words(paper, words: dict):
    """The recipe `mim` with a paper's words is that paper: equal weights, masks and loss."""
    shape = {"size": "tiny", "patch": 16, "image_size": (64,)}
    on = batch(size=(64, 64))
    losses = []
    for recipe, options in ((paper.recipe, {}), (mim.recipe, words)):
        torch.manual_seed(0)
        losses.append(mean_loss(build_recipe(recipe, (), {**shape, **options}).stages[0].build()(on)))
    assert losses[0] == losses[1]


def test_data2vec_is_the_mean_of_the_last_blocks_of_the_student_s_average():
    """Layer-normalised block by block, normalised again, smooth-l1 with a beta of 2, on hidden patches alone."""
    model, on = build(depth=8, target="data2vec", masking="block", hide="blank", decoder="linear"), batch()
    average = model.teachers["teacher"].encoder
    for weight in average.parameters():  # it need not be the student
        weight.data += 0.1 * torch.randn_like(weight)
    output = model.encode_decode(on)
    layers = average(average.embed(on), keep=range(9)).layers
    each = [F.layer_norm(layers[k][:, 1:], (24,)) for k in range(3, 9)]
    truth = F.layer_norm(torch.stack(each).mean(dim=0), (24,))
    hidden = output.queries["features"].ids[..., None].expand(-1, -1, 24)
    guess = model.objectives[0].head(output.decoded["features"])
    expected = F.smooth_l1_loss(guess, truth.gather(1, hidden), beta=2.0)
    torch.testing.assert_close(mean_loss(model(on)), expected)


def test_maskdistill_is_the_normalised_features_of_a_frozen_teacher():
    options = {"target": "maskdistill", "teacher": "random", "masking": "block", "hide": "blank", "decoder": "linear"}
    model, on = build(visible=0.6, **options), batch()
    output, teacher = model.encode_decode(on), model.teachers["teacher"].encoder
    features = teacher.vit(teacher.normalised(on.maps["rgb"]))[:, 1:]
    hidden = output.queries["features"].ids[..., None].expand(-1, -1, 24)
    guess = model.objectives[0].head(output.decoded["features"])
    expected = F.smooth_l1_loss(guess, F.layer_norm(features, (24,)).gather(1, hidden))
    torch.testing.assert_close(mean_loss(model(on)), expected)
    assert output.latents.final.shape[1] == 25, "mask tokens are encoded"
    assert hidden.shape[1] == 10, "four tenths of 24, blocks"


def test_instance_normalised_blocks_have_no_mean_and_unit_spread_in_every_channel():
    model, on = build(target="data2vec", target_norm="instance", teacher_features=1), batch()
    truth, _ = model.objectives[0].target(on, model.encode_decode(on).observations)
    torch.testing.assert_close(truth.mean(dim=1), torch.zeros(3, 24), atol=1e-5, rtol=0)
    torch.testing.assert_close(truth.std(dim=1, correction=0), torch.ones(3, 24), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("target", "visible", "expected"), [("data2vec", 0.39, (76, 120)), ("maskdistill", 0.6, (117, 79))]
)
def test_data2vec_and_maskdistill_hide_as_many_patches_as_their_papers(target: str, visible: float, expected: tuple):
    with torch.device("meta"):
        options = {"target": target, "visible": visible, "masking": "block", "hide": "blank", "decoder": "linear"}
        if target == "maskdistill":
            options["teacher"] = "random"
        built = build_recipe(mim.recipe, (), options)
        model = built.stages[0].build()
    assert model.masker.counts(layout(built.encoder.grid)) == expected
    assert model.objectives[0].loss.keywords == {"beta": 2.0 if target == "data2vec" else 1.0}


# What the command line reads


@pytest.mark.parametrize("recipe", [mae, crossmae, simmim, mim], ids=lambda r: r.__name__)
def test_every_dial_is_a_keyword_with_a_default_and_a_line_of_help(recipe):
    check_options(recipe.recipe)


def test_dials_mean_the_same_in_every_recipe():
    """A flag's help and its type do not depend on the recipe."""
    meanings: dict[str, set[str]] = {}
    for recipe in (mae, crossmae, mim):
        for option in options_of(recipe.recipe):
            meanings.setdefault(option.name, set()).add(option.meaning)
    different = {option for option, lines in meanings.items() if len(lines) > 1}
    assert different <= {"predicted", "blend"}, "whose default and whose decoders differ"


def test_a_recipe_s_epochs_are_its_stages_together():
    with torch.device("meta"):
        built = build_recipe(mim.recipe, (), {**OPTIONS, "epochs": 3})
    stage = built.stages[0]
    both = Recipe(built.encoder, (stage, Stage(stage.build, 1.5)), built.optim, built.view)
    assert both.epochs == 4.5
    assert SIZES["tiny"] == (192, 12, 3), "and the tests left the sizes as they were"


def test_the_cells_that_are_always_compiled_hold_every_word():
    said = {(option, word) for options in EVERY_WORD_ONCE for option, word in options.items()}
    assert {("masking", s) for s in (*SCORES, "attention")} | {
        ("target", t) for t in (*TARGETS, "hog", "features")
    } <= said
    assert {(d["hide"], d["decoder"]) for d in EVERY_WORD_ONCE if "hide" in d} == set(HIDE_AND_DECODER)
