"""How fast a training step is and what memory it takes, as ratios between contenders of one run."""

from .command import bench as bench
