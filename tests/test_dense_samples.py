"""Segmentation and depth on rendered scenes and on maps by declaration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from measuring import on_dense
from test_dense_layouts import picture, put
from test_segment import tiny
from unveil.data.decode import Unreadable
from unveil.data.dense_layouts import StorageOptions, open_dense
from unveil.data.modality_config import declare
from unveil.evaluation.dense.data import class_counts, with_classes
from unveil.experiments.scenes import SEMANTIC_CLASSES, parse
from unveil.modeling.types import DEPTH, RGB, SEMSEG, Modality

SCENES = "scenes:count=10,size=32"
THERMAL = Modality("thermal", 1, (0.0,), (1.0,))
TOML = """
[thermal]
scale = 0.1
mean = 20.0
std = 5.0
unit = "degrees"
[landuse]
kind = "categorical"
classes = ["field", "wood", "water"]
void = 9
"""


@pytest.fixture
def land(tmp_path: Path) -> Path:
    """Five samples of temperature and land use, in which wood is warm; the last has no land use."""
    rng = np.random.default_rng(0)
    for i in range(5):
        ids = np.kron(rng.integers(0, 2, (2, 2)), np.ones((8, 8))).astype(np.uint8)
        warm = (200 + 100 * ids.astype(np.uint16)).astype(np.uint16)
        ids[:2] = 9
        for kind, array in (("thermal", warm), ("landuse", ids))[: 2 if i < 4 else 1]:
            (tmp_path / "land" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / "land" / kind / f"{i}.png")
    (tmp_path / "land.toml").write_text(TOML)
    return tmp_path


def test_scenes_hold_their_truth():
    pair = open_dense(SCENES)
    assert pair.is_held_out
    assert (len(pair.train), len(pair.test)) == (8, 2)
    assert pair.train.labels.names == tuple(SEMANTIC_CLASSES)
    assert class_counts(pair.train).sum() == 8 * 32 * 32
    made = parse(SCENES).maps(9)
    sample = pair.test.select([RGB.name, DEPTH.name, SEMSEG.name]).sample(1)
    assert torch.equal(sample.maps["rgb"], made["rgb"])
    assert torch.equal(sample.maps["depth"], made["depth"])
    assert torch.equal(sample.maps["semseg"][0], made["semseg"].int())


def test_what_is_measured_on_scenes():
    result = on_dense(tiny(), ["segment"], SCENES, "scenes:count=3,size=32,seed=1", options={"epochs": 1})[0]
    assert result.metrics["miou"] == pytest.approx(np.mean(list(result.details["iou"].values())))
    assert set(result.details["iou"]) <= set(SEMANTIC_CLASSES)
    assert result.settings["test_images"] == 3
    train, test = (
        torch.stack([parse(address).maps(i)["semseg"] for i in range(count)])
        for address, count in ((SCENES, 10), ("scenes:count=3,size=32,seed=1", 3))
    )
    most = int(train.flatten().long().bincount().argmax())
    (majority,) = result.baselines.items()
    assert majority[0] == f"majority class ({SEMANTIC_CLASSES[most]})"
    assert majority[1]["pixel_accuracy"] == pytest.approx((test == most).double().mean().item())
    depth = on_dense(tiny(), ["depth"], SCENES, options={"epochs": 1, "modalities": ("rgb", "depth")})[0]
    metres = torch.stack([parse(SCENES).maps(i)["depth"] for i in range(10)]).double()
    error = metres[8:] - metres[:8].mean(0)  # the last fifth is held out
    assert depth.baselines["training mean"]["rmse"] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-4)
    assert depth.metrics["rmse"] != depth.baselines["training mean"]["rmse"]
    assert depth.settings["inputs"] == ["rgb"]


def test_declared_maps_of_any_name(land: Path):
    declared = declare([str(land / "land.toml")])
    pair = open_dense(str(land / "land"), stored=StorageOptions(declared=declared))
    assert (len(pair.train), len(pair.test)) == (3, 1), "the one without land use is left out"
    assert pair.train.labels.names == ("field", "wood", "water")
    labels = Modality("semseg", 1, (0.0,), (1.0,), kind="categorical", num_classes=3)
    sample = pair.train.select([THERMAL.name, labels.name]).sample(0)
    assert sample.maps["thermal"].unique().tolist() == pytest.approx([20, 30])
    assert sample.valid["semseg"][0, :3, 0].tolist() == [False, False, True]  # type: ignore[index]
    there = sample.valid["semseg"]
    assert torch.equal((sample.maps["thermal"] > 25)[there], (sample.maps["semseg"] == 1)[there])
    options = {"modalities": (str(land / "land.toml"),), "epochs": 2}
    result = on_dense(tiny(THERMAL), ["segment"], str(land / "land"), options=options)[0]
    assert result.settings["inputs"] == ["thermal"]
    assert set(result.details["iou"]) <= {"field", "wood", "water"}


def test_declared_maps_in_train_and_test(land: Path):
    for split in ("train", "val"):
        (land / "split" / split).parent.mkdir(exist_ok=True)
        (land / "split" / split).symlink_to(land / "land")
    pair = open_dense(str(land / "split"), stored=StorageOptions(declared=declare([str(land / "land.toml")])))
    assert (len(pair.train), len(pair.test), pair.is_held_out) == (4, 4, False)


def test_what_is_wrong_is_told(land: Path):
    declared = declare([str(land / "land.toml")])
    with pytest.raises(ValueError, match="--classes: scenes and declared maps define this already"):
        open_dense(SCENES, stored=StorageOptions(classes=3))
    with pytest.raises(ValueError, match=r"--layout, --depth-scale"):
        open_dense(str(land / "land"), stored=StorageOptions("folders", depth_scale=1, declared=declared))
    Image.fromarray(np.full((16, 16), 7, np.uint8)).save(land / "land" / "landuse" / "0.png")
    with pytest.raises(ValueError, match="holds the id 7, but there are 3 classes"):
        open_dense(str(land / "land"), stored=StorageOptions(declared=declared)).train.read(0, "semseg")
    (land / "land" / "thermal" / "1.png").write_bytes(b"")
    with pytest.raises(Unreadable, match="empty"):
        open_dense(str(land / "land"), stored=StorageOptions(declared=declared)).train.read(1, "thermal")
    for file in (land / "land" / "landuse").iterdir():
        file.rename(file.with_name("4.png")) if file.stem == "0" else file.unlink()
    (land / "land" / "thermal" / "4.png").unlink()
    with pytest.raises((ValueError, FileNotFoundError), match="is not aligned"):
        open_dense(str(land / "land"), stored=StorageOptions(declared=declared))


def write_rare(root: Path, *places: str) -> Path:
    """Eight labelled images with the classes 0 and 1 in train, and one with a rare class in each of these places."""
    for name in [*(f"train/{i}" for i in range(8)), "test/0", "val/0"]:
        put(root / name.replace("/", "/rgb/") / "image.png", picture(0, (16, 16)))
        ids = np.kron([[0, 1], [1, 0]], np.ones((8, 8))).astype(np.uint8)
        ids[0, 0] = 5 if name in places else 0
        put(root / name.replace("/", "/semseg/") / "image.png", ids)
    return root


@pytest.mark.parametrize("place", ["train/6", "test/0", "val/0"])
def test_a_rare_class_counts_wherever_it_is(tmp_path, place):
    """Among images that --limit leaves out, in the test set, or in a split that is not read."""
    root = write_rare(tmp_path, place)
    assert len(with_classes(open_dense(str(root))).test.labels.names) == 6
    (result,) = on_dense(tiny(), ["segment"], str(root), options={"epochs": 1}, limit=2)
    assert result.settings["classes"] == [f"class {k}" for k in range(6)]
    (other,) = on_dense(tiny(), ["segment"], str(root / "train"), str(root / "val"), options={"epochs": 1}, limit=2)
    assert len(other.settings["classes"]) == (2 if place == "test/0" else 6)
    declared = open_dense(str(write_rare(tmp_path / "other")), stored=StorageOptions(classes=9))
    assert len(with_classes(declared).train.labels.names) == 9, "a declaration is taken at its word"


def test_a_rare_class_counts_where_another_map_is_missing(tmp_path):
    root = write_rare(tmp_path, "train/7") / "train"
    for i in range(7):
        put(root / "depth" / str(i) / "image.png", np.full((16, 16), 2000, np.uint16))
    pair = with_classes(open_dense(str(root), stored=StorageOptions(declared=declare(["rgb", "depth", "semseg"]))))
    assert (len(pair.train) + len(pair.test), len(pair.train.labels.names)) == (7, 6)
