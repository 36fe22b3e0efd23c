"""The MAE of other projects, each at its own defaults: transformers, lightly, and timm's blocks in our own MAE loop.

They read images without normalisation, which costs only ours.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...modeling.encoder import SIZES
from ...modeling.layers import EPS, sincos_positions
from ...modeling.patches import patchify
from ...modeling.types import RGB, Batch, take
from .work import Contender, TimedModel, Work

VISIBLE = 0.25
_DECODER = (512, 8, 16)  # width, depth and heads, the paper's


class Transformers(TimedModel):
    """ViTMAE of transformers, which returns its own loss."""

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        loss: Tensor = self.model(batch.maps[RGB.name]).loss
        return loss


def _vit_mae(work: Work) -> TimedModel:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    dim, depth, heads = SIZES[work.size]
    config = ViTMAEConfig(  # its decoder's defaults are the paper's, as ours are
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * dim,
        image_size=work.sides[0],
        patch_size=work.patch,
        mask_ratio=1 - VISIBLE,
        norm_pix_loss=True,
        layer_norm_eps=EPS,
    )
    return Transformers(ViTMAEForPreTraining(config))


def _pixels_loss(
    predicted: Float[Tensor, "B P T"], images: Float[Tensor, "B C H W"], cells: Tensor, patch: int
) -> Float[Tensor, ""]:
    """The mean squared error of the predicted patches, each patch of the image normalised."""
    target = take(patchify(images, patch), cells)
    mean, var = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
    return (predicted.float() - (target - mean) / (var + EPS).sqrt()).square().mean()


class TimmMAE(nn.Module):
    """MAE of timm's patch embedding and blocks, as most code that follows the paper is; masks by sorted noise."""

    def __init__(self, work: Work):
        super().__init__()
        from timm.layers import PatchEmbed
        from timm.models.vision_transformer import Block

        dim, depth, heads = SIZES[work.size]
        width, layers, narrow_heads = _DECODER
        self.patch = work.patch
        self.embed = PatchEmbed(work.sides, work.patch, RGB.channels, dim)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, EPS)
        self.narrow = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder = nn.Sequential(*(Block(width, narrow_heads, qkv_bias=True) for _ in range(layers)))
        self.decoder_norm = nn.LayerNorm(width, EPS)
        self.head = nn.Linear(width, RGB.channels * work.patch**2)
        grid = self.embed.grid_size
        self.positions = nn.Buffer(sincos_positions(grid, dim))
        self.decoder_positions = nn.Buffer(sincos_positions(grid, width))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        tokens = self.embed(images) + self.positions
        order = torch.rand(tokens.shape[:2], device=tokens.device).argsort(dim=1)
        count = int(VISIBLE * tokens.shape[1])
        class_token = self.class_token.expand(len(tokens), -1, -1)
        x = self.norm(self.blocks(torch.cat([class_token, take(tokens, order[:, :count])], dim=1)))
        x = self.narrow(x)
        blank = self.mask_token.expand(len(x), tokens.shape[1] - count, -1).to(x.dtype)
        whole = take(torch.cat([x[:, 1:], blank], dim=1), order.argsort(dim=1)) + self.decoder_positions
        x = self.decoder_norm(self.decoder(torch.cat([x[:, :1], whole], dim=1)))
        hidden = order[:, count:]
        return _pixels_loss(take(self.head(x[:, 1:]), hidden), images, hidden, self.patch)


class OnImages(TimedModel):
    """A model that maps images to its loss."""

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        loss: Tensor = self.model(batch.maps[RGB.name])
        return loss


class LightlyMAE(nn.Module):
    """MAE of lightly's encoder and decoder, which are timm's ViTs, with its own random masks and gathers."""

    def __init__(self, work: Work):
        super().__init__()
        from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
        from timm.models.vision_transformer import VisionTransformer

        dim, depth, heads = SIZES[work.size]
        width, layers, narrow_heads = _DECODER
        self.patch = work.patch
        vit = VisionTransformer(
            work.sides, work.patch, embed_dim=dim, depth=depth, num_heads=heads, num_classes=0, global_pool=""
        )
        self.encoder = MaskedVisionTransformerTIMM(vit)
        self.decoder = MAEDecoderTIMM(
            vit.patch_embed.num_patches,
            work.patch,
            embed_dim=dim,
            decoder_embed_dim=width,
            decoder_depth=layers,
            decoder_num_heads=narrow_heads,
        )

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        from lightly.models import utils

        size = (len(images), self.encoder.sequence_length)
        kept, hidden = utils.random_token_mask(size, mask_ratio=1 - VISIBLE, device=images.device)
        x = self.decoder.embed(self.encoder.encode(images, idx_keep=kept))
        whole = utils.repeat_token(self.decoder.mask_token, size).to(x.dtype)
        decoded = self.decoder.decode(utils.set_at_index(whole, kept, x))
        predicted = self.decoder.predict(utils.get_at_index(decoded, hidden))
        return _pixels_loss(predicted, images, hidden - 1, self.patch)  # their ids count the class token


def _needs(install: str, *modules: str) -> Callable[[Work], str]:
    """Why a contender of these modules cannot run: one is not installed, or does not fit this torch."""

    def absent(work: Work) -> str:
        try:
            for module in modules:
                importlib.import_module(module)
        except (ImportError, RuntimeError, AttributeError) as error:  # the latter two: it does not fit this torch
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            return f"not installed ({reason}); pip install {install}"
        return ""

    return absent


def _no_vit_mae(work: Work) -> str:
    if why := _needs("'transformers>=5'", "transformers", "transformers.models.vit_mae.modeling_vit_mae")(work):
        return why
    if work.sides[0] != work.sides[1]:
        return f"its ViTMAE reads square images only; these are {work.sides[0]} x {work.sides[1]}"
    return ""


def _on_images(model: Callable[[Work], nn.Module]) -> Callable[[Work], Any]:
    return lambda work: OnImages(model(work))


PEERS = (
    Contender("transformers", "transformers' ViTMAE", _vit_mae, absent=_no_vit_mae),
    Contender(
        "timm",
        "MAE of timm's blocks",
        _on_images(TimmMAE),
        absent=_needs("timm torchvision", "timm.models.vision_transformer"),
    ),
    Contender(
        "lightly",
        "lightly's MAE",
        _on_images(LightlyMAE),
        absent=_needs("lightly timm torchvision", "timm.models.vision_transformer", "lightly.models.modules"),
    ),
)
