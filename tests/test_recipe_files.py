"""A user's own recipe file may hold whatever a module may."""

from __future__ import annotations

from pathlib import Path

import pytest

from unveil.recipes.recipe import Hyperparameters
from unveil.recipes.registry import build_recipe, defaults_of, load_recipe, options_of, recipe_cards


def test_a_recipe_file_may_define_dataclasses(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Score:\n"
        "    share: float = 0.5\n"
        "def recipe(*, epochs: float = 1):\n"
        "    return Score(epochs)\n"
    )
    assert load_recipe(str(file))(epochs=3).share == 3
    other = tmp_path / "other" / "mine.py"  # of the same name: the newer file is meant
    other.parent.mkdir()
    other.write_text(file.read_text().replace("0.5", "0.25").replace("Score(epochs)", "Score()"))
    assert load_recipe(str(other))().share == 0.25


def test_shared_hyperparameters_are_options_beside_the_recipe_s_own(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from unveil.parts import Hyperparameters\n"
        "def recipe(*, train: Hyperparameters = Hyperparameters(epochs=7, size='nano'), pull: float = 0.5):\n"
        '    """Mine.\n\n    pull: how much"""\n'
        "    return train, pull\n"
    )
    recipe = load_recipe(str(file))
    assert defaults_of(recipe) | {"pull": 0.5, "epochs": 7, "size": "nano", "lr": 1.5e-4} == defaults_of(recipe)
    assert [option.name for option in options_of(recipe)] == [*vars(Hyperparameters()), "pull"]
    assert all(option.meaning for option in options_of(recipe))
    assert build_recipe(recipe, (), {"pull": 0.1, "lr": 2.0}) == (Hyperparameters(epochs=7, size="nano", lr=2.0), 0.1)
    with pytest.raises(ValueError, match="flip must be one of none, h, hv, d4; got 'x'"):
        build_recipe(recipe, (), {"flip": "x"})


def test_recipe_cards_read_without_import_are_what_the_recipes_have():
    for name, card in recipe_cards().items():
        recipe = load_recipe(name)
        assert list(card.options) == list(defaults_of(recipe))
        assert {k: v for k, v in card.options.items() if k != "visible"} == {
            k: v for k, v in defaults_of(recipe).items() if k != "visible"
        }
