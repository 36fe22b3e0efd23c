"""Decoders. One contract: `make_queries(Mask, Layout) -> Queries`, then `(Latents, Queries) -> B Q D`.

A decoder knows its modality, and in `reads` which layers of the encoder it needs besides the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .encoder import Encoder
from .layers import Block, CrossAttention, CrossBlock, Mlp, Positions, in_order, initialise, norm, token
from .masking import modality_queries
from .types import Latents, Layout, Mask, Queries, take

Outputs = Literal["predicted", "all"]
BlendKind = Literal["linear", "softmax", "project", "none"]
BlendInit = Literal["paper", "released"]


class Decoder(nn.Module):
    """What all decoders share: the modality, the tokens that have outputs, and the encoder layers that are read.

    `make_queries` gives Q queries per sample; `forward` takes the encoder's latents (B K E, of its width E) and the
    queries, and returns one output per query (B Q D, D the decoder's width). Raises ValueError for heads that do not
    divide the width, and for no blocks where a decoder needs them.
    """

    reads: tuple[int, ...] = ()

    def __init__(self, modality: str, outputs: Outputs = "predicted", depth: int = 1):
        super().__init__()
        if depth < 1:
            raise ValueError(f"a decoder needs at least one block; got decoder_depth={depth}")
        self.modality, self.outputs = modality, outputs

    def make_queries(self, mask: Mask, layout: Layout) -> Queries:
        """The predicted tokens of the decoder's modality; with outputs for all, all visible tokens come before them."""
        predicted = modality_queries(mask, layout, self.modality)
        if self.outputs == "predicted":
            return predicted
        span = layout.spans[self.modality]
        is_own = (mask.visible >= span.start) & (mask.visible < span.stop)
        return Queries(
            torch.cat([mask.visible, predicted.ids], dim=1),
            torch.cat([mask.visible % layout.num_cells, predicted.cells], dim=1),
            torch.cat([is_own.float(), predicted.weight], dim=1),
        )


def choose_maps(
    depth: int, num_maps: int | None = None, maps: Sequence[int] | None = None, use_input: bool = True
) -> tuple[int, ...]:
    """Encoder maps to blend: 0 is the input of the first block, k the output of block k.

    `num_maps` blocks are spread evenly and end at the last one (CrossMAE does not say which it took, table 3d);
    `maps` are the blocks themselves, counted from 1; with neither, every block.
    """
    if maps is not None and num_maps is not None:
        raise ValueError("maps names the blocks to blend and num_maps counts them; give one of the two")
    count = depth if num_maps is None else num_maps
    spread = (depth - round(i * depth / max(1, count)) for i in reversed(range(count)))
    chosen = tuple(spread if maps is None else maps)
    if not chosen or len(set(chosen)) != len(chosen) or not all(1 <= m <= depth for m in chosen):
        got = f"num_maps={num_maps}" if maps is None else tuple(maps)
        raise ValueError(f"maps are blocks of the encoder, each once, from 1 to {depth}; got {got}")
    if depth not in chosen:
        raise ValueError(f"block {depth} must be among the maps, or the blocks after {max(chosen)} learn nothing")
    return ((0,) if use_input else ()) + chosen


class Blend(nn.Module):
    """Inter-block attention: each output is a learned weighted sum of encoder maps.

    CrossMAE (arXiv 2401.14391), section 3.4. Weights are unconstrained by default; `softmax` makes them
    a convex blend (table 8), `project` gives every map a linear layer first (table 9). `init` draws the weights from
    N(0, 1/k) as the paper says, or Xavier-uniform as the released code does.
    """

    def __init__(
        self,
        maps: Sequence[int],
        outputs: int,
        dim: int,
        softmax: bool = False,
        project: bool = False,
        init: BlendInit = "paper",
    ):
        super().__init__()
        self.maps, self.softmax = tuple(maps), softmax
        self.weight = nn.Parameter(torch.empty(outputs, len(maps)))
        self.projections = in_order(nn.Linear(dim, dim) for _ in maps) if project else None
        self.apply(initialise)
        if init == "paper":
            nn.init.normal_(self.weight, std=1 / math.sqrt(len(maps)))
        else:
            nn.init.xavier_uniform_(self.weight)

    def forward(self, layers: Mapping[int, Float[Tensor, "B K D"]]) -> Sequence[Float[Tensor, "B K D"]]:
        chosen = [layers[m] for m in self.maps]
        if self.projections is not None:
            chosen = [project(x) for project, x in zip(self.projections, chosen, strict=True)]
        weight = self.weight.softmax(dim=1) if self.softmax else self.weight
        blends = weight @ torch.stack(chosen).flatten(1)  # outputs B*K*D: one matrix product for all blocks
        return blends.unflatten(1, chosen[0].shape).unbind()


def make_blend(
    kind: BlendKind, encoder: Encoder, outputs: int, maps: Sequence[int] | None = None, init: BlendInit = "paper"
) -> Blend | None:
    """The blend of this kind, by default of all of the encoder's maps; None for `none`: the last map alone is read."""
    if kind == "none":
        return None
    maps = choose_maps(encoder.depth) if maps is None else maps
    return Blend(maps, outputs, encoder.dim, kind == "softmax", kind == "project", init)


class SelfDecoder(Decoder):
    """MAE: latents and mask tokens attend to one another. With `blend` it reads a blend of encoder maps (table 7).

    With outputs for all tokens, those of the visible ones are at their own places.
    """

    def __init__(
        self,
        modality: str,
        encoder: Encoder,
        dim: int,
        depth: int,
        heads: int,
        blend: Blend | None = None,
        outputs: Outputs = "predicted",
    ):
        super().__init__(modality, outputs, depth)
        self.reads = blend.maps if blend else ()
        self.embed = nn.Linear(encoder.dim, dim)
        self.mask_token = token(dim)
        self.positions = Positions(encoder.grid, dim)
        self.blocks = in_order(Block(dim, heads) for _ in range(depth))
        self.norm = norm(dim)
        self.apply(initialise)
        self.blend = blend
        self.blend_norm = norm(encoder.dim) if blend else None

    def forward(self, latents: Latents, queries: Queries) -> Float[Tensor, "B Q D"]:
        read = latents.final
        if self.blend is not None and self.blend_norm is not None:
            read = self.blend_norm(self.blend(latents.layers)[0])
        positions = self.positions(latents.tokens.layout.grid)
        prefix, visible = self.embed(read).tensor_split([latents.num_prefix], dim=1)
        blank = queries.cells[:, visible.shape[1] :] if self.outputs == "all" else queries.cells
        masked = self.mask_token + positions[blank]
        x = torch.cat([prefix, visible + positions[latents.tokens.cells], masked.to(visible.dtype)], dim=1)
        *others, last = self.blocks
        for block in others:
            x = block(x)
        return self.norm(last(x, last=queries.ids.shape[1]))  # the outputs of the others are not needed


class CrossDecoder(Decoder):
    """CrossMAE: each query reads the latents alone, and each block its own blend of encoder maps.

    Without a blend every block reads the encoder's last map, which then needs the encoder's final norm (table 3d,
    one map).
    """

    def __init__(
        self,
        modality: str,
        encoder: Encoder,
        dim: int,
        depth: int,
        heads: int,
        blend: Blend | None,
        self_attention: bool = False,
        outputs: Outputs = "predicted",
    ):
        super().__init__(modality, outputs, depth)
        self.reads = blend.maps if blend else ()
        self.mask_token = token(dim)
        self.positions = Positions(encoder.grid, dim)
        self.context_norms = in_order(norm(encoder.dim) for _ in range(depth)) if blend else None
        self.blocks = in_order(CrossBlock(dim, heads, encoder.dim, self_attention) for _ in range(depth))
        self.norm = norm(dim)
        self.apply(initialise)
        self.blend = blend

    def forward(self, latents: Latents, queries: Queries) -> Float[Tensor, "B Q D"]:
        contexts = [latents.final] * len(self.blocks)
        if self.blend is not None and self.context_norms is not None:
            blends = self.blend(latents.layers)
            contexts = [normalise(x) for normalise, x in zip(self.context_norms, blends, strict=True)]
        x = self.mask_token + self.positions(latents.tokens.layout.grid)[queries.cells]
        for block, context in zip(self.blocks, contexts, strict=True):
            x = block(x, context)
        return self.norm(x)


class PromptingDecoder(Decoder):
    """MILAN: visible tokens stay as the encoder left them, mask tokens alone read them and one another.

    MILAN (arXiv 2208.06049), section 3.2. With outputs for all tokens, the visible ones and the class token are
    returned as they were embedded.
    """

    def __init__(
        self, modality: str, encoder: Encoder, dim: int, depth: int, heads: int, outputs: Outputs = "predicted"
    ):
        super().__init__(modality, outputs, depth)
        self.embed = nn.Linear(encoder.dim, dim)
        self.mask_token = token(dim)
        self.positions = Positions(encoder.grid, dim)
        self.context_norms = in_order(norm(dim) for _ in range(depth))
        self.blocks = in_order(CrossBlock(dim, heads, dim) for _ in range(depth))
        self.norm = norm(dim)
        self.apply(initialise)

    def forward(self, latents: Latents, queries: Queries) -> Float[Tensor, "B Q D"]:
        positions = self.positions(latents.tokens.layout.grid)
        prefix, visible = self.embed(latents.final).tensor_split([latents.num_prefix], dim=1)
        visible = visible + positions[latents.tokens.cells]
        is_all = self.outputs == "all"
        x = self.mask_token + positions[queries.cells[:, visible.shape[1] :] if is_all else queries.cells]
        for block, normalise in zip(self.blocks, self.context_norms, strict=True):
            x = block(x, normalise(torch.cat([prefix, visible, x.to(visible.dtype)], dim=1)))
        return self.norm(torch.cat([visible, x], dim=1) if is_all else x)

    def class_token(self, latents: Latents) -> Float[Tensor, "B 1 D"]:
        return self.norm(self.embed(latents.final[:, :1]))


class TaskDecoder(Decoder):
    """MultiMAE: every token of its modality reads the visible ones once, then all of them read one another.

    Tokens that are visible are their own queries, the others mask tokens; a task embedding tells the modalities apart,
    in queries and context (arXiv 2204.01678, section 3.2 and its released code: the queries do not bypass the
    cross-attention, and no norm comes last). Without `own_tokens` every query is a mask token: for an encoder that
    reads mask tokens, whose output at a hidden place is no visible token.
    """

    def __init__(self, modality: str, encoder: Encoder, dim: int, depth: int, heads: int, own_tokens: bool = True):
        super().__init__(modality)
        self.own_tokens = own_tokens
        self.embed = nn.Linear(encoder.dim, dim)
        self.mask_token = token(dim)
        self.tasks = nn.ParameterDict({m.name: token(dim) for m in encoder.modalities})
        self.positions = Positions(encoder.grid, dim)
        self.query_norm, self.context_norm, self.out_norm = norm(dim), norm(dim), norm(dim)
        self.cross_attn = CrossAttention(dim, heads, dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.blocks = in_order(Block(dim, heads) for _ in range(depth))
        self.apply(initialise)

    def make_queries(self, mask: Mask, layout: Layout) -> Queries:
        """All tokens of the modality; the weight of those that are not predicted is 0."""
        every = replace(mask, most=layout.num_cells)
        return modality_queries(every, layout, self.modality)

    def forward(self, latents: Latents, queries: Queries) -> Float[Tensor, "B Q D"]:
        layout, ids = latents.tokens.layout, latents.tokens.ids
        positions = self.positions(layout.grid)
        prefix, visible = self.embed(latents.final).tensor_split([latents.num_prefix], dim=1)
        tasks = torch.stack([self.tasks[name] for name in layout.spans])
        visible = visible + tasks[ids // layout.num_cells] + positions[latents.tokens.cells]
        blank = self.mask_token + positions
        if self.modality in layout.spans:
            blank = blank + self.tasks[self.modality]
        x = blank.expand(len(ids), -1, -1)
        if (
            self.own_tokens and self.modality in layout.spans
        ):  # its visible tokens in their places, the others beyond the end
            span = layout.spans[self.modality]
            own = torch.where((ids >= span.start) & (ids < span.stop), ids - span.start, layout.num_cells)
            slots = F.pad(x, (0, 0, 0, 1))
            x = slots.scatter(1, own[..., None].expand_as(visible), visible.to(x.dtype))[:, :-1]
        context = self.context_norm(torch.cat([prefix, visible.to(prefix.dtype)], dim=1))
        x = self.cross_attn(self.query_norm(take(x, queries.cells)), context)
        x = x + self.mlp(self.out_norm(x))
        for block in self.blocks:
            x = block(x)
        return x


class Readout(Decoder):
    """The outputs at the places of the queried tokens, for encoders that read mask tokens there.

    With no blocks this is SimMIM's one-layer head (arXiv 2111.09886, section 3.3); with blocks, MAE's decoder over an
    encoder with mask tokens (MAE, table 1c).
    """

    def __init__(self, modality: str, encoder: Encoder, dim: int | None = None, depth: int = 0, heads: int = 1):
        super().__init__(modality, depth=1 if dim is None else depth)
        dim = dim or encoder.dim
        self.embed = nn.Linear(encoder.dim, dim) if depth else nn.Identity()
        self.positions = Positions(encoder.grid, dim) if depth else None
        self.blocks = in_order(Block(dim, heads) for _ in range(depth))
        self.norm = norm(dim) if depth else nn.Identity()
        self.apply(initialise)

    def make_queries(self, mask: Mask, layout: Layout) -> Queries:
        if self.modality not in layout.spans:
            raise ValueError(
                f"the decoder reads tokens at the places of {self.modality}, which the encoder does not read here; use"
                " --decoder cross"
            )
        return super().make_queries(mask, layout)

    def forward(self, latents: Latents, queries: Queries) -> Float[Tensor, "B Q D"]:
        x = self.embed(latents.final)
        if self.positions is not None:
            prefix, slots = x.tensor_split([latents.num_prefix], dim=1)
            x = torch.cat([prefix, slots + self.positions(latents.tokens.layout.grid)[latents.tokens.cells]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(take(x[:, latents.num_prefix :], queries.ids))
