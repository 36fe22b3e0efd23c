"""Held-out images of runs and what they predict: python docs/images/reconstructions.py RUN [RUN ...]."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw

SIDE, GAP, HEAD, PROBES = 104, 6, 20, 6


def main(runs: list[Path]) -> None:
    """Write reconstructions.png beside this file: two blocks of rows, one column per run."""
    columns = ["image", "seen", *(run.name for run in runs)]
    block = len(columns) * (SIDE + GAP)
    rows = PROBES // 2
    sheet = Image.new("RGB", (2 * block + 3 * GAP, HEAD + rows * (SIDE + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for probe in range(PROBES):
        left, top = (probe // rows) * (block + 2 * GAP), HEAD + (probe % rows) * (SIDE + GAP)
        for place, (title, picture) in enumerate(zip(columns, pictures(runs, probe), strict=True)):
            x = left + place * (SIDE + GAP) + GAP
            sheet.paste(picture, (x, top))
            if top == HEAD:
                pen.text((x + SIDE / 2, HEAD / 2), title, fill="#555", anchor="mm", font_size=13)
    sheet.save(Path(__file__).with_suffix(".png"), optimize=True)


def pictures(runs: list[Path], probe: int) -> list[Image.Image]:
    """One held-out image, what the first run saw of it, and what each run made of it at its end."""
    last = [json.loads((run / "pictures" / "index.json").read_text())["epochs"][-1]["items"][probe] for run in runs]
    names = [runs[0] / "pictures" / last[0][role] for role in ("original", "hidden")]
    names += [run / "pictures" / item["reconstructed"] for run, item in zip(runs, last, strict=True)]
    return [Image.open(name).resize((SIDE, SIDE), Image.Resampling.LANCZOS) for name in names]


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
