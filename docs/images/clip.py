"""The README's clip, from the pictures that a run leaves over its training: python docs/images/clip.py RUN."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SIDE, GAP, HEAD, PROBES = 112, 6, 22, 6  # pixels of a picture, between two, of the line above; images
FRAME, LAST = 260, 2600  # milliseconds of a validation, and of the last one


def main(run: Path) -> None:
    """Write clip.webp beside this file: for each validation of the run what it makes of the hidden patches."""
    epochs = json.loads((run / "pictures" / "index.json").read_text())["epochs"]
    frames = [frame(run, epoch) for epoch in epochs]
    times = [FRAME] * (len(frames) - 1) + [LAST]
    file = Path(__file__).with_suffix(".webp")
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=times, loop=0, quality=82, method=6)


def frame(run: Path, epoch: dict[str, Any]) -> Image.Image:
    """Images, what was seen of them, and the predictions of one validation, a column for each image."""
    rows = ("original", "hidden", "reconstructed")
    columns = epoch["items"][:PROBES]
    sheet = Image.new("RGB", (len(columns) * (SIDE + GAP) + GAP, HEAD + len(rows) * (SIDE + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, HEAD / 2), f"image, seen, predicted after {epoch['epoch']:.1f} epochs", "#444", anchor="lm",
             font_size=14)  # fmt: skip
    for x, item in enumerate(columns):
        for y, role in enumerate(rows):
            picture = Image.open(run / "pictures" / item[role]).convert("RGB")
            picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(picture, (GAP + x * (SIDE + GAP), HEAD + y * (SIDE + GAP)))
    return sheet


if __name__ == "__main__":
    main(Path(sys.argv[1]))
