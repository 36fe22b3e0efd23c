"""Golden curves: the losses and gradient norms of 20 updates of every recipe are what they were.

`tests/golden/curves.json` was written by `python tests/test_golden_curves.py`, one thread, float32, on a CPU. On the
processor and torch that wrote it every number has to be equal to the bit; elsewhere, where kernels sum in another
order, to a relative 1e-3. A change that moves a curve on purpose writes the file anew and says why in its message.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import unveil

GOLDEN = Path(__file__).parent / "golden" / "curves.json"
UPDATES = 20
SHARED = {
    "paper": True,
    "device": "cpu",
    "precision": "float32",
    "compile": "off",
    "workers": 1,
    "size": "nano",
    "patch": 8,
    "image_size": (32,),
    "epochs": 5.0,
    "warmup_epochs": 1.0,
    "batch_size": 8,
    "lr": 0.01,
}
DECODER = {"decoder_dim": 32, "decoder_depth": 2, "decoder_heads": 2}
TEACHER = {"teacher": "random"}
SCENES = {"data": "scenes:count=40", "modalities": ("rgb", "depth", "semseg")}
MAPS = {**SCENES, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}
CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    "mae": ("mae", DECODER),
    "crossmae": ("crossmae", DECODER),
    "crossmae, self-attention, softmax blend": (
        "crossmae",
        {**DECODER, "self_attention": True, "blend": "softmax", "num_maps": 3},
    ),
    "simmim": ("simmim", {"mask_unit": 16}),
    "maskfeat": ("maskfeat", {"visible": 0.5}),
    "attmask": ("attmask", DECODER),
    "milan": ("milan", {**DECODER, **TEACHER}),
    "hpm": ("hpm", DECODER),
    "cmtmae": ("cmtmae", {**DECODER, **TEACHER, "stage1_epochs": 2.0}),
    "cmtmae, cross decoder, learned fusion, pixels": (
        "cmtmae",
        {**DECODER, **TEACHER, "stage1_epochs": 2.0, "decoder": "cross", "blend": "linear", "fusion": "learned"}
        | {"pixels": 0.5, "predicted": 0.25, "restart": True},
    ),
    "cmtmae, hard draw, online student": (
        "cmtmae",
        {**DECODER, **TEACHER, "draw": "hard", "student": "online", "query": "mean", "loss": "cosine"},
    ),
    "unveil": ("unveil", DECODER),
    "mim": ("mim", DECODER),
    "mim, blocks, cross decoder, hog": (
        "mim",
        {**DECODER, "masking": "block", "decoder": "cross", "blend": "linear", "target": "hog", "predicted": 0.25},
    ),
    "multimae": ("multimae", MAPS),
    "multimae-attention": ("multimae-attention", MAPS),
    "multimae-attention, errors, adaptive budget": (
        "multimae-attention",
        {**MAPS, "guide": "error", "budget": "adaptive"},
    ),
    "multimae-attention, cross decoder, teacher": (
        "multimae-attention",
        {**MAPS, **TEACHER, "decoder": "cross", "blend": "linear", "predicted": 0.25, "student": "momentum"},
    ),
}


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def machine() -> dict[str, str]:
    """What decides how a sum is rounded: the processor, what torch makes of it, and torch."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        processor = next(line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    return {
        "processor": processor,
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__.partition("+")[0],
    }


def curve(name: str, folder: Path) -> list[dict[str, Any]]:
    """The losses and gradient norms of a run of a recipe, update by update."""
    from tiny_runs import write_images

    recipe, options = CURVES[name]
    images = folder / "images"
    data = options.get("data") or str(images if images.exists() else write_images(images))
    run = folder / name
    with one_thread():
        unveil.pretrain(recipe, **{**SHARED, **options, "data": data, "out": str(run)})
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    return [{"losses": line["losses"], "grad_norm": line["grad_norm"]} for line in steps]


def approx_lines(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: pytest.approx(value, rel=1e-4) for name, value in line.items()} for line in lines]


@pytest.mark.usefixtures("as_in_training")
@pytest.mark.parametrize("name", CURVES)
def test_twenty_updates_are_the_golden_ones(name: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    result, expected = curve(name, tmp_path), golden["curves"][name]
    assert len(result) == len(expected) == UPDATES
    if golden["machine"] == machine():  # generations of one name render scenes with 1e-8 between them, and no more
        is_rendered = CURVES[name][1].get("data", "").startswith("scenes")
        assert result == (approx_lines(expected) if is_rendered else expected)
    for one, other in zip(result, expected, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)


def test_every_recipe_has_a_golden_curve() -> None:
    from unveil.recipes.registry import recipe_cards

    assert {recipe for recipe, _ in CURVES.values()} == set(recipe_cards())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        curves = {name: curve(name, Path(place)) for name in CURVES}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({"machine": machine(), "curves": curves}, indent=1) + "\n")
    sys.exit(0)
