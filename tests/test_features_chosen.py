"""The pool, the blocks and the normalisation that are chosen on training images, without labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import unveil
from tiny_runs import write_images
from unveil.cli import main
from unveil.evaluation.choice import retrieval
from unveil.modeling.encoder import SIZES

OLD = Path(__file__).parent / "old_runs"
QUICK = {"device": "cpu", "precision": "float32", "threads": 1, "baselines": False}
ALL = {"pool": "auto", "layer": ("auto",), "normalize": "auto"}


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of two blocks and the images that it was trained on."""
    monkeypatch.setitem(SIZES, "nano", (8, 2, 2))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD / "mae", tmp_path / "mae")
    write_images(tmp_path / "images")
    return tmp_path


def chosen(run: str = "mae") -> dict:
    return json.loads(Path(run, "features", "chosen.json").read_text())


def test_what_is_chosen_is_kept_told_and_read_alike(capfd):
    words = "embed mae --data images --pool auto --layer auto --normalize auto --device cpu"
    assert main(words.split()) == 0
    content = chosen()
    best = content["chosen"]
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("features: "))
    assert f"--pool {best['pool']} --normalize {best['normalize']}, chosen by their rank" in line
    rows = {json.dumps({k: row[k] for k in best}): row for row in content["candidates"]}
    assert len(rows) == 2 * 4 * 3
    default, row = content["candidates"][0], rows[json.dumps(best)]
    assert (default["pool"], default["layers"], default["normalize"]) == ("mean", [2], "none")
    no_worse = [r for r in content["candidates"] if r["retrieval"] >= default["retrieval"]]
    assert row in no_worse
    assert row["rankme"] == max(r["rankme"] for r in no_worse)

    before = Path("mae", "features", "chosen.json").stat().st_mtime_ns
    encoder = unveil.load("mae", device="cpu", **ALL)
    stored = np.load("features.npz")
    source = unveil.Run.open("mae").train_images().source
    images = torch.stack([source.image(i) for i in range(len(source))])
    torch.testing.assert_close(encoder(images), torch.tensor(stored["features"]))
    (result,) = unveil.evaluate("mae", data="images", protocol=("knn",), **ALL, **QUICK)
    assert result.pool == best["pool"]
    assert result.settings["chosen"] == ["pool", "layer", "normalize"]
    assert "chosen on training images, without labels" in result.card
    assert Path("mae", "features", "chosen.json").stat().st_mtime_ns == before, "chosen once"


def test_what_is_given_is_not_chosen():
    encoder = unveil.load("mae", device="cpu", pool="cls", layer=[1], normalize="auto")
    assert (encoder.pool, encoder.layers) == ("cls", (1,))
    assert {(r["pool"], *r["layers"]) for r in chosen()["candidates"]} == {("cls", 1)}
    encoder = unveil.load("mae", device="cpu", pool="mean", layer="auto")
    assert {(r["pool"], r["normalize"]) for r in chosen()["candidates"]} == {("mean", "none")}
    assert encoder.layers in ((2,), (1, 2))


def test_other_weights_and_damaged_files_are_chosen_for_anew():
    unveil.load("mae", device="cpu", normalize="auto")
    first = chosen()
    Path("mae", "features", "chosen.json").write_text("[]")
    unveil.load("mae", device="cpu", normalize="auto")
    assert chosen() == first
    unveil.load("mae", device="cpu", normalize="auto", at_epoch=unveil.Run.open("mae").checkpoints()[0].epoch)
    assert chosen()["weights"] != first["weights"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": ("auto", 1)}, "--layer takes numbers of blocks or auto, not both"),
        ({"pool": "men"}, "pool is one of cls, mean, both, mean-std, cls-mean-std, auto; got 'men'"),
        ({"normalize": "white"}, "normalize is one of none, standardize, whiten, l2, auto; got 'white'"),
    ],
)
def test_mistakes(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        unveil.load("mae", device="cpu", **options)


def timm_vit_of_registers(file: Path, width: int = 64, registers: int = 2) -> None:
    """A ViT of two blocks with registers and no class token, under timm's names, patch 8 at 32 x 32."""
    torch.manual_seed(0)
    shapes = {
        "reg_token": (1, registers, width),
        "pos_embed": (1, 16, width),
        "patch_embed.proj.weight": (width, 3, 8, 8),
    }
    shapes |= {"patch_embed.proj.bias": (width,)}
    parts = {"norm1": (width,), "norm2": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    parts |= {"mlp.fc1": (2 * width, width), "mlp.fc2": (width, 2 * width)}
    names = {"norm": (width,)} | {f"blocks.{i}.{name}": shape for i in range(2) for name, shape in parts.items()}
    shapes |= {f"{name}.weight": shape for name, shape in names.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in names.items()}
    torch.save({name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}, file)


def test_a_public_vit_s_reading_is_chosen_on_the_images_that_it_is_measured_on():
    transformers = pytest.importorskip("transformers", reason="writes public layouts")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    dino = transformers.Dinov2WithRegistersConfig(**shape, mlp_ratio=2, num_register_tokens=2)
    transformers.Dinov2WithRegistersModel(dino).save_pretrained("dino")
    timm_vit_of_registers(Path("registers.pth"))
    for vit, pools in (("dino", 4), ("registers.pth", 2)):
        (result,) = unveil.evaluate(vit, data="images", protocol=("knn",), **ALL, **QUICK)
        folder = str(Path("runs", Path(vit).stem))
        content = chosen(folder)
        assert len(content["candidates"]) == 2 * pools * 3, vit
        assert content["among"] == 32, "the training half of what is measured"
        assert result.pool == content["chosen"]["pool"]
        assert "chosen on training images, without labels" in result.card
    with pytest.raises(ValueError, match="this encoder has no class token; use --pool mean"):
        unveil.evaluate("registers.pth", data="images", protocol=("knn",), pool="cls", **QUICK)
    assert unveil.load("registers.pth", device="cpu").attention(torch.rand(1, 3, 32, 32)).shape == (1, 1, 4, 4)


def test_few_images_are_too_few_to_choose_on():
    for file in sorted(Path("images").rglob("*.png"))[20:]:
        file.unlink()
    with pytest.raises(ValueError, match="auto needs 30 images to choose on"):
        unveil.load("mae", device="cpu", normalize="auto")


def test_retrieval_against_counting():
    first, second = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    one, two = (x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1)[:, None] for x in (first, second))
    similarity = one @ two.T
    places = [1 + sum(similarity[i, j] > similarity[i, i] for j in range(12) if j != i) for i in range(12)]
    places += [1 + sum(similarity[j, i] > similarity[i, i] for j in range(12) if j != i) for i in range(12)]
    assert retrieval(first, second) == pytest.approx(np.mean(1 / np.array(places)))
    assert retrieval(first, first) == 1
    assert retrieval(torch.ones(4, 3), torch.ones(4, 3)) == 0.25, "of equal ones the own comes last"
