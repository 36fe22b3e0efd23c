"""MAE (He et al., 2022; arXiv 2111.06377) in one file of plain PyTorch, to read beside `unveil`'s recipe `mae`.

Nothing is imported from unveil, and nothing here is used by it. The tests load the weights of one into the other: loss
and gradients are equal. Parameter names are those of the public code. B images, N patches, V visible ones, D width.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """A pre-norm transformer block: self-attention, then an MLP."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    def forward(self, x):
        qkv = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each B heads N D/heads
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.attn["proj"](attended)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class MAE(nn.Module):
    """A ViT that reads a random quarter of the patches, and a small decoder that predicts the pixels of the others."""

    def __init__(self, image_size=224, patch=16, dim=768, depth=12, heads=12, decoder_dim=512, decoder_depth=8,
                 decoder_heads=16, visible=0.25):  # fmt: skip
        super().__init__()
        self.patch, self.side = patch, image_size // patch
        self.num_visible = int(visible * self.side**2)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder_blocks = nn.ModuleList(Block(decoder_dim, decoder_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_dim, patch**2 * 3)

        self.register_buffer("positions", sincos(self.side, dim), persistent=False)
        self.register_buffer("decoder_positions", sincos(self.side, decoder_dim), persistent=False)
        self.apply(initialise)
        nn.init.xavier_uniform_(self.patch_embed["proj"].weight.flatten(1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, images, noise=None):
        """The loss of normalised images, B 3 H W. `noise`, B N, orders the patches: the lowest stay visible."""
        noise = torch.rand(len(images), self.side**2, device=images.device) if noise is None else noise
        order = noise.argsort(dim=1)
        latents = self.encode(images, order[:, : self.num_visible])
        predicted = self.decode(latents, order)

        target = patchify(images, self.patch)
        mean, var = target.mean(dim=2, keepdim=True), target.var(dim=2, keepdim=True)  # unbiased, as in the public code
        target = (target - mean) / (var + 1e-6).sqrt()
        is_masked = torch.ones_like(noise).scatter(1, order[:, : self.num_visible], 0)
        error = (predicted - target).square().mean(dim=2)
        return (error * is_masked).sum() / is_masked.sum()

    def encode(self, images, visible):
        """The class token and the visible patches, B 1+V D."""
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2) + self.positions
        x = take(x, visible)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def decode(self, latents, order):
        """The predicted pixels of every patch, B N patch*patch*3."""
        x = self.decoder_embed(latents)
        masked = self.mask_token.expand(len(x), order.shape[1] - self.num_visible, -1)
        patches = take(torch.cat([x[:, 1:], masked], dim=1), order.argsort(dim=1))  # back in raster order
        x = torch.cat([x[:, :1], patches + self.decoder_positions], dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x)[:, 1:])


def take(x, ids):
    """The tokens of each image with these ids: B N D at B K -> B K D."""
    return x.gather(1, ids[:, :, None].expand(-1, -1, x.shape[2]))


def patchify(images, patch):
    """B 3 H W -> B N patch*patch*3, in raster order, the pixels of a patch by row, column, channel."""
    x = images.unfold(2, patch, patch).unfold(3, patch, patch)  # B 3 rows columns patch patch
    return x.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def sincos(side, dim):
    """The fixed sine-cosine position embedding of a square grid, N D: x in the first half, y in the second."""
    omega = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.flatten()[:, None] * omega for place in (x, y)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()


def initialise(module):
    """Xavier-uniform weights and zero biases of linear layers."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
