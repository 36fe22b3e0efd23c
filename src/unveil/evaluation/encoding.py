"""The forward pass that makes features: in the precision that is asked for, compiled where much is left to encode."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

import torch
from jaxtyping import Float
from torch import Tensor

from ..modeling.compiling import not_compiled, own_graph
from ..modeling.image_encoder import FeatureExtractor
from ..modeling.types import Batch, Pool
from ..runs.hardware import BUSY, autocast, processor_use
from ..runs.run_config import Precision
from ..runs.threads import AdaptiveThreads
from .types import FeatureEncoder, SeveralInputsEncoder

COMPILE_FROM = 600.0  # seconds of encoding: a twelfth less of them pays for half a minute of compiling
FASTER = 0.95  # of the time, below which the compiled pass is taken


class Encoding:
    """Features of one batch after another.

    With more than ten minutes left it tries the compiled encoder, and takes it where it is faster: not with
    `precision` float32, whose features are the same to the bit; not while other programs keep the cores busy or fewer
    threads compute than `threads`, whose number is fixed in compiled code. What is decided is told to `note`.
    """

    def __init__(
        self,
        encoder: FeatureEncoder,
        pool: Pool,
        reads_all: bool,
        precision: Precision,
        threads: int,
        note: Callable[[str], None],
    ):
        self.encoder, self.pool, self.reads_all, self.precision = encoder, pool, reads_all, precision
        self.most_threads, self.note = threads, note
        self.threads = AdaptiveThreads(threads)
        self.may_compile = precision != "float32" and isinstance(encoder, FeatureExtractor)
        self.is_warm = False
        self.graphs: dict[Hashable, Callable[[Batch], Tensor]] | None = None  # none: not compiled

    def features(self, batch: Batch, left: int) -> Float[Tensor, "B D"]:
        """The features of a batch, on the CPU; `left` is how many images there are to encode, these and the others.

        Raises ValueError where a sample lacks an input.
        """
        batch = batch.on(self.encoder.device)
        for name, there in batch.present.items() if self.reads_all else ():
            if not there.all():
                raise ValueError(f"some samples have no {name}; leave them out, or give --inputs without it")
        with self.threads.step():
            features, seconds = self._timed(self._compiled if self.graphs is not None else self._plain, batch)
        if self.may_compile and self.is_warm and seconds * left / len(batch) >= COMPILE_FROM:
            self.may_compile = False
            if torch.get_num_threads() >= self.most_threads and processor_use() < BUSY:
                self._try_compiled(batch)
        self.is_warm = True
        return features

    def _timed(self, forward: Callable[[Batch], Tensor], batch: Batch) -> tuple[Tensor, float]:
        began = time.perf_counter()
        with torch.inference_mode(), autocast(self.encoder.device, self.precision):
            features = forward(batch).cpu()
        return features, time.perf_counter() - began

    def _plain(self, batch: Batch) -> Float[Tensor, "B D"]:
        if self.reads_all and isinstance(self.encoder, SeveralInputsEncoder):
            return self.encoder.features_of(batch, self.pool)
        return self.encoder.features(batch.marked("rgb"), self.pool)

    def _try_compiled(self, batch: Batch) -> None:
        self.note("compiling the encoder, to see whether that pays ...")
        self.graphs = {}
        self._timed(self._compiled, batch)
        if self.graphs is None:
            return
        plain, compiled = (min(self._timed(f, batch)[1] for _ in range(2)) for f in (self._plain, self._compiled))
        if compiled < FASTER * plain:
            self.note(f"the compiled encoder takes {compiled / plain:.0%} of the time")
            self.threads = AdaptiveThreads(0)
        else:
            self.note("it does not, so the encoder goes on as it is")
            self.graphs = None

    def _compiled(self, batch: Batch) -> Float[Tensor, "B D"]:
        """The same by graphs of one size, of which the last, smaller part is filled up."""
        assert isinstance(self.encoder, FeatureExtractor)
        assert self.graphs is not None
        path = (frozenset(batch.valid), frozenset(batch.present))
        graph = self.graphs.setdefault(path, own_graph(self._plain))
        size, parts = self.encoder.at_once(batch), []
        try:
            for start in range(0, len(batch), size):
                rows = torch.arange(start, start + size).clamp_max(len(batch) - 1)
                parts.append(graph(batch[rows])[: len(batch) - start])
        except Exception as error:  # compilers raise many types; an error of the encoder itself is raised again below
            self.graphs = None
            self.note(not_compiled(error, "features are computed"))
            return self._plain(batch)
        return torch.cat(parts)
