"""Boxes and masks as people label them: COCO, YOLO and Pascal VOC are read right, or refused with one clear error."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ten_images
from unveil.data.decode import Unreadable
from unveil.data.detection.annotations import Counts
from unveil.data.detection.coco import read_coco, segmentation
from unveil.data.detection.layouts import open_detection
from unveil.data.detection.masks import Polygons, RunLengths, Window, decoded, fill
from unveil.experiments.scenes import render
from unveil.experiments.scenes.command import scenes

WHOLE = Window(ten_images.HEIGHT, ten_images.WIDTH)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ten_images.write(tmp_path_factory.mktemp("ten") / "coco")


def read(tmp_path: Path, labels: Any) -> Any:
    file = tmp_path / "labels.json"
    file.write_text(labels if isinstance(labels, str) else json.dumps(labels))
    return read_coco(file, [tmp_path], "labels")


def test_ten_images_of_coco_are_read_with_polygons_run_lengths_crowds_and_an_empty_one(coco: Path):
    sets = open_detection(str(coco))
    assert (len(sets.train), len(sets.test), sets.is_held_out, sets.has_masks) == (10, 10, False, True)
    assert sets.train.classes == ("ball", "block")
    by_image = sets.train.objects
    assert [len(one) for one in by_image] == [1, 1, 1, 0, 2, 2, 1, 1, 2, 1]
    assert [one.crowd.tolist() for one in by_image[4:6]] == [[False, True]] * 2
    assert by_image[1].boxes.tolist() == [[3, 4, 15, 15]]
    assert [one.labels.tolist() for one in by_image[:2]] == [[1], [0]]
    for number, one in enumerate(by_image):
        pixels = sets.train.sample(number).maps["rgb"]
        for mask, (x0, y0, x1, y1), crowd in zip(one.masks, one.boxes.astype(int), one.crowd, strict=True):
            assert mask is not None
            bitmap = mask.bitmap(WHOLE)
            rows, columns = np.nonzero(bitmap)
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)
            assert (pixels.numpy()[:, bitmap] != 60).all() or crowd
    assert by_image[8].masks[1].bitmap(WHOLE).sum() == 6 * 6 + 8 * 6  # not what lies between its parts


def test_a_single_json_beside_images_holds_its_last_fifth_out(tmp_path: Path):
    ten_images.draw(tmp_path / "images", ten_images.content())
    (tmp_path / "labels.json").write_text(json.dumps(ten_images.content()))
    for address in (tmp_path, tmp_path / "labels.json"):
        sets = open_detection(str(address))
        assert (len(sets.train), len(sets.test), sets.is_held_out) == (8, 2, True)
    sets = open_detection(str(tmp_path), str(tmp_path))
    assert len(sets.test) == 10


def test_a_folder_of_each_split_may_hold_its_own_json(tmp_path: Path):
    for split in ("train", "valid"):
        ten_images.draw(tmp_path / split, ten_images.content())
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(ten_images.content()))
    sets = open_detection(str(tmp_path))
    assert (len(sets.train), len(sets.test), sets.is_held_out) == (10, 10, False)


def test_compressed_run_lengths_are_those_of_the_format():
    assert decoded("231N").tolist() == [2, 3, 1, 1]  # the example of COCO's own description, and its last difference
    mask = np.zeros((40, 48), bool)
    mask[3:30, 5:40] = True
    encoder = pytest.importorskip("faster_coco_eval").mask
    packed = encoder.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = packed["counts"].decode()
    one = segmentation({"size": [40, 48], "counts": text}, (40, 48), "it", Counts())
    assert (one.bitmap(WHOLE) == mask).all()
    assert one.counts.tolist() == RunLengths.of(mask).counts.tolist()


def test_a_mask_is_the_same_as_polygon_and_as_run_lengths_in_every_view():
    ring = np.array([[5.0, 4], [30, 9], [22, 33], [8, 25]])
    polygon = Polygons((ring,))
    drawn = Image.new("1", (48, 40))
    from PIL import ImageDraw

    ImageDraw.Draw(drawn).polygon([tuple(p) for p in ring], fill=1)
    bitmap = polygon.bitmap(WHOLE)
    assert (np.array(drawn) != bitmap).sum() < 60  # the outline, which Pillow draws too
    x, y = ring.T
    area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    assert abs(bitmap.sum() - area) < 6
    runs = RunLengths.of(bitmap)
    assert (runs.pixels() == bitmap).all()
    for window in (
        Window(40, 48, mirrored=True, made_width=48),
        Window(20, 24, scale_y=0.5, scale_x=0.5),
        Window(64, 64, top=3, left=7, scale_y=2.0, scale_x=2.0, mirrored=True, made_width=60),
    ):
        one, other = polygon.bitmap(window), runs.bitmap(window)
        assert one.sum() > 50
        assert (one != other).mean() < 0.05
    flipped = polygon.bitmap(Window(40, 48, mirrored=True, made_width=48))
    assert (flipped != bitmap[:, ::-1]).sum() < 20  # where an edge meets the centre of a pixel
    assert not fill(np.array([[1.0, 1], [9, 9], [1, 1]]), 12, 12).any()  # a line


def test_boxes_out_of_the_image_or_without_an_area_are_cut_or_left_out_and_counted(tmp_path: Path):
    labels = ten_images.content(2)
    ten_images.draw(tmp_path, labels)
    box = labels["annotations"][0]
    more = [[-10, 5, 20, 10], [60, 5, 20, 10], [5, 5, 0, 10], [5, 5, -4, 10], [40, 30, 100, 100]]
    labels["annotations"] += [{**box, "id": 50 + n, "bbox": one} for n, one in enumerate(more)]
    labels["annotations"].append({**box, "id": 90, "segmentation": [[1, 2, 3, 4]]})
    labels["annotations"].append({**box, "id": 91, "segmentation": ten_images.polygon(60, 2, 5, 5)})
    own = read(tmp_path, labels)
    assert own.counts == {
        "boxes cut to their image": 2,
        "boxes outside their image": 1,
        "boxes without an area": 2,
        "masks without a pixel": 2,
        "polygons of less than three corners": 1,
    }
    assert own.objects[0].boxes.tolist() == [[2, 3, 14, 13], [0, 5, 10, 15], [40, 30, 48, 40]]


def change(entry: dict[str, Any], **fields: Any) -> None:
    entry.update(fields)


WRONG = {
    "category": (lambda c: change(c["annotations"][0], category_id=99), "1 of 12 annotations name categories"),
    "image": (lambda c: change(c["annotations"][0], image_id=99), "1 of 12 annotations are of images that are not"),
    "box": (lambda c: change(c["annotations"][2], bbox=[1, 2, 3]), "bbox of annotation 2 is 4 finite numbers"),
    "text number": (lambda c: change(c["annotations"][2], category_id="3"), "is a whole number; got the text 3"),
    "words": (lambda c: change(c["annotations"][2], bbox=["a", 2, 3, 4]), "bbox of annotation 2 is 4 finite"),
    "infinite": (lambda c: change(c["annotations"][2], bbox=[1, 2, 3, float("inf")]), "finite numbers"),
    "runs": (lambda c: c["annotations"][7]["segmentation"]["counts"].pop(), "do not add up to 48 x 40 pixels"),
    "size": (lambda c: change(c["annotations"][7]["segmentation"], size=[40, 41]), "is of 41 x 40 pixels, its image"),
    "text": (lambda c: change(c["annotations"][7]["segmentation"], counts="0~~"), "compressed counts"),
    "twice": (lambda c: change(c["images"][1], id=10), "two entries have the id 10 of image"),
    "names": (lambda c: change(c["categories"][1], name="ball"), "two categories are called ball"),
    "outside": (lambda c: change(c["images"][1], file_name="../../a.png"), "lies outside"),
    "none": (lambda c: c.pop("categories"), "no list of categories"),
    "no images": (lambda c: c["images"].clear(), "it has no images"),
    "entry": (lambda c: c["images"].append(3), "entry 10 of images is a int"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_as_the_format_says_is_one_error_that_names_it(coco: Path, name: str, tmp_path: Path):
    labels = ten_images.content()
    WRONG[name][0](labels)
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(labels))
    with pytest.raises(ValueError, match=WRONG[name][1]) as caught:
        read_coco(file, [coco / "train2017"], "labels")
    assert "\n" not in str(caught.value)


def test_missing_images_are_named_and_most_of_them_missing_is_an_error(tmp_path: Path):
    labels = ten_images.content()
    ten_images.draw(tmp_path, labels)
    (tmp_path / "04.png").unlink()
    own = read(tmp_path, labels)
    assert (len(own), own.missing) == (9, ("04.png",))
    for name in range(5, 10):
        (tmp_path / f"{name:02}.png").unlink()
    with pytest.raises(ValueError, match=r"6 of its 10 images are not there, e.g. 04.png; they are looked for in"):
        read(tmp_path, labels)


def test_crowds_may_be_told_by_true_and_false_and_an_image_that_is_listed_twice_is_counted(tmp_path: Path):
    labels = ten_images.content()
    ten_images.draw(tmp_path, labels)
    before = read(tmp_path, labels)
    for one in labels["annotations"]:
        one["iscrowd"] = bool(one["iscrowd"])
    own = read(tmp_path, labels)
    assert [one.crowd.tolist() for one in own.objects] == [one.crowd.tolist() for one in before.objects]
    assert own.counts == {}
    labels["images"][1]["file_name"] = "00.png"
    assert read(tmp_path, labels).counts == {"images listed twice, with objects of their own": 1}


def test_an_image_of_another_size_than_its_annotations_tell_is_unreadable(tmp_path: Path):
    labels = ten_images.content()
    ten_images.draw(tmp_path, labels)
    labels["images"][0] |= {"width": 40, "height": 48}
    labels["images"][1].pop("width")  # then the file tells
    own = read(tmp_path, labels)
    with pytest.raises(Unreadable, match="its annotations are of 40 x 48 pixels, the image has 48 x 40"):
        own.sample(0)
    assert own.sizes[1] == (40, 48)


def leaves(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to every value in a JSON."""
    entries = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    return [path, *(leaf for key, value in entries for leaf in leaves(value, (*path, key)))]


def test_300_changed_annotations_are_read_or_refused(coco: Path):
    rng, before = random.Random(0), ten_images.content()
    values: list[Any] = [None, -1, 0, 1e300, float("nan"), True, "x", "", [], {}, [[]], [1, 2], {"a": 1}, "../x", 2.5]
    file, count, messages = coco / "changed.json", 0, list[str]()
    for number in range(300):
        labels = copy.deepcopy(before)
        for _ in range(rng.choice((1, 1, 2, 4))):
            paths = leaves(labels)[1:]
            *above, last = rng.choice(paths)
            node = labels
            for key in above:
                node = node[key]
            how = rng.randrange(4)
            if how == 0:
                del node[last]
            elif how == 1 and isinstance(node, list):
                node.insert(last, copy.deepcopy(node[last]))
            else:
                node[last] = copy.deepcopy(rng.choice(values))
        text = json.dumps(labels)
        if number % 10 == 0:
            text = text[: rng.randrange(len(text))]
        file.write_text(text)
        try:
            own = read_coco(file, [coco / "train2017"], "labels")
            for one, size in zip(own.objects, own.sizes, strict=True):
                if max(size) < 1000:
                    assert all(mask is None or mask.bitmap(Window(*size)).shape == size for mask in one.masks)
                assert np.isfinite(one.boxes).all()
                assert ((one.labels >= 0) & (one.labels < len(own.classes))).all()
            count += 1
        except ValueError as error:
            messages.append(str(error))
    file.unlink()
    assert min(count, len(messages)) > 20
    assert all("\n" not in message and len(message) < 600 for message in messages)


YAML = "names: [ball, block]\ntrain: images/train\nval: images/val\n"


def test_yolo_texts_of_boxes_and_polygons_are_read(tmp_path: Path):
    for split in ("train", "val"):
        ten_images.draw(tmp_path / "images" / split, ten_images.content(3))
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / "00.txt").write_text("1 0.5 0.5 0.25 0.5\n\n0 0.0 0.1 0.5 0.1 0.5 0.9\n")
        (tmp_path / "labels" / split / "01.txt").write_text("")
    (tmp_path / "data.yaml").write_text(YAML)
    sets = open_detection(str(tmp_path))
    assert [len(one) for one in sets.train.objects] == [2, 0, 0]
    assert sets.train.objects[0].boxes.tolist() == [[18, 10, 30, 30], [0, 4, 24, 36]]
    assert (sets.train.classes, sets.has_masks, sets.train.objects[0].masks[0]) == (("ball", "block"), False, None)
    (tmp_path / "labels/train/01.txt").write_text("2 0.5 0.5 0.1 0.1\n")
    with pytest.raises(ValueError, match="hold the class 2, and 2 are named"):
        open_detection(str(tmp_path))
    for wrong, why in (("0 0.5", "a box is 4 numbers"), ("a b c d e", "are needed"), ("0 nan 0 1 1", "finite")):
        (tmp_path / "labels/train/01.txt").write_text(f"{wrong}\n")
        with pytest.raises(ValueError, match=rf"01.txt, line 1: .*{why}"):
            open_detection(str(tmp_path))


def test_yolo_texts_without_their_images_or_a_split_without_texts_are_told(tmp_path: Path):
    for split in ("train", "val"):
        ten_images.draw(tmp_path / "images" / split, ten_images.content(3))
        (tmp_path / "labels" / split).mkdir(parents=True)
        for name in ("00", "07"):
            (tmp_path / "labels" / split / f"{name}.txt").write_text("1 0.5 0.5 0.25 0.5\n")
        (tmp_path / "labels" / split / "classes.txt").write_text("ball\nblock\n")
    sets = open_detection(str(tmp_path))
    assert (sets.train.missing, sets.train.classes, sets.train.counts) == (("07",), ("ball", "block"), {})
    for text in (tmp_path / "labels/train").glob("0*"):
        text.write_text("1 20 20 10 10\n")  # pixels in place of shares
    with pytest.raises(ValueError, match="to train on has an object; left out or changed were 1 boxes outside"):
        open_detection(str(tmp_path))
    for text in (tmp_path / "labels/train").glob("0*"):
        text.unlink()
    with pytest.raises(ValueError, match="train has 0 texts, of which none has the name of one of the 3 images"):
        open_detection(str(tmp_path))


def test_yolo_splits_are_told_by_names_that_begin_so_by_data_yaml_or_by_lists(tmp_path: Path):
    for split, count in (("train2017", 4), ("val2017", 2)):
        ten_images.draw(tmp_path / "images" / split, ten_images.content(count))
        (tmp_path / "labels" / split).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "labels" / split / f"{number:02}.txt").write_text("0 0.5 0.5 0.25 0.5\n")

    def lengths(told: str) -> tuple[int, int, bool]:
        (tmp_path / "data.yaml").write_text(f"names: [ball]\n{told}")
        sets = open_detection(str(tmp_path))
        return len(sets.train), len(sets.test), sets.is_held_out

    assert lengths("") == lengths("train: ../datasets/some/images/train2017\nval: images/val2017\n") == (4, 2, False)
    assert lengths("train: images/val2017\nvalid: images/train2017\n") == (2, 4, False)
    (tmp_path / "train.txt").write_text("./images/train2017/00.png\nimages/val2017/01.png\n\n/x/images/gone/7.png\n")
    (tmp_path / "val.txt").write_text("images/train2017/02.png\n")
    assert lengths("train: train.txt\nval: val.txt\n") == (2, 1, False)
    (tmp_path / "images/val2017").rename(tmp_path / "images/trainextra")
    (tmp_path / "labels/val2017").rename(tmp_path / "labels/trainextra")
    assert lengths("train: images/train2017\nval: images/train2017\n") == (3, 1, True), "no test set of its own"
    with pytest.raises(ValueError, match=r"several folders of train, images/train2017 and images/trainextra; say by"):
        lengths("")
    with pytest.raises(ValueError, match=r"data\.yaml names several places for train"):
        lengths("train: [images/train2017, images/trainextra]\n")


def test_of_yolo_poses_the_box_is_read_and_no_polygon(tmp_path: Path):
    ten_images.draw(tmp_path / "images", ten_images.content(3))
    (tmp_path / "labels").mkdir()
    for number in range(3):
        (tmp_path / "labels" / f"{number:02}.txt").write_text("0 0.5 0.5 0.25 0.5 0.4 0.4 2 0.6 0.6 2\n")
    (tmp_path / "data.yaml").write_text("names: [ball]\nkpt_shape: [2, 3]\n")
    train = open_detection(str(tmp_path)).train
    assert (train.objects[0].boxes.tolist(), train.objects[0].masks) == ([[18, 10, 30, 30]], (None,))
    assert train.counts == {"poses, of which the box alone is read": 3}


XML = (
    "<annotation><size><width>48</width><height>40</height></size><object><name>{}</name><difficult>{}</difficult>"
    "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>14</xmax><ymax>13</ymax></bndbox></object></annotation>"
)


def test_pascal_voc_is_read_with_its_splits_and_difficult_objects(tmp_path: Path):
    ten_images.draw(tmp_path / "JPEGImages", ten_images.content(4))
    for folder in ("Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for number in range(4):
        text = XML.format("block" if number % 2 else "ball", int(number == 2))
        (tmp_path / "Annotations" / f"{number:02}.xml").write_text(text)
    (tmp_path / "ImageSets/Main/train.txt").write_text("00\n01\n02\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("03\n")
    sets = open_detection(str(tmp_path))
    assert (len(sets.train), len(sets.test), sets.train.classes) == (3, 1, ("ball", "block"))
    assert sets.train.objects[0].boxes.tolist() == [[2, 3, 14, 13]]
    assert [one.crowd.tolist() for one in sets.train.objects] == [[False], [False], [True]]
    assert sets.test.objects[0].labels.tolist() == [1]
    (tmp_path / "ImageSets/Main/train.txt").write_text("00\n01\n02\n05\n")
    (tmp_path / "Annotations/02.xml").unlink()
    sets = open_detection(str(tmp_path))
    assert (len(sets.train), sets.train.missing, sets.train.counts) == (2, ("05",), {"images without an XML": 1})
    for wrong, why in (
        ("<a/>", "an <annotation> of Pascal VOC is needed"),
        ("<annotation>", "is no XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "declares a document type"),
        ("<annotation><object><name>a</name></object></annotation>", "has no name, or a bndbox"),
    ):
        (tmp_path / "Annotations" / "00.xml").write_text(wrong)
        with pytest.raises(ValueError, match=why):
            open_detection(str(tmp_path))


def test_a_folder_of_no_layout_is_told_what_is_needed(tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ValueError, match="it holds pictures: needed is COCO's"):
        open_detection(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="Boxes are in"):
        open_detection(str(tmp_path / "nowhere"))


def test_scenes_are_written_with_a_box_and_a_mask_of_every_thing(tmp_path: Path):
    out = scenes(out=str(tmp_path / "made"), layout="coco", count=3, held_out=2, size=48, seed=4)
    sets = open_detection(str(out))
    assert (len(sets.train), len(sets.test), sets.has_masks, len(sets.train.classes)) == (3, 2, True, 15)
    for number, one in enumerate(sets.train.objects):
        scene = render((4, number), 48)
        assert len(one) == sum((scene.things == thing).sum() >= 8 for thing in range(1, scene.things.max() + 1))
        seen = np.zeros((48, 48), int)
        for mask, label, (x0, y0, x1, y1) in zip(one.masks, one.labels, one.boxes.astype(int), strict=True):
            bitmap = mask.bitmap(Window(48, 48))
            rows, columns = np.nonzero(bitmap)
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)
            assert (scene.semseg[bitmap] == label + 3).all()
            seen += bitmap
        assert seen.max() <= 1
    with pytest.raises(ValueError, match="is there already"):
        scenes(out=str(out), layout="coco")
