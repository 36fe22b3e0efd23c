"""What `inspect_source` says, held against numpy and against what was written."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from unveil.data.aligned_folders import open_samples
from unveil.data.inspection import inspect_samples, inspect_source
from unveil.data.modality_config import declare
from unveil.data.sources import open_source
from unveil.data.splits import split


@pytest.fixture
def folder(tmp_path):
    """Nine images of two classes: noise of several sizes, one grey, one a copy, one broken."""
    rng = np.random.default_rng(0)
    for i in range(6):
        path = tmp_path / ("cat" if i < 4 else "dog") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 40 * (i + 1), (10 + i, 20, 3), dtype=np.uint8)).save(path)
    Image.fromarray(rng.integers(0, 256, (30, 30), dtype=np.uint8)).save(tmp_path / "dog" / "grey.png")
    shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "dog" / "copy.png")
    (tmp_path / "dog" / "broken.png").write_bytes((tmp_path / "cat" / "1.png").read_bytes()[:200])
    return tmp_path


def test_the_numbers_are_numpys(folder):
    source = open_source(folder)
    inspection = inspect_source(source)
    readable = [i for i in range(len(source)) if "broken" not in source.name(i)]
    images = [source.image(i).numpy().astype(np.float64) / 255 for i in readable]
    mean = np.mean([image.mean((1, 2)) for image in images], axis=0)
    square = np.mean([(image**2).mean((1, 2)) for image in images], axis=0)
    np.testing.assert_allclose(inspection.mean, mean, atol=1e-7)
    np.testing.assert_allclose(inspection.std, np.sqrt(square - mean**2), atol=1e-7)


def test_everything_is_counted(folder):
    inspection = inspect_source(open_source(folder))
    assert (inspection.count, inspection.num_decoded, inspection.channels) == (9, 9, 3)
    assert (inspection.smallest, inspection.largest) == ((10, 20), (30, 30))
    assert inspection.modes == {"RGB": 8, "L": 1}
    assert inspection.formats == {"PNG": 9}
    assert inspection.bits == {8: 9}
    assert inspection.share_not_square == pytest.approx(8 / 9)
    assert inspection.classes == {"cat": 4, "dog": 5}
    assert inspection.duplicates == [["cat/0.png", "dog/copy.png"]]
    assert list(inspection.unreadable) == ["dog/broken.png"]
    assert json.loads(json.dumps(asdict(inspection)))["count"] == 9


def test_a_person_can_read_it(folder):
    text = str(inspect_source(open_source(folder)))
    for word in ("images", "2 classes: cat 4, dog 5", "dog/broken.png: ", "1 exact copies", "20 x 10 to 30 x 30"):
        assert word in text
    assert "evenly spread" not in text


def test_a_limit_is_kept_and_said(folder):
    inspection = inspect_source(open_source(folder), limit=3)
    assert inspection.num_decoded == 3
    assert inspection.count == 9
    assert "from 3 images, evenly spread" in str(inspection)
    with pytest.raises(ValueError, match="limit of 0"):
        inspect_source(open_source(folder), limit=0)


def test_parts_and_made_images_can_be_inspected(folder):
    train, held_out = split(open_source(folder), 0.3, 0)
    assert inspect_source(train).count + inspect_source(held_out).count == 9
    assert inspect_source(held_out).formats == {"PNG": 3}
    scenes = inspect_source(open_source("scenes:size=32,count=5"))
    assert (scenes.count, scenes.smallest, scenes.formats) == (5, (32, 32), {})
    assert "32 x 32" in str(scenes)


def test_alpha_and_depth_are_said(tmp_path):
    Image.new("RGBA", (4, 4), (10, 20, 30, 40)).save(tmp_path / "a.png")
    inspection = inspect_source(open_source(tmp_path))
    assert "transparency; it is dropped" in str(inspection)
    Image.fromarray(np.full((4, 4), 6553, np.uint16)).save(tmp_path / "a.png")
    inspection = inspect_source(open_source(tmp_path))
    assert inspection.bits == {16: 1}
    assert inspection.mean == pytest.approx((0.1,), abs=1e-4)


def test_nothing_readable_is_no_crash(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    inspection = inspect_source(open_source(tmp_path))
    assert (inspection.smallest, len(inspection.unreadable)) == (None, 1)
    assert "a.jpg: the file is empty" in str(inspection)


def test_photographs_look_like_photographs(data_folder):
    inspection = inspect_source(open_source(data_folder / "photos"), limit=200)
    assert (inspection.count, inspection.unreadable) == (1000, {})
    np.testing.assert_allclose(inspection.mean, (0.485, 0.456, 0.406), atol=0.03)
    np.testing.assert_allclose(inspection.std, (0.229, 0.224, 0.225), atol=0.07)


@pytest.mark.parametrize("limit", [2, None])
def test_classes_are_counted_in_all_maps_even_where_only_some_are_measured(tmp_path, limit):
    for i in range(9):
        for kind in ("rgb", "semseg"):
            (tmp_path / kind).mkdir(exist_ok=True)
            shape = (4, 4, 3) if kind == "rgb" else (4, 4)
            Image.fromarray(np.full(shape, 7 if i == 4 else i % 2, np.uint8)).save(tmp_path / kind / f"{i}.png")
    (tmp_path / "semseg" / "5.png").write_bytes(b"no image")
    source = open_samples(tmp_path, declare(["rgb", "semseg"]))
    looked = inspect_samples(source, limit)
    assert looked.num_decoded == (limit or 9)
    assert looked.maps[1].ids == {0: 64, 1: 48, 7: 16}
    assert looked.settle(source.declared)[1].modality.num_classes == 8
    classes = replace(source.declared[1].modality, num_classes=2)
    declared = open_samples(
        tmp_path, (source.declared[0], replace(source.declared[1], modality=classes, measured=False))
    )
    assert inspect_samples(declared, limit).settle(declared.declared)[1].modality.num_classes == 2
