"""Data as Python objects: arrays, tensors, pictures, torch and Hugging Face data sets, alone or by modality."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import unveil
import unveil.data
from tiny_runs import at_steps, facts, interrupt, write_images
from unveil.data import given
from unveil.data.decode import Unreadable
from unveil.data.sources import open_source

TRAIN = {"size": "nano", "image_size": 16, "patch": 4, "epochs": 1.0, "batch_size": 8, "lr": 0.01, "device": "cpu"}
COUNT = 24


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (COUNT, 20, 20, 3), np.uint8)


class Labelled(Dataset[Any]):
    """A map-style data set, as torchvision's are."""

    classes = ("a", "b", "c")

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        return Image.fromarray(pixels()[index]), index % 3


KINDS = {
    "array": pixels,
    "tensor": lambda: torch.from_numpy(pixels()).permute(0, 3, 1, 2),
    "floats": lambda: torch.from_numpy(pixels()).permute(0, 3, 1, 2) / 255,
    "list": lambda: [Image.fromarray(p) for p in pixels()],
    "pairs": lambda: (pixels(), [i % 3 for i in range(COUNT)]),
    "dataset": Labelled,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_pixels_are_read_whatever_holds_them(kind: str):
    address = given.address_of(KINDS[kind]())
    assert address == given.address_of(KINDS[kind]())
    assert address.startswith("python:")
    source = open_source(address)
    assert (len(source), source.channels) == (COUNT, 3)
    image = source.image(5)
    image = image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)
    assert torch.equal(image, torch.from_numpy(pixels()[5]).permute(2, 0, 1))
    if kind in ("pairs", "dataset"):
        assert list(source.labels or ()) == [i % 3 for i in range(COUNT)]
        assert source.classes == (list("abc") if kind == "dataset" else None)
    else:
        assert source.labels is None
    assert open_source(address, 1).image(0).shape == (1, 20, 20)


def test_other_content_has_another_address():
    other = pixels()
    other[7, 3, 3, 0] ^= 1
    addresses = [given.address_of(d) for d in (pixels(), other, (pixels(), [0] * COUNT), pixels()[:5])]
    assert len(set(addresses)) == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (iter([1]), "no length"),
        (3, "data is a int; give an address"),
        (pixels().transpose(0, 3, 1, 2), "N H W C"),
        ([], "is empty"),
        ((pixels(), [0, 1]), "24 of images, 2 of labels"),
        ({"rgb": pixels(), "depth": pixels()[:3, ..., 0]}, "24 of rgb, 3 of depth"),
        ({"train": None}, "data is a NoneType"),
    ],
)
def test_what_is_no_data_is_one_error(data: Any, message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        unveil.inspect(data)


def test_random_transforms_are_refused():
    class Random(Labelled):
        def __getitem__(self, index: int) -> Any:
            return torch.rand(3, 8, 8)

    with pytest.raises(ValueError, match="leave out its random transforms"):
        unveil.inspect(Random())


def test_an_item_that_is_no_picture_is_unreadable():
    source = open_source(given.address_of([Image.fromarray(pixels()[0]), "nowhere.png", {"image": 3}]))
    with pytest.raises(Unreadable, match="nowhere"):
        source.image(1)
    with pytest.raises(Unreadable, match="is a int; a path, a Pillow image"):
        source.image(2)


def test_a_run_on_an_array_is_recorded_evaluated_and_embedded(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = pixels()
    run = unveil.pretrain("mae", data=data, out=tmp_path / "run", **TRAIN)
    assert facts(run.path)["data"]["address"] == given.address_of(data)
    labels = [i % 3 for i in range(COUNT)]
    (result,) = unveil.evaluate(run, data=(data, labels), protocol="knn", baselines=False, threads=1, device="cpu")
    assert "test images are among those" in result.card  # known by their pixels
    stored = np.load(unveil.embed(run, data=Labelled(), out=tmp_path / "f.npz", device="cpu"))
    assert stored["labels"].tolist() == labels
    by_files = unveil.load(run, device="cpu")
    batch = torch.stack([by_files.transform(p) for p in data[:2]])
    torch.testing.assert_close(torch.from_numpy(stored["features"][:2]), by_files(batch), atol=1e-5, rtol=1e-4)
    assert len(run.reconstruct()) == 1
    assert unveil.inspect(data).count == COUNT
    capsys.readouterr()


def test_continuing_needs_the_same_data_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    options = {**TRAIN, "out": tmp_path / "run"}
    at_steps(monkeypatch, [1], interrupt)
    with pytest.raises(KeyboardInterrupt):
        unveil.pretrain("mae", data=pixels(), **options)
    assert "unveil.pretrain('mae', data=the same data" in capsys.readouterr().err
    with pytest.raises(ValueError, match="are others"):
        unveil.pretrain("mae", data=pixels(1), **options)
    monkeypatch.setattr(given, "_known", {})  # another process
    with pytest.raises(ValueError, match="this process does not have them: give the same data again"):
        unveil.Run(tmp_path / "run").held_out()
    run = unveil.pretrain("mae", data=pixels(), **options)
    assert facts(run.path)["status"] == "finished"
    assert facts(run.path)["last_checkpoint"] == 2


def test_several_modalities_come_as_a_mapping(tmp_path: Path):
    depth = np.random.default_rng(0).random((COUNT, 20, 20), np.float32) + 1
    maps: dict[str, Any] = {"rgb": pixels(), "depth": [None, *depth[1:]]}
    assert [m.count for m in unveil.inspect(maps).maps] == [COUNT, COUNT - 1]  # type: ignore[union-attr]
    options = {**TRAIN, "epochs": 0.4}
    names = ("rgb", "depth")
    run = unveil.pretrain("multimae", data=maps, modalities=names, out=tmp_path / "run", visible=0.4, **options)
    assert [d.name for d in run.declared] == ["rgb", "depth"]

    class Samples(Labelled):
        def __getitem__(self, index: int) -> Any:
            return {"rgb": Image.fromarray(pixels()[index]), "depth": depth[index], "label": index % 3}

    item = unveil.data.open(Samples(), modalities=("rgb", "depth"), image_size=16)[4]
    assert {name: tuple(getattr(value, "shape", ())) for name, value in item.items()} == {
        "rgb": (3, 16, 16), "depth": (1, 16, 16), "label": (),
    }  # fmt: skip
    assert item["label"] == 1
    with pytest.raises(ValueError, match="have no depth: there are images alone"):
        unveil.inspect(pixels(), modalities=("rgb", "depth"))


def test_an_address_is_a_torch_data_set(tmp_path: Path):
    write_images(tmp_path, 6)
    data = unveil.data.open(tmp_path, image_size=16)
    assert len(data) == 6
    assert data.classes == ["even", "odd"]
    images, labels = next(iter(DataLoader(data, batch_size=6, num_workers=1, multiprocessing_context="fork")))
    assert images.shape == (6, 3, 16, 16)
    assert 0 <= images.min() <= images.max() <= 1
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[-1][0], images[-1])
    assert "6 images, 16 x 16 pixels" in repr(copy)
    plain = unveil.data.open(tmp_path, transform=lambda image: image.shape, channels=1)
    assert plain[0] == ((1, 32, 32), 0)
    with pytest.raises(IndexError):
        plain[6]
    with pytest.raises(AttributeError, match="there are ImageDataset, open"):
        _ = unveil.data.opened


def test_a_hugging_face_data_set_is_read_as_its_table_is(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [Image.fromarray(p) for p in pixels()], "label": [i % 3 for i in range(COUNT)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abc"))})
    whole = datasets.Dataset.from_dict(rows, features=features)
    source = open_source(given.address_of(whole))
    assert source.classes == list("abc")
    assert torch.equal(source.image(5), torch.from_numpy(pixels()[5]).permute(2, 0, 1))
    turned = open_source(given.address_of(whole.select(range(COUNT - 1, -1, -1))))
    assert torch.equal(turned.image(0), source.image(COUNT - 1))
    assert given.address_of(whole) != given.address_of(whole.select(range(5)))
    with pytest.raises(ValueError, match="give one of them"):
        unveil.inspect(datasets.DatasetDict({"train": whole}))
    run = unveil.pretrain("mae", data=whole, out=tmp_path / "run", **{**TRAIN, "epochs": 0.4})
    assert run.config.data.count == COUNT
