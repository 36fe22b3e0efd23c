"""The solids of a scene in their own coordinates, each inside the cube [-1, 1]^3; a part's axes place it.

Rays are `o + t d`. An affine map keeps `t`, so the distance found here holds in the world as well. Each solid is hit
from outside only: a ray that starts on or inside it passes, so no surface shadows itself by rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from numpy import ndarray

START = 1e-3  # hits nearer than this along a ray are the surface that the ray left
TORUS_STEPS = 20
Vectors = Float[ndarray, "3 r"]
Values = Float[ndarray, " r"]
HUGE, TINY = np.float32(1e6), np.float32(1e-20)  # farther than any hit; keeps a ray along a face finite


class Solid(ABC):
    """A shape that a ray can hit; `bounded` if it fits the cube."""

    bounded: ClassVar[bool] = True

    @abstractmethod
    def hit(self, o: ndarray, d: ndarray) -> ndarray:
        """The t at which each ray enters, inf where it misses; o and d are 3 first, then the rays' own shape."""

    @abstractmethod
    def normal(self, p: Float[ndarray, "3 r"]) -> Float[ndarray, "3 r"]:
        """Outwards at each point of the surface, of any length."""


def dot(a: ndarray, b: ndarray) -> ndarray:
    """The scalar product along the first axis."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _entry(t: ndarray, hit: ndarray) -> ndarray:
    return np.where(hit & (t > START), t, np.float32(np.inf))


def _roots(a: ndarray, b: ndarray, c: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """Both solutions of a t^2 + 2 b t + c = 0, and where they are real."""
    discriminant = b * b - a * c
    root = np.sqrt(np.maximum(discriminant, 0))
    return (-b - root) / a, (root - b) / a, discriminant > 0


@dataclass(frozen=True)
class Plane(Solid):
    """The plane z = 0 seen from above, cut off at y = `top`."""

    top: float = np.inf
    bounded: ClassVar[bool] = False

    def hit(self, o: ndarray, d: ndarray) -> ndarray:
        t = -o[2] / d[2]
        return _entry(t, d[2] < 0) if np.isinf(self.top) else _entry(t, (d[2] < 0) & (o[1] + t * d[1] < self.top))

    def normal(self, p: ndarray) -> ndarray:
        return np.repeat(np.array([[0], [0], [1]], np.float32), p.shape[1], axis=1)


@dataclass(frozen=True)
class Ball(Solid):
    """The sphere of radius 1 about the origin."""

    def hit(self, o: ndarray, d: ndarray) -> ndarray:
        t, _, real = _roots(dot(d, d), dot(o, d), dot(o, o) - 1)
        return _entry(t, real)

    def normal(self, p: ndarray) -> ndarray:
        return p


@dataclass(frozen=True)
class Dome(Solid):
    """The upper half of the unit ball, drawn out to z in [-1, 1]."""

    def hit(self, o: ndarray, d: ndarray) -> ndarray:
        """The sphere above its equator, or the flat underside."""
        o, d = np.stack([o[0], o[1], (o[2] + 1) / 2]), np.stack([d[0], d[1], d[2] / 2])
        t, _, real = _roots(dot(d, d), dot(o, d), dot(o, o) - 1)
        under = -o[2] / d[2]
        x, y = o[0] + under * d[0], o[1] + under * d[1]
        return np.minimum(_entry(t, real & (o[2] + t * d[2] > 0)), _entry(under, (d[2] > 0) & (x * x + y * y < 1)))

    def normal(self, p: ndarray) -> ndarray:
        x, y, z = p
        flat = z < -0.998
        return np.stack([np.where(flat, 0, x), np.where(flat, 0, y), np.where(flat, -1, (z + 1) / 4)])


@dataclass(frozen=True)
class Frustum(Solid):
    """A cylinder along z whose radius goes from 1 at z = -1 to `top` at z = 1; 1 is a cylinder, 0 a cone."""

    top: float = 1.0

    def hit(self, o: ndarray, d: ndarray) -> ndarray:
        """The nearest of two walls and two lids."""
        slope = np.float32((1 - self.top) / 2)
        radius = 1 - slope * (o[2] + 1)
        a = d[0] * d[0] + d[1] * d[1] - (slope * d[2]) ** 2
        b = o[0] * d[0] + o[1] * d[1] + slope * radius * d[2]
        c = o[0] * o[0] + o[1] * o[1] - radius * radius
        near, _, real = _roots(a, b, c)
        t = _entry(near, real & (np.abs(o[2] + near * d[2]) < 1))  # in the cone's mirror image, z is beyond 1
        side = -np.sign(d[2])  # the lid that faces the ray
        lid = (side - o[2]) / d[2]
        x, y = o[0] + lid * d[0], o[1] + lid * d[1]
        rim = 1 - slope * (side + 1)
        return np.minimum(t, _entry(lid, x * x + y * y < rim * rim))

    def normal(self, p: ndarray) -> ndarray:
        x, y, z = p
        lid = np.abs(z) > 0.998
        wall = np.sqrt(x * x + y * y) * np.float32((1 - self.top) / 2)
        return np.stack([np.where(lid, 0, x), np.where(lid, 0, y), np.where(lid, np.sign(z), wall)])


@dataclass(frozen=True, eq=False)
class Polyhedron(Solid):
    """The convex solid where `normals @ p <= offsets`."""

    normals: Float[ndarray, "F 3"]
    offsets: Float[ndarray, " F"]

    def hit(self, o: ndarray, d: ndarray) -> ndarray:
        """The last face entered, if that is before the first one left."""
        flat = d.reshape(3, -1)
        along = self.normals @ flat + TINY  # F r
        t = (self.offsets[:, None] - self.normals @ o.reshape(3, -1)) / along
        enter = (t - HUGE * (along > 0)).max(0)
        leave = (t + HUGE * (along < 0)).min(0)
        return _entry(enter, enter < leave).reshape(d.shape[1:])

    def normal(self, p: ndarray) -> ndarray:
        return self.normals[np.argmax(self.normals @ p - self.offsets[:, None], axis=0)].T


def _polyhedron(*faces: tuple[float, float, float, float]) -> Polyhedron:
    table = np.array(faces, np.float32)
    table /= np.linalg.norm(table[:, :3], axis=1, keepdims=True)
    return Polyhedron(np.ascontiguousarray(table[:, :3]), table[:, 3])


_ENDS = ((0, 1, 0, 1), (0, -1, 0, 1), (0, 0, 1, 1), (0, 0, -1, 1))
BOX = _polyhedron((1, 0, 0, 1), (-1, 0, 0, 1), *_ENDS)
GABLE = _polyhedron((2, 0, 1, 1), (-2, 0, 1, 1), (0, 1, 0, 1), (0, -1, 0, 1), (0, 0, -1, 1))
PYRAMID = _polyhedron((2, 0, 1, 1), (-2, 0, 1, 1), (0, 2, 1, 1), (0, -2, 1, 1), (0, 0, -1, 1))
CABIN = _polyhedron((4, 0, 1, 3), (-4, 0, 1.6, 2.4), *_ENDS)  # a box whose front and back lean inwards


@dataclass(frozen=True)
class Torus(Solid):
    """A ring around z with outer radius 1 and a tube of radius `tube`; its axes must have equal lengths."""

    tube: float = 0.25

    def _distance(self, p: ndarray) -> ndarray:
        across = np.sqrt(p[0] * p[0] + p[1] * p[1]) - np.float32(1 - self.tube)
        return np.sqrt(across * across + p[2] * p[2]) - np.float32(self.tube)

    def hit(self, o: ndarray, d: ndarray) -> ndarray:
        """Sphere tracing from where the ray enters the unit ball: cheaper than a quartic, and as exact as is seen."""
        length = np.sqrt(dot(d, d))
        near, far, real = _roots(length * length, dot(o, d), dot(o, o) - 1)
        inside = np.flatnonzero(real & (far > START))
        out = np.full(length.size, np.inf, np.float32)
        o = np.broadcast_to(o, d.shape).reshape(3, -1).take(inside, axis=1)
        shape, d = length.shape, d.reshape(3, -1).take(inside, axis=1)
        length, far = length.take(inside), far.take(inside)
        t = np.maximum(near.take(inside), np.float32(20 * START))
        for _ in range(TORUS_STEPS):
            t += self._distance(o + t * d) / length
        out[inside] = _entry(t, (t < far) & (self._distance(o + t * d) < 0.02))
        return out.reshape(shape)

    def normal(self, p: ndarray) -> ndarray:
        """Away from the circle inside the tube."""
        shrink = 1 - np.float32(1 - self.tube) / np.maximum(np.hypot(p[0], p[1]), np.float32(1e-6))
        return np.stack([p[0] * shrink, p[1] * shrink, p[2]])
