"""Accuracy over minutes of training, of evaluated runs: python docs/images/minutes.py RECIPE:MINUTES=RUN,RUN ...

The first run of all that was measured beside baselines gives those of raw pixels and of the untrained encoder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean

from unveil.reporting.charts import Line, chart_file

PROTOCOLS = {"linear-lbfgs": "linear probe (L-BFGS), %", "knn": "k-NN, %", "knn-whitened": "k-NN, whitened, %"}
BASELINES = {"pixels": "raw pixels", "untrained": "untrained"}


def main(words: list[str]) -> None:
    """Write minutes.svg beside this file, and print the means that it shows."""
    groups = [(*name.split(":"), runs.split(",")) for name, runs in (word.split("=") for word in words)]
    charts = []
    for protocol, title in PROTOCOLS.items():
        scores = [
            (recipe, float(minutes), [measured(run, protocol) for run in runs]) for recipe, minutes, runs in groups
        ]
        end = max(minutes for _, minutes, _ in scores)
        lines = []
        for colour, recipe in enumerate(dict.fromkeys(recipe for recipe, _, _ in scores)):
            points = sorted(
                (m, fmean(100 * r["metrics"]["accuracy"] for r in runs)) for n, m, runs in scores if n == recipe
            )
            lines.append(Line(recipe, *zip(*points, strict=True), colour))
            print(f"{protocol} {recipe}: " + ", ".join(f"{m:g} min {value:.1f}" for m, value in points))
        baselines = next(r["baselines"] for _, _, runs in scores for r in runs if r["baselines"])
        for colour, (name, spelled) in enumerate(BASELINES.items(), start=2):
            level = 100 * baselines[name]["accuracy"]
            lines.append(Line(spelled, (0.0, end), (level, level), colour, is_dashed=True))
        charts.append((title, lines))
    Path(__file__).with_suffix(".svg").write_text(chart_file(charts, x_label="minutes of training"))


def measured(run: str, protocol: str) -> dict:
    """A run's result by a protocol."""
    return json.loads(Path(run, "eval", f"{protocol}.json").read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
