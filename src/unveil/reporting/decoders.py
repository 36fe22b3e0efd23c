"""What `unveil analyze blocks` left: what each block of a decoder adds to a reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .analyses import shaded
from .markup import Markup, figure, html_table, percent, picture, tag
from .run import RunRecord, mappings, number
from .sections import Runs, by_run

WIDE = 1280  # pixels of the picture


def block_by_block(runs: Runs) -> Markup | None:
    """The picture, what each part adds, and which encoder maps the blocks read."""
    explained = (
        "A prediction is the sum of the contributions of the mask tokens and of each decoder block. Detail: the change"
        " from pixel to pixel within a contribution, 0 for a flat one and about 1 for noise."
    )
    return by_run("Decoder, block by block", runs, _decoders, explained)


def _decoders(run: RunRecord) -> list[Markup | None]:
    decoders = mappings(run.analyses.get("blocks", {}).get("decoders"))
    drawn = picture(run.path / "analysis" / "blocks.png", "reconstructions, block by block", WIDE)
    return [tag("div", drawn, class_="strip", style="--columns:1"), *map(_decoder, decoders)] if decoders else []


def _decoder(told: Mapping[str, Any]) -> Markup:
    parts = mappings(told.get("parts"))
    rows = [
        [
            f"block {k}" if k else "mask tokens",
            percent(number(part.get("share"))),
            figure(number(part.get("error"))),
            figure(number(part.get("detail"))),
        ]
        for k, part in enumerate(parts)
    ]
    lead = tag("p", f"Decoder {told.get('decoder', '')}.", class_="remark")
    tables = [html_table(["", "share of the prediction", "loss so far", "detail"], rows)]
    maps, reads = told.get("maps"), told.get("reads")
    if isinstance(maps, list) and isinstance(reads, list) and reads:
        shares = [[number(share) for share in row] for row in reads if isinstance(row, list)]
        most = max((share for row in shares for share in row), default=1.0) or 1.0
        cells = [
            [f"block {k}", *(shaded(share, share / most) for share in row)] for k, row in enumerate(shares, start=1)
        ]
        words = "How much each encoder map (0: the patches themselves) weighs in what each block reads."
        tables += [tag("p", words, class_="remark"), html_table(["", *map(str, maps)], cells, class_="cka")]
    return tag("div", lead, *tables)
