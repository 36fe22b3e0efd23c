"""The weights that a run starts from: those of another run, or of a public checkpoint under our names."""

from __future__ import annotations

from pathlib import Path

from ..modeling.public_vits import (
    StateDict,
    find_weights,
    is_public_vit,
    load_weights,
    read_weights,
    to_own_names,
    with_channels,
)
from ..recipes.recipe import Recipe
from ..recipes.run import Run
from ..runs.console import log
from .config import PretrainConfig


def read_initial(address: str) -> StateDict:
    """The tensors of a run, of a weight file or of a folder with one, or of a name on the hub."""
    path = Path(address).expanduser()
    if is_public_vit(address):
        return find_weights(address).state
    if not path.is_dir():
        return read_weights(path)
    return Run.open(path).checkpoint().model


def adapt_weights(weights: StateDict, recipe: Recipe, config: PretrainConfig) -> StateDict:
    """The weights under our names; logs which keys fit. Raises ValueError when the encoder takes none."""
    first = recipe.encoder.modalities[0]
    state = to_own_names(weights, first.name)
    if config.init_channels:
        state = with_channels(state, first.name, first.channels, first.side(recipe.encoder.patch), config.init_channels)
    report = load_weights(recipe.stages[0].build(), state)
    log(str(report))
    if not any(name.startswith("encoder.blocks.") for name in report.loaded):
        raise ValueError(
            "--init-from: no weights fit this encoder; give a checkpoint of the same size, or another --size"
        )
    return state
