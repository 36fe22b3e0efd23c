"""The encoder: adapters turn each modality into tokens, one ViT reads them all."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .layers import EPS, Block, Positions, by_name, in_order, initialise, norm, token
from .patches import patchify
from .records import RGB, Batch, Latents, Layout, Modality, Observation, Reading, Tokens

READING = Reading()

SIZES = {  # width, depth, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
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
    """Patches of a continuous map, normalised by the modality's statistics -> tokens without positions."""

    mean: Tensor
    std: Tensor

    def __init__(self, modality: Modality, patch: int, dim: int):
        super().__init__()
        self.modality, self.patch = modality, patch
        self.register_buffer("mean", torch.tensor(modality.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(modality.std)[:, None, None], persistent=False)
        self.proj = nn.Linear(modality.channels * patch**2, dim)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        return self.proj(patchify((image - self.mean) / self.std, self.patch))


class Encoder(nn.Module):
    """A ViT: prefix tokens, pre-norm blocks, a final norm where the paper has one (CrossMAE has none)."""

    def __init__(
        self,
        modalities: Sequence[Modality],
        image_size: Sequence[int],
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        final_norm: bool = True,
    ):
        super().__init__()
        self.dim, self.depth, self.patch = dim, depth, patch
        self.modalities = tuple(modalities)
        self.grid = token_grid(image_size, patch)
        self.adapters = by_name({m.name: PatchAdapter(m, patch, dim) for m in modalities})
        self.prefix = token(1, dim)
        self.positions = Positions(self.grid, dim)
        self.blocks = in_order(Block(dim, heads) for _ in range(depth))
        self.norm = norm(dim) if final_norm else nn.Identity()
        self.apply(initialise)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images it was built for; others that the patch divides work too."""
        return self.grid[0] * self.patch, self.grid[1] * self.patch

    def embed(self, batch: Batch) -> Tokens:
        """Every token of every modality, in one sequence."""
        maps = {m.name: batch.maps[m.name] for m in self.modalities}
        sizes = {tuple(image.shape[-2:]) for image in maps.values()}
        if len(sizes) != 1:
            raise ValueError(f"modalities of one batch need one size; got {sizes}")
        grid = token_grid(sizes.pop(), self.patch)
        places = self.positions(grid)
        values = torch.cat([self.adapters[name](image) + places for name, image in maps.items()], dim=1)
        spans = {name: slice(i * len(places), (i + 1) * len(places)) for i, name in enumerate(maps)}
        ids = torch.arange(values.shape[1], device=values.device).expand(values.shape[:2])
        return Tokens(values, ids, Layout(spans, grid))

    def forward(self, tokens: Tokens, keep: Collection[int] = ()) -> Latents:
        """Read tokens. `keep` names the maps to hand on besides the last: 0 the input, k the output of block k."""
        x = torch.cat([self.prefix.expand(len(tokens.values), -1, -1), tokens.values], dim=1)
        layers = {0: x} if 0 in keep else {}
        for depth, block in enumerate(self.blocks, start=1):
            x = block(x)
            if depth in keep:
                layers[depth] = x
        return Latents(self.norm(x), layers, tokens, len(self.prefix))

    def observe(self, tokens: Tokens, reading: Reading = READING) -> Observation:
        """What the encoder sees in the whole input: attention of one block, features of the last ones.

        A single map of features is the final one; of several, each is normalised without parameters and the mean is
        taken. Blocks are run only as far as the reading needs.
        """
        if reading.projected:
            raise ValueError("this encoder has no output projection to read features from; ask for projected=False")
        looked = reading.layer % self.depth if -self.depth <= reading.layer < self.depth else -1
        if looked < 0 or not 0 <= reading.features <= self.depth:
            raise ValueError(
                f"an encoder of {self.depth} blocks has layers from {-self.depth} to {self.depth - 1} and features of"
                f" up to {self.depth} blocks; got {reading.layer} and {reading.features}"
            )
        x = torch.cat([self.prefix.expand(len(tokens.values), -1, -1), tokens.values], dim=1)
        attention, maps = None, []
        for index, block in enumerate(self.blocks):
            if index == looked and reading.attention is not None:
                attention = block.attn.seen(block.norm1(x), reading.attention, len(self.prefix))
                if not reading.features:
                    break
            x = block(x)
            if index >= self.depth - reading.features:
                maps.append(x[:, len(self.prefix) :])
        features = None
        if reading.features == 1:
            features = self.norm(maps[0])
        elif maps:
            features = torch.stack([F.layer_norm(m, m.shape[-1:], eps=EPS) for m in maps]).mean(dim=0)
        return Observation(tokens.layout, attention, features)


def vit(
    size: str = "base",
    patch: int = 16,
    image_size: Sequence[int] = (224,),
    modalities: Sequence[Modality] = (RGB,),
    final_norm: bool = True,
) -> Encoder:
    """A ViT of a standard size (tiny, small, base, large, huge) that reads the given modalities."""
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}; got {size!r}")
    dim, depth, heads = SIZES[size]
    return Encoder(modalities, image_size, patch, dim, depth, heads, final_norm)
