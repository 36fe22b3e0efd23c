"""Weights of other projects: the only package that knows their parameter names.

It reads them without their code, and reports every key. All public ViTs are one module (`vit.py`) under different
descriptions; `families.py` recognises them, and `own_names.py` renames what pretraining starts from.
"""

from .encoder import PublicViT, describe, load_encoder, untrained_vit
from .input_channels import adapt_channels, with_channels
from .own_names import to_own_names
from .vit import ViT, ViTConfig
from .weight_files import KeyReport, StateDict, WeightFiles, find_weights, is_public_vit, load_weights, read_weights

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
