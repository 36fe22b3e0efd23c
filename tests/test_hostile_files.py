"""Files made to reach what they have no business with: other programs, other files, all memory, an endless wait."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import re
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from safetensors.torch import save_file

import unveil
from test_old_runs import OLD
from tiny_runs import write_images
from unveil.cli import main
from unveil.data.decode import Unreadable, decode, read_header
from unveil.data.modality_config import RGB, declare, declared_from
from unveil.data.rasters import open_raster
from unveil.data.read_map import as_npy, read_map
from unveil.data.sources import open_source
from unveil.modeling.encoder import SIZES
from unveil.modeling.public_vits import load_encoder, read_weights, torchscript
from unveil.reporting.markup import picture

pytestmark = pytest.mark.filterwarnings("ignore:unveil:FutureWarning")
rng = np.random.default_rng(0)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%pipe%touch x) (w) file\n%%EOF\n"


@pytest.fixture(autouse=True)
def nobody_waits() -> Iterator[None]:
    """A test that waits for a pipe ends."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waited for ever"))
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stored run beside the images that it was trained on, in the working directory."""
    monkeypatch.setitem(SIZES, "nano", (8, 2, 2))
    place = tmp_path / "place"
    shutil.copytree(OLD / "mae", place / "mae")
    write_images(place / "images")
    monkeypatch.chdir(place)
    return place


def test_no_picture_starts_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    for read in (decode, read_header, lambda data: read_map(data, RGB)):
        with pytest.raises(Unreadable, match="not an image in a format that can be read"):
            read(EPS)
    (tmp_path / "a.png").write_bytes(EPS)
    with pytest.raises(Unreadable):
        open_source(tmp_path).image(0)
    assert "no picture" in picture(tmp_path / "a.png", "a")


def test_a_raster_names_no_other_file(tmp_path: Path):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(tmp_path / "secret.tif", "w", driver="GTiff", width=8, height=8, count=3, dtype="uint8") as file:
        file.write(rng.integers(0, 256, (3, 8, 8), np.uint8))
    band = '<VRTRasterBand dataType="Byte" band="{0}"><SimpleSource><SourceFilename>{1}</SourceFilename>'
    band += "<SourceBand>{0}</SourceBand></SimpleSource></VRTRasterBand>"
    bands = "".join(band.format(n, tmp_path / "secret.tif") for n in (1, 2, 3))
    text = f'<VRTDataset rasterXSize="8" rasterYSize="8">{bands}</VRTDataset>'
    for name in ("a.tif", "a.jp2"):
        (tmp_path / name).write_text(text)
        with rasterio.open(tmp_path / name) as file:  # as GDAL by itself would
            assert file.read().any()
        with pytest.raises(Unreadable):
            open_raster(tmp_path / name, name, RGB)
    assert open_raster(tmp_path / "secret.tif", "s", RGB).read((0, 0, 8, 8)).values.any()


@pytest.mark.parametrize("way", ["link", "soft", "stored", "virtual"])
def test_an_hdf5_file_names_no_other_file(way: str, tmp_path: Path):
    h5py = pytest.importorskip("h5py")
    numbers = np.arange(64, dtype=np.uint8).reshape(8, 8)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["dataset"] = numbers
    (tmp_path / "secret.txt").write_bytes(numbers.tobytes())
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        if way in ("link", "soft"):
            file["dataset" if way == "link" else "other"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/dataset")
        if way == "soft":
            file["dataset"] = h5py.SoftLink("/other")
        elif way == "stored":
            outside = [(str(tmp_path / "secret.txt"), 0, 64)]
            file.create_dataset("dataset", (8, 8), np.uint8, external=outside)
        elif way == "virtual":
            layout = h5py.VirtualLayout((8, 8), np.uint8)
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "dataset", (8, 8))
            file.create_virtual_dataset("dataset", layout)
    with h5py.File(tmp_path / "a.hdf5") as file:  # as HDF5 by itself would
        assert np.array_equal(file["dataset"], numbers)
    with pytest.raises(Unreadable, match=r"not followed|not read"):
        as_npy(tmp_path, "a.hdf5")
    shutil.copy(tmp_path / "secret.h5", tmp_path / "b.hdf5")
    assert np.array_equal(np.load(io.BytesIO(as_npy(tmp_path, "b.hdf5"))), numbers)


@pytest.mark.parametrize("path", ["../secret", "/etc", "a/../../b", "C:\\x", "..\\x", "\\\\host\\x"])
def test_a_declared_modality_lies_in_the_folder_of_the_data(path: str, tmp_path: Path):
    file = tmp_path / "maps.toml"
    file.write_text(f"[thermal]\nfiles = '{path}'\n")
    with pytest.raises(ValueError, match="inside that of the data"):
        declare([str(file)])
    file.write_text(f"[thermal]\n[mask]\nkind = 'validity'\nof = 'thermal'\nfiles = '{path}'\n")
    with pytest.raises(ValueError, match="inside that of the data"):
        declare([str(file)])
    with pytest.raises(ValueError, match="inside that of the data"):
        declared_from({"modality": {"name": "depth", "channels": 1, "mean": [0.0], "std": [1.0]}, "files": path})


@pytest.mark.parametrize("url", ["../secret.tar", "{0}/secret.tar", "https://host/secret.tar"])
def test_the_index_of_a_pack_names_its_own_shards(url: str, tmp_path: Path):
    write_images(tmp_path / "images", 4)
    unveil.pack(str(tmp_path / "images"), out=str(tmp_path / "pack"))
    assert open_source(tmp_path / "pack").image(0).shape[0] == 3
    index = next((tmp_path / "pack").rglob("index.json"))
    content = json.loads(index.read_text())
    shutil.move(index.parent / content["shardlist"][0]["url"], tmp_path / "secret.tar")
    content["shardlist"][0]["url"] = url.format(tmp_path)
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="which does not lie in it"):
        open_source(index.parent)


@pytest.mark.parametrize("named", ["../secret.safetensors", "{0}/secret.safetensors"])
def test_the_index_of_weights_names_files_of_its_folder(named: str, tmp_path: Path):
    (tmp_path / "model").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "secret.safetensors")
    index = {"weight_map": {"a": named.format(tmp_path)}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="which is no file of its folder"):
        load_encoder(tmp_path / "model")


@pytest.mark.parametrize("script", [False, True])
def test_weights_that_are_a_bomb_are_not_unpacked(script: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth")["a"].shape == (1 << 20,)
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as stored,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
        if script:
            packed.writestr(f"{stored.namelist()[0].partition('/')[0]}/constants.pkl", b"")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpacked"))
    monkeypatch.setattr(torchscript, "_Attributes", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match=r"unpack to [\d,]+: a bomb\?"):
        read_weights(tmp_path / "b.pth")


def test_a_tensor_of_a_script_has_no_more_numbers_than_there_are():
    make = torchscript.CALLS["torch._utils._rebuild_tensor_v2"]
    assert make(torch.arange(6.0), 0, (2, 3), (3, 1), False, None).shape == (2, 3)
    with pytest.raises(pickle.UnpicklingError, match="has 1 numbers"):
        make(torch.zeros(1), 0, (1 << 20, 1 << 20), (0, 0), False, None)


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "bmp"])
def test_a_sparse_file_is_not_read_into_memory(suffix: str, tmp_path: Path):
    with (tmp_path / f"a.{suffix}").open("wb") as file:
        if suffix == "jpg":
            file.write(b"\xff\xd8\xff")
        file.truncate(1 << 40)
    source = open_source(str(tmp_path / f"*.{suffix}"))
    with pytest.raises(Unreadable, match="are too many to be read at once"):
        source.image(0)


IN_A_RUN: dict[str, Callable[[], int]] = {
    "run.json": lambda: main(["embed", "mae", "--data", "images"]),
    "metrics.jsonl": lambda: main(["report", "mae"]),
    "eval/knn.json": lambda: main(["report", "mae"]),
    "pictures/index.json": lambda: main(["report", "mae"]),
    "analysis/attention.json": lambda: main(["report", "mae"]),
    "outcomes/knn.npz": lambda: main(["report", "mae"]),
    "checkpoints/step-00000012/state.json": lambda: main(["embed", "mae", "--data", "images"]),
    "checkpoints/step-00000012/model.safetensors": lambda: main(["embed", "mae", "--data", "images"]),
    "trained_images.u64": lambda: main(["evaluate", "mae", "--data", "images", "--protocol", "knn"]),
    "recipe.py": lambda: main(["analyze", "attention", "mae"]),
}


@pytest.mark.parametrize("file", IN_A_RUN)
def test_a_pipe_in_a_run_folder_is_not_waited_for(file: str, runs: Path, capsys: pytest.CaptureFixture[str]):
    path = runs / "mae" / file
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert IN_A_RUN[file]() in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_a_report_reads_nothing_outside_of_its_run(runs: Path):
    page = runs / "mae" / "report.html"
    secret = runs / "secret"
    secret.mkdir()
    Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save(secret / "a.png")

    def pictures() -> list[np.ndarray]:
        assert main(["report", "mae"]) == 0
        found = re.findall(r"data:image/\w+;base64,([\w+/=]+)", page.read_text())
        return [np.array(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]

    def has_leaked(shown: list[np.ndarray]) -> bool:
        return any((one == 77).all() for one in shown)

    places = runs / "mae" / "pictures"
    shutil.copy(secret / "a.png", places / "query0.png")
    assert has_leaked(pictures())  # where it lies in the run
    (places / "query0.png").unlink()
    (places / "query0.png").symlink_to(secret / "a.png")
    assert not has_leaked(pictures())
    neighbours = json.loads((places / "neighbours.json").read_text())
    for name in ("../../secret/a.png", str(secret / "a.png")):
        neighbours[0]["query"] = name
        (places / "neighbours.json").write_text(json.dumps(neighbours))
        assert not has_leaked(pictures())
    knn = runs / "mae" / "eval" / "knn.json"
    knn.rename(secret / "knn.json")
    knn.symlink_to(secret / "knn.json")
    count = len(pictures())
    assert "knn.json could not be read: it is a link that leads out of the run folder." in page.read_text()
    shutil.move(places, secret / "pictures")
    places.symlink_to(secret / "pictures")
    assert count > len(pictures()) == 0


def test_results_are_not_written_through_links(runs: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("eval", "analysis"):
        (runs / "theirs" / name / "inner").mkdir(parents=True)
    shutil.rmtree(runs / "mae" / "eval")
    words = {"eval": ["evaluate", "mae", "--data", "images", "--protocol", "knn"], "analysis": ["analyze", "attention"]}
    words["analysis"].append("mae")
    for name, command in words.items():
        (runs / "mae" / name).symlink_to(runs / "theirs" / name)
        assert main(command) == 2
        assert f"{name} is a link that leads out of mae" in capsys.readouterr().err
        assert [p.name for p in (runs / "theirs" / name).iterdir()] == ["inner"]
        assert main([*command, "--trust"]) == 0
        (runs / "mae" / name).unlink()
        (runs / "mae" / name).mkdir()
        (runs / "mae" / name / "epoch-1").symlink_to(runs / "theirs" / name)
        assert main(command) == 2
        (runs / "mae" / name / "epoch-1").unlink()
        assert main(command) == 0


def test_outcomes_that_are_a_bomb_are_left_out(runs: Path, monkeypatch: pytest.MonkeyPatch):
    content = io.BytesIO()
    np.savez_compressed(content, **{"this run\taccuracy": np.zeros(1 << 18, np.float32)})
    (runs / "mae" / "outcomes").mkdir()
    (runs / "mae" / "outcomes" / "knn.npz").write_bytes(content.getvalue())
    assert main(["report", "mae"]) == 0
    assert "knn.npz could not be read" not in (runs / "mae" / "report.html").read_text()
    monkeypatch.setattr("unveil.reporting.outcomes._MOST", 1 << 18)
    assert main(["report", "mae"]) == 0
    assert "knn.npz could not be read: it unpacks to more than" in (runs / "mae" / "report.html").read_text()


@pytest.mark.parametrize("nested", ["[" * 100_000, '{"a":' * 100_000])
def test_what_is_nested_too_deep_is_one_error(nested: str, runs: Path, capsys: pytest.CaptureFixture[str]):
    (runs / "mae" / "run.json").write_text(nested)
    (runs / "maps.toml").write_text(f"a = {nested}")
    (runs / "options.yaml").write_text(f"recipe: mae\ndata: {nested}")
    for words in (
        ["embed", "mae", "--data", "images"],
        ["inspect", "images", "--modalities", "maps.toml"],
        ["pretrain", "--config", "options.yaml"],
    ):
        assert main(words) == 2
        assert [line[:6] for line in capsys.readouterr().err.splitlines()][:1] == ["error:"]
    assert main(["report", "mae"]) == 0


def test_yaml_that_multiplies_is_one_error(runs: Path, capsys: pytest.CaptureFixture[str]):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for one, other in zip("abcdefghij", "bcdefghijk", strict=True):
        lines.append(f"{other}: &{other} [{', '.join([f'*{one}'] * 9)}]")
    for last in ("data: *k", "image_size: *k"):
        (runs / "options.yaml").write_text("\n".join([*lines, "recipe: mae", last]))
        assert main(["pretrain", "--config", "options.yaml"]) == 2
        (runs / "options.yaml").write_text("\n".join(["recipe: mae", *(f"x{line}" for line in lines), last]))
        assert main(["pretrain", "--config", "options.yaml"]) == 2
        assert len(capsys.readouterr().err) < 2000


ODD = "x\x1b]0;title\x07\x1b[2J\x9b1m\nerror: none\u202egnp"


def test_a_name_is_never_a_code_of_the_terminal(runs: Path, capsys: pytest.CaptureFixture[str]):
    """A class, a run, an image and a column are called so, and so is what run.json says."""
    (runs / "mae").rename(runs / ODD)
    (runs / "images" / "odd").rename(runs / "images" / ODD)
    (runs / "images" / "even" / f"{ODD}.png").write_bytes(b"no image")
    content = json.loads((runs / ODD / "run.json").read_text())
    content |= {"recipe": "mae", "unveil": ODD, "status": ODD, "git": {"commit": ODD}, "command": ODD}
    (runs / ODD / "run.json").write_text(json.dumps(content))
    for words in (
        ["inspect", "images"],
        ["evaluate", ODD, "--data", "images", "--protocol", "knn"],
        ["embed", ODD, "--data", "images"],
        ["analyze", "attention", ODD],
        ["report", ODD],
        ["look", ODD, "--data", ODD],
        ["analyze", ODD, ODD],
        ["embed", ODD + ODD, "--data", "images"],
    ):
        main(words)
        out, err = capsys.readouterr()
        for text in (out, err):
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text), words
        assert not any(line.startswith("error: none") for line in err.splitlines()), words
    page = (runs / ODD / "report.html").read_text()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page)
    assert "\\x1b]0;title" in page
