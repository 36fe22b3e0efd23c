"""The attentive probe: one learned query attends to frozen tokens, then a linear classifier."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import ClassVar

import psutil
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...modeling.optim import parameter_groups, warmup_cosine
from ..by_class import of_scores
from ..datasets import ImageSplit
from ..fit import fit
from ..kept_heads import KeptHead
from ..types import (
    Context,
    FeatureEncoder,
    FeatureSplit,
    Needs,
    Pool,
    Score,
    TrainableEncoder,
    accuracies,
    check_trainable,
    hits,
)

HEAD_DIM = 64
BATCH_SIZE = 1024
LR = 1e-3  # not scaled by the batch
WEIGHT_DECAY = 0.05
EPOCHS, MIN_UPDATES = 20, 500
WARMUP_SHARE = 0.1
EPS = 1e-6
MEMORY_SHARE = 0.5  # of what is free, for the tokens


@dataclass(frozen=True)
class Attentive:
    """A cross-attention pool with one query over frozen tokens, then a linear layer (Chen et al., 2024, of CAE).

    epochs: passes over the training images
    """

    needs: ClassVar[Needs] = "images"
    reads_tokens: ClassVar[bool] = True
    keeps_head: ClassVar[bool] = True

    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs are at least 1; got {self.epochs}")

    def run(self, subject: FeatureEncoder, data: ImageSplit, context: Context) -> Score | None:
        """The accuracy after the last epoch; None for an encoder without tokens."""
        encoder = check_trainable(subject)
        if encoder is None:
            return None
        split, num_tokens = _tokens(encoder, data, context)
        heads = max(1, encoder.dim // HEAD_DIM)
        while encoder.dim % heads:
            heads -= 1
        batch_size = max(1, min(BATCH_SIZE, len(split.train) // 8))
        updates = len(split.train) // batch_size
        epochs = max(EPOCHS, math.ceil(MIN_UPDATES / updates)) if self.epochs is None else self.epochs
        rng = torch.Generator().manual_seed(context.seed)
        probe = AttentivePool(encoder.dim, heads, split.num_classes, rng).to(encoder.device).train()
        optimizer = torch.optim.AdamW(parameter_groups(probe.named_parameters(), WEIGHT_DECAY), lr=LR)
        total = epochs * updates

        def batches(epoch: int) -> Generator[Int[Tensor, " B"]]:
            order = torch.randperm(len(split.train), generator=rng)
            yield from order[: updates * batch_size].split(batch_size)

        def losses(rows: Int[Tensor, " B"]) -> Iterator[Float[Tensor, ""]]:
            tokens = split.train[rows].to(encoder.device).float().unflatten(1, (num_tokens, -1))
            yield F.cross_entropy(probe(tokens), split.train_labels[rows].to(encoder.device))

        def rate(epoch: float) -> float:
            return LR * warmup_cosine(round(epoch * updates) + 1, total, WARMUP_SHARE * total)

        fit(
            probe,
            losses,
            optimizer,
            batches,
            rate,
            epochs=epochs,
            steps_per_epoch=updates,
            name=f"attentive probe of {context.subject}",
            advice="check the encoder's weights",
            batch_size=batch_size,
            threads=context.threads,
            progress=context.progress,
        )
        scores = _scores(probe.eval(), split.test, num_tokens, encoder)
        if context.keep is not None:
            context.keep(KeptHead("classes", "attentive", {"heads": heads}, probe.state_dict()))
        return Score(
            metrics=accuracies(scores, split.test_labels),
            outcomes={"accuracy": hits(scores, split.test_labels)},
            shown=of_scores(scores, split.test_labels),
            settings={
                "head": "BatchNorm1d(affine=False), cross-attention with one query, Linear",
                "heads": heads,
                "optimizer": f"AdamW(weight_decay={WEIGHT_DECAY})",
                "lr": LR,
                "batch_size": batch_size,
                "epochs": epochs,
                "train_images": len(split.train),
                "test_images": len(split.test),
                "augmentation": None,
            },
            card=(
                f"One learned query attends, with {heads} heads, to all frozen tokens of the last block (prefix,"
                " patches, after the encoder's final norm or, where it has none, one without parameters, then a"
                f" BatchNorm without affine); a linear layer classifies what it gathers. AdamW, rate {LR:g}, {epochs}"
                f" epochs in batches of {batch_size}, a tenth of them warm-up, then a cosine. Tokens are computed"
                " once, from centre views, kept in half precision, so there is no augmentation; the accuracy is that"
                " of the last epoch."
            ),
        )


class AttentivePool(nn.Module):
    """Tokens -> classes: keys and values are linear in the normalised tokens, the query is learned."""

    def __init__(self, dim: int, heads: int, num_classes: int, rng: torch.Generator):
        super().__init__()
        self.heads = heads
        self.norm = nn.BatchNorm1d(dim, eps=EPS, affine=False)
        self.query = nn.Parameter(torch.empty(1, dim))
        self.kv = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, num_classes)
        for weight in (self.query, self.kv.weight, self.head.weight):
            nn.init.trunc_normal_(weight, std=0.02, generator=rng)
        nn.init.zeros_(self.kv.bias)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B K"]:
        x = self.norm(tokens.flatten(0, 1)).view(tokens.shape)
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each B H T D/H
        q = self.query.view(self.heads, 1, -1).expand(len(x), -1, -1, -1)
        scores: Tensor = self.head(F.scaled_dot_product_attention(q, k, v).flatten(1))
        return scores


class _FlatTokens:
    """An encoder whose feature of an image is all of its tokens, normalised."""

    def __init__(self, encoder: TrainableEncoder):
        self.encoder, self.channels = encoder, encoder.channels
        self.image_size, self.device = encoder.image_size, encoder.device

    def features(self, images: Float[Tensor, "B C H W"], pool: Pool) -> Float[Tensor, "B F"]:
        return normed_tokens(self.encoder, images).flatten(1)


def normed_tokens(encoder: TrainableEncoder, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B T D"]:
    """The tokens of the last block under the encoder's final norm or, where it has none, one without parameters."""
    (tokens,) = encoder.maps(images, [encoder.depth])
    norm = encoder.final_norm
    is_plain = isinstance(norm, nn.Identity)
    normed: Tensor = F.layer_norm(tokens, tokens.shape[-1:], eps=EPS) if is_plain else norm(tokens)
    return normed


def _tokens(encoder: TrainableEncoder, data: ImageSplit, context: Context) -> tuple[FeatureSplit, int]:
    """The tokens of all images, side by side, in the memory of the processor, and how many an image has."""
    flat = _FlatTokens(encoder)
    with torch.inference_mode():
        size = flat.features(
            torch.zeros(1, encoder.channels, *encoder.image_size, device=encoder.device), "cls"
        ).numel()
    images, free = len(data.train) + len(data.test), MEMORY_SHARE * psutil.virtual_memory().available
    if 2 * size * images > free:
        raise ValueError(
            f"the tokens of {images:,} images take {2 * size * images / 2**30:.1f} GB, and {free / 2**30:.1f} GB are"
            f" free for them; give --limit {int(free / (2 * size) / 2)} or less"
        )
    return data.features(flat, context, "tokens", torch.float16), size // encoder.dim


def _scores(
    probe: AttentivePool, tokens: Float[Tensor, "M F"], num_tokens: int, encoder: TrainableEncoder
) -> Float[Tensor, "M K"]:
    with torch.inference_mode():
        parts = [probe(x.to(encoder.device).float().unflatten(1, (num_tokens, -1))).cpu() for x in tokens.split(256)]
    return torch.cat(parts)
