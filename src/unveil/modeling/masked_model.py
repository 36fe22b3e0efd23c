"""Masked image modelling, in one forward: embed, observe, mask, encode, decode, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .decoder import Decoder
from .encoder import Encoder
from .layers import Positions, by_name, in_order, initialise, token
from .losses import Loss, l2
from .masking import Masker
from .targets import Target
from .types import Batch, Latents, Mask, Observation, Observations, Queries, Tokens, take

Losses = dict[str, tuple[Float[Tensor, ""], Float[Tensor, ""]]]


class Hide(Protocol):
    """How hidden tokens are kept from the encoder."""

    def __call__(self, tokens: Tokens, mask: Mask) -> Tokens: ...


class Teacher(Protocol):
    """A module that sees the whole input, once a step."""

    def observe(self, batch: Batch, tokens: Tokens) -> Observation: ...


@runtime_checkable
class AfterStep(Protocol):
    """A part, a teacher or a score, that moves after each update: an average of the student, of losses."""

    def after_step(self, losses: Mapping[str, Float[Tensor, ""]], updated: Bool[Tensor, ""]) -> None:
        """`losses` are the objectives' means over the batch; where the update was not an update, nothing moves."""
        ...


@runtime_checkable
class BeforeStep(Protocol):
    """A part that is told which step comes: it may leave something out in some of them."""

    def before_step(self, step: int, progress: float) -> None:
        """`step` counts updates from 0, `progress` is the share of training done."""
        ...


def drop(tokens: Tokens, mask: Mask) -> Tokens:
    """Hide tokens by leaving them out (MAE). Missing ones are never visible, so all that is left may be read."""
    return replace(tokens, missing=None).take(mask.visible)


class Blank(nn.Module):
    """Hide tokens behind a learned mask token, their places kept (SimMIM, arXiv 2111.09886, section 3.1)."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.mask_token = token(encoder.dim)
        self.positions = Positions(encoder.grid, encoder.dim)

    def forward(self, tokens: Tokens, mask: Mask) -> Tokens:
        blank = self.mask_token + self.positions(tokens.layout.grid)[tokens.cells]
        seen = torch.zeros_like(tokens.ids, dtype=torch.bool).scatter(1, mask.visible, True)
        values = torch.where(seen[..., None], tokens.values, blank.to(tokens.values.dtype))
        return replace(tokens, values=values, missing=None)  # a blank tells nothing, so it may be read


@dataclass(frozen=True)
class ForwardOutput:
    """All that one forward makes on its way to the losses."""

    observations: Observations
    mask: Mask
    latents: Latents
    queries: Mapping[str, Queries]
    decoded: Mapping[str, Float[Tensor, "B Q D"]]


class Objective(nn.Module):
    """A target, the head that guesses it from a decoder's answers, and how far the guess is off.

    Returns the sum over samples of each sample's mean error, and the number of samples that count. A `head` that an
    earlier stage has trained is taken over.
    """

    def __init__(
        self,
        name: str,
        decoder: str,
        dim: int,
        target: Target,
        loss: Loss = l2,
        weight: float = 1.0,
        head: nn.Linear | None = None,
    ):
        super().__init__()
        self.name, self.decoder = name, decoder
        self.target, self.loss, self.weight = target, loss, weight
        self.head = head or linear_head(dim, target.dim)

    def prediction_and_target(self, seen: ForwardOutput, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Guess and truth at the queries, and what of it counts: each B Q T, or with a last dimension of 1."""
        truth, valid = self.truth(seen.queries[self.decoder], batch, seen.observations)
        return self.head(seen.decoded[self.decoder]).float(), truth, valid

    def truth(self, queries: Queries, batch: Batch, observations: Observations) -> tuple[Tensor, Tensor]:
        """The truth at the queries, and what of it counts."""
        truth, valid = self.target(batch, observations)
        valid = queries.weight[..., None] * take(valid.expand(*truth.shape[:2], -1), queries.cells)
        return take(truth, queries.cells), valid

    def count(self, queries: Queries, batch: Batch, observations: Observations) -> Int[Tensor, ""]:
        """The number of samples that count."""
        _, valid = self.truth(queries, batch, observations)
        return (valid > 0).flatten(1).any(dim=1).sum()

    def errors(self, seen: ForwardOutput, batch: Batch) -> tuple[Float[Tensor, "B Q"], Float[Tensor, "B Q"]]:
        """The mean error of each asked token, and 1 where it has one."""
        parts = self.prediction_and_target(seen, batch)
        total, count = self.loss(*(part.flatten(0, 1)[:, None] for part in parts))  # each token as a sample
        shape = parts[0].shape[:2]
        return (total / count.clamp_min(1)).unflatten(0, shape), (count > 0).float().unflatten(0, shape)

    def forward(self, seen: ForwardOutput, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        total, count = self.loss(*self.prediction_and_target(seen, batch))
        counted = count > 0
        mean = total / count.clamp_min(1)
        return self.weight * (mean * counted).sum(), counted.sum()


def linear_head(dim: int, width: int, bias: bool = True) -> nn.Linear:
    """One linear layer from a decoder's answers to a target."""
    head = nn.Linear(dim, width, bias=bias)
    initialise(head)
    return head


class LossTerm(Protocol):
    """What a model is trained by: a module such as `Objective`."""

    name: str

    def __call__(self, seen: ForwardOutput, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]: ...


class MaskedModel(nn.Module):
    """The sentence: hide part of the input, predict it. A paper is a choice of its words."""

    def __init__(
        self,
        encoder: Encoder,
        masker: Masker,
        decoders: Mapping[str, Decoder],
        objectives: Sequence[LossTerm],
        teachers: Mapping[str, Teacher] | None = None,
        hide: Hide = drop,
    ):
        super().__init__()
        self.encoder, self.masker, self.hide = encoder, masker, hide
        self.decoders = by_name(decoders)
        self.objectives = cast("Sequence[LossTerm]", nn.ModuleList(cast("list[nn.Module]", list(objectives))))
        self.teachers = cast("Mapping[str, Teacher]", nn.ModuleDict(cast("dict[str, nn.Module]", dict(teachers or {}))))
        self.scores = in_order(part for part in (masker.score, masker.predict_score) if isinstance(part, nn.Module))
        self.keep = sorted({m for decoder in decoders.values() for m in decoder.reads})

    def encode_decode(self, batch: Batch, masker: Masker | None = None) -> ForwardOutput:
        """Embed, observe, mask, encode, decode. Another masker may ask for more than training does."""
        tokens = self.encoder.embed(batch)
        observations = {name: teacher.observe(batch, tokens) for name, teacher in self.teachers.items()}
        mask = (masker or self.masker)(tokens, observations, batch)
        latents = self.encoder(self.hide(tokens, mask), self.keep)
        queries = {name: decoder.make_queries(mask, tokens.layout) for name, decoder in self.decoders.items()}
        decoded = {name: decoder(latents, queries[name]) for name, decoder in self.decoders.items()}
        return ForwardOutput(observations, mask, latents, queries, decoded)

    def forward(self, batch: Batch) -> Losses:
        """Each objective's weighted loss, as the sum over samples and the number of samples that count."""
        seen = self.encode_decode(batch)
        return {o.name: o(seen, batch) for o in self.objectives}

    def before_step(self, step: int, progress: float) -> None:
        """Parts that do not do the same in every step are told which comes, however deep in a teacher they are."""
        for part in cast("nn.ModuleDict", self.teachers).modules():
            if isinstance(part, BeforeStep):
                part.before_step(step, progress)

    def is_uneven(self, batch: Batch) -> bool:
        """Whether some samples may count for an objective and others not: parts are missing, invalid, or never hidden.

        It looks at numbers, so it is asked of a batch that is on the processor.
        """
        layout = self.encoder.layout(batch)
        is_whole = all(bool(known.all()) for known in (*batch.valid.values(), *batch.present.values()))
        return not is_whole or (len(layout.spans) > 1 and self.masker.counts(layout)[0] >= layout.num_cells)

    @torch.no_grad()
    def count_samples(self, batch: Batch) -> dict[str, Int[Tensor, ""]]:
        """How many samples count for each objective with a target: masks are made, nothing is encoded or decoded."""
        tokens = self.encoder.embed(batch)
        observations = {name: teacher.observe(batch, tokens) for name, teacher in self.teachers.items()}
        mask = self.masker(tokens, observations, batch)
        queries = {name: decoder.make_queries(mask, tokens.layout) for name, decoder in self.decoders.items()}
        aimed = [o for o in self.objectives if isinstance(o, Objective)]
        return {o.name: o.count(queries[o.decoder], batch, observations) for o in aimed}

    def after_step(self, losses: Mapping[str, Float[Tensor, ""]], updated: Bool[Tensor, ""]) -> None:
        """Parts that follow the training move here."""
        for part in (*self.teachers.values(), *self.scores):
            if isinstance(part, AfterStep):
                part.after_step(losses, updated)


def mean_loss(losses: Losses) -> Float[Tensor, ""]:
    """The objectives' mean losses, added up."""
    return torch.stack([total / count.clamp_min(1) for total, count in losses.values()]).sum()
