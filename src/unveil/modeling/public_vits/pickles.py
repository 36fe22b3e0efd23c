"""Pickles of weights, read without running what they name; a refusal says what that is and how to convert the file."""

from __future__ import annotations

import argparse
import io
import pickletools
import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np
import torch

from .torchscript import check_archive

_SCANNED = 64 << 20  # bytes of a file that is no archive of torch: names come before its tensors, or among them
_NAMED = 5  # of what a pickle holds beside tensors
_MAGIC = 0x1950A86A20F9469CFC6C  # what torch.save writes first, before 1.6
_PYTHON_2 = {"__builtin__ long": "builtins.int", "__builtin__ unicode": "builtins.str"}  # names of protocol 2
_OF_TENSORS = re.compile(
    r"collections\.OrderedDict|_codecs\.encode|torch\.(_utils\._rebuild_\w+|_tensor\._rebuild\w+|nn\.parameter\.Parameter|\w+Storage"
    r"|storage\.\w+|Size|Tensor|device|[a-z]+\d+)"
)


def load_pickle(path: Path) -> Any:
    """The content of a pickle of tensors and plain values.

    Raises ValueError for one that is damaged or names other classes or functions; these are not run.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_archive(archive)
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch's reader raises many types for a damaged file
        raise ValueError(
            f"{path} was refused: it is damaged or holds more than tensors ({_why(path, error)})"
        ) from error


def _why(path: Path, error: Exception) -> str:
    """Why a pickle was not read, and how to convert one that names code. PyTorch's advice is to run it: left out."""
    names, is_bare = _code_in(path) if type(error) is not ValueError else ([], False)  # of `check_archive`
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        named = ", ".join(map(_quoted, names[:_NAMED])) + more
        read = f"c = torch.load({path.name!r}, weights_only=False)"
        if is_bare:
            read = f"import pickle; c = pickle.load(open({path.name!r}, 'rb'))"
        code = f"{read}; c = c.get('state_dict') or c.get('model') or c if isinstance(c, dict) else c.state_dict()"
        if is_bare:
            code += "; c = {k: torch.as_tensor(v) for k, v in c.items()}"
        return (
            f"its pickle names {named}, which is code); if you trust it, convert it where it was made:"
            f" python -c \"import torch; {code}; torch.save(c, 'weights.pth')\" (only tensors are read"
        )
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error))
    if told := re.search(r"WeightsUnpickler error: (.+)", text):
        return f"its pickle cannot be read without running it: {told[1].strip()}"
    reason = next(iter(text.splitlines()), type(error).__name__)
    is_told = re.search("[a-z]", reason) and "weights_only" not in reason
    return reason if is_told else f"it is no whole pickle: {type(error).__name__}"


def _quoted(name: str) -> str:
    """A name as a pickle gives it, on one line and of bounded length: the file may have been made to mislead."""
    return name if re.fullmatch(r"[\w.<>]{1,100}", name, re.ASCII) else ascii(name[:100])


def _code_in(path: Path) -> tuple[list[str], bool]:
    """What a pickle names that is neither a tensor nor a plain value, and whether torch.save did not write it.

    The names are read from the opcodes; nothing is imported.
    """
    try:
        with torch.serialization.safe_globals(_harmless()):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)), False
    except Exception:  # no archive of torch, or a damaged one
        with path.open("rb") as file:
            content = io.BytesIO(file.read(_SCANNED))
    if content.getvalue().startswith(b"PK"):
        return [], False
    harmless = {_name(entry) for entry in _harmless()}
    names: dict[str, None] = {}
    is_bare = True
    try:
        while True:  # before 1.6 torch.save wrote several pickles, one after the other
            for name in _globals(content):
                is_bare &= name != str(_MAGIC)
                if "." in name and name not in harmless and not _OF_TENSORS.fullmatch(name):
                    names[name] = None
    except Exception:  # its end, or what is no pickle
        return list(names), is_bare


def _globals(content: io.BytesIO) -> Iterable[str]:
    """The classes and functions that one pickle names, and torch's magic number."""
    recent: list[str] = []  # strings, of which the last two name what STACK_GLOBAL takes
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("GLOBAL", "INST"):
            yield _PYTHON_2.get(str(argument)) or str(argument).replace(" ", ".").replace("__builtin__.", "builtins.")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(recent[-2:])
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = recent[-1] if recent else ""
        elif "PUT" in opcode.name:
            memo[int(argument or 0)] = recent[-1] if recent else ""
        elif "GET" in opcode.name:
            recent.append(memo.get(int(argument or 0), ""))
        elif isinstance(argument, str):
            recent.append(argument)
        elif argument == _MAGIC:
            yield str(argument)


def _name(entry: Any) -> str:
    return entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"


def _plain_dict(*_: object) -> dict[Any, Any]:
    return {}


def _plain_list(values: Iterable[Any] = (), maxlen: int | None = None) -> list[Any]:
    return list(values)


def _harmless() -> list[Any]:
    """What trainers store beside tensors, and what makes values alone: options, paths, counts and NumPy's numbers."""
    numbers = [np.dtype, np.ndarray, *(type(np.dtype(code)) for code in "?bhilqBHILQefdSU")]
    functions = [(np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    array = np.zeros(1).__reduce__()[0]
    functions += [(array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    functions.append((_plain_dict, "collections.defaultdict"))  # torch's reader fills a dict of no other class,
    functions.append((_plain_list, "collections.deque"))  # and appends to no other list
    paths: list[Any] = [PurePosixPath, PureWindowsPath]
    for module in ("pathlib", "pathlib._local"):  # the second of Python 3.13
        paths += [(PurePosixPath, f"{module}.PosixPath"), (PureWindowsPath, f"{module}.WindowsPath")]
    plain = [argparse.Namespace, SimpleNamespace, Counter, datetime, timedelta, date, Decimal, UUID]
    builtins = [int, float, str, bool, list, tuple, dict, set, frozenset, bytes, complex, slice, range]
    return [*plain, *builtins, *paths, *numbers, *functions]
