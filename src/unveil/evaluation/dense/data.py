"""The data of a dense protocol, and what of them an encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...data.dense_dataset import DensePair
from ...data.dense_layouts import StorageOptions, open_dense
from ...modeling.types import Modality
from .encoder import DenseEncoder, chosen_inputs


@dataclass(frozen=True)
class DenseData:
    """Where images with a label per pixel are; a protocol opens them, since its options say how they are stored."""

    address: str
    test_address: str | None = None

    def open(
        self, encoder: DenseEncoder, stored: StorageOptions, wanted: Sequence[str], target: str, limit: int | None
    ) -> tuple[DensePair, list[Modality]]:
        """The two sets, of at most `limit` samples each, and the modalities to read.

        Raises ValueError where a set lacks one of them or the target, and where the encoder does not read one.
        """
        sets = open_dense(self.address, self.test_address, stored)
        train, test = (s.limited(limit).with_channels(encoder.channels) for s in (sets.train, sets.test))
        inputs = chosen_inputs(encoder, wanted, list(train.maps), target)
        kinds = [*(m.name for m in inputs), target]
        return DensePair(train.select(kinds), test.select(kinds), sets.is_held_out), inputs
