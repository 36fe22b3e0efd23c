"""The videos of an evaluation: opened once for the encoder and its baselines."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from ...data.video_folders import VideoSet, files_digest, open_videos


@dataclass(frozen=True)
class VideoData:
    """Where videos with masks are; a protocol opens them, since its options name the list."""

    address: str
    limit: int | None = None  # of videos
    test_address: str | None = None
    opened: dict[str | None, VideoSet] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def identity(self) -> object:
        """What the scores of an interrupted evaluation are kept by."""
        return ["videos", self.address, self.limit, files_digest(self.address)]

    def open(self, split: str | None) -> VideoSet:
        """The videos of a list, or of the one that the layout has. Raises as `open_videos`."""
        if split not in self.opened:
            self.opened[split] = open_videos(self.address, split).limited(self.limit)
        return self.opened[split]
