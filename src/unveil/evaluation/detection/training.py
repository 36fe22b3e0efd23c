"""Training of a detector, with its encoder or without, and its predictions on whole images."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from ...data.detection.annotations import DetectionPair, DetectionSet
from ...data.loader import Loader
from ...data.sources import Subset
from ...data.transforms import Sample
from ...modeling.rng import SampleRng
from ...modeling.types import Batch, Modality, to_float
from ..finetuning import EncoderTraining
from ..kept_heads import KeptHead
from ..processes import gathered, mine, rank_and_size, shares
from ..types import Context
from .average_precision import Found
from .model import Detector, WindowedEncoder, whole_blocks
from .presets import DetectionTraining
from .views import DetectionView, rows_of, truth_of
from .whole_images import detect_whole

Numbered = tuple[Batch, Int[Tensor, " B"]]


class DetectionTrainer(EncoderTraining[Numbered]):
    """A detector in training, and its predictions; several processes share each batch."""

    verb = "training"
    is_shared = True
    model: Detector
    settings: DetectionTraining

    def __init__(
        self,
        encoder: WindowedEncoder,
        sets: DetectionPair,
        settings: DetectionTraining,
        frozen: bool,
        positions: str | None,
        relative: bool,
        context: Context,
    ):
        side = settings.image_size or max(encoder.image_size)
        if side % (2 * encoder.patch):
            near = max(1, round(side / 2 / encoder.patch)) * 2 * encoder.patch
            raise ValueError(
                f"an image size is a multiple of two patches, {2 * encoder.patch} pixels; got {side}, near is {near}"
            )
        self.view = DetectionView((side, side), settings.scales)
        self.channels = encoder.channels
        self.modality = Modality("rgb", encoder.channels, *encoder.statistics)
        self.sets, self.has_masks = sets, sets.has_masks
        self.micro_batch = shares(settings.batch_size, context.micro_batch)
        self.unreadable: dict[str, str] = {}
        grid = side // encoder.patch, side // encoder.patch
        whole = whole_blocks(encoder.depth)
        trunk = encoder.windowed(settings.window, whole, positions, grid if relative else None)
        key: dict[str, object] = {"learns": "boxes", "settings": settings.facts, "frozen": frozen, "view": side}
        key |= {"images": [sets.train.identity, sets.test.identity], "positions": positions, "relative": relative}
        model = Detector(trunk, settings.heads, len(sets.train.classes), self.has_masks, context.seed, frozen)
        super().__init__(model, encoder, settings, context, key)

    def train(self) -> None:
        loader = self._loader(self.sets.train)
        steps = loader.steps_per_epoch

        def batches(epoch: int) -> Generator[Numbered]:
            with closing(loader.numbered(epoch)) as numbered:
                yield from numbered

        self.run_epochs(loader, batches, lambda epoch: self.settings.rate(epoch, steps), self.settings.ema)
        self.unreadable |= loader.unreadable

    def losses(self, batch: Numbered) -> Iterator[Float[Tensor, ""]]:
        """The loss of each micro-batch of this process, divided by the size of the batch."""
        views, rows = batch
        for micro, own in mine(list(zip(views.split(self.micro_batch), rows.split(self.micro_batch), strict=True))):
            objects = rows_of(own, self.sets.train.objects)
            windows = self.view.windows([self.sets.train.sizes[row] for row in own.tolist()], micro.key)
            truths = [
                truth_of(one, window, self.has_masks, self.device) for one, window in zip(objects, windows, strict=True)
            ]
            micro = micro.on(self.device)
            self.depth.draw(SampleRng(micro.key))
            with self.context.autocast(self.device):
                losses = self.model.losses(to_float(micro.maps["rgb"]), truths, micro.key)
            yield losses.sum() / len(views)

    def _loader(self, images: DetectionSet | Subset) -> Loader:
        source: Any = images.with_channels(self.channels) if isinstance(images, DetectionSet) else images
        size = self.settings.batch_size
        return Loader(source, self.view, size, self.seed, max_broken=None, modality=(self.modality,))

    def predictions(self) -> dict[int, Found]:
        """What is found in each readable test image, by its number; several processes share the images."""
        self.model.eval()
        rank, size = rank_and_size()
        test = self.sets.test.with_channels(self.channels)
        numbers = list(range(len(test)))[rank::size]
        numbers = numbers or [0]  # a process without an image of its own repeats the first
        own = test.only(numbers)
        loader = self._loader(own)
        found: dict[int, Found] = {}
        done = 0
        broken: set[str] = set()
        with closing(loader.whole_samples()) as chunks:
            for samples in chunks:
                broken |= loader.unreadable.keys()
                readable = [n for n in numbers if test.files[n] not in broken and n not in found]
                for start in range(0, len(samples), self.micro_batch):
                    some = samples[start : start + self.micro_batch]
                    found |= zip(readable[start : start + len(some)], self._detected(some), strict=True)
                done += len(samples)
                self.context.progress(f"testing {self.context.subject}", done, len(numbers))
        self.unreadable |= gathered(loader.unreadable)
        return gathered(found)

    def _detected(self, samples: Sequence[Sample]) -> list[Found]:
        return detect_whole(self.model, samples, self.view, self.modality, self.context.autocast(self.device))

    def head(self, positions: str | None, relative: bool, frozen: bool) -> KeptHead:
        """The trained detector, with its encoder where that has learned."""
        tensors = {n: t for n, t in self.model.state_dict().items() if not (frozen and n.startswith("encoder."))}
        own: dict[str, Any] = {"heads": asdict(self.settings.heads), "window": self.settings.window}
        own |= {"positions": positions, "relative": relative, "side": self.view.image_size[0]}
        own["masks"], classes = self.has_masks, tuple(self.sets.train.classes)
        return KeptHead("boxes", "detect", own, tensors, not frozen, classes)
