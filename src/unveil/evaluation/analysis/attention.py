"""Where a model looks, in numbers: how evenly, how much as its teacher, and what of it is hidden."""

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

TOP = 0.25  # of the tokens, that count as looked at


@torch.no_grad()
def attention_metrics(
    model: MaskedModel, batch: Batch, seen: ForwardOutput, foreground: Float[Tensor, "B N"] | None = None
) -> dict[str, float]:
    """Evenness of student, teacher and guide; rank correlation and overlap of student and teacher; what share of the
    attention, of the quarter of tokens with the most of it, and of all tokens the masks hide.

    With a `foreground`, the share of each of the first modality's tokens that it covers: the attention on it, beside
    its share of the area, which is what an even map has.
    """
    gazes = collect_attention_maps(model, batch, seen)
    layout = seen.latents.tokens.layout
    first = next(iter(layout.spans))
    is_hidden = hidden_tokens(seen.mask.visible, layout.num_tokens)
    found = {
        "student_evenness": evenness(gazes.student),
        "hidden_attention": attention_share(gazes.mask_source, is_hidden),
        "hidden_most_attended": attention_share(top_tokens(gazes.mask_source, TOP).float(), is_hidden),
        "hidden_tokens": float(is_hidden.float().mean()),
    }
    if gazes.guide is not None:
        found["guide_evenness"] = evenness(gazes.guide)
    sees = next((name for name in layout.spans if gazes.teacher_map(name) is not None), None)
    teacher = gazes.teacher_map(sees) if sees is not None else None
    if sees is not None and teacher is not None:
        student = gazes.student[:, layout.spans[sees]]
        found |= {
            "teacher_evenness": evenness(teacher),
            "rank_correlation": rank_correlation(teacher, student),
            "top_overlap": top_overlap(teacher, student, TOP),
        }
    if foreground is not None:
        has = foreground.sum(dim=1) > 0  # an image without any says nothing
        span = layout.spans[first]
        maps = {"student": gazes.student[:, span], "teacher": teacher if sees == first else None}
        maps["hidden"] = is_hidden[:, span].float()
        told = {
            f"{who}_foreground": attention_share(m[has], foreground[has]) for who, m in maps.items() if m is not None
        }
        found |= told | {"foreground_area": float(foreground[has].mean())} if has.any() else {}
    return found


def foreground_share(batch: Batch, labels: Modality, things: list[int], patch: int) -> Float[Tensor, "B N"]:
    """The share of each patch's labelled pixels that show one of the `things`, class ids; 0 where none is labelled."""
    ids, known = batch.maps[labels.name], validity(batch, labels)
    shows = torch.isin(ids, torch.tensor(things, dtype=ids.dtype, device=ids.device)) & known
    side = labels.side(patch)
    return patchify(shows.float(), side).sum(dim=-1) / patchify(known.float(), side).sum(dim=-1).clamp_min(1)


@dataclass(frozen=True)
class DecoderBlockAttention:
    """How masked tokens attend in one block of a decoder (CrossMAE, arXiv 2401.14391, appendix A.1).

    Per pair: the mean attention from a masked token to a visible, or to a masked one (itself too), summed over heads.
    Mass: the share of all attention of masked tokens that visible ones get. The class token counts as visible.
    """

    to_visible: float
    to_masked: float
    mass_on_visible: float


@dataclass(frozen=True)
class DecoderAttention:
    """The attention of masked tokens in a decoder, block by block, and what an even one would have for each pair."""

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
        told = {"mean": self.mean, "summed": self.summed, "mass_on_visible": self.mass_on_visible}
        return {**asdict(self), **told}


@torch.no_grad()
def decoder_attention(model: MaskedModel, batch: Batch) -> list[DecoderAttention]:
    """What masked tokens attend to in each decoder that lets tokens attend to one another (MAE's); of others nothing.

    Those of a cross-attention decoder attend to visible tokens alone, by its making.
    """
    found = []
    for name, decoder in model.decoders.items():
        if not isinstance(decoder, SelfDecoder):
            continue
        with record_inputs([block.attn for block in decoder.blocks]) as read:
            seen = model.encode_decode(batch)
        blank = seen.queries[name].ids.shape[1]
        if decoder.outputs == "all":
            blank -= seen.mask.visible.shape[1]
        parts = []
        for attn, (x, *_) in read:
            rows = attn.rows(x, x[:, -blank:])  # B H Q N
            visible, masked = rows[..., :-blank], rows[..., -blank:]
            to_visible, to_masked = (float(part.mean(dim=(0, 2, 3)).sum()) for part in (visible, masked))
            parts.append(DecoderBlockAttention(to_visible, to_masked, float(visible.sum(dim=-1).mean())))
        heads, keys = decoder.blocks[0].attn.heads, read[0][1][0].shape[1]
        found.append(DecoderAttention(name, heads, len(parts) * heads / keys, tuple(parts)))
    return found
