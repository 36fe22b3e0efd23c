"""The weights that a run starts from: our own, or a public checkpoint's under our names."""

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


def fitting(weights: StateDict, built: Recipe, config: PretrainConfig) -> StateDict:
    """The weights under our names, with a table of keys told. Raises ValueError when the encoder takes none."""
    first = built.encoder.modalities[0]
    state = to_own_names(weights, first.name)
    if config.init_channels:
        state = with_channels(state, first.name, first.channels, first.side(built.encoder.patch), config.init_channels)
    report = load_weights(built.stages[0].build(), state)
    log(str(report))
    if not any(name.startswith("encoder.blocks.") for name in report.loaded):
        raise ValueError(
            "nothing in --init-from fits this encoder; give a checkpoint of the same size, or another --size"
        )
    return state
