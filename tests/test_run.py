"""`unveil.Run`: a stored run, opened; what it held out, however its data are written; how often its files are read."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from test_old_runs import OLD
from tiny_runs import write_images
from unveil import Run
from unveil.data import folder_source
from unveil.data.modality_config import declare
from unveil.data.sources import open_source
from unveil.data.splits import names_digest
from unveil.modeling.encoder import SIZES
from unveil.runs import checkpoint_state, regular_files

pytestmark = pytest.mark.filterwarnings("ignore:unveil:FutureWarning")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stored runs of release 0.1 beside the images that they were trained on, in the working directory."""
    monkeypatch.setitem(SIZES, "nano", (8, 2, 2))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    write_images(tmp_path / "images")
    return tmp_path


def names(source: Any) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def test_an_opened_run_says_what_it_is(runs: Path):
    run = Run.open("mae")
    text = repr(run)
    for word in ("mae", "finished", "step 12", "3 epochs", "40 images of images (2 held out)", "size=nano", "patch=8"):
        assert word in text
    assert run.config.options["image_size"] == (32,)
    assert [m.name for m in run.modalities] == ["rgb"]
    assert [d.name for d in Run.open("multimae").declared] == ["rgb", "depth", "semseg"]


def test_models_and_encoders_have_the_weights_of_their_epoch(runs: Path):
    run = Run.open("mae")
    assert [(w.step, w.epoch) for w in run.checkpoints()][-1] == (12, 3.0)
    epochs = {w.epoch for w in run.checkpoints()}
    assert {1.0, 2.0, 3.0} <= epochs
    newest, first, begun = run.model(), run.model(epoch=1), run.model(trained=False)
    for model, encoder in ((newest, run.encoder()), (first, run.encoder(epoch=1)), (begun, run.encoder(trained=False))):
        for name, tensor in encoder.encoder.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[f"encoder.{name}"])
    heads = [m.encoder.blocks[0].mlp[0].weight for m in (newest, first, begun)]
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[1], heads[2])
    with pytest.raises(ValueError, match=r"no weights of epoch 1\.5: there are epochs 1, 2, 3"):
        run.model(epoch=1.5)
    with pytest.raises(ValueError, match="those of stage 1, not 0"):
        Run.open("cmtmae").model(stage=0)
    assert Run.open("cmtmae").model(stage=0, trained=False)


def test_train_images_and_held_out_ones_are_all(runs: Path):
    run = Run.open("mae")
    train, held_out = names(run.train_images()), names(run.held_out())
    assert len(train) == 38
    assert len(held_out) == 2
    assert sorted(train + held_out) == names(open_source("images"))


SPELLINGS = ("images", "images/", "./images", "images/../images", "HOME/images", "~/images", "link", "linked/images/")


@pytest.fixture
def spelled(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runs beside their images, which have links to them too."""
    monkeypatch.setenv("HOME", str(runs))
    (runs / "link").symlink_to("images")
    (runs / "linked").symlink_to(runs)
    return runs


@pytest.fixture
def read_images(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the images that are read."""
    names: set[str] = set()
    read_bytes = folder_source.read_bytes

    def recorded(path: Path, name: str) -> bytes:
        names.add(name)
        return read_bytes(path, name)

    monkeypatch.setattr(folder_source, "read_bytes", recorded)
    return names


VERBS: dict[str, Any] = {
    "look": lambda data: unveil.look("mae", data=data, device="cpu"),
    "attention": lambda data: unveil.analyze_attention("mae", data=data, device="cpu"),
    "blocks": lambda data: unveil.analyze_blocks("mae", data=data, device="cpu"),
    "masks": lambda data: unveil.analyze_masks("mae", data=data, device="cpu"),
    "features": lambda data: unveil.analyze_features("mae", "mae", data=data, device="cpu"),
    "reconstruct": lambda data: unveil.evaluate("mae", data=data, protocol=("reconstruct",), baselines=False),
    "heldout": lambda data: unveil.evaluate("mae", data=data, protocol=("heldout",), baselines=False),
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_measures_on_training_images_however_their_address_is_written(
    spelled: Path, read_images: set[str], verb: str
):
    held_out = set(names(Run.open("mae").held_out()))
    for data in SPELLINGS:
        read_images.clear()
        VERBS[verb](data.replace("HOME", str(spelled)))
        assert read_images == held_out, data


@pytest.mark.parametrize("data", SPELLINGS)
def test_one_function_decides_what_was_held_out(spelled: Path, data: str):
    run, data = Run.open("mae"), data.replace("HOME", str(spelled))
    assert names(run.held_out(data)) == names(run.held_out())
    assert names(run.held_out(open_source(data))) == names(run.held_out())


def test_images_that_have_moved_are_known_by_their_names(runs: Path):
    held_out = names(Run.open("mae").held_out())
    (runs / "images").rename(runs / "photos")
    assert names(Run.open("mae").held_out("photos")) == held_out
    with pytest.raises(FileNotFoundError, match="no data at 'images'"):
        Run.open("mae").held_out()


def test_parts_of_the_data_and_folders_around_them_overlap(runs: Path):
    run = Run.open("mae")
    held_out, trained = set(names(run.held_out())), set(names(run.train_images()))
    write_images(runs / "data" / "others", 6)
    (runs / "images").rename(runs / "data" / "images")
    (runs / "images").symlink_to(runs / "data" / "images")
    around = set(names(run.held_out("data")))
    assert around == {f"images/{name}" for name in held_out} | {
        f"others/{n}" for n in names(open_source("data/others"))
    }
    for half in ("even", "odd"):
        rest = {name for name in held_out if name.startswith(half)}
        if rest:
            assert {f"{half}/{name}" for name in names(run.held_out(f"images/{half}"))} == rest
        else:
            with pytest.raises(ValueError, match=f"was trained on all 20 samples of images/{half}"):
                run.held_out(f"images/{half}")
    assert len(names(run.split("data")[0])) == len(trained)


def test_data_that_have_changed_are_told(runs: Path, capsys: pytest.CaptureFixture[str]):
    write_images(runs / "images", 44)
    Run.open("mae").held_out()
    assert "images has changed since mae was trained on 40 samples of it (now 44)" in capsys.readouterr().err


@pytest.mark.parametrize("data", ["scenes:seed=0,count=40", "scenes:size=64,count=40", "scenes: count = 40"])
def test_rendered_scenes_are_the_same_in_any_order_of_their_keys(runs: Path, data: str):
    run = Run.open("multimae")
    held_out = names(run.held_out())
    assert len(held_out) == 2
    assert names(run.held_out(data)) == held_out


def test_more_scenes_of_the_same_seed_leave_out_those_that_were_trained_on(runs: Path):
    run = Run.open("multimae")
    more, others = run.held_out("scenes:count=50,size=32"), run.held_out("scenes:count=5,seed=1")
    assert len(more) == 12
    assert not set(names(more)) & set(names(run.train_images()))
    assert len(others) == 5


@pytest.mark.parametrize("data", ["shards", "shards/*.parquet", "./shards/train-*.parquet", "MOVED"])
def test_parquet_files_are_the_same_by_folder_and_by_pattern(runs: Path, data: str):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    (runs / "shards").mkdir()
    files = sorted((runs / "images").rglob("*.png"))
    for shard in range(2):
        rows = [{"bytes": file.read_bytes(), "path": None} for file in files[20 * shard : 20 * shard + 20]]
        pq.write_table(pa.table({"image": rows}), runs / f"shards/train-{shard:05}-of-00002.parquet")
    metadata = json.loads((runs / "mae/run.json").read_text())
    metadata["data"] |= {"address": "shards/*", "names": names_digest(open_source("shards/*"))}
    (runs / "mae/run.json").write_text(json.dumps(metadata))
    held_out = names(Run.open("mae").held_out())
    if data == "MOVED":
        (runs / "shards").rename(runs / "elsewhere")
        data = "elsewhere"
    assert len(held_out) == 2
    assert names(Run.open("mae").held_out(data)) == held_out


def test_labels_beside_the_images_change_nothing_of_what_was_held_out(runs: Path):
    """More maps than the run reads, some of samples that have no image, move no sample from one side to the other."""
    shutil.move(runs / "images", runs / "root" / "rgb")
    (runs / "images").symlink_to("root/rgb")
    for name in [*names(open_source("images"))[::2], "another.png"]:
        place = runs / "root/semseg" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(place)
    run = Run.open("mae")
    held_out = {name.removesuffix(".png") for name in names(run.held_out())}
    labelled = set(names(run.held_out("root", declare(("semseg",)))))
    assert labelled == held_out | {"another"}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file is opened for reading by Python, by `Path` or as a regular file."""
    counts: Counter[str] = Counter()
    plain, regular = pathlib.Path.open, regular_files.open_regular

    def counted(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "r" in mode:
            counts[os.path.relpath(self)] += 1
        return plain(self, mode, *args, **kwargs)

    def counted_regular(path: Path, *args: Any, **kwargs: Any) -> int:
        counts[os.path.relpath(path)] += 1
        return regular(path, *args, **kwargs)

    monkeypatch.setattr(pathlib.Path, "open", counted)
    for module in (regular_files, checkpoint_state):
        monkeypatch.setattr(module, "open_regular", counted_regular)
    return counts


ALL: dict[str, Any] = {
    **VERBS,
    "load": lambda data: unveil.load("mae", device="cpu"),
    "load an epoch": lambda data: unveil.load("mae", device="cpu", at_epoch=1),
    "embed": lambda data: unveil.embed("mae", data=data, device="cpu"),
    "knn": lambda data: unveil.evaluate("mae", data=data, protocol=("knn",), device="cpu"),
    "reconstruct an epoch": lambda data: unveil.evaluate("mae", data=data, protocol=("reconstruct",), at_epoch=1),
    "masks untrained": lambda data: unveil.analyze_masks("mae", data=data, untrained=True, device="cpu"),
}


@pytest.mark.parametrize("verb", [verb for verb in ALL if verb != "features"])
def test_each_file_of_a_run_is_read_once(runs: Path, reads: Counter[str], verb: str):
    ALL[verb]("images")
    own = {file: count for file, count in reads.items() if file.startswith("mae/") and "eval" not in file}
    assert own["mae/run.json"] == 1
    assert any(file.endswith("model.safetensors") for file in own) == (verb != "masks untrained")
    assert set(own.values()) == {1}, own


def test_a_run_that_is_used_again_is_not_read_again(runs: Path, reads: Counter[str]):
    run = Run.open("mae")
    for _ in range(2):
        run.model()
        run.encoder()
        run.recipe()
        run.checkpoints()
        run.held_out()
    assert {count for file, count in reads.items() if file.startswith("mae/")} == {1}, reads
