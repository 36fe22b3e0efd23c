"""Masks: exact counts for any grid and share, fair draws, and shapes that are what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from unveil.modeling.masking import Blockwise, Grid, InverseBlockwise, Masker, Uniform, modality_queries, unit_in_tokens
from unveil.modeling.rng import SampleRng, sample_keys
from unveil.modeling.types import Batch, Layout, Mask, Tokens, take

SCORES = (Uniform(), Grid(), Grid(3), Blockwise(), InverseBlockwise(), Blockwise(area=(0.02, 0.05), count=3))


def layout(rows: int, columns: int, names: tuple[str, ...] = ("rgb",)) -> Layout:
    cells = rows * columns
    return Layout({name: slice(i * cells, (i + 1) * cells) for i, name in enumerate(names)}, (rows, columns))


def tokens(on: Layout, count: int, dtype: torch.dtype = torch.float32) -> Tokens:
    ids = torch.arange(on.num_tokens).expand(count, -1)
    return Tokens(torch.zeros(count, on.num_tokens, 1, dtype=dtype), ids, on)


def keyed(key: Tensor) -> Batch:
    return Batch({}, key, torch.zeros(()))


def draw(masker: Masker, on: Layout, count: int, seed: int = 0) -> Mask:
    return masker(tokens(on, count), {}, keyed(sample_keys(seed, 0, range(count))))


def as_sets(ids: Tensor) -> list[set[int]]:
    return [set(row) for row in ids.tolist()]


def as_picture(ids: Tensor, on: Layout) -> Tensor:
    """Which cells of the grid are meant, B rows columns."""
    is_visible = torch.zeros(len(ids), on.num_tokens, dtype=torch.bool).scatter(1, ids, True)
    return is_visible.unflatten(1, on.grid)


@st.composite
def cases(draw_from: st.DrawFn) -> tuple[Masker, Layout]:
    unit = draw_from(st.sampled_from([1, 1, 2, 3]))
    rows, columns = (unit * draw_from(st.integers(1, 7)) for _ in range(2))
    names = draw_from(st.sampled_from([("rgb",), ("rgb", "depth")]))
    visible = draw_from(st.floats(0.02, 0.98))
    predicted = (1 - visible) * draw_from(st.floats(0.02, 1))
    score = draw_from(st.sampled_from(SCORES))
    masker = Masker(score, visible, predicted, predict_score=draw_from(st.sampled_from([Uniform(), score])), unit=unit)
    return masker, layout(rows, columns, names)


@given(cases(), st.integers(0, 5))
def test_any_mask_is_exact(case: tuple[Masker, Layout], seed: int):
    masker, on = case
    units = on.num_tokens // masker.unit**2
    assume(1 <= int(masker.visible * units + 1e-6) < units)
    assume(len(on.spans) == 1 or masker.predicted * units >= len(on.spans))  # one of each to predict
    num_visible, num_predicted = masker.counts(on)
    assert num_visible == int(masker.visible * units + 1e-6) * masker.unit**2
    mask = draw(masker, on, 4, seed)
    assert mask.visible.shape == (4, num_visible)
    assert mask.predicted.shape == (4, num_predicted)
    for visible, predicted in zip(as_sets(mask.visible), as_sets(mask.predicted), strict=True):
        assert len(visible) == num_visible, "no id comes twice"
        assert len(predicted) == num_predicted
        assert visible | predicted <= set(range(on.num_tokens))
        for span in on.spans.values():  # as many of each modality, and visible ones only where too few are hidden
            hidden = set(range(on.num_tokens)[span]) - visible
            ids = predicted & set(range(on.num_tokens)[span])
            assert ids >= hidden or not ids & visible
            assert mask.most is None or len(ids) == mask.most
    if masker.predicted > 1 - masker.visible - 1e-9:
        assert num_visible + num_predicted == on.num_tokens, "nothing is skipped that was not to be"


@given(cases(), st.permutations(range(5)), st.integers(1, 5))
def test_a_sample_s_mask_knows_nothing_of_its_batch(case: tuple[Masker, Layout], order: list[int], count: int):
    masker, on = case
    try:
        masker.counts(on)
    except ValueError:
        return
    keys, some = sample_keys(0, 3, range(5)), order[:count]
    whole = masker(tokens(on, 5), {}, keyed(keys))
    with torch.autocast("cpu", torch.bfloat16):
        mask_of_some = masker(tokens(on, count, torch.bfloat16), {}, keyed(keys[some]))
    assert torch.equal(whole.visible[some], mask_of_some.visible)
    assert torch.equal(whole.predicted[some], mask_of_some.predicted)


@pytest.mark.parametrize(
    ("grid", "visible", "predicted", "expected"),
    [
        ((14, 14), 0.25, 0.75, (49, 147)),
        ((14, 14), 0.25, 0.25, (49, 49)),
        ((14, 14), 0.25, 0.15, (49, 30)),
        ((14, 14), 0.35, 0.65, (68, 128)),
        ((14, 14), 0.15, 0.85, (29, 167)),
        ((28, 28), 0.25, 0.25, (196, 196)),
        ((10, 10), 1 - 0.9, 0.9, (10, 90)),  # 0.09999999999999998 of a hundred is ten
    ],
)
def test_the_papers_counts(grid: tuple[int, int], visible: float, predicted: float, expected: tuple[int, int]):
    assert Masker(Uniform(), visible, predicted).counts(layout(*grid)) == expected


def test_simmim_s_counts():
    """Units of 32 px on 224 px: 60 % of 49 units are hidden, rounded up, 2 x 2 tokens each."""
    assert Masker(Uniform(), 0.4, 0.6, unit=2).counts(layout(14, 14)) == (19 * 4, 30 * 4)


@pytest.mark.parametrize("score", SCORES, ids=repr)
def test_every_sample_and_epoch_has_its_own_mask(score):
    masker, on = Masker(score, 0.3, 0.7), layout(12, 12)
    keys = torch.cat([sample_keys(0, epoch, range(12)) for epoch in range(2)])
    masks = {tuple(sorted(ids)) for ids in masker(tokens(on, 24), {}, keyed(keys)).visible.tolist()}
    assert len(masks) == 24


def test_every_token_is_visible_equally_often():
    n, on = 20_000, layout(4, 4)
    share = as_picture(draw(Masker(Uniform(), 0.25, 0.75), on, n).visible, on).double().mean(dim=0)
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / n) ** 0.5


@pytest.mark.parametrize("unit", [1, 2])
@pytest.mark.parametrize("score", [Uniform(), Blockwise(), InverseBlockwise(), Grid()], ids=repr)
def test_what_is_predicted_is_uniform_among_the_hidden(score, unit: int):
    """CrossMAE's partial loss is unbiased only then (section 3.3): so is the mean of any error over the predicted."""
    n, on = 20_000, layout(4, 4)
    mask = draw(Masker(score, 0.25, 0.25, unit=unit), on, n)
    hidden = ~as_picture(mask.visible, on).flatten(1)
    is_predicted = as_picture(mask.predicted, on).flatten(1)
    for token in range(16):
        times = hidden[:, token].sum()
        share = is_predicted[hidden[:, token], token].double().mean()
        assert abs(share - 1 / 3) < 5 * (2 / 9 / times) ** 0.5

    error = torch.linspace(0, 1, 16, dtype=torch.double) ** 2
    partial = take(error.expand(n, -1), mask.predicted).mean(dim=1)
    full = (error * hidden).sum(dim=1) / 12
    difference = partial - full
    assert abs(difference.mean()) < 5 * difference.std() / n**0.5


def test_the_hardest_are_those_that_the_score_hides_first():
    on, batch = layout(6, 6), keyed(sample_keys(0, 0, range(8)))
    score = Blockwise()
    values = score(tokens(on, 8), {}, batch)
    mask = Masker(score, 0.25, 0.25, predict_score=score)(tokens(on, 8), {}, batch)
    highest = values.topk(9, dim=1).indices
    assert as_sets(mask.predicted) == as_sets(highest)


@given(st.integers(1, 8), st.integers(1, 8))
def test_the_grid_shows_the_same_place_of_every_cell(rows: int, columns: int):
    on = layout(2 * rows, 2 * columns)
    picture = as_picture(draw(Masker(Grid(), 0.25, 0.75), on, 6).visible, on)
    cells = picture.unflatten(2, (columns, 2)).unflatten(1, (rows, 2)).permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
    assert (cells.sum(dim=2) == 1).all(), "one of four"
    assert (cells == cells[:, :1]).all(), "the same one"


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 20))
def test_blocks_are_rectangles_hidden_one_after_another(rows: int, columns: int, seed: int):
    on, block = layout(rows, columns), Blockwise()
    score = block(tokens(on, 3), {}, keyed(sample_keys(seed, 0, range(3)))).unflatten(1, on.grid)
    for order in (-score).floor():  # which rectangle hid the token first; `count` where none did
        assert order[order < block.count].numel()
        for turn in order.unique():
            if turn == block.count:
                continue
            y, x = (order == turn).nonzero(as_tuple=True)
            box = order[y.min() : y.max() + 1, x.min() : x.max() + 1]
            assert (box <= turn).all(), "the box around what it hid is hidden too: it was a rectangle"


def test_the_last_block_is_cut_from_one_side_to_the_exact_count():
    n, hidden = 40, 196 - 117
    on, block = layout(14, 14), Blockwise(count=1, area=(0.5, 0.6), aspect=(0.8, 1.2))
    batch = keyed(sample_keys(0, 0, range(n)))
    rectangle = ((-block(tokens(on, n), {}, batch)).floor() == 0).unflatten(1, on.grid)
    picture = as_picture(Masker(block, 0.6, 0.4)(tokens(on, n), {}, batch).predicted, on)
    sides = set()
    for whole, row in zip(rectangle, picture, strict=True):
        assert row.sum() == hidden
        result = [
            k for k in range(4)  # seen from each side, the first of the rectangle are hidden
            if torch.equal(view(row, k), view(whole, k) & (view(whole, k).cumsum(0) <= hidden))
        ]  # fmt: skip
        assert len(result) == 1
        sides |= set(result)
    assert sides == {0, 1, 2, 3}


def view(picture: Tensor, side: int) -> Tensor:
    """The cells from above, from the left, from below, from the right."""
    cells = (picture.T if side % 2 else picture).flatten()
    return cells.flip(0) if side > 1 else cells


@pytest.mark.parametrize("score", [Uniform(), Blockwise(), InverseBlockwise(), Grid()], ids=repr)
def test_no_side_of_the_image_is_hidden_more_often(score):
    n, on = 10_000, layout(6, 6)
    picture = as_picture(draw(Masker(score, 0.4, 0.6), on, n).visible, on).double()
    rows, columns = picture.mean(dim=2), picture.mean(dim=1)
    for lines in (rows, columns):
        difference = lines[:, :3].mean(dim=1) - lines[:, 3:].mean(dim=1)
        assert abs(difference.mean()) < 5 * difference.std() / n**0.5


def test_what_no_block_covers_is_hidden_by_chance():
    on, block = layout(8, 8), Blockwise(count=1, area=(0.1, 0.1))
    picture = as_picture(draw(Masker(block, 0.5, 0.5), on, 500).visible, on).double().mean(dim=0)
    assert picture.min() > 0.2, "no corner is always the first or the last"
    assert picture.max() < 0.8


@given(st.integers(2, 10), st.integers(2, 10), st.floats(0.1, 0.9))
def test_the_inverse_block_is_the_block_s_mirror(rows: int, columns: int, visible: float):
    assume(int(visible * rows * columns) >= 1)
    on = layout(rows, columns)
    masker = Masker(InverseBlockwise(), visible, 1 - visible)
    num_visible, num_hidden = masker.counts(on)
    shown = draw(masker, on, 4).visible
    block = Masker(Blockwise(), num_hidden / on.num_tokens, num_visible / on.num_tokens)
    assert as_sets(shown) == as_sets(draw(block, on, 4).predicted)


@given(st.integers(2, 6), st.integers(2, 6), st.sampled_from([2, 3, 4]), st.sampled_from(SCORES))
@example(rows=5, columns=2, unit=2, score=Blockwise())  # two squares of one mean score
def test_units_hide_whole_squares(rows: int, columns: int, unit: int, score):
    on = layout(unit * rows, unit * columns)
    picture = as_picture(draw(Masker(score, 0.5, 0.5, unit=unit), on, 4).visible, on)
    squares = picture.unflatten(2, (columns, unit)).unflatten(1, (rows, unit)).permute(0, 1, 3, 2, 4).flatten(3)
    assert (squares.all(dim=3) == squares.any(dim=3)).all()


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 0.9), st.integers(0, 9))
def test_questions_cover_what_is_predicted_once_and_in_raster_order(rows: int, columns: int, share: float, seed: int):
    """With two modalities the number asked differs per sample; what is beyond it weighs nothing."""
    on = layout(rows, columns, ("rgb", "depth"))
    key = sample_keys(seed, 0, range(4))
    num_predicted = max(1, int(share * on.num_tokens))
    predicted = SampleRng(key).uniform("any", on.num_tokens).argsort(dim=1)[:, :num_predicted]
    mask = Mask(predicted[:, :0], predicted)
    result: list[set[int]] = [set(), set(), set(), set()]
    for name, span in on.spans.items():
        queries = modality_queries(mask, on, name)
        assert torch.equal(queries.ids % on.num_cells, queries.cells)
        assert ((queries.ids >= span.start) & (queries.ids < span.stop)).all()
        for sample in range(4):
            queried = queries.ids[sample][queries.weight[sample] > 0].tolist()
            assert queried == sorted(queried)
            assert len(set(queries.ids[sample].tolist())) == queries.ids.shape[1]
            assert set(queries.weight[sample].tolist()) <= {0.0, 1.0}
            result[sample] |= set(queried)
    assert result == as_sets(predicted)


@pytest.mark.parametrize("visible", [0.0, 1.0, 1.7, -0.1, float("nan")])
def test_a_share_of_nothing_or_more_than_all_is_refused(visible: float):
    with pytest.raises(ValueError, match=r"visible is the share of tokens .* between 0 and 1; got"):
        Masker(Uniform(), visible, 0.5)


@pytest.mark.parametrize("predicted", [0.0, -0.5, 0.8, float("nan")])
def test_only_what_is_hidden_can_be_predicted(predicted: float):
    with pytest.raises(ValueError, match=r"at most the hidden share 1 - visible = 0.75; got"):
        Masker(Uniform(), 0.25, predicted)


def test_shares_that_leave_no_token_are_refused():
    with pytest.raises(ValueError, match=r"of 4 masking units, visible=0.1 leaves 0 to read"):
        Masker(Uniform(), 0.1, 0.9).counts(layout(2, 2))
    with pytest.raises(ValueError, match=r"do not tile a grid of \(7, 8\)"):
        replace(Masker(Uniform(), 0.5, 0.5), unit=2).counts(layout(7, 8))


@pytest.mark.parametrize(("side", "patch"), [(30, 16), (8, 16), (0, 4), (-32, 16)])
def test_a_masking_unit_is_made_of_patches(side: int, patch: int):
    with pytest.raises(ValueError, match=f"got {side} with a patch of {patch}"):
        unit_in_tokens(side, patch)
    assert unit_in_tokens(32, 16) == 2
