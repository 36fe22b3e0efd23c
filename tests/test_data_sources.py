"""Sources by address: folders, Parquet files and what is wrong with them."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unveil.data import parquet as parquet_module
from unveil.data.decode import Unreadable
from unveil.data.sources import Subset, open_source
from unveil.data.splits import split


def write(path: Path, value: int, mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> Path:
    """An image of one colour, by which it is known again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).convert(mode).save(path)
    return path


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (value,) * 3).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(path: Path, images: list[object], column: str = "img", **others: pa.Array) -> Path:
    """A file as the `datasets` library writes it, with small row groups."""
    cells = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({column: cells, **others})
    features = {column: {"_type": "Image"}, "fine_label": {"_type": "ClassLabel", "names": ["cat", "dog", "emu"]}}
    path.parent.mkdir(parents=True, exist_ok=True)
    described = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": described}), path, row_group_size=3)
    return path


def cells(n: int) -> list[object]:
    return [{"bytes": png(i), "path": None} for i in range(n)]


# Folders


def test_a_folder_is_sorted_nested_and_tolerant(tmp_path):
    write(tmp_path / "b" / "deep" / "er" / "2.PNG", 2)
    write(tmp_path / "a.Jpeg", 1)
    write(tmp_path / "c with space" / "ünï ☃.bmp", 3)
    write(tmp_path / ".hidden" / "4.png", 4)
    write(tmp_path / "b" / "._5.png", 5)
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(tmp_path)
    names = [source.name(i) for i in range(len(source))]
    assert names == ["a.Jpeg", "b/deep/er/2.PNG", "c with space/ünï ☃.bmp"]
    assert [int(source.image(i)[0, 0, 0]) for i in range(3)] == [1, 2, 3]
    assert (source.labels, source.classes, source.channels) == (None, None, 3)


def test_links_are_followed_once(tmp_path):
    write(tmp_path / "real" / "1.png", 1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "circle").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "file.png").symlink_to(tmp_path / "real" / "1.png")
    source = open_source(tmp_path / "data")
    assert [source.name(i) for i in range(len(source))] == ["file.png", "linked/1.png"]


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "photos" / "1.png", 1)
    assert len(open_source("~/photos")) == 1


def test_first_folders_are_labels(tmp_path):
    for value, name in enumerate(["dog/1", "cat/x/2", "cat/3"]):
        write(tmp_path / f"{name}.png", value)
    source = open_source(tmp_path)
    assert source.classes == ["cat", "dog"]
    assert [(source.name(i), source.labels[i]) for i in range(3)] == [
        ("cat/3.png", 0),
        ("cat/x/2.png", 0),
        ("dog/1.png", 1),
    ]
    write(tmp_path / "0.png", 9)
    assert open_source(tmp_path).labels is None  # one image in no class


def test_splits_are_no_classes(tmp_path):
    for which in ("train", "val"):
        for name in ("cat", "dog"):
            write(tmp_path / which / name / "1.png", 1)
    assert open_source(tmp_path, as_recorded=True).labels is None
    with pytest.raises(ValueError, match="holds the splits train, val"):
        open_source(tmp_path)
    assert open_source(tmp_path / "train").classes == ["cat", "dog"]


def test_the_majority_decides_the_channels_and_the_rest_follows(tmp_path):
    for i, mode in enumerate(["RGB", "RGB", "L", "RGBA"]):
        write(tmp_path / f"{i}.png", 100, mode)
    source = open_source(tmp_path)
    assert [tuple(source.image(i).shape) for i in range(4)] == [(3, 6, 8)] * 4
    grey = open_source(tmp_path, channels=1)
    assert [tuple(grey.image(i).shape) for i in range(4)] == [(1, 6, 8)] * 4
    assert open_source(write(tmp_path / "grey" / "1.png", 5, "L").parent).channels == 1
    five = open_source(tmp_path, channels=5)
    with pytest.raises(Unreadable, match=r"0\.png: has 3 channels; 5 are needed"):
        five.image(0)
    with pytest.raises(ValueError, match="0 channels"):
        open_source(tmp_path, channels=0)


def test_a_stack_of_grey_pages_has_as_many_channels(tmp_path):
    pages = [Image.new("L", (5, 4), value) for value in range(7)]
    pages[0].save(tmp_path / "bands.tif", save_all=True, append_images=pages[1:])
    source = open_source(tmp_path)
    assert source.channels == 7
    assert source.image(0)[:, 0, 0].tolist() == list(range(7))


def test_content_beats_the_extension(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, "WEBP", lossless=True)
    (tmp_path / "wrong.jpg").write_bytes(stream.getvalue())
    assert open_source(tmp_path).image(0)[:, 0, 0].tolist() == [255, 0, 0]


def test_broken_files_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    write(tmp_path / "gone.png", 1)
    source = open_source(tmp_path)
    (tmp_path / "gone.png").unlink()
    with pytest.raises(Unreadable, match=r"empty\.png: the file is empty"):
        source.image(0)
    with pytest.raises(Unreadable, match=r"gone\.png: No such file"):
        source.image(1)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_said(tmp_path):
    write(tmp_path / "locked" / "1.png", 1)
    path = write(tmp_path / "open" / "1.png", 1)
    path.chmod(0)
    with pytest.raises(Unreadable, match="Permission denied"):
        open_source(tmp_path / "open").image(0)
    (tmp_path / "locked").chmod(0)
    try:
        with pytest.raises(PermissionError, match="cannot list"):
            open_source(tmp_path)
    finally:
        (tmp_path / "locked").chmod(0o700)


def test_bad_addresses_say_what_to_do(tmp_path):
    write(tmp_path / "photos" / "1.png", 1)
    with pytest.raises(FileNotFoundError, match=r"photo'.*did you mean .*photos\?"):
        open_source(tmp_path / "photo")
    with pytest.raises(FileNotFoundError, match="scenes"):
        open_source("/nowhere at all/x")
    with pytest.raises(ValueError, match="give the folder"):
        open_source(tmp_path / "photos" / "1.png")
    (tmp_path / "docs").mkdir()
    with pytest.raises(ValueError, match="found nothing"):
        open_source(tmp_path / "docs")
    (tmp_path / "docs" / "a.PDF").touch()
    with pytest.raises(ValueError, match=r"found 1 \.pdf\. What counts: \.jpg"):
        open_source(tmp_path / "docs")
    with pytest.raises(ValueError, match="is a file: no images"):
        open_source(tmp_path / "docs" / "a.PDF")


def test_scenes_have_an_address():
    source = open_source("scenes:size=32,count=4")
    assert (len(source), source.channels) == (4, 3)
    assert source.image(0).shape == (3, 32, 32)
    with pytest.raises(ValueError, match="3 channels, not 1"):
        open_source("scenes", channels=1)


# Parquet


def test_parquet_in_the_hugging_face_layout(tmp_path):
    labels = pa.array([0, 2, 1, 0, 2, 1, None], pa.int64())
    path = write_parquet(tmp_path / "data.parquet", cells(7), fine_label=labels, coarse_label=labels)
    source = open_source(path)
    assert (len(source), source.channels, source.classes) == (7, 3, ["cat", "dog", "emu"])
    assert source.labels == [0, 2, 1, 0, 2, 1, -1]
    assert [int(source.image(i)[0, 0, 0]) for i in range(7)] == list(range(7))
    assert source.name(6) == "data.parquet[6]"
    with pytest.raises(IndexError):
        source.image(7)


def test_parquet_reads_in_any_order_with_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_module, "_HELD_BYTES", 1)
    source = open_source(write_parquet(tmp_path / "data.parquet", cells(10)))
    for i in (9, 0, 5, 9, 3, 1):
        assert int(source.image(i)[0, 0, 0]) == i
    assert len(source.rows._held) == 1


def test_parquet_travels_to_another_process(tmp_path):
    source = pickle.loads(pickle.dumps(open_source(write_parquet(tmp_path / "data.parquet", cells(4)))))
    assert int(source.image(3)[0, 0, 0]) == 3


def test_parquet_shards_are_one_source(tmp_path):
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", cells(4))
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", cells(3))
    for address in (tmp_path, tmp_path / "data", tmp_path / "data" / "train-*.parquet"):
        source = open_source(address)
        assert [int(source.image(i)[0, 0, 0]) for i in range(7)] == [0, 1, 2, 3, 0, 1, 2]
        assert source.name(5) == "train-00001-of-00002.parquet[1]"
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", cells(3))
    with pytest.raises(ValueError, match=r"splits test, train.*train-\*\.parquet"):
        open_source(tmp_path)


def test_parquet_oddities(tmp_path):
    write(tmp_path / "beside.png", 77)
    rows = [{"bytes": None, "path": "beside.png"}, None, {"bytes": b"junk", "path": "x"}, {"bytes": None, "path": "no"}]
    source = open_source(write_parquet(tmp_path / "odd.parquet", rows, label=pa.array([-1] * 4)))
    assert source.labels is None  # the layout's way of saying unknown
    assert int(source.image(0)[0, 0, 0]) == 77
    for i, reason in ((1, "null"), (2, "not an image"), (3, "'no'")):
        with pytest.raises(Unreadable, match=reason) as caught:
            source.image(i)
        assert caught.value.name == f"odd.parquet[{i}]"
    plain = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"image": pa.array([png(5)], pa.binary()), "label": [3]}), plain)
    assert (open_source(plain).labels, open_source(plain).classes) == ([0], ["3"])
    assert int(open_source(plain).image(0)[0, 0, 0]) == 5


def test_what_is_no_image_table_is_refused(tmp_path):
    path = tmp_path / "text.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), path)
    with pytest.raises(ValueError, match=r"no column of images.*text \(string\), label \(int64\)"):
        open_source(path)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="no Parquet file, or a damaged one"):
        open_source(path)
    with pytest.raises(ValueError, match="no rows"):
        open_source(write_parquet(tmp_path / "none.parquet", []))


# Parts of a source


class Numbers:
    """A source of n images, each of its number; no files."""

    address, channels, classes = "numbers", 1, None

    def __init__(self, n: int) -> None:
        self.n, self.labels = n, [i % 3 for i in range(n)]

    def __len__(self) -> int:
        return self.n

    def image(self, index: int) -> torch.Tensor:
        return torch.full((1, 2, 2), index, dtype=torch.uint8)

    def name(self, index: int) -> str:
        return f"#{index}"


def test_a_subset_speaks_for_its_images():
    subset = Subset(Numbers(10), [7, 2])
    assert (len(subset), subset.labels, subset.name(0), int(subset.image(1)[0, 0, 0])) == (2, [1, 2], "#7", 2)
    assert (subset.channels, subset.classes, subset.address) == (1, None, "numbers (2 of 10)")


@given(st.integers(2, 3000), st.floats(0.001, 0.999), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_a_split_is_a_partition(n, fraction, seed):
    train, held_out = split(Numbers(n), fraction, seed)
    assert sorted([*train.indices, *held_out.indices]) == list(range(n))
    assert 1 <= len(held_out) <= 1000
    assert len(train) >= 1
    assert held_out.indices == split(Numbers(n), fraction, seed)[1].indices


def test_a_split_is_spread_and_seeded():
    train, held_out = split(Numbers(1000), 0.1, 0)
    assert len(held_out) == 100
    assert np.diff(held_out.indices).max() < 20  # one in every stretch of ten
    assert held_out.indices != split(Numbers(1000), 0.1, 1)[1].indices
    assert train.indices == sorted(train.indices)
    with pytest.raises(ValueError, match="between 0 and 1"):
        split(Numbers(10), 1.5, 0)
    with pytest.raises(ValueError, match="at least 2"):
        split(Numbers(1), 0.5, 0)


def test_real_data_opens(data_folder):
    cifar = open_source(data_folder / "cifar10" / "test-00000-of-00001.parquet")
    assert (len(cifar), cifar.channels, cifar.classes[3], cifar.image(9_999).shape) == (10_000, 3, "cat", (3, 32, 32))
    depth = open_source(data_folder / "rgbd" / "depth")
    assert depth.channels == 1
    assert 500 < depth.image(0).max() * 65535 < 10_000  # millimetres
    photos = open_source(data_folder / "photos")
    assert len(photos) == 1000
    assert all(photos.image(i).shape[0] == 3 for i in range(0, 1000, 100))
