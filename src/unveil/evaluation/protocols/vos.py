"""Video object segmentation: the first frame's masks are carried through a video by the similarity of features."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ...data.label_palette import label_png
from ...data.video_folders import Video, VideoSet
from ...runs.atomic import make_folder, write_bytes
from ...runs.console import user_path
from ...runs.folder import check_apart
from ..types import THIS_RUN, Context, FeatureEncoder, Needs, Score
from ..videos.clips import Clips
from ..videos.data import VideoData
from ..videos.frames import FrameFeatures, Patches, ResizePositions, patches_of, resizing, ways_of
from ..videos.propagation import Propagation
from ..videos.segmentation import Segmentation, Segmented, UnusableVideo, segment
from ..videos.summary import linearised, of_copies, of_each_video, summed_up

_LISTED = 20  # files that could not be read, and videos that were left out, by name in the settings


@dataclass(frozen=True)
class Vos:
    """The objects of a video's first frame, carried through it by frozen features of the last block, without training.

    split: a list in ImageSets/ of the data, such as val, train or test-dev; by default val where there is one, else
        all videos
    positions: how frames larger than the run's images get their positions: interpolate, extrapolate, or both, of which
        the run's own way comes first
    short_side: pixels of the short side of a frame, at most
    stride: side of a cell of features in pixels: a part of the patch, such as half of it, by several passes; by
        default the patch
    context: frames before the present one that are remembered, beside the first
    radius: cells up and down, left and right, within which similar ones are looked for
    neighbours: how many of the most similar cells give their labels
    temperature: that similarities are divided by
    soft_labels: the first labels of a cell are shares of its pixels, not the label at its centre
    stretch: stretch each object's map to [0, 1] in every frame before the highest is taken, as the public protocols do
    late: ignore objects that are not in the first frame, as the DAVIS benchmark does, or give them where they appear
    save_masks: folder for the predicted masks, as the benchmark's server reads them
    """

    needs: ClassVar[Needs] = "videos"

    split: str | None = None
    positions: Literal["both", "interpolate", "extrapolate"] = "both"
    short_side: int = 480
    stride: int | None = None
    context: int = 7
    radius: int = 12
    neighbours: int = 5
    temperature: float = 0.1
    soft_labels: bool = False
    stretch: bool = True
    late: Literal["ignore", "give"] = "ignore"
    save_masks: str | None = None

    def __post_init__(self) -> None:
        self._how()
        for name in ("short_side", "stride"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is a number of pixels of at least 1; got {value}")

    def _how(self) -> Propagation:
        return Propagation(self.context, self.radius, self.neighbours, self.temperature)

    def run(self, subject: FeatureEncoder, data: VideoData, context: Context) -> Score | None:
        """The measures over all objects; None for an encoder without features of patches.

        Raises ValueError for a stride that does not divide the patch, for an encoder that reads no pictures, and where
        no video can be used.
        """
        encoder = patches_of(subject)
        if encoder is None:
            return None
        videos = data.open(self.split)
        stride = self.stride or encoder.patch
        if encoder.patch % stride:
            raise ValueError(
                f"--stride {stride} is no part of the patch of {encoder.patch} pixels; give one, as its half"
            )
        if self.save_masks is not None:
            check_apart(user_path(self.save_masks), data.address)
        ways = self._ways(encoder)
        measured = {
            way: self._measure(encoder, stride, way, videos, context, is_main=number == 0)
            for number, way in enumerate(ways)
        }
        main, skipped = measured[ways[0]]
        metrics = summed_up(main)
        for way in ways[1:]:
            metrics |= {f"{name}_{way}": value for name, value in summed_up(measured[way][0]).items()}
        if not metrics and self.save_masks is None:
            raise ValueError(
                f"no frame of {data.address} can be measured: none between the first and the last has a mask; give"
                " --save-masks FOLDER to write the predictions alone"
            )
        return Score(
            metrics,
            self._settings(encoder, stride, ways, videos, main, skipped),
            self._card(encoder, stride, ways),
            baselines={"first mask": of_copies(main)} if metrics and context.subject == THIS_RUN else {},
            details={"jf": of_each_video(main)} if metrics else {},
            outcomes={"jf_mean": linearised(main)} if metrics else {},
        )

    def _ways(self, encoder: Patches) -> list[ResizePositions]:
        """The ways of resizing positions that are measured, the encoder's own first."""
        ways = list(ways_of(encoder)) or [encoder.resize_positions]
        if self.positions == "both" or not ways_of(encoder):
            return ways
        if self.positions not in ways:
            raise ValueError(f"--positions {self.positions}: this encoder can only {' or '.join(ways)} its own")
        return [self.positions]

    def _measure(
        self,
        encoder: Patches,
        stride: int,
        way: ResizePositions,
        videos: VideoSet,
        context: Context,
        is_main: bool,
    ) -> tuple[list[Segmented], dict[str, str]]:
        """The videos as they were segmented, and those that could not be with the reason."""
        settings = Segmentation(self._how(), self.short_side, self.soft_labels, self.stretch, self.late == "give")
        features = FrameFeatures(encoder, stride, context)
        is_shown = is_main and context.subject == THIS_RUN
        clips = Clips(context.pictures if is_shown else None)
        folder = user_path(self.save_masks) if is_shown and self.save_masks is not None else None
        done, total = 0, sum(map(len, videos.videos))
        results: list[Segmented] = []
        skipped = dict(videos.passed_over) if is_main else {}
        what = f"frames of {context.subject}" + ("" if is_main else f", {way}d")
        with resizing(encoder, way):
            for video in videos.videos:
                result = Segmented(video.name)
                try:
                    with closing(segment(video, features, settings, result, is_shown)) as frames:
                        for frame in frames:
                            clips.add(frame)
                            if folder is not None:
                                _save(folder, video, frame.number, label_png(frame.ids))
                            context.progress(what, done + frame.number + 1, total)
                except UnusableVideo as error:
                    skipped[video.name] = str(error)
                    context.note(f"left out: video {video.name}: {error}")
                else:
                    results.append(result)
                clips.finish(video.name)
                done += len(video)
        if not results:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
            raise ValueError(f"none of the {len(skipped)} videos of {videos.address} can be used ({reasons})")
        frames_done = sum(result.frames - 1 for result in results)
        if is_shown and frames_done:
            seconds = [sum(getattr(r, name) for r in results) for name in ("feature_seconds", "propagation_seconds")]
            context.note(
                f"a frame took {1000 * seconds[0] / (frames_done + len(results)):.3g} ms for its features and"
                f" {1000 * seconds[1] / frames_done:.3g} ms for the propagation of labels"
            )
        return results, skipped

    def _settings(
        self,
        encoder: Patches,
        stride: int,
        ways: Sequence[str],
        videos: VideoSet,
        results: Sequence[Segmented],
        skipped: dict[str, str],
    ) -> dict[str, object]:
        unreadable = [name for result in results for name in result.unreadable]
        counts = {
            "unreadable": unreadable[:_LISTED],
            "unreadable_files": len(unreadable),
            "left_out": dict(list(skipped.items())[:_LISTED]),
            "left_out_videos": len(skipped),
            "late_objects": sum(result.late for result in results),
        }
        return {
            "videos": len(results),
            "objects": sum(len(result.objects) for result in results),
            "frames": sum(result.frames for result in results),
            "measured_frames": sum(max(map(len, result.regions.values()), default=0) for result in results),
            "list": videos.listed_by,
            "grids": sorted({f"{h} x {w}" for h, w in (result.grid for result in results)}),
            "patch": encoder.patch,
            "stride": stride,
            "positions": list(ways) if ways_of(encoder) else [],
            **{name: getattr(self, name) for name in ("short_side", "context", "radius", "neighbours", "temperature")},
            **{name: getattr(self, name) for name in ("soft_labels", "stretch", "late")},
            **{name: value for name, value in counts.items() if value},
        }

    def _card(self, encoder: Patches, stride: int, ways: Sequence[str]) -> str:
        positions = passes = ""
        if ways_of(encoder):
            positions = f" Positions of frames are {', and beside it '.join(f'{way}d' for way in ways)}."
        if stride != encoder.patch:
            passes = f" A cell is {stride} pixels wide, by {(encoder.patch // stride) ** 2} passes over moved images."
        return (
            "The masks of the first frame are carried on by the frozen features of the last block: each cell takes the"
            f" labels of the {self.neighbours} most similar ones within {self.radius} cells, of the first and the last"
            f" {self.context} frames, by a softmax at {self.temperature:g}; the short side is {self.short_side} pixels"
            f" at most.{positions}{passes} J is the overlap, F the agreement of outlines within 0.8 % of the diagonal;"
            " the first and the last frame are not measured, and means are over objects (DAVIS 2017). First mask: the"
            " mask of the first frame, copied to all. Intervals are over videos."
        )


def _save(folder: Path, video: Video, number: int, content: bytes) -> None:
    make_folder(folder / video.name)
    write_bytes(folder / video.name / f"{video.stem(number)}.png", content)
