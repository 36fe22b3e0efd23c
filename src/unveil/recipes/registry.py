"""Recipes by name or by file: found and described without importing them, loaded when one is used."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from ..runs.console import suggest, user_path
from ..runs.trust import check_trusted
from .options import DATA, Option, check_choices, is_group, is_own_score, options_in

if TYPE_CHECKING:  # both import torch
    from ..modeling.types import Modality
    from .recipe import Recipe

PACKAGE = "unveil.recipes"


@dataclass(frozen=True)
class RecipeCard:
    """What a recipe's source says of it: the first line of its docstring, and its options with their defaults."""

    name: str
    summary: str
    options: dict[str, Any]


def recipe_cards() -> dict[str, RecipeCard]:
    """The package's recipes by name, read as text: nothing is imported, so a list of them is instant."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = (spec and spec.submodule_search_locations) or []
    cards = (read_card(file) for folder in folders for file in sorted(Path(folder).glob("*.py")))
    return {card.name: card for card in cards if card}


def paper_of(name: str) -> str:
    """The paper that heads a recipe of the package, as its first paragraph cites it; empty where that names none.

    Of a recipe of the user's own nothing is read.
    """
    if name not in recipe_cards():
        return ""
    module = ast.parse(_built_in_file(name).read_text(encoding="utf-8"))
    first = " ".join((ast.get_docstring(module) or "").partition("\n\n")[0].split())
    return first if "arXiv" in first else ""


def read_card(file: Path) -> RecipeCard | None:
    """The card of a file that holds a function `recipe`; None for any other file."""
    module = ast.parse(file.read_text(encoding="utf-8"), str(file))
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and node.name == "recipe":
            text = ast.get_docstring(node) or ast.get_docstring(module) or ""
            arguments = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            options: dict[str, Any] = {}
            for argument, default in arguments:
                if argument.arg in DATA or not default:
                    continue
                if isinstance(default, ast.Call):
                    fields_of = _group_defaults(ast.unparse(default.func))
                    options |= fields_of | {k.arg: _value(k.value) for k in default.keywords if k.arg}
                else:
                    options[argument.arg] = _value(default)
            return RecipeCard(file.stem.replace("_", "-"), text.partition("\n")[0], options)
    return None


@cache
def _group_defaults(name: str) -> dict[str, Any]:
    """The fields of a dataclass whose fields are options (`Hyperparameters`) with their defaults, read as text."""
    texts = (Path(__file__).with_name(file).read_text(encoding="utf-8") for file in ("recipe.py", "multimodal.py"))
    classes = (node for text in texts for node in ast.parse(text).body if isinstance(node, ast.ClassDef))
    lines = next((node.body for node in classes if node.name == name), [])
    return {ast.unparse(a.target): _value(a.value) for a in lines if isinstance(a, ast.AnnAssign) and a.value}


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
        return _recipe_in(load_file(user_path(name)))
    known = recipe_cards()
    name = name.replace("_", "-")
    if name not in known:
        raise ValueError(f"there is no recipe {name}; {suggest(name, known)} (or give a file such as my.py)")
    return cast("Callable[..., Recipe]", importlib.import_module(f"{PACKAGE}.{name.replace('-', '_')}").recipe)


def load_stored_recipe(name: str, own: Path, trust: bool, run: Path) -> Callable[..., Recipe]:
    """The recipe of a stored run: its `own` file where it has one, else that of this name.

    A file that is one of the package is taken from there. Another one is executed where this user has run it before,
    or with `trust`: else UntrustedCodeError is raised, and nothing of it was executed.
    """
    file = own if own.exists() else user_path(name) if name.endswith(".py") else None
    if file is None:
        return load_recipe(name)
    content = _content(file, "recipe")
    if built_in := next((known for known in recipe_cards() if content == _built_in_file(known).read_bytes()), None):
        return load_recipe(built_in)
    check_trusted(file, content, trust, f"this needs the recipe of {run}")
    return _recipe_in(load_file(file, content=content))


def check_named(recipe: str | None, by: str | Path, trust: bool) -> None:
    """Raise UntrustedCodeError for a recipe file that a configuration names and that this user has not run before."""
    if recipe is not None and recipe.endswith(".py"):
        path = user_path(recipe)
        check_trusted(path, _content(path, "recipe"), trust, f"{by} names a recipe")


def _recipe_in(module: ModuleType) -> Callable[..., Recipe]:
    function = getattr(module, "recipe", None)
    if not callable(function):
        raise ValueError(f"{module.__file__} has no function `recipe`; write `def recipe(*, ...) -> Recipe:` in it")
    return cast("Callable[..., Recipe]", function)


def _built_in_file(name: str) -> Path:
    return Path(__file__).with_name(f"{name.replace('-', '_')}.py")


def options_of(recipe: Callable[..., Recipe]) -> list[Option]:
    """The options of a recipe, flat, in the order of its signature: those that all recipes share, and its own."""
    return options_in(recipe, skip=DATA)


def defaults_of(recipe: Callable[..., Recipe]) -> dict[str, Any]:
    """The options of a recipe with their defaults, which are the paper's."""
    return {option.name: option.default for option in options_of(recipe)}


def default_modalities(recipe: Callable[..., Recipe]) -> tuple[Any, ...] | None:
    """The modalities that a recipe of several reads by default; None for a recipe of one."""
    parameter = inspect.signature(recipe).parameters.get("modalities")
    return None if parameter is None else tuple(parameter.default)


def check_modalities(recipe: Callable[..., Recipe], modalities: Sequence[Modality]) -> None:
    """Raise ValueError for several modalities where a recipe reads one."""
    if len(modalities) > 1 and default_modalities(recipe) is None:
        names = " ".join(m.name for m in modalities)
        raise ValueError(f"this recipe reads one modality, got {names}; give it one, or take one such as multimae")


def build_recipe(recipe: Callable[..., Recipe], modalities: Sequence[Modality], options: Mapping[str, Any]) -> Recipe:
    """The `Recipe` of a recipe function with flat options; without modalities, of those that it reads by default.

    Raises ValueError for several modalities where the recipe reads one, and for a value that an option cannot have.
    """
    check_modalities(recipe, modalities)
    check_choices(recipe, options)
    given = {**options, **{o.name: o.current(options[o.name]) for o in options_of(recipe) if o.name in options}}
    for name in [o.name for o in options_of(recipe) if o.takes_scores and isinstance(given.get(o.name), str)]:
        if is_own_score(given[name]):
            from .own_score import load_score  # imports this module

            given[name] = load_score(given[name])
    for group in filter(is_group, inspect.signature(recipe).parameters.values()):
        names = [f.name for f in fields(group.default) if f.name in given]
        given[group.name] = replace(group.default, **{name: given.pop(name) for name in names})
    if modalities:
        several = default_modalities(recipe) is not None
        given |= {"modalities": tuple(modalities)} if several else {"modality": modalities[0]}
    return recipe(**given)


def _content(path: Path, kind: str) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind} file {path}")
    return path.read_bytes()


def load_file(path: Path, kind: str = "recipe", content: bytes | None = None) -> ModuleType:
    """A user's file of this kind as a module, of its `content` where that was read before.

    What is executed is this text, and no compiled file beside it, which nobody has looked at. Raises FileNotFoundError,
    and ValueError with the line that fails.
    """
    content = _content(path, kind) if content is None else content
    spec = importlib.util.spec_from_file_location(f"unveil_file_{path.stem}", path)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        exec(compile(content, path.absolute(), "exec", dont_inherit=True), module.__dict__)
    except Exception as error:  # whatever the user's file does wrong, reported with its own line
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.absolute()]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else 0
        raise ValueError(f"{path}, line {line}: {type(error).__name__}: {error}") from error
    return module
