"""Files of strangers: what is no regular file, paths that leave the data's folder, names with codes of a terminal."""

from __future__ import annotations

import io
import os
import re
import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unveil.data import regular_files
from unveil.data.aligned_folders import open_samples
from unveil.data.decode import Unreadable
from unveil.data.inspection import inspect_source
from unveil.data.modality_config import BUILT_IN, RGB
from unveil.data.rasters import open_raster
from unveil.data.sources import open_source

rng = np.random.default_rng(0)


def png(side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "photos"
    place.mkdir()
    for name in "abc":
        (place / f"{name}.png").write_bytes(png())
    return place


def table(path: Path, *named: str) -> str:
    path.parent.mkdir(exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array([{"bytes": None, "path": name} for name in named], kind)}), path)
    return str(path)


def test_only_regular_files_of_a_folder_are_opened(folder: Path):
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "link.png").symlink_to(folder / "a.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "s.png"))
    facts = inspect_source(open_source(folder))
    assert facts.count == 5
    assert facts.passed_over == {"named pipe": 1, "device": 1, "socket": 1}
    assert list(facts.unreadable) == ["gone.png"]
    assert "passed over" in str(facts)
    pattern = open_source(folder / "*.png")
    assert [pattern.name(i) for i in range(len(pattern))] == ["a.png", "b.png", "c.png", "link.png"]
    assert pattern.passed_over == facts.passed_over  # type: ignore[attr-defined]  # of a folder it has one


@pytest.mark.parametrize("kind", ["rgb", "depth"])
def test_a_pipe_among_aligned_folders_is_passed_over(folder: Path, kind: str):
    for name in ("rgb", "depth"):
        (folder / name).mkdir()
        (folder / name / "0.png").write_bytes(png())
    os.mkfifo(folder / kind / "1.png")
    source = open_samples(folder, (RGB, BUILT_IN["depth"]))
    assert len(source) == 1
    assert source.passed_over["named pipe"] == 1  # type: ignore[attr-defined]  # of aligned folders it has one


def test_a_file_that_turns_into_a_pipe_is_an_error(folder: Path):
    source = open_source(folder)
    (folder / "b.png").unlink()
    os.mkfifo(folder / "b.png")
    with pytest.raises(Unreadable, match=r"^b\.png: is a named pipe, and only regular files are read$"):
        source.image(1)
    assert inspect_source(source).unreadable == {"b.png": "is a named pipe, and only regular files are read"}
    with pytest.raises(Unreadable, match="is a named pipe"):
        open_raster(folder / "b.png", "b.png", RGB)


def test_a_pipe_that_comes_between_looking_and_opening_is_not_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(folder / "late.png")
    monkeypatch.setattr("unveil.runs.regular_files.check_regular", lambda path: None)
    with pytest.raises(Unreadable, match="no regular file any more"):
        regular_files.read_bytes(folder / "late.png", "late.png")


def test_rows_name_files_in_the_folder_of_the_data_alone(folder: Path, monkeypatch: pytest.MonkeyPatch):
    secret = folder.parent / "secret.png"
    secret.write_bytes(png())
    os.mkfifo(folder / "pipe.png")
    absolute = str(folder / "c.png")
    named = ("a.png", "./b.png", absolute, str(secret), "../secret.png", "x/../../secret.png", "pipe.png", "/dev/zero")
    source = open_source(table(folder / "t.parquet", *named))
    for row in range(3):
        assert source.image(row).shape == (3, 8, 8)
    for row in (3, 4, 5, 7):
        with pytest.raises(Unreadable, match=r"lies outside the data's folder .* UNVEIL_IMAGE_FOLDERS"):
            source.image(row)
    with pytest.raises(Unreadable, match=r"'pipe\.png': is a named pipe, and only regular files are read"):
        source.image(6)
    monkeypatch.setenv("UNVEIL_IMAGE_FOLDERS", f"/nowhere{os.pathsep}{secret.parent}")
    for row in (3, 4, 5):
        assert source.image(row).shape == (3, 8, 8)
    with pytest.raises(Unreadable, match="lies outside"):
        source.image(7)


def test_a_folder_of_the_same_beginning_is_another(folder: Path):
    beside = folder.with_name("photos-2")
    beside.mkdir()
    (beside / "d.png").write_bytes(png())
    with pytest.raises(Unreadable, match="lies outside"):
        open_source(table(folder / "t.parquet", "../photos-2/d.png")).image(0)


def test_a_table_below_the_folder_that_is_given_names_files_in_all_of_it(tmp_path: Path):
    path = Path(table(tmp_path / "tables" / "t.parquet", "../pictures/a.png"))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png())
    with pytest.raises(Unreadable, match="lies outside"):
        open_source(path).image(0)
    assert open_source(f"{tmp_path}:image=image").image(0).shape == (3, 8, 8)


def test_links_in_the_folder_are_followed_but_no_parent_of_where_they_lead(folder: Path):
    other = folder.parent / "disk" / "inner"
    other.mkdir(parents=True)
    (other / "e.png").write_bytes(png())
    (other.parent / "f.png").write_bytes(png())
    (folder / "linked").symlink_to(other)
    source = open_source(table(folder / "t.parquet", "linked/e.png", "linked/../f.png"))
    assert source.image(0).shape == (3, 8, 8)
    with pytest.raises(Unreadable, match="No such file"):
        source.image(1)


def test_a_table_that_is_a_pipe_is_an_error(folder: Path):
    os.mkfifo(folder / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet is a named pipe"):
        open_source(folder / "t.parquet")


def test_names_with_codes_of_a_terminal_are_quoted(folder: Path):
    odd = "x\x1b[31m\ny\u202e.png"
    (folder / odd).write_bytes(b"<html>\x1b[2J\n")
    (folder / "c.png\x1b]0;title\x07").write_bytes(b"")
    facts = inspect_source(open_source(folder))
    text = str(facts)
    assert list(facts.unreadable) == [odd]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
    assert repr(odd) in text
    assert "\ny" not in text
    with pytest.raises(Unreadable) as error:
        open_source(folder).image(3)
    assert str(error.value).startswith(f"{odd!r}: not an image")
    assert str(error.value).isprintable()
