"""What Python code passes: paths, NumPy numbers, one value for several, lists; and one clear error for the rest."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pytest
import torch

import unveil
from tiny_runs import facts, write_images
from unveil.recipes.options import Option, UsageError

SMALL = {"size": "nano", "patch": 8, "epochs": 1, "batch_size": 8, "compile": "off", "workers": 1}


@pytest.mark.parametrize(
    ("kind", "value", "accepted"),
    [
        (str, Path("a/b"), "a/b"),
        (str, PurePosixPath("a/b"), "a/b"),
        (str, torch.device("cuda", 1), "cuda:1"),
        (str | None, None, None),
        (tuple[int, ...], 32, (32,)),
        (tuple[int, ...], [32, 48], (32, 48)),
        (tuple[int, ...], np.array([32, 48]), (32, 48)),
        (tuple[str, ...], "knn", ("knn",)),
        (tuple[str, ...], (Path("a.toml"), "rgb"), ("a.toml", "rgb")),
        (int, np.int64(3), 3),
        (int, 64.0, 64),
        (float, np.float32(0.5), 0.5),
        (float | None, 2, 2),
        (float, torch.tensor(0.25), 0.25),
        (bool, np.bool_(True), True),
        (Literal["a", "b"], "a", "a"),
        (int | tuple[int, ...], 3, 3),
    ],
)
def test_a_value_is_put_into_the_type_of_its_option(kind: Any, value: Any, accepted: Any):
    result = Option("x", kind, None).accept(value)
    assert result == accepted
    assert type(result) is type(accepted)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (int, "32", "x is '32', of type str; a whole number is needed"),
        (int, 0.5, "of type float; a whole number is needed"),
        (int, True, "of type bool; a whole number is needed"),
        (bool, "yes", "True or False is needed"),
        (str, 3, "of type int; a word is needed"),
        (float, {"a": 1}, "of type dict; a number is needed"),
        (tuple[int, ...], ("a",), "a whole number is needed, or several of them"),
    ],
)
def test_a_value_of_another_type_is_one_error(kind: Any, value: Any, message: str):
    with pytest.raises(UsageError, match=message):
        Option("x", kind, None).accept(value)


def test_public_functions_take_what_python_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images = write_images(tmp_path / "images", 24)
    run = unveil.pretrain("mae", data=images, out=tmp_path / "a", image_size=32, **{**SMALL, "epochs": np.int64(1)})
    assert facts(run)["options"]["image_size"] == [32]
    again = unveil.pretrain("mae", data=images, out=tmp_path / "b", init_from=run, image_size=[32], **SMALL)
    scenes = "scenes:count=24,size=32"
    (result,) = unveil.evaluate(
        unveil.Run.open(again), data=scenes, protocol="knn", limit=np.int64(20), baselines=False
    )
    assert result.protocol == "knn"
    assert unveil.embed(unveil.Run.open(again), data=images, out=tmp_path / "f.npz").exists()
    assert unveil.inspect(images, limit=np.int64(5))
    assert unveil.report(str(run)) == run / "report.html"
    assert unveil.report(run).exists()


@pytest.mark.parametrize("wrong", [{"image_size": "32"}, {"data": 3}, {"epochs": "1"}, {"out": ["a"]}])
def test_a_wrong_type_is_refused_before_anything_is_read_or_written(tmp_path: Path, monkeypatch, wrong: dict[str, Any]):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"^{next(iter(wrong))} is "):
        unveil.pretrain("mae", **{"data": "nowhere", "out": "runs/a", **SMALL, **wrong})
    assert not list(tmp_path.iterdir())


USER = """
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, TensorDataset

import unveil


class Mine(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(3, 32, 32)


array, run = np.zeros((3, 32, 32, 3), np.uint8), unveil.Run("runs/a")
reveal_type(unveil.pretrain("mae", data=array, image_size=32, masking="block", epochs=1))
unveil.pretrain(Path("mine.py"), data=Mine(), out=Path("runs/b"), callbacks=[unveil.Callback()])
for data in ("photos", Path("photos"), array, Mine(), TensorDataset(torch.zeros(3, 3, 32, 32)), [array[0]]):
    unveil.inspect(data)
unveil.evaluate(run, data=(array, [0, 1, 0]), protocol="knn", layer=-1)  # a tuple of images and labels
unveil.evaluate("runs/a", data=array, test_data=Path("photos"), protocol=["knn", "linear"], shots=["1", "5"])
unveil.embed(Path("runs/a"), data=Mine(), out=Path("f.npz"), layer=("auto",))
unveil.look(run, data=array, out=Path("a.png"))
unveil.look(recipe="mim", visible=0.3)
unveil.predict(run, data=Mine(), out=Path("predictions"))
unveil.export(run, to="onnx", out=Path("exported"))
unveil.import_checkpoint(Path("w.pth"), out="runs/c", mean=[0.5, 0.5, 0.5], image_size=224)
unveil.pack({"rgb": array, "depth": array[..., 0]}, out=Path("shards"), modalities="rgb")
unveil.analyze_attention(run, data=array, foreground="thing")
unveil.report([run, "runs/b"], out=Path("page.html"))
encoder = unveil.load(run, pool="both")
reveal_type(encoder(torch.zeros(1, 3, 32, 32)))
reveal_type(encoder.attention(torch.zeros(1, 3, 32, 32)))
"""
WRONG = {
    'unveil.pretrain("mae", data="photos", epochs="1")': "pretrain",
    'unveil.pretrain("mae", dta="photos")': "pretrain",
    'unveil.evaluate(3, data="photos")': "evaluate",
    'unveil.evaluate("runs/a", data=3)': "data",
    'unveil.evaluate("runs/a", data="photos", pool="middle")': "pool",
    'unveil.embed("runs/a", data="photos", layer=0.5)': "layer",
    'unveil.export("runs/a", to="tensorflow")': "to",
}


def test_no_public_function_says_that_a_run_data_or_a_path_is_text_alone():
    for name in unveil.__all__:
        if not inspect.isfunction(function := getattr(unveil, name)):
            continue
        for argument, parameter in inspect.signature(function).parameters.items():
            if argument in ("run", "run_a", "run_b", "runs", "data", "test_data", "checkpoint", "address", "out"):
                assert str(parameter.annotation) not in ("str", "str | None"), f"{name}({argument}=)"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is in the extra `dev`")
def test_a_type_checker_knows_what_the_functions_take_and_return(tmp_path: Path):
    (tmp_path / "user.py").write_text(USER)
    calls = [f"unveil_{i}: object = {call}" for i, call in enumerate(WRONG)]
    (tmp_path / "wrong.py").write_text("\n".join(["import unveil", *calls]))
    source = Path(unveil.__file__).parents[1]
    options = ["--cache-dir", "cache", "--follow-imports", "silent"]
    command = [sys.executable, "-m", "mypy", *options, "user.py", "wrong.py"]
    environment = os.environ | {"MYPYPATH": str(source)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    said = [line for line in done.stdout.splitlines() if line.startswith("user.py") and ": error:" in line]
    assert not said, "\n".join(said)
    notes = "\n".join(line for line in done.stdout.splitlines() if "Revealed type" in line)
    assert "commands.run.Run" in notes
    assert notes.count("Tensor") == 2
    for i, argument in enumerate(WRONG.values()):
        found = [line for line in done.stdout.splitlines() if line.startswith(f"wrong.py:{i + 2}:") and "error" in line]
        assert any(f'"{argument}"' in line for line in found), (argument, done.stdout)
