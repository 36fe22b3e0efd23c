"""`unveil bench videos`: frames per second of video segmentation, the encoder and the propagation of labels apart."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from ...commands.load import load
from ...data.video_folders import Video
from ...evaluation.types import Context
from ...evaluation.videos.frames import FrameFeatures, Patches, patches_of
from ...evaluation.videos.propagation import Propagation
from ...evaluation.videos.segmentation import Segmentation, Segmented, segment
from ...modeling.encoder import vit
from ...modeling.image_encoder import ImageEncoder
from ...recipes.options import accept_python_values
from ...runs import console
from ...runs.run_config import Precision
from .machine import Measurement, headline, need_positive
from .timing import quartiles

GOAL = 20  # frames a second beyond the forward pass, of nano at patch 16 and 480p on two cores
_STEP = 8  # pixels that everything moves from frame to frame


@dataclass(frozen=True)
class MovingNoise(Video):
    """A video in memory: random pixels that move to the right, and a first mask of vertical stripes of objects."""

    size: tuple[int, int] = (480, 854)
    objects: int = 3
    seed: int = 0

    def frame(self, number: int, channels: int = 3) -> Shaped[Tensor, "C H W"]:
        """The random pixels of the first frame, moved by 8 a frame."""
        rng = torch.Generator().manual_seed(self.seed)
        pixels = torch.randint(256, (channels, *self.size), generator=rng, dtype=torch.uint8)
        return pixels.roll(_STEP * number, dims=2)

    def mask(self, number: int) -> UInt8[np.ndarray, "H W"] | None:
        """The mask of the first frame; others have none, so nothing but time is measured."""
        if number:
            return None
        columns = np.arange(self.size[1]) * (2 * self.objects + 1) // self.size[1]  # stripes: none, 1, none, 2, ...
        ids = np.where(columns % 2 == 1, columns // 2 + 1, 0).astype(np.uint8)
        return np.broadcast_to(ids, self.size).copy()


@accept_python_values
def bench_videos(
    run: str | None = None,
    *,
    size: str = "nano",
    patch: int = 16,
    image_size: tuple[int, ...] = (224,),
    frame_size: tuple[int, ...] = (480, 854),
    objects: int = 3,
    frames: int = 30,
    precision: Precision = "auto",
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    out: str | None = None,
    json: bool = False,
    trust: bool = False,
) -> dict[str, Any]:
    """Time what `evaluate --protocol vos` does with a frame; returns and prints the results.

    The frames are random and in memory; the settings are those of the protocol. The encoder is that of a run or a
    public ViT, or a ViT of random weights, which costs the same. Frames before which not all are remembered that can
    be are not counted.

    size: width and depth of the ViT, where no run is given
    patch: side of a patch in pixels, where no run is given
    image_size: side in pixels of the images that the ViT is made for, where no run is given
    frame_size: height and width of a frame in pixels; 480 854 is that of DAVIS
    objects: how many are followed
    frames: how many are timed
    precision: of the encoder; auto takes bf16 where the device has it in hardware
    device: cpu, cuda, cuda:1, mps; auto takes the best
    threads: threads of the processor; by default as many as torch takes
    seed: of weights and frames
    out: a JSON file for every raw time, the machine and the versions
    json: print the same JSON instead of the table
    trust: execute the recipe file of a run whose encoder is of classes of its own, where you have not run it before
    """
    need_positive(
        objects=objects, frames=frames, **{f"number {n + 1} of frame_size": s for n, s in enumerate(frame_size)}
    )
    if len(frame_size) != 2 or objects > 100:
        raise ValueError(f"frame_size is a height and a width, and objects at most 100; got {frame_size}, {objects}")
    measurement = Measurement(device, threads, out, json)
    torch.manual_seed(seed)
    if run is None:
        made: Any = ImageEncoder(vit(size, patch, image_size)).to(measurement.device)
    else:
        made = load(run, device=str(measurement.device), trust=trust)
    encoder = patches_of(made)
    if encoder is None:
        raise ValueError(f"{run} gives no features of patches; name a run with an encoder of tokens")
    height, width = frame_size
    with measurement.timing() as facts:
        features, beyond, grid = _time(
            encoder, (height, width), objects, frames, Context(seed, precision=precision), seed
        )
    results = {
        **facts,
        **{"encoder": run or {"size": size, "patch": patch, "image_size": image_size}},
        **{"frame_size": [height, width], "grid": list(grid), "objects": objects, "precision": precision},
        **{"features_seconds": features, "propagation_seconds": beyond, "goal": GOAL},
    }
    table = [["", "frames/s", "ms a frame"]]
    for name, seconds in (("features of the encoder", features), ("all else: propagation, masks", beyond)):
        each = quartiles(seconds)
        times = f"{1000 * each.median:.1f} ({1000 * each.low:.1f} to {1000 * each.high:.1f})"
        table.append([name, f"{1 / each.median:.1f}", times])
    what = (
        f"{frames} frames of {height} x {width} as {grid[0]} x {grid[1]} cells, {objects}"
        f" {console.plural('object', objects)}, {precision}; medians and middle halves"
    )
    measurement.deliver(results, "\n".join([headline(results), f"  {what}", "", console.table(table)]))
    return results


def _time(
    encoder: Patches, size: tuple[int, int], objects: int, frames: int, context: Context, seed: int
) -> tuple[list[float], list[float], tuple[int, int]]:
    """The seconds of each frame in the encoder, and those of all else; and the grid of cells."""
    how = Propagation()
    unused = 1 + how.context  # the first frame, and those before which memory is not full
    files = (Path("frame"),) * (unused + frames)
    video = MovingNoise("noise", files, (None,) * len(files), size, objects, seed)
    result = Segmented(video.name)
    features, beyond = [], []
    console.log(f"timing {frames} frames ...")
    with closing(
        segment(video, FrameFeatures(encoder, encoder.patch, context), Segmentation(how, size[0]), result)
    ) as own:
        for _ in range(unused):
            next(own)
        for _ in range(frames):
            began, encoded = time.perf_counter(), result.feature_seconds
            next(own)
            features.append(result.feature_seconds - encoded)
            beyond.append(time.perf_counter() - began - features[-1])
    return features, beyond, result.grid
