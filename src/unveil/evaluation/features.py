"""Frozen features: one vector per image of a source, their rank and deviation, and the baseline of raw pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..data.kept_views import KeptViews
from ..data.loader import Loader, ViewPolicy
from ..data.sources import Source, Subset, spread
from ..data.transforms import CenterView
from ..modeling.normalizer import Normalizer
from ..modeling.types import Modality, Pool
from ..runs.console import log
from ..runs.run_config import Precision
from ..runs.team import team
from .encoding import Encoding
from .shares import Share, collect, in_order, send_share
from .types import FeatureEncoder


@dataclass(frozen=True)
class ImageFeatures:
    """One vector per readable image, with its label (where the source has labels) and its name."""

    values: Float[Tensor, "N D"]
    labels: Int[Tensor, " N"] | None
    names: tuple[str, ...]
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)


def extract(
    encoder: FeatureEncoder,
    source: Source,
    pool: Pool,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
    limit: int | None = None,
    dtype: torch.dtype = torch.float32,
    inputs: Sequence[str] = (),
    precision: Precision = "auto",
    views: KeptViews | None = None,
    threads: int = 0,
    note: Callable[[str], None] = log,
    view: ViewPolicy | None = None,
    seed: int = 0,
) -> ImageFeatures:
    """The features of a source's images, in the source's order.

    Threads decode a few batches ahead of the model; memory holds those and the features. `limit` takes that many
    images, evenly spaced over the source. `progress` is called with (done, total) after every batch. Images that cannot
    be read are left out and named in `unreadable`. Of aligned maps, an encoder that reads several has the features of
    all `inputs` together. Raises ValueError when nothing can be read, when the encoder and the images differ in
    channels, when a sample lacks an input, and when a feature is not finite.

    The model computes in `precision`, with `threads` at most where their number follows the load of the CPU, and is
    compiled where that pays, which `note` is told. Views are taken from `views`, or kept there for the next encoder.
    They are centre views, or as `view` draws them from `seed`. Rank zero of several processes gives each its share of
    the batches.
    """
    reads = [m for m in getattr(encoder, "modalities", ()) if m.name in inputs]
    if not reads:
        check_channels(encoder, source)
    images = source if limit is None or limit >= len(source) else Subset(source, spread(len(source), limit))
    view = view or CenterView(encoder.image_size)
    job = _Extraction(encoder, pool, batch_size, dtype, tuple(reads), precision, threads, view, seed, views is not None)
    led = team()
    others = led if led is not None and len(images) > batch_size and led.send(job, images) else None
    loader = job.loader(images, (0, others.size if others else 1))
    own = job.run(loader, views, progress, note)
    shares = collect(others, own) if others else [own]
    if own.error is not None:
        raise ValueError(own.error)
    rows = sorted(row for share in shares for row in share.rows)
    unreadable = {name: reason for share in shares for name, reason in share.unreadable.items()}
    loader.unreadable = unreadable
    loader.check_any()
    values = in_order(shares)
    assert values is not None
    if not values.isfinite().all():
        raise ValueError("the encoder gives features that are not finite; its weights are broken or diverged")
    labels = None if images.labels is None else torch.tensor(images.labels, dtype=torch.int64)[rows]
    return ImageFeatures(values, labels, tuple(images.name(i) for i in rows), tuple(unreadable))


@cache
def _views() -> KeptViews:
    """What a process that is not rank zero keeps of sources that it reads again."""
    return KeptViews()


@dataclass(frozen=True)
class _Extraction:
    """How features are made of a source: what every process needs to know of it."""

    encoder: FeatureEncoder
    pool: Pool
    batch_size: int
    dtype: torch.dtype
    reads: tuple[Modality, ...]
    precision: Precision
    threads: int
    view: ViewPolicy
    seed: int
    keeps_views: bool

    def loader(self, images: Source, shard: tuple[int, int]) -> Loader:
        maps: Sequence[Modality] | str = self.reads or "rgb"
        more: dict[str, Any] = {"max_broken": None, "cache_bytes": 0, "modality": maps, "shard": shard}
        return Loader(images, self.view, self.batch_size, self.seed, **more)

    def run(
        self,
        loader: Loader,
        views: KeptViews | None,
        progress: Callable[[int, int], None] | None,
        note: Callable[[str], None],
    ) -> Share:
        """The features of a loader's share of its source; where several processes do theirs, without raising."""
        total, size = len(loader.source), loader.num_shards
        most = min(total, -(-total // size) + loader.batch_size)  # of a share
        encoding = Encoding(self.encoder, self.pool, bool(self.reads), self.precision, self.threads, note)
        values: Tensor | None = None
        rows: list[int] = []
        try:
            with closing(views.in_order(loader) if views else loader.in_order()) as batches:
                for batch, numbers in batches:
                    features = encoding.features(batch, max(len(batch), most - len(rows))).to(self.dtype)
                    if values is None:
                        values = torch.empty(most, features.shape[1], dtype=self.dtype)
                    values[len(rows) : len(rows) + len(features)] = features
                    rows += numbers.tolist()
                    if progress is not None:
                        progress(min(total, size * (len(rows) + len(loader.unreadable))), total)
        except (ValueError, OSError) as error:
            if size == 1:
                raise
            return Share(error=str(error))  # which rank zero raises, once no process waits for this one
        return Share(rows, None if values is None else values[: len(rows)], dict(loader.unreadable))

    def serve(self, images: Source) -> None:
        """Send rank zero the share of this process, which logs nothing, on its own device."""
        own: Any = self.encoder
        if isinstance(own, RawPixels):
            own = replace(own, device=torch.device(own.device.type))
        loader = self.loader(images, (dist.get_rank(), dist.get_world_size()))
        views = _views() if self.keeps_views else None
        send_share(replace(self, encoder=own).run(loader, views, None, lambda text: None))


def check_channels(encoder: FeatureEncoder, source: Source) -> None:
    """Raise ValueError when the source's images are not of the encoder's kind."""
    if source.channels != encoder.channels:
        raise ValueError(
            f"{source.address} has images of {source.channels} channels, the encoder reads {encoder.channels};"
            " evaluate on images of the kind it was trained on"
        )


def rankme(features: Float[Tensor, "N D"]) -> float:
    """The smooth rank of a set of features, in 1 .. min(N, D): exp of the entropy of its normalised singular values.

    RankMe (Garrido et al., 2023). Features are not centred, as published.
    """
    x = features.detach().double()
    gram = x.T @ x if len(x) > x.shape[1] else x @ x.T  # its eigenvalues are the squares, and it is the cheaper of two
    sizes = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = sizes / sizes.sum().clamp_min(torch.finfo(sizes.dtype).tiny) + 1e-7
    return float((-(shares * shares.log()).sum()).exp())


def feature_std(features: Float[Tensor, "N D"]) -> float:
    """How much features of length 1 vary: 1 when they fill every direction alike, 0 when all are the same.

    The mean over dimensions of the standard deviation over samples, times sqrt(D).
    """
    x = F.normalize(features.detach().double(), dim=1)
    return float(x.std(0, correction=0).mean() * x.shape[1] ** 0.5)


LONGEST_SIDE = 32  # 3 x 32 x 32 = 3072 numbers an image; at 224 pixels it would be 150,528


@dataclass(frozen=True)
class RawPixels:
    """The image itself as its feature: normalised per channel and flattened, its longer side at most 32 pixels.

    `patch` is that of the encoder beside which it is measured; 0 where that has no tokens.
    """

    modality: Modality
    encoder_size: tuple[int, int]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    patch: int = 0
    normalizer: Normalizer | None = None

    @property
    def channels(self) -> int:
        return self.modality.channels

    @property
    def image_size(self) -> tuple[int, int]:
        longest = max(*self.encoder_size, LONGEST_SIDE)
        height, width = (max(1, side * LONGEST_SIDE // longest) for side in self.encoder_size)
        return height, width

    def features(self, images: Float[Tensor, "B C H W"], pool: Pool) -> Float[Tensor, "B D"]:
        """Flattened normalised pixels, whatever the pool; 0, the mean, where there is no truth."""
        mean, std = (images.new_tensor(s)[:, None, None] for s in (self.modality.mean, self.modality.std))
        pixels = ((images - mean) / std).nan_to_num(0.0).flatten(1)
        return pixels if self.normalizer is None else self.normalizer(pixels)
