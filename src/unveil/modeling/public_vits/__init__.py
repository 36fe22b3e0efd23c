"""Weights of other projects: the one room that knows their names.

Reads safetensors, `.pth` through torch's weights-only loader with an allow-list, and TorchScript archives, as OpenAI's
CLIP is published, without their code: no pickle runs any. Whatever is loaded comes with a table of keys. All public
ViTs are one module (`vit.py`) under different descriptions; a family is a file that knows its names (`clip.py`,
`dino.py`, ...).
"""

from .encoder import PublicViT, describe, load_encoder, untrained_vit
from .files import StateDict, read_weights
from .input_channels import adapt_channels, with_channels
from .load_report import KeyReport, load_weights
from .locate import WeightFiles, find_weights, is_public_vit
from .mae import to_own_names
from .vit import ViT, ViTConfig

__all__ = [
    "KeyReport",
    "PublicViT",
    "StateDict",
    "ViT",
    "ViTConfig",
    "WeightFiles",
    "adapt_channels",
    "describe",
    "find_weights",
    "is_public_vit",
    "load_encoder",
    "load_weights",
    "read_weights",
    "to_own_names",
    "untrained_vit",
    "with_channels",
]
