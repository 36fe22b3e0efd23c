"""MAE's linear probe, as published or on features that are computed once, and its optimiser LARS."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ...data.loader import Loader
from ...data.transforms import View
from ...modeling.optim import warmup_cosine
from ..by_class import of_scores
from ..datasets import ImageSplit, LabelledImages, stratified_split, unreadable_facts
from ..features import extract
from ..fit import FitCheckpoint, fit
from ..kept_heads import linear_head
from ..types import Context, FeatureEncoder, FeatureSplit, Needs, Pool, Score, accuracies, hits


class LARS(Optimizer):
    """SGD with momentum whose step is scaled to each weight's own norm (You et al., 2017).

    A parameter of one dimension (a bias) takes the plain step, without trust ratio and without weight decay.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                update = p.grad
                if p.ndim > 1:
                    update = update + group["weight_decay"] * p
                    size, step = p.norm(), update.norm()
                    update = update * torch.where((size > 0) & (step > 0), group["trust"] * size / step, 1.0)
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(group["momentum"]).add_(update)
                p.sub_(group["lr"] * momentum)


BATCH_SIZE = 16384
EPOCHS, WARMUP_EPOCHS = 90, 10
EPS, BN_MOMENTUM = 1e-6, 0.1
VALIDATION_SHARE = 0.1
# A LARS step is a share of the weight's own norm, so few steps, or small ones, leave the weights where they began. A
# set smaller than a batch therefore keeps the batch's rate, as if it were repeated to fill one, and takes as many
# updates as CIFAR-10 has in 90 epochs. The published setting, of the preset `mae`, does neither.
MIN_UPDATES = 270
CROP_SCALE = (0.08, 1.0)

Labelled = tuple[Float[Tensor, "B D"], Int[Tensor, " B"]]


@dataclass(frozen=True)
class Linear:
    """A linear classifier after a BatchNorm without affine, trained by LARS (He et al., 2022, appendix A.1).

    lrs: learning rates per 256 images; of several, the one best on a tenth of the training images is used
    preset: mae is the published probe: a crop and a flip drawn anew in every epoch, the class token unless --pool is
        given; cached takes features of centre views, computed once, and a schedule for few images
    probe_epochs: passes over the training images with preset mae (ViT-L and ViT-H need 50)
    """

    keeps_head: ClassVar[bool] = True

    lrs: tuple[float, ...] = (0.1,)
    preset: Literal["cached", "mae"] = "cached"
    probe_epochs: int = EPOCHS

    def __post_init__(self) -> None:
        if not self.lrs or min(self.lrs) <= 0:
            raise ValueError(f"learning rates are numbers above 0, one at least; got {self.lrs}")
        if self.probe_epochs < 1:
            raise ValueError(f"probe_epochs is at least 1; got {self.probe_epochs}")

    @property
    def needs(self) -> Needs:
        return "images" if self.preset == "mae" else "features"

    @property
    def pool(self) -> Pool | None:
        """What is read where the command gives no pool."""
        return "cls" if self.preset == "mae" else None

    def run(self, encoder: FeatureEncoder, data: FeatureSplit | ImageSplit, context: Context) -> Score:
        """The accuracy after the last epoch."""
        inputs: _Cached | _Views
        if isinstance(data, FeatureSplit):
            inputs = _Cached(data, context.seed)
        else:
            inputs = _Views(encoder, data, self.probe_epochs, context)
        tried = _validated(inputs, self.lrs) if len(self.lrs) > 1 else {}
        lr = max(tried, key=lambda rate: tried[rate]) if tried else self.lrs[0]
        probe = _train(inputs, (lr,))
        features, labels = inputs.test()
        chosen = f" The rate was chosen among {len(tried)} on a tenth of the training set; the final fit uses all."
        scores = probe.judge(features)[0]
        if context.keep is not None:
            context.keep(linear_head(encoder, *probe.folded(), context.pool))
        return Score(
            metrics=accuracies(scores, labels),
            outcomes={"accuracy": hits(scores, labels)},
            shown=of_scores(scores, labels),
            settings={
                "head": "BatchNorm1d(affine=False, eps=1e-6), Linear",
                "optimizer": "LARS(momentum=0.9, weight_decay=0, trust=0.001)",
                "lr": inputs.peak(lr),
                "lrs_tried": {f"{inputs.peak(rate):g}": accuracy for rate, accuracy in tried.items()},
                "batch_size": inputs.batch_size,
                "epochs": inputs.epochs,
                "warmup_epochs": round(inputs.epochs * inputs.warmup_share, 1),
                **inputs.facts(),
            },
            card=inputs.card(lr, chosen if tried else ""),
        )


class _Cached:
    """Features that were computed once, and a schedule that suits few images."""

    name = "the linear probe"

    def __init__(self, data: FeatureSplit, seed: int):
        self.data, self.seed = data, seed
        self.labels, self.num_classes = data.train_labels, data.num_classes
        self.dim, self.device = data.train.shape[1], data.train.device
        self.batch_size = min(BATCH_SIZE, len(data.train))
        self.updates = (
            len(data.train) // self.batch_size
        )  # an incomplete last batch is dropped, another one every epoch
        self.epochs = max(EPOCHS, math.ceil(MIN_UPDATES / self.updates))
        self.warmup_share = WARMUP_EPOCHS / EPOCHS

    def peak(self, lr: float) -> float:
        """The highest rate, for a rate per 256 images."""
        return lr * BATCH_SIZE / 256

    def subset(self, rows: Int[Tensor, " K"]) -> _Cached:
        return _Cached(self.data.subset(rows), self.seed)

    def batches(self, rng: torch.Generator) -> Callable[[int], Generator[Labelled]]:
        rows_of_batch = self.data.train.new_empty(self.batch_size, self.dim)

        def of_epoch(epoch: int) -> Generator[Labelled]:
            order = torch.randperm(len(self.labels), generator=rng).to(self.device)
            for rows in order[: self.updates * self.batch_size].split(self.batch_size):
                torch.index_select(self.data.train, 0, rows, out=rows_of_batch)
                yield rows_of_batch, self.labels[rows]

        return of_epoch

    threads = 0

    def checkpoint(self, lrs: tuple[float, ...]) -> FitCheckpoint | None:
        """None: a training on cached features takes seconds."""
        return None

    def progress(self, what: str, done: int, total: int) -> None:
        """Shows nothing, for a training on cached features takes seconds."""

    def of(self, rows: Int[Tensor, " K"]) -> Labelled:
        """Features and labels of some training images."""
        rows = rows.to(self.device)
        return self.data.train[rows], self.labels[rows]

    def test(self) -> Labelled:
        return self.data.test, self.data.test_labels

    def facts(self) -> dict[str, object]:
        return {"augmentation": None}

    def card(self, lr: float, notes: str) -> str:
        if self.epochs > EPOCHS:
            notes += f" The set is small, so epochs were raised from {EPOCHS} to {self.epochs}."
        if self.batch_size < BATCH_SIZE:
            notes += f" A batch is the whole set, at the rate of {BATCH_SIZE}."
        return (
            "A linear classifier on frozen features, after MAE (He et al., 2022): BatchNorm without affine, LARS"
            f" at a rate of {self.peak(lr):g} ({lr:g} x {BATCH_SIZE} / 256), batches of {self.batch_size},"
            f" {self.epochs} epochs, a ninth of them warm-up, then cosine decay. Unlike the published protocol,"
            " features are computed once from centre views, so there is no augmentation (random resized crop, flip),"
            " which on small sets favours over-fitting; and the accuracy is that of the last epoch, not the best"
            f" one.{notes}"
        )


class _Views:
    """Features of views that are drawn anew in every epoch, and MAE's schedule."""

    def __init__(self, encoder: FeatureEncoder, data: ImageSplit, epochs: int, context: Context):
        self.encoder, self.data, self.epochs, self.context = encoder, data, epochs, context
        self.labels, self.num_classes, self.seed = data.train_labels, data.num_classes, context.seed
        self.name, self.device, self.progress = f"linear probe of {context.subject}", encoder.device, context.progress
        self.threads = context.threads
        view = View(encoder.image_size, CROP_SCALE, oversize="clip")
        self.loader = Loader(data.train, view, BATCH_SIZE, context.seed, max_broken=None)
        self.unreadable_test: tuple[str, ...] = ()
        self.batch_size, self.updates = self.loader.batch_size, self.loader.steps_per_epoch
        self.warmup_share = min(WARMUP_EPOCHS / epochs, 0.2)
        blank = torch.zeros(1, encoder.channels, *encoder.image_size, device=self.device)
        self.dim = self._features(blank).shape[1]

    def _features(self, images: Tensor) -> Float[Tensor, "B D"]:
        with torch.no_grad(), self.context.autocast(self.device):
            return self.encoder.features(images, self.context.pool).float()

    def peak(self, lr: float) -> float:
        """The highest rate, for a rate per 256 images."""
        return lr * self.batch_size / 256

    def subset(self, rows: Int[Tensor, " K"]) -> _Views:
        return _Views(self.encoder, self.data.subset(rows), self.epochs, self.context)

    def batches(self, rng: torch.Generator) -> Callable[[int], Generator[Labelled]]:
        def of_epoch(epoch: int) -> Generator[Labelled]:
            for step in range(self.updates):
                features, rows = list[Tensor](), list[Tensor]()
                with closing(self.loader.in_parts(epoch, step, self.context.micro_batch)) as parts:
                    for batch, numbers in parts:
                        features.append(self._features(batch.on(self.device).marked("rgb")))
                        rows.append(numbers)
                if features:
                    yield torch.cat(features), self.labels[torch.cat(rows)].to(self.device)

        return of_epoch

    def checkpoint(self, lrs: tuple[float, ...]) -> FitCheckpoint:
        """Where the training of these heads is kept, under all that it depends on."""
        own = self.context
        key = {"learns": "linear", "weights": own.cache.checksum(self.encoder), "images": self.data.identity}
        key |= {"lrs": lrs, "epochs": self.epochs, "seed": self.seed, "pool": own.pool, "subject": own.subject}
        key |= {"on": self.device.type, "image_size": self.encoder.image_size}
        key |= own.precision_facts(self.device)
        return FitCheckpoint(own.cache.checkpoint(key), own.note, self.loader.unreadable)

    def _centre_views(self, images: LabelledImages) -> Labelled:
        taken = extract(
            self.encoder,
            images,
            self.context.pool,
            self.context.micro_batch,
            precision=self.context.precision,
            threads=self.context.threads,
            note=self.context.note,
        )
        self.unreadable_test = taken.unreadable
        assert taken.labels is not None
        return taken.values.to(self.device), taken.labels.to(self.device)

    def of(self, rows: Int[Tensor, " K"]) -> Labelled:
        """Features and labels of the centre views of some training images."""
        return self._centre_views(self.data.train.only(rows))

    def test(self) -> Labelled:
        return self._centre_views(self.data.test)

    def facts(self) -> dict[str, object]:
        unreadable = (*self.loader.unreadable, *self.unreadable_test)
        return {
            "preset": "mae",
            "pool": self.context.pool,
            "augmentation": f"random resized crop ({CROP_SCALE[0]:g} to 1 of the area), flip",
            "train_images": len(self.data.train) - len(self.loader.unreadable),
            "test_images": len(self.data.test) - len(self.unreadable_test),
            **unreadable_facts(unreadable),
        }

    def card(self, lr: float, notes: str) -> str:
        reads = {"cls": "the class token", "mean": "the mean of the patches", "both": "class token and mean of patches"}
        reads["mean-std"] = "mean and standard deviation of the patches"
        reads["cls-mean-std"] = f"class token, {reads['mean-std']}"
        if self.batch_size < BATCH_SIZE:
            notes += f" The set is smaller than the published batch of {BATCH_SIZE}, so a batch is the whole set."
        return (
            f"MAE's linear probe (He et al., 2022, appendix A.1): {reads[self.context.pool]} of the frozen encoder,"
            f" BatchNorm without affine over the whole batch, a linear layer; LARS at a rate of {self.peak(lr):g}"
            f" ({lr:g} x {self.batch_size} / 256), {self.epochs} epochs, {self.epochs * self.warmup_share:g} of them"
            " warm-up, then a cosine to 0. A random resized crop and a flip of each image, drawn anew in every epoch."
            f" Judged on centre views after the last epoch, not the best one.{notes}"
        )


def _validated(inputs: _Cached | _Views, lrs: tuple[float, ...]) -> dict[float, float]:
    """The accuracy of each rate on a tenth of the training set, learned on the rest, all heads in one pass."""
    train_rows, held_out = stratified_split(inputs.labels, VALIDATION_SHARE, inputs.seed)
    probe = _train(inputs.subset(train_rows), lrs)
    features, labels = inputs.of(held_out)
    by_rate = probe.judge(features)
    return {lr: accuracies(scores, labels)["accuracy"] for lr, scores in zip(lrs, by_rate, strict=True)}


class _Probe(nn.Module):
    """Heads on BatchNorm(x), with the norm folded into the weights: features need no gradient, so no normalised copy.

    All heads begin alike and see the same batches.
    """

    def __init__(self, dim: int, num_classes: int, heads: int, rng: torch.Generator, device: torch.device):
        super().__init__()
        first = nn.init.trunc_normal_(torch.empty(num_classes, dim), std=0.01, generator=rng)
        self.weights = nn.ParameterList(first.to(device, copy=True) for _ in range(heads))
        self.biases = nn.ParameterList(torch.zeros(num_classes, device=device) for _ in range(heads))
        self.mean = nn.Buffer(torch.zeros(dim, device=device))  # running averages, for evaluation
        self.var = nn.Buffer(torch.ones(dim, device=device))

    def logits(self, x: Float[Tensor, "B D"], mean: Tensor, var: Tensor) -> Float[Tensor, "H B K"]:
        weight = torch.cat(list(self.weights)) * (var + EPS).rsqrt()
        scores = F.linear(x, weight, torch.cat(list(self.biases)) - weight @ mean)
        return scores.view(len(x), len(self.weights), -1).transpose(0, 1)

    def folded(self) -> tuple[Float[Tensor, "K D"], Float[Tensor, " K"]]:
        """Weight and bias of the first head on features as they are, by the running statistics."""
        weight = self.weights[0] * (self.var + EPS).rsqrt()
        return weight, self.biases[0] - weight @ self.mean

    @torch.inference_mode()
    def judge(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "H B K"]:
        """The scores of every head by the running statistics, without gradient."""
        return self.logits(x, self.mean, self.var)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "H B K"]:
        """By the batch's own statistics, which the running ones follow."""
        mean = x.mean(0)
        squares = torch.zeros_like(mean)
        for rows in x.split(256):  # so few rows stay in the cache: several times faster than torch.var
            squares += (rows - mean).square().sum(0)
        self.mean.lerp_(mean, BN_MOMENTUM)
        self.var.lerp_(squares / max(1, len(x) - 1), BN_MOMENTUM)
        return self.logits(x, mean, squares / len(x))


def _train(inputs: _Cached | _Views, lrs: tuple[float, ...]) -> _Probe:
    rng = torch.Generator().manual_seed(inputs.seed)
    probe = _Probe(inputs.dim, inputs.num_classes, len(lrs), rng, inputs.device)
    heads = zip(probe.weights, probe.biases, lrs, strict=True)
    optimizer = LARS([{"params": [weight, bias], "scale": inputs.peak(lr)} for weight, bias, lr in heads])

    def losses(batch: Labelled) -> Iterator[Float[Tensor, ""]]:
        features, labels = batch
        yield torch.stack([F.cross_entropy(scores, labels) for scores in probe(features)]).sum()

    fit(
        probe,
        losses,
        optimizer,
        inputs.batches(rng),
        lambda epoch: warmup_cosine(epoch / inputs.epochs, 1.0, inputs.warmup_share),
        epochs=inputs.epochs,
        steps_per_epoch=inputs.updates,
        name=inputs.name,
        advice=None if len(lrs) > 1 else "give lower --lrs",
        batch_size=inputs.batch_size,
        checkpoint=inputs.checkpoint(lrs),
        threads=inputs.threads,
        progress=inputs.progress,
    )
    return probe
