"""Casting and shading: a world seen at a size. All rays of a picture go at once, as float32 arrays.

A part is tried only on the pixels, or for shadows on the points, that the box around it can reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from numpy.random import default_rng

from .solids import Values, Vectors, dot
from .things import CLASSES
from .world import SEMANTIC_CLASSES, SKY, WALL, World, draw_world

FAR = 60.0  # metres: the depth of the sky and of whatever is beyond
HAZE = np.float32(45)  # metres: the floor fades into the horizon
PROBE = 24  # pixels a side of the small view that decides whether the main thing is seen
MIN_SHARE, MIN_UNCOVERED = 0.05, 0.55


@dataclass(frozen=True, eq=False)
class Scene:
    """A rendered picture with its truth: depth in metres along the optical axis (sky: 60), classes per pixel, label.

    `things` is the number of the thing at each pixel, from 1; 0 where there is none.
    """

    rgb: UInt8[ndarray, "3 H W"]
    depth: Float[ndarray, "1 H W"]
    semseg: UInt8[ndarray, "H W"]
    things: UInt8[ndarray, "H W"]
    label: int


def label_of(seed: int, index: int) -> int:
    """The class of a scene without rendering it: each block of ten scenes has every class once, in random order."""
    block, place = divmod(index, len(CLASSES))
    return int(default_rng((seed, block)).permutation(len(CLASSES))[place])


def render(key: int | tuple[int, int], size: int | tuple[int, int]) -> Scene:
    """The scene of (seed, index), or of (0, index), at `size` pixels (a side, or height and width).

    A pure function: the same bits on every call. Another size shows the same scene, its shorter side the same field.
    """
    return render_world(find_world(*(key if isinstance(key, tuple) else (0, key))), size)


@np.errstate(divide="ignore", invalid="ignore", over="ignore")
def render_world(world: World, size: int | tuple[int, int]) -> Scene:
    """A world as its camera sees it, at `size` pixels (a side, or height and width)."""
    height, width = size if isinstance(size, tuple) else (size, size)
    depth, hit = _cast(world, world.camera.rays(height, width))
    samples = 3 if min(height, width) < 48 else 2
    fine = _shade(world, height, width, samples)
    linear = sum(fine[:, i::samples, j::samples] for i in range(samples) for j in range(samples)) / samples**2
    rgb = (np.sqrt(linear) * 255 + 0.5).astype(np.uint8)
    semantic = np.array([p.semantic for p in world.parts] + [SKY], np.uint8)
    things = np.array([p.thing for p in world.parts] + [0], np.uint8)
    return Scene(rgb, np.minimum(depth, np.float32(FAR))[None], semantic[hit], things[hit], world.label)


@np.errstate(divide="ignore", invalid="ignore", over="ignore")
def find_world(seed: int, index: int) -> World:
    """The first world of the scene's stream whose main thing can be seen."""
    rng, label = default_rng((seed, index, 1)), label_of(seed, index)
    while True:
        world = draw_world(rng, label)
        if _shows_main(world):
            return world


def _shows_main(world: World) -> bool:
    """Whether the main thing fills enough of the picture and not too much of it is covered."""
    rays, main = world.camera.rays(PROBE, PROBE), SEMANTIC_CLASSES.index(CLASSES[world.label])
    semantic = np.array([p.semantic for p in world.parts] + [SKY])
    share_visible = (semantic[_cast(world, rays)[1]] == main).mean()
    alone = world.only(main)
    whole = (_cast(alone, rays)[1] < len(alone.parts)).mean()
    return bool(share_visible >= max(MIN_SHARE, MIN_UNCOVERED * whole))


def _cast(world: World, rays: Float[ndarray, "3 H W"]) -> tuple[Float[ndarray, "H W"], Int[ndarray, "H W"]]:
    """The depth of the first hit of each ray (inf for none) and the index of its part (their number for none)."""
    depth = np.full(rays.shape[1:], np.inf, np.float32)
    hit = np.full(rays.shape[1:], len(world.parts), np.int16)
    windows = _windows(world, *rays.shape[1:])
    for number, (p, window) in enumerate(zip(world.parts, windows, strict=True)):
        directions = rays[:, *window]
        d = (p.inverse @ directions.reshape(3, -1)).reshape(directions.shape)
        o = p.inverse @ (world.camera.position - p.centre).astype(np.float32)
        t, nearest = p.solid.hit(o[:, None, None], d), depth[window]
        closer = t < nearest
        np.copyto(nearest, t, where=closer)
        np.copyto(hit[window], np.int16(number), where=closer)
    return depth, hit


def _windows(world: World, height: int, width: int) -> list[tuple[slice, slice]]:
    """The pixels that the box around each part covers; all of them for a plane."""
    camera = world.camera
    frame = np.stack([camera.right, camera.down, camera.forward])
    x, y, depth = np.tensordot(frame, world.corners - camera.position[:, None, None], 1)
    scale = min(height, width) / (2 * camera.half) / np.maximum(depth, 1e-2)
    rows, columns = _spans(y * scale, height), _spans(x * scale, width)
    whole = (slice(None), slice(None))
    return [w if p.solid.bounded else whole for p, w in zip(world.parts, zip(rows, columns, strict=True), strict=True)]


def _spans(places: Float[ndarray, "P 8"], length: int) -> list[slice]:
    """From the first to the last of the places, counted from the middle, cut to the length of the image."""
    low = np.clip(places.min(1) + length / 2, 0, length).astype(int)
    high = np.clip(np.ceil(places.max(1) + length / 2), 0, length).astype(int)
    return [slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True)]


def _shade(world: World, height: int, width: int, samples: int) -> Float[ndarray, "3 H W"]:
    """The linear colour, in [0, 1], that each of samples x samples rays per pixel sees."""
    rays = world.camera.rays(height * samples, width * samples)
    depth, hit = _cast(world, rays)
    order = np.argsort(hit, axis=None, kind="stable")  # the points of a part side by side: textures work on slices
    edges = np.searchsorted(hit.ravel()[order], np.arange(len(world.parts) + 1))
    rays, t = rays.reshape(3, -1).take(order, axis=1), depth.ravel().take(order[: edges[-1]])
    d = rays[:, : edges[-1]]
    points = world.camera.position.astype(np.float32)[:, None] + t * d
    pixel = np.float32(2 * world.camera.half / min(hit.shape))
    normals, albedo, gloss = np.empty_like(points), np.empty_like(points), np.empty_like(t)
    for solid, start, stop in zip(world.parts, edges[:-1], edges[1:], strict=True):
        if start < stop:
            here = slice(start, stop)
            p = solid.inverse @ (points[:, here] - solid.centre[:, None])
            n = solid.inverse.T @ solid.solid.normal(p)
            normals[:, here] = n = n / np.sqrt(dot(n, n))
            extent = np.linalg.norm(solid.axes, axis=0)
            footprint = t[here] * pixel / np.maximum(np.abs(dot(n, d[:, here])), np.float32(1e-3))
            albedo[:, here] = solid.material.albedo(p * extent[:, None], footprint)
            gloss[here] = solid.material.gloss
    lights = _lights(world, height, width, samples).reshape(3, -1).take(order[: edges[-1]], axis=1)
    colour = _reflect(world, points, normals, albedo, gloss, d, lights, _openness(world, points, edges))
    colour += (world.sky.horizon.astype(np.float32)[:, None] - colour) * np.minimum(np.square(t / HAZE), 1)
    colours = np.concatenate([colour, _sky(world, rays[:, edges[-1] :])], axis=1)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return np.clip(colours, 0, 1).take(back, axis=1).reshape(3, *hit.shape)


def _reflect(
    world: World, p: Vectors, normals: Vectors, albedo: Vectors, gloss: Values, d: Vectors, suns: Vectors, sky: Values
) -> Vectors:
    """Lambert and Blinn-Phong under the sun, and the light of the sky where it can get at the point."""
    facing = dot(normals, suns)
    sun = np.zeros_like(facing)
    lit = np.flatnonzero(facing > 0)
    lit = lit[~_shadowed(world, p.take(lit, axis=1), suns.take(lit, axis=1))]
    sun[lit] = facing.take(lit)
    half = suns - d / np.sqrt(dot(d, d))
    shine = np.maximum(dot(normals, half), 0) / np.sqrt(dot(half, half))
    for _ in range(5):  # to the power of 32
        shine *= shine
    light = world.light
    up = np.float32(0.5) + np.float32(0.5) * normals[2]
    below, above = light.below.astype(np.float32)[:, None], light.above.astype(np.float32)[:, None]
    sunlight = light.colour.astype(np.float32)[:, None]
    return albedo * (sunlight * sun + (below + (above - below) * up) * sky) + sunlight * (shine * gloss * (sun > 0))


def _lights(world: World, height: int, width: int, samples: int) -> Float[ndarray, "3 H W"]:
    """Towards the sun: each ray of a pixel looks at its own place of the disc, so that shadows have soft edges."""
    place = (np.arange(samples) - (samples - 1) / 2) * (2 * world.light.spread / samples)
    side, other = _across(world.light.direction)
    side, other = side + other / samples, other - side / samples  # turned, so that no edge meets two places at once
    suns = world.light.direction[:, None, None] + np.outer(other, place)[:, :, None] + np.outer(side, place)[:, None, :]
    return np.tile(suns.astype(np.float32), (1, height, width))


def _across(direction: Float[ndarray, " 3"]) -> tuple[Float[ndarray, " 3"], Float[ndarray, " 3"]]:
    side = np.cross(direction, [0, 0, 1])
    side /= np.linalg.norm(side)
    return side, np.cross(side, direction)


def _shadowed(world: World, points: Vectors, lights: Vectors) -> ndarray:
    """Whether something stands between each point and the sun."""
    dark = np.zeros(points.shape[1], bool)
    frame = np.stack([*_across(world.light.direction), world.light.direction])
    x, y, z = frame.astype(np.float32) @ points
    corners = np.tensordot(frame, world.corners, 1)
    low, high = corners.min(2).T - world.light.spread * 3, corners.max(2).T + world.light.spread * 3
    for p, least, most in zip(world.parts, low.astype(np.float32), high.astype(np.float32), strict=True):
        if p.solid.bounded:
            near = (x > least[0]) & (x < most[0]) & (y > least[1]) & (y < most[1]) & (z < most[2]) & ~dark
            here = np.flatnonzero(near)
            o = p.inverse @ (points.take(here, axis=1) - p.centre[:, None])
            dark[here] = p.solid.hit(o, p.inverse @ lights.take(here, axis=1)) < np.inf
    return dark


def _openness(world: World, points: Vectors, edges: Int[ndarray, " e"]) -> Values:
    """How open each point is to the sky: less so low down, on the floor under things and in front of walls."""
    open_ = np.float32(0.6) + np.float32(0.4) * np.clip(points[2] / np.float32(0.35), 0, 1)
    floor = slice(edges[0], edges[1])
    open_[floor] = 1
    x, y = points[0, floor], points[1, floor]
    for a, b, radius in world.contacts.astype(np.float32):
        far = (np.square(x - a) + np.square(y - b)) / np.square(np.float32(1.25) * radius)
        open_[floor] *= 1 - np.float32(0.55) / (1 + np.square(far))
    for p in world.parts:
        if p.semantic == WALL:
            out, away = p.axes[:, 2], p.axes[:, 2] @ p.centre
            open_[floor] *= 1 - np.float32(0.4) / (1 + np.square(4 * (out @ points[:, floor] - away)))
    return open_


def _sky(world: World, d: Vectors) -> Vectors:
    """The gradient by the height of the ray, with clouds."""
    sky, d = world.sky, d / np.sqrt(dot(d, d))
    high = np.sqrt(np.clip(d[2], 0, 1))
    horizon, zenith = sky.horizon.astype(np.float32)[:, None], sky.zenith.astype(np.float32)[:, None]
    cloud = sky.clouds.texture(d * np.float32(0.5)) * np.float32(sky.cover) * high
    blend = horizon + (zenith - horizon) * high
    return blend + (np.float32(0.9) - blend) * cloud
