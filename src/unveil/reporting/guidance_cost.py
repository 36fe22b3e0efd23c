"""The results of `unveil analyze masks`: cheaper guidance of masks, its cost and its overlap with full guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .charts import Line, line_chart
from .markup import Markup, figure, html_table, percent
from .run import RunRecord, mapping, mappings, number
from .sections import Runs, by_run, charts_of


def cheaper_guidance(runs: Runs) -> Markup | None:
    """What `unveil analyze masks` measured: the cost of each kind of guidance and its overlap with full guidance."""
    explained = (
        "Full guidance: the attention of the last layer, from a whole forward pass. Each cheaper one is compared with"
        " it on the same samples, budgets and random numbers. Cost: time of a step relative to one with random masks."
        " Beyond chance: 0 for random masks, 1 for those of full guidance."
    )
    return by_run("Cheaper guidance", runs, _cheaper, explained)


def _cheaper(run: RunRecord) -> list[Markup | None]:
    ways = mappings(run.analyses.get("masks", {}).get("ways"))
    names = [name for name in mapping(ways[0].get("overlap")) if name != "all"] if ways else []
    several = names if len(names) > 1 else []
    rows = [[str(way.get("name", "")), figure(number(way.get("cost"))), *_overlaps(way, several)] for way in ways]
    head = ["", "cost of a step", "hidden in common", "visible in common", "Jaccard", "beyond chance"]
    chart = line_chart(
        "Masks in common with full guidance", _savings(ways), x_label="cost of a step",
        note="beyond chance", from_zero=True,
    )  # fmt: skip
    return (
        [html_table([*head, *(f"{name}, beyond chance" for name in several)], rows), charts_of([chart])] if rows else []
    )


def _savings(ways: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Overlap beyond chance over cost: a line for each kind of saving, which ends at full guidance."""

    def points(*kinds: str) -> tuple[list[float], list[float]]:
        chosen = [way for way in ways if way.get("kind") in kinds]
        overlaps = [mapping(mapping(way.get("overlap")).get("all")) for way in chosen]
        return [number(way.get("cost")) for way in chosen], [number(o.get("beyond_chance")) for o in overlaps]

    kinds = {"an earlier layer": ("layer", "whole"), "on some steps": ("random", "steps", "whole"),
             "half resolution": ("half",), "averaged weights": ("average",)}  # fmt: skip
    return [Line(name, *points(*which), i) for i, (name, which) in enumerate(kinds.items())]


def _overlaps(way: Mapping[str, Any], maps: Sequence[str]) -> list[str]:
    overlap = mapping(way.get("overlap"))
    whole = mapping(overlap.get("all"))
    told = [whole.get(name) for name in ("hidden_in_common", "visible_in_common", "jaccard", "beyond_chance")]
    return [percent(number(value)) for value in (*told, *(mapping(overlap.get(m)).get("beyond_chance") for m in maps))]
