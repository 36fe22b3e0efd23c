"""`unveil import`: public files in their true layouts become run folders with the same features, and decoders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import unveil
from formulas import weights
from public_models import MODELS, close, transformers
from public_models import SIZES as PUBLIC
from test_parity import CASES, build_multimae
from test_public_vits import public_names, table
from tiny_runs import write_images
from unveil.cli import main
from unveil.commands.explore import _opened
from unveil.modeling.encoder import SIZES
from unveil.modeling.layers import sincos_positions
from unveil.modeling.masked_model import MaskedModel
from unveil.modeling.public_vits import load_encoder, load_weights, to_own_names
from unveil.modeling.types import Batch, Queries
from unveil.recipes.registry import build_recipe, load_recipe
from unveil.recipes.run import Run
from unveil.reporting.server import Request

SHORT = {"device": "cpu", "epochs": 0.2, "batch_size": 8, "image_size": (16,), "patch": 4, "size": "nano", "lr": 0.01}
DECODER = {"decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2}


@pytest.fixture(scope="module", autouse=True)
def _small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "nano", (24, 2, 2))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_images(tmp_path_factory.mktemp("import") / "images"))


def model_of(recipe: str, **options: Any) -> MaskedModel:
    own = {"size": "nano", "patch": 4, "image_size": (16,), **DECODER, **options}
    return build_recipe(load_recipe(recipe), (), own).stages[0].build()


def mae_file(path: Path, recipe: str = "mae", **options: Any) -> Path:
    """As the repositories of MAE and CrossMAE save their pretraining: a pickle of a state dict under `model`."""
    torch.save({"model": public_names(model_of(recipe, **options)), "epoch": 399}, path)
    return path


TOLD = ("--mean", "0.5", "0.5", "0.5", "--std", "0.3", "0.3", "0.3", "--heads", "2")


class TestMaskedAutoencoders:
    @pytest.mark.parametrize("recipe", ["mae", "crossmae"])
    def test_weights_and_decoder_are_those_of_the_file(self, tmp_path: Path, recipe: str):
        file, out = mae_file(tmp_path / "w.pth", recipe), tmp_path / "run"
        assert main(["import", str(file), "--out", str(out), *TOLD, "--decoder-heads", "2", "--norm-pix", "no"]) == 0
        run = Run.open(out)
        assert (run.config.recipe, run.config.status) == (recipe, "imported")
        theirs, own = torch.load(file)["model"], run.model().state_dict()
        assert torch.equal(own["encoder.prefix"], theirs["cls_token"][0])
        assert torch.equal(own["decoders.pixels.blocks.1.mlp.2.weight"], theirs["decoder_blocks.1.mlp.fc2.weight"])
        assert torch.equal(own["objectives.0.head.bias"], theirs["decoder_pred.bias"])
        assert run.encoder().statistics == ((0.5,) * 3, (0.3,) * 3)
        assert not run.recipe().stages[0].build().objectives[0].target.norm_pix  # type: ignore[attr-defined]

    def test_it_is_evaluated_looked_at_reported_and_trained_on(self, tmp_path: Path, images: str):
        file, out = mae_file(tmp_path / "w.pth"), str(tmp_path / "run")
        unveil.import_checkpoint(file, out=out, usual=True, heads=2, decoder_heads=2)
        results = unveil.evaluate(out, data=images, protocol=("knn",), device="cpu")
        assert {"pixels", "untrained"} <= set(results[0].baselines)
        (result,) = unveil.evaluate(out, data=images, protocol=("reconstruct",), device="cpu", limit=4)
        assert all(value == value for value in result.metrics.values())
        unveil.look(out, data=images, samples=2, out=str(tmp_path / "look.png"), device="cpu")
        assert (tmp_path / "look.png").stat().st_size > 1000
        page = unveil.report((out,), out=str(tmp_path / "report.html"))
        assert "k-NN" in Path(page).read_text()
        unveil.embed(out, data=images, out=str(tmp_path / "f.npz"), device="cpu", normalize="standardize")
        again = unveil.pretrain("mae", data=images, init_from=out, out=str(tmp_path / "on"), **SHORT, **DECODER)
        assert json.loads((again / "run.json").read_text())["status"] == "finished"

    def test_transformers_autoencoder_says_all_of_itself(self, tmp_path: Path):
        sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
        decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2}
        config = transformers.ViTMAEConfig(
            **sizes,
            **decoder,
            decoder_intermediate_size=64,
            image_size=16,
            patch_size=4,
            norm_pix_loss=True,
            layer_norm_eps=1e-6,
        )
        model = transformers.ViTMAEForPreTraining(config).eval()
        model.vit.embeddings.position_embeddings.data = table((4, 4), 24)  # as public ones have; theirs begins at zero
        model.decoder.decoder_pos_embed.data = table((4, 4), 16)
        model.save_pretrained(tmp_path / "theirs")
        statistics = {"image_mean": [0.4] * 3, "image_std": [0.2] * 3}
        (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(statistics))
        out = unveil.import_checkpoint(tmp_path / "theirs", out=tmp_path / "run")
        run, x = Run.open(out), torch.rand(2, 3, 16, 16)
        assert run.config.recipe == "mae"
        normalised = (x - 0.4) / 0.2
        with torch.no_grad():
            theirs = model.vit(normalised, noise=torch.arange(16.0).expand(2, 16)).last_hidden_state
            predicted = model(normalised, noise=torch.arange(16.0).expand(2, 16)).logits[:, 4:]
        own = run.model()
        assert own.masker.visible == pytest.approx(0.25)
        assert own.objectives[0].target.norm_pix  # type: ignore[union-attr]
        batch = Batch({"rgb": x}, torch.arange(2), torch.zeros(()))
        tokens = own.encoder.embed(batch)
        latents = own.encoder(replace(tokens, values=tokens.values[:, :4], ids=tokens.ids[:, :4]))
        close(latents.final, theirs)
        hidden = torch.arange(4, 16).expand(2, 12)
        decoded = own.decoders["pixels"](latents, Queries(hidden, hidden, torch.ones(2, 12)))
        close(own.objectives[0].head(decoded), predicted)

    def test_multimae_keeps_its_maps_and_decoders(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        case = next(case for case in CASES if case["name"] == "multimae-small")
        monkeypatch.setitem(SIZES, "nano", (case["dim"], case["depth"], case["heads"]))
        state = weights(case["state_dict"], 0)
        state["input_adapters.semseg.class_emb.weight"] = torch.randn(7, 64)
        state["input_adapters.semseg.proj.weight"] = torch.randn(case["dim"], 64, 4, 4)
        waves = sincos_positions((4, 4), case["dim"]).unflatten(0, (4, 4)).transpose(0, 1).permute(2, 0, 1)[None]
        state |= {f"input_adapters.{name}.pos_emb": waves for name in ("rgb", "depth", "semseg")}
        torch.save({"model": state}, tmp_path / "w.pth")
        out = unveil.import_checkpoint(tmp_path / "w.pth", out=tmp_path / "run", usual=True, heads=4, decoder_heads=4)
        run, model = Run.open(out), build_multimae({**case, "dim_class_emb": 64})
        assert (run.config.recipe, [m.name for m in run.modalities]) == ("multimae", ["rgb", "depth", "semseg"])
        names = run.config.content["model"]["stages"][0]["objectives"]
        load_weights(model, to_own_names(state))
        expected = {f"objectives.{names.index(o.name)}.head.weight": o.head.weight for o in model.objectives}
        expected |= {n: t for n, t in model.state_dict().items() if not n.startswith("objectives.")}
        own = run.model().state_dict()
        assert all(torch.equal(own[name], tensor) for name, tensor in expected.items())


class TestOtherViTs:
    @pytest.mark.parametrize("name", ["clip", "dinov2", "dinov3", "vit_classifier"])
    def test_transformers_models_have_the_features_that_they_had(self, name: str, tmp_path: Path):
        MODELS[name]().save_pretrained(tmp_path / "theirs")
        out = unveil.import_checkpoint(tmp_path / "theirs", out=tmp_path / "run", usual=True)
        theirs, own = unveil.load(tmp_path / "theirs", device="cpu"), unveil.load(out, device="cpu")
        x = torch.rand(2, 3, *theirs.image_size)
        assert torch.equal(own(x), theirs(x))
        assert torch.equal(load_encoder(out)(x), theirs(x)), "as a teacher"

    def test_it_is_evaluated_reported_and_trained_on(self, tmp_path: Path, images: str):
        MODELS["vit"]().save_pretrained(tmp_path / "theirs")
        out = str(unveil.import_checkpoint(tmp_path / "theirs", out=tmp_path / "run", usual=True))
        results = unveil.evaluate(out, data=images, protocol=("knn",), device="cpu", normalize="standardize")
        assert {"pixels", "untrained"} <= set(results[0].baselines)
        unveil.embed(out, data=images, out=str(tmp_path / "f.npz"), device="cpu")
        page = Path(unveil.report((out,), out=str(tmp_path / "r.html"))).read_text()
        assert "k-NN" in page
        assert "These weights were imported; nothing is known of their training." in page
        unveil.look(out, data=images, samples=2, out=str(tmp_path / "look.png"), device="cpu")
        assert (tmp_path / "look.png").stat().st_size > 1000
        explorer = _opened([out], (), images, 4, "cpu", False)
        answer = explorer(Request("GET", "/state", {}))
        assert json.loads(answer.body)["runs"][0]["grid"] == [4, 4]
        explorer.close()
        with pytest.raises(ValueError, match=r"without a decoder; `unveil pretrain mae --init-from"):
            unveil.evaluate(out, data=images, protocol=("reconstruct",), device="cpu")
        with pytest.raises(ValueError, match="none of the library's"):
            unveil.export(out, to="timm", out=str(tmp_path / "exported"))

    def test_training_goes_on_from_learned_positions(
        self, tmp_path: Path, images: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setitem(SIZES, "nano", (48, 3, 4))
        config = transformers.ViTConfig(**PUBLIC, intermediate_size=4 * 48)
        transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "theirs")
        run = unveil.import_checkpoint(tmp_path / "theirs", out=tmp_path / "run", usual=True)
        options = {**SHORT, **DECODER, "patch": 8, "image_size": 32, "data": images, "out": tmp_path / "on"}
        on = unveil.pretrain("mae", init_from=run, **options | {"lr": 0.0})
        learned = load_file(tmp_path / "theirs" / "model.safetensors")
        state = Run.open(on).model().state_dict()
        close(state["encoder.blocks.2.mlp.2.weight"], learned["encoder.layer.2.output.dense.weight"])
        table = learned["embeddings.position_embeddings"][0, 1:].unflatten(0, (4, 4))
        assert torch.equal(state["encoder.positions.table"], table)
        assert Run.open(on).encoder().statistics == ((0.5,) * 3, (0.5,) * 3)

    def test_lightly_s_autoencoder_keeps_its_decoder(self, tmp_path: Path):
        """A Lightning module with lightly's MaskedVisionTransformerTIMM and MAEDecoderTIMM."""
        names = public_names(model_of("mae"))
        state = {
            (f"decoder.{n}" if n.startswith("decoder_") or n == "mask_token" else f"backbone.vit.{n}"): tensor
            for n, tensor in names.items()
        }
        torch.save({"state_dict": state | {"backbone.mask_token": torch.zeros(1, 1, 24)}}, tmp_path / "last.ckpt")
        options = {"usual": True, "heads": 2, "decoder_heads": 2}
        run = Run.open(unveil.import_checkpoint(tmp_path / "last.ckpt", out=tmp_path / "run", **options))
        assert run.config.recipe == "mae"
        assert torch.equal(run.model().state_dict()["decoders.pixels.embed.weight"], names["decoder_embed.weight"])


@pytest.fixture(scope="module")
def run(images: str) -> Path:
    return unveil.pretrain("mae", data=images, out=str(Path(images).parent / "first"), **SHORT, **DECODER)


@pytest.mark.parametrize("to", ["timm", "transformers", "safetensors"])
def test_an_import_of_an_export_has_the_same_bits(tmp_path: Path, run: Path, to: str):
    options = {"decoder": True} if to == "transformers" else {}
    folder = unveil.export(run, to=to, out=tmp_path / "exported", licence="apache-2.0", **options)
    again = Run.open(unveil.import_checkpoint(folder, out=tmp_path / "again"))
    first = Run.open(run)
    own = (
        first.model().state_dict()
        if to == "transformers"
        else {n: t for n, t in first.model().state_dict().items() if n.startswith("encoder.")}
    )
    assert again.checkpoint().model.keys() == own.keys()
    assert all(torch.equal(tensor, again.checkpoint().model[name]) for name, tensor in own.items())
    assert again.encoder().statistics == first.encoder().statistics
    assert again.imported["licence"] == "apache-2.0"
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(again.encoder()(x), first.encoder()(x))


class TestMistakes:
    def test_one_error_lists_what_no_file_says(self, tmp_path: Path):
        file = mae_file(tmp_path / "w.pth")
        with pytest.raises(ValueError, match=r"does not say --mean \(usually 0\.485 0\.456 0\.406\), --std "):
            unveil.import_checkpoint(file, out=tmp_path / "run", heads=2)
        asked = r"say --decoder-heads \(usually 16\), --norm-pix \(usually yes\); give them, or --usual"
        with pytest.raises(ValueError, match=asked):
            unveil.import_checkpoint(file, out=tmp_path / "run", mean=(0.5,) * 3, std=(0.2,) * 3, heads=2)
        assert not (tmp_path / "run").exists()

    def test_tensors_without_a_place_are_listed_and_refused(self, tmp_path: Path):
        content = {**public_names(model_of("mae")), "blocks.0.surprise": torch.zeros(3)}
        torch.save(content, tmp_path / "w.pth")
        options = {"out": tmp_path / "run", "usual": True, "heads": 2, "decoder_heads": 2}
        with pytest.raises(ValueError, match=r"blocks\.0\.surprise"):
            unveil.import_checkpoint(tmp_path / "w.pth", **options)
        unveil.import_checkpoint(tmp_path / "w.pth", **options, allow_left_over=True)

    def test_a_decoder_that_no_recipe_has(self, tmp_path: Path):
        state = public_names(model_of("mae"))
        del state["decoder_norm.weight"]
        torch.save(state, tmp_path / "w.pth")
        options = {"out": tmp_path / "run", "usual": True, "heads": 2, "decoder_heads": 2}
        with pytest.raises(ValueError, match=r"its decoder is not mae's: missing decoders\.pixels\.norm\.weight"):
            unveil.import_checkpoint(tmp_path / "w.pth", **options)
        run = Run.open(unveil.import_checkpoint(tmp_path / "w.pth", **options, encoder_only=True))
        assert not any(name.startswith("decoders.") for name in run.checkpoint().model)

    def test_five_channels_need_statistics(self, tmp_path: Path, images: str):
        state = public_names(model_of("mae"))
        state["patch_embed.proj.weight"] = torch.randn(24, 5, 4, 4)
        torch.save(state, tmp_path / "w.pth")
        options = {"out": tmp_path / "run", "usual": True, "heads": 2, "encoder_only": True}
        with pytest.raises(ValueError, match=r"reads 5 channels .*give --mean and --std with 5 numbers each"):
            unveil.import_checkpoint(tmp_path / "w.pth", **options)
        run = unveil.import_checkpoint(tmp_path / "w.pth", mean=(0.1,) * 5, std=(0.2,) * 5, **options)
        assert unveil.load(run, device="cpu")(torch.rand(1, 5, 16, 16)).shape == (1, 24)

    def test_a_run_has_no_images_of_its_own(self, tmp_path: Path):
        run = Run.open(unveil.import_checkpoint(mae_file(tmp_path / "w.pth"), out=tmp_path / "run", usual=True, heads=2,
                                                decoder_heads=2))  # fmt: skip
        with pytest.raises(ValueError, match="was imported, so it has no images of its own; give --data"):
            run.held_out()
        with pytest.raises(ValueError, match="is a run folder already"):
            unveil.import_checkpoint(run.path, out=tmp_path / "other")
        with pytest.raises(ValueError, match="holds files; give another --out"):
            unveil.import_checkpoint(tmp_path / "w.pth", out=run.path)

    def test_unknown_heads(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"how many heads share its width of 24 .* --heads to `unveil import`"):
            unveil.import_checkpoint(mae_file(tmp_path / "w.pth"), out=tmp_path / "run", usual=True)


def test_waves_show_the_size_of_rectangles(tmp_path: Path):
    """A table of 24 + 1 positions is that of 4 x 6 tokens, and not of 5 x 5."""
    file = mae_file(tmp_path / "w.pth", image_size=(16, 24))
    out = unveil.import_checkpoint(file, out=tmp_path / "run", usual=True, heads=2, decoder_heads=2)
    assert Run.open(out).encoder().image_size == (16, 24)


def test_safetensors_alone(tmp_path: Path):
    save_file({n: t.contiguous() for n, t in public_names(model_of("mae")).items()}, tmp_path / "w.safetensors")
    options = {"usual": True, "heads": 2, "decoder_heads": 2, "source": "https://example.org/w", "licence": "mit"}
    run = Run.open(unveil.import_checkpoint(tmp_path / "w.safetensors", out=tmp_path / "run", **options))
    assert run.imported["source"] == "https://example.org/w"
    assert len(run.imported["sha256"]) == 64
    assert load_file(run.checkpoint().path / "model.safetensors").keys() == run.model().state_dict().keys()
