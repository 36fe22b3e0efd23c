"""`unveil export`: what timm, transformers, torch and ONNX make of the files is what `unveil.load` makes of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import unveil
from tiny_runs import write_images
from unveil.cli import main
from unveil.modeling.image_encoder import ImageEncoder
from unveil.modeling.public_vits import to_own_names
from unveil.recipes.registry import paper_of, recipe_cards
from unveil.recipes.run import Run

TRAIN = {"size": "nano", "image_size": (16, 24), "patch": 4, "epochs": 0.2, "batch_size": 8, "lr": 0.01}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MAE on squares, one of CrossMAE, which has no final norm, on rectangles, and one of two maps."""
    home = tmp_path_factory.mktemp("export")
    data = str(write_images(home / "images"))
    options = {**TRAIN, "device": "cpu", "data": data}
    unveil.pretrain("mae", out=str(home / "mae"), **{**options, "image_size": (16,)})
    unveil.pretrain("crossmae", out=str(home / "crossmae"), **options)
    unveil.evaluate(str(home / "mae"), data=data, protocol=("knn",), device="cpu")
    return home


@pytest.fixture(params=["mae", "crossmae"])
def run(runs: Path, request: pytest.FixtureRequest) -> Path:
    return runs / request.param


def sample(run: Path) -> tuple[ImageEncoder, Tensor, Tensor]:
    """The encoder of a run, images in [0, 1], and the same as other projects read them."""
    encoder = unveil.load(run, device="cpu")
    assert isinstance(encoder, ImageEncoder)
    images = torch.rand(3, 3, *encoder.image_size)
    mean, std = (torch.tensor(values)[:, None, None] for values in encoder.statistics)
    return encoder, images, (images - mean) / std


def test_transformers_gives_the_same_features(run: Path, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    folder = unveil.export(run, to="transformers", out=tmp_path / "out")
    model = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False)
    encoder, images, normalised = sample(run)
    theirs = model(normalised).last_hidden_state[:, 1:].mean(dim=1)
    torch.testing.assert_close(theirs, encoder(images), rtol=0, atol=1e-5)
    if len(set(encoder.image_size)) > 1:  # transformers resizes the positions of squares alone
        return
    larger = torch.rand(2, 3, 24, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in encoder.statistics)
    theirs = model((larger - mean) / std, interpolate_pos_encoding=True).last_hidden_state[:, 1:].mean(dim=1)
    torch.testing.assert_close(theirs, encoder(larger), rtol=0, atol=1e-5)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["size"] == dict(zip(("height", "width"), encoder.image_size, strict=True))


def test_timm_gives_the_same_features(run: Path, tmp_path: Path):
    timm = pytest.importorskip("timm", reason="timm needs torchvision, which has no build for every torch")
    folder = unveil.export(run, to="timm", out=tmp_path / "out")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    encoder, images, normalised = sample(run)
    torch.testing.assert_close(model(normalised), encoder(images), rtol=0, atol=1e-5)
    assert model.pretrained_cfg["mean"] == pytest.approx(encoder.statistics[0])


def at_another_size(run: Path, to: str, out: Path) -> tuple[Path, Tensor, Tensor, Tensor]:
    """An export for images that are larger than in training; such images, also normalised; the features of `load`."""
    encoder, _, _ = sample(run)
    folder = unveil.export(run, to=to, image_size=(24, 40), out=out)
    images = torch.rand(2, 3, 24, 40)
    mean, std = (torch.tensor(values)[:, None, None] for values in encoder.statistics)
    return folder, images, (images - mean) / std, encoder(images)


def test_timm_at_another_size(run: Path, tmp_path: Path):
    timm = pytest.importorskip("timm", reason="timm needs torchvision, which has no build for every torch")
    folder, _, normalised, features = at_another_size(run, "timm", tmp_path / "out")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(model(normalised), features, rtol=0, atol=1e-5)


def test_onnxruntime_at_another_size(run: Path, tmp_path: Path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="it is in no extra of the tests")
    import onnxruntime

    folder, images, _, features = at_another_size(run, "onnx", tmp_path / "out")
    session = onnxruntime.InferenceSession(str(folder / "encoder.onnx"))
    for count in (1, 2):  # the batch is free
        (theirs,) = session.run(None, {"images": images[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(theirs), features[:count], rtol=0, atol=1e-4)


def test_transformers_and_torch_at_another_size(run: Path, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    folder, _, normalised, features = at_another_size(run, "transformers", tmp_path / "a")
    model = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False)
    theirs = model(normalised).last_hidden_state[:, 1:].mean(dim=1)
    torch.testing.assert_close(theirs, features, rtol=0, atol=1e-5)
    folder, images, _, features = at_another_size(run, "torch", tmp_path / "b")
    program = torch.export.load(folder / "encoder.pt2").module()
    torch.testing.assert_close(program(images), features, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="--image-size is of the encoder alone"):
        unveil.export(run, to="safetensors", image_size=32, out=tmp_path / "c")
    with pytest.raises(ValueError, match="a patch of 4 does not divide an image of 30 x 30"):
        unveil.export(run, image_size=30, out=tmp_path / "c")


@pytest.mark.slow
def test_a_compiled_encoder_has_a_free_batch(run: Path):
    encoder, images, _ = sample(run)
    compiled = torch.compile(encoder, dynamic=True)
    for count in (3, 2, 5, 9):
        more = torch.cat([images] * 3)[:count]
        torch.testing.assert_close(compiled(more), encoder(more), rtol=1e-5, atol=1e-5)


def test_the_files_for_timm_have_its_names_and_shapes(run: Path, tmp_path: Path):
    folder = unveil.export(run, to="timm", out=tmp_path / "out")
    state, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    encoder, _, _ = sample(run)
    patches = (encoder.image_size[0] // 4) * (encoder.image_size[1] // 4)
    assert state["pos_embed"].shape == (1, 1 + patches, encoder.dim)
    assert state["patch_embed.proj.weight"].shape == (encoder.dim, 3, 4, 4)
    assert {f"blocks.{encoder.depth - 1}.mlp.fc2.bias", "norm.weight", "cls_token"} <= set(state)
    sizes = config["model_args"]
    assert (sizes["embed_dim"], sizes["depth"], sizes["img_size"]) == (
        encoder.dim,
        encoder.depth,
        [*encoder.image_size],
    )
    assert config["pretrained_cfg"]["input_size"] == [3, *encoder.image_size]


@pytest.mark.parametrize("to", ["timm", "transformers", "safetensors"])
def test_an_import_of_an_export_has_the_same_bits(run: Path, tmp_path: Path, to: str):
    folder = unveil.export(run, to=to, out=tmp_path / "out")
    own = Run.open(run).encoder().encoder.state_dict()
    back = to_own_names(load_file(folder / "model.safetensors"))
    for name, tensor in own.items():
        assert torch.equal(back[f"encoder.{name}"], tensor), name


@pytest.mark.parametrize("to", ["timm", "transformers"])
def test_unveil_loads_what_it_exported(run: Path, tmp_path: Path, to: str):
    folder = unveil.export(run, to=to, out=tmp_path / "out")
    encoder, images, _ = sample(run)
    again = unveil.load(folder, device="cpu")
    assert again.image_size == encoder.image_size
    torch.testing.assert_close(again(images), encoder(images), rtol=0, atol=1e-5)


def test_an_exported_file_is_a_start_for_training(runs: Path, tmp_path: Path):
    folder = unveil.export(runs / "mae", to="transformers", out=tmp_path / "out")
    options = {**TRAIN, "image_size": (16,), "epochs": 0.2, "device": "cpu", "data": str(runs / "images")}
    weights = str(folder / "model.safetensors")
    run = unveil.pretrain("mae", init_from=weights, out=str(tmp_path / "run"), allow_missing=True, **options)
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_the_whole_autoencoder_is_that_of_transformers(runs: Path, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    folder = unveil.export(runs / "mae", to="transformers", decoder=True, out=tmp_path / "out")
    model = transformers.ViTMAEForPreTraining.from_pretrained(folder).eval()
    own = Run.open(runs / "mae").model()
    _, _, normalised = sample(runs / "mae")
    theirs = model(normalised, noise=torch.arange(16.0).expand(3, 16))  # the first four patches stay
    back = to_own_names(load_file(folder / "model.safetensors"))
    state = own.state_dict()
    assert all(torch.equal(back[name], state[name]) for name in back if name in state)
    assert sum(name.startswith("decoders.") for name in back) == sum(name.startswith("decoders.") for name in state)
    assert theirs.loss.isfinite()
    assert model.config.norm_pix_loss
    with pytest.raises(ValueError, match="only MAE's decoder has a place"):
        unveil.export(runs / "crossmae", to="transformers", decoder=True, out=tmp_path / "none")


def test_torch_runs_it_with_any_batch(run: Path, tmp_path: Path):
    folder = unveil.export(run, to="torch", out=tmp_path / "out")
    encoder, images, _ = sample(run)
    program = torch.export.load(folder / "encoder.pt2").module()
    torch.testing.assert_close(program(images), encoder(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(program(images[:2]), encoder(images[:2]), rtol=0, atol=1e-5)


def test_onnxruntime_runs_it_with_any_batch(run: Path, tmp_path: Path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = unveil.export(run, to="onnx", out=tmp_path / "out")
    encoder, images, _ = sample(run)
    session = onnxruntime.InferenceSession(str(folder / "encoder.onnx"))
    (features,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(features), encoder(images), rtol=0, atol=1e-4)


def test_unveil_loads_its_own(run: Path, tmp_path: Path):
    folder = unveil.export(run, to="safetensors", out=tmp_path / "out")
    encoder, images, _ = sample(run)
    assert torch.equal(unveil.load(folder / "model.safetensors", device="cpu")(images), encoder(images))


class TestCard:
    def test_it_says_data_recipe_scores_and_how_to_load(self, runs: Path, tmp_path: Path):
        folder = unveil.export(runs / "mae", out=tmp_path / "out", licence="apache-2.0")
        text = (folder / "README.md").read_text()
        assert text.startswith("---\nlicense: apache-2.0\n")
        for part in ("images without labels", "Recipe `mae`", "k-NN", "raw pixels", "arXiv 2111.06377", "local-dir:"):
            assert part in text, part
        assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["license"] == "apache-2.0"

    def test_its_scores_are_those_of_the_weights_that_it_is_of(self, runs: Path, tmp_path: Path):
        run, data = tmp_path / "run", str(runs / "images")
        options = {**TRAIN, "image_size": (16,), "epochs": 2, "save_every": 1.0, "device": "cpu", "data": data}
        unveil.pretrain("mae", out=str(run), **options)
        unveil.evaluate(str(run), data=data, protocol=("knn",), device="cpu")
        early, last = (unveil.export(run, at_epoch=at, out=tmp_path / f"{at}") / "README.md" for at in (1, None))
        assert ", 2 epochs of" in last.read_text()
        assert "- k-NN" in last.read_text()
        assert ", 1 epoch of" in early.read_text()
        assert "Nothing was measured" in early.read_text()
        unveil.evaluate(str(run), data=data, protocol=("linear-lbfgs",), device="cpu", at_epoch=1)
        again = unveil.export(run, at_epoch=1, out=tmp_path / "1", overwrite=True) / "README.md"
        assert "- linear probe (L-BFGS)" in again.read_text()
        assert "k-NN" not in again.read_text()

    @pytest.mark.parametrize("name", sorted(recipe_cards()))
    def test_it_cites_the_paper_of_every_recipe_that_has_one(self, name: str):
        assert ("arXiv" in paper_of(name)) == (name not in ("mim", "unveil"))

    def test_it_guesses_no_licence_and_no_scores(self, runs: Path, tmp_path: Path):
        text = (unveil.export(runs / "crossmae", out=tmp_path / "out") / "README.md").read_text()
        assert "license:" not in text
        assert "None was given" in text
        assert "Nothing was measured" in text


def test_it_is_uploaded_when_that_is_asked(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    hub = pytest.importorskip("huggingface_hub")
    calls: list[tuple[str, dict[str, Any]]] = []

    class Hub:
        def create_repo(self, name: str, **options: Any) -> None:
            calls.append((name, options))

        def upload_folder(self, *, folder_path: str, repo_id: str) -> str:
            calls.append((repo_id, {f.name: f.stat().st_size for f in Path(folder_path).iterdir()}))
            return f"https://example.org/{repo_id}"

    monkeypatch.setattr(hub, "HfApi", Hub)
    unveil.export(runs / "mae", out=tmp_path / "a")
    assert not calls
    unveil.export(runs / "mae", out=tmp_path / "b", push="me/vit")
    assert [name for name, _ in calls] == ["me/vit", "me/vit"]
    assert {"README.md", "config.json", "model.safetensors"} == set(calls[1][1])
    assert "uploaded to https://example.org/me/vit" in capsys.readouterr().out


class TestMistakes:
    def test_files_that_are_there_stay(self, runs: Path, tmp_path: Path):
        (tmp_path / "mine.txt").write_text("kept")
        with pytest.raises(ValueError, match="holds files; give another --out, or --overwrite"):
            unveil.export(runs / "mae", out=tmp_path)
        unveil.export(runs / "mae", out=tmp_path, overwrite=True)
        assert (tmp_path / "mine.txt").read_text() == "kept"
        unveil.export(runs / "mae", to="safetensors", out=tmp_path, overwrite=True)
        assert {f.name for f in tmp_path.iterdir()} == {"mine.txt", "README.md", "model.safetensors"}

    def test_an_encoder_of_several_maps_has_no_place(self, tmp_path: Path):
        words = "pretrain multimae --data scenes:count=20,size=32 --size nano --image-size 32 --patch 8 --epochs 0.1"
        assert main([*words.split(), "--batch-size", "4", "--lr", "0.01", "--out", str(tmp_path / "maps")]) == 0
        with pytest.raises(ValueError, match="reads rgb, depth, semseg, ViTs of timm"):
            unveil.export(tmp_path / "maps", out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_options_that_do_not_go_together(self, runs: Path, tmp_path: Path):
        with pytest.raises(ValueError, match="--decoder is for --to transformers"):
            unveil.export(runs / "mae", to="timm", decoder=True, out=tmp_path / "out")

    def test_from_the_command_line(self, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        assert main(["export", str(runs / "mae"), "--out", str(tmp_path / "out")]) == 0
        out = capsys.readouterr().out
        assert "README.md, config.json, model.safetensors" in out
        assert out.splitlines()[-1].startswith("next: unveil report")
