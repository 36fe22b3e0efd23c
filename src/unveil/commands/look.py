"""`unveil look`: a picture of where a model looks, what it hides and what it makes of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..evaluation.visualize import draw_samples, load_samples, map_renderers, sample_pictures
from ..evaluation.visualize.panels import MapPictures, predicts_norm_pix
from ..recipes.run import Run
from ..reporting.pictures import png
from ..runs.atomic import write_bytes
from ..runs.console import log
from ..runs.folder import check_writable
from .open_run import Opened, device_of, open_recipe, open_run


def look(
    run: str | None = None,
    *,
    recipe: str | None = None,
    data: str | None = None,
    modalities: tuple[str, ...] = (),
    samples: int = 4,
    out: str | None = None,
    device: str = "auto",
    seed: int = 0,
    **dials: Any,
) -> Path:
    """Draw where a model looks, what each way of drawing hides and what it predicts; returns the picture's path.

    Of several modalities each has a row, with what is predicted of it when one other alone is given. Further arguments
    are dials of the recipe.

    recipe: look at a recipe that has not been run instead: its teacher, its masks, a student that knows nothing
    data: what to look at; by default the run's own held-out samples, for a recipe scenes
    modalities: of a recipe: rgb, depth, semseg, or .toml files that declare others; by default what it reads
    samples: how many to show, evenly spread
    out: the .png file; by default look.png in the run folder, or look-<recipe>.png here
    device: cpu, cuda, mps; auto takes the best
    seed: of a recipe's initialisation
    """
    if (run is None) == (recipe is None):
        raise ValueError("look needs a run folder or --recipe, and not both")
    if samples < 1:
        raise ValueError(f"--samples {samples}: 1 or more are needed")
    if run is not None and (dials or modalities):
        given = ", ".join(f"--{name.replace('_', '-')}" for name in (*dials, *(["modalities"] if modalities else [])))
        raise ValueError(f"a run has its dials and modalities already; leave {given} out, or give --recipe")
    default = Path(run).expanduser() / "look.png" if run else Path(f"look-{Path(recipe or '').stem}.png")
    path = Path(out).expanduser() if out else default
    if path.suffix != ".png":
        raise ValueError(f"--out {out} is to be a .png file; give a name that ends so")
    if run is not None:
        opened = open_run(Run.open(run), data, device=device)
    else:
        assert recipe is not None
        log(f"looking at {recipe}, untrained ...")
        opened = open_recipe(recipe, data or "scenes", modalities, dials, device, seed)
    check_writable(path.parent)
    picture = draw(opened, samples)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, png(picture))
    print(path)
    return path


def draw(opened: Opened, samples: int) -> Any:
    """The picture of a few samples. Raises ValueError where none can be read."""
    model = opened.model
    seen = load_samples(opened.samples, opened.modalities, model.encoder.image_size, samples)
    if not len(seen):
        raise ValueError(f"no sample of {opened.samples.address} can be read; see `unveil inspect`")
    batch = seen.batch(device_of(model))
    views = map_renderers(opened.modalities, opened.samples, batch)
    shown = sample_pictures(model, batch, seen.names, opened.modalities, views)
    when = "untrained" if opened.epoch is None else f"epoch {opened.epoch:.4g}"
    return draw_samples(f"{opened.name}, {when}", shown, views, _notes(opened, shown, [v.note for v in views.values()]))


def _notes(opened: Opened, shown: list[list[MapPictures]], told: list[str]) -> list[str]:
    model, first = opened.model, shown[0]
    notes = [note for note in told if note]
    if len(first) == 1:
        drawn = "the blend" if first[0].blend is not None else "this attention"
        notes.append(
            f"Grey is hidden: {1 - model.masker.visible:.0%} of the patches. Below, what each way of drawing hides of"
            f" {drawn}: gumbel draws in proportion to it, hard takes the highest, noisy and hint soften that, low takes"
            " the lowest, keep draws what stays. The percentage is the share of the attention that is hidden."
        )
    else:
        notes.append(
            "Grey is hidden. Attention is scaled in each map on its own; the percentage is its share of all."
            " From one alone: that map is given whole, the others are hidden."
        )
    if any(one.features is not None for one in first):
        notes.append(
            "Of what is predicted no picture can be made: each hidden patch has the colour of how far the predicted"
            " features point from the true ones, 1 - cos."
        )
    if predicts_norm_pix(model):
        notes.append(
            "Predictions are relative to each patch's own mean and standard deviation; those of the truth, which the"
            " model never saw, are put back."
        )
    if any(m.normalise != "fixed" for m in opened.modalities):
        notes.append(
            "A map that is normalised by its own pixels, such as depth, is predicted so; the truth's scale is put back."
        )
    return notes
