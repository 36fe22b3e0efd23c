"""What `unveil analyze masks` left: cheaper ways to guide masks, their costs and their masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .analyses import mappings
from .charts import Line, line_chart
from .markup import Markup, figure, html_table, percent
from .run import number
from .sections import Runs, charts_of, named, section


def cheaper_guidance(runs: Runs) -> Markup | None:
    """What `unveil analyze masks` found: what each look costs, and how far its masks are the faithful ones."""
    blocks: list[Markup | None] = []
    for place, run in enumerate(runs):
        told = run.analyses.get("masks", {})
        ways = mappings(told.get("ways"))
        maps = [name for name in _mapping(ways[0].get("overlap")) if name != "all"] if ways else []
        rows = [
            [
                str(way.get("name", "")),
                figure(number(way.get("cost"))),
                *_overlaps(way, maps if len(maps) > 1 else []),
            ]
            for way in ways
        ]
        if rows:
            named_maps = [f"{name}, beyond chance" for name in maps] if len(maps) > 1 else []
            head = ["", "cost of a step", "hidden in common", "visible in common", "Jaccard", "beyond chance"]
            chart = line_chart(
                "Masks in common with the faithful ones", _savings(ways), x_label="cost of a step",
                note="beyond chance", from_zero=True,
            )  # fmt: skip
            blocks += [named(run, place, runs), html_table([*head, *named_maps], rows), charts_of([chart])]
    if not blocks:
        return None
    explained = (
        "Faithful: the last layer's attention in a whole pass. Each other look is beside it on the same samples, under "
        "the same budget and the same chance; a step of random masks costs 1. Beyond chance: 0 for random masks, 1 for "
        "the faithful ones."
    )
    return section("Cheaper guidance", *blocks, explained=explained)


def _savings(ways: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Cost across, overlap beyond chance up: a line for each kind of saving, which ends at the faithful look."""

    def points(*kinds: str) -> tuple[list[float], list[float]]:
        chosen = [way for way in ways if way.get("kind") in kinds]
        overlaps = [_mapping(_mapping(way.get("overlap")).get("all")) for way in chosen]
        return [number(way.get("cost")) for way in chosen], [number(o.get("beyond_chance")) for o in overlaps]

    kinds = {"an earlier layer": ("layer", "whole"), "on some steps": ("random", "steps", "whole"),
             "half resolution": ("half",), "averaged weights": ("average",)}  # fmt: skip
    return [Line(name, *points(*which), i) for i, (name, which) in enumerate(kinds.items())]


def _overlaps(way: Mapping[str, Any], maps: Sequence[str]) -> list[str]:
    overlap = _mapping(way.get("overlap"))
    whole = _mapping(overlap.get("all"))
    told = [whole.get(name) for name in ("hidden_in_common", "visible_in_common", "jaccard", "beyond_chance")]
    return [percent(number(value)) for value in (*told, *(_mapping(overlap.get(m)).get("beyond_chance") for m in maps))]


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
