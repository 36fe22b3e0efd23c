"""Fine-tuning of an encoder on labels: classifier, settings, published presets, layer-wise rates, the training loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..data.augment import Mix, RandAugment, erase, mix_images, soft_labels
from ..data.loader import Loader
from ..data.transforms import CenterView, View
from ..modeling.optim import learning_rate
from ..modeling.rng import SampleRng
from ..modeling.types import Batch
from ..runs.hardware import autocast
from .datasets import ImageSplit
from .fit import FitCheckpoint, fit
from .types import Context, TrainableEncoder, accuracies

TokenPool = Literal["cls", "mean", "all"]
HEAD_STD = 2e-5


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


def layer_groups(model: nn.Module, encoder: TrainableEncoder, decay: float, weight_decay: float) -> list[dict]:
    """Parameter groups for fine-tuning: the rate of layer k is scaled by decay ** (depth + 1 - k) (Clark et al., 2020).

    `encoder` is the model's part of that name; what else the model has is after the last block. Vectors do not decay,
    nor do tokens and tables of positions, whose first dimension is 1 (the public MAE code frees them here).
    """
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            inner = name.removeprefix("encoder.")
            layer = encoder.layer_of(inner) if inner != name else encoder.depth + 1
            is_free = parameter.ndim == 1 or len(parameter) == 1
            fresh = {"params": [], "weight_decay": 0.0 if is_free else weight_decay}
            group = groups.setdefault((layer, is_free), fresh | {"scale": decay ** (encoder.depth + 1 - layer)})
            group["params"].append(parameter)
    return list(groups.values())


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
            keep = self.keep.to(rng.key.device)
            self.factors = (rng.uniform("drop path", len(keep)) < keep) / keep

    def _scale(self, index: int, module: nn.Module, given: Any, out: Tensor) -> Tensor:
        if not module.training or self.factors is None:
            return out
        return out * self.factors[:, index, None, None].to(out.dtype)


Preset = Literal["auto", "mae-b", "mae-l", "mae-h", "crossmae-paper", "crossmae-released", "multimae", "small"]


@dataclass(frozen=True)
class FineTuning:
    """Settings of a fine-tuning; `lr` is per 256 images, `pool` None leaves the choice to the command.

    `randaugment` is a magnitude of 0..10, `ema` the decay of the average of the weights that is judged; 0 turns each of
    the regularisers off.
    """

    epochs: int = 100
    batch_size: int = 1024
    lr: float = 5e-4
    min_lr: float = 1e-6
    warmup_epochs: float = 5
    weight_decay: float = 0.05
    layer_decay: float = 0.65
    drop_path: float = 0.1
    randaugment: float = 9
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1
    erasing: float = 0.25
    ema: float = 0.0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    pool: TokenPool | None = None

    def __post_init__(self) -> None:
        rates = {"drop_path": self.drop_path, "smoothing": self.smoothing, "ema": self.ema}
        wrong = [name for name, rate in rates.items() if not 0 <= rate < 1]
        wrong += [name for name in ("erasing", "layer_decay") if not 0 <= getattr(self, name) <= 1]
        if wrong:
            raise ValueError(f"{wrong[0]} is a share from 0 to 1; got {getattr(self, wrong[0])}")
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch size are at least 1; got {self.epochs} and {self.batch_size}")
        wrong = [n for n in ("lr", "weight_decay", "mixup", "cutmix", "warmup_epochs") if getattr(self, n) < 0]
        if wrong:
            raise ValueError(f"{wrong[0]} is at least 0; got {getattr(self, wrong[0])}")
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


class FineTuner:
    """A classifier in training: updates of whole batches, cut into micro-batches."""

    def __init__(
        self, encoder: TrainableEncoder, data: ImageSplit, settings: FineTuning, pool: TokenPool, context: Context
    ):
        self.data, self.settings, self.context, self.seed = data, settings, context, context.seed
        self.device, self.image_size = encoder.device, encoder.image_size
        self.classifier = Classifier(encoder, data.num_classes, pool, torch.Generator().manual_seed(self.seed)).train()
        self.groups = layer_groups(
            self.classifier, self.classifier.encoder, settings.layer_decay, settings.weight_decay
        )
        self.optimizer = torch.optim.AdamW(self.groups, lr=0.0, fused=True)
        self.depth = StochasticDepth(self.classifier.encoder.branches(), settings.drop_path)
        self.mean, self.std = encoder.statistics
        self.micro_batch = context.micro_batch if self.device.type != "cpu" else min(context.micro_batch, IN_CACHE)
        key = {"learns": "classes", "weights": context.cache.checksum(encoder), "images": data.identity, "pool": pool}
        key |= {"settings": asdict(settings), "seed": self.seed, "micro_batch": self.micro_batch}
        key |= {"on": self.device.type, "image_size": encoder.image_size, "subject": context.subject}
        self.checkpoint = FitCheckpoint(context.cache.checkpoint(key), context.note)

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
            with autocast(self.device):
                scores = self.classifier(x)
            yield F.cross_entropy(scores.float(), y, reduction="sum") / len(images)

    def train(self) -> Loader:
        """All epochs; returns the loader, which names what could not be read. Raises ValueError when it diverges."""
        settings, classes = self.settings, self.data.train_labels
        view = View(self.image_size, settings.crop_scale)
        loader = Loader(self.data.train, view, settings.batch_size, self.seed, max_broken=None)
        loader.unreadable = self.checkpoint.unreadable

        def batches(epoch: int) -> Generator[tuple[Batch, Int[Tensor, " B"], Mix]]:
            with closing(loader.numbered(epoch)) as numbered:
                for step, (batch, rows) in enumerate(numbered):
                    rng = np.random.default_rng((self.seed, epoch, step))
                    yield batch, classes[rows], Mix.draw(rng, settings.mixup, settings.cutmix, self.image_size)

        name, size = f"fine-tuning {self.context.subject}", loader.batch_size
        fit(
            self.classifier,
            self.losses,
            self.optimizer,
            batches,
            settings.rate,
            epochs=settings.epochs,
            steps_per_epoch=loader.steps_per_epoch,
            name=name,
            advice=f"give a lower --lr than {settings.lr:g}",
            ema=settings.ema,
            checkpoint=self.checkpoint,
            progress=lambda step, steps: self.context.progress(name, step * size, steps * size),
        )
        return loader

    def evaluate(self) -> tuple[dict[str, float], tuple[str, ...]]:
        """Accuracies and cross-entropy on centre views of the test images, and the names of unreadable ones."""
        test, view = self.data.test, CenterView(self.image_size)
        loader = Loader(test, view, self.context.micro_batch, max_broken=None, cache_bytes=0)
        self.classifier.eval()
        scores, rows = [], []
        with closing(loader.in_order()) as batches, torch.inference_mode():
            for batch, numbers in batches:
                with autocast(self.device):
                    scores.append(self.classifier(batch.on(self.device).marked("rgb")).float())
                rows.append(numbers)
        logits, labels = torch.cat(scores), torch.tensor(test.numbers)[torch.cat(rows)].to(self.device)
        loss = F.cross_entropy(logits, labels).item()
        return accuracies(logits, labels) | {"cross_entropy": loss}, tuple(loader.unreadable)
