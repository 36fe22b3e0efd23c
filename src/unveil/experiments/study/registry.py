"""Studies by name or by file: listed without importing them, loaded when one is used."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import sys
import traceback
from pathlib import Path

from .design import Study

PACKAGE = "unveil.experiments.studies"


def studies() -> dict[str, Path]:
    """The built-in studies: name -> file."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = (spec and spec.submodule_search_locations) or []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.py")) if file.stem != "__init__"]
    return {file.stem.replace("_", "-"): file for file in files}


def summary(file: Path) -> str:
    """What a study's file says of itself: its first line, read as text."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def load_study(name: str) -> Study:
    """A built-in study by name, or the `study` of a file. Raises FileNotFoundError and ValueError for what is none."""
    if name.endswith(".py"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"there is no study file {path}")
        return _from_file(path)
    known = studies()
    if name.replace("_", "-") not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        meant = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(known)}."
        raise ValueError(f"there is no study {name}; {meant} Or give a file such as my.py")
    study: Study = importlib.import_module(f"{PACKAGE}.{name.replace('-', '_')}").study
    return study


def _from_file(path: Path) -> Study:
    spec = importlib.util.spec_from_file_location(f"unveil_study_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file does wrong is told in its own terms, with its own line
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.absolute()]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else 0
        raise ValueError(f"{path}, line {line}: {type(error).__name__}: {error}") from error
    found = getattr(module, "study", None)
    if not isinstance(found, Study):
        raise ValueError(f"{path} has no study; write `study = Study(...)` in it, as unveil.study.Study says")
    return found
