"""Weights of other projects: the one room that knows their names.

Reads safetensors, `.pth` through torch's weights-only loader with an allow-list, and TorchScript archives, as OpenAI's
CLIP is published, without their code: no pickle runs any. Whatever is loaded comes with a table of keys. All public
ViTs are one module (`vit.py`) under different descriptions; a family is a file that knows its names (`clip.py`,
`dino.py`, ...).
"""

from .encoder import ForeignEncoder, describe, fresh, load_encoder
from .files import State, read_weights
from .input_channels import adapt_bands, with_bands
from .load_report import KeyReport, load_weights
from .locate import Found, find, is_foreign
from .mae import translate
from .vit import Spec, ViT

__all__ = [
    "ForeignEncoder",
    "Found",
    "KeyReport",
    "Spec",
    "State",
    "ViT",
    "adapt_bands",
    "describe",
    "find",
    "fresh",
    "is_foreign",
    "load_encoder",
    "load_weights",
    "read_weights",
    "translate",
    "with_bands",
]
