"""The data of detection: where images with boxes are, opened once for all subjects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ...data.detection.annotations import DetectionPair, DetectionSet
from ...data.detection.layouts import BoxLayout, open_detection


@dataclass(frozen=True)
class DetectionData:
    """Where images with boxes are; a protocol opens them, since its options say how they are stored."""

    address: str
    test_address: str | None = None
    check_test: Callable[[DetectionSet], None] = lambda test: None  # called with the test images
    opened: dict[BoxLayout, DetectionPair] = field(default_factory=dict, compare=False, repr=False)

    def open(self, layout: BoxLayout, limit: int | None, note: Callable[[str], None]) -> DetectionPair:
        """The two sets, of at most `limit` images each; what was wrong with their annotations is told to `note`.

        Raises ValueError and FileNotFoundError as `open_detection` does.
        """
        if layout not in self.opened:
            pair = open_detection(self.address, self.test_address, layout)
            self.check_test(pair.test)
            for one in {own.address: own for own in (pair.train, pair.test)}.values():
                if one.counts or one.missing:
                    facts = [f"{count:,} {what}" for what, count in one.counts.items()]
                    if one.missing:
                        facts.append(f"{len(one.missing):,} images missing or unreadable, e.g. {one.missing[0]}")
                    note(f"{one.address}: {', '.join(facts)}")
            self.opened[layout] = pair
        return self.opened[layout].limited(limit)
