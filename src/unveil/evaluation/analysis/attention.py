"""Attention maps of a model and its teachers, the masks drawn from them, their metrics, and attention in decoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...modeling.decoder import SelfDecoder
from ...modeling.masked_model import ForwardOutput, MaskedModel
from ...modeling.masking import (
    SAMPLERS,
    AttentionGuided,
    CollaborativeAttention,
    LossMap,
    Masker,
    Sampler,
    TeacherAttention,
    TokenScore,
    entropy,
)
from ...modeling.patches import patchify, validity
from ...modeling.types import Batch, FeatureSpec, Modality, Observation, Observations

M = TypeVar("M", bound=nn.Module)


@contextmanager
def record_inputs(modules: Sequence[M]) -> Iterator[list[tuple[M, tuple[Any, ...]]]]:
    """A list to which each call of one of the modules adds the module and its positional arguments."""
    calls: list[tuple[M, tuple[Any, ...]]] = []

    def record(module: M, inputs: tuple[Any, ...]) -> None:
        calls.append((module, inputs))

    hooks = [module.register_forward_pre_hook(record) for module in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class AttentionMaps:
    """Attention to every token, the mean over heads, of the student and of the frozen teacher, and the map that masks
    are sampled from (the guide). The teacher's may cover some of the modalities only.
    """

    student: Float[Tensor, "B N"]
    teacher: Observation | None = None
    guide: Float[Tensor, "B N"] | None = None

    @property
    def mask_source(self) -> Float[Tensor, "B N"]:
        """The map that masks are sampled from; in a run without guidance the student's."""
        return self.student if self.guide is None else self.guide

    def teacher_map(self, modality: str) -> Float[Tensor, "B N"] | None:
        """The teacher's attention to one modality; None where it does not read that."""
        if self.teacher is None or modality not in self.teacher.layout.spans:
            return None
        attention = self.teacher.of(modality).attention
        return None if attention is None else attention.float().mean(dim=1)


@torch.no_grad()
def collect_attention_maps(model: MaskedModel, batch: Batch, output: ForwardOutput) -> AttentionMaps:
    """The attention maps of a forward pass. A student that was not observed in it is observed now: the attention of its
    last block's class token."""
    student = output.observations.get("student")
    if student is None or student.attention is None:
        student = model.encoder.observe(model.encoder.embed(batch), FeatureSpec(features=0))
    assert student.attention is not None
    teacher = output.observations.get("teacher")
    if teacher is not None and teacher.attention is None:
        teacher = None
    return AttentionMaps(
        student.attention.float().mean(dim=1), teacher, _guide(model.masker.score, output.observations)
    )


def _guide(score: TokenScore, observations: Observations) -> Float[Tensor, "B N"] | None:
    """The map that a score samples from; None where it is not guided, or its map covers some of the tokens only."""
    guided = find_guided_score(score)
    if guided is None:
        return None
    attention = guided.attention_map
    maps = [attention.teacher, attention.student] if isinstance(attention, CollaborativeAttention) else [attention]
    teachers = [m.teacher for m in maps if isinstance(m, TeacherAttention | LossMap)]
    if not teachers or any(name not in observations for name in teachers):
        return None
    return attention(observations).float()


def find_guided_score(score: object) -> AttentionGuided | None:
    """The guided score inside nested ones: budgets, random heads, scores by modality."""
    while score is not None and not isinstance(score, AttentionGuided):
        inner = (getattr(score, name, None) for name in ("guide", "score", "elsewhere"))
        score = next((nested for nested in inner if nested is not None), None)
    return score


def masks_by_sampler(
    model: MaskedModel, batch: Batch, attention: Float[Tensor, "B N"]
) -> dict[str, Bool[Tensor, "B N"]]:
    """The tokens that each sampler hides, given the map to sample from and the model's own share of visible tokens."""
    tokens, own = model.encoder.embed(batch), model.masker

    def hidden_by(sampler: Sampler) -> Bool[Tensor, "B N"]:
        masker = Masker(AttentionGuided(lambda _: attention, sampler), own.visible, 1 - own.visible, unit=own.unit)
        return hidden_tokens(masker(tokens, {}, batch).visible, attention.shape[1])

    return {name: hidden_by(sampler) for name, sampler in SAMPLERS.items()}


def hidden_tokens(visible: Tensor, num_tokens: int) -> Bool[Tensor, "B N"]:
    """The tokens that are not visible."""
    everywhere = torch.ones(len(visible), num_tokens, dtype=torch.bool, device=visible.device)
    return everywhere.scatter(1, visible, False)


TOP_SHARE = 0.25  # of the tokens, those with the most attention


@torch.no_grad()
def attention_metrics(
    model: MaskedModel, batch: Batch, output: ForwardOutput, foreground: Float[Tensor, "B N"] | None = None
) -> dict[str, float]:
    """Metrics of the attention maps and of the mask of one forward pass, means over the batch.

    `*_evenness` is normalised entropy, from 0 to 1. `rank_correlation` and `top_overlap` compare teacher and student.
    `hidden_attention` is the share of the attention on hidden tokens, `hidden_most_attended` the share of the
    most attended quarter that is hidden, `hidden_tokens` the share of all tokens that is hidden. With a `foreground`,
    the share of each token of the first modality that it covers: `*_foreground`, the share of each map and of
    the mask on it, and `foreground_area`, which is what an even map has.
    """
    attention = collect_attention_maps(model, batch, output)
    layout = output.latents.tokens.layout
    first = next(iter(layout.spans))
    is_hidden = hidden_tokens(output.mask.visible, layout.num_tokens)
    metrics = {
        "student_evenness": evenness(attention.student),
        "hidden_attention": attention_share(attention.mask_source, is_hidden),
        "hidden_most_attended": attention_share(top_tokens(attention.mask_source, TOP_SHARE).float(), is_hidden),
        "hidden_tokens": float(is_hidden.float().mean()),
    }
    if attention.guide is not None:
        metrics["guide_evenness"] = evenness(attention.guide)
    teacher_maps = {name: attention.teacher_map(name) for name in layout.spans}
    name, teacher = next(((n, t) for n, t in teacher_maps.items() if t is not None), (first, None))
    if teacher is not None:
        student = attention.student[:, layout.spans[name]]
        metrics |= {
            "teacher_evenness": evenness(teacher),
            "rank_correlation": rank_correlation(teacher, student),
            "top_overlap": top_overlap(teacher, student, TOP_SHARE),
        }
    if foreground is not None and (labelled := foreground.sum(dim=1) > 0).any():
        span = layout.spans[first]
        maps = {"student": attention.student[:, span], "hidden": is_hidden[:, span].float()}
        if teacher is not None and name == first:
            maps["teacher"] = teacher
        covered = foreground[labelled]
        metrics |= {f"{of}_foreground": attention_share(m[labelled], covered) for of, m in maps.items()}
        metrics["foreground_area"] = float(covered.mean())
    return metrics


def foreground_share(batch: Batch, labels: Modality, things: list[int], patch: int) -> Float[Tensor, "B N"]:
    """The share of each patch's labelled pixels that are of the class ids `things`; 0 where none is labelled."""
    ids, labelled = batch.maps[labels.name], validity(batch, labels)
    is_thing = torch.isin(ids, torch.tensor(things, dtype=ids.dtype, device=ids.device)) & labelled
    side = labels.side(patch)
    return patchify(is_thing.float(), side).sum(dim=-1) / patchify(labelled.float(), side).sum(dim=-1).clamp_min(1)


@dataclass(frozen=True)
class DecoderBlockAttention:
    """The attention of masked tokens in one block of a decoder (CrossMAE, arXiv 2401.14391, appendix A.1).

    `to_visible` and `to_masked` are the mean attention weight from a masked token to one visible, or to one masked
    token (itself too), summed over heads; `mass_on_visible` is the share of all attention of masked tokens that goes
    to visible ones. The class token counts as visible.
    """

    to_visible: float
    to_masked: float
    mass_on_visible: float


@dataclass(frozen=True)
class DecoderAttention:
    """The attention of masked tokens in a decoder by block. `even` is what uniform attention has per pair, summed over
    blocks and heads."""

    decoder: str
    heads: int
    even: float
    blocks: tuple[DecoderBlockAttention, ...]

    @property
    def summed(self) -> tuple[float, float]:
        """To visible and to masked, summed over blocks: the scale that CrossMAE published (1.42 and 0.39)."""
        return sum(b.to_visible for b in self.blocks), sum(b.to_masked for b in self.blocks)

    @property
    def mean(self) -> tuple[float, float]:
        """To visible and to masked, the mean over blocks and heads."""
        count = len(self.blocks) * self.heads
        return self.summed[0] / count, self.summed[1] / count

    @property
    def mass_on_visible(self) -> float:
        return sum(b.mass_on_visible for b in self.blocks) / len(self.blocks)

    def to_dict(self) -> dict[str, object]:
        return asdict(self) | {"mean": self.mean, "summed": self.summed, "mass_on_visible": self.mass_on_visible}


@torch.no_grad()
def decoder_attention(model: MaskedModel, batch: Batch) -> list[DecoderAttention]:
    """The attention of masked tokens in each self-attention decoder (MAE's); a cross-attention decoder has none."""
    results = []
    for name, decoder in model.decoders.items():
        if not isinstance(decoder, SelfDecoder):
            continue
        with record_inputs([block.attn for block in decoder.blocks]) as inputs:
            output = model.encode_decode(batch)
        num_masked = output.queries[name].ids.shape[1]
        if decoder.outputs == "all":
            num_masked -= output.mask.visible.shape[1]
        blocks = []
        for attn, (x, *_) in inputs:
            rows = attn.rows(x, x[:, -num_masked:])  # B H Q N
            visible, masked = rows[..., :-num_masked], rows[..., -num_masked:]
            to_visible, to_masked = (float(keys.mean(dim=(0, 2, 3)).sum()) for keys in (visible, masked))
            blocks.append(DecoderBlockAttention(to_visible, to_masked, float(visible.sum(dim=-1).mean())))
        heads, num_keys = decoder.blocks[0].attn.heads, inputs[0][1][0].shape[1]
        results.append(DecoderAttention(name, heads, len(blocks) * heads / num_keys, tuple(blocks)))
    return results


def evenness(attention: Float[Tensor, "B N"]) -> float:
    """Entropy over its maximum, log N, the mean over images: 1 for uniform attention, 0 for all of it on one token."""
    return float(entropy(attention).mean() / torch.tensor(float(attention.shape[1])).log())


def rank_correlation(first: Float[Tensor, "B N"], second: Float[Tensor, "B N"]) -> float:
    """Spearman's correlation of two maps, the mean over images; ties have the mean of their ranks."""
    a, b = (_ranks(m) - (m.shape[1] + 1) / 2 for m in (first, second))
    spread = (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()
    return float(((a * b).sum(dim=1) / spread.clamp_min(1e-12)).mean())


def _ranks(attention: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    values = attention.contiguous()
    ordered = values.sort(dim=1).values
    below, upto = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + upto + 1) / 2


def top_tokens(attention: Float[Tensor, "B N"], share: float) -> Bool[Tensor, "B N"]:
    """The share of all tokens, at least one, with the most attention."""
    count = max(1, int(share * attention.shape[1] + 1e-6))
    return torch.zeros_like(attention, dtype=torch.bool).scatter(1, attention.topk(count, dim=1).indices, True)


def top_overlap(first: Float[Tensor, "B N"], second: Float[Tensor, "B N"], share: float) -> float:
    """The share of the most attended tokens of one map that are among those of the other; `share` by chance."""
    a, b = top_tokens(first, share), top_tokens(second, share)
    return float(((a & b).sum(dim=1) / a.sum(dim=1)).mean())


def attention_share(attention: Float[Tensor, "B N"], on: Tensor) -> float:
    """The share of the attention on some tokens, given as booleans or as weights from 0 to 1, the mean over images."""
    total = attention.sum(dim=1).clamp_min(1e-12)
    return float(((attention * on).sum(dim=1) / total).mean())
