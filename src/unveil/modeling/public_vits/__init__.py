"""Weights of other projects: the only package that knows their parameter names.

It reads them without their code, and reports every key. All public ViTs are one module (`vit.py`) under different
descriptions; `families.py` recognises them, `loading.py` loads them, and `parameter_names.py` renames what pretraining
starts from.
"""

from .loading import GIVEN, describe, encoder_of, load_encoder, recognise
from .parameter_names import adapt_channels, rename, sincos_grid, to_own_names, with_channels
from .vit import PublicViT, ViT, ViTConfig, untrained_vit
from .weight_files import (
    BESIDE,
    KeyReport,
    StateDict,
    WeightFiles,
    files_of_run,
    find_weights,
    is_public_vit,
    load_weights,
    numbered,
    read_weights,
    saved_statistics,
    summarise,
)
