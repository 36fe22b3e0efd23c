"""A detector that an evaluation keeps: the same precision from its predictions, in a file of COCO's layout."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import ten_images
import unveil
from tiny_runs import write_images
from unveil.data.detection.layouts import open_detection
from unveil.evaluation.detection.average_precision import average_precision

for library in ("torchvision", "faster_coco_eval"):
    if not importlib.util.find_spec(library):
        pytest.skip(f"{library} is not there: pip install 'unveil[detect]'", allow_module_level=True)


@pytest.mark.parametrize("frozen", [False, True])
def test_boxes_are_those_that_the_evaluation_judged(tmp_path: Path, frozen: bool):
    coco = ten_images.write(tmp_path / "coco")
    run = unveil.pretrain(
        "crossmae", data=str(write_images(tmp_path / "images")), out=str(tmp_path / "run"), size="nano", patch=8,
        image_size=(32,), epochs=0.2, batch_size=8, device="cpu", threads=1,
    )  # fmt: skip
    how = {"device": "cpu", "precision": "float32", "baselines": False, "keep": True}
    options = {"epochs": 2, "batch_size": 4, "window": 2, "frozen": frozen, "relative_positions": not frozen}
    (result,) = unveil.evaluate(run, data=str(coco), protocol=("detect",), **options, **how)
    model = unveil.load(run, head="detect", device="cpu")
    test = open_detection(str(coco)).test
    found = dict(enumerate(model.predict([test.sample(number) for number in range(len(test))])))
    assert average_precision(test, found, "bbox").metrics["ap"] == pytest.approx(result.metrics["box_ap"], abs=1e-6)

    image = test.sample(0).maps["rgb"][None]
    (one,) = model(image)
    assert set(one) == {"boxes", "labels", "scores", "masks"}
    assert one["masks"].shape[1:] == image.shape[-2:]
    assert len(one["boxes"]) == len(one["masks"]) == len(found[0].scores)
    torch.testing.assert_close(one["boxes"], torch.from_numpy(found[0].boxes))

    exported = unveil.export(run, to="safetensors", head="detect", out=tmp_path / "exported")
    (again,) = unveil.load(exported, head="detect", device="cpu")(image)
    assert all(torch.equal(again[name], one[name]) for name in one)
    assert "- 2 classes, in the order of its outputs: ball, block" in (exported / "README.md").read_text()
    with pytest.raises(ValueError, match="--head detect is of boxes and masks, which goes with --to safetensors, and"):
        unveil.export(run, to="onnx", head="detect", out=tmp_path / "none")

    folder = next(path for path in coco.iterdir() if path.is_dir() and path.name != "annotations")
    out = unveil.predict(run, data=str(folder), out=str(tmp_path / "out"), draw=True, device="cpu", precision="float32")
    content = json.loads((out / "boxes.json").read_text())
    assert [category["name"] for category in content["categories"]] == list(model.classes)
    assert len(content["images"]) == len(list((out / "drawn").rglob("*.png")))
    for own in content["annotations"]:
        height, width = own["segmentation"]["size"]
        x, y, wide, high = own["bbox"]
        assert 0 <= x <= x + wide <= width + 0.1
        assert 0 <= y <= y + high <= height + 0.1
        assert 0 < own["score"] <= 1
