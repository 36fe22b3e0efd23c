"""The encoder: adapters turn each modality into tokens, one ViT reads them all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .layers import (
    Block,
    Gated,
    Keys,
    ResizePositions,
    by_name,
    check_spec,
    in_order,
    initialise,
    mean_of_blocks,
    norm,
    observe_blocks,
    token,
)
from .patches import normalised, patchify, validity
from .position_table import PositionKind, PositionTable, make_positions
from .types import RGB, Batch, FeatureSpec, Latents, Layout, Modality, Observation, Tokens

MlpKind = Literal["gelu", "swiglu"]
FEATURE_SPEC = FeatureSpec()

SIZES = {  # width, depth, heads
    "nano": (128, 6, 4),  # of no paper: for demonstrations and tests, a fourth of the work of tiny
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "giant": (1536, 40, 24),  # DINOv2's
}


def token_grid(image_size: Sequence[int], patch: int) -> tuple[int, int]:
    """Image size in pixels (one number, or height and width) -> the grid of tokens; the patch must divide it."""
    if len(image_size) not in (1, 2) or patch < 1:
        raise ValueError(
            f"an image size is one number or height and width, a patch at least 1; got {image_size}, {patch}"
        )
    height, width = image_size[0], image_size[-1]
    if min(height, width) < patch or height % patch or width % patch:
        near = sorted({max(patch, side // patch * patch + up) for side in (height, width) for up in (0, patch)})
        raise ValueError(
            f"a patch of {patch} does not divide an image of {height} x {width};"
            f" use sides that are multiples of {patch}, such as {', '.join(map(str, near))}, or another --patch"
        )
    return height // patch, width // patch


class PatchAdapter(nn.Module):
    """Patches of a continuous map, normalised as the modality says -> tokens without positions."""

    def __init__(self, modality: Modality, patch: int, dim: int):
        super().__init__()
        self.modality, self.side = modality, modality.side(patch)
        self.proj = nn.Linear(modality.channels * self.side**2, dim)

    def forward(self, batch: Batch) -> Float[Tensor, "B N D"]:
        return self.proj(patchify(normalised(batch, self.modality, validity(batch, self.modality)), self.side))


class ClassAdapter(nn.Module):
    """Patches of a categorical map, each class a learned vector -> tokens without positions (MultiMAE's semantics).

    A pixel without a class is a vector of zeros.
    """

    def __init__(self, modality: Modality, patch: int, dim: int, class_dim: int):
        super().__init__()
        self.modality, self.side = modality, modality.side(patch)
        self.classes = nn.Embedding(modality.num_classes, class_dim)
        self.proj = nn.Linear(class_dim * self.side**2, dim)
        nn.init.normal_(self.classes.weight, std=0.02)

    def forward(self, batch: Batch) -> Float[Tensor, "B N D"]:
        valid = validity(batch, self.modality)
        vectors = self.classes(torch.where(valid, batch.maps[self.modality.name], 0)[:, 0]) * valid[:, 0, ..., None]
        return self.proj(patchify(vectors.permute(0, 3, 1, 2), self.side))


def adapter(modality: Modality, patch: int, dim: int, class_dim: int) -> nn.Module:
    """The adapter that a modality's kind takes."""
    if modality.kind == "categorical":
        return ClassAdapter(modality, patch, dim, class_dim)
    return PatchAdapter(modality, patch, dim)


def mlp_width(kind: MlpKind, dim: int) -> int:
    """The width inside an MLP: four times that of its input, of SwiGLU two thirds of it, a multiple of 8 (DINOv2)."""
    return 4 * dim if kind == "gelu" else (4 * dim * 2 // 3 + 7) // 8 * 8


class Encoder(nn.Module):
    """A ViT: prefix tokens, pre-norm blocks, a final norm where the paper has one (CrossMAE and MultiMAE have none).

    `modalities` of role `output` are not read. `image_size` is in pixels, one number or height and width; `patch` is a
    side in pixels; `dim`, `depth` and `heads` are width, blocks and attention heads; `class_dim` is the width of a
    class's vector (MultiMAE: 64); `resize_positions` says how another grid gets its positions. Public ViTs have more:
    a table of `positions` that is learned or fixed, so many `registers` after the class token, a `layer_scale` with its
    first value, gated MLPs (`mlp`). `embed` gives tokens B N D, `forward` latents B K D, K = R prefix + V other tokens.
    Raises ValueError without a modality to read, for a patch that does not divide the image, heads that do not divide
    the width, or parts that there are not.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        image_size: Sequence[int],
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        final_norm: bool = True,
        class_dim: int = 64,
        resize_positions: ResizePositions = "interpolate",
        positions: PositionKind = "sincos",
        registers: int = 0,
        layer_scale: float | None = None,
        mlp: MlpKind = "gelu",
    ):
        super().__init__()
        if registers < 0 or mlp not in ("gelu", "swiglu"):
            raise ValueError(f"registers are 0 or more, an mlp is gelu or swiglu; got {registers} and {mlp!r}")
        self.layer_scale, self.mlp = layer_scale, mlp
        self.dim, self.depth, self.patch = dim, depth, patch
        self.modalities = tuple(m for m in modalities if m.role != "output")
        if not self.modalities:
            raise ValueError("an encoder needs a modality to read; all that are given are outputs")
        self.grid = token_grid(image_size, patch)
        self.adapters = by_name({m.name: adapter(m, patch, dim, class_dim) for m in self.modalities})
        self.prefix = token(1 + registers, dim)
        self.positions = make_positions(positions, self.grid, dim, resize_positions)
        activation = Gated(nn.SiLU()) if mlp == "swiglu" else None
        shape = (dim, heads, mlp_width(mlp, dim), activation, layer_scale)
        self.blocks = in_order(Block(*shape) for _ in range(depth))
        self.norm = norm(dim) if final_norm else nn.Identity()
        self.apply(initialise)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images it was built for; others that the patch divides work too."""
        return self.grid[0] * self.patch, self.grid[1] * self.patch

    def set_image_size(self, image_size: Sequence[int]) -> None:
        """Make it one of images of another size: the positions that this size gets become its table.

        Raises ValueError where the patch does not divide the size.
        """
        self.grid = token_grid(image_size, self.patch)
        if isinstance(self.positions, PositionTable):
            self.positions.set_grid(self.grid)
        else:
            self.positions.table, self.positions.grid = self.positions(self.grid), self.grid

    def layout(self, batch: Batch) -> Layout:
        """The layout of a batch's tokens. Raises ValueError without a modality of the encoder, or for several sizes."""
        given = [m for m in self.modalities if m.name in batch.maps]
        if not given:
            raise ValueError(
                f"a batch needs one of {', '.join(m.name for m in self.modalities)}; got {', '.join(batch.maps)}"
            )
        sizes = {tuple(side * m.stride for side in batch.maps[m.name].shape[-2:]) for m in given}
        if len(sizes) != 1:
            raise ValueError(f"modalities of one batch need one size; got {sizes}")
        grid = token_grid(sizes.pop(), self.patch)
        cells = grid[0] * grid[1]
        return Layout({m.name: slice(i * cells, (i + 1) * cells) for i, m in enumerate(given)}, grid)

    def embed(self, batch: Batch) -> Tokens:
        """Every token of every modality of the batch, in one sequence."""
        layout = self.layout(batch)
        positions = self.positions(layout.grid)
        values = torch.cat([self.adapters[name](batch) + positions for name in layout.spans], dim=1)
        ids = torch.arange(layout.num_tokens, device=values.device).expand(values.shape[:2])
        return Tokens(values, ids, layout, missing(batch, layout))

    def first_input(self, tokens: Tokens) -> tuple[Float[Tensor, "B K D"], Keys]:
        """The input of the first block, K = R + V tokens, prefix first, and which of them may be attended to."""
        x = torch.cat([self.prefix.expand(tokens.values.shape[0], -1, -1), tokens.values], dim=1)
        if tokens.missing is None:
            return x, None
        return x, F.pad(~tokens.missing, (len(self.prefix), 0), value=True)

    def forward(self, tokens: Tokens, keep: Collection[int] = ()) -> Latents:
        """Encode tokens. `keep` names the layers to return besides the last: 0 the input, k the output of block k."""
        x, keys = self.first_input(tokens)
        layers = {0: x} if 0 in keep else {}
        for depth, block in enumerate(self.blocks, start=1):
            x = block(x, keys)
            if depth in keep:
                layers[depth] = x
        return Latents(self.norm(x), layers, tokens, len(self.prefix))

    def outputs(self, tokens: Tokens, blocks: Sequence[int]) -> list[Float[Tensor, "B K D"]]:
        """The outputs of these blocks, counted from 1, before the final norm; no block after them is run."""
        x, keys = self.first_input(tokens)
        by_block = {}
        for number, block in enumerate(self.blocks[: max(blocks)], start=1):
            by_block[number] = x = block(x, keys)
        return [by_block[number] for number in blocks]

    def observe(self, tokens: Tokens, spec: FeatureSpec = FEATURE_SPEC) -> Observation:
        """The attention of one block and the features of the last ones; no block is run that `spec` does not need.

        Features of one block are after the final norm; of several blocks, or with `spec.norm` instance, each is
        normalised without parameters and the mean is taken. Raises ValueError for what this encoder does not have.
        """
        check_spec(spec, self.depth, len(self.prefix))
        x, keys = self.first_input(tokens)
        attention, outputs = observe_blocks(self.blocks, x, spec, len(self.prefix), keys)
        features = class_token = None
        if spec.features == 1 and spec.norm == "layer":
            features = self.norm(outputs[0])
        elif outputs:
            features = mean_of_blocks(outputs, spec.norm)
        if features is not None and spec.class_token:
            class_token, features = features[:, 0], features[:, len(self.prefix) :]
        return Observation(tokens.layout, attention, features, class_token=class_token)


def missing(batch: Batch, layout: Layout) -> Bool[Tensor, "B N"] | None:
    """The tokens of modalities that a sample does not have; None where the batch does not say."""
    if not any(name in batch.present for name in layout.spans):
        return None
    all_present = torch.ones_like(batch.key, dtype=torch.bool)
    present = torch.stack([batch.present.get(name, all_present) for name in layout.spans], dim=1)
    return ~present.repeat_interleave(layout.num_cells, dim=1)


def vit(
    size: str = "base",
    patch: int = 16,
    image_size: Sequence[int] = (224,),
    modalities: Sequence[Modality] = (RGB,),
    final_norm: bool = True,
    resize_positions: ResizePositions = "interpolate",
    **parts: Any,
) -> Encoder:
    """A ViT of a standard size (nano to giant) that reads the given modalities; `parts` as `Encoder` takes them."""
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}; got {size!r}")
    dim, depth, heads = SIZES[size]
    parts = {"resize_positions": resize_positions, **parts}
    return Encoder(modalities, image_size, patch, dim, depth, heads, final_norm, **parts)
