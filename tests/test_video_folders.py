"""Videos in the layout of DAVIS: lists, orders, masks of every kind, and what is refused in one sentence."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unveil.data.decode import Unreadable
from unveil.data.label_palette import COLOURS, label_png
from unveil.data.video_folders import files_digest, open_videos, read_ids

MASK = np.zeros((6, 9), np.uint8)
MASK[1:4, 2:5], MASK[4:, 6:] = 1, 2


def write_video(root: Path, name: str, frames: int = 4, masks: int | None = None, size: str = "480p") -> None:
    """A video of grey frames with a mask for the first so many."""
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / size / name).mkdir(parents=True, exist_ok=True)
    for number in range(frames):
        Image.new("RGB", (9, 6), (number, 9, 9)).save(root / "JPEGImages" / size / name / f"{number:05d}.jpg")
        if masks is None or number < masks:
            (root / "Annotations" / size / name / f"{number:05d}.png").write_bytes(label_png(MASK))


def write_list(root: Path, place: str, text: str) -> None:
    (root / "ImageSets" / place).parent.mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / place).write_text(text)


def test_the_list_of_2017_names_the_videos(tmp_path):
    for name in ("bear", "camel", "dog"):
        write_video(tmp_path, name)
    write_list(tmp_path, "2017/val.txt", "dog\n\ncamel\n")
    write_list(tmp_path, "2017/train.txt", "bear\n")
    videos = open_videos(str(tmp_path))
    assert [video.name for video in videos.videos] == ["dog", "camel"]
    assert videos.listed_by == "ImageSets/2017/val.txt"
    assert [v.name for v in open_videos(str(tmp_path), "train").videos] == ["bear"]
    assert [v.name for v in videos.limited(1).videos] == ["dog"]
    video = videos.videos[0]
    assert len(video) == 4
    assert [video.stem(number) for number in range(4)] == ["00000", "00001", "00002", "00003"]
    assert video.frame(2).shape == (3, 6, 9)
    assert np.array_equal(video.mask(3), MASK)
    with pytest.raises(ValueError, match=r"no list 'trian'.*train"):
        open_videos(str(tmp_path), "trian")
    with pytest.raises(ValueError, match="no list"):
        open_videos(str(tmp_path), "../../val")


def test_the_list_of_2016_names_frames(tmp_path):
    write_video(tmp_path / "DAVIS", "bear")
    line = "/JPEGImages/480p/{0}/0000{1}.jpg /Annotations/480p/{0}/0000{1}.png\n"
    write_list(tmp_path / "DAVIS", "480p/val.txt", "".join(line.format("bear", n) for n in range(4)))
    assert [video.name for video in open_videos(str(tmp_path)).videos] == ["bear"], "the archive's folder is found"


def test_without_lists_all_folders_count_and_numbers_are_in_order(tmp_path):
    write_video(tmp_path, "b", size="")
    write_video(tmp_path, "a", frames=0, size="")
    for number in (9, 10, 100):
        Image.new("RGB", (9, 6)).save(tmp_path / "JPEGImages/b" / f"{number}.png")
    (tmp_path / "JPEGImages/b/._9.png").write_bytes(b"of another system")
    videos = open_videos(str(tmp_path))
    assert [video.name for video in videos.videos] == ["b"]
    assert [path.stem for path in videos.videos[0].frames][-3:] == ["9", "10", "100"]
    assert videos.passed_over == {"a": "its folder has no pictures"}
    assert videos.videos[0].masks[-1] is None


def test_a_list_of_videos_that_are_not_there_is_an_error(tmp_path):
    write_video(tmp_path, "bear")
    write_list(tmp_path, "2017/val.txt", "bear\nwolf\nfox\n")
    with pytest.raises(ValueError, match=r"names 2 videos .*'wolf'.*--split"):
        open_videos(str(tmp_path))
    for text, reason in (("..\n", "names no video"), ("/x/../..\n", "names no video"), ("\n", "is empty")):
        write_list(tmp_path, "2017/val.txt", text)
        with pytest.raises(ValueError, match=reason):
            open_videos(str(tmp_path))


def test_other_layouts_are_refused_with_what_is_needed(tmp_path):
    (tmp_path / "frames").mkdir()
    with pytest.raises(ValueError, match=r"holds frames, and no JPEGImages.*JPEGImages/480p/VIDEO"):
        open_videos(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="JPEGImages/480p/VIDEO"):
        open_videos(str(tmp_path / "none"))
    write_video(tmp_path, "bear", masks=0)
    with pytest.raises(ValueError, match=r"has no video with frames and masks.*it has no masks"):
        open_videos(str(tmp_path))


def saved(array: np.ndarray, mode: str, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).convert(mode).save(content, kind)
    return content.getvalue()


def test_masks_of_every_kind_hold_the_same_ids():
    assert np.array_equal(read_ids(label_png(MASK)), MASK)
    assert np.array_equal(read_ids(saved(MASK, "L")), MASK)
    assert np.array_equal(read_ids(saved(MASK, "RGB")), MASK), "grey that was saved as colour"
    assert np.array_equal(read_ids(saved(COLOURS[MASK], "RGB")), MASK), "the colours of the palette"
    assert np.array_equal(read_ids(saved(COLOURS[MASK], "RGBA")), MASK)
    sixteen = io.BytesIO()
    Image.fromarray(MASK.astype(np.uint16)).save(sixteen, "PNG")
    assert np.array_equal(read_ids(sixteen.getvalue()), MASK)
    binary = (MASK > 0).astype(np.uint8) * 255
    assert np.array_equal(read_ids(saved(binary, "L")), binary)


def test_masks_that_mean_nothing_are_unreadable():
    wrong = np.full((6, 9, 3), (1, 2, 3), np.uint8)
    with pytest.raises(Unreadable, match="palette of DAVIS"):
        read_ids(saved(wrong, "RGB"), "a.png")
    with pytest.raises(Unreadable, match="JPEG"):
        read_ids(saved(MASK, "L", "JPEG"), "a.png")
    many = io.BytesIO()
    Image.fromarray(np.full((6, 9), 300, np.uint16)).save(many, "PNG")
    with pytest.raises(Unreadable, match="object id 300"):
        read_ids(many.getvalue())
    with pytest.raises(Unreadable):
        read_ids(label_png(MASK)[:60])
    with pytest.raises(Unreadable, match="empty"):
        read_ids(b"")


def test_a_changed_file_changes_the_digest(tmp_path):
    write_video(tmp_path, "bear")
    before = files_digest(str(tmp_path))
    assert files_digest(str(tmp_path)) == before
    (tmp_path / "Annotations/480p/bear/00003.png").write_bytes(label_png(MASK[::-1].copy()))
    assert files_digest(str(tmp_path)) != before
