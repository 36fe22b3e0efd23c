"""The columns of Parquet files: which hold images and classes, named or told, and of which types."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import unveil
from unveil.cli import main
from unveil.data.columns import Columns, split_columns, with_columns
from unveil.data.sources import open_source
from unveil.data.table import TableSource
from unveil.evaluation.datasets import ImageSplit
from unveil.experiments.study.command import naming_columns, with_data
from unveil.experiments.study.design import Scale, Setting, Study

COUNT = 12
CLASSES = [i % 3 for i in range(COUNT)]
SMALL = {"size": "nano", "patch": 8, "image_size": 16, "epochs": 1, "batch_size": 8, "compile": "off", "workers": 1}
SMALL |= {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "device": "cpu"}


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


LEFT, RIGHT = [png(i) for i in range(COUNT)], [png(200 + i) for i in range(COUNT)]
PICTURES = [{"bytes": data, "path": None} for data in LEFT]


def write(folder: Path, name: str = "a.parquet", **columns: Any) -> str:
    try:
        pq.write_table(pa.table(columns), folder / name, row_group_size=5)
    except pa.ArrowNotImplementedError as error:
        pytest.skip(f"this version of pyarrow writes no such column: {error}")
    return str(folder / name)


def two(folder: Path) -> str:
    return write(folder, left=PICTURES, right=[{"bytes": data, "path": None} for data in RIGHT], kind=CLASSES)


def levels(source: Any) -> list[int]:
    return [int(source.image(i)[0, 0, 0]) for i in range(len(source))]


def test_an_address_names_columns():
    for image, label in [("left", None), (None, "kind of thing"), ("a,b", "c=d"), ("x:y", "z")]:
        address = with_columns("~/photos/*.parquet", image, label)
        assert split_columns(address) == ("~/photos/*.parquet", Columns(image, label))
    assert with_columns("a.parquet:image=left,label=kind", image="right") == "a.parquet:image=right,label=kind"
    assert with_columns(None) is None
    assert split_columns("scenes:count=4") == ("scenes:count=4", Columns())
    with pytest.raises(ValueError, match="--image-column left names a column of --data; give both"):
        with_columns(None, "left")


def test_several_columns_of_images_are_a_question_and_a_name_answers_it(tmp_path: Path):
    address = two(tmp_path)
    with pytest.raises(ValueError, match=r"2 columns of images, left .*, right .* --image-column left or --image-co"):
        open_source(address)
    assert levels(open_source(with_columns(address, "left"))) == list(range(COUNT))
    right = open_source(with_columns(address, "right", "kind"))
    assert levels(right) == [200 + i for i in range(COUNT)]
    assert right.labels == CLASSES


def test_bytes_that_are_no_image_leave_no_question(tmp_path: Path):
    ids = pa.array([bytes([i] * 16) for i in range(COUNT)], pa.binary(16))
    address = write(tmp_path, checksum=ids, other=[b"no image"] * COUNT, image=PICTURES)
    assert levels(open_source(address)) == list(range(COUNT))


IMAGE_TYPES = {
    "bytes": pa.array(LEFT),
    "large bytes": pa.array(LEFT, pa.large_binary()),
    "a view": pa.array(LEFT, pa.binary_view()),
    "a dictionary": pa.array(LEFT).dictionary_encode(),
    "equal sizes": pa.array([data.ljust(100, b"\0") for data in LEFT], pa.binary(100)),
    "a struct": pa.array(PICTURES),
    "a struct of large types": pa.array(
        PICTURES, pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
    ),
    "a struct without path": pa.array([{"bytes": data} for data in LEFT]),
}


@pytest.mark.parametrize("kind", IMAGE_TYPES)
def test_images_are_read_from_any_type_of_bytes(tmp_path: Path, kind: str):
    values = IMAGE_TYPES[kind]
    assert levels(open_source(write(tmp_path, picture=values))) == list(range(COUNT))
    assert levels(open_source(write(tmp_path, picture=values) + ":image=picture")) == list(range(COUNT))


def test_members_of_structs_are_columns(tmp_path: Path):
    rows = [{"image": cell, "kind": kind} for cell, kind in zip(PICTURES, CLASSES, strict=True)]
    address = write(tmp_path, sample=rows)
    assert levels(open_source(address)) == list(range(COUNT))
    source = open_source(with_columns(address, "sample.image", "sample.kind"))
    assert (levels(source), source.labels) == (list(range(COUNT)), CLASSES)
    with pytest.raises(ValueError, match="no column 'sample' for --image-column"):
        open_source(with_columns(address, "sample"))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_a_named_column_of_text_names_files_beside_the_table(tmp_path: Path, kind: pa.DataType):
    for i, data in enumerate(LEFT):
        (tmp_path / f"{i}.png").write_bytes(data)
    address = write(tmp_path, file_name=pa.array([f"{i}.png" for i in range(COUNT)], kind), label=CLASSES)
    with pytest.raises(ValueError, match="Where one holds names of files, give --image-column NAME"):
        open_source(address)
    assert levels(open_source(with_columns(address, "file_name"))) == list(range(COUNT))
    assert levels(open_source(with_columns(str(tmp_path), "file_name"))) == list(range(COUNT))  # with pictures beside


LABEL_TYPES = {
    "numbers": (pa.array(CLASSES, pa.uint8()), None),
    "whole floats": (pa.array([float(k) for k in CLASSES]), None),
    "words": (pa.array(["abc"[k] for k in CLASSES]), ["a", "b", "c"]),
    "large words": (pa.array(["abc"[k] for k in CLASSES], pa.large_string()), ["a", "b", "c"]),
    "a view of words": (pa.array(["abc"[k] for k in CLASSES], pa.string_view()), ["a", "b", "c"]),
    "a dictionary of words": (pa.array(["abc"[k] for k in CLASSES]).dictionary_encode(), ["a", "b", "c"]),
    "words as bytes": (pa.array([b"abc"[k : k + 1] for k in CLASSES]), ["a", "b", "c"]),
    "a dictionary of numbers": (pa.array([7 + k for k in CLASSES]).dictionary_encode(), ["7", "8", "9"]),
}


@pytest.mark.parametrize("kind", LABEL_TYPES)
def test_a_named_column_of_any_of_these_types_is_the_class(tmp_path: Path, kind: str):
    values, names = LABEL_TYPES[kind]
    source = open_source(with_columns(write(tmp_path, image=PICTURES, label=[0, 1] * 6, kind=values), "image", "kind"))
    assert (source.labels, source.classes) == (CLASSES, names)
    assert ImageSplit.of(source).num_classes == 3


def test_a_named_column_is_the_class_though_every_value_differs(tmp_path: Path):
    address = write(tmp_path, image=PICTURES, target=list(range(100, 100 + COUNT)))
    assert open_source(address).labels is None
    assert open_source(with_columns(address, label="target")).labels == list(range(COUNT))


REFUSED = {
    "pixels": ("image", r"--image-column pixels of .* holds list<.*>; images are a struct of bytes and path"),
    "kind": ("image", "--image-column kind of .* holds int64; images are"),
    "imgae": ("image", r"no column 'imgae' for --image-column; did you mean image\? Its columns: image \(struct of by"),
    "zzz": (
        "label",
        r"no column 'zzz' for --label-column; name one of them. Its columns: image .*, moment \(timestamp",
    ),
    "moment": (
        "label",
        r"--label-column moment of .* holds timestamp\[us\]; classes are whole numbers, words or truth",
    ),
    "tags": (
        "label",
        r"tags of .* holds several values an image \(list<.*>\): several labels an image are not supported",
    ),
    "share": ("label", "the column share of .* gives no classes: it holds measured numbers, such as 0.5; classes are"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_named_column_that_cannot_be_meant_is_refused_with_the_reason(tmp_path: Path, name: str):
    what, message = REFUSED[name]
    address = write(
        tmp_path,
        image=PICTURES,
        kind=CLASSES,
        pixels=[[i, i] for i in range(COUNT)],
        moment=pa.array(range(COUNT), pa.timestamp("us")),
        tags=[["a", "b"]] * COUNT,
        share=[i + 0.5 for i in range(COUNT)],
    )
    with pytest.raises(ValueError, match=message):
        assert open_source(with_columns(address, **{what: name})).labels


def test_several_classes_declared_under_other_names_are_a_question(tmp_path: Path):
    features = {name: {"_type": "ClassLabel", "names": ["a", "b", "c"]} for name in ("colour", "shape")}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": PICTURES, "colour": CLASSES, "shape": CLASSES}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "a.parquet")
    address = str(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="--label-column NAME, as in --label-column colour"):
        ImageSplit.of(open_source(address))
    assert open_source(with_columns(address, label="shape")).classes == ["a", "b", "c"]
    write(tmp_path, "b.parquet", image=PICTURES, coarse_label=[0] * COUNT, fine_label=CLASSES)  # the first usual name
    assert open_source(tmp_path / "b.parquet").labels == CLASSES


MULTI_LABEL = {
    "numbers": {"labels": [[k, 3] for k in CLASSES]},
    "words": {"label": [["a", "b"]] * COUNT},
    "a list of fixed size": {"label": pa.array([[k, 1] for k in CLASSES], pa.list_(pa.int8(), 2))},
    "columns of 0 and 1": {
        name: [(k + shift) % 2 for k in CLASSES] for shift, name in enumerate(("cat", "dog", "owl"))
    },
    "columns of truth values": {"cat": [k == 0 for k in CLASSES], "dog": [k > 0 for k in CLASSES]},
    "columns of floats": {"cat": [float(k == 0) for k in CLASSES], "dog": [float(k > 0) for k in CLASSES]},
}


@pytest.mark.parametrize("kind", MULTI_LABEL)
def test_several_labels_an_image_are_said_to_be_unsupported(tmp_path: Path, kind: str):
    source = open_source(write(tmp_path, image=PICTURES, **MULTI_LABEL[kind]))
    assert source.labels is None
    with pytest.raises(
        ValueError, match=r"several labels an image are not supported: .* --label-column NAME, or fit a"
    ):
        ImageSplit.of(source)
    if "cat" in MULTI_LABEL[kind]:
        with pytest.raises(ValueError, match=r"columns cat, dog.* hold 0 or 1, .*--label-column cat measures this one"):
            ImageSplit.of(source)
        assert open_source(with_columns(source.address, label="cat")).labels is not None


def test_several_labels_in_one_text_are_no_class_unless_they_are_named(tmp_path: Path):
    address = write(tmp_path, image=PICTURES, label=["cat|dog", "cat", "dog"] * 4)
    with pytest.raises(ValueError, match=r"column label are no classes: .* several in one text, as 'cat\|dog', and"):
        ImageSplit.of(open_source(address))
    assert open_source(with_columns(address, label="label")).classes == ["cat", "cat|dog", "dog"]
    names = ["tench, Tinca tinca", "goldfish, Carassius auratus", "crane, bird"]
    assert open_source(write(tmp_path, image=PICTURES, label=names * 4)).classes == sorted(names)


def test_numbers_in_one_file_and_words_in_another_are_no_classes(tmp_path: Path):
    write(tmp_path, "0.parquet", image=PICTURES, label=CLASSES)
    write(tmp_path, "1.parquet", image=PICTURES, label=["abc"[k] for k in CLASSES])
    assert open_source(tmp_path).labels is None
    with pytest.raises(ValueError, match=r"the column label of .* gives no classes: it holds numbers, words or truth"):
        assert open_source(with_columns(str(tmp_path), label="label")).labels


def test_more_classes_than_declared_names_go_by_their_numbers(tmp_path: Path):
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a"]}}}})}
    table = pa.table({"image": PICTURES, "label": CLASSES}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert (source.labels, source.classes) == (CLASSES, None)


def test_labels_in_a_table_beside_pictures_are_said_to_be_unread(tmp_path: Path):
    (tmp_path / "0.png").write_bytes(LEFT[0])
    (tmp_path / "labels.csv").write_text("file,label\n0.png,cat\n")
    with pytest.raises(ValueError, match=r"labels in files beside the pictures \(\.csv\) are not read; put each class"):
        ImageSplit.of(open_source(tmp_path))
    write(tmp_path, "labels.parquet", file=["0.png", "0.png"], label=["cat", "dog"])  # as that message says
    assert open_source(with_columns(str(tmp_path), "file", "label")).labels == [0, 1]
    (tmp_path / "labels.parquet").unlink()
    with pytest.raises(ValueError, match=r"--label-column label names a column of .* files, and .* holds pictures"):
        open_source(f"{tmp_path}:label=label")
    (tmp_path / "rgb").mkdir()
    with pytest.raises(ValueError, match=r"--image-column x names a column of a Parquet file\. Several modalities"):
        unveil.inspect(tmp_path, image_column="x", modalities="rgb")
    with pytest.raises(ValueError, match="scenes:image=x"):
        unveil.inspect("scenes", image_column="x")


def test_every_command_takes_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.chdir(tmp_path)
    two(tmp_path)
    data: dict[str, Any] = {"data": "a.parquet", "image_column": "right"}
    assert unveil.inspect("a.parquet", image_column="left", label_column="kind").columns == {
        "images": "left",
        "labels": "kind",
    }
    run = unveil.pretrain("mae", out="runs/a", **data, **SMALL)
    stored = unveil.Run.open(run)
    assert stored.config.data.address == "a.parquet:image=right"
    assert levels(stored.train_images())[0] >= 200
    with pytest.raises(ValueError, match=r"2 columns of images"):
        unveil.evaluate(run, data="a.parquet", protocol="knn")
    options: dict[str, Any] = {"label_column": "kind", "baselines": False}
    (result,) = unveil.evaluate(run, protocol="knn", **data, **options)
    assert result.data == "a.parquet:image=right,label=kind"
    file = unveil.embed(run, label_column="kind", **data)
    assert np.load(file)["labels"].tolist() == CLASSES
    assert unveil.look(recipe="mae", out="look.png", **data).exists()
    assert unveil.look(run, **data).exists()
    for analysis in ("attention", "masks", "features", "blocks"):
        assert main(["analyze", analysis, str(run), *[str(run)] * (analysis == "features"), "--help"]) == 0
        assert "--image-column" in capsys.readouterr().out
    assert main(["analyze", "blocks", str(run), "--data", "a.parquet", "--image-column", "left"]) == 0
    assert main(["pretrain", "mae", "--data", "a.parquet", "--image_column_name", "left"]) == 2
    assert "--data a.parquet --image-column left" in capsys.readouterr().err
    assert main(["inspect", "a.parquet", "--image-column", "left"]) == 0
    assert "next: unveil pretrain crossmae --data a.parquet --image-column=left" in capsys.readouterr().out


def test_a_run_goes_on_with_its_own_column_alone(tmp_path: Path):
    address = two(tmp_path)
    digests = {unveil.data.splits.names_digest(open_source(with_columns(address, name))) for name in ("left", "right")}
    assert len(digests) == 2


def test_a_run_recorded_without_a_column_reads_the_first_as_it_did(tmp_path: Path):
    assert levels(open_source(two(tmp_path), as_recorded=True)) == list(range(COUNT))


def test_a_study_names_the_columns_of_its_tables():
    study = Study("?", (), "", {"smoke": Scale((Setting("photos"), Setting("scenes", "scenes:count=4")))})
    study = with_data(study, "smoke", data=["photos=a.parquet:image=x"], test_data=["b.parquet"])
    (photos, scenes) = naming_columns(study, "smoke", None, "kind").scales["smoke"].settings
    assert (photos.data, photos.labelled) == ("a.parquet:image=x", "a.parquet:image=x,label=kind")
    assert photos.test_data == "b.parquet:label=kind"
    assert scenes.data == "scenes:count=4"
    (photos, _) = naming_columns(study, "smoke", "y", None).scales["smoke"].settings
    assert photos.data == "a.parquet:image=y"
    only_scenes = Study("?", (), "", {"smoke": Scale((Setting("scenes", "scenes:count=4"),))})
    with pytest.raises(ValueError, match="--image-column y names a column of --data"):
        naming_columns(only_scenes, "smoke", "y", None)


def test_images_in_place_of_scenes_are_not_tested_on_scenes():
    scenes = Setting("scenes", "scenes:count=4", test_data="scenes:count=2,seed=1")
    study = Study("?", (), "", {"smoke": Scale((scenes,))})
    (photos,) = with_data(study, "smoke", data=["a.parquet"]).scales["smoke"].settings
    assert (photos.data, photos.test_data) == ("a.parquet", None)
    (photos,) = with_data(study, "smoke", data=["a.parquet"], test_data=["b.parquet"]).scales["smoke"].settings
    assert photos.test_data == "b.parquet"


def test_tables_are_sent_to_other_processes(tmp_path: Path):
    import pickle

    source = open_source(with_columns(two(tmp_path), "right", "kind"))
    assert isinstance(source, TableSource)
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(again.image(3), source.image(3))
