"""Metrics of attention maps and masks, and of the attention inside decoders."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...modeling.decoder import SelfDecoder
from ...modeling.masked_model import ForwardOutput, MaskedModel
from ...modeling.patches import patchify, validity
from ...modeling.types import Batch, Modality
from .attention_maps import collect_attention_maps, hidden_tokens
from .hooks import record_inputs
from .metrics import attention_share, evenness, rank_correlation, top_overlap, top_tokens

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
