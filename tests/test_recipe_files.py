"""A user's own recipe file may hold whatever a module may."""

from __future__ import annotations

from pathlib import Path

from unveil.recipes.registry import load_recipe


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
