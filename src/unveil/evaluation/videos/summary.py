"""From the frames of objects to the figures of a set of videos, as the DAVIS benchmark sums them up."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from .measures import half_interval, statistics
from .segmentation import Segmented

METRICS = ("jf_mean", "j_mean", "j_recall", "j_decay", "f_mean", "f_recall", "f_decay")


def summed_up(videos: Sequence[Segmented]) -> dict[str, float]:
    """The means over all objects of all videos, and half of the interval of J&F; {} where nothing was measured.

    J&F is the mean of the two means.
    """
    per_object = [
        (*statistics(video.regions[number]), *statistics(video.boundaries[number]))
        for video in videos
        for number in video.objects
    ]
    return _figures(per_object, [video.name for video in videos for _ in video.objects])


def of_copies(videos: Sequence[Segmented]) -> dict[str, float]:
    """The same of the first mask of each video, copied to every frame."""
    per_object, names = [], []
    for video in videos:
        for number in video.objects:
            regions, boundaries = zip(*video.copied[number], strict=True)
            per_object.append((*statistics(regions), *statistics(boundaries)))
            names.append(video.name)
    return _figures(per_object, names)


def _figures(per_object: Sequence[tuple[float, ...]], videos: Sequence[str]) -> dict[str, float]:
    if not per_object:
        return {}
    means = [fmean(column) for column in zip(*per_object, strict=True)]
    figures = dict(zip(METRICS, ((means[0] + means[3]) / 2, *means), strict=True))
    half = half_interval([(values[0] + values[3]) / 2 for values in per_object], videos)
    return figures if half is None else {**figures, "plus_minus_jf_mean": half}


def of_each_video(videos: Sequence[Segmented]) -> dict[str, float]:
    """The J&F of each video: the mean over its objects."""
    return {
        video.name: fmean((fmean(video.regions[n]) + fmean(video.boundaries[n])) / 2 for n in video.objects)
        for video in videos
        if video.objects
    }


def linearised(videos: Sequence[Segmented]) -> list[float]:
    """A number for each video whose mean is the J&F of the set, and whose spread is that of this mean.

    The mean is one over objects, and those of one video are not independent.
    """
    measured = [video for video in videos if video.objects]
    own = [[(fmean(video.regions[n]) + fmean(video.boundaries[n])) / 2 for n in video.objects] for video in measured]
    if not own:
        return []
    count = sum(map(len, own))
    mean = sum(map(sum, own)) / count
    return [mean + len(own) / count * sum(value - mean for value in values) for values in own]
