"""Cheaper looks, and looks at errors instead of attention."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..decoder import Decoder
from ..encoder import Encoder
from ..layers import EPS
from ..masked_model import AfterStep, ForwardOutput, Objective, Teacher
from ..patches import validity
from ..types import Batch, FeatureSpec, Layout, Mask, Modality, Observation, Tokens


class EveryNSteps(nn.Module):
    """A teacher that looks on every k-th step only, and not before a share `after` of the training: a look saved.

    The loop says which step it is, so nothing of it is kept; a compiled step becomes two graphs, one for each case.
    Out of training it always looks, so that held-out losses compare.
    """

    def __init__(self, teacher: Teacher, every: int = 1, after: float = 0.0):
        super().__init__()
        if every < 1 or not 0 <= after < 1:
            raise ValueError(f"a teacher looks every 1 or more steps, after a share below 1; got {every}, {after}")
        self.teacher, self.every, self.after = teacher, every, after
        self.looks = True

    def before_step(self, step: int, progress: float) -> None:
        """Whether it looks in this step; those before `after` count towards no period."""
        self.looks = progress >= self.after and step % self.every == 0

    def observe(self, batch: Batch, tokens: Tokens) -> Observation:
        if self.looks or not self.training:
            return self.teacher.observe(batch, tokens)
        return Observation(tokens.layout)

    def after_step(self, losses: Mapping[str, Float[Tensor, ""]], updated: Bool[Tensor, ""]) -> None:
        """What follows the training goes on doing so."""
        if isinstance(self.teacher, AfterStep):
            self.teacher.after_step(losses, updated)


class LowResolutionTeacher(nn.Module):
    """A teacher of the student's kind that looks at views of half the size: a quarter of the tokens.

    Its attention is brought back to the student's grid, bilinearly.
    """

    def __init__(self, teacher: Teacher, encoder: Encoder):
        super().__init__()
        if encoder.grid[0] % 2 or encoder.grid[1] % 2:
            raise ValueError(f"a look at half the size needs an even grid of tokens; this one is {encoder.grid}")
        self.teacher = teacher
        self.encoder = (encoder,)  # in a tuple: it is the model's part, not this one's

    @torch.no_grad()
    def observe(self, batch: Batch, tokens: Tokens) -> Observation:
        small = halved(batch, self.encoder[0].modalities)
        seen = self.teacher.observe(small, self.encoder[0].embed(small))
        assert seen.attention is not None
        return Observation(tokens.layout, resized(seen.attention, seen.layout, tokens.layout.grid))

    def after_step(self, losses: Mapping[str, Float[Tensor, ""]], updated: Bool[Tensor, ""]) -> None:
        """What follows the training goes on doing so."""
        if isinstance(self.teacher, AfterStep):
            self.teacher.after_step(losses, updated)


def halved(batch: Batch, modalities: Sequence[Modality]) -> Batch:
    """Maps of half the height and width: the mean of the valid pixels, or one class, of every four."""
    maps: dict[str, Tensor] = {}
    valid: dict[str, Tensor] = {}
    for modality in (m for m in modalities if m.name in batch.maps):
        name, truth = modality.name, validity(batch, modality)
        if modality.kind == "categorical":
            maps[name], valid[name] = batch.maps[name][..., ::2, ::2], truth[..., ::2, ::2]
            continue
        share = F.avg_pool2d(truth.float(), 2)
        maps[name] = F.avg_pool2d(torch.where(truth, batch.maps[name], 0), 2) / share.clamp_min(0.25)
        valid[name] = share > 0
    return replace(batch, maps=maps, valid=valid)


def resized(attention: Float[Tensor, "B H N"], layout: Layout, grid: tuple[int, int]) -> Float[Tensor, "B H M"]:
    """Maps over the tokens of one grid -> over those of another."""
    heads, count = attention.shape[1], len(layout.spans)
    maps = attention.reshape(len(attention), heads * count, *layout.grid)
    return F.interpolate(maps, size=grid, mode="bilinear").reshape(len(attention), heads, -1)


class PredictedLossTeacher(nn.Module):
    """How hard a modality's linear head expects each token to be for the student as it is, from its last map of the
    whole input; 0 for modalities without a head.

    Heads learn elsewhere, by the errors that come true; the map is normalised token by token, without parameters.
    """

    def __init__(self, encoder: Encoder, heads: Mapping[str, nn.Linear]):
        super().__init__()
        self.parts = (encoder, dict(heads))  # in a tuple: they are the model's parts, not this one's

    @torch.no_grad()
    def observe(self, batch: Batch, tokens: Tokens) -> Observation:
        encoder, heads = self.parts
        seen = encoder.observe(replace(tokens, values=tokens.values.detach()), FeatureSpec(attention=None))
        assert seen.features is not None
        features = F.layer_norm(seen.features, seen.features.shape[-1:], eps=EPS)
        error = torch.zeros(tokens.ids.shape, device=features.device)
        for name, head in heads.items():
            if name in tokens.layout.spans:
                span = tokens.layout.spans[name]
                error[:, span] = F.softplus(head(features[:, span]).float()[..., 0])
        return Observation(tokens.layout, features=features, error=error)


class MeasuredLossTeacher(nn.Module):
    """How hard each token is for the student as it is: from a random half of the tokens the others are guessed, and
    the other way round (uncertainty-guided masking: the attention-guided MultiMAE's future work).

    A modality's error is the sum of its objectives'; nothing of it takes a gradient.
    """

    def __init__(self, encoder: Encoder, decoders: Mapping[str, Decoder], objectives: Collection[Objective]):
        super().__init__()
        own = [o for o in objectives if decoders[o.decoder].modality in {m.name for m in encoder.modalities}]
        self.parts = (encoder, dict(decoders), tuple(own))  # in a tuple: they are the model's parts, not this one's

    @torch.no_grad()
    def observe(self, batch: Batch, tokens: Tokens) -> Observation:
        encoder, decoders, objectives = self.parts
        order = batch.rng.uniform("halves", tokens.ids.shape[1]).argsort(dim=1)
        first, second = order.tensor_split(2, dim=1)
        error = torch.zeros(tokens.ids.shape, device=order.device)
        asked = {o.decoder: decoders[o.decoder] for o in objectives}
        keep = sorted({m for decoder in asked.values() for m in decoder.reads})
        for mask in (Mask(first, second), Mask(second, first)):
            latents = encoder(tokens.take(mask.visible), keep)
            queries = {name: decoder.make_queries(mask, tokens.layout) for name, decoder in asked.items()}
            decoded = {name: decoder(latents, queries[name]) for name, decoder in asked.items()}
            seen = ForwardOutput({}, mask, latents, queries, decoded)
            for objective in objectives:
                found, known = objective.errors(seen, batch)
                error = error.scatter_add(1, queries[objective.decoder].ids, objective.weight * found * known)
        return Observation(tokens.layout, error=error)
