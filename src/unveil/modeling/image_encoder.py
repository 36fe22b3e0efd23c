"""A pretrained encoder as a function of images: it normalises them itself, and is deterministic."""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..runs.checkpoint import write_weights
from ..runs.console import user_path
from .encoder import Encoder
from .layers import EPS, Block, ResizePositions, Rotation
from .normalizer import Normalizer
from .patches import known_pixels
from .pooling import combined, pool_tokens, resolve_layers
from .types import PARTS, RGB, Batch, Combine, FeatureSpec, Modality, Observation, Pool, to_float

Query = Literal["cls", "mean", "all"]
Readouts = tuple[Float[Tensor, "B D"], Float[Tensor, "B N D"]]
CACHED_TOKENS = 2048
MARGIN = 0.5  # by which a resized image may leave [0, 1]


class Trunk(Protocol):
    """The transformer of an encoder: tokens that come before the patches, blocks, and a final norm."""

    @property
    def prefix(self) -> Tensor: ...

    @property
    def blocks(self) -> Sequence[Block]: ...

    @property
    def norm(self) -> nn.Module: ...


class FeatureExtractor(nn.Module, ABC):
    """Images (B C H W, float in [0, 1] or uint8) -> one feature vector each (B F).

    It is in eval mode and its weights are frozen, so that nothing is recorded for gradients; after
    `requires_grad_(True)` it trains like any module. Images outside [0, 1] are warned of once.

    Pixels that are NaN or infinite, and of depth those that are not above 0, hold no truth and are read as in training;
    that RGB images have some is warned of once. Measured maps, such as depth in metres, are in their unit.

    It reads the `modalities`, of which the first is that of the images. `image_size` is the height and width in pixels
    that the encoder was trained at; others that the patch divides work too. `dim` is the width of a token, of which
    `num_prefix` come before those of the patches, and `depth` the number of blocks. Raises ValueError for images of
    another number of channels, or of a size that the patch does not divide.

    Features are those of the last block, or of the `layers` that `read` chooses; `normalizer`, where there is one, is
    applied to them.
    """

    def __init__(self, modalities: Sequence[Modality], patch: int, grid: tuple[int, int], pool: Pool):
        super().__init__()
        self.modalities, self.patch, self.pool = tuple(modalities), patch, pool
        self.image_size = grid[0] * patch, grid[1] * patch
        self.layers: tuple[int, ...] = ()  # of which features are; the last block
        self.combine: Combine = "concat"
        self.normalizer: Normalizer | None = None
        self.transform: Callable[[Any], Tensor] | None = None  # pictures to its input, where `load` has made it
        self.has_warned = False

    def __repr__(self) -> str:
        """One line; `print(encoder.trunk)` is PyTorch's tree of its modules."""
        inputs = " + ".join(f"{m.name} of {m.channels} channel{'s' * (m.channels > 1)}" for m in self.modalities)
        weights = sum(p.numel() for p in self.parameters()) / 1e6
        read = f"blocks {', '.join(map(str, self.layers))}" if self.layers else "the last block"
        return (
            f"<{type(self).__name__}: {inputs}, {self.image_size[0]} x {self.image_size[1]} pixels in patches of"
            f" {self.patch}, {self.depth} blocks of width {self.dim}, {weights:.1f} M weights"
            f" {'that train' if any(p.requires_grad for p in self.parameters()) else 'that are frozen'}, on"
            f" {self.device}; features: {self.pool} of {read}>"
        )

    @property
    @abstractmethod
    def trunk(self) -> Trunk:
        """The transformer, under the name that the weights have in files."""

    @property
    def num_prefix(self) -> int:
        return len(self.trunk.prefix)

    @property
    def has_class_token(self) -> bool:
        return self.num_prefix > 0

    @property
    def dim(self) -> int:
        return self.trunk.prefix.shape[1]

    @property
    def depth(self) -> int:
        return len(self.trunk.blocks)

    @property
    def channels(self) -> int:
        return self.modalities[0].channels

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The mean and the standard deviation of each channel, by which it normalises images in [0, 1]."""
        return self.modalities[0].mean, self.modalities[0].std

    @property
    def preprocess_config(self) -> dict[str, Any]:
        """What `transform` does and how the encoder normalises its result, in timm's names; for other code to repeat.

        `crop_pct` is of pictures whose short side exceeds 96 pixels; of smaller ones nothing is cut.

        >>> import unveil
        >>> encoder = unveil.load("runs/a", device="cpu")
        >>> encoder.preprocess_config["input_size"], encoder.transform("images/even/000.png").shape
        ((3, 16, 16), torch.Size([3, 16, 16]))
        """
        mean, std = self.statistics
        size = (self.channels, *self.image_size)
        how = {"interpolation": "bicubic", "crop_pct": 224 / 256, "crop_mode": "center"}
        return {"input_size": size, "mean": mean, "std": std, **how}

    @property
    @abstractmethod
    def resize_positions(self) -> ResizePositions:
        """How images of another size than `image_size` get their positions."""

    @property
    def blocks(self) -> Sequence[Block]:
        return self.trunk.blocks

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block; an identity where there is none."""
        return self.trunk.norm

    @property
    def device(self) -> torch.device:
        """The device of the weights, to which images are moved."""
        return self.trunk.prefix.device

    def features(self, images: Float[Tensor, "B C H W"], pool: Pool | None = None) -> Float[Tensor, "B F"]:
        """The class token, the mean of the patch tokens, or both side by side, of float images in [0, 1].

        By default as the encoder's own `pool` says; a call of the encoder is the same, of images that it checks.

        >>> import torch, unveil
        >>> unveil.load("runs/a", device="cpu").features(torch.rand(2, 3, 16, 16), "both").shape
        torch.Size([2, 256])
        """
        return self.features_of(_batch(images, self.modalities[0]), pool or self.pool)

    def patch_features(self, images: Tensor, layer: int = -1) -> Float[Tensor, "B D h w"]:
        """The features of each patch in block `layer`, in their places: h = H / patch, w = W / patch.

        >>> import torch, unveil
        >>> unveil.load("runs/a", device="cpu").patch_features(torch.rand(2, 3, 16, 24)).shape
        torch.Size([2, 128, 4, 6])
        """
        return self.intermediate_features(images, (layer,))[0]

    def intermediate_features(self, images: Tensor, layers: Sequence[int] = ()) -> list[Float[Tensor, "B D h w"]]:
        """The features of each patch in these blocks, all of them by default, by one pass.

        Blocks are counted from 1, or from the end (-1). The last has the final norm; those before it are normalised
        without parameters, token by token. Raises ValueError for a block that there is not.

        >>> import torch, unveil
        >>> maps = unveil.load("runs/a", device="cpu").intermediate_features(torch.rand(2, 3, 16, 16), (1, -1))
        >>> [tuple(one.shape) for one in maps]
        [(2, 128, 4, 4), (2, 128, 4, 4)]
        """
        blocks = resolve_layers(layers or range(1, self.depth + 1), self.depth)
        batch = _batch(self.as_float(images), self.modalities[0])
        rows = images.shape[-2] // self.patch
        chunks = [self.readouts(chunk, blocks) for chunk in batch.split(self.at_once(batch))]
        maps = (torch.cat([patches for _, patches in block]) for block in zip(*chunks, strict=True))
        return [rearrange(patches, "b (h w) d -> b d h w", h=rows).contiguous() for patches in maps]

    def attention(self, images: Tensor, layer: int = -1, query: Query | None = None) -> Float[Tensor, "B H h w"]:
        """The attention that each patch gets in block `layer`, by head; the rest of a head's 1 is that of the prefix.

        query: whose attention: the class token's (cls), that of one query that is the mean of all patches', or the mean
            over the rows of all patches (all); by default cls, or mean where there is no class token

        Blocks are counted from 1, or from the end (-1). Raises ValueError for a block that there is not, and for cls
        where there is none.

        >>> import torch, unveil
        >>> unveil.load("runs/a", device="cpu").attention(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 4, 4, 4])
        """
        (block,) = resolve_layers((layer,), self.depth)
        query = query or ("cls" if self.has_class_token else "mean")
        spec = FeatureSpec(attention=query, layer=block - 1, features=0)
        attention = self.observe_images(self.as_float(images), spec).attention
        assert attention is not None
        return attention.unflatten(-1, (images.shape[-2] // self.patch, -1))

    @abstractmethod
    def observe_images(self, images: Float[Tensor, "B C H W"], spec: FeatureSpec) -> Observation:
        """What `spec` reads of whole images in [0, 1]; no block is run that it does not need."""

    @abstractmethod
    def readouts(self, batch: Batch, blocks: Sequence[int]) -> list[Readouts]:
        """Of each block, counted from 1, the class token and the patch tokens, after the final norm or another."""

    def at_once(self, batch: Batch) -> int:
        """How many images of a batch are encoded at a time: the fastest number on a CPU, all on a GPU."""
        return images_at_once(batch, self.modalities, self.patch)

    def features_of(self, batch: Batch, pool: Pool) -> Float[Tensor, "B F"]:
        """The same, of all maps of a batch together: the mean is that of the patches of all of them."""
        features = self.pooled(batch, pool)
        return features if self.normalizer is None else self.normalizer(features)

    def pooled(self, batch: Batch, pool: Pool) -> Float[Tensor, "B F"]:
        """The class token, the mean of the patch tokens, or both side by side, before the normaliser.

        On a CPU a few images are encoded at a time, so that their activations stay in its cache: 1.4 times as fast.
        Raises ValueError for a class token that the encoder does not have.
        """
        if "cls" in PARTS[pool] and not self.has_class_token:
            raise ValueError("this encoder has no class token; use --pool mean")
        size = self.at_once(batch)
        if not is_traced() and len(batch) > size:
            return torch.cat([self.pooled(chunk, pool) for chunk in batch.split(size)])
        read = self.readouts(batch, self.layers or (self.depth,))
        return combined([pool_tokens(cls, patches, pool) for cls, patches in read], self.combine)

    def read(self, layers: Sequence[int], combine: Combine = "concat") -> None:
        """Take features of these blocks, counted from 1, or from the end: -1 is the last.

        Several are put side by side, or their mean is taken. Blocks before the last are normalised without parameters,
        token by token. Raises ValueError for a block that there is not.
        """
        self.layers, self.combine = resolve_layers(layers, self.depth), combine

    @abstractmethod
    def tokens(self, batch: Batch, blocks: Sequence[int]) -> list[Float[Tensor, "B K D"]]:
        """The outputs of these blocks, as `maps`, of all modalities that the batch has, one after another."""

    @abstractmethod
    def patch_input(self, images: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B N D"], Rotation]:
        """The input of the first block without prefix tokens, and the rotation of queries and keys in all blocks."""

    def maps(self, images: Float[Tensor, "B C H W"], blocks: Sequence[int]) -> list[Float[Tensor, "B K D"]]:
        """The outputs of these blocks, counted from 1, before any final norm: prefix tokens, then patches by rows."""
        return self.tokens(_batch(images, self.modalities[0]), blocks)

    def layer_of(self, name: str) -> int:
        """The layer of a parameter: 0 before the blocks, k in block k counted from 1, depth + 1 after them."""
        _, module, *rest = name.split(".")
        if module == "blocks":
            return int(rest[0]) + 1
        return self.depth + 1 if module in ("norm", "projection") else 0

    def windowed(self, *how: Any) -> nn.Module:
        """A copy whose attention is inside windows, as a `WindowedViT`, which takes the same arguments."""
        from .windowed import WindowedViT  # which is a module of encoders like this one

        return WindowedViT(self, *how)

    def branches(self) -> Sequence[Sequence[nn.Module]]:
        """Of each block, the modules whose outputs are added to its input."""
        return [(block.ls1, block.ls2) for block in self.blocks]

    if TYPE_CHECKING:  # torch types the call of a module as Any

        def __call__(self, images: Tensor) -> Tensor: ...

    def forward(self, images: Tensor) -> Float[Tensor, "B F"]:
        return self.features(self.as_float(images))

    def as_float(self, images: Tensor) -> Float[Tensor, "B C H W"]:
        """Checked images in [0, 1], on the encoder's device and in its type. Raises ValueError for another shape."""
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != self.channels:
            way = "encoder.transform(image)[None] makes one of a picture, an array or a path"
            given = tuple(images.shape) if isinstance(images, Tensor) else f"a {type(images).__name__}; {way}"
            raise ValueError(f"images are B x {self.channels} x H x W in [0, 1]; got {given}")
        if images.dtype != torch.uint8 and not is_traced():
            self._warn_of_range(images)
        return to_float(images.to(self.device)).to(self.trunk.prefix.dtype)

    def _warn_of_range(self, images: Tensor) -> None:
        """Warn, once, of images that are no fractions of a full scale; what resizing overshoots is no cause."""
        mean, std = self.statistics
        in_fractions = self.modalities[0].normalise == "fixed" and all(0 < value < 1 for value in (*mean, *std))
        if not in_fractions or self.has_warned or not images.numel():
            return
        low, high = (value.item() for value in images.detach().aminmax())
        if low != low and self.modalities[0].name == RGB.name:
            self.has_warned = True
            warnings.warn("images hold NaN: these pixels are read as missing, as the mean colour", stacklevel=4)
        if low < -MARGIN or high > 1 + MARGIN:
            self.has_warned = True
            warnings.warn(
                f"images are expected in [0, 1], and these reach from {low:.3g} to {high:.3g}: give uint8,"
                " divide by 255, or leave the normalisation out, which this encoder does itself",
                stacklevel=4,
            )


def is_traced() -> bool:
    """Whether a call is recorded by `torch.export`, `torch.compile`, `torch.onnx` or `torch.jit.trace`."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


class ImageEncoder(FeatureExtractor):
    """The encoder of a run as a feature extractor: what `unveil.load` returns, and what `unveil evaluate` measures.

    Features are B D, B 2D or B 3D, as the pool says. Raises ValueError as `FeatureExtractor` does.
    """

    def __init__(self, encoder: Encoder, pool: Pool = "mean"):
        super().__init__(encoder.modalities, encoder.patch, encoder.grid, pool)
        self.encoder = encoder
        self.eval().requires_grad_(False)

    @property
    def trunk(self) -> Encoder:
        return self.encoder

    @property
    def resize_positions(self) -> ResizePositions:
        return self.encoder.positions.resize

    def tokens(self, batch: Batch, blocks: Sequence[int]) -> list[Float[Tensor, "B K D"]]:
        return self.encoder.outputs(self.encoder.embed(batch), blocks)

    def patch_input(self, images: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B N D"], Rotation]:
        return self.encoder.embed(_batch(images, self.modalities[0])).values, None

    def observe_images(self, images: Float[Tensor, "B C H W"], spec: FeatureSpec) -> Observation:
        return self.encoder.observe(self.encoder.embed(_batch(images, self.modalities[0])), spec)

    def readouts(self, batch: Batch, blocks: Sequence[int]) -> list[Readouts]:
        return readouts(self.encoder, batch, blocks)

    def save(self, file: str | Path) -> None:
        """Write the encoder to a .safetensors file that `load`, `--teacher` and `--init-from` read.

        Raises ValueError for a file of another name, which they would not know.
        """
        path = user_path(file)
        if path.suffix != ".safetensors":
            raise ValueError(f"an encoder is saved to a .safetensors file; got {file}")
        model = {"heads": self.encoder.blocks[0].attn.heads}
        options = {"image_size": self.image_size, "resize_positions": self.resize_positions}
        metadata = {"modality": asdict(self.modalities[0]), "options": options, "model": model}
        state = {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        write_weights(path, state, {"unveil": json.dumps(metadata)})


def readouts(encoder: Encoder, batch: Batch, blocks: Sequence[int]) -> list[Readouts]:
    """Of each block, counted from 1, the class token and the patch tokens of all maps.

    The last block has the encoder's final norm. Those before it, and the last of an encoder without one (CrossMAE's),
    are normalised without parameters, token by token.
    """
    has_norm = not isinstance(encoder.norm, nn.Identity)
    read = []
    for block, x in zip(blocks, encoder.outputs(encoder.embed(batch), blocks), strict=True):
        x = encoder.norm(x) if has_norm and block == encoder.depth else F.layer_norm(x, x.shape[-1:], eps=EPS)
        read.append((x[:, 0], x[:, len(encoder.prefix) :]))
    return read


def pooled(encoder: Encoder, images: Float[Tensor, "B C H W"], pool: Pool) -> Float[Tensor, "B F"]:
    """The same features as `ImageEncoder`'s, of the last block of an encoder that is in training."""
    batch = _batch(images, encoder.modalities[0])
    chunks = batch.split(images_at_once(batch, encoder.modalities, encoder.patch))
    return torch.cat([pool_tokens(*readouts(encoder, chunk, (encoder.depth,))[0], pool) for chunk in chunks])


def images_at_once(batch: Batch, modalities: Sequence[Modality], patch: int) -> int:
    """How many images of a batch are encoded at a time: on a CPU so many that their activations stay in its cache."""
    if batch.key.device.type != "cpu":
        return len(batch)
    strides = {m.name: m.stride for m in modalities}
    per_image = sum(x.shape[-2:].numel() * strides[n] ** 2 // patch**2 for n, x in batch.maps.items())
    return max(1, CACHED_TOKENS // max(1, per_image))


def _batch(images: Float[Tensor, "B C H W"], modality: Modality) -> Batch:
    key = torch.zeros(images.shape[0], dtype=torch.int64, device=images.device)
    valid = known_pixels(images, modality)
    return Batch({modality.name: images}, key, torch.ones((), device=images.device), {modality.name: valid})
