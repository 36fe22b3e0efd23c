"""A public masked autoencoder as a run of ours: the recipe and the options whose model its weights are, to the bit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data.modality_config import BUILT_IN, Declared
from ..modeling.encoder import SIZES
from ..modeling.layers import EPS
from ..modeling.masked_model import MaskedModel
from ..modeling.public_vits import BESIDE, StateDict, ViTConfig, WeightFiles, load_weights, summarise, to_own_names
from ..modeling.types import RGB
from .public_encoder import described
from .recipe import ENCODER, Recipe
from .registry import build_recipe, defaults_of, load_recipe
from .stored_encoder import StoredEncoder

_PIXELS = "decoders.pixels."


@dataclass(frozen=True)
class Imported:
    """Weights of ours: their recipe (`ENCODER` where they have no decoder), its options, and what the encoder is."""

    recipe: str
    options: Mapping[str, Any]
    encoder: StoredEncoder
    weights: StateDict
    left: tuple[str, ...]  # tensors that have no place

    @property
    def declared(self) -> tuple[Declared, ...]:
        """The maps that it reads, and how their files are read; empty for images alone."""
        if len(self.encoder.modalities) == 1:
            return ()
        return tuple(replace(BUILT_IN[m.name], modality=m, measured=False) for m in self.encoder.modalities)

    def build(self) -> tuple[Recipe, MaskedModel]:
        """The recipe, and its model with these weights. Raises ValueError for an encoder without a decoder."""
        if self.recipe == ENCODER:
            raise ValueError("this is an encoder without a decoder")
        recipe = build_recipe(load_recipe(self.recipe), self.encoder.modalities, self.options)
        model = recipe.stages[0].build()
        load_weights(model, self.weights)
        return recipe, model


def own_encoder(files: WeightFiles, config: ViTConfig, vit: Mapping[str, Tensor]) -> Imported | None:
    """The encoder alone, as one of ours; None for a ViT that ours is not, such as one of a learned table of positions.

    `config` and `vit` are what `recognise` makes of the files.
    """
    is_plain = config.activation == "gelu" and config.hidden == 4 * config.width and config.eps <= EPS
    has_more = config.is_gated or config.has_pre_norm or config.has_layer_scale or config.projection
    if not is_plain or has_more or config.num_prefix != 1 or config.positions == "rotary":
        return None
    encoder = described(config, _image_name(files), has_table=False)
    state = to_own_names(files.state, encoder.modalities[0].name)
    own = {n.removeprefix("encoder."): tensor for n, tensor in state.items() if n.startswith("encoder.")}
    own = {name: own[name] for name in encoder.empty().state_dict() if name in own}
    if not encoder.fits(own) or "pos_embed" in state:
        return None
    if "global_tokens" not in files.state and not torch.equal(own["prefix"], vit["prefix"]):  # it has a place
        return None
    weights = {f"encoder.{name}": tensor for name, tensor in own.items()}
    left = tuple(n for n in state if n not in weights and not BESIDE.match(n))
    return Imported(ENCODER, {}, encoder, weights, left)


def has_decoder(files: WeightFiles) -> bool:
    """Whether the weights have the decoder of a masked autoencoder, under any of the names that are read."""
    names = to_own_names(files.state)
    return any(name.startswith((f"{_PIXELS}blocks.", "decoders.rgb.")) for name in names)


def with_decoder(
    own: Imported, files: WeightFiles, decoder_heads: int, norm_pix: bool, allow_left: bool = False
) -> Imported:
    """The same with the decoder that its weights have: of MAE, CrossMAE or MultiMAE.

    Raises ValueError, with the tensors, where no recipe's decoder is that of the weights.
    """
    state = to_own_names(files.state, own.encoder.modalities[0].name)
    sizes = (own.encoder.dim, own.encoder.depth, own.encoder.heads)
    size = next((name for name, known in SIZES.items() if known == sizes), None)
    if size is None:
        raise ValueError(
            f"no recipe has an encoder of width {sizes[0]}, {sizes[1]} blocks and {sizes[2]} heads; --encoder-only"
            " imports it without its decoder"
        )
    name, options = _decoder(state, own.encoder)
    options |= {"size": size, "patch": own.encoder.patch, "image_size": own.encoder.image_size}
    options |= {"decoder_heads": decoder_heads, "resize_positions": own.encoder.resize_positions}
    options |= {} if name == "multimae" else {"norm_pix": norm_pix}
    found = replace(own, recipe=name, options={**defaults_of(load_recipe(name)), **options})
    _, model = found.build()
    report = load_weights(model, state)
    of_decoder = ("decoders.", "objectives.", "decoder_")  # a learned table of positions among them
    left = [n for n in report.unexpected if n.startswith(of_decoder) or not BESIDE.match(n)]
    if report.missing or report.reshaped or (left and not allow_left):
        raise ValueError(
            f"its decoder is not {name}'s: missing {summarise(report.missing)}; of another shape"
            f" {summarise(report.reshaped)}; left over {summarise(left)}; --encoder-only imports the encoder alone"
        )
    return replace(found, weights={n: t.clone() for n, t in model.state_dict().items()}, left=tuple(left))


def _decoder(state: StateDict, encoder: StoredEncoder) -> tuple[str, dict[str, Any]]:
    """The recipe whose decoder is in the weights, and its width and depth."""
    if any(name.startswith("decoders.rgb.") for name in state):
        depth = _count(state, r"decoders\.rgb\.blocks\.(\d+)\.")
        dim = len(state["decoders.rgb.embed.weight"])
        extra = any(name.startswith("decoders.norm_rgb.") for name in state)
        return "multimae", {"decoder_dim": dim, "decoder_depth": depth, "extra_norm_pix": extra}
    shape = {
        "decoder_dim": len(state[f"{_PIXELS}embed.weight"]) if f"{_PIXELS}embed.weight" in state else encoder.dim,
        "decoder_depth": _count(state, r"decoders\.pixels\.blocks\.(\d+)\."),
    }
    if f"{_PIXELS}mask_token" in state:
        shape["decoder_dim"] = state[f"{_PIXELS}mask_token"].numel()
    if not any(name.startswith(f"{_PIXELS}blocks.0.cross_attn.") for name in state):
        return "mae", shape
    blend = state.get(f"{_PIXELS}blend.weight")
    if blend is None:
        return "crossmae", {**shape, "blend": "none"}
    if blend.shape[1] != encoder.depth + 1:
        raise ValueError(
            f"its decoder blends {blend.shape[1]} of the {encoder.depth + 1} maps of the encoder, and which is in no"
            " tensor; --encoder-only imports the encoder alone"
        )
    return "crossmae", shape


def _count(state: StateDict, pattern: str) -> int:
    return 1 + max((int(match[1]) for name in state if (match := re.match(pattern, name))), default=-1)


def _image_name(files: WeightFiles) -> str:
    """The name of the first modality: of weights of ours that which they have, of others rgb."""
    own = next((n for n in files.state if re.match(r"encoder\.adapters\.\w+\.proj\.weight", n)), None)
    known = files.config.get("unveil", {}).get("modality", {})
    return known.get("name", own.split(".")[2]) if own else RGB.name
