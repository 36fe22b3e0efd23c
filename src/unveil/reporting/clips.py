"""The videos of a report: clips of segmented videos with their masks, the worst, the median and the best."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

from PIL import Image

from .markup import Markup, percent, tag
from .run_files import check_own
from .run_record import RunRecord
from .sections import Runs, by_run

FOLDER = "videos"  # below the pictures of a run
MOST_CLIPS = 60  # of a run
PROTOCOL = "vos"
_STILLS = 4  # frames of a clip that stand beside it
_MOST_BYTES, _MOST_PIXELS = 4 << 20, 1 << 22  # of a clip, and of one of its frames


def file_name(video: str) -> str:
    """The file of a video's clip: animated WebP, or animated PNG where WebP cannot be written, whatever its end."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", video) + ".webp"


def segmented_videos(runs: Runs) -> Markup | None:
    """Clips of segmented videos: frames with the predicted masks over them, and right of them with the true ones."""

    def content(run: RunRecord) -> list[Markup | None]:
        scores = next((e.details.get("jf", {}) for e in run.evaluations if e.protocol == PROTOCOL), {})
        folder = run.path / "pictures" / FOLDER
        known = sorted((v for v in scores if (folder / file_name(v)).exists()), key=lambda video: scores[video])
        places = sorted({0, len(known) // 2, len(known) - 1}) if known else []
        return [_clip(folder / file_name(known[place]), known[place], scores[known[place]]) for place in places]

    explained = (
        "Left the masks that were carried on from the first frame, right the true ones; the videos with the lowest, the"
        " median and the highest J&F. The first picture of each plays, the others are some of its frames."
    )
    return by_run("Videos", runs, content, explained)


def _clip(path: Path, video: str, score: float) -> Markup:
    """A clip that plays by itself, with some of its frames; a line in its place where it cannot be read."""
    caption = tag("figcaption", f"{video}, J&F {percent(score)}")
    try:
        check_own(path)
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("no clip of a run is so large")
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=("WEBP", "PNG")) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise ValueError("no picture of a run is so large")
            kind, count = str(opened.format).lower(), getattr(opened, "n_frames", 1)
            size = {"width": opened.width, "height": opened.height}
            stills = []
            for place in range(_STILLS):
                opened.seek(place * (count - 1) // (_STILLS - 1))
                stills.append(_image(_jpeg(opened), "jpeg", f"a frame of {video}", **size))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return tag("figure", tag("span", "no clip", class_="gone", role="img"), caption)
    return tag("figure", _image(data, kind, f"clip of {video}", **size), *stills, caption, class_="clip")


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _image(data: bytes, kind: str, alt: str, **size: int) -> Markup:
    return tag("img", src=f"data:image/{kind};base64,{base64.b64encode(data).decode()}", alt=alt, **size)
