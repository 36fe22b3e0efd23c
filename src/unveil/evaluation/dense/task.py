"""What a dense protocol is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..cache import Kept
from ..features import FeatureEncoder
from ..task import Tell, silent, unnoted


@dataclass(frozen=True)
class DenseTask:
    """How well an encoder serves to tell something of every pixel of the images at an address.

    The protocol opens the data itself: what is in them is for its dials to say. `is_trained` is false of the baseline
    that starts from scratch. `limit` caps the images of each set, `kept` spares what a stopped evaluation has done.
    """

    encoder: FeatureEncoder
    data: str
    test_data: str | None = None
    micro_batch: int = 16
    limit: int | None = None
    who: str = "this run"
    is_trained: bool = True
    tell: Tell = silent
    note: Callable[[str], None] = unnoted
    kept: Kept = field(default_factory=Kept)
