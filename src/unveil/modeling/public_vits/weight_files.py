"""Weights of a file, a folder, a run or the hub, read without running code, and loaded with a report of every key.

Files are safetensors, `.pth` through torch's weights-only loader with an allow-list, or TorchScript archives; folders
are those that transformers, timm and OpenCLIP save.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ...runs.checkpoint import read, read_newest_weights
from ...runs.checkpoint_state import check_beside
from ...runs.console import log, quoted, user_path
from ...runs.regular_files import read_text, stays_below
from ...runs.run_config import current_entries, read_metadata
from .pickles import load_pickle
from .torchscript import read_script

StateDict = dict[str, Tensor]
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SAFE = ("model.safetensors", "open_clip_model.safetensors")
_PICKLES = ("pytorch_model.bin", "open_clip_pytorch_model.bin")
_CONFIGS = ("config.json", "open_clip_config.json")
_PREPROCESSING = "preprocessor_config.json"
_WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")
_NESTED = ("model", "state_dict", "module", "teacher", "student", "encoder", "backbone", "model_state_dict", "net")
_PROJECTION = re.compile(  # the patch projection of each naming, after what wraps the encoder
    r"(.*?)(patch_embed\.proj\.weight|(?:vision_model\.)?embeddings\.patch_embeddings?(?:\.projection)?\.weight"
    r"|visual\.conv1\.weight|input_adapters\.\w+\.(?:proj|class_emb)\.weight|encoder\.adapters\.\w+\.proj\.weight)$"
)
BESIDE = re.compile(  # what reads an encoder's tokens, and is no part of it
    r"(head|heads|head_dist|head_drop|fc|fc_norm|attn_pool|classifier|cls_classifier|distillation_classifier|pooler|lm_head"
    r"|mask_token|embeddings\.mask_token|decoder|decoder_\w+|decoders|objectives|visual_projection|projector"
    r"|predictor|dino_head|ibot_head|output_adapters|dec_norms|wfm|dinohead|logit_scale|logit_bias)(\.|$)"
)
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class WeightFiles:
    """The weights at an address, and the JSON files beside them; an empty mapping stands for a file that is not there.

    Of an unveil run, `config` holds the metadata of `run.json` under "unveil".
    """

    address: str
    state: StateDict
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


def is_public_vit(address: str | Path) -> bool:
    """Whether an address is other weights than a run folder: a file, a folder with weights, or a hub's name."""
    path = user_path(address)
    if path.is_dir():
        names = (*_INDICES, *_SAFE, *_PICKLES, "model")  # the last of a checkpoint that several processes wrote
        return not (path / "run.json").exists() and any((path / name).exists() for name in names)
    return path.is_file() or is_hub_name(address)


def is_hub_name(address: str | Path) -> bool:
    """Whether an address is of the form owner/name, and neither a file nor in a folder that exists."""
    path = user_path(address)
    named = isinstance(address, str) and _HUB_NAME.fullmatch(address) is not None
    return named and not path.exists() and not path.parent.exists() and path.suffix not in _WEIGHT_FILES


def find_weights(address: str | Path) -> WeightFiles:
    """The weights at an address.

    Raises FileNotFoundError when there is nothing, OSError when the hub does not answer, ValueError for what holds no
    weights.
    """
    path = user_path(address)
    if (path / "run.json").exists():
        metadata = read_metadata(path)
        weights = read_newest_weights(path, metadata.get("last_checkpoint"))
        return files_of_run(str(path), weights.model, metadata)
    if (path / "model").is_dir():
        stored = read(path)
        return files_of_run(str(address), stored.model, current_entries(stored.state.get("run", {})))
    if path.is_dir():
        return _of_folder(path, str(address))
    if is_hub_name(address):
        return _of_folder(_download(str(address)), str(address))
    state = read_weights(path)
    if path.name not in (*_SAFE, *_PICKLES):  # what lies beside a file of another name may belong to other weights
        return WeightFiles(str(address), state, _run_metadata(path))
    config, preprocessing = _config(path.parent), _read_json(path.parent / _PREPROCESSING)
    return WeightFiles(str(address), state, config | _run_metadata(path), preprocessing)


def files_of_run(address: str, state: StateDict, metadata: Mapping[str, Any]) -> WeightFiles:
    """The weights of a run and what `run.json` says of them; of an imported public ViT, what lay beside its file."""
    beside = metadata.get("imported", {}).get("beside")
    if beside is None:
        return WeightFiles(address, state, {"unveil": metadata})
    return WeightFiles(address, state, beside["config"], beside["preprocessing"])


def _of_folder(path: Path, address: str) -> WeightFiles:
    config, preprocessing = _config(path), _read_json(path / _PREPROCESSING)
    for index in _INDICES:
        shards = sorted({str(shard) for shard in _read_json(path / index).get("weight_map", {}).values()})
        if shards:
            if unsafe := [shard for shard in shards if not stays_below(shard)]:
                raise ValueError(f"{path / index} names {quoted(unsafe[0])}, which is no file of its folder")
            state = {name: tensor for shard in shards for name, tensor in read_weights(path / shard).items()}
            return WeightFiles(address, state, config, preprocessing)
    for name in (*_SAFE, *_PICKLES):
        if (path / name).exists():
            return WeightFiles(address, read_weights(path / name), config | _run_metadata(path / name), preprocessing)
    raise FileNotFoundError(f"{address} has no weights: none of {', '.join((*_SAFE, *_PICKLES))} is there")


def _config(path: Path) -> dict[str, Any]:
    return {name: value for config in _CONFIGS for name, value in _read_json(path / config).items()}


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(read_text(path))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it is no JSON object")
    return content


def _run_metadata(path: Path) -> dict[str, Any]:
    """The metadata of its run in an unveil checkpoint; empty for another file."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        metadata = (file.metadata() or {}).get("unveil")
    return {"unveil": current_entries(json.loads(metadata))} if metadata else {}


def _download(name: str) -> Path:
    """The folder of a model on the hub, downloaded unless cached: safetensors, or a pickle where it has none."""
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
    except Exception as error:  # the hub's client raises many types
        reason = " ".join(str(error).split())[:300]
        raise OSError(
            f"there is no file or folder {name}, and the hub gave no model of this name ({reason}); check the name and"
            " the network, ask for access where the model needs it, or give a downloaded file"
        ) from error
    return folder


def read_weights(path: str | Path) -> StateDict:
    """The tensors of a weight file, under the names that the file gives them; of a script, those of its state dict.

    Raises FileNotFoundError when there is no such file, ValueError for a file without weights, for one in a checkpoint
    folder that is not as it was written, or for a pickle with code, which is not run.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file at {path}; give a .safetensors or .pth file, or a run folder")
    if path.suffix == ".safetensors":
        check_beside(path)
        try:
            return unwrapped(load_file(path))
        except Exception as error:  # safetensors raises its own bare exception type
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    content: Any = read_script(path)
    if content is None:
        content = load_pickle(path)
    while isinstance(content, dict):
        inner = next((content[key] for key in _NESTED if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    own = content if isinstance(content, dict) else {}
    state = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    if not any(_PROJECTION.match(name) for name in state if isinstance(name, str)):  # encoders under other keys
        inner = {f"{key}.{n}": t for key, v in own.items() if isinstance(v, dict) for n, t in v.items()}
        state |= {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    if not state:
        there = f"a dict of {summarise(map(str, own))}" if own else f"a {type(content).__name__}"
        raise ValueError(
            f"{path} holds no weights: a dict of tensors is needed, or one under 'model', and it is {there}"
        )
    return unwrapped(state)


def unwrapped(state: StateDict) -> StateDict:
    """Weights without what a trainer puts before their names: `module.`, `model.encoder.`, `_orig_mod.`, `teacher.`.

    What stands before the patch projection of an encoder is such a prefix. Of several encoders a teacher is taken, then
    one that is no moving average; the others, and tensors outside the encoder that are no head or decoder, are left
    out and logged.
    """
    prefixes = list(dict.fromkeys(match[1] for name in state if (match := _PROJECTION.match(name))))
    if not prefixes or prefixes == [""]:
        return state
    prefix = min(prefixes, key=lambda p: ("teacher" not in p, re.search("momentum|ema|target", p) is not None))
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    outside = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    beside = {name: tensor for name, tensor in outside.items() if BESIDE.match(name)}
    if dropped := [name for name in outside if name not in beside]:
        log(f"{len(dropped)} tensors beside the encoder {prefix}* (left out): {summarise(dropped)}")
    return beside | inside


@dataclass(frozen=True)
class KeyReport:
    """The keys that were loaded from weights into a model, and those that were not, by the reason."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]

    def __str__(self) -> str:
        titled = {
            "missing (start fresh)": self.missing,
            "unexpected (left out)": self.unexpected,
            "of another shape (start fresh)": self.reshaped,
        }
        rows = [f"{len(keys)} {title}: {summarise(keys)}" for title, keys in titled.items() if keys]
        return "\n".join([f"{len(self.loaded)} tensors loaded", *rows])


def numbered(model: nn.Module, state: Mapping[str, Tensor]) -> StateDict:
    """Tensors under a model's own names, where an objective may be named: `objectives.norm_rgb.head.weight`."""
    objectives = [objective.name for objective in getattr(model, "objectives", ())]
    numbers = [(rf"^objectives\.{re.escape(name)}\.", f"objectives.{i}.") for i, name in enumerate(objectives)]
    for pattern, new in numbers:
        state = {re.sub(pattern, new, name): tensor for name, tensor in state.items()}
    return dict(state)


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> KeyReport:
    """Copy the tensors that a model has by name (`numbered`) and shape into it; the report lists those that were not
    copied."""
    state = numbered(model, state)
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    model.load_state_dict(fits, strict=False)
    return KeyReport(
        loaded=tuple(fits),
        missing=tuple(k for k in own if k not in state),
        unexpected=tuple(k for k in state if k not in own),
        reshaped=tuple(k for k in state if k in own and k not in fits),
    )


def summarise(names: Iterable[str]) -> str:
    """The first six names, and the number of the others; "none" for no names."""
    names = list(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "none"


def saved_statistics(files: WeightFiles) -> dict[str, tuple[float, ...]]:
    """The mean and std that transformers, timm or OpenCLIP saved beside public weights, where they did."""
    saved: Mapping[str, Any] = files.preprocessing
    if "image_mean" in saved and "image_std" in saved:
        return {"mean": tuple(saved["image_mean"]), "std": tuple(saved["image_std"])}
    saved = files.config.get("pretrained_cfg") or files.config.get("preprocess_cfg") or {}
    return {name: tuple(saved[name]) for name in ("mean", "std") if name in saved}


def saved_rectangle(config: Mapping[str, Any], patch: int) -> tuple[int, int] | None:
    """The grid of tokens of images that are no squares, as a configuration of transformers or timm says; else None."""
    size = config.get("image_size") or (config.get("pretrained_cfg") or {}).get("input_size")
    if not isinstance(size, list) or len(size) < 2 or size[-1] == size[-2]:
        return None
    return size[-2] // patch, size[-1] // patch
