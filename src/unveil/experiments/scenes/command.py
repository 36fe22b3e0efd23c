"""`unveil scenes`: rendered scenes as files, in a layout that other commands and other programs read."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Literal

from ...recipes.options import accept_python_values, as_text
from ...runs.console import log, user_path
from .coco import write_coco
from .source import SceneSource, render_scenes
from .videos import write_videos

Layout = Literal["folders", "coco", "davis"]
PICTURES: dict[Layout, str] = {"folders": "train/rgb", "coco": "train", "davis": "JPEGImages/480p"}  # below the folder


@accept_python_values
def scenes(
    *,
    out: str | PathLike[str],
    layout: Layout = "folders",
    count: int | None = None,
    held_out: int | None = None,
    frames: int = 24,
    size: int = 128,
    seed: int = 0,
) -> Path:
    """Render scenes and write them to a new folder, which is returned.

    Raises ValueError for a folder that is there, and for a size that is not rendered.

    out: the new folder
    layout: folders of rgb, depth and semseg, in train/ and test/; coco, with the box and the mask of every thing; or
        davis, videos with masks of objects, in which the camera and one thing move
    count: how many scenes to train on, by default 1000; of davis how many videos, by default 20
    held_out: how many others, of the next seed, to test on; by default a fourth of these (not of davis)
    frames: of a video, 3 or more
    size: side of the pictures in pixels, 32 to 224; of a video the height
    seed: of the scenes

    >>> import unveil
    >>> folder = unveil.scenes(out="scenes", count=2, held_out=1, size=32)
    >>> sorted(path.name for path in (folder / "train").iterdir())
    ['depth', 'rgb', 'semseg']
    """
    out = as_text(out)
    folder = user_path(out)
    if folder.exists():
        raise ValueError(f"{out} is there already; give a new folder by --out")
    if layout == "davis":
        if held_out is not None:
            raise ValueError("--held-out goes with scenes to train on; the layout davis has one list of videos")
        videos = SceneSource(20 if count is None else count, size, seed)
        write_videos(videos, frames, folder)
        log(f"{len(videos):,} videos of {frames} frames are in {out}")
        return folder
    train = SceneSource(1000 if count is None else count, size, seed)
    test = SceneSource(max(1, len(train) // 4) if held_out is None else held_out, size, seed + 1)
    if layout == "coco":
        write_coco(train, test, folder)
    else:
        for split, source in (("train", train), ("test", test)):
            render_scenes(source, folder / split)
    log(f"{len(train):,} scenes to train on and {len(test):,} to test on are in {out}")
    return folder
