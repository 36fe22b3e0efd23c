"""Recipes by name or by file: found and described without importing them, loaded when one is used."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .recipe import Recipe

PACKAGE = "unveil.recipes"
HANDED = ("modality", "modalities")  # arguments of a recipe that come from the data, not from the user


@dataclass(frozen=True)
class RecipeCard:
    """What a recipe's source says of it: the first line of its docstring, and its dials with their defaults."""

    name: str
    summary: str
    dials: dict[str, Any]


def recipe_cards() -> dict[str, RecipeCard]:
    """The package's recipes by name, read as text: nothing is imported, so a list of them is instant."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = (spec and spec.submodule_search_locations) or []
    cards = (read_card(file) for folder in folders for file in sorted(Path(folder).glob("*.py")))
    return {card.name: card for card in cards if card}


def read_card(file: Path) -> RecipeCard | None:
    """The card of a file that holds a function `recipe`; None for any other file."""
    module = ast.parse(file.read_text(encoding="utf-8"), str(file))
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and node.name == "recipe":
            text = ast.get_docstring(node) or ast.get_docstring(module) or ""
            arguments = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            dials = {a.arg: _value(d) for a, d in arguments if d and a.arg not in HANDED}
            return RecipeCard(file.stem.replace("_", "-"), text.partition("\n")[0], dials)
    return None


def _value(default: ast.expr) -> Any:
    try:
        return ast.literal_eval(default)
    except ValueError:
        return ast.unparse(default)  # a name or an expression, as it is written


def load_recipe(name: str) -> Callable[..., Recipe]:
    """The function `recipe` of a recipe of the package, or of a user's own `.py` file.

    Raises FileNotFoundError and ValueError that say what there is instead, or where the user's file fails.
    """
    if name.endswith(".py"):
        return _from_file(Path(name).expanduser())
    known = recipe_cards()
    name = name.replace("_", "-")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        meant = f"; did you mean {close[0]}?" if close else ";"
        raise ValueError(f"there is no recipe {name}{meant} there are {', '.join(known)}, or give a file such as my.py")
    recipe: Callable[..., Recipe] = importlib.import_module(f"{PACKAGE}.{name.replace('-', '_')}").recipe
    return recipe


class _Named(Protocol):
    """A modality, as far as this room knows it: it starts without torch."""

    @property
    def name(self) -> str: ...


def reads_several(recipe: Callable[..., Any]) -> tuple[Any, ...] | None:
    """The modalities that a recipe of several reads by default; None for a recipe of one."""
    parameter = inspect.signature(recipe).parameters.get("modalities")
    return None if parameter is None else tuple(parameter.default)


def handed(recipe: Callable[..., Any], modalities: Sequence[_Named]) -> dict[str, Any]:
    """The modalities as the argument that a recipe takes. Raises ValueError for several where it reads one."""
    if reads_several(recipe) is not None:
        return {"modalities": tuple(modalities)}
    if len(modalities) > 1:
        names = " ".join(m.name for m in modalities)
        raise ValueError(f"this recipe reads one modality, got {names}; give it one, or take one such as multimae")
    return {"modality": modalities[0]}


def _from_file(path: Path) -> Callable[..., Recipe]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no recipe file {path}")
    spec = importlib.util.spec_from_file_location(f"unveil_recipe_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file does wrong is told in its own terms, with its own line
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else 0
        raise ValueError(f"{path}, line {line}: {type(error).__name__}: {error}") from error
    recipe: Callable[..., Recipe] | None = getattr(module, "recipe", None)
    if not callable(recipe):
        raise ValueError(f"{path} has no function `recipe`; write `def recipe(*, ...) -> Recipe:` in it")
    return recipe
