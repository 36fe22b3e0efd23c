"""The pages of the papers name what exists: every test, command, study, option and value on them."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from test_readme import ROOT, tables
from unveil.cli.flags import flags_of, parse
from unveil.commands.evaluate import evaluate
from unveil.evaluation.registry import find_protocol, protocols
from unveil.experiments.study.command import study
from unveil.experiments.study.registry import studies
from unveil.recipes.options import DATA, Option, UsageError
from unveil.recipes.registry import load_recipe, recipe_cards
from unveil.training.config import PretrainConfig

PAGES = tuple(f"docs/{name}.md" for name in ("papers", "paper-cmtmae", "paper-crossmae", "paper-multimae"))
TEXT = "\n".join((ROOT / page).read_text() for page in PAGES)
CODE = sorted(set(re.findall(r"`([^`\n]+)`", TEXT)))
TESTS = [code for code in CODE if "::" in code]
COMMANDS = [code for code in CODE if code.startswith("unveil ")]
OPTIONS = [code for code in CODE if code.startswith("--") and code != "--slow"]
KINDS = ("attention", "blocks", "masks", "features")


@cache
def names_in(file: Path) -> set[str]:
    """The tests of a file, those of its classes too."""
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def flags_of_command(words: list[str]) -> list[Option]:
    """The flags of a command of the page, by its words after `unveil`."""
    command, *rest = words
    if command == "pretrain":
        return [*flags_of(PretrainConfig, skip=["recipe"]), *flags_of(load_recipe(rest[0]), skip=DATA)]
    if command == "evaluate":
        own = rest[rest.index("--protocol") + 1]
        return [*flags_of(evaluate, skip=["run"]), *flags_of(find_protocol(own))]
    assert command == "study"
    return flags_of(study, skip=["name"])


@pytest.mark.parametrize("code", TESTS)
def test_a_test_that_the_page_names_is_there(code: str) -> None:
    file, _, name = code.partition("::")
    assert name in names_in(ROOT / "tests" / file)


@pytest.mark.parametrize("code", COMMANDS)
def test_a_command_of_the_page_is_understood(code: str) -> None:
    words = shlex.split(code)[1:]
    if words[0] == "analyze":
        assert words[1] in KINDS
    elif words[0] != "bench":
        given = ["--data", "IMAGES"] if words[0] == "evaluate" else []  # the page leaves it out
        parse([*words[2:], *given], flags_of_command(words))
    if words[0] == "study" and words[1] != "NAME":
        assert words[1] in studies()


@pytest.mark.parametrize("code", OPTIONS)
def test_an_option_of_the_page_takes_the_value_that_the_page_gives_it(code: str) -> None:
    """By one at least of the recipes, protocols or commands."""
    recipes = [flags_of(load_recipe(name), skip=DATA) for name in recipe_cards()]
    own = [flags_of(find_protocol(name)) for name in protocols()]
    words, refused = shlex.split(code), []
    for flags in (*recipes, *own, flags_of(PretrainConfig), flags_of(evaluate), flags_of(study)):
        flag = next((f for f in flags if words[0] in (f.flag, f.flag.replace("--", "--no-", 1))), None)
        if flag is None:
            continue
        if len(words) == 1:
            return
        try:
            flag.parse(words[1:])
        except UsageError as error:
            refused.append(str(error))
        else:
            return
    raise AssertionError(refused or f"no command has {words[0]}")


def test_the_page_has_every_study_recipe_and_preset() -> None:
    flags = [flag for name in ("finetune", "linear") for flag in flags_of(find_protocol(name))]
    published = {choice for flag in flags if flag.name == "preset" for choice in flag.choices}
    assert {c for c in published if f"`--preset {c}`" in TEXT} == published - {"auto", "small", "cached"}
    named = {word for code in COMMANDS for word in shlex.split(code)}
    assert set(recipe_cards()) <= named
    assert {name for name in studies() if name != "recipes"} <= named


def test_the_rows_of_the_page_are_as_wide_as_their_heads() -> None:
    assert all(len(row) == len(rows[0]) for page in PAGES for rows in tables(page) for row in rows)
