"""TorchScript archives, as OpenAI publishes CLIP: their tensors under the names of a state dict, their code left alone.

Such a file is a zip of the modules' attributes as a pickle, of the tensors' numbers, and of code. Only the attributes
and the numbers are read: the pickle may name tensors and modules, and each module becomes a bag of its attributes.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

STORAGES = {
    f"torch.{name}Storage": dtype
    for name, dtype in (
        ("Double", torch.float64), ("Float", torch.float32), ("Half", torch.float16), ("BFloat16", torch.bfloat16),
        ("Long", torch.int64), ("Int", torch.int32), ("Short", torch.int16), ("Char", torch.int8),
        ("Byte", torch.uint8), ("Bool", torch.bool),
    )
}  # fmt: skip
_RATIO, _SMALL = 4, 1 << 20  # of the bytes unpacked and packed; bytes that any archive may unpack to
LISTS = ("intlist", "tensorlist", "doublelist", "boollist")


def read_script(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a TorchScript archive, None for another file.

    Raises ValueError for a damaged archive, or one whose pickle holds code.
    """
    home = _home(path)
    if home is None:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            check_archive(archive)
            tensors: dict[str, Tensor] = {}
            _collect(_Attributes(archive, home).load(), "", tensors, set())
    except Exception as error:  # a damaged or hostile pickle raises many types
        raise ValueError(f"{path} was refused: it is damaged or holds more than tensors ({error})") from error
    return tensors


def check_archive(archive: zipfile.ZipFile) -> None:
    """Raise ValueError for an archive of torch that is larger unpacked than as a file: torch packs nothing."""
    size = sum(info.file_size for info in archive.infolist())
    packed = sum(info.compress_size for info in archive.infolist())
    if size > _RATIO * packed + _SMALL:
        raise ValueError(f"its {packed:,} bytes unpack to {size:,}: a bomb?")


def _home(path: Path) -> PurePosixPath | None:
    """The folder inside an archive that holds a script's attributes; of torch's zips, scripts alone hold constants."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(name) for name in archive.namelist()]
    except Exception:  # no whole zip, of which zipfile raises many types; `torch.load` reports it
        return None
    homes = [name.parent for name in names if name.name == "constants.pkl"]
    return next((home for home in homes if home / "data.pkl" in names), None)


def _tensor(
    numbers: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], requires_grad: bool, hooks: object
) -> Tensor:
    if math.prod(size) > len(numbers):  # by a stride of 0 a few numbers would be as many as one likes
        raise pickle.UnpicklingError(f"a tensor of {tuple(size)} has {len(numbers)} numbers")
    return torch.as_strided(numbers, tuple(size), tuple(stride), offset).clone()


def _first(value: Any, *ignored: object) -> Any:
    return value


CALLS: dict[str, Callable[..., Any]] = {  # all that a pickle may call: what makes tensors, dicts and lists
    "torch._utils._rebuild_tensor_v2": _tensor,
    "collections.OrderedDict": OrderedDict,
    "torch.device": str,
    **{f"torch.jit._pickle.{name}": _first for name in ("restore_type_tag", *(f"build_{kind}" for kind in LISTS))},
}


class _Module:
    """A module of a script, as a bag of attributes."""

    def __init__(self, *given: Any):
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module's attributes are no dict")
        self.attributes = state


class _Attributes(pickle.Unpickler):
    """Reads the attributes of a script, and calls only what `CALLS` lists."""

    def __init__(self, archive: zipfile.ZipFile, home: PurePosixPath):
        super().__init__(io.BytesIO(archive.read(str(home / "data.pkl"))))
        self.archive, self.home = archive, home

    def find_class(self, module: str, name: str) -> Any:
        """The object for a name in the pickle: a new one each time, since a pickle may write to it."""
        path = f"{module}.{name}"
        if path.startswith("__torch__."):
            return type("Module", (_Module,), {})
        if path in STORAGES:
            return path
        if path not in CALLS:
            raise pickle.UnpicklingError(f"its pickle calls {path}")
        return partial(CALLS[path])

    def persistent_load(self, reference: Any) -> Tensor:
        """The numbers of one storage, flat."""
        _, kind, key, _, count = reference
        dtype = STORAGES[kind]
        content = bytearray(self.archive.read(str(self.home / "data" / key)))
        return torch.frombuffer(content, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)


def _collect(module: Any, prefix: str, tensors: dict[str, Tensor], visited: set[int]) -> None:
    """Add the tensors of a module and of those below it."""
    if id(module) in visited or not isinstance(module, _Module):
        return
    visited.add(id(module))
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            tensors[f"{prefix}{name}"] = value
        _collect(value, f"{prefix}{name}.", tensors, visited)
