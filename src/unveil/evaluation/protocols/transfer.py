"""Transfer: the same protocol on several data sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import ClassVar

from ..datasets import ImageSplit, open_sets
from ..registry import Classification, Repeated
from ..run import run_cached
from ..types import Context, FeatureEncoder, Needs, Score


@dataclass(frozen=True)
class Transfer(Repeated):
    """Accuracy on further data sets, each learned by itself, and their mean.

    to: further labelled images, as --data takes them; a folder may hold train and val
    """

    needs: ClassVar[Needs] = "images"

    to: tuple[str, ...] = ()
    by: Classification = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.to:
            raise ValueError("transfer needs data sets to go to: give --to FOLDER ..., beside --data")

    def run(self, subject: FeatureEncoder, data: ImageSplit, context: Context) -> Score | None:
        """Accuracies on the further sets; None where the protocol cannot measure the encoder."""
        protocol = self.repeated()
        splits = {_name(address, self.to): _open(address, subject, context.seed) for address in self.to}
        metrics: dict[str, float] = {}
        settings: dict[str, object] = {}
        parts: dict[str, object] = {}
        score: Score | None = None
        for name, split in splits.items():
            own = replace(context, subject=f"{context.subject} on {name}")
            given = split.features(subject, own).to(subject.device) if protocol.needs == "features" else split
            score = run_cached(self.by, protocol, subject, given, own)
            if score is None:
                return None
            metrics[f"accuracy_{name}"] = score.metrics["accuracy"]
            if "classes" in score.shown:
                parts[name] = {"classes": {**score.shown["classes"], "names": list(split.class_names)}}
            settings[name] = {"train_images": len(split.train), "test_images": len(split.test), **score.settings}
        assert score is not None
        return Score(
            metrics={**metrics, "accuracy_mean": fmean(metrics.values())},
            settings={"by": self.by, "sets": settings},
            card=f"{self.by} on each of {', '.join(splits)}, and the mean of their accuracies. On {name}: {score.card}",
            trains_encoder=score.trains_encoder,
            shown={"parts": parts} if parts else {},
        )


def _open(address: str, encoder: FeatureEncoder, seed: int) -> ImageSplit:
    split = ImageSplit.of(*open_sets(address, None, encoder.channels), seed=seed)
    split.check_channels(encoder)
    return split


def _name(address: str, addresses: tuple[str, ...]) -> str:
    """The last part of an address that no other has; else the address itself."""
    stems = [Path(other).stem for other in addresses]
    stem = Path(address).stem
    return stem if stems.count(stem) == 1 else address
