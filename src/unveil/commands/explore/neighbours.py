"""The images of a gallery that are nearest to one: by the features of an encoder, and by colours alone."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...data.decode import Unreadable
from ...data.folder_source import FolderSource
from ...data.sources import origin, spread
from ...data.splits import names_digest
from ...modeling.types import Batch
from ...runs.cache import cached, store
from .images import Chosen, Images, batch_of
from .models import Explored
from .worker import Worker

_KIND = "explore-1"  # entries of the cache, and the version of their format
_AT_ONCE = 8  # images in one pass, so that what a user asks meanwhile waits for few
_COLOURS = 8  # pixels a side that stand for the colours of an image


@dataclass
class Index:
    """Features and colours of the images of a gallery; `done` of `total` are computed, `error` says why they end."""

    total: int
    done: int = 0
    error: str = ""
    rows: list[int] = field(default_factory=list)
    features: Float[Tensor, "N D"] | None = None
    colours: Float[Tensor, "N C"] | None = None

    @property
    def is_ready(self) -> bool:
        return self.features is not None


def describe(explored: Explored, batches: list[Batch]) -> tuple[Float[Tensor, "K D"], Float[Tensor, "K C"]]:
    """Unit features and unit colours of images, K of them."""
    extractor = explored.extractor
    name = explored.inputs[0]
    images = torch.cat([batch.maps[name].float() for batch in batches])
    features = [extractor.pooled(batch, "mean") for batch in batches] if len(explored.inputs) > 1 else None
    values = torch.cat(features) if features else extractor.features(images, "mean")
    small = F.adaptive_avg_pool2d(images, _COLOURS).flatten(1)
    return F.normalize(values.float(), dim=1).cpu(), F.normalize(small - small.mean(1, keepdim=True), dim=1).cpu()


def _describe(explored: Explored, batches: list[Batch], check: Callable[[], None]) -> tuple[Tensor, Tensor]:
    return describe(explored, batches)


class Indexer:
    """Computes an index in a thread of its own, a few images at a time, and keeps it in the user's cache."""

    def __init__(self, images: Images, worker: Worker, most: int):
        self.images, self.worker, self.most = images, worker, most
        self._indices: dict[str, Index] = {}
        self._lock = threading.Lock()
        self.ended = threading.Event()

    def of(self, explored: Explored) -> Index:
        """The index of an encoder; the first call starts it. Raises ValueError without images."""
        if not len(self.images.gallery):
            raise ValueError(f"there are no images to search: give --data FOLDER. {self.images.gallery.note}")
        with self._lock:
            index = self._indices.get(explored.identity)
            if index is None or index.error:
                index = Index(min(len(self.images.gallery), self.most))
                self._indices[explored.identity] = index
                threading.Thread(target=self._compute, args=(explored, index), daemon=True).start()
            return index

    def _compute(self, explored: Explored, index: Index) -> None:
        try:
            key = self._key(explored)
            if key is not None and (known := _unpacked(cached(_KIND, key))) is not None:
                index.rows, index.colours, index.features = known
                index.done = index.total
                return
            rows, features, colours = self._read(explored, index)
            if not rows:
                raise ValueError("none of the images can be read; see `unveil inspect`")
            index.rows, index.colours, index.features = rows, torch.cat(colours), torch.cat(features)
            if key is not None:
                store(_KIND, key, _packed(index))
        except Exception as error:  # shown on the page, which asks for the progress of this thread
            index.error = str(error) or type(error).__name__

    def _read(self, explored: Explored, index: Index) -> tuple[list[int], list[Tensor], list[Tensor]]:
        rows: list[int] = []
        features, colours = [], []
        chosen = spread(len(self.images.gallery), self.most)
        for start in range(0, len(chosen), _AT_ONCE):
            if self.ended.is_set():
                raise ValueError("the server has ended")
            batches = []
            for row in chosen[start : start + _AT_ONCE]:
                try:
                    batches.append(batch_of(self.images.read(row), explored))
                    rows.append(row)
                except Unreadable:
                    continue
            if batches:
                some = self.worker.run(partial(_describe, explored, batches))
                features.append(some[0])
                colours.append(some[1])
            index.done = min(start + _AT_ONCE, index.total)
        return rows, features, colours

    def _key(self, explored: Explored) -> str | None:
        """What an index depends on; None where files may have changed without a trace."""
        source = self.images.gallery.source
        assert source is not None
        whole, numbers = origin(source)
        if not isinstance(whole, FolderSource):
            return None
        stamps = whole.stamps(np.array([numbers[row] for row in spread(len(source), self.most)]))
        return f"{explored.identity} {names_digest(source)} {stamps.tobytes().hex()}" if stamps.all() else None


def nearest(
    index: Index, features: Float[Tensor, "1 D"], colours: Float[Tensor, "1 C"], count: int, but: str
) -> dict[str, list[tuple[int, float]]]:
    """The nearest rows with their cosine similarities, by features and by colours, without the image itself."""
    assert index.features is not None
    assert index.colours is not None
    near = {}
    for name, all_of, one in (("features", index.features, features), ("colours", index.colours, colours)):
        values, places = (all_of @ one[0]).topk(min(count + 1, len(all_of)))
        pairs = [(index.rows[place], float(value)) for value, place in zip(values, places.tolist(), strict=True)]
        near[name] = [(row, value) for row, value in pairs if f"s:{row}" != but][:count]
    return near


def _packed(index: Index) -> bytes:
    buffer = io.BytesIO()
    assert index.features is not None
    assert index.colours is not None
    np.savez(buffer, rows=np.array(index.rows), features=index.features.numpy(), colours=index.colours.numpy())
    return buffer.getvalue()


def _unpacked(content: bytes | None) -> tuple[list[int], Tensor, Tensor] | None:
    if content is None:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return file["rows"].tolist(), torch.from_numpy(file["colours"]), torch.from_numpy(file["features"])


def label_of(chosen: Chosen) -> str:
    """The name of a sample with its class, where it has one."""
    return f"{chosen.name} ({chosen.label})" if chosen.label else chosen.name
