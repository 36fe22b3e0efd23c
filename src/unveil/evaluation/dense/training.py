"""Training of a head, with the encoder or without, to predict every pixel; and its predictions of whole images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal, cast

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ...data.dense_dataset import DensePair, DenseSet
from ...data.dense_layouts import FolderLayout
from ...data.loader import Loader, collate
from ...data.transforms import Sample
from ...modeling.optim import warmup_cosine
from ...modeling.rng import SampleRng
from ...modeling.types import Batch, Modality
from ...runs.hardware import autocast
from ..datasets import unreadable_facts
from ..finetuning import StochasticDepth, layer_groups
from ..fit import FitCheckpoint, fit
from ..types import Context, Needs, Score
from .data import DenseView, Fit, jittered, places, window_of
from .heads import HeadName, enlarged
from .model import DenseEncoder, DenseModel

DenseLoss = Callable[[Float[Tensor, "B K H W"], Shaped[Tensor, "B 1 H W"], Bool[Tensor, "B 1 H W"]], Float[Tensor, ""]]
Schedule = Literal["auto", "probe", "small", "multimae-ade20k", "multimae-hypersim", "multimae-nyuv2", "mae-ade20k"]
FROM_SCRATCH = " From scratch is the same training of the untrained encoder, without layer decay."
HEAD_WORDS: dict[HeadName, str] = {
    "linear": "A linear layer on each token after a BatchNorm without affine",
    "convnext": "MultiMAE's head of four ConvNeXt blocks",
    "upernet": "UPerNet, with an auxiliary head at a weight of 0.4 while it learns,",
    "dpt": "DPT's head",
}


@dataclass(frozen=True)
class DenseTarget:
    """A map to predict: `outputs` numbers for each pixel, whose `loss` is a sum over valid pixels."""

    modality: Modality
    outputs: int
    loss: DenseLoss


@dataclass(frozen=True)
class DenseTraining:
    """Settings of a dense fine-tuning or probe; `lr` is the peak rate itself, whatever the batch.

    `image_size` is the side of a view, None the encoder's own size. `scales`, `fit` and `jitter` are those of
    `DenseView`.
    """

    epochs: int
    batch_size: int = 16
    lr: float = 1e-4
    warmup_epochs: float = 1
    weight_decay: float = 0.05
    layer_decay: float = 0.75
    drop_path: float = 0.1
    image_size: int | None = None
    scales: tuple[float, float] = (0.5, 2.0)
    fit: Fit = "cover"
    jitter: float = 0.5

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1; got {getattr(self, name)}")
        for name in ("lr", "warmup_epochs", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is at least 0; got {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1 or not 0 <= self.drop_path < 1:
            raise ValueError(
                f"layer_decay is a share above 0 and drop_path one below 1; got {self.layer_decay}, {self.drop_path}"
            )


def fitted(settings: DenseTraining, num_images: int, updates: int, given: Mapping[str, object]) -> DenseTraining:
    """Settings that make about so many updates on a set, in at most their epochs, with what the user gave.

    Where epochs are given, the warm-up keeps its share of them.
    """
    changed = {name: value for name, value in given.items() if value is not None}
    batch_size = min(int(cast("int", changed.get("batch_size", settings.batch_size))), num_images)
    epochs = settings.epochs
    if updates:
        epochs = max(1, min(epochs, round(updates * batch_size / num_images)))
    epochs = int(cast("int", changed.pop("epochs", epochs)))
    warmup = settings.warmup_epochs * epochs / settings.epochs
    return replace(settings, **{**changed, "batch_size": batch_size, "epochs": epochs, "warmup_epochs": warmup})  # type: ignore[arg-type]


@dataclass(frozen=True)
class DenseOptions:
    """The options that dense protocols share.

    head: linear; convnext (MultiMAE's); upernet (as MAE is fine-tuned); dpt
    frozen: train the head only; --no-frozen trains the encoder too
    inputs: the modalities to read, of those that the encoder knows, such as rgb, depth, or both; by default its first
    modalities: declarations of the maps of a folder: .toml files, and rgb, depth, semseg; by default from the layout
    epochs: passes over the training images
    batch_size: images of one update
    lr: peak learning rate, whatever the batch size
    image_size: side of the training views and of the test windows
    """

    needs: ClassVar[Needs] = "dense"

    head: HeadName = "linear"
    frozen: bool = True
    inputs: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    layout: FolderLayout = "auto"
    schedule: Schedule = "auto"
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    image_size: int | None = None

    def training(
        self, schedules: Mapping[str, tuple[DenseTraining, int]], num_images: int
    ) -> tuple[str, DenseTraining]:
        """The name of the schedule and its settings.

        `schedules` holds settings and the number of updates at most, 0 for any. Raises ValueError for an unknown one.
        """
        name = ("probe" if self.frozen else "small") if self.schedule == "auto" else self.schedule
        if name not in schedules:
            raise ValueError(f"there is no schedule {name!r} for this protocol; there are {', '.join(schedules)}")
        given = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr, "image_size": self.image_size}
        return name, fitted(schedules[name][0], num_images, schedules[name][1], given)


class DenseTrainer:
    """A dense model in training: updates of whole batches, cut into micro-batches.

    Heads with BatchNorm see the statistics of a micro-batch.
    """

    def __init__(
        self,
        encoder: DenseEncoder,
        sets: DensePair,
        inputs: Sequence[Modality],
        target: DenseTarget,
        head: HeadName,
        frozen: bool,
        settings: DenseTraining,
        context: Context,
    ):
        self.sets, self.settings, self.context, self.seed = sets, settings, context, context.seed
        self.head, self.is_frozen = head, frozen
        self.target, self.inputs, self.device = target, tuple(inputs), encoder.device
        side = settings.image_size
        size = (side, side) if side else encoder.image_size
        self.view = DenseView(size, settings.scales, settings.fit, settings.jitter)
        self.model = DenseModel(encoder, inputs, head, target.outputs, frozen, self.seed).train()
        decay = settings.layer_decay if context.is_trained else 1.0
        self.groups = layer_groups(self.model, self.model.encoder, decay, settings.weight_decay)
        self.optimizer = torch.optim.AdamW(self.groups, lr=0.0, fused=True)
        self.depth = StochasticDepth(self.model.encoder.branches(), 0.0 if frozen else settings.drop_path)
        self.micro_batch = min(context.micro_batch, settings.batch_size)
        self.unreadable: dict[str, str] = {}
        loss = getattr(target.loss, "__name__", repr(target.loss))
        key: dict[str, object] = {"learns": [target.modality.name, target.outputs, loss], "settings": asdict(settings)}
        key |= {"weights": context.cache.checksum(encoder), "images": [sets.train.identity, sets.test.identity]}
        key |= {"head": head, "frozen": frozen, "inputs": [m.name for m in inputs], "view": size, "seed": self.seed}
        key |= {"micro_batch": context.micro_batch, "on": self.device.type, "subject": context.subject}
        if size != tuple(encoder.image_size):
            key["positions"] = encoder.resize_positions
        self.checkpoint = FitCheckpoint(context.cache.checkpoint(key), context.note)

    def train(self) -> None:
        """All epochs. Raises ValueError when it diverges."""
        settings, loader = self.settings, self._loader(self.sets.train)
        loader.unreadable = self.checkpoint.unreadable
        name, size = f"training {self.context.subject}", loader.batch_size
        fit(
            self.model,
            self.losses,
            self.optimizer,
            loader.batches,
            lambda epoch: settings.lr * warmup_cosine(epoch, settings.epochs, settings.warmup_epochs),
            epochs=settings.epochs,
            steps_per_epoch=loader.steps_per_epoch,
            name=name,
            advice=f"give a lower --lr than {settings.lr:g}",
            checkpoint=self.checkpoint,
            progress=lambda step, steps: self.context.progress(name, step * size, steps * size),
        )
        self.unreadable |= loader.unreadable

    def _loader(self, samples: DenseSet) -> Loader:
        modalities = (*self.inputs, self.target.modality)
        return Loader(
            samples.select([m.name for m in modalities]),
            self.view,
            self.settings.batch_size,
            self.seed,
            max_broken=None,
            modality=modalities,
        )

    def losses(self, batch: Batch) -> Iterator[Float[Tensor, ""]]:
        """The loss of each micro-batch, divided by the number of valid pixels of the batch."""
        name = self.target.modality.name
        batch = jittered(batch.on(self.device), self.settings.jitter)
        count = batch.valid[name].sum().clamp_min(1)
        for start in range(0, len(batch), self.micro_batch):
            micro = batch[start : start + self.micro_batch]
            self.depth.draw(SampleRng(micro.key))
            with autocast(self.device):
                predictions = self.model.predictions(micro)
            losses = [
                w * self.target.loss(prediction, micro.maps[name], micro.valid[name]) for w, prediction in predictions
            ]
            yield torch.stack(losses).sum() / count

    def predictions(self) -> Iterator[tuple[Float[Tensor, "K H W"], Sample]]:
        """For each test sample the prediction at the size of its label, averaged over windows, and the sample."""
        self.model.eval()
        loader, done = self._loader(self.sets.test), 0
        with closing(loader.whole_samples()) as chunks:
            for samples in chunks:
                for sample, prediction in zip(samples, self._predicted(samples), strict=True):
                    yield prediction, sample
                done += len(samples)
                self.context.progress(f"testing {self.context.subject}", done, len(self.sets.test))
        self.unreadable |= loader.unreadable

    @torch.no_grad()
    def _predicted(self, samples: Sequence[Sample]) -> list[Float[Tensor, "K H W"]]:
        """Windows of all these samples go through the model together."""
        wholes = [self.view.whole(sample, self.inputs) for sample in samples]
        sizes = [(max(made[0], self.view.image_size[0]), max(made[1], self.view.image_size[1])) for _, made in wholes]
        corners = [places(size, self.view.image_size) for size in sizes]
        cut = [
            window_of(whole, corner, self.view.image_size, self.inputs)
            for (whole, _), own in zip(wholes, corners, strict=True)
            for corner in own
        ]
        outputs = []
        for start in range(0, len(cut), self.micro_batch):
            windows = cut[start : start + self.micro_batch]
            keys = torch.zeros(len(windows), dtype=torch.int64)
            batch = collate(windows, keys, self.inputs, self.view.image_size).on(self.device)
            with autocast(self.device):
                outputs += list(self.model(batch).cpu())
        predictions = []
        for sample, (_, made), size, own in zip(samples, wholes, sizes, corners, strict=True):
            total, count = torch.zeros(self.target.outputs, *size), torch.zeros(size)
            for top, left in own:
                rows, columns = slice(top, top + self.view.image_size[0]), slice(left, left + self.view.image_size[1])
                total[:, rows, columns] += outputs.pop(0)
                count[rows, columns] += 1
            mean = (total / count)[:, : made[0], : made[1]]
            predictions.append(enlarged(mean[None], sample.size)[0])
        return predictions

    def score(
        self,
        schedule: str,
        metrics: dict[str, float],
        settings: Mapping[str, object],
        notes: tuple[str, str],
        baselines: Mapping[str, dict[str, float]],
        details: Mapping[str, dict[str, float]] | None = None,
    ) -> Score:
        """The score of a protocol: `notes` are its sentences on the training and on the metrics, for the card."""
        held = " No test set was given: the last fifth of the images is held out." if self.sets.is_held_out else ""
        return Score(
            metrics=metrics,
            settings={
                "head": self.head,
                "frozen": self.is_frozen,
                "inputs": [m.name for m in self.inputs],
                "schedule": schedule,
                **asdict(self.settings),
                "image_size": list(self.view.image_size),
                "micro_batch": self.micro_batch,
                "optimizer": "AdamW(betas=(0.9, 0.999))",
                "train_images": len(self.sets.train),
                "test_images": len(self.sets.test),
                **unreadable_facts(tuple(self.unreadable)),
                **settings,
            },
            card=(
                f"{self._training_summary(schedule)}{notes[0]} Judged after the last epoch, not the best one, at the"
                " truth's own size, on windows that overlap by a third, whose answers are"
                f" averaged.{'' if self.is_frozen else FROM_SCRATCH}{held}{notes[1]}"
            ),
            trains_encoder=not self.is_frozen,
            baselines=baselines,
            details=details or {},
        )

    def _training_summary(self, schedule: str) -> str:
        settings, (height, width), (low, high) = self.settings, self.view.image_size, self.settings.scales
        by_layer = f"the encoder learns too, its rates by layer decay {settings.layer_decay:g}"
        fit = "cover the image" if settings.fit == "cover" else "hold the whole image, padded"
        scale = f"{low:g} times" if low == high else f"{low:g} to {high:g} times"
        jitter = f", brightness, contrast and saturation changed in {settings.jitter:.0%} of them"
        return (
            f"{HEAD_WORDS[self.head]} reads {' and '.join(m.name for m in self.inputs)}, as tokens before any final"
            f" norm; {'the encoder is frozen' if self.is_frozen else by_layer}. AdamW at a rate of {settings.lr:g},"
            f" {settings.epochs} epoch{'s' * (settings.epochs > 1)} in batches of {settings.batch_size} (schedule"
            f" {schedule}), {settings.warmup_epochs:g} of warm-up, then a cosine. Views of {height} x {width} pixels"
            f" at {scale} the scale at which they {fit}; one box and flip for all"
            f" maps{jitter if settings.jitter else ''}."
        )
