"""`unveil export --head`: what other projects make of a classifier is what `unveil.load(run, head=...)` makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import unveil
from tiny_runs import write_images
from unveil.evaluation.predictors import ClassPredictor

OPTIONS = {"size": "nano", "image_size": (16,), "patch": 4, "epochs": 0.2, "batch_size": 8, "lr": 0.01}


@pytest.fixture(scope="module", params=["cls", "mean"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MAE with heads on its class token, one of CrossMAE, without a final norm, with heads on the mean."""
    home = tmp_path_factory.mktemp("heads")
    data = str(write_images(home / "images"))
    recipe = {"cls": "mae", "mean": "crossmae"}[request.param]
    path = unveil.pretrain(recipe, out=str(home / request.param), data=data, device="cpu", threads=1, **OPTIONS)
    how = {"data": data, "pool": request.param, "baselines": False, "keep": True, "device": "cpu", "epochs": 1}
    unveil.evaluate(path, protocol=("linear-lbfgs", "finetune"), **how)
    return Path(path)


def given(run: Path, head: str) -> tuple[ClassPredictor, Tensor, Tensor]:
    """The classifier, images in [0, 1], and the same as other projects read them."""
    model = unveil.load(run, head=head, device="cpu")
    assert isinstance(model, ClassPredictor)
    images = torch.rand(3, 3, 16, 16)
    mean, std = (torch.tensor(values)[:, None, None] for values in unveil.load(run, device="cpu").statistics)
    return model, images, (images - mean) / std


@pytest.mark.parametrize("head", ["linear-lbfgs", "finetune"])
def test_the_files_for_timm_classify_alike(run: Path, tmp_path: Path, head: str):
    folder = unveil.export(run, to="timm", head=head, out=tmp_path / "out")
    model, images, normalised = given(run, head)
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == list(model.classes) == ["even", "odd"]
    state = load_file(folder / "model.safetensors")
    read = config["model_args"]
    torch.testing.assert_close(computed(state, read, normalised), model(images), rtol=0, atol=1e-4)
    if timm := pytest.importorskip("timm", reason="timm needs torchvision, which has no build for every torch"):
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        torch.testing.assert_close(theirs(normalised), model(images), rtol=0, atol=1e-5)


def computed(state: dict[str, Tensor], read: dict[str, object], images: Tensor) -> Tensor:
    """timm's VisionTransformer in plain words, from the files alone."""
    patch, heads = int(str(read["patch_size"])), int(str(read["num_heads"]))
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1) + state["pos_embed"]

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, y.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    for block in (f"blocks.{k}" for k in range(int(str(read["depth"])))):
        parts = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).unflatten(-1, (3, heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(f"{block}.attn.proj", attended)
        x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))
    x = x if read["fc_norm"] else norm("norm", x)
    pooled = x[:, 0] if read["global_pool"] == "token" else x[:, 1:].mean(1)
    return linear("head", norm("fc_norm", pooled) if read["fc_norm"] else pooled)


@pytest.mark.parametrize("head", ["linear-lbfgs", "finetune"])
def test_transformers_classifies_alike(run: Path, tmp_path: Path, head: str):
    transformers = pytest.importorskip("transformers")
    if run.name == "mean":
        with pytest.raises(ValueError, match=r"reads the class token, and this head the mean .* use --to timm"):
            unveil.export(run, to="transformers", head=head, out=tmp_path / "none")
        return
    folder = unveil.export(run, to="transformers", head=head, out=tmp_path / "out")
    model, images, normalised = given(run, head)
    theirs = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    assert theirs.config.id2label == {0: "even", 1: "odd"}
    torch.testing.assert_close(theirs(normalised).logits, model(images), rtol=0, atol=1e-4)
    assert "ViTForImageClassification" in (folder / "README.md").read_text()


def test_a_program_of_torch_goes_from_images_to_scores(run: Path, tmp_path: Path):
    folder = unveil.export(run, to="torch", head="finetune", out=tmp_path / "out")
    model, images, _ = given(run, "finetune")
    program = torch.export.load(folder / "encoder.pt2").module()
    torch.testing.assert_close(program(images), model(images), rtol=0, atol=1e-5)
    assert json.loads((folder / "preprocess.json").read_text())["classes"] == ["even", "odd"]
    with pytest.raises(ValueError, match="--head says its weights itself: leave --decoder and --at-epoch out"):
        unveil.export(run, to="torch", head="finetune", at_epoch=0.2, out=tmp_path / "none")


@pytest.mark.parametrize("head", ["linear-lbfgs", "finetune"])
def test_a_folder_of_safetensors_is_the_same_module(run: Path, tmp_path: Path, head: str, capsys):
    folder = unveil.export(run, to="safetensors", head=head, out=tmp_path / "out")
    model, images, _ = given(run, head)
    again = unveil.load(folder, head=head, device="cpu")
    assert torch.equal(again(images), model(images))
    assert torch.equal(again.transform(torch.zeros(3, 20, 30)), model.transform(torch.zeros(3, 20, 30)))
    config = json.loads((folder / "config.json").read_text())
    assert (config["task"], config["classes"], config["image_size"]) == ("classes", ["even", "odd"], [16, 16])
    assert str(tmp_path.parent) not in json.dumps(config), "where the data lie is nobody's business"
    assert f'unveil.load("FOLDER", head="{head}")' in (folder / "README.md").read_text()
    images = sorted((run.parent / "images" / "odd").glob("*.png"))[:2]
    for file in images:
        (tmp_path / "two" / file.name).parent.mkdir(exist_ok=True)
        (tmp_path / "two" / file.name).write_bytes(file.read_bytes())
    out = unveil.predict(folder, data=str(tmp_path / "two"), out=str(tmp_path / "predicted"), device="cpu")
    assert json.loads((out / "predictions.json").read_text())["classes"] == ["even", "odd"]
    with pytest.raises(ValueError, match=f"holds the head {head}, not 'segment'"):
        unveil.load(folder, head="segment")
    with pytest.raises(ValueError, match="is an exported head, which `unveil predict`"):
        unveil.load(folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"holds no whole head .* export it again"):
        unveil.load(folder, head=head)
