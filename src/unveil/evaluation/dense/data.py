"""The data of a dense protocol, and what of them an encoder reads."""

from __future__ import annotations

from collections.abc import Sequence

from ...data.dense_dataset import DensePair
from ...data.dense_layouts import Stored, open_dense
from ...modeling.types import Modality
from .encoder import DenseEncoder, chosen_inputs
from .task import DenseTask


def opened(
    task: DenseTask, encoder: DenseEncoder, stored: Stored, wanted: Sequence[str], target: str
) -> tuple[DensePair, list[Modality]]:
    """The two sets of a task, and the modalities to be read.

    Raises ValueError where a set lacks one of them or the target, and where the encoder does not read one.
    """
    found = open_dense(task.data, task.test_data, stored)
    train, test = (s.limited(task.limit).with_channels(encoder.channels) for s in (found.train, found.test))
    train.check([target])
    inputs = chosen_inputs(encoder, wanted, list(train.files), target)
    for samples in (train, test):
        samples.check([*(m.name for m in inputs), target])
    return DensePair(train, test, found.is_held_out), inputs
