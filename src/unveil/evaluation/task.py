"""Labelled images to learn from and to be judged on, and the encoder to do it with."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from ..data.aligned_folders import open_images
from ..data.modality_config import Declared
from ..data.sources import Source, Subset, spread
from ..data.splits import hold_out
from .cache import Kept
from .features import FeatureEncoder, Features, Pool, extract
from .labels import check_labels, shared_numbers, stratified_split
from .types import Split

TEST_SHARE = 0.2

Tell = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """A progress callback that ignores every call, the default."""


def unnoted(note: str) -> None:
    """A note callback that ignores every note, the default."""


@dataclass(frozen=True)
class Labelled(Subset):
    """Some of the images of a source, each with the number of its class in the task."""

    numbers: list[int] = field(repr=False)

    @property
    def labels(self) -> list[int]:
        """The classes, 0 .. num_classes - 1."""
        return self.numbers

    def only(self, rows: Int[Tensor, " K"]) -> Labelled:
        chosen = rows.tolist()
        return Labelled(self.source, [self.indices[i] for i in chosen], [self.numbers[i] for i in chosen])


TRAIN, TEST = ("train", "training"), ("val", "validation", "valid", "test")


def open_sets(
    data: str,
    test_data: str | None,
    channels: int,
    group_by: str | None = None,
    seed: int = 0,
    declared: Sequence[Declared] = (),
) -> tuple[Source, Source | None]:
    """The images to learn from, and those to be judged on where there are any of their own.

    A folder that holds the folders train and val (or validation, or test) is both, as ImageNet and Places are laid out.
    Of aligned folders the first of the `declared` inputs is read, or rgb. With `group_by` a fifth is held out by whole
    groups, as `hold_out` makes them. Raises ValueError for groups where there are images to be judged on already.
    """
    folder = Path(data).expanduser()
    inside = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else {}
    train = next((inside[name] for name in TRAIN if name in inside), None)
    test = next((inside[name] for name in TEST if name in inside), None)
    if test_data is None and train is not None and test is not None:
        data, test_data = str(train), str(test)
    learned = open_images(data, channels, declared)
    judged = open_images(test_data, channels, declared) if test_data else None
    if group_by is None:
        return learned, judged
    if judged is not None:
        raise ValueError(f"--group-by holds groups of {data} out; with test images of their own, leave it away")
    return hold_out(learned, TEST_SHARE, seed, group_by=group_by)


@dataclass(frozen=True)
class Sets:
    """The two sets of images of a task, labelled alike."""

    train: Labelled
    test: Labelled
    num_classes: int

    @property
    def identity(self) -> list[object]:
        """What tells these images from others: where they are, which of them, and checksums of their classes."""
        return [
            [part.source.address, zlib.crc32(str((part.indices, part.numbers)).encode())]
            for part in (self.train, self.test)
        ]

    @classmethod
    def of(cls, train: Source, test: Source | None = None, limit: int | None = None, seed: int = 0) -> Sets:
        """Sets from sources; without a test source, a fifth of every class is held out.

        `limit` caps the images of each source, evenly spread. Raises ValueError for labels that cannot be learned from.
        """
        labels = check_labels(train)
        numbers = None if test is None else shared_numbers(train, test)
        learned = _limited(train, labels, limit)
        num_classes = max(labels) + 1
        if test is None or numbers is None:
            kept, held = stratified_split(torch.tensor(learned.numbers), TEST_SHARE, seed)
            return cls(learned.only(kept), learned.only(held), num_classes)
        assert test.labels is not None
        return cls(learned, _limited(test, [numbers[label] for label in test.labels], limit), num_classes)


def _limited(source: Source, labels: list[int], limit: int | None) -> Labelled:
    chosen = spread(len(source), len(source) if limit is None else limit)
    return Labelled(source, chosen, [labels[i] for i in chosen])


@dataclass(frozen=True)
class Task:
    """What a protocol is asked: how well this encoder serves to learn these classes.

    `is_trained` is false of the baseline that starts from scratch. At most `micro_batch` images are in the encoder at
    once. `tell` hears (what is done, images done, images in all), `note` what was chosen for the user,
    `kept` spares what a stopped evaluation has done.
    """

    encoder: FeatureEncoder
    sets: Sets
    pool: Pool = "cls"
    micro_batch: int = 256
    who: str = "this run"
    is_trained: bool = True
    tell: Tell = silent
    note: Callable[[str], None] = unnoted
    known: Split | None = None
    kept: Kept = field(default_factory=Kept)

    @cached_property
    def features(self) -> tuple[Features, Features]:
        """The features of both sets, extracted when they are first asked for."""

        def told(done: int, total: int) -> None:
            self.tell(f"features of {self.who}", done, total)

        train, test = (
            extract(self.encoder, images, self.pool, self.micro_batch, told)
            for images in (self.sets.train, self.sets.test)
        )
        return train, test

    @cached_property
    def split(self) -> Split:
        """The features on the encoder's device; `known` where they are known already."""
        if self.known is not None:
            return self.known
        train, test = (found.to(self.encoder.device) for found in self.features)
        assert train.labels is not None
        assert test.labels is not None
        return Split(train.values, train.labels, test.values, test.labels, self.sets.num_classes)

    def learning_from(self, rows: Int[Tensor, " K"]) -> Task:
        """The same with some of the training images only; their features are computed anew."""
        return replace(self, sets=replace(self.sets, train=self.sets.train.only(rows)), known=None)

    def on_features_of(self, rows: Int[Tensor, " K"]) -> Task:
        """The same with some of the training features only, for protocols that look at nothing else."""
        return replace(self, known=self.split.learning_from(rows))

    def facts(self) -> Mapping[str, object]:
        """What the features were computed from."""
        train, test = self.features
        unreadable = train.unreadable + test.unreadable
        return {"train_images": len(train), "test_images": len(test), **unreadable_facts(unreadable)} | {
            "feature_dim": train.values.shape[1]
        }


NAMES_KEPT = 20


def unreadable_facts(names: tuple[str, ...]) -> dict[str, object]:
    """How many images could not be read, and some of their names."""
    return {"unreadable": len(names), "unreadable_names": list(names[:NAMES_KEPT])}
