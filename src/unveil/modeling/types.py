"""The types that the modules of a masked model exchange. All are frozen, none knows a model.

Shapes: B batch, C channels, N tokens, V visible, P predicted, Q queries, R prefix, D width, M modalities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .rng import SampleRng

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Pool = Literal["cls", "mean", "both", "mean-std", "cls-mean-std"]  # which tokens are the feature of an image
Part = Literal["cls", "mean", "std"]  # the class token; over the patches, the mean and the standard deviation
PARTS: dict[Pool, tuple[Part, ...]] = {
    "cls": ("cls",),
    "mean": ("mean",),
    "both": ("cls", "mean"),
    "mean-std": ("mean", "std"),
    "cls-mean-std": ("cls", "mean", "std"),
}
Combine = Literal["concat", "mean"]  # what becomes of the features of several blocks


@dataclass(frozen=True)
class Modality:
    """One kind of map that a sample carries.

    `mean` and `std` are per channel, in units of [0, 1] images, and normalise a continuous map; `normalise` says
    whether they do so alone (fixed) or each image by its own pixels (robust: MultiMAE's truncated mean and variance
    of depth; percentile: its 2nd and 98th to 0 and 1). A categorical map has one channel of class ids below
    `num_classes`. A map has one pixel for each `stride` x `stride` pixels of the view (MultiMAE's semantics: 4).
    `role` says whether the encoder reads it, decoders predict it, or both; `loss` how a prediction is compared
    (auto: what its paper uses for its kind) and `weight` how much that counts.
    """

    name: str = "rgb"
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    kind: Literal["continuous", "categorical"] = "continuous"
    num_classes: int = 0
    normalise: Literal["fixed", "robust", "percentile"] = "fixed"
    stride: int = 1
    role: Literal["both", "input", "output"] = "both"
    loss: Literal["auto", "l2", "l1", "smooth-l1", "cross-entropy"] = "auto"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"modality {self.name!r} has {self.channels} channels, so it needs {self.channels} means and stds;"
                f" got {len(self.mean)} and {len(self.std)}"
            )
        if (self.kind == "categorical") != (self.num_classes > 0):
            raise ValueError(
                f"a categorical modality has a number of classes and a continuous one has none; {self.name!r} is"
                f" {self.kind} with {self.num_classes}"
            )

    def side(self, patch: int) -> int:
        """A patch's side in pixels of this map."""
        if patch % self.stride:
            raise ValueError(
                f"a patch of {patch} pixels is no whole number of pixels of {self.name!r}, which has one for each"
                f" {self.stride} x {self.stride}; use a patch that {self.stride} divides"
            )
        return patch // self.stride


RGB = Modality()
DEPTH = Modality("depth", 1, (0.0,), (1.0,), normalise="robust")
SEMSEG = Modality("semseg", 1, (0.0,), (1.0,), kind="categorical", num_classes=133, stride=4)


@dataclass(frozen=True)
class Batch:
    """Samples as the model reads them.

    `maps` has one tensor per modality, `B C H W`: pictures float in [0, 1] (uint8 in 0..255 until `on` moves them to a
    device), measured maps float in their own unit (depth in metres), categorical ones int64 class ids. `valid` says of
    a modality's pixels, `B 1 H W`, where there is a truth, and `present` of its samples, `B`, whether they have it at
    all; a modality that is in neither is whole. `key` seeds each sample's random numbers, `step_key` those that all
    samples of a step share; `progress` is the share of training done, a 0-d tensor in [0, 1].
    """

    maps: Mapping[str, Tensor]
    key: Int[Tensor, " B"]
    progress: Float[Tensor, ""]
    valid: Mapping[str, Bool[Tensor, "B 1 H W"]] = field(default_factory=dict)
    present: Mapping[str, Bool[Tensor, " B"]] = field(default_factory=dict)
    step_key: Int[Tensor, ""] = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.key)

    @property
    def rng(self) -> SampleRng:
        return SampleRng(self.key)

    @property
    def step_rng(self) -> SampleRng:
        """Draws of one row, the same in every micro-batch and process of a step."""
        return SampleRng(self.step_key[None])

    def __getitem__(self, samples: slice | Int[Tensor, " K"]) -> Batch:
        """Some of the samples, by a slice or their numbers."""
        return self._each(lambda tensor: tensor[samples])

    def split(self, size: int) -> list[Batch]:
        """The batch in parts of so many samples, the last of which may be smaller."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def marked(self, name: str) -> Float[Tensor, "B C H W"]:
        """A map in [0, 1] or its unit with NaN where it holds no truth, as an encoder of single maps reads it."""
        image, valid = self.maps[name], self.valid.get(name)
        return image if valid is None else torch.where(valid, image, torch.nan)

    def on(self, device: torch.device | str) -> Batch:
        """The same batch on a device, its maps in [0, 1]. Bytes travel as bytes and are scaled where they arrive."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        maps = {name: m if m.dtype == torch.int64 else to_float(m) for name, m in moved.maps.items()}
        step_key, progress = (x.to(device, non_blocking=True) for x in (self.step_key, self.progress))
        return replace(moved, maps=maps, progress=progress, step_key=step_key)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor of samples changed."""
        groups = (self.maps, self.valid, self.present)
        maps, valid, present = ({name: change(m) for name, m in group.items()} for group in groups)
        return Batch(maps, change(self.key), self.progress, valid, present, self.step_key)


def to_float(image: Tensor) -> Float[Tensor, "*_"]:
    """An image in [0, 1], float32: uint8 is divided by 255, float passes."""
    return image.float() / 255 if image.dtype == torch.uint8 else image.float()


@dataclass(frozen=True)
class Layout:
    """Where each modality sits on one sequence of token ids, and the grid of cells they share."""

    spans: Mapping[str, slice]
    grid: tuple[int, int]

    @property
    def num_cells(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        return len(self.spans) * self.num_cells


@dataclass(frozen=True)
class Tokens:
    """Some of the tokens of a sequence; `ids` says which they are (id = modality x cells + cell).

    `missing` marks those of modalities that a sample does not have: nothing may read them. None where all are there.
    """

    values: Float[Tensor, "B V D"]
    ids: Int[Tensor, "B V"]
    layout: Layout
    missing: Bool[Tensor, "B V"] | None = None

    @property
    def cells(self) -> Int[Tensor, "B V"]:
        return self.ids % self.layout.num_cells

    def take(self, places: Int[Tensor, "B K"]) -> Tokens:
        """The tokens at these places of the sequence."""
        missing = None if self.missing is None else take(self.missing, places)
        return replace(self, values=take(self.values, places), ids=take(self.ids, places), missing=missing)


@dataclass(frozen=True)
class Mask:
    """The token ids that the encoder reads, and those that the decoders predict.

    At most `most` of a modality are predicted (None: any number). Where fewer than that are hidden, visible ones fill
    up, with weight 0.
    """

    visible: Int[Tensor, "B V"]
    predicted: Int[Tensor, "B P"]
    most: int | None = None


@dataclass(frozen=True)
class Queries:
    """What one decoder predicts: token ids, their cells on its modality's grid, and the weight of each in the loss."""

    ids: Int[Tensor, "B Q"]
    cells: Int[Tensor, "B Q"]
    weight: Float[Tensor, "B Q"]


@dataclass(frozen=True)
class FeatureSpec:
    """What is read off an encoder that sees the whole input: nothing else of its last blocks is computed.

    `attention` names the queries whose attention is read, in block `layer` (from the end below 0): `cls`, the first
    prefix token (a class or global token); `mean`, one query that is the mean of all patches'; `all`, the mean over
    the rows of all patches. `features` counts the last blocks whose normalised outputs are averaged (data2vec's
    top-k), 0 for none; `projected` sends them through the output projection that some teachers have (CLIP), and
    `class_token` reads the first prefix token's as well. `norm` normalises each block's output token by token
    (layer), or each of its channels over an image's tokens (instance).
    """

    attention: Literal["cls", "mean", "all"] | None = "cls"
    layer: int = -1
    features: int = 1
    projected: bool = False
    class_token: bool = False
    norm: Literal["layer", "instance"] = "layer"


@dataclass(frozen=True)
class Observation:
    """What a teacher gives for the whole, unmasked input, at the tokens of `layout`; None where its spec has none.

    `attention` is that of each head, after softmax over prefix and tokens, without the prefix: a row sums to at most
    one. `error` is the measured or predicted loss of each token, and `class_token` the features of the class token.
    """

    layout: Layout
    attention: Float[Tensor, "B H N"] | None = None
    features: Float[Tensor, "B N D"] | None = None
    error: Float[Tensor, "B N"] | None = None
    class_token: Float[Tensor, "B D"] | None = None

    def of(self, modality: str) -> Observation:
        """What was observed at the tokens of one modality."""
        span = self.layout.spans[modality]
        attention, features, error = self.attention, self.features, self.error
        return Observation(
            Layout({modality: slice(0, self.layout.num_cells)}, self.layout.grid),
            None if attention is None else attention[:, :, span],
            None if features is None else features[:, span],
            None if error is None else error[:, span],
        )


Observations = Mapping[str, Observation]


@dataclass(frozen=True)
class Latents:
    """The encoder's output: R prefix tokens, then the tokens it read, in the order of `tokens`.

    `layers` holds the layers that `keep` named: 0 is the input of the first block, k the output of block k.
    """

    final: Float[Tensor, "B K D"]
    layers: Mapping[int, Float[Tensor, "B K D"]]
    tokens: Tokens
    num_prefix: int


def take(x: Tensor, places: Int[Tensor, "B K"]) -> Tensor:
    """Gather along dim 1: (B, N, ...) at (B, K) -> (B, K, ...)."""
    index = places.reshape(*places.shape, *[1] * (x.dim() - 2)).expand(*places.shape, *x.shape[2:])
    return x.gather(1, index)
