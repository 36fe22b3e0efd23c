"""The types of options are those of the code, so that completion, hover and type checkers know every name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

import unveil
from unveil.commands.option_types import PretrainOptions, ProtocolOptions, RecipeOptions
from unveil.evaluation.registry import protocols
from unveil.recipes.options import Option, options_in
from unveil.recipes.registry import load_recipe, options_of, recipe_cards
from unveil.training.config import PretrainConfig


def literals(kind: Any) -> set[str]:
    """The values that a type lists."""
    if get_origin(kind) is Literal:
        return set(map(str, get_args(kind)))
    return {value for inner in get_args(kind) for value in literals(inner)}


def in_code(options: Iterable[Option]) -> dict[str, set[str]]:
    """The names of options, with the values that any of that name lists."""
    named: dict[str, set[str]] = {}
    for option in options:
        named.setdefault(option.name, set()).update(option.choices)
    return named


CASES = {
    "recipes": (RecipeOptions, lambda: (o for name in recipe_cards() for o in options_of(load_recipe(name)))),
    "pretrain": (PretrainOptions, lambda: options_in(PretrainConfig, skip=("recipe_options", "recipe", "save_config"))),
    "protocols": (
        ProtocolOptions,
        lambda: (o for p in protocols().values() for o in options_in(p, skip=("options", "inputs", "keep"))),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_option_is_listed_with_its_values(case: str):
    types, options = CASES[case]
    hints = get_type_hints(types)
    if case == "pretrain":
        hints = {name: kind for name, kind in hints.items() if name not in RecipeOptions.__annotations__}
    known = in_code(options())
    assert set(hints) == set(known)
    for name, choices in known.items():
        assert literals(hints[name]) == choices, name


def test_no_public_function_takes_options_without_names():
    for name in unveil.__all__:
        function = getattr(unveil, name)
        if not inspect.isfunction(function):
            continue
        signature = inspect.signature(function)
        rest = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
        assert not any("Any" in str(p.annotation) or "object" in str(p.annotation) for p in rest), name


def test_completion_sees_the_options_of_recipes():
    names = inspect.signature(unveil.pretrain).parameters
    assert {"recipe", "data", "callbacks", "image_size", "masking", "batch_size", "student_weight", "log"} <= set(names)


def test_a_list_of_the_public_names_has_what_each_is_for():
    text = str(unveil.__doc__)
    for name in unveil.__all__:
        assert name.partition("_")[0] in text or name == "__version__", name
