"""How encoders could give images of another size than they were trained on their positions, and the choice of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

from .image_encoder import FeatureExtractor, ImageEncoder
from .layers import ResizePositions
from .position_table import PositionTable
from .public_vits import PublicViT


def position_choices(encoder: FeatureExtractor) -> tuple[ResizePositions, ...]:
    """The ways that an encoder has; none where positions are rotations, which have any size.

    Waves can be extrapolated, also those in a table, as MAE's files hold; what was learned can only be interpolated.
    """
    if isinstance(encoder, ImageEncoder) and isinstance(encoder.encoder.positions, PositionTable):
        return ("interpolate",)
    if not isinstance(encoder, PublicViT):
        return get_args(ResizePositions)
    if encoder.config.positions == "rotary":
        return ()
    return get_args(ResizePositions) if encoder.vit.has_waves() else ("interpolate",)


@contextmanager
def positions_resized(encoder: FeatureExtractor, how: ResizePositions) -> Iterator[None]:
    """Within, images of another size get their positions in this way, one of `position_choices`."""
    before = encoder.resize_positions
    _resize_by(encoder, how)
    try:
        yield
    finally:
        _resize_by(encoder, before)


def _resize_by(encoder: FeatureExtractor, how: ResizePositions) -> None:
    if isinstance(encoder, ImageEncoder):
        encoder.encoder.positions.resize = how
    elif isinstance(encoder, PublicViT):
        encoder.vit.resize_positions = how
        if encoder.config.positions == "sincos":
            encoder.vit.waves.resize = how
