"""Videos of rendered scenes in the layout of DAVIS: the camera goes round, the main thing moves, objects have masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from numpy.random import default_rng
from PIL import Image

from ...data.label_palette import label_png
from .raycast import find_world, label_of, render_world
from .source import SceneSource
from .things import CLASSES, turn_z
from .world import WALL, World
from .writing import all_or_none

LIST = "ImageSets/2017/val.txt"
_PICTURES, _MASKS = "JPEGImages/480p", "Annotations/480p"  # the name of the layout, whatever the size
_MAIN = 1  # the number of the thing that moves
_OBJECTS, _LEAST = 4, 0.004  # of a video at most, and the share of the first frame that one fills at least
_QUALITY = 95
_NEAR = 0.4  # metres between the camera and what stands around


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """A rendered frame and the object at each pixel, 0 for none."""

    rgb: UInt8[ndarray, "3 H W"]
    objects: UInt8[ndarray, "H W"]


@dataclass(frozen=True, eq=False)
class Motion:
    """What has moved by the last frame: the camera about the main thing's first place, and the main thing.

    orbit: radians that the camera goes round; dolly: the factor of its distance
    shift: metres along the floor; turn: radians about the vertical
    """

    orbit: float
    dolly: float
    shift: Float[ndarray, " 2"]
    turn: float

    def at(self, world: World, part: float) -> World:
        """The world after this part of the motion, 0 to 1."""
        camera, round_ = world.camera, turn_z(self.orbit * part)
        position = round_ @ camera.position * (1 + (self.dolly - 1) * part)
        position[2] = max(position[2], 0.12)
        right, down, forward = (round_ @ axis for axis in (camera.right, camera.down, camera.forward))
        shift, turned = np.append(self.shift * part, 0.0), turn_z(self.turn * part)
        parts = []
        for own in world.parts:
            if own.thing == _MAIN:
                centre, own_axes = (turned @ own.centre + shift).astype(np.float32), turned @ own.axes
                own = replace(own, centre=centre, axes=own_axes.astype(np.float32), inverse=_inverse(own_axes))
            parts.append(own)
        contacts = world.contacts.copy()
        contacts[0, :2] = turned[:2, :2] @ contacts[0, :2] + shift[:2]
        camera = replace(camera, position=position, right=right, down=down, forward=forward)
        return replace(world, parts=tuple(parts), contacts=contacts, camera=camera)


def _inverse(axes: Float[ndarray, "3 3"]) -> Float[ndarray, "3 3"]:
    return np.linalg.inv(axes).astype(np.float32)


def draw_motion(seed: int, index: int, world: World) -> Motion:
    """The motion of a scene: shorter where the thing would run into another one or a wall, or the camera would."""
    rng = default_rng((seed, index, 2))
    orbit, turn = (rng.choice((-1, 1)) * rng.uniform(low, high) for low, high in ((0.2, 0.5), (0.2, 0.7)))
    across = world.camera.right[:2] * rng.choice((-1, 1)) + rng.uniform(-0.5, 0.5) * world.camera.forward[:2]
    motion = Motion(orbit, np.exp(rng.uniform(-0.15, 0.15)), across * rng.uniform(0.3, 0.7), turn)
    while np.abs(motion.orbit) > 0.01 and any(_is_near(motion.at(world, part)) for part in (0.25, 0.5, 0.75, 1.0)):
        motion = replace(motion, orbit=motion.orbit / 2)
    while np.abs(motion.shift).max() > 0.01 and any(_touches(motion.at(world, part)) for part in (0.25, 0.5, 0.75, 1)):
        motion = replace(motion, shift=motion.shift / 2)
    return motion


def _is_near(world: World) -> bool:
    away = np.linalg.norm(world.contacts[:, :2] - world.camera.position[:2], axis=1)
    return bool((away < world.contacts[:, 2] + _NEAR).any())


def _touches(world: World) -> bool:
    (x, y, radius), others = world.contacts[0], world.contacts[1:]
    away = np.hypot(others[:, 0] - x, others[:, 1] - y)
    walls = [p for p in world.parts if p.semantic == WALL]
    return bool((away < 0.9 * (others[:, 2] + radius)).any()) or any(
        (wall.inverse @ ([x, y, 0] - wall.centre))[2] < 1.2 * radius for wall in walls
    )


def video(seed: int, index: int, frames: int, size: tuple[int, int]) -> Iterator[VideoFrame]:
    """The frames of a scene that moves, at a height and width, with the objects that the first frame shows.

    The main thing is object 1; up to three others follow, the largest first. A pure function.
    """
    world = find_world(seed, index)
    motion = draw_motion(seed, index, world)
    ids: UInt8[ndarray, " T"] | None = None
    for number in range(frames):
        scene = render_world(motion.at(world, number / max(1, frames - 1)), size)
        if ids is None:
            counts = np.bincount(scene.things.ravel(), minlength=_MAIN + 1)
            counts[0], counts[_MAIN] = 0, size[0] * size[1]
            ids = np.zeros(256, np.uint8)
            for place, thing in enumerate(np.argsort(-counts, kind="stable")[:_OBJECTS], start=1):
                ids[thing] = place if counts[thing] >= _LEAST * size[0] * size[1] else 0
        yield VideoFrame(scene.rgb, ids[scene.things])


def frame_size(size: int) -> tuple[int, int]:
    """Height and width of the frames with a short side: about 5 to 3, so that patches of 16 divide the width."""
    return size, 16 * round(size * 5 / 48)


def write_videos(scenes: SceneSource, frames: int, folder: Path) -> None:
    """Write a video of each scene in the layout of DAVIS 2017: JPEG frames, masks as PNG with a palette, the list.

    All is there or none. Raises ValueError for fewer than 3 frames, of which the benchmark measures none.
    """
    if frames < 3:
        raise ValueError(f"a video has 3 frames or more, for the first and the last are not measured; got {frames}")
    names = [f"{CLASSES[label_of(scenes.seed, index)]}-{index:03d}" for index in range(len(scenes))]
    with all_or_none(folder, len(scenes)) as (unfinished, draw):
        for name in names:
            for kind in (_PICTURES, _MASKS):
                (unfinished / kind / name).mkdir(parents=True)
        draw(partial(_draw, unfinished, scenes, frames, names), range(len(scenes)))
        (unfinished / LIST).parent.mkdir(parents=True)
        (unfinished / LIST).write_text("".join(f"{name}\n" for name in names))


def _draw(folder: Path, scenes: SceneSource, frames: int, names: list[str], index: int) -> None:
    for number, frame in enumerate(video(scenes.seed, index, frames, frame_size(scenes.size))):
        place = f"{names[index]}/{number:05d}"
        Image.fromarray(frame.rgb.transpose(1, 2, 0)).save(
            folder / _PICTURES / f"{place}.jpg", quality=_QUALITY, subsampling=0
        )
        (folder / _MASKS / f"{place}.png").write_bytes(label_png(frame.objects))
