"""What a folder is: its splits, what lies in it and is not read, two things that could be the data, archives."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tiny_runs import write_recipe
from unveil.cli import main
from unveil.data.decode import EXTENSIONS
from unveil.data.listing import split_addresses, splits_in
from unveil.data.sources import open_source
from unveil.evaluation.datasets import open_sets


def picture(seed: int = 0, mode: str = "RGB", side: int = 32) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path, "PNG")
    return path


def write_rows(path: Path, count: int = 4, first: int = 0) -> Path:
    """A Parquet file of so many pictures in two classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        buffer = io.BytesIO()
        picture(first + i).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"image": rows, "label": [i % 2 for i in range(count)]}), path)
    return path


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data/train-00000-of-00003.parquet", "data/test-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("default/train/0000.parquet", "default/partial-validation/0000.parquet"),
        ("train.parquet", "test.parquet"),
        ("Training.PARQUET", "dev.parquet"),
        ("train/a.parquet", "valid/a.parquet"),
        ("cifar10_train_0.parquet", "cifar10_test_0.parquet"),
        ("en/train-00000.parquet", "en/validation-00000.parquet"),
    ],
)
def test_splits_of_parquet_files_are_never_mixed(train: str, test: str, tmp_path: Path):
    """Each layout of the hub is refused with what to give, and evaluated as train and test."""
    write_rows(tmp_path / train, 4)
    write_rows(tmp_path / test, 6, first=4)
    splits = split_addresses(str(tmp_path))
    with pytest.raises(ValueError, match="holds the splits") as refused:
        open_source(tmp_path)
    assert all(address in str(refused.value) for address in splits.values())
    sources = open_sets(str(tmp_path), None, 3)
    assert [len(source) for source in sources if source] == [4, 6]


def test_configurations_of_a_data_set_are_split_together(tmp_path: Path):
    for config in ("cropped", "full"):
        write_rows(tmp_path / config / "train-00000-of-00001.parquet", 4)
        write_rows(tmp_path / config / "test-00000-of-00001.parquet", 2)
    assert split_addresses(str(tmp_path)) == {
        "train": str(tmp_path / "**/train-*.parquet"),
        "test": str(tmp_path / "**/test-*.parquet"),
    }
    assert [len(source) for source in open_sets(str(tmp_path), None, 3) if source] == [8, 4]


@pytest.mark.parametrize("other", ["test", "val", "valid", "validation", "dev", "Testing"])
def test_pretraining_on_a_folder_of_splits_says_what_to_give(
    other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for split in ("train", other):
        for name in ("cat", "dog"):
            write(tmp_path / "set" / split / name / "0.png")
    assert main(["pretrain", "mae", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "holds the splits" in message
    assert str(tmp_path / "set" / "train") in message
    assert not (tmp_path / "run").exists()
    train, test = open_sets(str(tmp_path / "set"), None, 3)
    assert (len(train), train.classes, test and len(test)) == (2, ["cat", "dog"], 2)


def test_splits_lie_at_any_depth_and_go_by_longer_names():
    assert splits_in(["images/train2017/0.jpg", "images/val2017/0.jpg"]) == {
        "train": "images/train2017",
        "val": "images/val2017",
    }
    assert splits_in(["can/train/good/0.png", "nut/train/good/0.png", "nut/test/bad/0.png"]) == {
        "test": "nut/test",
        "train": "**/train/**/*",
    }
    classes = ["test tube", "train", "tulip", "training shoe"]  # of which two have a word of a split
    assert splits_in([f"{name}/0.png" for name in classes]) == {}
    assert splits_in(["train/train/0.png", "train/bus/0.png", "test/train/0.png"]) == {"train": "train", "test": "test"}


def test_what_is_not_read_is_counted_by_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A telephone's folder; a run says the same at its start."""
    for i in range(8):
        write(tmp_path / "phone" / f"IMG_{i}.png", i)
    for i in range(20):
        (tmp_path / "phone" / f"IMG_{10 + i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (tmp_path / "phone" / "film.mov").touch()
    (tmp_path / "phone" / "README").touch()
    (tmp_path / "phone" / ".IMG_0.png").touch()
    (tmp_path / "phone" / ".thumbnails").mkdir()
    assert main(["inspect", str(tmp_path / "phone")]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "passed over" in line)
    others = {"20 .heic", "1 .mov", "1 hidden .png", "1 hidden folder", "1 without extension"}
    assert set(row.removeprefix("  passed over").strip().split(", ")) == others
    words = ["--data", str(tmp_path / "phone"), "--epochs", "1", "--batch-size", "4", "--out", str(tmp_path / "run")]
    assert main(["pretrain", write_recipe(tmp_path), *words]) == 0
    assert "passed over" in capsys.readouterr().err


def test_what_is_not_read_of_aligned_folders_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for i in range(3):
        write(tmp_path / "rgb" / f"{i}.png", i)
        (tmp_path / "depth").mkdir(exist_ok=True)
        Image.new("I;16", (32, 32), 1000 + i).save(tmp_path / "depth" / f"{i}.png")
    (tmp_path / "rgb" / "0.txt").touch()
    (tmp_path / "normals").mkdir()
    (tmp_path / "poses.csv").touch()
    assert main(["inspect", str(tmp_path)]) == 0
    assert "passed over  1 .txt, 1 folder normals, 1 .csv" in capsys.readouterr().out


def test_an_evaluation_on_images_of_the_pretraining_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Known by the content of their files, also under other names at another address."""
    for split, first in (("train", 0), ("test", 50)):
        for i in range(8):
            write(tmp_path / "set" / split / ("cat", "dog")[i % 2] / f"{i}.png", first + i)
            write(tmp_path / "copy" / ("dog", "cat")[i % 2] / f"{i}-{split}.png", first + i)
    run, words = str(tmp_path / "run"), ["--protocol", "knn", "--no-baselines"]
    options = ["--epochs", "1", "--batch-size", "4", "--out", run]
    assert main(["pretrain", write_recipe(tmp_path), "--data", str(tmp_path / "set/test"), *options]) == 0

    def evaluated(*data: str) -> str:
        capsys.readouterr()
        assert main(["evaluate", run, *words, "--data", *data]) == 0
        return capsys.readouterr().err

    assert f"7 of the 8 test images are among those that {run} was pretrained on" in evaluated(str(tmp_path / "set"))
    assert "was pretrained on" in Path(run, "eval", "knn.json").read_text()
    assert "was pretrained on" not in evaluated(str(tmp_path / "set/test"), "--test-data", str(tmp_path / "set/train"))
    assert "7 of the 16" in evaluated(str(tmp_path / "set/train"), "--test-data", str(tmp_path / "copy"))
    Path(run, "trained_images.u64").unlink()  # a run of release 0.1
    assert "7 of the 8 test images" in evaluated(str(tmp_path / "set"))


MODES = {".pbm": "1", ".pgm": "L", ".gif": "P"}


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_format_that_counts_is_read(extension: str, tmp_path: Path):
    """Each is written by Pillow, where it writes it, or is another format under this name: the content decides."""
    wanted = picture(1, MODES.get(extension, "RGB"))
    try:
        wanted.save(tmp_path / f"0{extension}")
    except (ValueError, OSError, KeyError):
        wanted.save(tmp_path / f"0{extension}", "PNG")
    (tmp_path / f"0{extension}").rename(tmp_path / f"1{extension.upper()}")
    source = open_source(tmp_path, 3)
    assert (len(source), source.image(0).shape) == (1, (3, 32, 32))
    with Image.open(tmp_path / f"1{extension.upper()}") as image:
        expected = np.array(image.convert("RGB"))
    assert abs(source.image(0).permute(1, 2, 0).numpy().astype(int) - expected).mean() < 1.5


def test_a_map_of_16_bits_in_pgm_keeps_them(tmp_path: Path):
    values = np.arange(64).reshape(8, 8) * 1000
    (tmp_path / "0.pgm").write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())
    image = open_source(tmp_path).image(0)
    assert np.allclose(image[0].numpy() * 65535, values, atol=0.01)


def test_pictures_beside_parquet_files_are_a_question(tmp_path: Path):
    write(tmp_path / "a [1]" / "0.png")
    write_rows(tmp_path / "a [1]" / "rows.parquet")
    with pytest.raises(
        ValueError, match=r"1 pictures, such as 0\.png, and 1 Parquet files.*which are the data"
    ) as error:
        open_source(tmp_path / "a [1]")
    patterns = [str(tmp_path / "a [1]" / "**" / name) for name in ("*.parquet", "*.png")]
    assert all(repr(pattern) in str(error.value) for pattern in patterns)
    assert [len(open_source(pattern)) for pattern in patterns] == [4, 1]


def test_a_pattern_of_pictures_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("a [1]", "b*c", "c # ü 中文"):
        for i in range(3):
            write(tmp_path / name / f"{i}.PNG", i)
        assert len(open_source(tmp_path / name)) == 3
        assert len(open_source(tmp_path / name / "*.PNG")) == 3
    assert open_source(tmp_path / "*" / "[01].PNG").classes == ["a [1]", "b*c", "c # ü 中文"]
    assert main(["inspect", str(tmp_path / "a [1]" / "*.jpg")]) == 2
    assert "no data at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("train-000000.tar", "cut off after 1 bytes: copy it again"),
        ("images.tar.gz", "tar -xf"),
        ("images.zip", "unzip"),
        ("data-00000-of-00001.arrow", "to_parquet"),
        ("train.tfrecord-00000-of-00010", "write each image"),
        ("data.mdb", "write each image"),
        ("images.npy", "PIL.Image.fromarray"),
        ("film.MP4", "ffmpeg"),
        ("IMG_0.HEIC", "convert"),
    ],
)
def test_what_is_no_folder_of_images_says_how_to_get_there(name: str, way: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"x")
    for address in (tmp_path, tmp_path / name, tmp_path / f"*{Path(name).suffix}"):
        with pytest.raises(ValueError, match=way):
            open_source(address)
