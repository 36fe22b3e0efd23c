"""The page of one or several runs: its sections in order."""

from __future__ import annotations

from collections.abc import Callable

from .analyses import attention_over_time, attention_tables, layers
from .decoders import block_by_block
from .document import document
from .galleries import across_modalities, attention_maps, guidance, nearest_neighbours, reconstructions
from .guidance_cost import cheaper_guidance
from .markup import Markup, counted
from .scores import comparison, evaluations
from .sections import Runs, broken_files, curves, environment, health, key_figures, label_free, what_was_run

SECTIONS: tuple[Callable[[Runs], Markup | None], ...] = (
    health,
    key_figures,
    comparison,
    what_was_run,
    curves,
    label_free,
    reconstructions,
    across_modalities,
    attention_maps,
    guidance,
    attention_over_time,
    attention_tables,
    cheaper_guidance,
    layers,
    block_by_block,
    nearest_neighbours,
    evaluations,
    broken_files,
    environment,
)


def page(runs: Runs) -> str:
    """The whole report of one or several runs, as one HTML document that needs nothing but itself."""
    title = ", ".join(run.name for run in runs)
    return document("unveil report", title, title, _under(runs), *(section(runs) for section in SECTIONS))


def _under(runs: Runs) -> str:
    """The line under the title: what was pretrained on what, and when."""
    if len(runs) > 1:
        return f"{len(runs)} runs compared"
    run = runs[0]
    recipe = " ".join(filter(None, (run.text("recipe") or "a run", run.text("dials", "size"))))
    data, when = run.text("data", "address"), run.text("started")[:16].replace("T", " ")
    epochs = counted(run.epochs_done, "epoch") if run.steps else ""
    return " · ".join(filter(None, (recipe + (f" on {data}" if data else ""), epochs, when)))
