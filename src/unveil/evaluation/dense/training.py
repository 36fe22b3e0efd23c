"""Training of a head, with the encoder or without, to predict every pixel; and its predictions of whole images."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ...data.dense_dataset import DensePair, DenseSet
from ...data.dense_layouts import FolderLayout, StorageOptions
from ...data.loader import Loader
from ...data.modality_config import declare
from ...data.transforms import Sample
from ...modeling.rng import SampleRng
from ...modeling.types import Batch, Modality
from ..datasets import unreadable_facts
from ..finetuning import EncoderTraining
from ..kept_heads import KeptHead, Task
from ..types import Context, FeatureEncoder, Needs, Score
from .data import DenseData, DenseView, Fit, distorted, jittered
from .heads import HeadName
from .model import DenseEncoder, DenseModel, check_dense
from .presets import DensePreset, DenseTraining, PresetName, fitted
from .windows import predict_windows

DenseLoss = Callable[[Float[Tensor, "B K H W"], Shaped[Tensor, "B 1 H W"], Bool[Tensor, "B 1 H W"]], Float[Tensor, ""]]
FROM_SCRATCH = " From scratch is the same training of the untrained encoder, without layer decay."
HEAD_WORDS: dict[HeadName, str] = {
    "linear": "A linear layer on each token after a BatchNorm without affine",
    "convnext": "MultiMAE's head of four ConvNeXt blocks",
    "upernet": "UPerNet, with an auxiliary head at a weight of 0.4 while it learns,",
    "dpt": "DPT's head",
}

FIT_WORDS: dict[Fit, str] = {
    "cover": "cover the image",
    "inside": "hold the whole image, padded",
    "bounded": "cover the image, or its longer side is four times theirs",
}


@dataclass(frozen=True)
class DenseTarget:
    """A map to predict: `outputs` numbers for each pixel, whose `loss` is a sum over valid pixels."""

    modality: Modality
    outputs: int
    loss: DenseLoss


@dataclass(frozen=True)
class DenseOptions:
    """The options that dense protocols share.

    head: linear; convnext (MultiMAE's); upernet (as MAE is fine-tuned); dpt; auto is that of the preset
    frozen: train the head only; --no-frozen trains the encoder too; by default as the preset does
    inputs: the modalities to read, of those that the encoder knows, such as rgb, depth, or both; by default its first
    modalities: declarations of the maps of a folder: .toml files, and rgb, depth, semseg; by default from the layout
    epochs: passes over the training images
    batch_size: images of one update
    lr: peak learning rate, whatever the batch size
    image_size: side of the training views and of the test windows
    schedule: an older name of preset
    """

    needs: ClassVar[Needs] = "dense"
    keeps_head: ClassVar[bool] = True

    head: Literal["linear", "convnext", "upernet", "dpt", "auto"] = "auto"
    frozen: bool | None = None
    inputs: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    layout: FolderLayout = "auto"
    preset: PresetName = "auto"
    schedule: PresetName = "auto"
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        replace(DenseTraining(1), **self._given)  # raises its errors before images are read

    @property
    def _given(self) -> dict[str, Any]:
        """The settings of the training that the user gave."""
        names = ("epochs", "batch_size", "lr", "image_size")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def opened(
        self, subject: FeatureEncoder, data: DenseData, context: Context, target: str, **stored: Any
    ) -> Opened | None:
        """The encoder and the data, with options of `StorageOptions`; None for an encoder without tokens."""
        encoder = check_dense(subject)
        if encoder is None:
            return None
        storage = StorageOptions(self.layout, declared=declare(self.modalities), **stored)
        sets, inputs = data.open(encoder, storage, self.inputs, target, context.limit)
        return Opened(encoder, sets, tuple(inputs))

    def trained(
        self, opened: Opened, target: DenseTarget, presets: Mapping[str, DensePreset], context: Context
    ) -> DenseTrainer:
        """A trainer after its last epoch. Raises ValueError where it diverges."""
        preset = self.chosen(presets, len(opened.sets.train))
        trainer = DenseTrainer(opened.encoder, opened.sets, opened.inputs, target, preset, context)
        trainer.train()
        return trainer

    def chosen(self, presets: Mapping[str, DensePreset], num_images: int) -> DensePreset:
        """The preset with what the user gave, for so many images. Raises ValueError for one that is not there."""
        name = self.schedule if self.preset == "auto" else self.preset
        if name == "auto":
            name = "small" if self.frozen is False else "probe"
        if name not in presets or self.schedule not in ("auto", name):
            both = f" and --schedule {self.schedule}" if self.schedule not in ("auto", name) else ""
            raise ValueError(f"there is no preset {name!r}{both} for this protocol; there are {', '.join(presets)}")
        preset = presets[name]
        return replace(
            preset,
            name=name,
            training=fitted(preset.training, num_images, preset.most_updates, self._given),
            head=preset.head if self.head == "auto" else self.head,
            frozen=preset.frozen if self.frozen is None else self.frozen,
        )


class Opened(NamedTuple):
    """An encoder, the sets that a head on it is trained and tested on, and the modalities that it reads of them."""

    encoder: DenseEncoder
    sets: DensePair
    inputs: tuple[Modality, ...]


class DenseTrainer(EncoderTraining[Batch]):
    """A dense model in training, and its predictions. Heads with BatchNorm see the statistics of a micro-batch."""

    verb = "training"
    model: DenseModel
    settings: DenseTraining

    def __init__(
        self,
        encoder: DenseEncoder,
        sets: DensePair,
        inputs: Sequence[Modality],
        target: DenseTarget,
        preset: DensePreset,
        context: Context,
    ):
        settings, head, frozen = preset.training, preset.head, preset.frozen
        self.sets, self.preset, self.target, self.inputs = sets, preset, target, tuple(inputs)
        side = settings.image_size
        size = (side, side) if side else encoder.image_size
        self.view = DenseView(size, settings.scales, settings.fit, settings.class_share)
        self.micro_batch = min(context.micro_batch, settings.batch_size)
        self.unreadable: dict[str, str] = {}
        loss = getattr(target.loss, "__name__", repr(target.loss))
        key: dict[str, object] = {"learns": [target.modality.name, target.outputs, loss], "settings": settings.facts}
        key |= {"images": [sets.train.identity, sets.test.identity], "head": head, "frozen": frozen}
        key |= {"inputs": [m.name for m in inputs], "view": size, "micro_batch": context.micro_batch}
        if size != tuple(encoder.image_size):
            key["positions"] = encoder.resize_positions
        model = DenseModel(
            encoder, inputs, head, target.outputs, frozen, context.seed, settings.blocks, settings.dropout
        )
        super().__init__(model, encoder, settings, context, key)

    def train(self) -> None:
        settings, loader = self.settings, self._loader(self.sets.train)
        steps_per_epoch = loader.steps_per_epoch

        def batches(epoch: int) -> Generator[Batch]:
            left = None if settings.updates is None else max(0, settings.updates - epoch * steps_per_epoch)
            with closing(loader.batches(epoch)) as stream:
                yield from islice(stream, left)

        self.run_epochs(loader, batches, lambda epoch: settings.rate(epoch, steps_per_epoch))
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
        batch = distorted(jittered(batch.on(self.device), self.settings.jitter), self.settings.distortion)
        count = batch.valid[name].sum().clamp_min(1)
        for micro in batch.split(self.micro_batch):
            self.depth.draw(SampleRng(micro.key))
            with self.context.autocast(self.device):
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

    def _predicted(self, samples: Sequence[Sample]) -> list[Float[Tensor, "K H W"]]:
        autocast = self.context.autocast(self.device)
        return predict_windows(self.model, samples, self.view, self.inputs, self.micro_batch, autocast)

    def head(self, task: Task, classes: tuple[str, ...] = (), **settings: Any) -> KeptHead:
        """The trained head, and the encoder where it has learned; `settings` are those of its task."""
        is_frozen = self.preset.frozen
        tensors = {n: t for n, t in self.model.state_dict().items() if not (is_frozen and n.startswith("encoder."))}
        own: dict[str, Any] = {
            "head": self.preset.head,
            "inputs": [m.name for m in self.inputs],
            "blocks": self.settings.blocks,
        }
        own |= {"outputs": self.target.outputs, "image_size": list(self.view.image_size), "fit": self.view.fit}
        return KeptHead(task, "dense", {**own, **settings}, tensors, not is_frozen, classes)

    def score(
        self,
        metrics: dict[str, float],
        settings: Mapping[str, object],
        notes: tuple[str, str],
        baselines: Mapping[str, dict[str, float]],
    ) -> Score:
        """The score of a protocol: `notes` are its sentences on the training and on the metrics, for the card."""
        held = " No test set was given: the last fifth of the images is held out." if self.sets.is_held_out else ""
        is_frozen = self.preset.frozen
        return Score(
            metrics=metrics,
            settings={
                "head": self.preset.head,
                "frozen": is_frozen,
                "inputs": [m.name for m in self.inputs],
                "schedule": self.preset.name,
                **self.settings.facts,
                "image_size": list(self.view.image_size),
                "micro_batch": self.micro_batch,
                "optimizer": "AdamW(betas=(0.9, 0.999))",
                "train_images": len(self.sets.train),
                "test_images": len(self.sets.test),
                **unreadable_facts(tuple(self.unreadable)),
                **settings,
            },
            card=(
                f"{self._training_summary()}{notes[0]} Judged after the last epoch, not the best one, at the"
                " truth's own size, on windows that overlap by a third, whose answers are"
                f" averaged.{'' if is_frozen else FROM_SCRATCH}{held}{notes[1]}"
            ),
            trains_encoder=not is_frozen,
            baselines=baselines,
        )

    def _training_summary(self) -> str:
        settings, (height, width), (low, high) = self.settings, self.view.image_size, self.settings.scales
        by_layer = f"the encoder learns too, its rates by layer decay {settings.layer_decay:g}"
        fit = FIT_WORDS[settings.fit]
        scale = f"{low:g} times" if low == high else f"{low:g} to {high:g} times"
        mixed = f", cut where no class fills more than {settings.class_share:.0%}" if settings.class_share else ""
        jitter = f", brightness, contrast and saturation changed in {settings.jitter:.0%} of them"
        distorted = f", brightness, contrast, saturation and hue each changed in {settings.distortion or 0:.0%} of them"
        colours = jitter * bool(settings.jitter) + distorted * bool(settings.distortion)
        read = f" of blocks {', '.join(map(str, self.model.blocks))}" if settings.blocks else ""
        dropout = f", with dropout {settings.dropout:g} while it learns" if settings.dropout else ""
        decay = "a cosine" if settings.updates is None else f"a line to 0 after {settings.updates:,} updates"
        return (
            f"{HEAD_WORDS[self.preset.head]} reads {' and '.join(m.name for m in self.inputs)}, as tokens{read} before"
            f" any final norm{dropout}; {'the encoder is frozen' if self.preset.frozen else by_layer}. AdamW at a rate"
            f" of {settings.lr:g}, {settings.epochs} epoch{'s' * (settings.epochs > 1)} in batches of"
            f" {settings.batch_size} (schedule {self.preset.name}), {settings.warmup_epochs:g} of warm-up, then"
            f" {decay}. Views of {height} x {width} pixels at {scale} the scale at which they {fit}{mixed}; one box and"
            f" flip for all maps{colours}."
        )
