"""Videos of rendered scenes: what moves, what stays, and the files of the layout of DAVIS."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from unveil.cli import main
from unveil.data.label_palette import COLOURS, label_png
from unveil.experiments.scenes import render
from unveil.experiments.scenes.raycast import find_world, render_world
from unveil.experiments.scenes.videos import _is_near, _touches, draw_motion, frame_size, video

SIZE = (48, 80)


@pytest.fixture(scope="module")
def frames():
    return list(video(0, 3, 4, SIZE))


def test_the_first_frame_is_the_scene_at_rest(frames):
    scene = render((0, 3), SIZE)
    assert np.array_equal(frames[0].rgb, scene.rgb)
    assert np.array_equal(frames[0].objects == 1, scene.things == 1)
    assert frames[0].objects.max() > 1, "other things are objects too"


def test_a_video_is_a_pure_function(frames):
    again = list(video(0, 3, 4, SIZE))
    for one, other in zip(frames, again, strict=True):
        assert np.array_equal(one.rgb, other.rgb)
        assert np.array_equal(one.objects, other.objects)


def test_objects_keep_their_numbers_and_move(frames):
    centres = []
    for frame in frames:
        rows, columns = np.nonzero(frame.objects == 1)
        centres.append((rows.mean(), columns.mean()))
        assert set(np.unique(frame.objects)) <= set(np.unique(frames[0].objects))
    assert np.abs(np.diff(centres, axis=0)).max(1).min() > 0.3, "the main thing moves in every frame"
    first, last = (frame.objects == 1 for frame in (frames[0], frames[-1]))
    assert (first & last).sum() / (first | last).sum() < 0.9


def test_the_thing_moves_in_the_world_and_the_others_stay():
    world = find_world(0, 3)
    moved = draw_motion(0, 3, world).at(world, 1.0)
    for before, after in zip(world.parts, moved.parts, strict=True):
        assert np.array_equal(before.centre, after.centre) == (before.thing != 1)
        np.testing.assert_allclose(after.axes @ after.inverse, np.eye(3), atol=1e-4)
    rotation = np.stack([moved.camera.right, moved.camera.down, moved.camera.forward])
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    assert np.array_equal(render_world(world, 32).rgb, render((0, 3), 32).rgb)


def test_nothing_runs_into_anything():
    for index in range(6):
        world = find_world(7, index)
        motion = draw_motion(7, index, world)
        for part in (0.25, 0.5, 0.75, 1.0):
            there = motion.at(world, part)
            assert not _touches(there) or np.abs(motion.shift).max() < 0.01
            assert not _is_near(there) or abs(motion.orbit) < 0.01


def test_the_palette_is_that_of_davis():
    published = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    assert [tuple(colour) for colour in COLOURS[:7].tolist()] == published
    assert COLOURS[8].tolist() == [64, 0, 0]
    assert COLOURS[255].tolist() == [224, 224, 192]
    assert label_png(np.zeros((2, 3), np.uint8))[24:26] == b"\x08\x03", "8 bits, colour type 3: a palette"


def test_the_command_writes_the_layout_of_davis(tmp_path, capsys):
    words = ["scenes", "--layout", "davis", "--count", "2", "--frames", "3", "--size", "48", "--seed", "5"]
    assert main([*words, "--out", str(tmp_path / "videos")]) == 0
    root = tmp_path / "videos"
    names = (root / "ImageSets/2017/val.txt").read_text().split()
    assert len(names) == 2
    for name in names:
        files = [
            sorted(p.name for p in (root / kind / "480p" / name).iterdir()) for kind in ("JPEGImages", "Annotations")
        ]
        assert files == [[f"{n:05d}.{end}" for n in range(3)] for end in ("jpg", "png")]
        for number, expected in enumerate(video(5, names.index(name), 3, frame_size(48))):
            mask = Image.open(root / "Annotations/480p" / name / f"{number:05d}.png")
            assert mask.mode == "P"
            assert np.array_equal(np.array(mask), expected.objects)
            with Image.open(root / "JPEGImages/480p" / name / f"{number:05d}.jpg") as picture:
                assert np.abs(np.array(picture).transpose(2, 0, 1) - expected.rgb.astype(int)).mean() < 3
    assert main([*words, "--out", str(root)]) == 2
    assert "give a new folder by --out" in capsys.readouterr().err
    assert main([*words[:-2], "--held-out", "3", "--out", str(tmp_path / "other")]) == 2
    assert main([*words, "--frames", "2", "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()


def test_the_command_writes_folders_of_maps(tmp_path):
    assert main(["scenes", "--count", "2", "--held-out", "1", "--size", "32", "--out", str(tmp_path / "maps")]) == 0
    for split, count in (("train", 2), ("test", 1)):
        for kind in ("rgb", "depth", "semseg"):
            assert len(list((tmp_path / "maps" / split / kind).glob("*/*.png"))) == count
