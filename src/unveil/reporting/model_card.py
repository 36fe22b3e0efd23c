"""The card of an exported encoder: what it was trained on and how, its scores, licence, citation, how to load it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from .comparisons import comparisons, in_order, numbers
from .run_record import Evaluation, RunRecord


def model_card(
    run: RunRecord,
    weights: Mapping[str, object],
    load: str,
    shape: Mapping[str, object],
    paper: str,
    licence: str | None,
    head: Mapping[str, object] | None = None,
) -> str:
    """A README.md with the hub's header, of these `weights` of a run: their step, epoch and checksum.

    `load` is Python that loads the files, `shape` describes the encoder, `head` the head on it where there is one, and
    `paper` is that of the recipe, empty where it has none. Scores are those of these weights alone. Where nothing is
    known, that is said: no licence is guessed.
    """
    recipe = run.text("recipe")
    header = [f"license: {licence}"] * bool(licence)
    header += ["library_name: unveil", "tags: [masked-image-modeling, vision-transformer, self-supervised]"]
    images, epochs = run.number("data", "train"), weights.get("epoch")
    length = f", {epochs:.4g} epoch{'s' * (epochs != 1)}" if isinstance(epochs, int | float) else ""
    of = f" of {int(images):,} images without labels" if math.isfinite(images) else ""
    trained = [
        f"Recipe `{recipe}` of unveil {run.text('unveil')}{length}{of}.",
        "",
        *_lines(f"{name}: {value}" for name, value in run.mapping("options").items() if value not in (None, "", [])),
    ]
    scores = [f"- {numbers(group)}{_blocks(e)}" for e in in_order(_own(run, weights)) if (group := comparisons(e))]
    missing = "Nothing was measured. `unveil evaluate` compares features with raw pixels and the untrained encoder."
    sections = {
        "Load": f"```python\n{load.strip()}\n```",
        "Encoder": "\n".join(_lines(f"{name}: {value}" for name, value in shape.items())),
        "Training": "\n".join(trained),
        "Scores": "\n".join(["± is half of the 95 % interval of the test sample.", "", *scores]) if scores else missing,
        "Licence": f"{licence}." if licence else "None was given: ask whoever made these weights.",
        "Citation": f"Of the recipe: {paper}" if paper else "The recipe names no paper.",
    }
    if head:
        sections = {
            "Load": sections.pop("Load"),
            "Head": "\n".join(_lines(f"{n}: {v}" for n, v in head.items())),
        } | sections
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    return "\n".join(["---", *header, "---", "", f"# {run.name}", "", body, ""])


def _own(run: RunRecord, weights: Mapping[str, object]) -> list[Evaluation]:
    """The evaluations of these weights: of the run's newest, or of some on its way."""
    step = weights.get("step")
    of_step = run.earlier.get(step, ()) if isinstance(step, int) else ()
    return [e for e in of_step or run.evaluations if e.is_of(weights)]


def _blocks(evaluation: Evaluation) -> str:
    """Which blocks were read, where they are not the last."""
    layers = evaluation.settings.get("layers")
    return f", of blocks {' '.join(map(str, layers))}" if isinstance(layers, list) else ""


def _lines(texts: Iterable[str]) -> list[str]:
    return [f"- {text}" for text in texts]
