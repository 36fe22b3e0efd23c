"""The ten categories, and the plain shapes that stand around them, each put together from solids.

A thing is drawn in its own units, z up, then scaled to a height (or 1.3 times a width) of 1 and set on the floor.
Every part names a group; the parts of a group share a material, which has nothing to do with the category.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from .solids import BOX, CABIN, GABLE, PYRAMID, Ball, Dome, Frustum, Solid, Torus

CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64).T


@dataclass(frozen=True, eq=False)
class Shape:
    """A solid with its middle and its axes (columns: half extents, turned), and the group that shares its material."""

    solid: Solid
    centre: Float[ndarray, " 3"]
    axes: Float[ndarray, "3 3"]
    group: int = 0

    @property
    def corners(self) -> Float[ndarray, "3 8"]:
        """The corners of the box around the solid."""
        return self.centre[:, None] + self.axes @ CORNERS


Xyz = tuple[float, float, float]
TO_X = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # turns the z axis of a solid to x
TO_Y = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # ... and to y


def shape(solid: Solid, centre: Xyz, half: Xyz, group: int = 0, turn: ndarray | None = None) -> Shape:
    """A solid stretched by its half extents, then turned, then moved."""
    axes = np.diag(half)
    return Shape(solid, np.array(centre, np.float64), axes if turn is None else turn @ axes, group)


def bounds(shapes: list[Shape]) -> tuple[Float[ndarray, " 3"], Float[ndarray, " 3"]]:
    """The lowest and highest coordinates of the boxes around the shapes."""
    corners = np.concatenate([s.corners for s in shapes], axis=1)
    return corners.min(1), corners.max(1)


def turn_z(angle: float) -> Float[ndarray, "3 3"]:
    """The 3x3 matrix of a rotation about the vertical axis."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _legs(x: float, y: float, height: float, thick: float, group: int, round_: bool) -> list[Shape]:
    solid = Frustum() if round_ else BOX
    half, places = (thick, thick, height / 2), [(x, y), (x, -y), (-x, y), (-x, -y)]
    return [shape(solid, (a, b, height / 2), half, group) for a, b in places]


def bottle(rng: Generator) -> list[Shape]:
    """A body, a shoulder, a neck, often a cap."""
    u = rng.uniform
    body, shoulder, neck = u(0.3, 0.6), u(0.1, 0.25), u(0.15, 0.35)
    wide, narrow = u(0.16, 0.28), u(0.045, 0.075)
    parts = [
        shape(Frustum(), (0, 0, body / 2), (wide, wide, body / 2)),
        shape(Frustum(narrow / wide), (0, 0, body + shoulder / 2), (wide, wide, shoulder / 2)),
        shape(Frustum(), (0, 0, body + shoulder + neck / 2), (narrow, narrow, neck / 2)),
    ]
    if u() < 0.7:
        parts.append(shape(Frustum(), (0, 0, body + shoulder + neck), (narrow * 1.3, narrow * 1.3, 0.04), 1))
    if u() < 0.5:
        parts.append(shape(Frustum(), (0, 0, body * 0.5), (wide * 1.01, wide * 1.01, body * u(0.2, 0.35)), 2))
    return parts


def car(rng: Generator) -> list[Shape]:
    """A body, a cabin that leans in, four wheels."""
    u = rng.uniform
    long, wide, body, cabin, wheel = u(0.6, 0.85), u(0.28, 0.36), u(0.1, 0.17), u(0.11, 0.17), u(0.13, 0.18)
    middle = wheel + body * 0.8
    parts = [
        shape(BOX, (0, 0, middle), (long, wide, body)),
        shape(CABIN, (u(-0.25, 0.1) * long, 0, middle + body + cabin), (long * u(0.5, 0.7), wide * 0.9, cabin), 1),
    ]
    axles, sides, half = (-0.62 * long, 0.62 * long), (-wide, wide), (wheel, wheel, 0.06)
    return parts + [shape(Frustum(), (x, y, wheel), half, 2, TO_Y) for x in axles for y in sides]


def chair(rng: Generator) -> list[Shape]:
    """A seat on four legs, a back that stands up, sometimes arms."""
    u = rng.uniform
    wide, deep, seat, back, thick = u(0.22, 0.3), u(0.22, 0.3), u(0.4, 0.55), u(0.25, 0.35), u(0.02, 0.04)
    parts = _legs(wide - thick, deep - thick, seat, thick, 1, u() < 0.5)
    parts.append(shape(BOX, (0, 0, seat), (wide, deep, thick * 1.3)))
    if u() < 0.5:
        parts.append(shape(BOX, (0, deep - thick, seat + back), (wide, thick, back)))
    else:
        parts.append(shape(BOX, (0, deep - thick, seat + 2 * back), (wide, thick, back * 0.3)))
        parts += [shape(BOX, (x * wide, deep - thick, seat + back), (thick, thick, back), 1) for x in (-0.85, 0, 0.85)]
    if u() < 0.25:
        parts += [shape(BOX, (x * wide, 0, seat + back * 0.7), (thick, deep, thick), 1) for x in (-1, 1)]
    return parts


def house(rng: Generator) -> list[Shape]:
    """Walls, a roof with two or four slopes, a door, often windows and a chimney."""
    u = rng.uniform
    x, y, wall, roof = u(0.32, 0.5), u(0.32, 0.55), u(0.2, 0.32), u(0.15, 0.28)
    eaves = u(1.05, 1.2)
    parts = [
        shape(BOX, (0, 0, wall), (x, y, wall)),
        shape(GABLE if u() < 0.65 else PYRAMID, (0, 0, 2 * wall + roof), (x * eaves, y * eaves, roof), 1),
    ]
    door = u(-0.4, 0.4)
    for side in (-1, 1):
        parts.append(shape(BOX, (door * x, side * y, wall * 0.6), (0.09, 0.015, wall * 0.6), 2))
        parts += [shape(BOX, (side * x, j * y, wall * 1.15), (0.015, 0.1, 0.09), 2) for j in (-0.45, 0.45)]
    if u() < 0.6:
        parts.append(shape(BOX, (x * 0.5, y * u(-0.5, 0.5), 2 * wall + roof * 1.3), (0.06, 0.06, roof * 0.8), 0))
    return parts


def lamp(rng: Generator) -> list[Shape]:
    """A foot, a pole, a shade."""
    u = rng.uniform
    height, foot, wide, shade = u(0.75, 1.1), u(0.14, 0.24), u(0.22, 0.36), u(0.13, 0.22)
    pole = u(0.02, 0.035)
    return [
        shape(Frustum(u(0.5, 1)), (0, 0, 0.035), (foot, foot, 0.035), 1),
        shape(Frustum(), (0, 0, height / 2), (pole, pole, height / 2), 1),
        shape(Frustum(u(0.3, 0.75)), (0, 0, height), (wide, wide, shade)),
    ]


def mug(rng: Generator) -> list[Shape]:
    """A cup with a ring for a handle and something dark to drink."""
    u = rng.uniform
    radius, half, ring = u(0.28, 0.4), u(0.3, 0.45), u(0.2, 0.27)
    drink, handle = radius * 0.86, rng.choice((-1, 1)) * (radius + ring * 0.35)
    return [
        shape(Frustum(u(0.9, 1.0)) if u() < 0.7 else Frustum(), (0, 0, half), (radius, radius, half)),
        shape(Torus(u(0.18, 0.28)), (handle, 0, half * u(0.95, 1.1)), (ring, ring, ring), 1, TO_Y),
        shape(Frustum(), (0, 0, 2 * half), (drink * 0.95, drink * 0.95, 0.012), 2),
    ]


def mushroom(rng: Generator) -> list[Shape]:
    """A stem under a cap, round or pointed."""
    u = rng.uniform
    height, stem, wide, cap = u(0.4, 0.7), u(0.08, 0.16), u(0.32, 0.5), u(0.11, 0.2)
    return [
        shape(Frustum(u(0.6, 1.0)), (0, 0, height / 2), (stem, stem, height / 2), 1),
        shape(Dome() if u() < 0.8 else Frustum(u(0.05, 0.3)), (0, 0, height + cap * 0.9), (wide, wide, cap)),
    ]


def snowman(rng: Generator) -> list[Shape]:
    """Two or three balls on one another, a nose, eyes, often a hat."""
    u = rng.uniform
    parts, z, radius = [], 0.0, u(0.28, 0.36)
    for _ in range(rng.integers(2, 4)):
        parts.append(shape(Ball(), (0, 0, z + radius * 0.95), (radius, radius, radius)))
        head, top = z + radius * 0.95, radius
        z, radius = z + radius * 1.6, radius * u(0.66, 0.8)
    nose = u(0.1, 0.2)
    parts.append(shape(Frustum(0.05), (top + nose * 0.7, 0, head), (0.05, 0.05, nose), 1, TO_X))
    parts += [shape(Ball(), (top * 0.82, y * top, head + top * 0.4), (0.04, 0.04, 0.04), 2) for y in (-0.38, 0.38)]
    if u() < 0.6:
        parts.append(shape(Frustum(), (0, 0, head + top * 0.8), (top * 1.05, top * 1.05, 0.02), 2))
        parts.append(shape(Frustum(u(0.8, 1.0)), (0, 0, head + top * 0.8 + 0.14), (top * 0.65, top * 0.65, 0.14), 2))
    return parts


def table(rng: Generator) -> list[Shape]:
    """A top, round or square, on four legs or one."""
    u = rng.uniform
    x, y, height, thick, disc = u(0.4, 0.6), u(0.3, 0.55), u(0.4, 0.75), u(0.02, 0.045), u() < 0.4
    top = shape(Frustum(), (0, 0, height), (x, x, thick)) if disc else shape(BOX, (0, 0, height), (x, y, thick))
    if disc and u() < 0.5:
        column = shape(Frustum(), (0, 0, height / 2), (thick * 1.6, thick * 1.6, height / 2), 1)
        return [top, column, shape(Frustum(0.6), (0, 0, 0.04), (x * 0.5, x * 0.5, 0.04), 1)]
    spread = 0.6 if disc else 0.92
    return [top, *_legs(x * spread, (x if disc else y) * spread, height, u(0.025, 0.045), 1, disc)]


def tree(rng: Generator) -> list[Shape]:
    """A trunk with a crown of stacked cones or of round clumps."""
    u = rng.uniform
    trunk, thick = u(0.2, 0.4), u(0.05, 0.085)
    parts = [shape(Frustum(0.7), (0, 0, trunk / 2 + 0.05), (thick, thick, trunk / 2 + 0.05), 1)]
    if u() < 0.55:
        z, wide, half = trunk, u(0.3, 0.42), u(0.17, 0.24)
        for _ in range(rng.integers(2, 5)):
            parts.append(shape(Frustum(0.02), (0, 0, z + half), (wide, wide, half)))
            z, wide, half = z + half * 0.95, wide * 0.78, half * 0.9
        return parts
    wide = u(0.2, 0.28)
    parts.append(shape(Ball(), (0, 0, trunk + wide), (wide, wide, wide * 1.1)))
    for angle in np.arange(3) * 2.1 + u(0, 6.3):
        x, y, r = np.cos(angle) * wide * 0.8, np.sin(angle) * wide * 0.8, wide * u(0.6, 0.85)
        parts.append(shape(Ball(), (x, y, trunk + wide * u(0.6, 1.4)), (r, r, r)))
    return parts


CATEGORIES: tuple[Callable[[Generator], list[Shape]], ...] = (
    bottle, car, chair, house, lamp, mug, mushroom, snowman, table, tree,
)  # fmt: skip
CLASSES = tuple(category.__name__ for category in CATEGORIES)
CLUTTER = ("ball", "block", "can", "cone", "ring")  # the shapes of draw_clutter


def stand(shapes: list[Shape], size: float, angle: float, x: float, y: float) -> list[Shape]:
    """The shapes scaled to `size` metres, turned about the vertical and set on the floor at x, y."""
    low, high = bounds(shapes)
    middle = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    extent = high - low
    turn = turn_z(angle) * size / max(extent[2], extent[:2].max() / 1.3)
    there = np.array([x, y, 0.0])
    return [Shape(s.solid, there + turn @ (s.centre - middle), turn @ s.axes, s.group) for s in shapes]


def draw_clutter(rng: Generator, size: float, x: float, y: float) -> tuple[str, list[Shape]]:
    """A plain shape of `size` metres and its name, at x, y."""
    u = rng.uniform
    a, b, c = u(0.2, 0.4), u(0.2, 0.4), u(0.2, 0.5)
    shapes = (
        shape(Ball(), (0, 0, a), (a, a, a)),
        shape(BOX, (0, 0, c), (a, b, c)),
        shape(Frustum(), (0, 0, c), (a, a, c)),
        shape(Frustum(u(0, 0.3)), (0, 0, c), (a, a, c)),
        shape(Torus(u(0.2, 0.35)), (0, 0, a), (a, a, a), 0, None if u() < 0.5 else TO_X),
    )
    number = rng.integers(len(CLUTTER))
    return CLUTTER[number], stand([shapes[number]], size, u(0, 2 * np.pi), x, y)
