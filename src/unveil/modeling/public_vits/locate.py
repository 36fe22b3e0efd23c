"""Where weights lie: a file, a folder as transformers, timm or OpenCLIP save it, a run of ours, a name on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ...runs.checkpoint import read_latest
from ...runs.folder import read_metadata
from .files import StateDict, read_weights

_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SAFE = ("model.safetensors", "open_clip_model.safetensors")
_PICKLES = ("pytorch_model.bin", "open_clip_pytorch_model.bin")
_CONFIGS = ("config.json", "open_clip_config.json")
_PREPROCESSING = "preprocessor_config.json"
_WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class WeightFiles:
    """The weights at an address, with what the files beside them say: `config` is empty where there is none.

    Of our own runs, `config` holds the facts of `run.json` under "unveil".
    """

    address: str
    state: StateDict
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


def is_public_vit(address: str | Path) -> bool:
    """Whether an address is other weights than a run folder: a file, a folder with weights, or a hub's name."""
    path = Path(address).expanduser()
    if path.is_dir():
        return not (path / "run.json").exists() and any((path / n).exists() for n in (*_INDICES, *_SAFE, *_PICKLES))
    return path.is_file() or is_hub_name(address)


def is_hub_name(address: str | Path) -> bool:
    """Whether an address reads as owner/name, and not as a file, or as something in a folder that there is here."""
    path = Path(address).expanduser()
    named = isinstance(address, str) and _HUB_NAME.fullmatch(address) is not None
    return named and not path.exists() and not path.parent.exists() and path.suffix not in _WEIGHT_FILES


def find_weights(address: str | Path) -> WeightFiles:
    """The weights at an address.

    Raises FileNotFoundError when there is nothing, OSError when the hub does not answer, ValueError for what holds no
    weights.
    """
    path = Path(address).expanduser()
    if path.is_dir():
        return _of_run(path) if (path / "run.json").exists() else _of_folder(path, str(address))
    if is_hub_name(address):
        return _of_folder(_download(str(address)), str(address))
    state = read_weights(path)
    if path.name not in (*_SAFE, *_PICKLES):  # a file with a name of its own: what lies beside it may be another's
        return WeightFiles(str(address), state, _own_facts(path))
    config, preprocessing = _config(path.parent), _read_json(path.parent / _PREPROCESSING)
    return WeightFiles(str(address), state, config | _own_facts(path), preprocessing)


def _of_run(path: Path) -> WeightFiles:
    found, complaints = read_latest(path)
    if found is None:
        raise ValueError(f"{path} has no whole checkpoint yet" + "".join(f"; {c}" for c in complaints))
    return WeightFiles(str(path), found.model, {"unveil": read_metadata(path)})


def _of_folder(path: Path, address: str) -> WeightFiles:
    config, preprocessing = _config(path), _read_json(path / _PREPROCESSING)
    for index in _INDICES:
        shards = sorted(set(_read_json(path / index).get("weight_map", {}).values()))
        if shards:
            state = {name: tensor for shard in shards for name, tensor in read_weights(path / shard).items()}
            return WeightFiles(address, state, config, preprocessing)
    for name in (*_SAFE, *_PICKLES):
        if (path / name).exists():
            return WeightFiles(address, read_weights(path / name), config, preprocessing)
    raise FileNotFoundError(f"{address} has no weights: none of {', '.join((*_SAFE, *_PICKLES))} is there")


def _config(path: Path) -> dict[str, Any]:
    return {name: value for config in _CONFIGS for name, value in _read_json(path / config).items()}


def _read_json(path: Path) -> dict[str, Any]:
    """What a JSON file says; empty where there is none."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it is no JSON object")
    return content


def _own_facts(path: Path) -> dict[str, Any]:
    """What a checkpoint of ours says of its run; empty for another file."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        told = (file.metadata() or {}).get("unveil")
    return {"unveil": json.loads(told)} if told else {}


def _download(name: str) -> Path:
    """The folder of a model on the hub, fetched where it is not yet here: safetensors, or a pickle for want of any."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(
            f"there is no file or folder {name}, and names on the hub need a package: pip install 'unveil[hub]'"
        ) from error
    try:
        wanted = [*_CONFIGS, _PREPROCESSING, _INDICES[0], *_SAFE, "model-*-of-*.safetensors"]
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*wanted, *_PICKLES]))
    except Exception as error:  # the hub and the network fail in many ways
        reason = " ".join(str(error).split())[:300]
        raise OSError(
            f"there is no file or folder {name}, and the hub gave no model of this name ({reason}); check the name and"
            " the network, ask for access where the model needs it, or give a downloaded file"
        ) from error
    return folder
