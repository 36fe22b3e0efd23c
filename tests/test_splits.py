"""Splits: what is held out, by chance, in the order of time, or by whole groups of names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unveil.data.splits import groups_of, hold_out
from unveil.evaluation.datasets import open_sets


class Named:
    """A source of which only the names matter."""

    address, channels, labels, classes = "named", 3, None, None

    def __init__(self, names: list[str]):
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def image(self, index: int) -> torch.Tensor:
        raise NotImplementedError


@settings(max_examples=60, deadline=None)
@given(groups=st.lists(st.integers(0, 6), min_size=2, max_size=60), seed=st.integers(0, 99), last=st.booleans())
def test_no_group_is_on_both_sides(groups: list[int], seed: int, last: bool):
    if len(set(groups)) < 2:
        groups = [*groups, 7]
    source = Named([f"p{group}/{i:03}" for i, group in enumerate(groups)])
    train, held = hold_out(source, 0.2, seed, last=last, group_by="1")
    assert sorted([*train.indices, *held.indices]) == list(range(len(groups)))
    assert len(train) > 0
    assert len(held) > 0
    assert not set(groups_of(train, "1")) & set(groups_of(held, "^(p[0-9]+)/"))
    again = hold_out(source, 0.2, seed, last=last, group_by="1")[1]
    assert again.indices == held.indices


def test_the_last_part_in_the_order_of_time():
    train, held = hold_out(Named([f"frame-{i:04}" for i in range(500)]), 0.2, seed=3, last=True)
    assert list(held.indices) == list(range(400, 500))
    assert list(train.indices) == list(range(400))
    assert len(hold_out(Named(list(map(str, range(100)))), 0.07, 0, last=True)[1]) == 7  # 0.07 x 100 is above 7


@pytest.mark.parametrize(
    ("group_by", "message"),
    [
        ("2", "has no folder of that level"),
        ("0", "1 is the first"),
        ("(a", "is no regex"),
        ("a", "0 groups in brackets"),
        ("^(q)", "finds no group in 'a/1'"),
        ("(/)", "is one group"),
    ],
)
def test_groups_that_are_none(group_by: str, message: str):
    with pytest.raises(ValueError, match=message):
        hold_out(Named(["a/1", "b/2"]), 0.5, 0, group_by=group_by)


def test_groups_that_are_the_classes_are_refused(tmp_path: Path):
    """Patients lie below classes: level 1 would hold whole classes out, level 2 holds patients out."""
    for number in range(24):
        folder = tmp_path / f"class{number % 3}" / f"patient{number // 3}"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "scan.png")
    with pytest.raises(ValueError, match=r"--group-by 1 holds whole classes .* such as 2 for the patients"):
        open_sets(str(tmp_path), None, 3, "1")
    train, test = open_sets(str(tmp_path), None, 3, "2")
    assert test is not None
    assert len(train) + len(test) == 24
