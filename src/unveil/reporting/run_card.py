"""A run as a notebook shows it: the verdict with its two lamps, the loss, three reconstructions; one HTML fragment."""

from __future__ import annotations

from .charts import Line, line_chart
from .frames import epoch_name
from .galleries import predicted
from .lamps import headline, lamps
from .markup import Markup, brief, fragment, picture, remark, tag
from .run_record import RunRecord

_MOST, _SIDE = 3, 128  # reconstructions, and pixels of the longer side, up to which a picture is stored without loss
_COLOURS = {"ok": "#1a7f4b", "note": "#8a8f99", "warning": "#a86400", "problem": "#b3261e"}
_STYLE = (
    ".unveil-run{font:14px/1.45 system-ui,sans-serif;max-width:720px}"
    ".unveil-run h4{margin:0 0 4px;font-size:15px}.unveil-run p{margin:2px 0}"
    ".unveil-run .lamp{display:inline-block;width:11px;height:11px;border-radius:50%;margin-right:6px}"
    ".unveil-run .remark,.unveil-run figcaption{font-size:12px;opacity:.75}"
    ".unveil-run figure{margin:8px 0;display:inline-block;vertical-align:top}"
    ".unveil-run .looks figure{margin-right:14px}"
    ".unveil-run img{width:96px;height:auto;image-rendering:auto;margin-right:2px}"
    ".unveil-run .pixels{image-rendering:pixelated}.unveil-run svg{width:460px;max-width:100%;height:auto}"
    ".unveil-run svg text{fill:currentColor;font-size:12px}.unveil-run .cursor{display:none}"
    ".unveil-run svg line{stroke:currentColor;opacity:.5}.unveil-run svg .grid{opacity:.15}"
    ".unveil-run path{fill:none;stroke:#2f8fc4;stroke-width:2.2}.unveil-run path.raw{stroke-width:1;opacity:.35}"
    ".unveil-run path.s1{stroke:#c44e00}.unveil-run .dot{fill:#2f8fc4}.unveil-run .dot.s1{fill:#c44e00}"
    ".unveil-run .legend .key{margin-right:12px;color:#2f8fc4;font-size:12px}.unveil-run .legend .s1{color:#c44e00}"
)


def run_card(run: RunRecord) -> Markup:
    """A run in one fragment of HTML, with its pictures inside; whatever is missing is left out."""
    both = lamps(run)
    title = f"{run.name}: {run.text('recipe')}, {run.text('status')}, {brief(run.epochs_done)} epochs"
    said = [
        tag(
            "p",
            tag("span", class_="lamp", style=f"background:{_COLOURS[lamp.level]}", title=lamp.level),
            tag("strong", f"{lamp.name}: {lamp.state}. "),
            lamp.sentence,
        )
        for lamp in both
    ]
    lines = [
        Line("training images", [s.epoch for s in run.steps], [s.loss for s in run.steps], 0, noisy=True),
        Line("held-out images", [s.epoch for s in run.signals], [s.heldout_loss for s in run.signals], 1),
    ]
    return tag(
        "div",
        tag("style", _STYLE),
        tag("h4", tag("span", class_="lamp", style=f"background:{_COLOURS[headline(both).level]}"), title),
        *said,
        line_chart("Loss", lines),
        _looks(run),
        class_="unveil-run",
    )


def _looks(run: RunRecord) -> Markup | None:
    """Up to three reconstructions of the last validation: hidden, predicted, original."""
    epoch = next((e for e in reversed(run.probes.epochs) if any(map(predicted, e.items.values()))), None)
    if epoch is None:
        return None
    shown = [(run.probes.names[place], files) for place, files in epoch.items.items() if predicted(files)][:_MOST]
    figures = [
        tag(
            "figure",
            *(
                picture(path, f"{name}: {what}", _SIDE)
                for what, path in zip(
                    ("visible", "predicted", "original"),
                    (files.get("hidden"), files.get("unaided") or predicted(files), files.get("original")),
                    strict=True,
                )
                if path is not None
            ),
            tag("figcaption", name),
        )
        for name, files in shown
    ]  # fmt: skip
    note = remark(f"Held-out images at {epoch_name(epoch)}: hidden, predicted, original.")
    return tag("div", fragment(figures), note, class_="looks")
