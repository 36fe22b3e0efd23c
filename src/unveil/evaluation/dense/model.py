"""An encoder that reads maps of one or several modalities, with a head that predicts every pixel."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol, cast, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ...modeling.types import Batch, Modality
from ..types import FeatureEncoder, TrainableEncoder
from .heads import HEADS, HeadName, UPerHead, taps


@runtime_checkable
class DenseEncoder(TrainableEncoder, Protocol):
    """A trainable encoder with the modalities that it reads, and its tokens of any of them."""

    @property
    def modalities(self) -> Sequence[Modality]:
        """What it can read; the first is the one of `features`."""

    @property
    def patch(self) -> int:
        """The side in pixels of the square patch of a token."""

    @property
    def resize_positions(self) -> str:
        """How images of another size than `image_size` get their positions."""

    def tokens(self, batch: Batch, blocks: Sequence[int]) -> list[Float[Tensor, "B K D"]]:
        """The outputs of these blocks, counted from 1: prefix tokens, then the patches of each modality by rows."""


def check_dense(encoder: FeatureEncoder) -> DenseEncoder | None:
    """The encoder where it gives tokens on a grid, else None (raw pixels)."""
    return encoder if isinstance(encoder, DenseEncoder) and isinstance(encoder, nn.Module) else None


def chosen_inputs(encoder: DenseEncoder, wanted: Sequence[str], there: Sequence[str], target: str) -> list[Modality]:
    """The modalities to read, in the encoder's order; by default the first that the data have.

    Raises ValueError for one that the encoder does not read, and for the target itself.
    """
    known = {m.name: m for m in encoder.modalities}
    if not wanted:
        readable = [name for name in known if name in there and name != target]
        if not readable:
            raise ValueError(
                f"the encoder reads {', '.join(known)}, and the data have {', '.join(there)}: nothing but the target is"
                " left to read"
            )
        wanted = readable[:1]
    for name in wanted:
        if name == target:
            raise ValueError(f"{name} is what is to be predicted; give --inputs without it")
        if name not in known:
            raise ValueError(f"this encoder reads {', '.join(known)}, not {name!r}; give other --inputs")
    return [m for name, m in known.items() if name in wanted]


class DenseModel(nn.Module):
    """A copy of an encoder, frozen or not, and a head on the tokens of its inputs.

    The tokens that several modalities have at one place stand side by side, as MultiMAE's heads read them. Prefix
    tokens are left out, and maps are read before any final norm. `blocks` are those of `taps`, and `dropout` is the
    share of a UPerNet's last channels that are left out while it learns.
    """

    def __init__(
        self,
        encoder: DenseEncoder,
        inputs: Sequence[Modality],
        head: HeadName,
        outputs: int,
        frozen: bool,
        seed: int,
        blocks: Sequence[int] | None = None,
        dropout: float | None = None,
    ):
        super().__init__()
        self.encoder, self.inputs, self.is_frozen = copy.deepcopy(encoder), tuple(inputs), frozen
        self.blocks, self.dropout = taps(head, encoder.depth, blocks), dropout or 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = HEADS[head](encoder.dim * len(self.inputs), encoder.dim, outputs)
        self.to(encoder.device).requires_grad_(True)
        self._module.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> DenseModel:
        """A frozen encoder stays in eval mode."""
        super().train(mode)
        if self.is_frozen:
            self._module.eval()
        return self

    @property
    def _module(self) -> nn.Module:
        return cast("nn.Module", self.encoder)

    def forward(self, batch: Batch) -> Float[Tensor, "B K H W"]:
        return self.head(*self._read(batch)).float()

    def predictions(self, batch: Batch) -> list[tuple[float, Float[Tensor, "B K H W"]]]:
        """What is learned from: the prediction, and those of a head that helps it to learn, each with its weight."""
        grids, size = self._read(batch)
        if isinstance(self.head, UPerHead):
            learned = self.head.learned_from(grids, size, self.dropout, batch.rng)
        else:
            learned = [(1.0, self.head(grids, size))]
        return [(weight, prediction.float()) for weight, prediction in learned]

    def _read(self, batch: Batch) -> tuple[list[Float[Tensor, "B C h w"]], tuple[int, int]]:
        """The encoder's maps, and the size of the prediction."""
        names = [m.name for m in self.inputs]
        maps, valid = ({n: every[n] for n in names if n in every} for every in (batch.maps, batch.valid))
        read = Batch(maps, batch.key, batch.progress, valid)
        first = self.inputs[0]
        size = tuple(side * first.stride for side in maps[first.name].shape[-2:])
        with torch.no_grad() if self.is_frozen else nullcontext():
            outputs = self.encoder.tokens(read, self.blocks)
        rows = size[0] // self.encoder.patch
        grids = [
            rearrange(x[:, self.encoder.num_prefix :], "b (m h w) d -> b (m d) h w", m=len(names), h=rows)
            for x in outputs
        ]
        return grids, (size[0], size[1])
