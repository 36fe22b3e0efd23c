"""The weights that a run takes over from an earlier training (`--init-from`), with what the encoder of these is."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch

from ..data.inspection import Inspection
from ..modeling.encoder import SIZES
from ..modeling.layers import resized_table, sincos_positions
from ..modeling.optim import make_optimizer
from ..modeling.position_table import TABLE, PositionTable
from ..modeling.public_vits import (
    BESIDE,
    KeyReport,
    StateDict,
    files_of_run,
    find_weights,
    is_public_vit,
    load_weights,
    numbered,
    read_weights,
    rename,
    summarise,
    to_own_names,
    with_channels,
)
from ..modeling.types import Modality
from ..recipes.public_encoder import PublicWeights, described_file, public_weights
from ..recipes.recipe import Recipe
from ..recipes.run import Run
from ..recipes.stored_encoder import StoredEncoder
from ..runs.checkpoint import fitting_moments
from ..runs.console import log, user_path
from .autoconfig import AutoConfig
from .config import PretrainConfig
from .data_setup import DataInspection

TOKENS_A_SIDE = 8  # of an image, at least, where the patch is that of given weights
_OF_WEIGHTS = "that of --init-from"


@dataclass(frozen=True)
class Initial:
    """What a run starts from: weights under our names, and where it goes on with a schedule of a run of ours, that
    optimiser's moments, as a checkpoint has both. `public` is what is known of weights that are no run's, `encoder` the
    encoder that the weights are, where that is known.
    """

    weights: StateDict
    moments: StateDict = field(default_factory=dict)
    encoder: StoredEncoder | None = None
    public: PublicWeights | None = None

    def named(self, image: str) -> StateDict:
        """The weights, of public ones the images called as those of the run."""
        if self.public is None or self.encoder is None or len(self.encoder.modalities) > 1:
            return to_own_names(self.weights, image)
        return rename(self.weights, [(r"^encoder\.adapters\.rgb\.", f"encoder.adapters.{image}.".replace("\\", r"\\"))])


def read_initial(config: PretrainConfig) -> Initial | None:
    """The tensors of `--init-from`: a run, a weight file or a folder with one, or a name on the hub.

    A run's objectives are named, as another run may number them in another order (`load_weights`).
    """
    if config.init_from is None:
        return None
    path = user_path(config.init_from)
    if is_public_vit(config.init_from):
        files = find_weights(config.init_from)
        if "unveil" not in files.config:
            return _of_public(public_weights(files))
        return Initial(files.state, encoder=described_file(files))
    if not path.is_dir():
        return Initial(read_weights(path))
    run = Run.open(path, config.trust)
    saved = run.checkpoint()
    if "beside" in run.imported:
        return _of_public(public_weights(files_of_run(str(path), saved.model, run.config.content)))
    moments = {} if config.continue_schedule == "restart" else saved.optimizer
    if not any(name.startswith("objectives.1.") for name in saved.model):
        return Initial(saved.model, moments, run.described)
    names = [
        (rf"^objectives\.{i}\.", f"objectives.{name}.".replace("\\", r"\\"))
        for i, name in enumerate(_objectives(run, saved.state["stage"]))
    ]
    return Initial(rename(saved.model, names), rename(moments, names), run.described)


def _of_public(public: PublicWeights) -> Initial:
    return Initial(public.weights, encoder=public.encoder, public=public)


def _objectives(run: Run, stage: int) -> list[str]:
    """The names of a stage's objectives: as `run.json` has them, or, of an older run, as its recipe says."""
    stages = run.config.content.get("model", {}).get("stages", ())
    if stage < len(stages) and "objectives" in stages[stage]:
        return list(map(str, stages[stage]["objectives"]))
    with torch.device("meta"):
        return [objective.name for objective in run.recipe().stages[stage].build().objectives]


def with_statistics(
    modalities: tuple[Modality, ...], initial: Initial | None, inspection: DataInspection
) -> tuple[Modality, ...]:
    """The modalities of a run: plain images are normalised as those of its weights were, where these are their like."""
    if initial is None or initial.encoder is None or not isinstance(inspection, Inspection):
        return modalities
    theirs, own = initial.encoder.modalities[0], modalities[0]
    is_other = theirs.name != own.name and initial.public is None
    if is_other or (theirs.channels, theirs.kind, theirs.normalise) != (own.channels, own.kind, own.normalise):
        return modalities
    return (replace(own, mean=theirs.mean, std=theirs.std),)


def configure_initial(auto: AutoConfig, initial: Initial, modality: Modality) -> int:
    """Set what the encoder of these weights is, where they show it and it is not given: size, patch, parts.

    Returns the least side of an image in pixels that gives enough tokens; 0 where the patch stays open.
    """
    state, encoder = initial.named(modality.name), initial.encoder
    blocks = {int(block[1]) for name in state if (block := re.match(r"encoder\.blocks\.(\d+)\.", name))}
    norm = state.get("encoder.blocks.0.norm1.weight")
    for size, (dim, depth, _) in SIZES.items():
        if norm is not None and (len(norm), len(blocks)) == (dim, depth):
            auto.fix("size", size, _OF_WEIGHTS)
    if encoder is not None:
        for part in ("registers", "layer_scale", "mlp"):
            auto.fix(part, getattr(encoder, part), _OF_WEIGHTS)
    patch = encoder.patch if encoder is not None else _patch(state, modality)
    if not patch or "patch" in auto.given:
        return 0
    auto.fix("patch", patch, _OF_WEIGHTS)
    return TOKENS_A_SIDE * patch


def _patch(state: StateDict, modality: Modality) -> int:
    """The patch side in pixels that a projection of patches shows; 0 without one, or for another one."""
    projection = state.get(f"encoder.adapters.{modality.name}.proj.weight")
    side = math.isqrt(projection.shape[1] // modality.channels) if projection is not None else 0
    is_square = projection is not None and side * side * modality.channels == projection.shape[1]
    return side * modality.stride if is_square else 0


def configure_positions(auto: AutoConfig, initial: Initial) -> None:
    """Set the kind of positions to that of the weights: a table is kept, and so are sines and cosines of another grid,
    which the encoder that they are of would interpolate."""
    if initial.encoder is None:
        return
    auto.fix("resize_positions", initial.encoder.resize_positions, _OF_WEIGHTS)
    kind = initial.encoder.positions
    sides, patch = auto.options.get("image_size"), auto.options.get("patch")
    if kind == "sincos" and sides and patch and auto.options.get("resize_positions") == "interpolate":
        own = _grid(initial.encoder)
        if own != (sides[0] // patch, sides[-1] // patch):
            auto.fix(
                "encoder_positions", "fixed", f"those of --init-from, of {own[0]} x {own[1]} patches, interpolated"
            )
    auto.fix("encoder_positions", kind, _OF_WEIGHTS)


def _statistics(initial: Initial) -> tuple[tuple[float, ...], ...]:
    return () if initial.encoder is None else (initial.encoder.modalities[0].mean, initial.encoder.modalities[0].std)


def _grid(encoder: StoredEncoder) -> tuple[int, int]:
    return encoder.image_size[0] // encoder.patch, encoder.image_size[-1] // encoder.patch


def adapt_weights(initial: Initial, recipe: Recipe, config: PretrainConfig) -> Initial:
    """The weights under our names, and the moments of those that fit; logs which do.

    Raises ValueError when the encoder takes none, or a part of what should be whole and `--allow-missing` is not given.
    """
    first, public = recipe.encoder.modalities[0], initial.public
    state = initial.named(first.name)
    if config.init_channels:
        state = with_channels(state, first.name, first.channels, first.side(recipe.encoder.patch), config.init_channels)
    state = _with_positions(state, initial, recipe.encoder.positions)
    model = recipe.stages[0].build()
    if public is not None and public.unlike and not config.allow_missing:
        raise ValueError(
            f"--init-from: no recipe's encoder computes the features of these weights, which have"
            f" {'; '.join(public.unlike)}; `unveil import` makes a run of them that is evaluated and embedded, and"
            " --allow-missing starts from the tensors that fit"
        )
    report = load_weights(model, state)
    log(str(report))
    if first.normalise == "fixed" and (first.mean, first.std) == _statistics(initial):
        mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (first.mean, first.std))
        log(f"images are normalised as those of --init-from: mean {mean}, deviation {std}")
    if not any(name.startswith("encoder.blocks.") for name in report.loaded):
        why = f" ({public.unknown})" if public is not None and public.unknown else ""
        raise ValueError(
            f"--init-from: no weights fit this encoder; give a checkpoint of the same size, or another --size{why}"
        )
    if not config.allow_missing:
        _check_parts(initial, StoredEncoder.of(recipe.encoder))
    lacking = _lacking(public is None, report)
    if lacking and not config.allow_missing:
        listed = "; ".join(f"{len(names)} {why}: {summarise(names)}" for why, names in lacking.items())
        raise ValueError(
            f"--init-from: this checkpoint does not load whole: {listed}; give the options that it was trained with"
            " (--size, --patch, decoder, modalities; --init-channels for other channels), or --allow-missing to go on"
            " without these tensors"
        )
    moments = fitting_moments(model, make_optimizer(model, recipe.optim), numbered(model, initial.moments))
    if config.continue_schedule != "restart":
        count = len({name.partition(":")[0] for name in moments})
        of = sum(parameter.requires_grad for parameter in model.parameters())
        fresh = "" if count == of else f"; those of the other {of - count} start fresh"
        of_whom = f"  the optimiser's moments of {count} of {of} parameters go on{fresh}"
        log(of_whom if count else "  the optimiser's moments start fresh")
    return Initial(state, moments)


def _with_positions(state: StateDict, initial: Initial, positions: torch.nn.Module) -> StateDict:
    """The weights with the table of positions that an encoder has, at its grid; logs where it is interpolated."""
    if not isinstance(positions, PositionTable):
        return state
    table, grid = state.get(TABLE), positions.grid
    if table is None:  # positions are computed there
        own = grid if initial.encoder is None else _grid(initial.encoder)
        table = sincos_positions(own, positions.table.shape[2]).unflatten(0, own)
    if table.ndim == 3 and table.shape[:2] != grid and table.shape[2] == positions.table.shape[2]:
        antialias = initial.public is not None and initial.public.antialias
        log(f"positions of {table.shape[0]} x {table.shape[1]} patches are interpolated to {grid[0]} x {grid[1]}")
        table = resized_table(table, grid, antialias).unflatten(0, grid)
    return state | {TABLE: table.contiguous()}


def _check_parts(initial: Initial, own: StoredEncoder | None) -> None:
    """Raise ValueError, with the options to give, where the encoder of the weights is another than the recipe's."""
    theirs = initial.encoder
    if theirs is None or own is None:
        return
    flags = {
        "--encoder-positions learned": theirs.positions == "learned" and own.positions == "sincos",
        "--encoder-positions fixed": theirs.positions == "fixed" and own.positions == "sincos",
        f"--registers {theirs.registers}": theirs.registers != own.registers,
        f"--layer-scale {theirs.layer_scale}": (theirs.layer_scale is None) != (own.layer_scale is None),
        f"--mlp {theirs.mlp}": theirs.mlp != own.mlp,
    }
    if wrong := [flag for flag, is_other in flags.items() if is_other]:
        raise ValueError(
            f"--init-from: the encoder of these weights is another than that of the recipe; give {' '.join(wrong)}, or"
            " --allow-missing to start from the tensors that fit"
        )
    if theirs.heads != own.heads:
        raise ValueError(
            f"--init-from: the encoder of these weights has {theirs.heads} attention heads, and that of the recipe"
            f" {own.heads}, so that it would compute other features; give another --size, or --allow-missing"
        )


def _lacking(is_own: bool, report: KeyReport) -> dict[str, list[str]]:
    """What the checkpoint and the model should share and do not, by the reason.

    That is the encoder, except that methods differ in its final norm and in the modalities that it reads, and, where
    the checkpoint is one of the same method, the decoders and heads: their tensors then have the same names up to
    numbers. What else weights of a run hold (`is_own`) belongs to its masking or its teacher.
    """

    def kinds(names: Iterable[str]) -> set[str]:
        return {re.sub(r"\.\d+\.", ".", name) for name in names if name.startswith("decoders.")}

    fitting = (*report.loaded, *report.reshaped)
    ours, theirs = kinds((*fitting, *report.missing)), kinds((*fitting, *report.unexpected))
    is_same_method = bool(theirs) and ours == theirs
    blocks = re.compile(r"encoder\.(?!norm\.|adapters\.)")

    def counts(name: str) -> bool:
        return is_same_method or blocks.match(name) is not None

    lacking = {
        "missing": [name for name in report.missing if counts(name)],
        "of another shape": [name for name in report.reshaped if name.startswith("encoder.") or is_same_method],
        "left over": [
            name
            for name in report.unexpected
            if blocks.match(name)
            or not (is_own or BESIDE.match(name) or name.startswith("encoder."))
            or (is_same_method and name.startswith(("encoder.", "decoders.", "objectives.")))
        ],
    }
    return {why: names for why, names in lacking.items() if names}
