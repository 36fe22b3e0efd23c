"""A score of the user's own as a recipe's `masking`: `my_mask.py:centre`, or in Python the function itself.

A function `centre(tokens) -> scores` gets the tokens before they are masked, B N D, and returns B N numbers, high =
hidden first. By their names it may ask for more: `grid` (rows, columns), `rng` (random numbers that are the same
however a run is resumed or distributed), `progress`, `observations` (what the recipe's teachers saw) and `batch`. A
class or function of the three arguments `tokens, observations, batch` is a score as the library's own are.
"""

from __future__ import annotations

import builtins
import dis
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..modeling.masking import TokenScore
from ..modeling.types import Batch, Observations, Tokens
from ..runs.console import user_path
from .options import OWN_SCORE_GIVEN, is_own_score
from .registry import load_file

_EXTRA = ("grid", "rng", "progress", "observations", "batch")
_FULL = ["tokens", "observations", "batch"]
_HEADER = "import math\n\nimport torch\nimport torch.nn.functional as F\n\n\n"
_given: dict[str, str] = {}  # the source of functions that were given in Python, by name


class OwnScore:
    """A user's function as a `TokenScore`: of token values and what it `wants` besides, or (None) of all arguments.

    Raises ValueError where it does not return B N numbers.
    """

    def __init__(self, name: str, function: Callable[..., Any], wants: tuple[str, ...] | None):
        self.name, self.function, self.wants = name, function, wants

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        values = tokens.values.detach()
        if self.wants is None:
            return self._checked(self.function(tokens, observations, batch), values)
        more: dict[str, Any] = {"grid": tokens.layout.grid, "observations": observations, "batch": batch}
        more |= {"progress": batch.progress} | ({"rng": batch.rng} if "rng" in self.wants else {})
        return self._checked(self.function(values, **{name: more[name] for name in self.wants}), values)

    def _checked(self, scores: Any, values: Tensor) -> Float[Tensor, "B N"]:
        if not isinstance(scores, Tensor) or scores.shape != values.shape[:2]:
            got = f"a tensor {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
            raise ValueError(
                f"the score {self.name} returns {got} for tokens {tuple(values.shape)}; return one number for each"
                f" token, a tensor {tuple(values.shape[:2])}, high = hidden first"
            )
        return scores.detach().to(values.device, torch.float32)


def text_of(function: object) -> str:
    """The name under which a function given in Python is an option: `python:centre`.

    Its source is kept in the run folder, so that the run can be opened again; so it has to stand alone. Raises
    ValueError for one that does not, or whose source is not known.
    """
    name = getattr(function, "__name__", "")
    try:
        source = textwrap.dedent(inspect.getsource(function))  # type: ignore[arg-type]  # whatever was given
    except (OSError, TypeError):
        source = ""
    if not name.isidentifier() or not re.search(rf"^(?:def|class) {name}\b", source, re.MULTILINE):
        raise ValueError(
            f"masking is {function!r}, whose source cannot be kept with the run; give a function that is written with"
            " def, or a file, masking='my_mask.py:centre'"
        )
    source = _HEADER + source
    if undefined := _undefined(name, source):
        raise ValueError(
            f"the function {name} reads {', '.join(undefined)} from the code around it, and its source is kept alone,"
            f" after import math, torch, torch.nn.functional as F: import or write what it needs inside it, or give a"
            " file, masking='my_mask.py:centre'"
        )
    _given[name] = source
    return f"{OWN_SCORE_GIVEN}:{name}"


def _undefined(name: str, source: str) -> list[str]:
    """The global names that a source reads and does not have. Raises ValueError where it cannot be executed."""
    namespace: dict[str, Any] = {}
    try:
        exec(compile(source, f"<{name}>", "exec", dont_inherit=True), namespace)
    except Exception as error:  # decorators, defaults and annotations run what they please
        raise ValueError(
            f"the function {name} cannot be kept alone ({type(error).__name__}: {error}); leave decorators and"
            " annotations out, or give a file, masking='my_mask.py:centre'"
        ) from error
    known, missing = {*namespace, *vars(builtins)}, list[str]()
    codes = list(vars(namespace[name]).values()) if inspect.isclass(namespace[name]) else [namespace[name]]
    stack = [c.__code__ for c in codes if hasattr(c, "__code__")]
    while stack:
        code = stack.pop()
        stack += [constant for constant in code.co_consts if inspect.iscode(constant)]
        reads = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
        missing += sorted(reads - known)
    return missing


def content_of(option: str) -> bytes:
    """The source of a score. Raises FileNotFoundError, and ValueError for a function that was not given here."""
    place, _, name = option.rpartition(":")
    if place == OWN_SCORE_GIVEN:
        if name not in _given:
            raise ValueError(
                f"masking was the function {name}, given in Python, and this process does not have it: give it again,"
                " masking=..."
            )
        return _given[name].encode()
    path = user_path(place)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} for masking={option}")
    return path.read_bytes()


def load_score(option: str, content: bytes | None = None, file: Path | None = None) -> TokenScore:
    """The score that an option names, of its `content` where that was read before, from a `file` of a run.

    Raises ValueError where the file fails, lacks the name, or what it names cannot be called with tokens.
    """
    place, _, name = option.rpartition(":")
    path = file or Path(user_path(place) if place != OWN_SCORE_GIVEN else f"{name}.py")
    module = load_file(path, "score", content_of(option) if content is None else content)
    function = getattr(module, name, None)
    if inspect.isclass(function):
        function = function()
    if not callable(function):
        there = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        raise ValueError(f"{path} has no function {name!r}; there are {', '.join(there) or 'none'}")
    parameters = inspect.signature(function).parameters
    names = list(parameters)
    if names == _FULL:
        return OwnScore(option, function, None)
    needed = [n for n, p in list(parameters.items())[1:] if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if not names or any(n not in _EXTRA for n in needed):
        raise ValueError(
            f"{option} takes ({', '.join(names)}); write def {name}(tokens) -> scores, with any of"
            f" {', '.join(_EXTRA)} after it"
        )
    return OwnScore(option, function, tuple(n for n in names[1:] if n in _EXTRA))


def own_scores(options: Mapping[str, Any]) -> dict[str, str]:
    """The options whose value names a score of the user's own."""
    return {name: value for name, value in options.items() if isinstance(value, str) and is_own_score(value)}
