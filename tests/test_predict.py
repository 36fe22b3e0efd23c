"""Heads that evaluations keep, and what they predict: the same as the evaluation judged, in files that hold it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from unveil.cli import main
from unveil.commands.prediction_files import FileNames, depth_unit, write_mask
from unveil.data.dense_layouts import open_dense
from unveil.data.sources import open_source
from unveil.data.transforms import Sample
from unveil.evaluation.kept_heads import read_head
from unveil.evaluation.outcomes import read_outcomes

TRAIN, TEST = "scenes:count=30,size=32", "scenes:count=10,size=32,seed=7"
HOW = {"device": "cpu", "precision": "float32"}
CLASSIFIERS = ("linear", "linear-lbfgs", "attentive", "finetune")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run of three modalities, and the results of all protocols that train a head, which it keeps."""
    folder = tmp_path_factory.mktemp("predict")
    run = unveil.pretrain(
        "multimae", data=TRAIN, out=str(folder / "run"), modalities=("rgb", "depth", "semseg"), size="nano", patch=8,
        image_size=(32,), epochs=1, batch_size=20, device="cpu", threads=1, decoder_dim=16, decoder_depth=1,
        decoder_heads=2,
    )  # fmt: skip
    common = {"data": TRAIN, "test_data": TEST, "baselines": False, "keep": True, "epochs": 1, **HOW}
    results = unveil.evaluate(run, protocol=CLASSIFIERS, preset="small", **common)
    results += unveil.evaluate(run, protocol=("segment",), inputs=("rgb", "depth"), **common)
    results += unveil.evaluate(run, protocol=("depth",), inputs=("rgb",), frozen=False, preset="small", **common)
    return SimpleNamespace(folder=folder, run=run, scores={r.protocol: r.metrics for r in results})


def rows(file: Path) -> Iterator[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as content:
        yield from csv.DictReader(content)


def judged(run: Path, protocol: str) -> list[bool]:
    """Which of the test images the evaluation says were right."""
    return [bool(hit) for hit in read_outcomes(Path(run), protocol)["this run"]["accuracy"]]


@pytest.mark.parametrize("head", CLASSIFIERS)
def test_classes_are_those_that_the_evaluation_judged(place: SimpleNamespace, head: str):
    out = unveil.predict(place.run, data=TEST, head=head, out=str(place.folder / head), **HOW)
    test = open_source(TEST)
    names = [test.classes[label] for label in test.labels]
    table = list(rows(out / "predictions.csv"))
    assert [row["name"] for row in table] == [test.name(index) for index in range(len(test))]
    hits = [row["label"] == name for row, name in zip(table, names, strict=True)]
    assert hits == judged(place.run, head), "image by image"
    for row in table:
        probabilities = {name: float(row[name]) for name in unveil.load(place.run, head=head).classes}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert row["label"] == max(probabilities, key=lambda name: probabilities[name])


def test_features_are_read_and_normalised_as_the_head_learned_them(place: SimpleNamespace):
    how = {"layer": (3, 6), "pool": "mean-std", "normalize": "whiten"}
    common = {"data": TRAIN, "test_data": TEST, "baselines": False, "keep": True, **HOW}
    unveil.evaluate(place.run, protocol=("linear-lbfgs",), **how, **common)
    model = unveil.load(place.run, head="linear-lbfgs", device="cpu")
    out = unveil.predict(place.run, data=TEST, head="linear-lbfgs", out=str(place.folder / "whitened"), **HOW)
    scores = np.array([[float(row[name]) for name in model.classes] for row in rows(out / "predictions.csv")])
    test = open_source(TEST)
    names = [test.classes[label] for label in test.labels]
    hits = [model.classes[k] == name for k, name in zip(scores.argmax(1), names, strict=True)]
    assert hits == judged(place.run, "linear-lbfgs")
    encoder = unveil.load(place.run, device="cpu", **how)
    pictures = [Image.fromarray(test.image(k).permute(1, 2, 0).numpy()) for k in range(len(test))]
    images = torch.stack([encoder.transform(picture) for picture in pictures])
    kept = read_head(Path(place.run), "linear-lbfgs").tensors
    expected = encoder(images) @ kept["weight"].T + kept["bias"]  # features that `load` normalises itself
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-4)


def test_a_class_for_every_pixel_is_written_as_labels_are_stored(place: SimpleNamespace):
    out = unveil.predict(place.run, data=TEST, head="segment", out=str(place.folder / "masks"), draw=True, **HOW)
    truth = open_dense(TRAIN, TEST).test
    right = known = 0
    for index in range(len(truth)):
        stored = truth.read(index, "semseg")
        mask = Image.open(out / "masks" / f"{truth.name(index)}.png")
        assert mask.mode == "P"
        is_known = np.ones(mask.size[::-1], bool) if stored.valid is None else stored.valid[0].numpy()
        right += ((np.asarray(mask) == stored.values[0].numpy()) & is_known).sum()
        known += is_known.sum()
        assert (out / "drawn" / f"{truth.name(index)}.jpg").stat().st_size > 500
    assert right / known == pytest.approx(place.scores["segment"]["pixel_accuracy"], abs=1e-6)
    content = json.loads((out / "predictions.json").read_text())
    assert content["ids"] == {name: k for k, name in enumerate(truth.labels.names)}
    assert content["head"]["protocol"] == "segment"


def test_depth_is_written_in_a_unit_that_the_file_names(place: SimpleNamespace):
    out = unveil.predict(place.run, data=TEST, head="depth", out=str(place.folder / "depth"), draw=True, **HOW)
    unit = json.loads((out / "predictions.json").read_text())["unit_in_metres"]
    truth = open_dense(TRAIN, TEST).test
    squares = []
    for index in range(len(truth)):
        picture = Image.open(out / "depth" / f"{truth.name(index)}.png")
        assert picture.text["unit"] == f"{unit:g} m"
        stored = truth.read(index, "depth").values[0].numpy()
        error = np.asarray(picture).astype(float) * unit - stored
        squares.append((error**2)[stored > 0])
    assert np.sqrt(np.concatenate(squares).mean()) == pytest.approx(place.scores["depth"]["rmse"], abs=0.02)


def test_a_module_predicts_pixels_of_images_of_any_size(place: SimpleNamespace):
    model = unveil.load(place.run, head="segment", device="cpu")
    maps = {"rgb": torch.rand(2, 3, 40, 56), "depth": torch.rand(2, 1, 40, 56) + 1}
    assert model(maps).shape == (2, len(model.classes), 40, 56)
    with pytest.raises(ValueError, match="this head reads rgb, depth; depth is missing"):
        model(maps["rgb"])
    with pytest.raises(ValueError, match=r"rgb is B x 3 x H x W; got \(3, 40, 56\)"):
        model({**maps, "rgb": maps["rgb"][0]})
    with pytest.raises(ValueError, match=r"one number and size; got \(2, 20, 56\), \(2, 40, 56\)"):
        model({**maps, "depth": maps["depth"][:, :, :20]})
    assert unveil.load(place.run, head="depth", device="cpu")(maps["rgb"]).shape == (2, 1, 40, 56)
    assert "segment" in repr(model).splitlines()[0] or "by segment" in repr(model)


@pytest.mark.parametrize("head", ["segment", "depth"])
def test_exported_programs_and_files_predict_the_same_pixels(place: SimpleNamespace, tmp_path: Path, head: str):
    model = unveil.load(place.run, head=head, device="cpu")
    maps = {"rgb": torch.rand(2, 3, 32, 32), "depth": 3 * torch.rand(2, 1, 32, 32)}
    maps["depth"][0, :, :7] = 0  # no depth is known there
    given = tuple(maps[m.name] for m in model.inputs)
    expected = model(maps)
    program = torch.export.load(unveil.export(place.run, to="torch", head=head, out=tmp_path / "a") / "encoder.pt2")
    torch.testing.assert_close(program.module()(*given), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(program.module()(*(x[:1] for x in given)), expected[:1], rtol=0, atol=1e-5)
    folder = unveil.export(place.run, to="safetensors", head=head, out=tmp_path / "b")
    assert torch.equal(unveil.load(folder, head=head, device="cpu")(maps), expected)
    facts = [json.loads((tmp_path / name).read_text()) for name in ("a/preprocess.json", "b/config.json")]
    wanted = {"classes": list(model.classes)} if head == "segment" else {"unit": "metres"}
    assert all(one.items() >= wanted.items() for one in facts)
    card = (folder / "README.md").read_text()
    assert "- unit: metres" in card or "18 classes, in the order of its outputs: sky," in card
    with pytest.raises(
        ValueError, match=rf"--head {head} is of .*which goes with --to onnx or torch or safetensors, and"
    ):
        unveil.export(place.run, head=head, out=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_onnxruntime_predicts_the_same_pixels(place: SimpleNamespace, tmp_path: Path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="it is in no extra of the tests")
    import onnxruntime

    for head in ("segment", "depth"):
        model = unveil.load(place.run, head=head, device="cpu")
        maps = {"rgb": torch.rand(3, 3, 32, 32), "depth": torch.rand(3, 1, 32, 32)}
        folder = unveil.export(place.run, to="onnx", head=head, out=tmp_path / head)
        session = onnxruntime.InferenceSession(str(folder / "encoder.onnx"))
        names = [each.name for each in session.get_inputs()]
        for count in (1, 3):  # the batch is free
            feed = {name: maps["rgb" if name == "images" else name][:count].numpy() for name in names}
            (theirs,) = session.run(["metres" if head == "depth" else "scores"], feed)
            own = model({name: values[:count] for name, values in maps.items()})
            torch.testing.assert_close(torch.from_numpy(theirs), own, rtol=0, atol=1e-4)


def test_a_depth_of_0_is_none_in_python_too(place: SimpleNamespace):
    model = unveil.load(place.run, head="segment", device="cpu")
    maps = {"rgb": torch.rand(1, 3, 40, 40), "depth": 1 + torch.rand(1, 1, 40, 40)}
    maps["depth"][:, :, :20] = 0
    sample = Sample({n: x[0] for n, x in maps.items()}, {"depth": maps["depth"][0] > 0})  # as files are read
    torch.testing.assert_close(model(maps)[0], model.predict([sample])[0], rtol=0, atol=0)


def test_the_command_writes_lines_of_json_and_leaves_out_what_it_cannot_read(
    place: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    for name in ("a/one.png", "a/one.jpg", 'two, with "quotes".png'):
        Image.new("RGB", (40, 30), (90, 120, 30)).save(folder / name)
    (folder / "broken.png").write_bytes(b"no image")
    words = ["predict", str(place.run), "--head", "linear", "--data", str(folder), "--out", str(tmp_path / "out")]
    assert main([*words, "--format", "jsonl", "--top", "2", "--draw", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "left out, unreadable: broken.png" in printed.err
    assert printed.out.splitlines()[-1] == f"next: unveil export {place.run} --to safetensors --head linear"
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["a/one.jpg", "a/one.png", 'two, with "quotes".png']
    assert all(len(line["probabilities"]) == 2 and line["label"] in line["probabilities"] for line in lines)
    drawn = {str(p.relative_to(tmp_path / "out/drawn")) for p in (tmp_path / "out/drawn").rglob("*.jpg")}
    assert drawn == {"a/one.png.jpg", "a/one.jpg.jpg", 'two, with "quotes".jpg'}
    assert main(words) == 2
    assert "holds files; give another --out, or --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--top", "99"]) == 2
    assert "--top 99 is more than the 10 classes" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--head", "depth", "--top", "2"]) == 2
    assert "--top and --format are of tables of classes, and this head predicts depth" in capsys.readouterr().err
    for file in folder.rglob("*.[jp][pn]g"):
        file.write_bytes(b"no image")
    assert main([*words, "--overwrite", "--device", "cpu"]) != 0
    assert "none of the 4 images" in capsys.readouterr().err


def test_keep_is_a_flag_of_the_command(place: SimpleNamespace, capsys: pytest.CaptureFixture[str]):
    words = ["evaluate", str(place.run), "--data", TRAIN, "--no-baselines", "--device", "cpu"]
    assert main([*words, "--protocol", "linear", "--keep"]) == 0
    assert "unveil predict" in capsys.readouterr().err
    assert main([*words, "--protocol", "linear", "lowshot", "--keep"]) == 2
    assert "--keep is for protocols that train one head, and lowshot does not" in capsys.readouterr().err
    assert main([*words, "--protocol", "linear", "--keep", "teacher.safetensors"]) == 2
    assert "finetune has it" in capsys.readouterr().err


def test_what_is_no_head_is_one_clear_error(place: SimpleNamespace, tmp_path: Path):
    with pytest.raises(ValueError, match=r"has several heads, attentive, depth, .*; choose one with --head"):
        unveil.predict(place.run, data=TEST, out=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"has no head 'fintune'; did you mean finetune"):
        unveil.load(place.run, head="fintune")
    file = Path(place.run) / "heads" / "linear.safetensors"
    content = file.read_bytes()
    try:
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=r"linear\.safetensors holds no head .* evaluate again with --keep"):
            unveil.load(place.run, head="linear")
        head = read_head(Path(place.run), "attentive")
        head.of(("one", "two"), {"weights": head.facts["weights"]}).write(Path(place.run), "linear")
        assert unveil.load(place.run, head="linear").classes == head.classes, "names that it has stay"
        head.of((), {"protocol": "linear", "weights": {"checksum": "crc32:00000000"}}).write(Path(place.run), "linear")
        with pytest.raises(ValueError, match=r"the head linear was trained on other weights of .* evaluate again"):
            unveil.load(place.run, head="linear")
    finally:
        file.write_bytes(content)
    (tmp_path / "heads").mkdir()
    with pytest.raises(ValueError, match=r"has no head; `unveil evaluate .* --keep` keeps one"):
        read_head(tmp_path)


def test_files_have_names_of_their_own_inside_of_the_folder(tmp_path: Path):
    named = FileNames(["a/b.jpg", "a/b.png", "c.tiff", "train.parquet[3]", "../up.jpg", "/root.png"])
    assert str(named("a/b.jpg", ".png")) == "a/b.jpg.png"
    assert str(named("c.tiff", ".png")) == "c.png"
    assert str(named("train.parquet[3]", ".png")) == "train.parquet[3].png"
    assert {str(named("../up.jpg", ".png")), str(named("/root.png", ".png"))} == {"_up.png", "_root.png"}
    assert [depth_unit(metres) for metres in (3.0, 65.535, 66.0, 1e4, 1e6)] == [0.001, 0.001, 0.01, 1.0, 1.0]
    write_mask(tmp_path / "many.png", np.array([[0, 299]]), 1, None, 300)
    assert np.asarray(Image.open(tmp_path / "many.png")).tolist() == [[1, 300]], "16 bits where a byte is too small"
