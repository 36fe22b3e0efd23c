"""Labels as people have them: ids of a taxonomy, words, truth values, no labels, rare and uneven classes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from unveil.data.modality_config import read_toml
from unveil.data.read_map import read_map
from unveil.data.sources import open_source
from unveil.evaluation.datasets import ImageSplit
from unveil.evaluation.types import accuracies


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def table(path: Path, column: str, values: Any) -> str:
    images = [{"bytes": png(i), "path": None} for i in range(len(values))]
    pq.write_table(pa.table({"image": images, column: values}), path)
    return str(path)


@pytest.mark.parametrize(
    ("column", "values", "classes"),
    [
        ("label", [(7, 12, 40)[i % 3] for i in range(12)], ["7", "12", "40"]),
        ("label", [(2435099, 2481174, 5219404)[i % 3] for i in range(12)], ["2435099", "2481174", "5219404"]),
        ("label", [("cat", "dog", "owl")[i % 3] for i in range(12)], ["cat", "dog", "owl"]),
        ("class", [i % 2 == 1 for i in range(12)], ["False", "True"]),
        ("target", pa.array([("a", "b")[i % 2] for i in range(12)]).dictionary_encode(), ["a", "b"]),
        ("label", [i % 3 for i in range(12)], None),
    ],
)
def test_values_of_any_kind_become_classes_from_zero(tmp_path: Path, column: str, values: Any, classes: Any):
    source = open_source(table(tmp_path / "a.parquet", column, values))
    assert source.classes == classes
    assert source.labels is not None
    assert set(source.labels) == set(range(len(classes or range(3))))
    assert ImageSplit.of(source).num_classes == len(classes or range(3))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "target",
            [1_700_000_000_000 + i for i in range(12)],
            r"the values of its column target are no classes: .* each row has another",
        ),
        ("species", [i % 3 for i in range(12)], r"of its columns image .*, species \(.*--label-column species"),
        ("labels", [[i % 3, 3] for i in range(12)], r"its column labels holds several values an image \(list"),
        ("label", [float(i % 3) for i in range(12)], r"of its columns image .*, label \(.*--label-column label"),
    ],
)
def test_columns_that_hold_no_class_are_no_labels_and_the_error_names_them(
    tmp_path: Path, column: str, values: Any, message: str
):
    source = open_source(table(tmp_path / "a.parquet", column, values))
    assert source.labels is None
    assert source.classes is None
    with pytest.raises(ValueError, match=rf"this protocol needs them: {message}"):
        ImageSplit.of(source)


def test_rows_without_a_label_stay_without(tmp_path: Path):
    source = open_source(table(tmp_path / "a.parquet", "label", ["a", None, "b", "a"]))
    assert source.labels == [0, -1, 1, 0]
    assert open_source(table(tmp_path / "b.parquet", "label", [-1, -1, -1])).labels is None


def test_classes_of_train_and_test_are_matched_by_their_own_values(tmp_path: Path):
    train = open_source(table(tmp_path / "a.parquet", "label", [7, 12, 40, 7, 12, 40]))
    test = open_source(table(tmp_path / "b.parquet", "label", [40, 12, 40]))
    assert ImageSplit.of(train, test).test.labels == [2, 1, 2]


def test_a_class_with_one_image_is_learned_from_where_there_is_a_test_set(tmp_path: Path):
    train = open_source(table(tmp_path / "a.parquet", "label", ["a", "a", "b", "b", "rare"]))
    test = open_source(table(tmp_path / "b.parquet", "label", ["a", "b"]))
    assert ImageSplit.of(train, test).num_classes == 3
    with pytest.raises(ValueError, match=r"have a single image, e\.g\. 'rare'"):
        ImageSplit.of(train)


def test_uneven_classes_come_with_their_mean_and_the_share_of_the_largest():
    scores = torch.tensor([[1.0, 0.0]] * 10)  # always the first class
    uneven = accuracies(scores, torch.tensor([0] * 9 + [1]))
    assert uneven == pytest.approx({"accuracy": 0.9, "mean_class_accuracy": 0.5, "most_frequent_class": 0.9})
    assert accuracies(scores, torch.tensor([0, 1] * 5)) == {"accuracy": 0.5}


def test_a_float_tiff_is_taken_as_declared_and_nan_is_no_truth(tmp_path: Path):
    file = tmp_path / "elevation.toml"
    file.write_text('[elevation]\nunit = "m"\nnormalise = "robust"\nloss = "l1"\n')
    (declared,) = read_toml(file)
    heights = np.full((4, 4), 200.5, np.float32)
    heights[0] = np.nan
    buffer = io.BytesIO()
    Image.fromarray(heights).save(buffer, "TIFF")
    read = read_map(buffer.getvalue(), declared)
    assert read.valid is not None
    assert read.valid[0].sum(1).tolist() == [0, 4, 4, 4]
    assert read.values[0, 1:].eq(200.5).all()
