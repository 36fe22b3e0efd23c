"""Studies that measure a label per pixel: on which images, and what is an error before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unveil.experiments.study import Arm, Scale, Setting, Study
from unveil.experiments.study.aggregate import read_outcome
from unveil.experiments.study.command import check_maps, render_settings, with_data, with_overrides
from unveil.experiments.study.jobs import Job, expand
from unveil.experiments.study.registry import load_study
from unveil.experiments.study.worker import perform


def street(root: Path) -> Path:
    """Labelled images in the folders of CamVid."""
    for split, count in (("train", 6), ("test", 2)):
        for i in range(count):
            for kind in ("rgb", "semseg"):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                ids = np.kron([[0, 1], [2, 3]], np.ones((12, 16))).astype(np.uint8)
                pixels = ids if kind == "semseg" else np.repeat(60 * ids[..., None], 3, 2)
                Image.fromarray(pixels).save(root / split / kind / f"{i}.png")
    return root


def test_the_weight_of_the_student_is_measured_on_pixels_too_at_every_scale(tmp_path: Path):
    planned = load_study("cmtmae-student-weight")
    for scale, at in planned.scales.items():
        given = with_data(planned, scale, data=[f"{s.name}=x" for s in at.settings if s.data is None])
        for job in expand(given, scale, tmp_path):
            tasks = {name: e for e in job.evaluate for name in e["protocol"]}
            assert {"knn", "segment"} <= set(tasks) or {"finetune", "segment"} <= set(tasks)
            place = Path(tasks["segment"]["data"])
            assert tasks["segment"]["test_data"] is None
            assert (scale == "paper") == (tasks["segment"].get("preset") == "mae")
            if scale != "paper":
                assert place.parent == tmp_path / "scenes", "all maps of scenes"
                assert place.name.endswith("seed-1"), "no run is trained on them"
    seed, *others = expand(with_data(planned, "gpu", dense=[f"scenes base={tmp_path}"]), "gpu", tmp_path)
    assert next(e for e in seed.evaluate if e["protocol"] == ["segment"])["data"] == str(tmp_path)
    assert len(others) > 1


@pytest.fixture(scope="module")
def run_of_smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Job]:
    """The first run of the study, with its measurements."""
    folder, planned = tmp_path_factory.mktemp("study"), load_study("cmtmae-student-weight")
    render_settings(planned, "smoke", folder)
    job = expand(planned, "smoke", folder)[0]
    perform(folder / "runs" / job.name, {**job.to_dict(), "device": "cpu"})
    return folder, job


def test_a_run_is_measured_on_the_pixels_of_scenes(run_of_smoke: tuple[Path, Job]):
    folder, job = run_of_smoke
    metrics = read_outcome(job, folder)["metrics"]
    assert 0 <= metrics["segment pixel accuracy"] <= 1
    assert {"segment miou", "segment mean accuracy", "knn accuracy"} <= metrics.keys()


def measured_on(address: Path, run_of_smoke: tuple[Path, Job]) -> dict[str, Any]:
    """The segmentation of other images with the same run, which is not trained again."""
    folder, before = run_of_smoke
    planned = with_data(
        with_overrides(load_study("cmtmae-student-weight"), "smoke", limit=8), "smoke", dense=[f"{address}"]
    )
    job = expand(planned, "smoke", folder)[0]
    assert job.name == before.name
    run = folder / "runs" / job.name
    is_trained = (run / "metrics.jsonl").stat().st_mtime_ns
    perform(run, {**job.to_dict(), "device": "cpu"})
    assert (run / "metrics.jsonl").stat().st_mtime_ns == is_trained
    return json.loads((run / "eval" / "segment.json").read_text())


def test_photographs_with_labels_of_pixels_may_be_given(tmp_path: Path, run_of_smoke: tuple[Path, Job]):
    photographs = street(tmp_path / "street")
    result = measured_on(photographs, run_of_smoke)
    assert result["data"] == str(photographs)
    assert (result["settings"]["train_images"], result["settings"]["test_images"]) == (6, 2)


def test_camvid_may_be_given(data_folder: Path, run_of_smoke: tuple[Path, Job]):
    result = measured_on(data_folder / "camvid", run_of_smoke)
    assert len(result["settings"]["classes"]) == 11
    assert 0 <= result["metrics"]["miou"] <= 1


def test_images_without_labels_of_pixels_are_an_error_before_training(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    arms = (Arm("a", "mae"), Arm("b", "crossmae"))
    at = Scale((Setting("x", str(tmp_path)),), protocols={"segment": {}}, options={"epochs": 1})
    with pytest.raises(ValueError, match=r"label per pixel: .*no known layout.*--dense x=FOLDER"):
        check_maps(Study("?", arms, "a", {"cpu": at}), "cpu")
    fine = Scale((Setting("x", str(tmp_path), dense=str(street(tmp_path / "street"))),), protocols={"segment": {}})
    check_maps(Study("?", arms, "a", {"cpu": fine}), "cpu")
    unasked = Scale((Setting("x", str(tmp_path)),), protocols={"knn": {}})
    check_maps(Study("?", arms, "a", {"cpu": unasked}), "cpu")
