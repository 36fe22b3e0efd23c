"""Golden results: every protocol gives, for stored runs, the result file that it gave before.

`tests/golden/evaluation.json` was written by `python tests/test_golden_evaluation.py`, float32, one thread, on a CPU;
results that came later are in a file of their own, `python tests/test_golden_evaluation.py patches`.
On the processor and torch that wrote it every number has to be equal to the bit; elsewhere the same names have to be
there. A change that moves a number on purpose writes the file anew and says why in its message.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

import ten_images
import unveil
from test_golden_curves import machine, one_thread
from test_vos import write as write_video
from tiny_runs import write_images
from unveil.modeling.encoder import SIZES
from unveil.recipes.run import Run

OLD = Path(__file__).parent / "old_runs"
GOLDEN = Path(__file__).parent / "golden"
LATER = ("patches", "detect", "vos")  # measurements in evaluation-<name>.json
SCENES = {"data": "scenes:count=16,seed=2", "test_data": "scenes:count=6,seed=3"}
FEW = {"epochs": 2, "batch_size": 4}
MEASURED: dict[str, tuple[str, dict[str, Any]]] = {
    "features": ("mae", {"protocol": ("knn", "knn-whitened", "linear", "linear-lbfgs"), "lrs": (0.1, 0.03)}),
    "attentive": ("mae", {"protocol": ("attentive",), "epochs": 3, "pool": "both", "seed": 1}),
    "finetune": ("mae", {"protocol": ("finetune",), **FEW, "ema": 0.9, "mixup": 0.8, "drop_path": 0.2}),
    "few labels, features": ("mae", {"protocol": ("lowshot",), "shots": ("30%", "20"), "draws": 3, "by": "knn"}),
    "few labels, fine-tuned": (
        "mae",
        {"protocol": ("lowshot",), "shots": ("50%",), "draws": 2, "by": "finetune", "epochs": 1, "limit": 30},
    ),
    "transfer": ("mae", {"protocol": ("knn", "transfer"), "to": ("images",), "by": "linear"}),
    "segment": ("multimae", {"protocol": ("segment",), **SCENES, **FEW, "inputs": ("rgb", "depth")}),
    "segment, fine-tuned": (
        "mae",
        {"protocol": ("segment",), **SCENES, **FEW, "head": "upernet", "frozen": False, "micro_batch": 2, "limit": 8},
    ),
    "depth": ("mae", {"protocol": ("depth",), **SCENES, **FEW, "head": "dpt", "frozen": False}),
    "patches": ("multimae", {"protocol": ("patches",), **SCENES, "inputs": ("rgb", "depth"), "train_patches": 60}),
    "detect": ("mae", {"protocol": ("detect",), "data": "coco", "epochs": 1, "limit": 4, "window": 2}),
    "vos": ("mae", {"protocol": ("vos",), "data": "davis"}),
    "decoders": ("multimae", {"protocol": ("reconstruct", "heldout"), "data": "scenes:count=30,seed=5", "limit": 4}),
}


def measured(name: str) -> list[dict[str, Any]]:
    """The content of the result files, in a folder that holds the runs and the images.

    Without what a clock says, without pictures, and without the weights that were measured: results named none when the
    golden ones were made, and the test holds that entry apart.
    """
    run, options = MEASURED[name]
    float32 = patch.object(torch.cpu, "get_capabilities", dict)  # whatever the processor has in hardware
    with float32, one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        results = unveil.evaluate(run, **{"data": "images", "device": "cpu", **options})
    files = [json.loads((Path(run) / "eval" / f"{result.protocol}.json").read_text()) for result in results]
    apart = ("seconds", "date", "weights", "shown")
    return [{key: value for key, value in file.items() if key not in apart} for file in files]


def prepare(folder: Path) -> None:
    shutil.copytree(OLD, folder, dirs_exist_ok=True)
    write_images(folder / "images")
    ten_images.write(folder / "coco")
    write_video(folder / "davis")
    os.chdir(folder)


def file_of(name: str) -> Path:
    return GOLDEN / (f"evaluation-{name}.json" if name in LATER else "evaluation.json")


def names(content: Any) -> Any:
    return {key: names(value) for key, value in content.items()} if isinstance(content, dict) else None


def numbers(content: Any, place: str = "") -> dict[str, float]:
    """All fractions in a result, by their places."""
    if isinstance(content, float):
        return {place: content}
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return {name: number for key, part in inside for name, number in numbers(part, f"{place}/{key}").items()}


def others(content: Any) -> Any:
    """The result with all fractions alike."""
    if isinstance(content, dict):
        return {key: others(part) for key, part in content.items()}
    return (
        [others(part) for part in content]
        if isinstance(content, list)
        else 0.0
        if isinstance(content, float)
        else content
    )


@pytest.mark.parametrize("name", MEASURED)
def test_results_are_the_golden_ones(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "detect" and not (find_spec("torchvision") and find_spec("faster_coco_eval")):
        pytest.skip("torchvision and faster-coco-eval are not there: pip install 'unveil[detect]'")
    monkeypatch.setitem(SIZES, "nano", (8, 2, 2))
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    golden = json.loads(file_of(name).read_text())
    results, expected = measured(name), golden["results"][name]
    if (
        golden["machine"] == machine()
    ):  # of another generation under the same name, scenes are rendered with 1e-8 between
        assert numbers(results) == pytest.approx(numbers(expected), rel=1e-5, abs=1e-7)
        assert others(results) == others(expected)
    assert [names(result) for result in results] == [names(result) for result in expected]
    run, options = MEASURED[name]
    newest = Run.open(run).checkpoint().state["step"]
    for protocol in options["protocol"]:
        of_weights = json.loads((Path(run) / "eval" / f"{protocol}.json").read_text())["weights"]
        assert of_weights["step"] == newest
        assert of_weights["checksum"]


def test_every_protocol_has_a_golden_result() -> None:
    from unveil.evaluation.registry import protocols

    assert {protocol for _, options in MEASURED.values() for protocol in options["protocol"]} == set(protocols())


if __name__ == "__main__":
    SIZES["nano"] = (8, 2, 2)
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place))
        chosen = sys.argv[1:] or [name for name in MEASURED if name not in LATER]
        content = {name: measured(name) for name in chosen}
    text = json.dumps({"machine": machine(), "results": content}, indent=1) + "\n"
    file_of(chosen[0]).write_text(text)
    sys.exit(0)
