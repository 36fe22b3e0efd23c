"""What a protocol is given and what it returns: encoders, features, models that reconstruct, a context, a score."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..data.kept_views import KeptViews
from ..modeling.types import Batch, Modality, Pool
from ..runs.hardware import autocast, choose_precision
from ..runs.run_config import Precision
from .kept_heads import KeptHead
from .results import ResultCache

Needs = Literal["features", "images", "dense", "boxes", "videos", "model"]
THIS_RUN = "this run"


@dataclass(frozen=True)
class Score:
    """What a protocol measured on one subject: shares in [0, 1], its settings, and a card that describes the procedure.

    `trains_encoder` says that the encoder was trained too: then that of an untrained one is training from scratch.
    `baselines` are the metrics of predictors that need no encoder, such as the most frequent class, and `details` what
    a metric is a mean of, such as the IoU of each class. `outcomes` are, for some metrics, the numbers of the test
    samples that the metric is the mean of (of several draws a list each), so that subjects can be compared in pairs.
    `shown` is what the report draws beside the numbers, as JSON: pictures, curves, results by class (`classes`), or
    those of each number of labels or data set (`parts`).
    """

    metrics: dict[str, float]
    settings: dict[str, object]
    card: str
    trains_encoder: bool = False
    baselines: Mapping[str, dict[str, float]] = field(default_factory=dict)
    details: Mapping[str, dict[str, float]] = field(default_factory=dict)
    outcomes: Mapping[str, Sequence[float] | Sequence[Sequence[float]]] = field(default_factory=dict)
    shown: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """How an evaluation runs its protocols: the same for all of them, but for the name of the subject.

    `limit` caps the images of each set, `micro_batch` the images in the encoder at once. `precision` is that of every
    encoder, `threads` the most threads of a CPU where their number follows its load (0 keeps it). `views` holds the
    images that several encoders read. Where `pool` was not chosen
    by the user (`pool_is_chosen`), that of a protocol with a `pool` of its own comes first. `is_trained` is false for
    the untrained baseline. `progress` is called with (what is done, images done, images in all), `note` with a sentence
    on what was chosen for the user. `cache` holds what an interrupted evaluation has measured, and `pictures` is where
    a protocol may write some of the run. `keep`, where heads are to be kept, is called with the head that a protocol
    has trained for the subject.
    """

    seed: int = 0
    limit: int | None = None
    micro_batch: int = 256
    precision: Precision = "auto"
    threads: int = 0
    views: KeptViews | None = None
    pool: Pool = "cls"
    pool_is_chosen: bool = True
    subject: str = THIS_RUN
    is_trained: bool = True
    cache: ResultCache = field(default_factory=ResultCache)
    pictures: Path | None = None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    note: Callable[[str], None] = lambda text: None
    keep: Callable[[KeptHead], None] | None = None

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of an encoder's forward pass on a device: bf16 or float32."""
        return autocast(device, self.precision)

    def precision_facts(self, device: torch.device) -> dict[str, object]:
        """The precision where it is not float32, for the settings of a result."""
        chosen = choose_precision(self.precision, device)
        return {} if chosen == "float32" else {"precision": chosen}

    def of(self, protocol: EvaluationProtocol) -> Context:
        """The same, with the pool that this protocol reads."""
        own: Pool | None = None if self.pool_is_chosen else getattr(protocol, "pool", None)
        return replace(self, pool=own or self.pool)


class EvaluationProtocol(Protocol):
    """A measurement: a frozen dataclass whose fields are its options, each with a default and a line in its docstring.

    What `run` gets depends on `needs`: `features` an encoder and a `FeatureSplit`; `images` an encoder and an
    `ImageSplit`; `dense` an encoder and a `DenseData`, the address of images with a label per pixel; `boxes` an encoder
    and a `DetectionData`, that of images with boxes; `videos` an encoder and a `VideoData`, that of videos with masks
    of objects; `model` a model with decoders and `HeldOutSamples`.
    """

    @property
    def needs(self) -> Needs:
        """The kind of subject and data that `run` is given."""

    def run(self, subject: Any, data: Any, context: Context, /) -> Score | None:
        """The score of a subject; None where the protocol cannot measure it."""


@dataclass(frozen=True)
class FeatureSplit:
    """Features to train on and to test on, both labelled 0 .. num_classes - 1; `facts` say how they were computed."""

    train: Float[Tensor, "N D"]
    train_labels: Int[Tensor, " N"]
    test: Float[Tensor, "M D"]
    test_labels: Int[Tensor, " M"]
    num_classes: int
    facts: Mapping[str, object] = field(default_factory=dict)
    identity: object = None

    def subset(self, rows: Int[Tensor, " K"]) -> FeatureSplit:
        identity = [self.identity, zlib.crc32(str(rows.tolist()).encode())]
        rows = rows.to(self.train.device)
        return replace(self, train=self.train[rows], train_labels=self.train_labels[rows], identity=identity)

    def to(self, device: torch.device) -> FeatureSplit:
        moved = {name: getattr(self, name).to(device) for name in ("train", "train_labels", "test", "test_labels")}
        return replace(self, **moved)


def hits(scores: Float[Tensor, "M K"], labels: Int[Tensor, " M"]) -> list[float]:
    """For each sample 1 where its class alone scores highest, else 0: `accuracies` are their mean."""
    own = scores.gather(1, labels[:, None])
    return ((scores < own).sum(1) == scores.shape[1] - 1).float().tolist()


def accuracies(scores: Float[Tensor, "M K"], labels: Int[Tensor, " M"]) -> dict[str, float]:
    """The share of samples whose class scores highest, and, beyond 5 classes, among the highest 5. A tie is a miss.

    Where the classes are not equally frequent, also the mean of their own accuracies, and the share of the most
    frequent one, which is the accuracy of a guess that reads nothing.
    """
    own = scores.gather(1, labels[:, None])
    rivals = scores.shape[1] - 1 - (scores < own).sum(1)  # so NaN, which is below nothing, is a miss too
    metrics = {"accuracy": (rivals < 1).double().mean().item()}
    if scores.shape[1] > 5:
        metrics["top5"] = (rivals < 5).double().mean().item()
    counts = labels.bincount()
    if len(present := counts[counts > 0].unique()) > 1:
        hits = labels[rivals < 1].bincount(minlength=len(counts))
        metrics["mean_class_accuracy"] = (hits[counts > 0] / counts[counts > 0]).double().mean().item()
        metrics["most_frequent_class"] = (present.max() / len(labels)).item()
    return metrics


class FeatureEncoder(Protocol):
    """Anything that turns images into one feature vector each, in eval mode and deterministically."""

    @property
    def channels(self) -> int:
        """How many channels its images have."""

    @property
    def image_size(self) -> tuple[int, int]:
        """The height and width of its images."""

    @property
    def device(self) -> torch.device:
        """The device on which images are expected and features returned."""

    def features(self, images: Float[Tensor, "B C H W"], pool: Pool) -> Float[Tensor, "B D"]:
        """The class token, the mean of the patch tokens, or both side by side, of images in [0, 1]."""


@runtime_checkable
class SeveralInputsEncoder(FeatureEncoder, Protocol):
    """An encoder that reads several maps of a sample."""

    @property
    def modalities(self) -> Sequence[Modality]:
        """What it can read; the first is that of `features`."""

    def features_of(self, batch: Batch, pool: Pool) -> Float[Tensor, "B D"]:
        """The features of all maps of a batch together."""


@runtime_checkable
class TrainableEncoder(FeatureEncoder, Protocol):
    """An `nn.Module` that reads images in [0, 1] as tokens, and that `copy.deepcopy` copies whole."""

    @property
    def dim(self) -> int:
        """The width of the tokens that `maps` returns."""

    @property
    def depth(self) -> int:
        """The number of blocks, the last one that `maps` accepts."""

    @property
    def num_prefix(self) -> int:
        """How many tokens before those of the patches: class token, registers."""

    @property
    def has_class_token(self) -> bool:
        """Whether the first of these is a class token; else all are registers."""

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block; an identity where there is none."""

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The mean and the standard deviation of each channel, by which it normalises images itself."""

    def maps(self, images: Float[Tensor, "B C H W"], blocks: Sequence[int]) -> list[Float[Tensor, "B K D"]]:
        """The outputs of these blocks, counted from 1, before any final norm: prefix tokens, then patches by rows."""

    def layer_of(self, name: str) -> int:
        """Where a parameter sits: 0 before the blocks, k in block k counted from 1, depth + 1 after them."""

    def branches(self) -> Sequence[Sequence[nn.Module]]:
        """Of each block, the modules whose outputs are added to its input."""


@runtime_checkable
class SavableEncoder(Protocol):
    """An encoder that can be written to a file."""

    def save(self, file: str | Path) -> None:
        """Write the weights to a file in the safetensors format."""


def check_trainable(encoder: FeatureEncoder) -> TrainableEncoder | None:
    """The encoder where it can be trained, else None (raw pixels)."""
    return encoder if isinstance(encoder, TrainableEncoder) and isinstance(encoder, nn.Module) else None


@dataclass(frozen=True)
class Reconstruction:
    """The prediction and the target: maps of one modality, in the units of the data (class ids of a categorical one).

    `predicted` are the hidden pixels that have a ground truth. `losses` is the mean loss of each sample in the model's
    own target space, NaN where no token counts.
    """

    modality: Modality
    prediction: Tensor
    target: Tensor
    predicted: Bool[Tensor, "B 1 H W"]
    losses: Float[Tensor, " B"]


class Masks(Enum):
    """Masks at a model's own share of visible tokens: random ones that other models share, or its own."""

    RANDOM = "random_masks"
    OWN = "own_masks"


Visible = float | Sequence[str] | Masks  # a share of all tokens, drawn uniformly; whole modalities; or masks


class Reconstructor(Protocol):
    """Something that reconstructs the hidden tokens of a batch."""

    @property
    def inputs(self) -> Sequence[str]:
        """The names of the modalities that the encoder reads."""

    @property
    def outputs(self) -> Sequence[str]:
        """The names of the modalities that the decoders predict."""

    def reconstruct(self, batch: Batch, visible: Visible) -> Mapping[str, Reconstruction]:
        """The reconstruction of each objective, by its name, with every hidden token predicted."""


@dataclass(frozen=True)
class HeldOutSamples:
    """Batches of samples that the model was not trained on, and how many samples there are."""

    address: str
    test_address: str | None
    batches: Callable[[], Iterator[Batch]]
    num_samples: int
