"""Fine-tuning of an encoder on labels: classifier, settings, published presets, layer-wise rates, the training loop."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..data.augment import Mix, RandAugment, erase, mix_images, soft_labels
from ..data.loader import Loader
from ..data.transforms import CenterView, View
from ..modeling.optim import layer_groups, learning_rate
from ..modeling.rng import SampleRng
from ..modeling.types import Batch
from .by_class import of_scores
from .datasets import ImageSplit
from .fit import FitCheckpoint, fit
from .results import Key
from .types import Context, TrainableEncoder, accuracies, hits

TokenPool = Literal["cls", "mean", "all"]
HEAD_STD = 2e-5

T = TypeVar("T")


class Classifier(nn.Module):
    """A copy of an encoder, a pool of its tokens, a norm, and a linear head that begins almost at zero.

    `mean` averages the patches under a norm of its own, as MAE does; `all` averages the prefix tokens too, as MultiMAE
    does; `cls` is the class token under the encoder's own final norm, where it has one.
    """

    def __init__(self, encoder: TrainableEncoder, num_classes: int, pool: TokenPool, rng: torch.Generator):
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.pool = pool
        has_own = pool == "cls" and isinstance(encoder.final_norm, nn.LayerNorm)
        self.norm = None if has_own else nn.LayerNorm(encoder.dim, eps=1e-6)
        self.head = nn.Linear(encoder.dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD, a=-2 * HEAD_STD, b=2 * HEAD_STD, generator=rng)
        nn.init.zeros_(self.head.bias)
        self.to(encoder.device).requires_grad_(True)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        (tokens,) = self.encoder.maps(images, [self.encoder.depth])
        first = self.encoder.num_prefix if self.pool == "mean" else 0
        pooled = tokens[:, 0] if self.pool == "cls" else tokens[:, first:].mean(1)
        norm = self.encoder.final_norm if self.norm is None else self.norm
        scores: Tensor = self.head(norm(pooled))
        return scores


class StochasticDepth:
    """Leaves residual branches out, for each sample by itself, while the model trains (Huang et al., 2016).

    The rate grows linearly from 0 in the first block to `rate` in the last; what is kept is scaled up. The branches are
    hooked, so a model without it pays nothing.
    """

    def __init__(self, branches: Sequence[Sequence[nn.Module]], rate: float):
        hooked = [(k, branch) for k, block in enumerate(branches) for branch in block] if rate else []
        self.keep = torch.tensor([1 - rate * k / max(1, len(branches) - 1) for k, _ in hooked])
        self.factors: Tensor | None = None
        for index, (_, branch) in enumerate(hooked):
            branch.register_forward_hook(partial(self._scale, index))

    def draw(self, rng: SampleRng) -> None:
        if len(self.keep):
            self.keep = self.keep.to(rng.key.device)  # once: the host waits for a copy
            self.factors = (rng.uniform("drop path", len(self.keep)) < self.keep) / self.keep

    def _scale(self, index: int, module: nn.Module, given: Any, out: Tensor) -> Tensor:
        if not module.training or self.factors is None:
            return out
        return out * self.factors[:, index, None, None].to(out.dtype)


_LEAST = dict.fromkeys(("epochs", "batch_size", "image_size"), 1)
_LEAST |= dict.fromkeys(("lr", "warmup_epochs", "weight_decay", "mixup", "cutmix"), 0)
_SHARES = ("layer_decay", "erasing")
_SHARES_BELOW_1 = ("drop_path", "smoothing", "ema")


@dataclass(frozen=True)
class TrainingSettings:
    """What every training of an encoder on labels is set by. Raises ValueError for what is out of range.

    `layer_decay` is the ratio of the rates of a layer and the next, `drop_path` the rate of `StochasticDepth`.
    """

    epochs: int
    batch_size: int = 16
    lr: float = 1e-4
    warmup_epochs: float = 1
    weight_decay: float = 0.05
    layer_decay: float = 0.75
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in _LEAST and value is not None and value < _LEAST[name]:
                raise ValueError(f"{name} is at least {_LEAST[name]}; got {value}")
            if (name in _SHARES and not 0 <= value <= 1) or (name in _SHARES_BELOW_1 and not 0 <= value < 1):
                raise ValueError(f"{name} is a share from 0 to 1; got {value}")


class EncoderTraining(ABC, Generic[T]):
    """A model whose part `encoder` learns at rates by layer, by AdamW, in whole batches cut into micro-batches.

    `key` is what the training depends on beside the weights of the encoder, the seed and the kind of device. From
    scratch there is no layer decay, and of a frozen encoder nothing is left out.
    """

    verb: ClassVar[str]
    is_shared: ClassVar[bool] = False  # whether `losses` yields those of this process alone
    settings: TrainingSettings

    def __init__(
        self, model: nn.Module, encoder: TrainableEncoder, settings: TrainingSettings, context: Context, key: Key
    ):
        self.model, self.context, self.seed, self.device = model.train(), context, context.seed, encoder.device
        self.settings, own = settings, cast("TrainableEncoder", model.encoder)
        decay = settings.layer_decay if context.is_trained else 1.0
        self.groups = layer_groups(model, own, decay, settings.weight_decay)
        self.optimizer = torch.optim.AdamW(self.groups, lr=0.0, fused=True)
        is_frozen = not any(p.requires_grad for p in model.get_submodule("encoder").parameters())
        self.depth = StochasticDepth(own.branches(), 0.0 if is_frozen else settings.drop_path)
        common = {"weights": context.cache.checksum(encoder), "subject": context.subject}
        common |= {"seed": self.seed, "on": self.device.type, **context.precision_facts(self.device)}
        self.checkpoint = FitCheckpoint(context.cache.checkpoint({**key, **common}), context.note)

    @abstractmethod
    def losses(self, batch: T) -> Iterator[Float[Tensor, ""]]:
        """The loss of each micro-batch, divided by the size of the batch."""

    def run_epochs(
        self, loader: Loader, batches: Callable[[int], Generator[T]], rate: Callable[[float], float], ema: float = 0.0
    ) -> Loader:
        """All epochs; returns the loader, which names what could not be read. Raises ValueError when it diverges."""
        loader.unreadable = self.checkpoint.unreadable
        fit(
            self.model,
            self.losses,
            self.optimizer,
            batches,
            rate,
            epochs=self.settings.epochs,
            steps_per_epoch=loader.steps_per_epoch,
            name=f"{self.verb} {self.context.subject}",
            advice=f"give a lower --lr than {self.settings.lr:g}",
            batch_size=loader.batch_size,
            ema=ema,
            checkpoint=self.checkpoint,
            threads=self.context.threads,
            progress=self.context.progress,
            is_shared=self.is_shared,
        )
        return loader


Preset = Literal["auto", "mae-b", "mae-l", "mae-h", "crossmae-paper", "crossmae-released", "multimae", "small"]


@dataclass(frozen=True)
class FineTuning(TrainingSettings):
    """Settings of a fine-tuning; `lr` is per 256 images, `pool` None leaves the choice to the command.

    `randaugment` is a magnitude of 0..10, `ema` the decay of the average of the weights that is judged; 0 turns each of
    the regularisers off.
    """

    epochs: int = 100
    batch_size: int = 1024
    lr: float = 5e-4
    warmup_epochs: float = 5
    layer_decay: float = 0.65
    min_lr: float = 1e-6
    randaugment: float = 9
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1
    erasing: float = 0.25
    ema: float = 0.0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    pool: TokenPool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.randaugment <= 10:
            raise ValueError(f"randaugment is a magnitude from 0 to 10; got {self.randaugment}")

    def rate(self, epoch: float) -> float:
        """The learning rate at a point of training, counted in epochs: warm-up from 0, then a cosine to `min_lr`."""
        peak = self.lr * self.batch_size / 256
        return learning_rate(epoch, self.epochs, self.warmup_epochs, peak, self.min_lr)


PRESETS = {
    "mae-b": FineTuning(),
    "mae-l": FineTuning(epochs=50, lr=1e-3, layer_decay=0.75, drop_path=0.2),
    "mae-h": FineTuning(epochs=50, lr=1e-3, layer_decay=0.75, drop_path=0.3),
    # table 11 of the paper names neither layer decay nor erasing
    "crossmae-paper": FineTuning(lr=1e-3, layer_decay=1.0, erasing=0.0),
    "crossmae-released": FineTuning(),
    "multimae": FineTuning(erasing=0.0, pool="all"),
    "small": FineTuning(
        batch_size=128, lr=1e-3, layer_decay=0.75, randaugment=5, mixup=0.0, erasing=0.0, crop_scale=(0.35, 1.0)
    ),
}
FEW = 200_000  # images, below which the published schedules would make too few updates
UPDATES = 4000
MAX_EPOCHS = 100
IN_CACHE = 32  # images whose activations a processor keeps near: a tenth faster than 64 or more at once


def preset_for(num_images: int, dim: int) -> Preset:
    """The preset for a set of images and an encoder: MAE's for its size, or `small` where images are few."""
    if num_images < FEW:
        return "small"
    return "mae-h" if dim >= 1280 else "mae-l" if dim >= 1024 else "mae-b"


def settle(preset: Preset, num_images: int, given: Mapping[str, object]) -> FineTuning:
    """The settings of a preset with what the user gave; `small` makes about 4,000 updates in at most 100 epochs.

    Epochs are given as such or by the number of `updates`. Where they are and the warm-up is not, it keeps its share of
    them. Raises ValueError for both, and for a setting that is out of range.
    """
    settings = PRESETS[preset]
    changed = {name: value for name, value in given.items() if value is not None}
    updates = cast("int | None", changed.pop("updates", None))
    if updates is not None and ("epochs" in changed or updates < 1):
        also = f" and --epochs {changed['epochs']}" if "epochs" in changed else ""
        raise ValueError(f"--updates is a number of at least 1, in place of --epochs; got --updates {updates}{also}")
    if preset == "small":
        fitting = max(16, min(settings.batch_size, 2 ** int(math.log2(max(1, num_images // 4)))))
        batch_size = int(cast("int", changed.get("batch_size", fitting)))
        epochs = max(1, min(MAX_EPOCHS, round(UPDATES * batch_size / num_images)))
        settings = replace(settings, batch_size=batch_size, epochs=epochs, warmup_epochs=epochs / 10)
    if updates is not None:
        batch_size = cast("int", changed.get("batch_size", settings.batch_size))
        changed["epochs"] = max(1, round(updates * batch_size / num_images))
    if "epochs" in changed and "warmup_epochs" not in changed:
        changed["warmup_epochs"] = settings.warmup_epochs * cast("int", changed["epochs"]) / settings.epochs
    return replace(settings, **changed)  # type: ignore[arg-type]


class FineTuner(EncoderTraining[tuple[Batch, Int[Tensor, " B"], Mix]]):
    """A classifier in training, and what it is worth on the test images."""

    verb = "fine-tuning"
    model: Classifier
    settings: FineTuning

    def __init__(
        self, encoder: TrainableEncoder, data: ImageSplit, settings: FineTuning, pool: TokenPool, context: Context
    ):
        for modality in getattr(encoder, "modalities", ())[:1]:
            if settings.randaugment and modality.normalise != "fixed":
                raise ValueError(
                    f"RandAugment changes pictures in [0, 1], and {modality.name} is measured in a unit of its own:"
                    " give --randaugment 0"
                )
        self.data, self.image_size = data, encoder.image_size
        self.mean, self.std = encoder.statistics
        most = IN_CACHE if encoder.device.type == "cpu" else context.micro_batch
        self.micro_batch = min(context.micro_batch, most)
        key: dict[str, object] = {
            "learns": "classes",
            "images": data.identity,
            "pool": pool,
            "settings": asdict(settings),
        }
        key |= {"micro_batch": self.micro_batch, "image_size": encoder.image_size}
        rng = torch.Generator().manual_seed(context.seed)
        super().__init__(Classifier(encoder, data.num_classes, pool, rng), encoder, settings, context, key)

    def losses(self, batch: tuple[Batch, Int[Tensor, " B"], Mix]) -> Iterator[Float[Tensor, ""]]:
        """The loss of each micro-batch of images, classes and a mix, divided by the size of the batch."""
        views, labels, mix = batch[0].on(self.device), batch[1].to(self.device), batch[2]
        rng = views.rng
        if self.settings.randaugment:  # levels, of which NaN is none
            images = RandAugment(self.mean, self.settings.randaugment)(views.maps["rgb"], rng)
        else:
            images = views.marked("rgb")
        images = mix_images(erase(images, rng, self.settings.erasing, self.mean, self.std), mix)
        targets = soft_labels(labels, self.data.num_classes, self.settings.smoothing, mix)
        size = self.micro_batch
        for x, y, key in zip(images.split(size), targets.split(size), rng.key.split(size), strict=True):
            self.depth.draw(SampleRng(key))
            with self.context.autocast(self.device):
                scores = self.model(x)
            yield F.cross_entropy(scores.float(), y, reduction="sum") / len(images)

    def train(self) -> Loader:
        settings, classes = self.settings, self.data.train_labels
        view = View(self.image_size, settings.crop_scale)
        loader = Loader(self.data.train, view, settings.batch_size, self.seed, max_broken=None)

        def batches(epoch: int) -> Generator[tuple[Batch, Int[Tensor, " B"], Mix]]:
            with closing(loader.numbered(epoch)) as numbered:
                for step, (batch, rows) in enumerate(numbered):
                    rng = np.random.default_rng((self.seed, epoch, step))
                    yield batch, classes[rows], Mix.draw(rng, settings.mixup, settings.cutmix, self.image_size)

        return self.run_epochs(loader, batches, settings.rate, settings.ema)

    def evaluate(self) -> tuple[dict[str, float], tuple[str, ...]]:
        """Accuracies and cross-entropy on centre views of the test images, and the names of unreadable ones."""
        test, view = self.data.test, CenterView(self.image_size)
        loader = Loader(test, view, self.context.micro_batch, max_broken=None, cache_bytes=0)
        self.model.eval()
        scores, rows = [], []
        with closing(loader.in_order()) as batches, torch.inference_mode():
            for batch, numbers in batches:
                with self.context.autocast(self.device):
                    scores.append(self.model(batch.on(self.device).marked("rgb")).float())
                rows.append(numbers)
        logits, labels = torch.cat(scores), torch.tensor(test.numbers)[torch.cat(rows)].to(self.device)
        loss = F.cross_entropy(logits, labels).item()
        self.hits, self.by_class = hits(logits, labels), of_scores(logits, labels)
        return accuracies(logits, labels) | {"cross_entropy": loss}, tuple(loader.unreadable)
