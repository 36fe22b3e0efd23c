"""The encoder of a run as data: `run.json` describes it, so that it is built without the code of the run's recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..data.limits import check_size
from ..data.modality_config import modality_from
from ..modeling.encoder import ClassAdapter, Encoder, MlpKind
from ..modeling.layers import Positions, ResizePositions, sincos_positions
from ..modeling.position_table import PositionKind, position_kind
from ..modeling.types import Modality

_MOST = {"patch": 1 << 14, "dim": 1 << 16, "depth": 1 << 10, "heads": 1 << 12, "class_dim": 1 << 14}
_CLASS_DIM = 64


@dataclass(frozen=True)
class StoredEncoder:
    """All that an `Encoder` is built from; the fields are its arguments. Raises ValueError for what none can be."""

    modalities: tuple[Modality, ...]
    image_size: tuple[int, ...]
    patch: int
    dim: int
    depth: int
    heads: int
    final_norm: bool = True
    class_dim: int = _CLASS_DIM
    resize_positions: ResizePositions = "interpolate"
    positions: PositionKind = "sincos"
    registers: int = 0
    layer_scale: float | None = None
    mlp: MlpKind = "gelu"

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in _MOST} | {"image_size": max(self.image_size, default=0)}
        for name, value in sizes.items():
            if not isinstance(value, int) or not 1 <= value <= _MOST.get(name, value):
                raise ValueError(f"an encoder whose {name} is {value!r} is not built")
        check_size(self.image_size[0], self.image_size[-1])
        if not isinstance(self.registers, int) or not 0 <= self.registers <= _MOST["heads"]:
            raise ValueError(f"an encoder whose registers are {self.registers!r} is not built")
        for name, kinds in (("resize_positions", ResizePositions), ("positions", PositionKind), ("mlp", MlpKind)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(f"an encoder whose {name} is {getattr(self, name)!r} is not built")

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> StoredEncoder:
        """The inverse of `asdict`, of what JSON holds. Raises ValueError for what describes no encoder."""
        try:
            own = {name: stored[name] for name in cls.__dataclass_fields__ if name in stored}
            own["modalities"] = tuple(map(modality_from, stored["modalities"]))
            return cls(**{**own, "image_size": tuple(stored["image_size"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"its run.json describes no encoder ({type(error).__name__}: {error})") from error

    @classmethod
    def of(cls, encoder: Encoder) -> StoredEncoder | None:
        """The description of an encoder; None for one that it does not describe, such as of classes of the user's."""
        adapters = [one for one in encoder.adapters.values() if isinstance(one, ClassAdapter)]
        own = cls(
            encoder.modalities,
            encoder.image_size,
            encoder.patch,
            encoder.dim,
            encoder.depth,
            encoder.blocks[0].attn.heads if encoder.depth else 1,
            not isinstance(encoder.norm, nn.Identity),
            adapters[0].classes.embedding_dim if adapters else _CLASS_DIM,
            encoder.positions.resize,
            position_kind(encoder.positions),
            len(encoder.prefix) - 1,
            encoder.layer_scale,
            encoder.mlp,
        )
        return own if _is_same(encoder, own.empty()) else None

    @classmethod
    def of_weights(
        cls, weights: Mapping[str, Tensor], modalities: tuple[Modality, ...], content: Mapping[str, Any]
    ) -> StoredEncoder | None:
        """The description of an encoder of an older run, by its weights and its `run.json`; None where they do not say.

        `weights` have the names of the encoder's state. What no tensor shows is taken to be as in the library's own.
        """
        read = tuple(m for m in modalities if f"adapters.{m.name}.proj.weight" in weights)
        tables = [table for name, table in weights.items() if name.endswith(".classes.weight")]
        images = [m for m in read if m.kind == "continuous"]
        try:
            side = (weights[f"adapters.{images[0].name}.proj.weight"].shape[1] // images[0].channels) ** 0.5
            own = cls(
                read,
                tuple(content["data"]["image_size"]),
                round(side) * images[0].stride,
                weights["prefix"].shape[1],
                1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks.")),
                content["model"]["heads"],
                "norm.weight" in weights,
                tables[0].shape[1] if tables else _CLASS_DIM,
                content.get("options", {}).get("resize_positions", "interpolate"),
            )
            return own if own.fits(weights) else None
        except (KeyError, IndexError, TypeError, ValueError):
            return None

    def build(self) -> Encoder:
        """A new encoder, initialised by torch's generator. Raises ValueError as `Encoder` does."""
        return Encoder(**{name: getattr(self, name) for name in self.__dataclass_fields__})

    def empty(self) -> Encoder:
        """The encoder without memory for its weights."""
        with torch.device("meta"):
            return self.build()

    def fits(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether these are all the weights of such an encoder, by their names and shapes."""
        own = {name: tensor.shape for name, tensor in self.empty().state_dict().items()}
        return own == {name: tensor.shape for name, tensor in weights.items()}


def encoder_metadata(encoder: Encoder) -> dict[str, Any] | None:
    """What `run.json` says of an encoder; None for one that only its recipe can build."""
    own = StoredEncoder.of(encoder)
    return None if own is None else asdict(own)


def _is_same(one: Encoder, other: Encoder) -> bool:
    """Whether two encoders compute the same of the same weights: module by module of one class with equal settings."""
    first, second = dict(one.named_modules()), dict(other.named_modules())
    return first.keys() == second.keys() and all(map(_is_same_module, first.values(), second.values()))


def _is_same_module(one: nn.Module, other: nn.Module) -> bool:
    if type(one) is not type(other) or one._forward_hooks or one._forward_pre_hooks:
        return False
    if isinstance(one, Positions) and not _is_plain(one):
        return False
    shapes = [{name: t.shape for name, t in m.state_dict().items()} for m in (one, other)]
    return shapes[0] == shapes[1] and _settings(one) == _settings(other)


def _is_plain(positions: Positions) -> bool:
    """Whether a table, which is no part of a checkpoint, has the values that it is made with."""
    table = positions.table
    return table.is_meta or torch.equal(table.cpu(), sincos_positions(positions.grid, positions.dim))


def _settings(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module, a method that was replaced among them."""
    return {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
