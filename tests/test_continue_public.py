"""Training goes on from public weights: a run of no rate has the features of the source's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import unveil
from public_models import clip as make_clip
from public_models import close, dinov2, shaken, transformers
from public_models import dinov3 as make_dinov3
from public_models import vit as make_narrow
from test_import import DECODER, mae_file
from test_public_vits import table
from tiny_runs import write_images
from unveil.modeling.encoder import SIZES
from unveil.modeling.position_table import TABLE
from unveil.recipes.registry import build_recipe, load_recipe
from unveil.recipes.run import Run

SHAPE = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8, "image_size": 32}
STILL = {"device": "cpu", "epochs": 0.2, "batch_size": 8, "lr": 0.0, "workers": 1, **DECODER}


def vit(**more: Any) -> Any:
    config = transformers.ViTConfig(**{**SHAPE, **more}, intermediate_size=192)
    return shaken(transformers.ViTModel(config, add_pooling_layer=False))


def deit() -> Any:
    config = transformers.DeiTConfig(**SHAPE, intermediate_size=192)
    return shaken(transformers.DeiTModel(config, add_pooling_layer=False))


def vit_mae() -> Any:
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2}
    config = transformers.ViTMAEConfig(**SHAPE, **decoder, intermediate_size=192, decoder_intermediate_size=64)
    model = shaken(transformers.ViTMAEForPreTraining(config))
    model.vit.embeddings.position_embeddings.data = table((4, 4), 48)  # as public ones have
    model.decoder.decoder_pos_embed.data = table((4, 4), 16)
    return model


def dino(**more: Any) -> Any:
    return dinov2(**{"mlp_ratio": 4, "image_size": 64, **more})


def registers() -> Any:
    config = transformers.Dinov2WithRegistersConfig(**{**SHAPE, "image_size": 40}, mlp_ratio=4, num_register_tokens=3)
    return shaken(transformers.Dinov2WithRegistersModel(config))


def giant() -> Any:
    return dino(use_swiglu_ffn=True, image_size=32)


def features(model: Any, images: Tensor, statistics: tuple[tuple[float, ...], ...]) -> Tensor:
    """The mean of the patch tokens after the last norm, by transformers' own model."""
    mean, std = (torch.tensor(values)[:, None, None] for values in statistics)
    inner = getattr(model, "vit", model)
    options = {} if "Dinov2" in type(model).__name__ else {"interpolate_pos_encoding": True}
    if inner is not model:  # in its own order, and no patch hidden
        inner.config.mask_ratio = 0.0
        options["noise"] = torch.arange((images.shape[-1] // 8) ** 2.0).expand(len(images), -1)
    with torch.no_grad():
        tokens = inner((images - mean) / std, **options).last_hidden_state
    return tokens[:, -((images.shape[-1] // 8) ** 2) :].mean(dim=1)


@pytest.fixture(scope="module", autouse=True)
def _small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "nano", (48, 3, 4))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_images(tmp_path_factory.mktemp("public") / "images"))


@pytest.mark.parametrize(
    ("make", "side", "positions"),
    [
        (vit_mae, 48, "fixed"),
        (registers, 32, "learned"),
        (giant, 32, "learned"),
        pytest.param(vit_mae, 32, "sincos", marks=pytest.mark.slow),
        pytest.param(vit, 32, "learned", marks=pytest.mark.slow),
        pytest.param(vit, 48, "learned", marks=pytest.mark.slow),
        pytest.param(deit, 32, "learned", marks=pytest.mark.slow),
        pytest.param(dino, 32, "learned", marks=pytest.mark.slow),
        pytest.param(registers, 40, "learned", marks=pytest.mark.slow),
    ],
)
def test_a_run_starts_from_the_features_of_transformers(
    make: Any, side: int, positions: str, tmp_path: Path, images: str
):
    torch.manual_seed(0)
    model, x = make(), torch.rand(2, 3, side, side)
    model.save_pretrained(tmp_path / "theirs")
    recipe = "maskfeat" if make is registers else "mae"
    own = {name: value for name, value in STILL.items() if recipe == "mae" or not name.startswith("decoder_")}
    given = {"init_from": tmp_path / "theirs", "out": tmp_path / "on", "image_size": side}
    run = Run.open(unveil.pretrain(recipe, data=images, **given, **own))
    started = run.encoder()
    assert run.config.options["encoder_positions"] == positions
    theirs = features(model, x, started.statistics)
    torch.testing.assert_close(started(x), theirs, rtol=1e-5, atol=1e-5)
    source = unveil.load(unveil.import_checkpoint(tmp_path / "theirs", out=tmp_path / "run", usual=True), device="cpu")
    assert source.statistics == started.statistics
    torch.testing.assert_close(source(x), theirs, rtol=1e-5, atol=1e-5)


def test_what_goes_on_is_trained_saved_and_goes_on_again(tmp_path: Path, images: str):
    """A learned table is trained, exported to timm's names with all other parts, and read again."""
    registers().save_pretrained(tmp_path / "theirs")
    options = {**STILL, "lr": 0.01, "image_size": 32}
    run = unveil.pretrain("mae", data=images, init_from=tmp_path / "theirs", out=tmp_path / "a", **options)
    x = torch.rand(2, 3, 32, 32)
    encoder = Run.open(run).encoder()
    assert "positions.table" in dict(encoder.trunk.named_parameters())
    close(unveil.load(unveil.export(run, to="safetensors", out=tmp_path / "s") / "model.safetensors")(x), encoder(x))
    close(unveil.load(unveil.export(run, to="timm", out=tmp_path / "t"), device="cpu")(x), encoder(x))
    with pytest.raises(ValueError, match=r"transformers' ViTModel has no place for .*registers.*--to timm"):
        unveil.export(run, to="transformers", out=tmp_path / "u")
    again = unveil.pretrain("crossmae", data=images, init_from=run, out=tmp_path / "b", **options | {"lr": 0.0})
    assert torch.equal(Run.open(again).checkpoint().model[TABLE], Run.open(run).checkpoint().model[TABLE])
    assert Run.open(again).config.options["registers"] == 3


def test_grey_images_take_the_patch_of_weights_of_colours(tmp_path: Path):
    grey = tmp_path / "grey"
    for path in write_images(tmp_path / "images", 12).rglob("*.png"):
        grey.mkdir(exist_ok=True)
        Image.open(path).convert("L").save(grey / path.name)
    vit().save_pretrained(tmp_path / "theirs")
    given = {"init_from": tmp_path / "theirs", "init_channels": "mean", "image_size": 32}
    run = Run.open(unveil.pretrain("mae", data=str(grey), out=tmp_path / "a", **given, **STILL))
    assert run.config.options["patch"] == 8
    x, encoder = torch.rand(2, 1, 32, 32), run.encoder()
    (mean,), (std,) = encoder.statistics
    model = transformers.ViTModel.from_pretrained(tmp_path / "theirs", add_pooling_layer=False)
    theirs = features(model, x.expand(-1, 3, -1, -1), ((mean,) * 3, (std,) * 3))
    torch.testing.assert_close(encoder(x), theirs, rtol=1e-5, atol=1e-5)


def test_own_encoders_at_another_size_keep_their_places(tmp_path: Path, images: str):
    run = unveil.pretrain("mae", data=images, out=tmp_path / "a", image_size=32, patch=8, size="nano", **STILL)
    on = unveil.pretrain("mae", data=images, init_from=run, out=tmp_path / "b", image_size=48, **STILL)
    x = torch.rand(2, 3, 48, 48)
    torch.testing.assert_close(Run.open(on).encoder()(x), Run.open(run).encoder()(x), rtol=1e-5, atol=1e-5)
    waves = {"resize_positions": "extrapolate", "image_size": 48}
    other = unveil.pretrain("mae", data=images, init_from=run, out=tmp_path / "c", **waves, **STILL)
    assert TABLE not in Run.open(other).checkpoint().model


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (make_clip, r"a norm before its blocks; the activation quick-gelu; MLPs that are 96 wide"),
        (make_dinov3, r"rotary positions; "),
        (make_narrow, r"MLPs that are 96 wide inside, where recipes have 192"),
        (lambda: vit(num_attention_heads=6), r"3 blocks of width 48 with 6 heads, which is no --size"),
    ],
)
def test_what_no_recipe_builds_is_said(make: Any, why: str, tmp_path: Path, images: str):
    make().save_pretrained(tmp_path / "theirs")
    run = unveil.import_checkpoint(tmp_path / "theirs", out=tmp_path / "run", usual=True)
    with pytest.raises(ValueError, match=rf"no recipe's encoder computes .*{why}.*--allow-missing"):
        unveil.pretrain("mae", data=images, init_from=run, out=tmp_path / "on", image_size=32, **STILL)


def test_parts_that_are_given_otherwise(tmp_path: Path, images: str):
    registers().save_pretrained(tmp_path / "theirs")
    given = {"encoder_positions": "sincos", "registers": 0, "image_size": 32}
    with pytest.raises(ValueError, match=r"give --encoder-positions learned --registers 3, or --allow-missing"):
        unveil.pretrain("mae", data=images, init_from=tmp_path / "theirs", out=tmp_path / "on", **given, **STILL)


@pytest.mark.parametrize("name", [pytest.param("mae", marks=pytest.mark.slow), "crossmae"])
def test_a_file_of_the_papers_code_goes_on(name: str, tmp_path: Path, images: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SIZES, "nano", (24, 2, 2))
    file = mae_file(tmp_path / "w.pth", name)
    run = unveil.import_checkpoint(file, out=tmp_path / "run", usual=True, heads=2, decoder_heads=2)
    x = torch.rand(2, 3, 32, 32)
    for source in (file, run):
        on = unveil.pretrain(
            name, data=images, init_from=source, out=tmp_path / f"{source.name}-on", image_size=32, **STILL
        )
        close(Run.open(on).encoder()(x), unveil.load(run, device="cpu")(x))


def test_mask_tokens_lie_at_the_places_of_the_encoder():
    options = {"size": "nano", "patch": 8, "image_size": (64,), "encoder_positions": "learned"}
    model = build_recipe(load_recipe("simmim"), (), options).stages[0].build()
    assert [name for name in model.state_dict() if name.endswith("table")] == [TABLE]
    with pytest.raises(ValueError, match="can only be interpolated"):
        build_recipe(load_recipe("mae"), (), options | {"resize_positions": "extrapolate"})
