"""YAML files of options. A value is read as the same words on the command line would be, so no object is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..recipes.options import Option, UsageError, options_in
from ..recipes.registry import load_recipe, options_of
from ..runs.atomic import write_text
from ..runs.run_config import current_names
from ..runs.suggest import suggest


def read_yaml(path: str | Path, config: Callable[..., Any], recipe: str | None = None) -> dict[str, Any]:
    """The options of a file, of `config` and of its recipe, which `recipe` overrides.

    Raises FileNotFoundError, and ValueError that names the file and the option: for what is no YAML, an unknown option
    and a value of another type.
    """
    content = current_names(read_mapping(path), warn=True)
    recipe = recipe or content.get("recipe")
    known = {option.name: option for option in options_in(config, skip=("config", "save_config"))}
    if isinstance(recipe, str):
        known |= {option.name: option for option in options_of(load_recipe(recipe)) if option.name not in known}
    return {name: _parse(path, known, name, value) for name, value in content.items()}


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The names of a YAML file with their values as text."""
    import yaml  # only runs with a file wait for it

    try:
        content = yaml.load(Path(path).expanduser().read_text(encoding="utf-8"), yaml.BaseLoader)  # text, lists, dicts
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no configuration file {path}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no options; write one in each line, such as `data: photos`")
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def _parse(path: str | Path, known: Mapping[str, Option], name: str, value: Any) -> Any:
    option = known.get(name)
    if option is None or not option.is_parsable:
        hint = suggest(name, known, "unveil pretrain RECIPE --help lists them")
        raise ValueError(f"{path}: there is no option {name!r}; {hint}")
    if isinstance(value, dict) or (isinstance(value, list) and not option.takes_many):
        raise ValueError(f"{path}: {name} has one value, not several; for example {name}: {_example(option)}")
    words = ["none" if v in ("", "~", "null") else v for v in (value if isinstance(value, list) else [value])]
    if option.is_switch:
        if words[0].lower() not in ("true", "false"):
            raise ValueError(f"{path}: {name}: {words[0]}: true or false is needed")
        return words[0].lower() == "true"
    try:
        return option.parse(words)
    except UsageError as error:
        raise ValueError(f"{path}: {name}: {error}; for example {name}: {_example(option)}") from error


def _example(option: Option) -> str:
    _, *words = option.example.split()
    return f"[{', '.join(words)}]" if option.takes_many else " ".join(words)


def write_yaml(path: str | Path, options: Mapping[str, Any], more: Mapping[str, Mapping[str, Any]]) -> None:
    """Write options, then those of each title in `more`, which becomes a comment."""
    import yaml

    def text(values: Mapping[str, Any]) -> str:
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000))

    parts = [text(options), *(f"\n# {title}\n{text(values)}" for title, values in more.items() if values)]
    write_text(Path(path).expanduser(), "".join(parts))
