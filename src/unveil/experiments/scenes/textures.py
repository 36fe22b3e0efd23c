"""Patterns in space: each maps points of a part, in metres, to a blend in [0, 1] of a material's two colours."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from .solids import Values, Vectors

Texture = Callable[[Vectors], Values]  # points to blends


@dataclass(frozen=True, eq=False)
class Material:
    """Two linear RGB colours, the texture that blends them, its scale in metres, and the strength of its shine."""

    colours: Float[ndarray, "2 3"]
    texture: Texture
    scale: float
    gloss: float

    def albedo(self, p: Vectors, footprint: Values) -> Vectors:
        """The share of light given back at each point; a pattern finer than a ray's footprint fades to its mean."""
        first, second = self.colours
        blend = self.texture(p)
        blend += (blend.mean() - blend) * np.clip(footprint * np.float32(2 / self.scale) - 1, 0, 1)
        return first[:, None] + (second - first)[:, None] * blend


def _waves(rng: Generator, octaves: int = 3) -> Texture:
    """Smooth noise about 0 with slope of the order 1: a sum of sines in random directions, finer and fainter."""
    k = 2 * rng.normal(size=(3 * octaves, 3)) * np.repeat(2.0 ** np.arange(octaves), 3)[:, None]
    phase = np.float32(rng.uniform(0, 2 * np.pi, (len(k), 1)))
    weight, k = (np.repeat(0.6 ** np.arange(octaves), 3) / 3).astype(np.float32), k.astype(np.float32)
    return lambda p: weight @ np.sin(k @ p + phase)


def _soft_step(x: ndarray, width: float) -> ndarray:
    return np.clip(x / np.float32(width) + np.float32(0.5), 0, 1)


def _odd(x: ndarray) -> ndarray:
    """1 for odd whole numbers, 0 for even: 20 times as fast as the remainder."""
    return x - 2 * np.floor(x * np.float32(0.5))


def plain(rng: Generator, scale: float) -> Texture:
    """One colour at every point of the surface."""
    return lambda p: np.zeros(p.shape[1], np.float32)


def checker(rng: Generator, scale: float) -> Texture:
    """Cubes in two alternating colours, the chequerboard in space."""
    shift = rng.uniform(0.2, 0.8, (3, 1)).astype(np.float32)  # flat faces must not lie on a border between cubes
    side = np.float32(1 / scale)
    return lambda p: _odd(np.floor(p * side + shift).sum(0))


def stripes(rng: Generator, scale: float) -> Texture:
    """Bands across one of the axes or aslant."""
    direction = np.eye(3)[rng.integers(3)] if rng.random() < 0.6 else rng.normal(size=3)
    k = np.float32(direction / np.linalg.norm(direction) * np.pi / scale)
    bias = np.float32(rng.uniform(-0.5, 0.5))
    return lambda p: _soft_step(np.sin(k @ p) + bias, 0.3)


def dots(rng: Generator, scale: float) -> Texture:
    """Balls on a lattice whose layers are shifted."""
    side, radius = np.float32(0.7 / scale), np.float32(rng.uniform(0.3, 0.42))
    shift = rng.uniform(size=(3, 1)).astype(np.float32)

    def blend(p: Vectors) -> Values:
        q = p * side + shift
        q[0] += 0.5 * np.floor(q[2])
        q -= np.floor(q) + np.float32(0.5)
        return _soft_step(radius - np.sqrt((q * q).sum(0)), 0.08)

    return blend


def noise(rng: Generator, scale: float) -> Texture:
    """Smooth noise between two colours, as of clouds."""
    waves, k = _waves(rng), np.float32(0.5 / scale)
    return lambda p: _soft_step(waves(p * k), 1.6)


def marble(rng: Generator, scale: float) -> Texture:
    """Marble: thin wandering veins of a second colour."""
    waves, k = _waves(rng), np.float32(0.5 / scale)
    direction = np.float32(rng.normal(size=3) * 1.5)

    def blend(p: Vectors) -> Values:
        q = p * k
        return np.square(1 - np.abs(np.sin(direction @ q + 2.5 * waves(q))))

    return blend


def wood(rng: Generator, scale: float) -> Texture:
    """Year rings around a leaning axis."""
    waves, k = _waves(rng, 2), np.float32(0.35 / scale)
    lean, pith = np.float32(rng.normal(0, 0.25, (2, 1))), rng.uniform(-2, 2, (2, 1)).astype(np.float32)
    axis = int(rng.integers(3))

    def blend(p: Vectors) -> Values:
        q = np.roll(p, axis, 0) * k
        x, y = q[1:] + pith + lean * q[:1]
        return 0.5 + 0.5 * np.sin(np.float32(9) * np.hypot(x, y) + 1.5 * waves(q * 0.5))

    return blend


def bricks(rng: Generator, scale: float) -> Texture:
    """Rows of bricks in x and y, every other row shifted by half, with joints in the second colour."""
    long, high = np.float32(2.2 * scale), np.float32(scale)
    joint = rng.uniform(0.05, 0.1)

    def blend(p: Vectors) -> Values:
        y = p[1] / high
        row = np.floor(y)
        x = p[0] / long + 0.5 * _odd(row)
        edge = np.maximum(np.abs(x - np.floor(x) - 0.5) * 2.2, np.abs(y - row - 0.5) + 0.6)
        return _soft_step(edge - np.float32(1.1 - joint), 0.04)

    return blend


ON_THINGS = (plain, plain, plain, plain, checker, stripes, dots, noise, marble, wood)
ON_PLANES = (plain, plain, checker, stripes, noise, noise, marble, wood, bricks)


def colour(rng: Generator, muted: bool = False) -> Float[ndarray, " 3"]:
    """A linear RGB colour of any hue; muted ones are mostly those of earth, wood, grass and stone."""
    hue, saturation, value = rng.random(3)
    if muted and rng.random() < 0.75:
        hue = (0.04, 0.09, 0.13, 0.28, 0.58)[rng.integers(5)] + 0.05 * hue
    saturation = 0.45 * saturation if muted else 0.15 + 0.8 * saturation
    value = 0.4 + 0.42 * value if muted else 0.35 + 0.65 * value
    return np.square(colorsys.hsv_to_rgb(hue, saturation, value))


def draw_material(rng: Generator, plane: bool = False) -> Material:
    """A material of random colours and pattern; planes are calmer, coarser and duller than things."""
    first = colour(rng, muted=plane)
    near = rng.random() < (0.85 if plane else 0.4)
    second = first * rng.uniform(0.35, 0.75) if near else colour(rng, muted=plane)
    kinds = ON_PLANES if plane else ON_THINGS
    scale = rng.uniform(0.15, 0.5) if plane else rng.uniform(0.07, 0.2)
    texture = kinds[rng.integers(len(kinds))](rng, scale)
    gloss = rng.uniform(0, 0.08) if plane else rng.uniform(0, 0.6) ** 2
    return Material(np.array([first, second], np.float32), texture, scale, gloss)
