"""A world, drawn from (seed, index) alone: what stands where, of what, in which light, seen by which camera."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from .solids import Plane, Solid
from .textures import Material, colour, draw_material
from .things import CATEGORIES, CLASSES, CLUTTER, CORNERS, Shape, bounds, draw_clutter, stand, turn_z

SEMANTIC_CLASSES = ("sky", "floor", "wall", *CLUTTER, *CLASSES)
SKY, FLOOR, WALL = range(3)

Things = list[tuple[str, list[Shape]]]
Contact = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Part:
    """One solid in the world, in metres, z up: `centre + axes @ p` maps its own coordinates there.

    Parts of one thing have its number, from 1; what is no thing, such as the floor, has 0.
    """

    solid: Solid
    centre: Float[ndarray, " 3"]
    axes: Float[ndarray, "3 3"]
    inverse: Float[ndarray, "3 3"]
    material: Material
    semantic: int
    thing: int = 0


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole: `half` is the tangent of half the field of view along the shorter side of the image."""

    position: Float[ndarray, " 3"]
    right: Float[ndarray, " 3"]
    down: Float[ndarray, " 3"]
    forward: Float[ndarray, " 3"]
    half: float

    def rays(self, height: int, width: int) -> Float[ndarray, "3 {height} {width}"]:
        """One ray through the centre of each pixel, scaled so that t along it is depth along the optical axis."""
        step = np.float32(2 * self.half / min(height, width))
        x = (np.arange(width, dtype=np.float32) - (width - 1) / 2) * step
        y = (np.arange(height, dtype=np.float32) - (height - 1) / 2) * step
        across, along = self.right[:, None] * x, self.down[:, None] * y + self.forward[:, None]
        return (across[:, None, :] + along[:, :, None]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Light:
    """A sun: where it stands, how wide it is, its colour, and the light of the sky from above and from below."""

    direction: Float[ndarray, " 3"]
    spread: float
    colour: Float[ndarray, " 3"]
    above: Float[ndarray, " 3"]
    below: Float[ndarray, " 3"]


@dataclass(frozen=True, eq=False)
class Sky:
    """A gradient from the horizon to the zenith with clouds, and the haze that far things fade into."""

    horizon: Float[ndarray, " 3"]
    zenith: Float[ndarray, " 3"]
    clouds: Material
    cover: float


@dataclass(frozen=True, eq=False)
class World:
    """Everything that a picture depends on except its size. `contacts` are x, y and radius of what stands there."""

    label: int
    parts: tuple[Part, ...]
    contacts: Float[ndarray, "T 3"]
    camera: Camera
    light: Light
    sky: Sky

    @cached_property
    def corners(self) -> Float[ndarray, "3 P 8"]:
        """The corners of the boxes around the parts."""
        centres = np.stack([p.centre for p in self.parts], axis=1)
        return centres[:, :, None] + np.stack([p.axes for p in self.parts], axis=1) @ CORNERS

    def only(self, semantic: int) -> World:
        """The world with nothing but the parts of one semantic class."""
        return replace(self, parts=tuple(p for p in self.parts if p.semantic == semantic))


def _part(shape: Shape, material: Material, semantic: int, thing: int = 0) -> Part:
    centre, axes = shape.centre.astype(np.float32), shape.axes.astype(np.float32)
    return Part(shape.solid, centre, axes, np.linalg.inv(axes), material, semantic, thing)


def _thing(rng: Generator, shapes: list[Shape], name: str, number: int) -> list[Part]:
    """A thing dressed: each group in its own material, or all in one."""
    one = draw_material(rng) if rng.random() < 0.25 else None
    materials = {group: one or draw_material(rng) for group in sorted({s.group for s in shapes})}
    return [_part(s, materials[s.group], SEMANTIC_CLASSES.index(name), number) for s in shapes]


def _contact(shapes: list[Shape]) -> Contact:
    """Where a thing stands, and the radius of its mean extent."""
    low, high = (corner[:2] for corner in bounds(shapes))
    x, y = (low + high) / 2
    return x, y, (high - low).mean() / 2


def _camera(rng: Generator, main: list[Shape]) -> Camera:
    """A view of the main thing within 57 degrees of its front: it spans most of the image and is off the middle."""
    corners = np.concatenate([s.corners for s in main], axis=1)
    middle = (corners.min(1) + corners.max(1)) / 2
    reach = np.linalg.norm(corners - middle[:, None], axis=0).max()
    half, share = np.tan(np.radians(rng.uniform(32, 58)) / 2), rng.uniform(0.7, 1.05)
    distance = reach / half / share
    turn, lift, roll = -np.pi / 2 + rng.uniform(-1, 1), np.radians(rng.uniform(5, 32)), rng.normal(0, 0.05)
    forward = -np.array([np.cos(turn) * np.cos(lift), np.sin(turn) * np.cos(lift), np.sin(lift)])
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    aim = rng.uniform(-1, 1, 2) * (1.2 - share) * 0.7 * half * distance
    position = middle - forward * distance + right * aim[0] + down * aim[1]
    position[2] = max(position[2], 0.12)
    right, down = right * np.cos(roll) + down * np.sin(roll), down * np.cos(roll) - right * np.sin(roll)
    return Camera(position, right, down, forward, float(half))


def _backdrop(rng: Generator, camera: Camera) -> list[Part]:
    """A floor, and none, one or two walls behind the things; some walls end below the sky."""
    ground = turn_z(rng.uniform(0, 2 * np.pi))
    parts = [_part(Shape(Plane(), np.zeros(3), ground), draw_material(rng, plane=True), FLOOR)]
    behind = np.arctan2(camera.forward[1], camera.forward[0])
    count = rng.choice(3, p=(0.35, 0.3, 0.35))
    angles = behind + rng.uniform(-0.5, 0.5) + np.array([(), (0.0,), (-np.pi / 4, np.pi / 4)][count])
    top, material = (rng.uniform(0.5, 1.6) if rng.random() < 0.3 else np.inf), draw_material(rng, plane=True)
    for angle in angles:
        out = -np.array([np.cos(angle), np.sin(angle), 0.0])  # the wall faces back to the things
        up = np.array([0.0, 0, 1])
        axes = np.stack([np.cross(up, out), up, out], axis=1)
        parts.append(_part(Shape(Plane(top), -out * rng.uniform(1.6, 3.2), axes), material, WALL))
    return parts


def _things_around(rng: Generator, camera: Camera, main: Contact, walls: list[Part]) -> tuple[Things, ndarray]:
    """Up to eight plain shapes that touch neither one another, the main thing, a wall nor the camera."""
    around: Things = []
    taken = [main]
    for _ in range(rng.integers(6, 16)):
        angle, away, size = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 2.6), rng.uniform(0.25, 0.6)
        x, y, radius = away * np.cos(angle), away * np.sin(angle), 0.65 * size
        clear = len(around) < 8 and all(np.hypot(x - a, y - b) > 0.9 * (radius + r) for a, b, r in taken)
        clear &= all((wall.inverse @ ([x, y, 0] - wall.centre))[2] > 1.2 * radius for wall in walls)
        clear &= camera.forward @ ([x, y, radius] - camera.position) > 1.0 + 1.5 * radius
        if clear:
            around.append(draw_clutter(rng, size, x, y))
            taken.append(_contact(around[-1][1]))
    return around, np.array(taken)


def _light(rng: Generator, camera: Camera) -> Light:
    """A sun on the camera's half of the sky, warm to cold; the darker it is, the brighter the sky."""
    behind = np.arctan2(-camera.forward[1], -camera.forward[0])
    turn, lift = behind + rng.uniform(-1.9, 1.9), np.radians(rng.uniform(25, 65))
    direction = np.array([np.cos(turn) * np.cos(lift), np.sin(turn) * np.cos(lift), np.sin(lift)])
    warmth, power = rng.uniform(-0.15, 0.3), rng.uniform(0.7, 1.5)
    sun = power * np.array([1 + warmth * 0.5, 1, 1 - warmth])
    fill = rng.uniform(0.38, 0.55) + 0.2 * (1.5 - power)
    return Light(
        direction,
        spread=rng.uniform(0.01, 0.06),
        colour=sun,
        above=fill * np.array([1 - warmth * 0.4, 1, 1 + warmth * 0.6]),
        below=fill * rng.uniform(0.35, 0.6) * (0.4 + colour(rng, muted=True)),
    )


def _sky(rng: Generator) -> Sky:
    zenith = colour(rng) if rng.random() < 0.25 else np.array([0.1, 0.25, 0.62]) * rng.uniform(0.4, 1.3)
    horizon = np.clip(0.45 * zenith + rng.uniform(0.25, 0.55) * rng.uniform(0.85, 1.1, 3), 0, 0.95)
    return Sky(horizon, zenith, draw_material(rng), rng.uniform(0, 0.6))


def draw_world(rng: Generator, label: int) -> World:
    """The next world of the stream, with a main thing of category `label`; it may hide its main thing."""
    main = stand(CATEGORIES[label](rng), rng.uniform(0.85, 1.15), 0, 0, 0)  # about 1 m tall, its front towards -y
    camera = _camera(rng, main)
    backdrop = _backdrop(rng, camera)
    around, contacts = _things_around(rng, camera, _contact(main), backdrop[1:])
    things = [(CLASSES[label], main), *around]
    dressed = (_thing(rng, shapes, name, number) for number, (name, shapes) in enumerate(things, start=1))
    parts = backdrop + [part for one in dressed for part in one]
    return World(label, tuple(parts), contacts, camera, _light(rng, camera), _sky(rng))
