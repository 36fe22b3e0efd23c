"""The page: sections in order, one style, one script, and a policy that forbids it any network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

from .analyses import attention_over_time, attention_tables, layers
from .decoders import block_by_block
from .galleries import across_modalities, attention_maps, guidance, nearest_neighbours, reconstructions
from .guidance_cost import cheaper_guidance
from .markup import Markup, brief, join, tag
from .scores import comparison, evaluations
from .sections import Runs, broken_files, curves, environment, health, key_figures, label_free, what_was_run
from .style import LOGO, SCRIPT, STYLE

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
    script_hash = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} · unveil"),
        tag("style", Markup(STYLE)),
    )
    titles = tag("div", tag("p", "unveil report", class_="kind"), tag("h1", title), _under(runs))
    header = tag("header", Markup(LOGO), titles)
    main = tag("main", *(section(runs) for section in SECTIONS))
    body = tag("body", header, main, tag("script", Markup(SCRIPT)))
    return join([Markup("<!doctype html>\n"), tag("html", head, body, lang="en")])


def _under(runs: Runs) -> Markup:
    """The line under the title: what was pretrained on what, and when."""
    if len(runs) > 1:
        return tag("p", f"{len(runs)} runs compared", class_="under")
    run = runs[0]
    recipe = " ".join(filter(None, (run.text("recipe") or "a run", run.text("dials", "size"))))
    data, when = run.text("data", "address"), run.text("started")[:16].replace("T", " ")
    epochs = f"{brief(run.epochs_done)} epochs" if run.steps else ""
    return tag("p", " · ".join(filter(None, (recipe + (f" on {data}" if data else ""), epochs, when))), class_="under")
