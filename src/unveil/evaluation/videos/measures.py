"""Region and boundary measures of video segmentation: J and F, their mean, recall and decay, as DAVIS defines them.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", 2016, section 4, and
Pont-Tuset et al., "The 2017 DAVIS Challenge", 2017; details that the papers leave open are those of their toolkit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from ..statistics import t_quantile

TOLERANCE = 0.008  # of the diagonal, rounded up to pixels
_QUARTERS = 4


def region_similarity(
    prediction: Bool[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"], void: Bool[np.ndarray, "H W"] | None = None
) -> float:
    """J: intersection over union of the pixels that are not void; 1 where both are empty."""
    if void is not None:
        prediction, truth = prediction & ~void, truth & ~void
    union = np.count_nonzero(prediction | truth)
    return np.count_nonzero(prediction & truth) / union if union else 1.0


def boundary_accuracy(
    prediction: Bool[np.ndarray, "H W"],
    truth: Bool[np.ndarray, "H W"],
    void: Bool[np.ndarray, "H W"] | None = None,
    tolerance: float = TOLERANCE,
) -> float:
    """F: the harmonic mean of precision and recall of boundary pixels, within a disk of the tolerance.

    `tolerance` is a share of the image's diagonal. 1 where neither has a boundary, 0 where one has none.
    """
    if void is not None:
        prediction, truth = prediction & ~void, truth & ~void
    reach = math.ceil(tolerance * math.hypot(*truth.shape))
    found, known = (np.argwhere(boundary(mask)) for mask in (prediction, truth))
    if not len(found) or not len(known):
        return float(len(found) == len(known))
    precision, recall = _share_near(found, known, reach), _share_near(known, found, reach)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """The pixels whose neighbour to the right, below, or both, is of the other kind; the border is no boundary."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, corner = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    edges: Bool[np.ndarray, "H W"] = (mask ^ right) | (mask ^ below) | (mask ^ corner)
    return edges


def _share_near(points: Int[np.ndarray, "N 2"], others: Int[np.ndarray, "M 2"], reach: int) -> float:
    """The share of points with another one within a disk: what dilation by that disk would cover."""
    from scipy.spatial import cKDTree  # 0.1 s, which only those wait for who measure

    distances, _ = cKDTree(others).query(points, distance_upper_bound=reach + 1e-6)
    return float(np.isfinite(distances).mean())


def statistics(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, recall and decay of a measure over the frames of an object.

    Recall is the share of frames above 0.5; decay the mean of the first quarter of the frames less that of the last.
    Quarters share the frame between them.
    """
    per_frame = np.asarray(values, np.float64)
    ends = np.round(np.linspace(1, len(per_frame), _QUARTERS + 1) + 1e-10).astype(int) - 1
    first, last = per_frame[ends[0] : ends[1] + 1], per_frame[ends[-2] : ends[-1] + 1]
    return float(per_frame.mean()), float((per_frame > 0.5).mean()), float(first.mean() - last.mean())


def half_interval(values: Sequence[float], videos: Sequence[str]) -> float | None:
    """Half of the 95 % interval of the mean over objects, by Student's t over videos; None for a single video.

    Objects of one video are not independent: the mean is a ratio of two sums over videos, linearised.
    """
    names = sorted(set(videos))
    if len(names) < 2:
        return None
    mean, own = float(np.mean(values)), np.zeros(len(names))
    for value, video in zip(values, videos, strict=True):
        own[names.index(video)] += value - mean
    variance = len(names) / (len(names) - 1) * float((own**2).sum()) / len(values) ** 2
    return t_quantile(len(names) - 1) * math.sqrt(variance)
