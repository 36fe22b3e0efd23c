"""Everything combines with everything: masks x target x decoder x hide x number of modalities.

Every legal cell makes one step: losses are finite, and so is the gradient of every parameter that is trained. Every
illegal cell is a ValueError that names the option to change. Without `--slow` every pair of words is in one cell at
least; with it all cells run (a minute).
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import tiny
from multimodal import ALL, GUIDED, LACKING, batch, build
from unveil.modeling.masked_model import MaskedModel, mean_loss
from unveil.modeling.targets import Classes, Features, Pixels
from unveil.modeling.types import DEPTH, RGB, Batch
from unveil.recipes import multimae

TEACHER = {"teacher": "random"}
HIDE = ("drop", "blank")
PATTERNS = ("uniform", "block", "inverse-block", "grid")
GUIDES: dict[str, dict[str, Any]] = {  # the ways in which multimae-attention guides masks
    "attention": {},
    "average's attention": {"student": "momentum", "draw": "gumbel"},
    "collaborative": TEACHER,
    "error": {"guide": "error"},
    "foreseen": {"guide": "foreseen"},
}
TARGETS = ("maps", "hog", "teacher", "student", "collaborative")
DECODERS = ("task", "cross", "cross-self", "linear")
FEATURES = ("teacher", "student", "collaborative")
# masks, target, decoder, hide and the number of modalities: the recipes multimae and multimae-attention
CELLS = list(itertools.product((*PATTERNS, *GUIDES), TARGETS, DECODERS, HIDE, (1, 2, 3)))
# the same of one modality without a number: the recipe mim
MIM_TARGETS = ("norm-pixels", "pixels", "hog", "features", "data2vec", "maskdistill")
MIM_CELLS = list(
    itertools.product((*PATTERNS, "attention"), MIM_TARGETS, ("self", "cross", "cross-self", "linear"), HIDE)
)


def error_of(masks: str, target: str, decoder: str, hide: str, *_: int) -> str | None:
    """What the error of an illegal cell says; None for a legal one."""
    if decoder == "linear" and hide == "drop":
        return "needs --hide blank"
    if masks == "error" and target in FEATURES:
        return "use --target maps or hog"
    return None


def chosen(cells: list[Any]) -> list[Any]:
    """The legal cells: those that hold every pair of words once, and the others for `--slow`."""
    legal = [cell for cell in cells if error_of(*cell) is None]
    missing = {pair for cell in legal for pair in itertools.combinations(enumerate(cell), 2)}
    parameters: list[Any] = []
    for turn in range(len(legal)):
        cell = legal[turn * 397 % len(legal)]  # a stride that visits each cell, so that all words change together
        pairs = set(itertools.combinations(enumerate(cell), 2))
        marks = () if pairs & missing else pytest.mark.slow
        missing -= pairs
        parameters.append(pytest.param(cell, marks=marks, id="-".join(map(str, cell))))
    assert len({parameter.values for parameter in parameters}) == len(legal)
    return parameters


def model_of(masks: str, target: str, decoder: str, hide: str, count: int, **options: Any) -> MaskedModel:
    teacher = TEACHER if target in ("teacher", "collaborative") else {}
    own = {"masking": masks} if masks in PATTERNS else GUIDES[masks]
    recipe = multimae.recipe if masks in PATTERNS else GUIDED
    return build(recipe, ALL[:count], target=target, decoder=decoder, hide=hide, **{**teacher, **own, **options})


def one_step(model: MaskedModel, on: Batch) -> None:
    """Losses and gradients of a step are finite, and no trained parameter is without a gradient."""
    losses = model(on)
    mean_loss(losses).backward()
    assert losses
    assert all(total.isfinite() for total, _ in losses.values())
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert not [n for n, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]


@pytest.mark.parametrize("cell", chosen(CELLS))
def test_every_legal_cell_of_several_modalities_makes_a_step(cell: tuple[str, str, str, str, int]) -> None:
    one_step(model_of(*cell), batch(2))


@pytest.mark.parametrize("cell", chosen(MIM_CELLS))
def test_every_legal_cell_of_one_modality_makes_a_step(cell: tuple[str, str, str, str]) -> None:
    masking, target, decoder, hide = cell
    needs = {"teacher": "random"} if target in ("features", "maskdistill") else {}
    if masking == "attention":
        needs = {"teacher": "student" if target == "data2vec" else "random"}
    one_step(
        tiny.build(masking=masking, target=target, decoder=decoder, hide=hide, visible=0.5, **needs), tiny.batch(2)
    )


def test_every_illegal_cell_says_which_option_to_change() -> None:
    illegal = [cell for cell in CELLS if error_of(*cell)]
    assert len(illegal) == 9 * 5 * 3 + 3 * 7 * 3
    for cell in illegal:
        with pytest.raises(ValueError, match="|".join(("needs --hide blank", "use --target maps or hog"))):
            model_of(*cell)
    for masking, target, decoder, hide in MIM_CELLS:
        if error_of(masking, target, decoder, hide):
            with pytest.raises(ValueError, match="needs --hide blank"):
                tiny.build(masking=masking, target=target, decoder=decoder, hide=hide, **TEACHER)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "teacher"}, "target=teacher needs --teacher"),
        ({"target": "collaborative"}, "target=collaborative needs --teacher"),
        ({"teacher": "random"}, "target=maps reads no teacher; use --target teacher or collaborative"),
        ({"decoder": "linear", "hide": "blank", "blend": "linear"}, "no place in decoder=linear; use --decoder cross"),
        ({"target": "collaborative", **TEACHER, "target_student_weight": 1.0}, "use --target teacher or --target stud"),
        ({"target": "student", "target_features": 0}, "target_features .* at least 1; got 0"),
        ({"target": "pixels"}, "target must be one of maps, hog, teacher, student, collaborative; got 'pixels'"),
        ({"decoder": "self"}, "decoder must be one of task, cross, cross-self, linear; got 'self'"),
    ],
)
def test_what_does_not_go_together_is_one_clear_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_linear_decoder_of_a_map_that_is_not_read_names_the_decoder_to_use() -> None:
    modalities = (RGB, replace(DEPTH, role="output"))
    with pytest.raises(ValueError, match="places of depth, which the encoder does not read here; use --decoder cross"):
        build(modalities=modalities, decoder="linear", hide="blank")(batch(2))
    one_step(build(modalities=modalities, decoder="task", hide="blank"), batch(2))


@pytest.mark.parametrize("hide", HIDE)
@pytest.mark.parametrize("target", TARGETS)
def test_samples_that_lack_a_modality_train_on_those_they_have(target: str, hide: str) -> None:
    """And what lies in the place of a missing map changes no loss."""
    model = model_of("uniform", target, "cross", hide, 3)
    on = batch(4, present=LACKING)
    one_step(model, on)
    gone = ~LACKING["depth"][:, None, None, None]
    other = replace(on, maps={**on.maps, "depth": torch.where(gone, 7.0, on.maps["depth"])})
    for loss, same in zip(model(on).values(), model(other).values(), strict=True):
        torch.testing.assert_close(loss, same)


def test_collaborative_targets_are_the_teacher_s_of_rgb_or_the_map_and_the_student_s_of_all() -> None:
    model = model_of("collaborative", "collaborative", "task", "drop", 3)
    assert {o.name: o.weight for o in model.objectives} == pytest.approx(
        {f"{m}{end}": share for m in ("rgb", "depth", "semseg") for end, share in (("", 0.7), ("_student", 0.3))}
    )
    kinds = {o.name: type(o.target) for o in model.objectives}
    assert kinds == {"rgb": Features, "depth": Pixels, "semseg": Classes} | {
        f"{m}_student": Features for m in ("rgb", "depth", "semseg")
    }
    on = batch(2)
    output, average = model.encode_decode(on), model.teachers["average"].encoder
    features = average(average.embed(on)).final[:, 1:]
    for index, name in enumerate(("rgb", "depth", "semseg")):
        objective = next(o for o in model.objectives if o.name == f"{name}_student")
        own = F.layer_norm(features[:, 16 * index : 16 * (index + 1)], (24,), eps=1e-6)
        torch.testing.assert_close(objective.target(on, output.observations)[0], own)


def test_mask_tokens_of_several_modalities_are_one_for_each() -> None:
    model, on = model_of("uniform", "maps", "linear", "blank", 2), batch(2)
    tokens, _, mask, _ = model.mask_input(on)
    shown = model.hide(tokens, mask).values
    hidden = torch.ones(2, 32, dtype=torch.bool).scatter(1, mask.visible, False)
    positions = model.hide.positions(tokens.layout.grid).repeat(2, 1)
    expected = model.hide.mask_token.repeat_interleave(16, dim=0) + positions
    torch.testing.assert_close(shown[hidden], expected.expand(2, -1, -1)[hidden])
    torch.testing.assert_close(shown[~hidden], tokens.values[~hidden])
