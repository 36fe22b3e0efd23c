"""The configuration of a stored run: `run.json`, parsed once into types. It is read without torch.

Options of release 0.1 that have another spelling now are translated here, for flags, keyword arguments, YAML files and
stored runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .console import log
from .lock import status_of
from .regular_files import read_text

Precision = Literal["auto", "float32", "bf16"]
CheckpointFormat = Literal["safetensors", "dcp"]
Check = Literal["auto", "all", "sample", "none"]  # whose headers are read

OLD_NAMES = {"signals_every": "val_every", "keep_every": "save_every", "init_bands": "init_channels"}
OLD_ENTRIES = {"dials": "options", "asked": "given", "dial": "option"}  # of a `run.json`
OLD_VALUES = {"flip": {"turns": "d4"}}

_NUMBER = (int, float)
_TYPES: Mapping[str, tuple[type, ...]] = {  # of the entries of `run.json` that are read, where they are there
    **dict.fromkeys(("recipe", "status", "data.address", "data.names", "modality.name", "optim.optimizer"), (str,)),
    **dict.fromkeys(("seed", "data.count", "data.channels", "data.held_out", "modality.channels"), (int,)),
    **dict.fromkeys(("settings.micro_batch", "settings.adaptive_threads"), (int,)),
    **dict.fromkeys(
        ("given", "options", "modality", "data", "model", "settings", "plan", "updates", "teachers"), (dict,)
    ),
    **dict.fromkeys(("modalities", "model.stages", "returns", "extended"), (list,)),
    **dict.fromkeys(("modality.mean", "modality.std"), (list, type(None))),
    **dict.fromkeys(("settings.save_minutes", "settings.val_every", "plan.update_seconds"), _NUMBER),
    **dict.fromkeys(("optim.lr", "optim.lr_factor", "optim.warmup_epochs", "optim.trained_epochs"), _NUMBER),
    **dict.fromkeys(("optim.min_lr", "modality.weight"), _NUMBER),
    **dict.fromkeys(("optim", "plan", "updates"), (dict, type(None))),
    "last_checkpoint": (int, type(None)),
    **dict.fromkeys(("plan.budget", "settings.save_every"), (*_NUMBER, type(None))),
}


@dataclass(frozen=True)
class DataConfig:
    """The data of a run as they were when it began, and how they were split.

    `names` is the digest of all samples' names, in order. A share of the samples was held out: spread over them, or
    `held_out_last`; with `group_by`, whole groups of them.
    """

    address: str
    count: int
    names: str
    channels: int
    held_out: int
    held_out_share: float = 0.05
    held_out_last: bool = False
    group_by: str | None = None


@dataclass(frozen=True)
class ScheduleConfig:
    """The optimiser and learning rate of a run: `lr` before scaling, `min_lr` at its end, epochs of earlier runs."""

    lr: float
    lr_factor: float = 1.0
    warmup_epochs: float = 0.0
    trained_epochs: float = 0.0
    min_lr: float = 0.0
    optimizer: str = "adamw"


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a run.

    `options` are the values of the recipe's options, `modalities` the declared maps as JSON holds them (empty for a run
    of plain images), `image` the first modality, `epochs` the length of all stages.
    """

    recipe: str
    seed: int
    data: DataConfig
    options: Mapping[str, Any] = field(default_factory=dict)
    modalities: tuple[Mapping[str, Any], ...] = ()
    image: Mapping[str, Any] = field(default_factory=dict)
    schedule: ScheduleConfig | None = None
    epochs: float | None = None
    status: str = "unknown"
    content: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)  # of the file, as it was read

    @classmethod
    def read(cls, run: Path) -> RunConfig:
        """The configuration of a run folder, of this release or the last.

        Raises FileNotFoundError where there is no `run.json`, ValueError where it is damaged or lacks an entry.
        """
        metadata = read_metadata(run)
        if not metadata:
            if (run / "checkpoints").is_dir():
                gone = "has checkpoints and no run.json; the `unveil pretrain` command that began it restores that"
                raise FileNotFoundError(f"{run} {gone}")
            near = [str(p.parent) for p in sorted(run.glob("*/run.json"))[:5]]
            hint = f"; there are runs at {', '.join(near)}" if near else ""
            raise FileNotFoundError(f"{run} is not a run folder: it has no run.json{hint}")
        try:
            return replace(cls.parse(metadata), status=status_of(run, metadata))
        except KeyError as error:
            raise ValueError(f"{run / 'run.json'} has no entry {error}; put it back, or give another run") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{run / 'run.json'} is damaged ({error}); put it back, or give another run") from error

    @classmethod
    def parse(cls, metadata: Mapping[str, Any]) -> RunConfig:
        """The configuration in the content of a `run.json`. Raises KeyError with the first entry that is missing."""
        given, data, optim = metadata["given"], metadata["data"], metadata.get("optim")
        split = {name: given[name] for name in ("held_out_share", "group_by") if name in given}
        return cls(
            recipe=metadata["recipe"],
            seed=metadata["seed"],
            data=DataConfig(
                **{name: data[name] for name in ("address", "count", "names", "channels", "held_out")},
                held_out_last=given.get("held_out") == "last",
                **split,
            ),
            options={name: tuple(v) if isinstance(v, list) else v for name, v in metadata["options"].items()},
            modalities=tuple(metadata.get("modalities", ())),
            image=metadata["modality"],
            schedule=optim
            and ScheduleConfig(**{f: optim[f] for f in ScheduleConfig.__dataclass_fields__ if f in optim}),
            epochs=metadata.get("updates", {}).get("epochs")
            or sum(stage["epochs"] for stage in metadata.get("model", {}).get("stages", ()))
            or None,
            status=metadata.get("status", "unknown"),
            content=metadata,
        )


def read_metadata(run: Path) -> dict[str, Any]:
    """The content of a folder's `run.json`; empty where there is none. Raises ValueError when it is damaged."""
    try:
        metadata = json.loads(read_text(run / "run.json"))
    except FileNotFoundError:
        return {}
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{run / 'run.json'} is damaged ({error}); give another --out, or --overwrite") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{run / 'run.json'} is damaged (it is no JSON object); give another --out, or --overwrite")
    metadata = current_entries(metadata)
    for name, kinds in _TYPES.items():
        value: Any = metadata
        for key in name.split("."):
            value = value.get(key, ...) if isinstance(value, dict) else ...
        if value is not ... and (not isinstance(value, kinds) or isinstance(value, bool)):
            needed = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            complaint = f"{name} is {json.dumps(value)[:40]}, and {needed} is needed"
            raise ValueError(f"{run / 'run.json'} is damaged ({complaint}); give another --out, or --overwrite")
    return metadata


def current_entries(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `run.json`, or of what a checkpoint holds of it, with the names of this release."""
    content = {OLD_ENTRIES.get(name, name): value for name, value in metadata.items()}
    if isinstance(changes := content.get("changes"), list):
        content["changes"] = [current_entries(c) if isinstance(c, dict) else c for c in changes]
    return content


def current_names(values: Mapping[str, Any], warn: bool = False) -> dict[str, Any]:
    """Values of options under the names of this release; with `warn`, a note says which were old."""
    for old, new in OLD_NAMES.items():
        if warn and old in values:
            log(f"note: {old} is now {new}")
    return {OLD_NAMES.get(name, name): value for name, value in values.items()}


def current_options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a `run.json`, names and values in the spelling of this release."""
    values = current_names(stored)
    return {n: OLD_VALUES.get(n, {}).get(v, v) if isinstance(v, str) else v for n, v in values.items()}
