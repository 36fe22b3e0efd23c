"""Hugging Face data sets by name: `hf:owner/name[:config][@revision][/split]`, or a folder that `datasets` has saved.

The `datasets` library downloads them once and keeps them in its cache, which also serves without a network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..runs.console import suggest, user_path
from .extras import optional
from .listing import HUB, SPLITS
from .table import are_filled, top_of, within

_EXTRA = "data sets of the Hugging Face Hub are read with the datasets library: pip install 'unveil[hf]'"
_BATCH = 1000  # values of a column that are Python objects at once
_ADDRESS = re.compile(
    r"hf:(?P<name>[^:@]+)(?::(?P<config>[^@/]+))?(?:@(?P<revision>(?:refs/[^/]+/)?[^/]+))?(?:/(?P<split>.+))?"
)


@dataclass(frozen=True)
class HubAddress:
    """The parts of an address: `name` is that of the data set or a folder, the others are None where left out."""

    text: str
    name: str
    config: str | None = None
    revision: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Raises ValueError for an address that is none."""
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no data set of the Hub; write hf:OWNER/NAME[:CONFIG][@REVISION][/SPLIT]")
        name, split = match["name"].rstrip("/"), match["split"]
        if split is None and match["config"] is None and match["revision"] is None:
            folder, _, last = name.rpartition("/")
            is_path = name.startswith((".", "/", "~"))
            if not user_path(name).is_dir() if is_path else name.count("/") > 1:
                name, split = folder, last
        return cls(text, name, match["config"], match["revision"], split)

    @property
    def folder(self) -> Path | None:
        """The folder of a data set that lies here; None for one of the Hub."""
        path = user_path(self.name)
        return path if path.is_dir() else None

    def of(self, split: str) -> str:
        """The address of the split of this name, whatever split this address names."""
        base = self.text if self.split is None else self.text.removesuffix(f"/{self.split}")
        return f"{base}/{split}"

    def located(self) -> str:
        parts = f":{self.config}" if self.config else "", f"@{self.revision}" if self.revision else ""
        return f"{HUB}{self.folder.resolve() if self.folder else self.name}{''.join(parts)}"

    def split_names(self) -> list[str]:
        """The names of the splits, without their data where the network is there. Raises ValueError."""
        datasets = optional("datasets", _EXTRA)
        if self.folder and (self.folder / "dataset_dict.json").is_file():
            return [split.name for split in self.folder.iterdir() if (split / "state.json").is_file()]
        try:
            names: list[str] = datasets.get_dataset_split_names(self.name, self.config, revision=self.revision)
        except ConnectionError:  # none, or HF_HUB_OFFLINE: what the cache holds
            names = list(self._load(None))
        except (OSError, ValueError, RuntimeError) as error:
            raise self._refused(error) from error
        return names

    def load(self) -> Any:
        """The `datasets.Dataset` of the split. Raises ValueError where none is named and there are several."""
        datasets = optional("datasets", _EXTRA)
        if self.folder and (self.folder / "state.json").is_file():
            return datasets.load_from_disk(str(self.folder))
        names, split = self.split_names(), self.split
        if split is None:
            if len(names) != 1:
                ways = " or ".join(self.of(name) for name in names)
                raise ValueError(
                    f"{self.text!r} holds the splits {', '.join(names)}; training on all would spoil the test. Name"
                    f" one: {ways}"
                )
            split = names[0]
        elif split.partition("[")[0] not in names:
            raise ValueError(f"{self.text!r}: there is no split {split!r}; {suggest(split, names, ', '.join(names))}")
        if self.folder and (self.folder / split / "state.json").is_file():
            return datasets.load_from_disk(str(self.folder / split))
        return self._load(split)

    def _load(self, split: str | None) -> Any:
        datasets = optional("datasets", _EXTRA)
        name = str(self.folder) if self.folder else self.name
        try:
            return datasets.load_dataset(name, self.config, split=split, revision=self.revision)
        except (OSError, ValueError, RuntimeError) as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> ValueError:
        reason = " ".join(str(error).split())[:300]
        return ValueError(
            f"{self.text!r} cannot be loaded: {reason}. Check its name, give hf:OWNER/NAME:CONFIG where it has several"
            " configurations, log in with `hf auth login` where it is private; without a network it must be in the"
            " cache of the datasets library"
        )


@dataclass(frozen=True)
class HubRows:
    """The rows of one split, memory-mapped from the library's cache; `name` is split[row]."""

    dataset: Any = field(repr=False)
    place: str
    split: str

    @property
    def schema(self) -> pa.Schema:
        schema: pa.Schema = self.dataset.features.arrow_schema  # with the names of classes
        return schema

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        return f"{self.split}[{index}]"

    def location(self, index: int) -> str:
        return f"{self.place}/{self.split}[{index}]"

    def folders(self, index: int) -> list[Path]:
        """Here, the folder that the address names, and where the `datasets` library keeps what it has downloaded."""
        cache = optional("datasets", _EXTRA).config
        own = [Path(self.place.removeprefix(HUB))] if self.place.startswith(f"{HUB}/") else []
        return [Path(), *own, *(Path(place) for place in (cache.HF_DATASETS_CACHE, cache.HF_HUB_CACHE) if place)]

    def cell(self, column: str, members: Sequence[str], index: int) -> Any:
        value = self.dataset.data.column(top_of(column, members))[index].as_py()
        for member in members:
            value = None if value is None else value[member]
        return value

    def values(self, column: str, members: Sequence[str]) -> Iterator[Any]:
        for chunk in self.dataset.data.column(top_of(column, members)).chunks:
            for start in range(0, len(chunk), _BATCH):
                yield from within(chunk.slice(start, _BATCH), members).to_pylist()

    def filled(self, column: str, members: Sequence[str]) -> Iterator[bool]:
        for chunk in self.dataset.data.column(top_of(column, members)).chunks:
            yield from are_filled(within(chunk, members))


def hub_rows(address: str) -> HubRows:
    """The rows at an address that begins with `hf:`, without columns. Raises ValueError with what to give instead."""
    parsed = HubAddress.parse(address)
    dataset = parsed.load()
    return HubRows(dataset, parsed.located(), str(dataset.split or parsed.split or "data"))


def hub_splits(address: str) -> dict[str, str]:
    """The address of train, val and test of a data set of which no split is named; {} unless there are two."""
    parsed = HubAddress.parse(address)
    is_one = parsed.split is not None or (parsed.folder and (parsed.folder / "state.json").is_file())
    names = {} if is_one else {name.lower(): name for name in parsed.split_names()}
    splits = {s: next((names[word] for word in words if word in names), None) for s, words in SPLITS.items()}
    named = {split: parsed.of(name) for split, name in splits.items() if name is not None}
    return named if len(named) > 1 else {}
