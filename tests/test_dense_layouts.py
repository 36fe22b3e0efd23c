"""Layouts of images with a truth at every pixel, each written by the test as it is published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.data.decode import Unreadable
from unveil.data.dense_dataset import LabelEncoding
from unveil.data.dense_layouts import CAMVID, NYU40, StorageOptions, open_dense
from unveil.evaluation.dense.data import class_counts, depth_mean, with_classes
from unveil.modeling.types import DEPTH, RGB, Modality

LABELS = Modality("semseg", 1, (0.0,), (1.0,), kind="categorical", num_classes=2)


def put(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def picture(seed: int = 0, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def labels(*rows: int) -> np.ndarray:
    """A map of 6 x 8 whose six rows have these ids, the last one to the end."""
    return np.repeat(np.array([*rows, *[rows[-1]] * (6 - len(rows))], np.uint8)[:, None], 8, axis=1)


def write_folders(root: Path, form: str, count: int = 3) -> Path:
    for split in ("train", "val"):
        for kind, make in (("rgb", picture), ("semseg", lambda i: labels(i % 2, 1, 255))):
            place = {"split first": f"{split}/{kind}", "kind first": f"{kind}/{split}"}[form]
            for i in range(count):
                put(root / place / "street" / f"{i}.png", make(i))
    return root


@pytest.mark.parametrize("form", ["split first", "kind first"])
def test_plain_folders(tmp_path, form):
    pair = open_dense(str(write_folders(tmp_path, form)))
    assert list(pair.train.names) == ["street/0", "street/1", "street/2"]
    assert len(pair.test) == 3
    assert not pair.is_held_out
    train = with_classes(pair).train
    assert train.labels.names == ("class 0", "class 1")
    assert class_counts(train).tolist() == [
        16,
        32,
    ]  # rows of 8: two of class 0, one of class 1 beside the first of all three
    sample = pair.train.select([RGB.name, LABELS.name]).sample(1)
    assert torch.equal(sample.maps["rgb"], torch.from_numpy(picture(1)).permute(2, 0, 1))
    assert sample.maps["semseg"][0, :, 0].tolist() == [1, 1, 0, 0, 0, 0]
    assert sample.valid["semseg"][0, :, 0].tolist() == [True, True, False, False, False, False]


def test_without_a_test_set_the_end_is_held_out(tmp_path):
    for i in range(11):
        put(tmp_path / "images" / f"{i:02}.png", picture(i))
        put(tmp_path / "labels" / f"{i:02}.png", labels(0, 1))
    pair = open_dense(str(tmp_path))
    assert pair.is_held_out
    assert list(pair.test.names) == ["09", "10"]
    assert len(pair.train) == 9


def test_names_of_classes_come_from_a_file(tmp_path):
    write_folders(tmp_path, "split first")
    (tmp_path / "classes.txt").write_text("road\nsky\n")
    assert with_classes(open_dense(str(tmp_path))).train.labels.names == ("road", "sky")


def test_ade20k(tmp_path):
    for split in ("training", "validation"):
        for i in range(2):
            name = f"ADE_{split[:5]}_{i:08}"
            put(tmp_path / "images" / split / f"{name}.jpg", picture(i))
            put(tmp_path / "annotations" / split / f"{name}.png", labels(0, 1, 150))
    rows = [f"{k}\t0.1\t100\t10\tthing {k}, other word" for k in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))
    pair = open_dense(str(tmp_path))
    assert (len(pair.train), len(pair.test)) == (2, 2)
    assert pair.train.labels.names[0] == "thing 1"
    assert len(pair.train.labels.names) == 150
    result = pair.test.read(0, "semseg")
    assert result.values[0, :3, 0].tolist() == [0, 0, 149]
    assert result.valid[0, :3, 0].tolist() == [False, True, True], "0 is no class of ADE20K"


def test_nyuv2_as_it_is_prepared(tmp_path):
    for split, count in (("train", 2), ("test", 1)):
        for i in range(count):
            put(tmp_path / split / "rgb" / f"{i:04}.png", picture(i))
            put(tmp_path / split / "depth" / f"{i:04}.png", np.full((6, 8), 2500, np.uint16))
            put(tmp_path / split / "labels_40" / f"{i:04}.png", labels(0, 1, 40))
    pair = open_dense(str(tmp_path))
    assert pair.train.labels.names == NYU40
    assert pair.train.read(0, "semseg").values[0, :3, 0].tolist() == [0, 0, 39]
    assert pair.test.read(0, "depth").values.unique().tolist() == [2.5]


def test_nyuv2_as_it_is_published(tmp_path):
    h5py, matlab = pytest.importorskip("h5py"), pytest.importorskip("scipy.io")
    pictures = np.stack([picture(i) for i in range(3)])  # N H W C
    stored = np.stack([labels(0, 2, 2)] * 3).astype(np.uint16)
    stored[:, 2:] = 894
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:  # MATLAB's arrays have their axes turned round
        file["images"] = pictures.transpose(0, 3, 2, 1)
        file["depths"] = np.stack([np.full((8, 6), 1.0 + i, np.float32) for i in range(3)])
        file["labels"] = stored.transpose(0, 2, 1)
    numbers = np.arange(1, 895)
    matlab.savemat(tmp_path / "classMapping40.mat", {"mapClass": np.where(numbers == 894, 40, 7)[None]})
    matlab.savemat(tmp_path / "splits.mat", {"trainNdxs": [[1], [3]], "testNdxs": [[2]]})
    pair = open_dense(str(tmp_path))
    assert (list(pair.train.names), list(pair.test.names)) == (["0001", "0003"], ["0002"])
    sample = pair.train.select([RGB.name, DEPTH.name, LABELS.name]).sample(1)
    assert torch.equal(sample.maps["rgb"], torch.from_numpy(pictures[2]).permute(2, 0, 1))
    assert sample.maps["depth"].unique().tolist() == [3.0]
    assert sample.maps["semseg"][0, :3, 0].tolist() == [0, 6, 39]
    assert sample.valid["semseg"][0, :3, 0].tolist() == [False, True, True]
    (tmp_path / "splits.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no splits\.mat"):
        open_dense(str(tmp_path))


def test_hypersim(tmp_path):
    h5py = pytest.importorskip("h5py")
    for scene in ("ai_001_001", "ai_001_002", "ai_002_001"):
        images = tmp_path / scene / "images"
        put(images / "scene_cam_00_final_preview" / "frame.0003.tonemap.jpg", picture())
        geometry = images / "scene_cam_00_geometry_hdf5"
        geometry.mkdir()
        classes = labels(1, 40).astype(np.int16)
        classes[2] = -1
        metres = np.full((6, 8), 1.5, np.float32)
        metres[0, 0] = np.nan
        for name, array in (("semantic", classes), ("depth_meters", metres)):
            with h5py.File(geometry / f"frame.0003.{name}.hdf5", "w") as file:
                file["dataset"] = array
    table = "scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name\n"
    rows = [f"{scene},cam_00,3,{is_kept},,{split}\n" for scene, is_kept, split in (
        ("ai_001_001", "True", "train"), ("ai_001_002", "False", ""), ("ai_002_001", "True", "test"),
    )]  # fmt: skip
    assert list(open_dense(str(tmp_path)).test.names) == ["ai_002_001/scene_cam_00/frame.0003"], "the last scene"
    (tmp_path / "metadata_images_split_scene_v1.csv").write_text(table + "".join(rows))
    pair = open_dense(str(tmp_path))
    assert list(pair.train.names) == ["ai_001_001/scene_cam_00/frame.0003"]
    sample = pair.test.select([RGB.name, DEPTH.name, LABELS.name]).sample(0)
    assert sample.maps["semseg"][0, :3, 0].tolist() == [0, 39, 0]
    assert sample.valid["semseg"][0, :3, 0].tolist() == [True, True, False]
    assert sample.maps["depth"][0, 0].tolist() == [0, *[1.5] * 7]
    assert not sample.valid["depth"][0, 0, 0]
    (tmp_path / "ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0003.semantic.hdf5").write_bytes(b"broken")
    with pytest.raises(Unreadable, match="damaged"):
        pair.train.read(0, "semseg")


def test_camvid_as_segnet_lays_it_out(tmp_path):
    for split in ("train", "val", "test"):
        for folder, make in ((split, picture), (f"{split}annot", lambda i: labels(0, 10, 11))):
            put(tmp_path / folder / f"0001TP_00{len(split)}.png", make(0))
    pair = open_dense(str(tmp_path))
    assert list(pair.test.names) == ["0001TP_004"], "test, not val"
    assert pair.train.labels.names == CAMVID
    assert pair.train.read(0, "semseg").valid[0, :, 0].tolist() == [True, True, False, False, False, False]


def test_camvid_in_folders_is_known_by_its_names(tmp_path):
    for split, name in (("train", "0016E5_00390"), ("val", "0016E5_07959"), ("test", "Seq05VD_f00000")):
        put(tmp_path / split / "rgb" / f"{name}.jpg", picture(0))
        put(tmp_path / split / "semseg" / f"{name}.png", labels(0, 10, 11))
    for data, test_data in ((tmp_path, None), (tmp_path / "train", str(tmp_path / "test"))):
        pair = open_dense(str(data), test_data)
        assert (len(pair.train), len(pair.test)) == (1, 1)
        assert pair.train.labels == pair.test.labels == LabelEncoding(CAMVID, void=11)
    (tmp_path / "classes.txt").write_text("\n".join(f"own {k}" for k in range(32)))
    assert len(open_dense(str(tmp_path)).train.labels.names) == 32, "classes of one's own come first"


def test_a_declaration_of_one_set_holds_for_both(tmp_path):
    root = write_folders(tmp_path, "split first")
    (root / "train" / "classes.txt").write_text("road\nsky\ncar\n")
    for data, test_data in (("train", "val"), ("val", "train")):
        pair = with_classes(open_dense(str(root / data), str(root / test_data)))
        assert pair.train.labels.names == pair.test.labels.names == ("road", "sky", "car")
    (root / "val" / "classes.txt").write_text("road\nsky\n")
    with pytest.raises(ValueError, match=r"train 3 and .*val 2; correct one"):
        with_classes(open_dense(str(root / "train"), str(root / "val")))


def test_depth_is_measured_on_known_pixels(tmp_path):
    far = np.full((6, 8), 2000, np.uint16)
    near = np.full((6, 8), 1000, np.uint16)
    near[:, 4:] = 0
    for i, depth in enumerate((near, far, far)):
        put(tmp_path / "rgb" / f"{i}.png", picture(i))
        put(tmp_path / "depth" / f"{i}.png", depth)
    mean, std, everywhere = depth_mean(open_dense(str(tmp_path)).train)
    values = np.array([1.0] * 24 + [2.0] * 48)
    assert (mean, std) == (pytest.approx(values.mean()), pytest.approx(values.std()))
    assert everywhere[0, 0].tolist() == pytest.approx([1.5] * 4 + [2.0] * 4)
    closer = open_dense(str(tmp_path), stored=StorageOptions(max_depth=1.5)).train
    assert depth_mean(closer)[0] == 1.0
    assert closer.read(1, "depth").valid.sum() == 0


def test_what_is_wrong_is_told(tmp_path):
    root = write_folders(tmp_path / "set", "split first")
    train = open_dense(str(root)).train
    with pytest.raises(ValueError, match="has no depth"):
        train.select(["rgb", "depth"])
    with pytest.raises(ValueError, match="ignore index 1 is a class, 'class 1'"):
        open_dense(str(root), stored=StorageOptions(classes=2, ignore=1))
    with pytest.raises(ValueError, match=r"ignore index 0 is a class.*--first-class 1"):
        with_classes(open_dense(str(root), stored=StorageOptions(ignore=0)))
    with pytest.raises(ValueError, match="holds the id 255, but there are 2 classes"):
        open_dense(str(root), stored=StorageOptions(classes=2, ignore=7)).train.read(0, "semseg")
    put(root / "train" / "semseg" / "street" / "2.png", labels(0, 1)[:, :6])
    with pytest.raises(ValueError, match="6 x 6 pixels, but its rgb 8 x 6"):
        open_dense(str(root)).train.select([RGB.name, LABELS.name]).sample(2)
    (root / "train" / "semseg" / "street" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"1 of the 3 files of .* have no semseg in .*'street/2'"):
        open_dense(str(root))
    with pytest.raises(FileNotFoundError, match="did you mean"):
        open_dense(str(tmp_path / "sett"))
    with pytest.raises(ValueError, match="no known layout"):
        open_dense(str(tmp_path))
    with pytest.raises(ValueError, match="max_depth is a number above 0"):
        StorageOptions(max_depth=-1)


def test_one_class_only_and_no_depth_are_errors(tmp_path):
    for i in range(3):
        put(tmp_path / "rgb" / f"{i}.png", picture(i))
        put(tmp_path / "semseg" / f"{i}.png", labels(0))
        put(tmp_path / "depth" / f"{i}.png", np.zeros((6, 8), np.uint16))
    train = with_classes(open_dense(str(tmp_path))).train
    with pytest.raises(ValueError, match="hold 1 class; at least two"):
        class_counts(train)
    with pytest.raises(ValueError, match=r"no pixel of .* has a depth"):
        depth_mean(train)
