"""What `--init-from` takes of a checkpoint: all of it, under whatever a trainer put around its names, or a list."""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unveil
from test_public_vits import public_names
from tiny import build
from tiny_runs import write_images, write_recipe
from unveil.modeling.masked_model import MaskedModel
from unveil.modeling.public_vits import load_weights, read_weights, to_own_names
from unveil.recipes import mae
from unveil.recipes.registry import build_recipe

WRAPPED = {  # the keys of the dictionaries around the state dict, and what stands before the names
    "plain": (("model",), ""),
    "bare": ((), ""),
    "distributed": (("model",), "module."),
    "compiled": (("model",), "_orig_mod."),
    "backbone": (("state_dict",), "backbone."),
    "lightning": (("state_dict",), "model."),
    "lightning-encoder": (("state_dict",), "model.encoder."),
    "encoder": (("model",), "encoder."),
    "both": (("model",), "module._orig_mod."),
    "student": (("state_dict",), "student.backbone."),
    "dino": (("teacher",), "module.backbone."),
    "nested": (("state_dict", "model"), "net.vit_encoder."),
}


def wrap(state: dict[str, Tensor], keys: tuple[str, ...], prefix: str) -> dict:
    content: dict = collections.OrderedDict((prefix + name, tensor) for name, tensor in state.items())
    for key in reversed(keys):
        content = {key: content, "epoch": 3}
    return content


@pytest.mark.parametrize("how", WRAPPED)
def test_every_wrapper_is_stripped(how: str, tmp_path: Path):
    model = build(image_size=(16, 16))
    keys, prefix = WRAPPED[how]
    others = {"criterion.center": torch.zeros(3)} if prefix else {}
    torch.save(wrap(public_names(model), keys, prefix) | others, tmp_path / "w.pth")
    report = load_weights(build(image_size=(16, 16)), to_own_names(read_weights(tmp_path / "w.pth")))
    assert (report.missing, report.unexpected, report.reshaped) == ((), (), ())


def test_of_a_teacher_and_a_student_the_teacher_is_read(tmp_path: Path):
    model = build(image_size=(16, 16))
    state = public_names(model)
    both = {f"student.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({"state_dict": both | {f"teacher.{n}": t for n, t in state.items()}}, tmp_path / "w.pth")
    assert torch.equal(read_weights(tmp_path / "w.pth")["cls_token"], state["cls_token"])


def test_heads_are_found_by_name():
    """Two objectives of one shape, numbered in another order by the checkpoint."""
    model = build(image_size=(16, 16))
    name, own = model.objectives[0].name, model.state_dict()["objectives.0.head.weight"]
    report = load_weights(model, {f"objectives.{name}.head.weight": own + 1})
    assert report.loaded == ("objectives.0.head.weight",)
    report = load_weights(model, {"objectives.another.head.weight": own})
    assert report.unexpected == ("objectives.another.head.weight",)


class TestWhatIsShortOfWhole:
    def start(self, folder: Path, state: dict[str, Tensor], **options: object) -> str:
        torch.save({"model": state}, folder / "w.pth")
        run = unveil.pretrain(
            write_recipe(folder), data=str(write_images(folder / "images")), out=str(folder / "run"), device="cpu",
            init_from=str(folder / "w.pth"), epochs=1.0, paper=True, workers=1, overwrite=True, **options,
        )  # fmt: skip
        return str(run)

    def model(self, folder: Path) -> MaskedModel:
        run = unveil.pretrain(
            write_recipe(folder), data=str(write_images(folder / "images")), out=str(folder / "first"), device="cpu",
            epochs=1.0, paper=True, workers=1,
        )  # fmt: skip
        return unveil.Run.open(run).model()

    def test_stops_with_the_list_unless_it_is_allowed(self, tmp_path: Path):
        model = self.model(tmp_path)
        whole = dict(model.state_dict())
        self.start(tmp_path, whole)
        head = "objectives.0.head.weight"
        for name, changed, why in (
            (head, None, rf"1 missing: {re.escape(head)}"),
            (head, torch.zeros(7, 5), rf"1 of another shape: {re.escape(head)}"),
            ("encoder.blocks.0.norm1.bias", None, r"1 missing: encoder\.blocks\.0\.norm1\.bias"),
        ):
            state = {n: t for n, t in whole.items() if n != name} | ({} if changed is None else {name: changed})
            with pytest.raises(ValueError, match=rf"does not load whole: {why}; .*--allow-missing"):
                self.start(tmp_path, state)
            self.start(tmp_path, state, allow_missing=True)
        for extra in ("encoder.blocks.0.ls1.gamma", "encoder.blocks.9.norm1.weight"):
            with pytest.raises(ValueError, match=rf"1 left over: {re.escape(extra)}"):
                self.start(tmp_path, whole | {extra: torch.ones(16)})

    def test_an_encoder_for_another_method_is_whole_without_a_decoder(self, tmp_path: Path):
        model = self.model(tmp_path)
        encoder = {n: t for n, t in model.state_dict().items() if n.startswith("encoder.")}
        self.start(tmp_path, encoder)


def test_the_encoder_takes_the_size_and_patch_of_the_weights(tmp_path: Path):
    """Of a file under public names, and of a run: neither has to be repeated, and what is given stays."""
    model = build_recipe(mae.recipe, (), {"size": "tiny", "patch": 8, "image_size": (64,)}).stages[0].build()
    torch.save({"model": public_names(model)}, tmp_path / "w.pth")
    images = str(write_images(tmp_path / "images"))

    def start(**options) -> dict[str, Any]:
        run = unveil.pretrain("mae", data=images, device="cpu", minutes=0.002, workers=1, **options)
        return unveil.Run.open(run).config.options

    first = start(init_from=str(tmp_path / "w.pth"), out=str(tmp_path / "a"), allow_missing=True)
    assert (first["size"], first["patch"], first["image_size"]) == ("tiny", 8, (64,))
    second = start(init_from=str(tmp_path / "a"), out=str(tmp_path / "b"))
    assert (second["size"], second["patch"]) == ("tiny", 8)
    with pytest.raises(ValueError, match="no weights fit this encoder"):
        start(init_from=str(tmp_path / "a"), out=str(tmp_path / "c"), size="nano")
