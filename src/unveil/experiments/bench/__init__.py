"""How fast a training step is and what memory it takes, as ratios between contenders of one run."""

from __future__ import annotations

from .command import bench

__all__ = ["bench"]
