"""What Python code passes: paths, NumPy numbers, one value for several, lists; and one clear error for the rest."""

from __future__ import annotations

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
    assert facts(run)["dials"]["image_size"] == [32]
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
