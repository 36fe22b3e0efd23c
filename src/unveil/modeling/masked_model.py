"""Masked image modelling in one forward: embed, observe, mask, encode, decode, compare.

Shapes: B batch, N tokens, V visible, Q queries, D width, T numbers of a target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Protocol, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .decoder import Decoder
from .encoder import Encoder
from .layers import Positions, by_name, in_order, initialise, token
from .losses import Loss, l2
from .masking import Masker
from .position_table import PositionTable
from .targets import Target
from .types import Batch, Latents, Mask, Observation, Observations, Queries, Tokens, take

Hide = Callable[[Tokens, Mask], Tokens]  # the tokens that the encoder reads: it keeps the hidden ones from it
Losses = dict[str, tuple[Float[Tensor, ""], Float[Tensor, ""]]]


class Teacher(Protocol):
    """A module that observes the whole, unmasked input once per step; `student` is the encoder that is trained."""

    def observe(self, batch: Batch, tokens: Tokens, student: Encoder) -> Observation: ...


class BeforeStep(Protocol):
    """A module that depends on the step: `step` counts updates from 0, `progress` in [0, 1] is that of the training."""

    def before_step(self, step: int, progress: float) -> None: ...


class AfterStep(Protocol):
    """A module that changes after each update, such as an average of weights or losses.

    `losses` are the objectives' means over the batch. Where `updated` is false the update was skipped, and the module
    must not change.
    """

    def after_step(self, losses: Mapping[str, Float[Tensor, ""]], updated: Bool[Tensor, ""]) -> None: ...


def drop(tokens: Tokens, mask: Mask) -> Tokens:
    """Hide tokens by leaving them out (MAE, arXiv 2111.06377, section 3).

    Visible tokens are never missing, so no attention mask is needed.
    """
    return replace(tokens, missing=None).take(mask.visible)


class Blank(nn.Module):
    """Hide tokens by a learned mask token in their places (SimMIM, arXiv 2111.09886, section 3.2), one a modality.

    Places are those of the encoder.
    """

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.modalities = [m.name for m in encoder.modalities]
        several = (len(self.modalities),) if len(self.modalities) > 1 else ()
        self.mask_token = token(*several, encoder.dim)
        is_table = isinstance(encoder.positions, PositionTable)
        self.positions = None if is_table else Positions(encoder.grid, encoder.dim)
        self.of_encoder = (encoder.positions,)  # in a tuple, so that a table is saved only where it is trained

    def forward(self, tokens: Tokens, mask: Mask) -> Tokens:
        mask_token: Tensor = self.mask_token
        if len(self.modalities) > 1:
            own = torch.stack([mask_token[self.modalities.index(name)] for name in tokens.layout.spans])
            mask_token = own[tokens.ids // tokens.layout.num_cells]
        positions = (self.positions or self.of_encoder[0])(tokens.layout.grid)
        blank = mask_token + positions[tokens.cells]
        visible = torch.zeros_like(tokens.ids, dtype=torch.bool).scatter(1, mask.visible, True)
        values = torch.where(visible[..., None], tokens.values, blank.to(tokens.values.dtype))
        return replace(tokens, values=values, missing=None)  # missing tokens are blank, and a blank may be read


@dataclass(frozen=True)
class ForwardOutput:
    """What one forward computes before the losses: `queries` and `decoded` (B Q D) by the name of the decoder."""

    observations: Observations
    mask: Mask
    latents: Latents
    queries: Mapping[str, Queries]
    decoded: Mapping[str, Float[Tensor, "B Q D"]]


class Objective(nn.Module):
    """A target, the linear head that predicts it from a decoder's outputs, and the loss between the two.

    The loss is the mean over queries of one sample, then over the samples that have any valid target value. `head`
    shares the head of an earlier stage.
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

    def target_values(self, queries: Queries, batch: Batch, observations: Observations) -> tuple[Tensor, Tensor]:
        """The target at the queries, B Q T, and the weight of each number, B Q T or B Q 1: 0 where it is not valid."""
        target, valid = self.target(batch, observations)
        valid = take(valid.expand(*target.shape[:2], -1), queries.cells)
        return take(target, queries.cells), queries.weight[..., None] * valid

    def prediction_and_target(self, output: ForwardOutput, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The prediction at the queries (B Q T, float32), the target, and the weight of each number."""
        target, valid = self.target_values(output.queries[self.decoder], batch, output.observations)
        return self.head(output.decoded[self.decoder]).float(), target, valid

    def count(self, queries: Queries, batch: Batch, observations: Observations) -> Int[Tensor, ""]:
        """The number of samples with a valid target value."""
        _, valid = self.target_values(queries, batch, observations)
        return (valid > 0).flatten(1).any(dim=1).sum()

    def token_losses(self, output: ForwardOutput, batch: Batch) -> tuple[Float[Tensor, "B Q"], Float[Tensor, "B Q"]]:
        """The unweighted loss of each query, and 1 where it has a valid target value, else 0."""
        values = self.prediction_and_target(output, batch)
        total, count = self.loss(*(x.flatten(0, 1)[:, None] for x in values))  # each token as a sample
        shape = values[0].shape[:2]
        return (total / count.clamp_min(1)).unflatten(0, shape), (count > 0).float().unflatten(0, shape)

    def forward(self, output: ForwardOutput, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The weighted sum over samples of each sample's mean loss, and the number of samples that count."""
        total, count = self.loss(*self.prediction_and_target(output, batch))
        counted = count > 0
        mean = total / count.clamp_min(1)
        return self.weight * (mean * counted).sum(), counted.sum()


def linear_head(dim: int, width: int, bias: bool = True) -> nn.Linear:
    """One linear layer from a decoder's outputs to a target, initialised as MAE's layers are."""
    head = nn.Linear(dim, width, bias=bias)
    initialise(head)
    return head


class LossTerm(Protocol):
    """A module that gives one of the losses that are added up, as a sum over samples and their number."""

    name: str

    def __call__(self, output: ForwardOutput, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]: ...


class MaskedModel(nn.Module):
    """A masked autoencoder: hides part of the input and predicts it. Methods differ in the modules passed in.

    Names of teachers are those that scores and targets read observations by; names of decoders those of objectives.
    """

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
        self.scores = in_order(unregistered(self, (masker.score, masker.predict_score)))
        self.keep = sorted({m for decoder in decoders.values() for m in decoder.reads})

    def __repr__(self) -> str:
        """A few lines; `print(model.encoder)` is PyTorch's tree of its modules."""
        encoder, weights = self.encoder, sum(p.numel() for p in self.parameters()) / 1e6
        shown = f"{self.masker.visible:.2%} of the patches visible, {self.masker.predicted_share:.2%} predicted"
        parts = {"decoders": self.decoders, "teachers": self.teachers}
        lists = [f"{w}: {', '.join(f'{n} ({type(m).__name__})' for n, m in o.items())}" for w, o in parts.items() if o]
        size = f"{len(encoder.blocks)} blocks of width {encoder.prefix.shape[1]}"
        return "\n  ".join([f"<MaskedModel: {weights:.1f} M weights, encoder of {size}; {shown}", *lists]) + ">"

    def mask_input(
        self, batch: Batch, masker: Masker | None = None
    ) -> tuple[Tokens, Observations, Mask, dict[str, Queries]]:
        """Embed, observe, mask: all that comes before the encoder. `masker` replaces the model's own."""
        tokens = self.encoder.embed(batch)
        observations = {name: teacher.observe(batch, tokens, self.encoder) for name, teacher in self.teachers.items()}
        mask = (masker or self.masker)(tokens, observations, batch)
        queries = {name: decoder.make_queries(mask, tokens.layout) for name, decoder in self.decoders.items()}
        return tokens, observations, mask, queries

    def encode_decode(self, batch: Batch, masker: Masker | None = None) -> ForwardOutput:
        """Everything but the losses. Another `masker` may hide, or have predicted, other tokens than in training."""
        tokens, observations, mask, queries = self.mask_input(batch, masker)
        latents = self.encoder(self.hide(tokens, mask), self.keep)
        decoded = {name: decoder(latents, queries[name]) for name, decoder in self.decoders.items()}
        return ForwardOutput(observations, mask, latents, queries, decoded)

    def forward(self, batch: Batch) -> Losses:
        """By objective: the weighted sum of the loss over samples, and the number of samples that count."""
        output = self.encode_decode(batch)
        return {o.name: o(output, batch) for o in self.objectives}

    @torch.no_grad()
    def count_samples(self, batch: Batch) -> dict[str, Int[Tensor, ""]]:
        """The second number of `forward` for every `Objective`, without encoding or decoding."""
        _, observations, _, queries = self.mask_input(batch)
        with_target = [o for o in self.objectives if isinstance(o, Objective)]
        return {o.name: o.count(queries[o.decoder], batch, observations) for o in with_target}

    def is_uneven(self, batch: Batch) -> bool:
        """Whether samples may differ in the objectives that they count for: maps are missing, invalid or never hidden.

        It reads values, so the batch should be on the CPU.
        """
        layout = self.encoder.layout(batch)
        is_whole = all(bool(known.all()) for known in (*batch.valid.values(), *batch.present.values()))
        return not is_whole or (len(layout.spans) > 1 and self.masker.counts(layout)[0] >= layout.num_cells)

    @property
    def observing(self) -> tuple[bool, ...]:
        """Which of the teachers that observe in some steps only do so in this one: another forward pass for each."""
        return tuple(bool(module.observes) for module in self.modules() if hasattr(module, "observes"))

    def before_step(self, step: int, progress: float) -> None:
        """Call `before_step` of every module that has one (`BeforeStep`), before the forward of an update."""
        self._call("before_step", step, progress)

    def after_step(self, losses: Mapping[str, Float[Tensor, ""]], updated: Bool[Tensor, ""]) -> None:
        """Call `after_step` of every module that has one (`AfterStep`), after an update."""
        self._call("after_step", losses, updated)

    def _call(self, method: str, *args: object) -> None:
        for module in self.modules():
            if module is not self and hasattr(module, method):
                getattr(module, method)(*args)


def unregistered(model: nn.Module, value: object) -> list[nn.Module]:
    """The modules in a value that a model would not save, move or step, each without those that it holds itself.

    They are looked for in the attributes of modules, the fields of dataclasses, and in mappings and sequences.
    """
    known, visited, modules = set(model.modules()), set(), list[nn.Module]()

    def visit(value: object) -> None:
        if id(value) in visited:
            return
        visited.add(id(value))
        if isinstance(value, nn.Module) and value not in known:
            modules.append(value)
            known.update(value.modules())
        if isinstance(value, nn.Module) or (is_dataclass(value) and not isinstance(value, type)):
            value = vars(value)
        if isinstance(value, Mapping | tuple | list):
            for child in value.values() if isinstance(value, Mapping) else value:
                visit(child)

    visit(value)
    return modules


def mean_loss(losses: Losses) -> Float[Tensor, ""]:
    """The sum of the objectives' mean losses."""
    return torch.stack([total / count.clamp_min(1) for total, count in losses.values()]).sum()
