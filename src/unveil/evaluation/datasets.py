"""Labelled images to train on and to test on: how they are opened, checked and split."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor

from ..data.aligned_folders import open_images, open_samples
from ..data.inspection import inspect_samples
from ..data.listing import split_addresses
from ..data.modality_config import Declared
from ..data.sources import Source, Subset, class_name, origin, spread
from ..data.splits import hold_out
from .features import check_channels, extract
from .types import Context, FeatureEncoder, FeatureSplit

TEST_SHARE = 0.2
_TABLES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".xml", ".xlsx")  # in which labels may be
_INSPECTED = 64  # samples that settle what the declaration of a map leaves to the data
NAMED = 20  # unreadable images that a result names


@dataclass(frozen=True)
class LabelledImages(Subset):
    """Some of the images of a source, each with the number of its class."""

    numbers: list[int] = field(repr=False)

    @property
    def labels(self) -> list[int]:
        """The classes, 0 .. num_classes - 1."""
        return self.numbers

    def only(self, rows: Int[Tensor, " K"]) -> LabelledImages:
        chosen = rows.tolist()
        return LabelledImages(self.source, [self.indices[i] for i in chosen], [self.numbers[i] for i in chosen])

    @classmethod
    def of(cls, source: Source, labels: Sequence[int], limit: int | None) -> LabelledImages:
        """At most `limit` images of a source, evenly spread."""
        chosen = spread(len(source), len(source) if limit is None else limit)
        return cls(source, chosen, [labels[i] for i in chosen])


@dataclass(frozen=True)
class ImageSplit:
    """Images to train on and to test on, labelled alike; `is_held_out` says that the latter are from one source.

    Of aligned maps features are of the `inputs` together, by default of the images alone.
    """

    train: LabelledImages
    test: LabelledImages
    num_classes: int
    is_held_out: bool = False
    inputs: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        train: Source,
        test: Source | None = None,
        limit: int | None = None,
        seed: int = 0,
        inputs: tuple[str, ...] = (),
    ) -> ImageSplit:
        """A split from sources; without a test source, a fifth of every class is held out.

        `limit` caps the images of each source, evenly spread. Raises ValueError for labels that cannot be learned from.
        """
        labels = check_labels(train, least=2 if test is None else 1)
        numbers = None if test is None else shared_numbers(train, test)
        images, num_classes = LabelledImages.of(train, labels, limit), max(labels) + 1
        if test is None or numbers is None:
            rows, held_out = stratified_split(torch.tensor(images.numbers), TEST_SHARE, seed)
            return cls(images.only(rows), images.only(held_out), num_classes, True, inputs)
        assert test.labels is not None
        others = LabelledImages.of(test, [numbers[label] for label in test.labels], limit)
        return cls(images, others, num_classes, inputs=inputs)

    @property
    def address(self) -> str:
        return self.train.source.address

    @property
    def test_address(self) -> str | None:
        """Where the test images are; None where they were held out."""
        return None if self.is_held_out else self.test.source.address

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers."""
        return tuple(class_name(self.train.source, number) for number in range(self.num_classes))

    @property
    def identity(self) -> list[object]:
        """What these images are: where they lie, which of them are used, and checksums of their classes."""
        return [
            [images.source.address, zlib.crc32(str((images.indices, images.numbers)).encode())]
            for images in (self.train, self.test)
        ] + list(self.inputs)

    @property
    def train_labels(self) -> Int[Tensor, " N"]:
        return torch.tensor(self.train.numbers)

    def subset(self, rows: Int[Tensor, " K"]) -> ImageSplit:
        return replace(self, train=self.train.only(rows))

    def check_channels(self, encoder: FeatureEncoder) -> None:
        """Raise ValueError when the images are not of the encoder's kind."""
        for images in (self.train, self.test) if not self.inputs else ():
            check_channels(encoder, images.source)

    def features(
        self, encoder: FeatureEncoder, context: Context, name: str = "features", dtype: torch.dtype = torch.float32
    ) -> FeatureSplit:
        """The features of all images, in the memory of the processor."""

        total = len(self.train) + len(self.test)
        train, test = (
            extract(
                encoder,
                images,
                context.pool,
                context.micro_batch,
                lambda done, _, before=before: context.progress(  # type: ignore[misc]
                    f"{name} of {context.subject}", before + done, total
                ),
                dtype=dtype,
                inputs=self.inputs,
                precision=context.precision,
                views=context.views,
                threads=context.threads,
                note=context.note,
            )
            for images, before in ((self.train, 0), (self.test, len(self.train)))
        )
        assert train.labels is not None
        assert test.labels is not None
        facts: dict[str, object] = {"train_images": len(train), "test_images": len(test)}
        facts |= {"inputs": list(self.inputs)} if self.inputs else {}
        facts |= unreadable_facts(train.unreadable + test.unreadable) | {"feature_dim": train.values.shape[1]}
        tensors = (train.values, train.labels, test.values, test.labels)
        return FeatureSplit(*tensors, self.num_classes, facts, self.identity)


def unreadable_facts(names: Sequence[str]) -> dict[str, object]:
    """How many images could not be read, and some of their names."""
    return {"unreadable": len(names), "unreadable_names": list(names[:NAMED])}


def open_sets(
    data: str,
    test_data: str | None,
    channels: int,
    group_by: str | None = None,
    seed: int = 0,
    declared: Sequence[Declared] = (),
    inputs: tuple[Declared, ...] = (),
) -> tuple[Source, Source | None]:
    """The training images, and the test images where there are any.

    A folder that holds train and val (or validation, or test) is both, as folders, as ImageNet and Places are laid out,
    or as Parquet files. Of aligned folders the `inputs` are read, by default the first of the `declared` ones, or rgb.
    With `group_by` a fifth is held out by whole groups, as `hold_out` makes them. Raises ValueError for groups where
    there are test images already, and for groups that are the classes.
    """
    if test_data is None:
        splits = split_addresses(data)
        if "train" in splits and len(splits) > 1:
            data, test_data = splits["train"], splits.get("val") or splits["test"]

    def opened(address: str) -> Source:
        if not inputs:
            return open_images(address, channels, declared)
        samples = open_samples(address, inputs)
        inspection = inspect_samples(Subset(samples, spread(len(samples), _INSPECTED)))
        return samples.settled(inspection.settle(samples.declared))

    source = opened(data)
    test_source = opened(test_data) if test_data else None
    if group_by is None:
        return source, test_source
    if test_source is not None:
        raise ValueError(f"--group-by holds groups of {data} out; with test images of their own, leave it away")
    train, test = hold_out(source, TEST_SHARE, seed, group_by=group_by)
    if train.labels is not None and test.labels is not None and not set(train.labels) & set(test.labels):
        raise ValueError(
            f"--group-by {group_by} holds whole classes of {data} out, so that none that is tested was learned; give"
            " groups that lie in several classes, such as 2 for the patients in class/patient/image.png"
        )
    return train, test


def check_labels(source: Source, least: int = 2) -> list[int]:
    """The labels of a source to learn from; ValueError unless it has two classes, and at least so many images of each.

    Where test images are held out of them a class needs two images, with a test set of its own one.
    """
    labels = _labels(source)
    counts = Counter(labels)
    if len(counts) < 2:
        raise ValueError(
            f"all {len(labels)} images of {source.address} are of one class ({class_name(source, labels[0])!r});"
            " a classifier needs at least two"
        )
    scarce = sorted(label for label, count in counts.items() if count < least)
    if scarce:
        raise ValueError(
            f"{len(scarce)} of the {len(counts)} classes of {source.address} have a single image, e.g."
            f" {class_name(source, scarce[0])!r}; every class needs at least 2: add images or leave those classes out"
        )
    return labels


def shared_numbers(train: Source, test: Source) -> dict[int, int]:
    """The number in `train` of each of `test`'s classes, matched by name where both have names.

    Raises ValueError when `test` is not labelled or has a class that `train` has not.
    """
    own, others = set(_labels(train)), set(_labels(test))
    number_of = {class_name(train, label): label for label in own}
    unknown = sorted(class_name(test, label) for label in others if class_name(test, label) not in number_of)
    if unknown:
        raise ValueError(
            f"{test.address} has {len(unknown)} classes that {train.address} has not, e.g. {unknown[0]!r}"
            f" (there: {', '.join(sorted(number_of)[:5])}, ...); both need the same classes under the same names"
        )
    return {label: number_of[class_name(test, label)] for label in others}


def stratified_split(
    labels: Int[Tensor, " N"], held_share: float, seed: int
) -> tuple[Int[Tensor, " K"], Int[Tensor, " H"]]:
    """Rows to keep and rows to hold out, both ascending: that share of every class, at least one but never all."""
    rng = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0].cpu()
        count = min(max(1, int(held_share * len(rows))), len(rows) - 1)
        held[rows[torch.randperm(len(rows), generator=rng)[:count]]] = True
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def _labels(source: Source) -> list[int]:
    if source.labels is None:
        whole = origin(source)[0]
        tables = [kind for kind in getattr(whole, "passed_over", ()) if kind in _TABLES]
        way = "put each class into a folder of its own name, or give a Parquet file with a label column"
        if tables:
            way = (
                f"labels in files beside the pictures ({', '.join(tables)}) are not read; put each class into a folder"
                " of its own name, or write the table as Parquet into this folder (pandas.read_csv(...).to_parquet) and"
                " give --image-column and --label-column, the names of files and the classes"
            )
        way = getattr(whole, "unlabelled", "") or way
        raise ValueError(f"{source.address} has no labels, and this protocol needs them: {way}")
    without = sum(label < 0 for label in source.labels)
    if without:
        raise ValueError(f"{without} of the {len(source)} images of {source.address} have no label; leave them out")
    return list(source.labels)
