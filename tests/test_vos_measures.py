"""J and F of hand-made masks, with numbers worked out by hand, and label propagation against all pairs of cells."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from unveil.evaluation.videos.measures import (
    boundary,
    boundary_accuracy,
    half_interval,
    region_similarity,
    statistics,
)
from unveil.evaluation.videos.propagation import Memory, Propagation


def square(top: int, left: int, side: int, size: tuple[int, int] = (20, 20)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_j_of_two_squares():
    truth, moved = square(4, 4, 6), square(4, 7, 6)
    assert region_similarity(moved, truth) == pytest.approx(18 / 54)  # 3 of 6 columns shared: 18; 36 + 36 - 18
    assert region_similarity(truth, truth) == 1
    assert region_similarity(square(0, 0, 0), truth) == 0
    assert region_similarity(square(0, 0, 0), square(0, 0, 0)) == 1
    void = np.zeros((20, 20), bool)
    void[:, 10:] = True  # what was moved beyond the truth
    assert region_similarity(moved, truth, void) == pytest.approx(18 / 36)
    assert region_similarity(moved, truth, ~void & False) == pytest.approx(18 / 54)


def test_the_boundary_of_a_square():
    """A pixel counts whose neighbour right, below or both is of the other kind: above and left lie outside of it."""
    edges = boundary(square(2, 3, 2, (6, 8)))
    expected = np.zeros((6, 8), bool)
    expected[1, 2:5] = True  # above it: the corner, then two
    expected[2, 2] = expected[2, 4] = True  # left of it, and its own last column
    expected[3, 2:5] = True  # left of it, and its last row
    assert np.array_equal(edges, expected)
    assert not boundary(np.ones((6, 8), bool)).any(), "the border of the image is no boundary"
    border = boundary(square(4, 6, 2, (6, 8)))  # in the last corner
    assert np.argwhere(border).tolist() == [[3, 5], [3, 6], [3, 7], [4, 5], [5, 5]]


def test_f_of_a_square_that_is_moved():
    truth = square(4, 4, 6)  # 7 x 7 less 5 x 5: 24 pixels of boundary
    assert boundary(truth).sum() == 24
    assert boundary_accuracy(truth, truth) == 1
    # The diagonal of 20 x 20 is 28.3 pixels, of which 0.8 % are rounded up to 1. Moved by 1 all pixels are near:
    assert boundary_accuracy(square(4, 5, 6), truth) == 1
    # Moved by 2 to the right, 10 of the 24 have none within 1: the 7 of the ring's left column, and of its right one
    # the 3 that are further than 1 from the other ring's upper and lower edges. The other ring is the same, mirrored.
    assert boundary_accuracy(square(4, 6, 6), truth) == pytest.approx(14 / 24)
    assert boundary_accuracy(square(0, 0, 0), truth) == 0
    assert boundary_accuracy(truth, square(0, 0, 0)) == 0
    assert boundary_accuracy(square(0, 0, 0), square(0, 0, 0)) == 1


def brute_force(mask: np.ndarray, truth: np.ndarray, reach: int) -> float:
    """By dilation with a disk, as the benchmark is defined."""
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    disk = x * x + y * y <= reach * reach
    mine, theirs = boundary(mask), boundary(truth)
    precision = (mine & ndimage.binary_dilation(theirs, disk)).sum() / mine.sum()
    recall = (theirs & ndimage.binary_dilation(mine, disk)).sum() / theirs.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def test_f_is_that_of_dilation_by_a_disk():
    rng = np.random.default_rng(0)
    values = []
    for size in ((90, 160), (240, 428), (60, 50)):
        reach = math.ceil(0.008 * math.hypot(*size))
        noise = [ndimage.gaussian_filter(rng.normal(size=size), 4) for _ in range(2)]
        truth, mask = noise[0] > 0.02, noise[0] + 0.4 * noise[1] > 0.02
        values.append(boundary_accuracy(mask, truth))
        assert values[-1] == pytest.approx(brute_force(mask, truth, reach), abs=1e-12)
        void = rng.random(size) < 0.1
        expected = brute_force(mask & ~void, truth & ~void, reach)
        assert boundary_accuracy(mask, truth, void) == pytest.approx(expected, abs=1e-12)
    assert 0.2 < min(values) < max(values) < 1


def test_mean_recall_and_decay():
    # Nine frames: quarters end at 1, 3, 5, 7 and 9, and share these frames.
    values = [1.0, 0.9, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    mean, recall, decay = statistics(values)
    assert mean == pytest.approx(4.8 / 9)
    assert recall == pytest.approx(4 / 9), "0.5 is not above 0.5"
    assert decay == pytest.approx((1.0 + 0.9 + 0.8) / 3 - (0.3 + 0.2 + 0.1) / 3)
    assert statistics([0.7]) == (0.7, 1.0, 0.0)
    long = np.linspace(1, 0, 401)  # more frames than a byte counts
    assert statistics(long)[2] == pytest.approx(0.75)


def test_the_interval_is_over_videos():
    # Two videos of two objects each: residuals are +-0.2, twice a video. 2 / 1 * (0.4^2 + 0.4^2) / 16 = 0.04
    half = half_interval([0.7, 0.7, 0.3, 0.3], ["a", "a", "b", "b"])
    assert half == pytest.approx(12.706 * 0.2, rel=1e-3)
    assert half_interval([0.7, 0.3], ["a", "a"]) is None


def directions(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def all_pairs(frames: torch.Tensor, labels: torch.Tensor, own: torch.Tensor, how: Propagation) -> torch.Tensor:
    """Every cell against every cell of all frames."""
    height, width = own.shape[:2]
    result = torch.zeros(height, width, labels.shape[-1])
    for i in range(height):
        for j in range(width):
            near = [
                (float(own[i, j] @ frames[s, y, x]), labels[s, y, x])
                for s in range(len(frames))
                for y in range(height)
                for x in range(width)
                if max(abs(y - i), abs(x - j)) <= how.radius
            ]
            best = sorted(near, key=lambda pair: -pair[0])[: how.neighbours]
            weights = torch.tensor([math.exp(similar / how.temperature) for similar, _ in best])
            result[i, j] = (weights[:, None] * torch.stack([label for _, label in best])).sum(0) / weights.sum()
    return result


@pytest.mark.parametrize(("grid", "radius", "neighbours"), [((3, 29), 2, 5), ((7, 3), 1, 60), ((2, 2), 12, 5)])
def test_propagation_is_that_of_all_pairs_in_reach(grid, radius, neighbours):
    how = Propagation(context=2, radius=radius, neighbours=neighbours)
    frames = directions(6, *grid, 5)
    labels = torch.rand(6, *grid, 3, generator=torch.Generator().manual_seed(1)).softmax(-1)
    memory = Memory(grid, how, torch.device("cpu"))
    memory.remember(frames[0], labels[0], is_anchor=True)
    torch.testing.assert_close(
        memory.propagate(frames[5]), all_pairs(frames[:1], labels[:1], frames[5], how), atol=1e-5, rtol=1e-4
    )
    for number in range(1, 5):
        memory.remember(frames[number], labels[number])
    kept = [0, 3, 4]  # the first, and the last two
    expected = all_pairs(frames[kept], labels[kept], frames[5], how)
    torch.testing.assert_close(memory.propagate(frames[5]), expected, atol=1e-5, rtol=1e-4)
    memory.add_labels(1)
    memory.remember(frames[5], F.pad(labels[5], (0, 1)), is_anchor=True)  # one more is kept for good
    again = memory.propagate(frames[1])
    torch.testing.assert_close(
        again[..., :3], all_pairs(frames[[0, 5, 3, 4]], labels[[0, 5, 3, 4]], frames[1], how), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(again.sum(-1), torch.ones(grid))


def test_memory_does_not_grow_with_the_video():
    memory = Memory((4, 5), Propagation(context=3), torch.device("cpu"))
    sizes = set()
    for number in range(12):
        memory.remember(directions(4, 5, 6, seed=number), torch.ones(4, 5, 2) / 2, is_anchor=number == 0)
        sizes.add((memory.labels.numel(), *(kept.numel() for kept in memory.kept)))
    assert len(sizes) == 1
    assert memory.used == 4


@pytest.mark.parametrize(
    ("options", "flag"),
    [({"context": -1}, "--context"), ({"neighbours": 0}, "--neighbours"), ({"temperature": 0.0}, "--temperature")],
)
def test_settings_that_mean_nothing_are_refused(options, flag):
    with pytest.raises(ValueError, match=flag):
        Propagation(**options)
