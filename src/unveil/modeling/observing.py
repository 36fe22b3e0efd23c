"""What is read off the blocks of a ViT that sees the whole input, as a `FeatureSpec` says; our own and public ones."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from .layers import Block, Rotation
from .types import FeatureSpec


def check_spec(spec: FeatureSpec, depth: int, num_prefix: int, has_projection: bool = False) -> None:
    """Raise ValueError for layers, tokens or a projection that an encoder does not have."""
    if not (-depth <= spec.layer < depth and 0 <= spec.features <= depth):
        raise ValueError(
            f"an encoder of {depth} blocks has layers from {-depth} to {depth - 1} and features of up to {depth}"
            f" blocks; got {spec.layer} and {spec.features}"
        )
    if spec.projected and not has_projection:
        raise ValueError("this encoder has no output projection to read features from; ask for projected=False")
    if spec.attention == "cls" and not num_prefix:
        raise ValueError("this encoder has no class token whose attention could be read; ask for mean or all")
    if spec.class_token and not num_prefix:
        raise ValueError("this encoder has no class token whose features could be read")


def observe_blocks(
    blocks: Sequence[Block],
    x: Float[Tensor, "B K D"],
    spec: FeatureSpec,
    num_prefix: int,
    keys: Bool[Tensor, "B K"] | None = None,
    rotation: Rotation | None = None,
) -> tuple[Float[Tensor, "B H N"] | None, list[Tensor]]:
    """The attention of one block, and the outputs (B N D) of the last ones; no block is run that neither needs.

    With `spec.class_token` the outputs have the R prefix tokens before the N others.
    """
    depth, first = len(blocks), 0 if spec.class_token else num_prefix
    attention, outputs = None, []
    for index, block in enumerate(blocks):
        if index == spec.layer % depth and spec.attention is not None:
            attention = block.attn.attention_to_patches(block.norm1(x), spec.attention, num_prefix, keys, rotation)
            if not spec.features:
                break
        x = block(x, keys, None, rotation)
        if index >= depth - spec.features:
            outputs.append(x[:, first:])
    return attention, outputs
