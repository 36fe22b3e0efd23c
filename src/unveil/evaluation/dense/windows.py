"""Predictions of whole images of any size, by windows that overlap."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor

from ...data.collate import collate
from ...data.transforms import Sample
from ...modeling.types import Modality
from .data import DenseView, places, window_of
from .heads import enlarged
from .model import DenseModel


@torch.no_grad()
def predict_windows(
    model: DenseModel,
    samples: Sequence[Sample],
    view: DenseView,
    inputs: Sequence[Modality],
    micro_batch: int,
    autocast: AbstractContextManager[None],
) -> list[Float[Tensor, "K H W"]]:
    """The prediction of each sample at its own size, averaged over windows, in the memory of the processor.

    Windows have the size of the view, at the scale at which it was trained, and overlap by a third. Those of all
    samples go through the model together, `micro_batch` at once.
    """
    device = next(model.parameters()).device
    wholes = [view.whole(sample, inputs) for sample in samples]
    sizes = [(max(made[0], view.image_size[0]), max(made[1], view.image_size[1])) for _, made in wholes]
    corners = [places(size, view.image_size) for size in sizes]
    cut = [
        window_of(whole, corner, view.image_size, inputs)
        for (whole, _), own in zip(wholes, corners, strict=True)
        for corner in own
    ]
    outputs: list[Tensor] = []
    for start in range(0, len(cut), micro_batch):
        windows = cut[start : start + micro_batch]
        keys = torch.zeros(len(windows), dtype=torch.int64)
        batch = collate(windows, keys, inputs, view.image_size).on(device)
        with autocast:
            outputs += list(model(batch).cpu())
    predictions = []
    for sample, (_, made), size, own in zip(samples, wholes, sizes, corners, strict=True):
        total, count = torch.zeros(len(outputs[0]), *size), torch.zeros(size)
        for top, left in own:
            rows, columns = slice(top, top + view.image_size[0]), slice(left, left + view.image_size[1])
            total[:, rows, columns] += outputs.pop(0)
            count[rows, columns] += 1
        mean = (total / count)[:, : made[0], : made[1]]
        predictions.append(enlarged(mean[None], sample.size)[0])
    return predictions
