"""`unveil look`: a picture of a model's attention, masks and predictions on a few samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import torch

from ..data.columns import with_columns
from ..data.given_types import Data
from ..data.sources import Subset, spread
from ..evaluation.visualize.panels import MapPictures, draw_samples, map_renderers, predicts_norm_pix, sample_pictures
from ..evaluation.visualize.samples import load_samples
from ..modeling.patches import validity
from ..modeling.rng import seed_stage
from ..recipes.options import accept_python_values, as_text, as_tuple
from ..recipes.recipe import ENCODER
from ..recipes.registry import build_recipe, load_recipe
from ..recipes.run import Run
from ..reporting.pictures import Picture, attention_overlay, png
from ..runs.atomic import make_folder, write_bytes
from ..runs.console import log, user_path
from ..runs.folder import check_writable
from ..runs.hardware import choose_device
from ..runs.trust import UntrustedCodeError
from ..training.autoconfig import AutoConfig, configure_shape
from ..training.config import PretrainConfig
from ..training.data_setup import declared_for, inspect_data, modalities_of, open_data, settle
from .option_types import RecipeOptions
from .subject import Subject

_INSPECTED = 64  # samples that decide which modalities and sizes an untrained recipe has


@accept_python_values
def look(
    run: str | PathLike[str] | Run | None = None,
    *,
    recipe: str | None = None,
    data: Data | None = None,
    image_column: str | None = None,
    modalities: str | Sequence[str] = (),
    samples: int = 4,
    out: str | PathLike[str] | None = None,
    device: str = "auto",
    seed: int = 0,
    trust: bool = False,
    **options: Unpack[RecipeOptions],
) -> Path:
    """Draw the attention, the mask and the prediction of a model on a few samples; returns the picture's path.

    Where masks are guided by attention, the mask of each sampler is drawn too. Of several modalities each has a row,
    with its prediction from each other one alone. Further arguments are options of the recipe.

    recipe: draw a recipe before any training instead: its teacher, its masks, an untrained student
    data: samples to draw; by default those that the run held out, for a recipe scenes
    image_column: the column of a Parquet file that holds the images, where there are several
    modalities: of a recipe: rgb, depth, semseg, or .toml files that declare others; by default what it reads
    samples: how many to draw, evenly spread
    out: the .png file; by default look.png in the run folder, or look-<recipe>.png here
    device: cpu, cuda, mps; auto takes the best
    seed: of a recipe's initialisation
    trust: execute the run's own recipe file where you have not run it before, for its masks and predictions

    >>> import unveil
    >>> picture = unveil.look("runs/a", samples=2)
    runs/a/look.png
    """
    run, out, modalities = as_text(run), as_text(out), as_tuple(modalities)
    data = with_columns(as_text(data), image_column)
    if (run is None) == (recipe is None):
        raise ValueError("look needs a run folder or --recipe, and not both")
    if samples < 1:
        raise ValueError(f"--samples {samples}: 1 or more are needed")
    if run is not None and (options or modalities):
        given = ", ".join(f"--{name.replace('_', '-')}" for name in (*options, *(["modalities"] if modalities else [])))
        raise ValueError(f"a run has its options and modalities already; leave {given} out, or give --recipe")
    default = user_path(run) / "look.png" if run else Path(f"look-{Path(recipe or '').stem}.png")
    path = user_path(out) if out else default
    if path.suffix != ".png":
        raise ValueError(f"--out {out} is not a .png file; give a name that ends in .png")
    check_writable(path.parent)
    if recipe is not None:
        log(f"drawing {recipe}, untrained ...")
        picture = draw(_untrained(recipe, data or "scenes", modalities, options, device, seed), samples)
    elif (stored := Run.open(run or "", trust)).config.recipe == ENCODER:
        picture = draw_encoder(stored, data, device, samples)
    else:
        picture = draw(_of_run(stored, data, device), samples)
    make_folder(path.parent)
    write_bytes(path, png(picture))
    print(path)
    return path


def _of_run(run: Run, data: str | None, device: str) -> Subject:
    """A run; of a stranger's recipe, which is not executed, the encoder alone."""
    try:
        return Subject.of_run(run, data, device)
    except UntrustedCodeError as error:
        subject = Subject.of_encoder(run, data, device)
        log(f"note: the picture has the attention of the encoder, and no masks and predictions: {error}")
        return subject


def _untrained(
    recipe: str, data: str, modalities: Sequence[str], options: Mapping[str, Any], device: str, seed: int
) -> Subject:
    """The last stage of a recipe before any training; options that are not given fit the samples of `data`."""
    load, where = load_recipe(recipe), choose_device(device)
    config = PretrainConfig(recipe, data=data, modalities=tuple(modalities), seed=seed, recipe_options=options)
    config.check_recipe_options(load)
    source = open_data(data, declared_for(config, load))
    inspection = inspect_data(Subset(source, spread(len(source), _INSPECTED)))
    own, source = modalities_of(source, inspection), settle(source, inspection)
    auto = AutoConfig(load, options)
    configure_shape(auto, inspection, len(source), where)
    for change in auto.changes:
        log(f"  {change.option}: {change.used}  (paper: {change.paper}; {change.why})")
    seed_stage(seed, -1)
    built = build_recipe(load, own, auto.options)
    seed_stage(seed, len(built.stages) - 1)
    return Subject(recipe, built.stages[-1].build().eval().to(where), own, source)


def draw(subject: Subject, samples: int) -> Picture:
    """The picture of a few samples. Raises ValueError where none can be read."""
    views, batch = subject.load(samples)
    renderers = map_renderers(subject.modalities, subject.samples, batch)
    pictures = sample_pictures(subject.model, batch, views.names, subject.modalities, renderers)
    if subject.is_encoder_alone:
        pictures = [[replace(one, hidden=None) for one in sample] for sample in pictures]
    notes = [*filter(None, (r.note for r in renderers.values())), *notes_on(subject, pictures[0])]
    return draw_samples(subject.title, pictures, renderers, notes)


def draw_encoder(run: Run, data: str | None, device: str, samples: int) -> Picture:
    """The attention of an imported encoder, which has no masks and predictions. Raises ValueError as `draw` does."""
    encoder = run.encoder().to(choose_device(device)).eval()
    modality, source = encoder.modalities[0], run.held_out(data)
    views = load_samples(source, (modality,), encoder.image_size, samples)
    if not len(views):
        raise ValueError(f"no sample of {source.address} can be read; see `unveil inspect`")
    batch = views.views.on(encoder.device)
    with torch.no_grad():
        attention = encoder.attention(batch.marked(modality.name)).mean(dim=1).float().cpu().numpy()  # B h w
    renderers = map_renderers((modality,), source, batch)
    render, valid = renderers[modality.name], validity(batch, modality)
    pictures = []
    for i, name in enumerate(views.names):
        original = render(batch.maps[modality.name][i], valid[i])
        overlay = attention_overlay(original, attention[i])
        pictures.append([MapPictures(name, modality.name, original, overlay, shares={"own": 0.0})])
    of = "class token" if encoder.has_class_token else "mean of the patches"
    note = (
        f"The attention of the {of} in the last block, the mean of its heads. The encoder was imported without a"
        " decoder: nothing is hidden or predicted."
    )
    notes = [*filter(None, (r.note for r in renderers.values())), note]
    return draw_samples(run.name, pictures, renderers, notes)


def notes_on(subject: Subject, first: list[MapPictures]) -> list[str]:
    """The captions that the pictures of a sample need."""
    notes = []
    if subject.is_encoder_alone:
        notes.append("The attention of the encoder alone; masks and predictions need the recipe of the run.")
    elif len(first) == 1:
        notes.append(
            f"Grey patches are hidden: {1 - subject.model.masker.visible:.0%} of all. Percentages are the share of the"
            " attention that a mask hides."
        )
        if first[0].masks:
            of = "this attention" if first[0].blend is None else "the blend"
            notes.append(
                f"Second row: the masks of each sampler on {of}. gumbel samples in proportion to attention, hard hides"
                " the highest, noisy the highest after noise, hint leaves some of the highest visible, low hides the"
                " lowest, keep samples the visible patches in proportion to attention."
            )
    else:
        notes.append(
            "Grey patches are hidden. The percentage is the map's share of all attention. From one alone: that map is"
            " visible, the others are hidden."
        )
    if any(one.features is not None for one in first):
        notes.append(
            "Features are predicted and no pixels: the colour of a hidden patch is the distance of predicted and true"
            " features, 1 - cos."
        )
    if predicts_norm_pix(subject.model):
        notes.append(
            "Predictions are of pixels normalised by each patch's mean and standard deviation: drawn with those that"
            " the model predicts, else with a neutral colour, and beside it with those of the true patch."
        )
    if any(one.errors for one in first):
        notes.append(
            "±: the error (root mean square) of hidden pixels, as a share of the range of values. Interpolated: from"
            " the visible pixels alone, without a model."
        )
    if any(m.normalise != "fixed" for m in subject.modalities):
        notes.append(
            "Maps that are normalised by their own pixels, such as depth, are predicted so; the true scale is put back."
        )
    return notes
