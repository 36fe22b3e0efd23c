"""Weights of other projects: the only package that knows their parameter names.

It reads them without their code, and reports every key. All public ViTs are one module (`vit.py`) under different
descriptions; `families.py` recognises them, and `parameter_names.py` renames what pretraining starts from.
"""

from .encoder import PublicViT, describe, load_encoder, untrained_vit
from .parameter_names import adapt_channels, to_own_names, with_channels
from .vit import ViT, ViTConfig
from .weight_files import KeyReport, StateDict, WeightFiles, find_weights, is_public_vit, load_weights, read_weights
