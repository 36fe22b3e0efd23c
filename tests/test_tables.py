"""Tables of images and of several maps: Parquet, data sets of the Hugging Face Hub, Lance; the same rows from each."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import unveil
from unveil.cli import main
from unveil.data.aligned_folders import open_images, open_samples
from unveil.data.hub_datasets import HubAddress
from unveil.data.listing import split_addresses
from unveil.data.loader import Loader
from unveil.data.modality_config import declare
from unveil.data.sources import open_source
from unveil.data.transforms import View

N = 12
NAMES = ["cat", "dog", "eel"]


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (16, 20, 3), np.uint8)


def metres(number: int) -> np.ndarray:
    return np.random.default_rng(100 + number).integers(500, 4000, (16, 20)).astype(np.uint16)  # millimetres


def columns(n: int = N, start: int = 0) -> dict[str, list]:
    rows = range(start, start + n)
    depth = [None if i == 5 else {"bytes": png(metres(i)), "path": None} for i in rows]
    return {
        "photo": [{"bytes": png(picture(i)), "path": f"{i}.png"} for i in rows],
        "depth": depth,
        "label": [i % 3 for i in rows],
    }


CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema([("photo", CELL), ("depth", CELL), ("label", pa.int64())])


def write_parquet(folder: Path) -> str:
    table = pa.table(columns(), SCHEMA)
    pq.write_table(table, folder / "rows.parquet", row_group_size=5)
    return str(folder / "rows.parquet")


def write_lance(folder: Path) -> str:
    lance = pytest.importorskip("lance", reason="pylance is not installed")
    values = columns()
    table = pa.table(
        {n: [c and c["bytes"] for c in values[n]] for n in ("photo", "depth")} | {"label": values["label"]}
    )
    lance.write_dataset(table, folder / "rows.lance", max_rows_per_file=5)
    return str(folder / "rows.lance")


def hub_dataset(n: int = N, start: int = 0):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    kinds = {"photo": datasets.Image(), "depth": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    return datasets.Dataset.from_dict(columns(n, start), features=datasets.Features(kinds))


def write_repository(folder: Path) -> Path:
    """A data set as it lies on the Hub: Parquet files in `data`, with the features in their metadata."""
    root = folder / "owner" / "animals"
    (root / "data").mkdir(parents=True)
    hub_dataset().to_parquet(str(root / "data" / "train-00000-of-00001.parquet"))
    hub_dataset(6, 50).to_parquet(str(root / "data" / "validation-00000-of-00001.parquet"))
    return root


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The cache of the datasets library, empty, and no network."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return tmp_path / "cache"


def write_saved(folder: Path) -> str:
    hub_dataset().save_to_disk(str(folder / "saved"))
    return f"hf:{folder / 'saved'}"


WRITERS = {"parquet": write_parquet, "lance": write_lance, "hub": write_saved}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_table_gives_the_same_images_in_any_order(tmp_path, kind):
    address = WRITERS[kind](tmp_path)
    with pytest.raises(ValueError, match="--image-column photo or --image-column depth"):
        open_source(address)
    source = open_source(f"{address}:image=photo")
    assert (len(source), source.channels) == (N, 3)
    for i in (7, 0, 11, 7):
        assert torch.equal(source.image(i), torch.from_numpy(picture(i)).permute(2, 0, 1))
    assert source.labels == [i % 3 for i in range(N)]
    assert source.classes == (NAMES if kind == "hub" else None)
    assert len({source.name(i) for i in range(N)}) == len({source.location(i) for i in range(N)}) == N
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(again.image(3), source.image(3))
    batches = [
        torch.cat([made.maps["rgb"] for made in Loader(one, View((8, 8)), 4, 1, workers=w).batches(2)])
        for one, w in ((source, 1), (again, 3))
    ]
    assert torch.equal(*batches)


@pytest.mark.parametrize("kind", WRITERS)
def test_columns_of_a_table_are_modalities(tmp_path, kind):
    declared = declare(("rgb", "depth"))
    source = open_samples(WRITERS[kind](tmp_path), declared)
    assert source.columns == {"rgb": "photo", "depth": "depth"}
    assert [i for i in range(N) if source.has(i) != (True, True)] == [5]
    assert source.has(5) == (True, False)
    sample = source.sample(2)
    assert torch.equal(sample.maps["rgb"], torch.from_numpy(picture(2)).permute(2, 0, 1))
    assert torch.allclose(sample.maps["depth"][0], torch.from_numpy(metres(2) / 1000).float())
    first = open_images(source.address, 3, declared)
    assert torch.equal(first.image(4), source.image(4))
    batch = next(Loader(source, View((8, 8)), N, 0, modality=[d.modality for d in declared]).batches(0))
    assert int(batch.present["depth"].sum()) == N - 1
    with pytest.raises(ValueError, match=r"no column of 'semseg'.*files = 'COLUMN'"):
        open_samples(source.address, declare(("rgb", "semseg")))


def test_a_declared_column_and_one_named_with_the_address(tmp_path):
    address = write_parquet(tmp_path)
    (tmp_path / "range.toml").write_text('[range]\nchannels = 1\nfiles = "depth"\nscale = 0.001\n')
    source = open_samples(f"{address}:image=photo", declare(("rgb", str(tmp_path / "range.toml"))))
    assert source.columns == {"rgb": "photo", "range": "depth"}
    assert source.labels == [i % 3 for i in range(N)]
    masked = (replace(source.declared[1], validity="mask"),)
    with pytest.raises(ValueError, match="declares files of its valid pixels"):
        open_samples(address, masked)


def test_a_damaged_map_names_its_row_and_column(tmp_path):
    values = columns()
    values["depth"][3]["bytes"] = b"nothing"
    pq.write_table(pa.table(values, SCHEMA), tmp_path / "a.parquet")
    facts = unveil.inspect(str(tmp_path / "a.parquet"), modalities=("rgb", "depth"))
    assert list(facts.unreadable) == ["a.parquet[3]"]
    assert "a.parquet[3].depth" in facts.unreadable["a.parquet[3]"]
    assert facts.orphans == {"depth": ["a.parquet[5]"]}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf:owner/name", ("owner/name", None, None, None)),
        ("hf:owner/name/train", ("owner/name", None, None, "train")),
        ("hf:owner/name:big@v1.2/test[:10%]", ("owner/name", "big", "v1.2", "test[:10%]")),
        ("hf:owner/name@refs/pr/7/train", ("owner/name", None, "refs/pr/7", "train")),
        ("hf:owner/name:big/val", ("owner/name", "big", None, "val")),
        ("hf:name", ("name", None, None, None)),
        ("hf:nowhere/owner/name/train", ("nowhere/owner/name", None, None, "train")),
    ],
)
def test_the_parts_of_an_address(text, parts):
    address = HubAddress.parse(text)
    assert (address.name, address.config, address.revision, address.split) == parts
    if address.split is None:
        assert address.of("train") == f"{text}/train"
    else:
        assert address.of("x") == text.removesuffix(address.split) + "x"


def test_an_address_without_a_name_is_refused():
    with pytest.raises(ValueError, match="write hf:OWNER/NAME"):
        HubAddress.parse("hf:")


def test_splits_of_a_repository_are_told_apart(tmp_path, hub):
    root = write_repository(tmp_path)
    with pytest.raises(ValueError, match=r"holds the splits train, validation.*Name one: hf:\S+/train or") as error:
        open_source(f"hf:{root}:image=photo")
    assert f"hf:{root}/validation" in str(error.value)
    splits = split_addresses(f"hf:{root}:image=photo")
    assert splits == {"train": f"hf:{root}/train:image=photo", "val": f"hf:{root}/validation:image=photo"}
    train, val = (open_source(splits[s]) for s in ("train", "val"))
    assert (len(train), len(val)) == (N, 6)
    assert (train.name(3), val.classes) == ("train[3]", NAMES)
    assert torch.equal(val.image(0), torch.from_numpy(picture(50)).permute(2, 0, 1))
    with pytest.raises(ValueError, match="there is no split 'tset'"):
        open_source(f"hf:{root}/tset:image=photo")
    assert split_addresses(f"hf:{root}/train") == {}


def test_a_data_set_by_name_comes_from_the_cache_without_a_network(tmp_path, hub):
    """As the library lays a downloaded data set down: CACHE/owner___name/CONFIG/VERSION/HASH/*.arrow."""
    import datasets

    root = write_repository(tmp_path)
    datasets.load_dataset(str(root))
    (made,) = (hub / "animals" / "default" / "0.0.0").glob("*/dataset_info.json")
    target = hub / "owner___animals" / "default" / "0.0.0" / "0123456789abcdef0123456789abcdef01234567"
    target.parent.mkdir(parents=True)
    shutil.move(made.parent, target)
    shutil.rmtree(root)
    source = open_source("hf:owner/animals/train:image=photo")
    assert (len(source), source.classes, source.location(3)) == (N, NAMES, "hf:owner/animals/train[3]")
    assert torch.equal(source.image(2), torch.from_numpy(picture(2)).permute(2, 0, 1))
    with pytest.raises(ValueError, match=r"cannot be loaded: .*nobody/nothing.* in the cache of the datasets library"):
        open_source("hf:nobody/nothing")


def test_without_its_library_a_table_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "lance", None)
    assert main(["inspect", "hf:owner/name"]) == 2
    assert "pip install 'unveil[hf]'" in capsys.readouterr().err
    (tmp_path / "a.lance").mkdir()
    assert main(["inspect", str(tmp_path / "a.lance")]) == 2
    assert "pip install 'unveil[lance]'" in capsys.readouterr().err


def test_a_folder_that_is_no_lance_data_set_is_refused(tmp_path):
    pytest.importorskip("lance", reason="pylance is not installed")
    (tmp_path / "a.lance").mkdir()
    with pytest.raises(ValueError, match="is no Lance data set, or a damaged one"):
        open_source(tmp_path / "a.lance")


def test_blobs_of_lance_are_read(tmp_path):
    lance = pytest.importorskip("lance", reason="pylance is not installed")
    column = pa.field("image", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    rows = {"image": [png(picture(i)) for i in range(4)], "label": ["a", "b", "a", "b"]}
    table = pa.table(rows, pa.schema([column, ("label", pa.string())]))
    lance.write_dataset(table, tmp_path / "a.lance", data_storage_version="2.1")
    source = open_source(tmp_path / "a.lance")
    assert (source.classes, source.labels) == (["a", "b"], [0, 1, 0, 1])
    assert torch.equal(source.image(3), torch.from_numpy(picture(3)).permute(2, 0, 1))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_table_of_two_modalities_is_trained_on_and_embedded(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    address = WRITERS[kind](tmp_path)
    words = "--size nano --patch 8 --image-size 16 --batch-size 4 --epochs 1 --modalities rgb depth --precision float32"
    assert main(["pretrain", "multimae", "--data", address, "--out", "run", *words.split(), "--visible", "0.5"]) == 0
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert stored["data"]["count"] == N
    assert main(["embed", "run", "--data", address, "--out", "features.npz"]) == 0
    assert np.load("features.npz")["features"].shape[0] == N
