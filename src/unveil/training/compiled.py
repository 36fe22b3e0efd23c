"""The compiled forward pass: one graph without a break for each path that a step takes, compiled once."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import nn

from ..modeling.compiling import own_graph
from ..modeling.masked_model import Losses, MaskedModel
from ..modeling.types import Batch


class CompiledModel(nn.Module):
    """A masked model, compiled with static shapes: a graph for each size of a micro-batch and each set of teachers
    that observe in a step (`EveryNSteps`)."""

    def __init__(self, model: MaskedModel):
        super().__init__()
        self.model = model
        self.graphs: dict[Hashable, Callable[[Batch], Losses]] = {}

    def forward(self, batch: Batch) -> Losses:
        path = (len(batch), self.model.observing)
        if path not in self.graphs:
            self.graphs[path] = own_graph(self.model)
        return self.graphs[path](batch)


def even_size(batch: int, most: int) -> int:
    """The size of micro-batches of at most `most` that all have the same, where fewer than twice as many do.

    A compiled step of a last smaller one would be compiled twice.
    """
    fewest = -(-batch // most)
    return next((batch // parts for parts in range(fewest, 2 * fewest) if batch % parts == 0), most)
