"""Which blocks features are read from, and their normalisation: fitted on training images and kept in the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch.nn import functional as F

import unveil
from tiny_runs import write_images
from unveil.cli import main
from unveil.evaluation import normalizers
from unveil.evaluation.features import RawPixels
from unveil.evaluation.normalizers import with_maps
from unveil.modeling.encoder import SIZES, Encoder
from unveil.modeling.image_encoder import ImageEncoder
from unveil.modeling.normalizer import SHRINKAGE, Normalizer
from unveil.modeling.public_vits.vit import PublicViT, ViT, ViTConfig
from unveil.modeling.types import RGB

OLD = Path(__file__).parent / "old_runs"
QUICK = {"device": "cpu", "precision": "float32", "threads": 1}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with runs of two blocks, of images and of three maps, and the images of the former."""
    monkeypatch.setitem(SIZES, "nano", (8, 2, 2))
    monkeypatch.chdir(tmp_path)
    for name in ("mae", "multimae"):
        shutil.copytree(OLD / name, tmp_path / name)
    write_images(tmp_path / "images")
    return tmp_path


def encoders() -> list[ImageEncoder | PublicViT]:
    torch.manual_seed(0)
    config = ViTConfig(width=24, depth=3, heads=2, patch=4, hidden=48, grid=(4, 4), final_norm="cls")
    return [
        *(ImageEncoder(Encoder([RGB], (16,), 4, 24, 3, 2, final_norm=norm)) for norm in (True, False)),
        PublicViT(ViT(config)),
    ]


@pytest.mark.parametrize("encoder", encoders(), ids=["norm", "no norm", "public"])
def test_blocks_are_read_from_the_end_and_put_together(encoder: ImageEncoder | PublicViT):
    images = torch.rand(3, 3, 16, 16)
    last = encoder.features(images, "both")
    of = {}
    for block in (1, 2, 3):
        encoder.read([block - 4])
        assert encoder.layers == (block,)
        of[block] = encoder.features(images, "both")
    assert torch.equal(of[3], last)
    by_hand = F.layer_norm(encoder.maps(images, [2])[0], (24,), eps=1e-6)
    torch.testing.assert_close(of[2], torch.cat([by_hand[:, 0], by_hand[:, 1:].mean(1)], 1))
    encoder.read([1, -1])
    assert torch.equal(encoder.features(images, "both"), torch.cat([of[1], of[3]], 1))
    encoder.read([1, -1], "mean")
    torch.testing.assert_close(encoder.features(images, "both"), (of[1] + of[3]) / 2)


def test_the_deviation_of_the_patches_is_a_pool():
    images = torch.rand(2, 3, 16, 16)
    for encoder in encoders():
        patches = F.layer_norm(encoder.maps(images, [2])[0], (24,), eps=1e-6)[:, 1:]
        encoder.read([2])
        features = encoder.features(images, "cls-mean-std")
        torch.testing.assert_close(features[:, 24:48], patches.mean(1))
        torch.testing.assert_close(features[:, 48:], patches.std(1, correction=0))
    alone = ImageEncoder(Encoder([RGB], (4,), 4, 24, 1, 2))
    assert alone.features(torch.rand(1, 3, 4, 4), "mean-std").isfinite().all(), "one patch does not vary"


@pytest.mark.parametrize("layers", [[0], [4], [-4], [3, -1]])
def test_blocks_that_there_are_not_are_refused(layers: list[int]):
    with pytest.raises(ValueError, match=r"--layer names blocks of 1 to 3, or -3 to -1 from the end, each once; got"):
        encoders()[0].read(layers)


def test_no_block_after_the_one_that_is_read_is_run():
    encoder = encoders()[0]
    encoder.read([1])
    encoder.blocks[1].forward = None  # type: ignore[assignment]
    assert encoder(torch.rand(1, 3, 16, 16)).shape == (1, 24)


def test_normalisations_against_numpy():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 6) + 5
    plain = x.double().numpy()
    made = {kind: Normalizer.fit(x, kind)(x).double().numpy() for kind in ("standardize", "whiten", "l2")}
    np.testing.assert_allclose(made["standardize"], (plain - plain.mean(0)) / plain.std(0, ddof=1), atol=1e-4)
    np.testing.assert_allclose(made["l2"], plain / np.linalg.norm(plain, axis=1)[:, None], atol=1e-5)
    variances = np.linalg.eigvalsh(np.cov(plain.T, bias=True))
    expected = variances / (variances + SHRINKAGE * variances.mean())
    np.testing.assert_allclose(np.cov(made["whiten"].T, bias=True), np.diag(expected), atol=1e-3)
    half = torch.autocast("cpu", torch.bfloat16)
    with half:
        torch.testing.assert_close(Normalizer.fit(x, "whiten")(x).double().numpy(), made["whiten"])


def test_a_normalisation_is_kept_and_applied_by_load_embed_and_evaluate_alike(runs: Path, capsys):
    encoder = unveil.load("mae", layer=(-1, -2), pool="both", normalize="whiten", device="cpu")
    kept = runs / "mae" / "features" / "whiten-both-layer-2-1-concat.safetensors"
    written = kept.read_bytes()
    words = "--layer -1 -2 --pool both --normalize whiten --device cpu"
    assert main(["embed", "mae", "--data", "images", *words.split()]) == 0
    content = np.load("features.npz")
    assert content["features"].shape == (40, 32)
    covariance = np.cov(content["features"].T, bias=True)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.2, "38 of the 40 were fitted on"
    images = torch.from_numpy(np.stack([np.asarray(Image.open(runs / "images" / n)) for n in content["names"]]))
    torch.testing.assert_close(encoder(images.permute(0, 3, 1, 2)), torch.tensor(content["features"]))
    given = {"protocol": ("knn",), "layer": (-1, -2), "pool": "both", "normalize": "whiten", **QUICK}
    (result,) = unveil.evaluate("mae", data="images", **given)
    assert result.settings["layers"] == [2, 1]
    assert (result.settings["normalize"], result.settings["combine"], result.pool) == ("whiten", "concat", "both")
    assert "read from blocks 2, 1 of 2, side by side and whitened (0.1 of the mean variance" in result.card
    assert kept.read_bytes() == written
    assert [f.name for f in kept.parent.iterdir()] == [kept.name]


def test_baselines_are_normalised_too_and_the_default_is_as_it_was(runs: Path):
    given = {"data": "images", "protocol": ("knn", "linear-lbfgs"), "cache": False, **QUICK}
    plain, white = (unveil.evaluate("mae", normalize=kind, **given) for kind in ("none", "whiten"))
    assert not {"normalize", "layers"} & plain[0].settings.keys()
    for name in ("pixels", "untrained"):
        assert white[0].baselines[name] != plain[0].baselines[name]
    again = unveil.evaluate("mae", layer=(-1,), **given)
    assert [r.metrics for r in again] == [r.metrics for r in plain]


def test_raw_pixels_are_whitened():
    pixels = RawPixels(RGB, (8, 8))
    images = torch.rand(50, 3, 8, 8)
    normalizer = Normalizer.fit(pixels.features(images, "mean"), "whiten")
    white = RawPixels(RGB, (8, 8), normalizer=normalizer).features(images, "mean")
    assert white.shape == (50, 49)
    assert white.std() < pixels.features(images, "mean").std()


def test_weights_that_trained_on_are_normalised_anew(runs: Path):
    first = unveil.load("mae", normalize="standardize", device="cpu").normalizer
    (file,) = (runs / "mae" / "features").iterdir()
    before = file.read_bytes()
    shutil.rmtree(runs / "mae" / "checkpoints")
    (runs / "mae" / "kept").rename(runs / "mae" / "checkpoints")
    shutil.rmtree(runs / "mae" / "checkpoints" / "step-00000012")
    second = unveil.load("mae", normalize="standardize", device="cpu").normalizer
    assert not torch.allclose(first.mean, second.mean)
    assert file.read_bytes() != before
    file.write_bytes(b"damaged")
    torch.testing.assert_close(unveil.load("mae", normalize="standardize", device="cpu").normalizer.mean, second.mean)


def test_images_that_are_gone_are_missed_only_where_nothing_is_kept(runs: Path):
    unveil.load("mae", normalize="whiten", device="cpu")
    shutil.rmtree(runs / "images")
    unveil.load("mae", normalize="whiten", device="cpu")
    unveil.load("mae", normalize="l2", device="cpu")
    with pytest.raises(
        ValueError,
        match=r"read training images, and these are gone: .* leave --normalize and auto out",
    ):
        unveil.load("mae", normalize="standardize", device="cpu")


def test_several_maps_are_normalised_together(runs: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(normalizers, "FITTED_ON", 6)
    (both,) = unveil.evaluate(
        "multimae",
        data="scenes:count=30,size=32,seed=4",
        protocol=("knn",),
        inputs=("rgb", "depth"),
        normalize="whiten",
        baselines=False,
        **QUICK,
    )
    assert both.settings["inputs"] == ["rgb", "depth"]
    assert unveil.load("multimae", normalize="whiten", device="cpu").normalizer is not None
    files = sorted(f.stem for f in (runs / "multimae" / "features").iterdir())
    assert files == ["whiten-mean-layer-2", "whiten-mean-layer-2-rgb-depth"]
    source = unveil.Run.open("multimae").train_images()
    assert [d.name for d in with_maps(source, ("depth",)).source.declared] == ["depth"]
    assert [d.name for d in with_maps(source, ()).source.declared] == ["rgb"]


def test_a_public_vit_is_normalised_by_the_images_that_it_is_measured_on(runs: Path):
    unveil.load("mae", device="cpu").save("vit.safetensors")
    with pytest.raises(ValueError, match=r"training images of vit.safetensors are not here .* keeps it"):
        unveil.load("vit.safetensors", normalize="whiten", device="cpu")
    (result,) = unveil.evaluate(
        "vit.safetensors", data="images", protocol=("knn",), normalize="whiten", baselines=False, **QUICK
    )
    kept = runs / "runs" / "vit" / "features" / "whiten-mean-layer-2.safetensors"
    written = kept.read_bytes()
    with safe_open(kept, "pt") as file:
        assert json.loads(file.metadata()["unveil"])["among"] == 32
    assert result.settings["normalize"] == "whiten"
    assert unveil.load("vit.safetensors", normalize="whiten", device="cpu").normalizer is not None
    unveil.embed("vit.safetensors", data="images", normalize="whiten", device="cpu")
    assert kept.read_bytes() == written, "as it is kept"


@pytest.mark.parametrize("options", [{"layer": (1,)}, {"normalize": "l2"}, {"pool": "auto"}], ids=str)
@pytest.mark.parametrize("protocol", ["finetune", "attentive", "segment", "reconstruct"])
def test_protocols_that_read_tokens_refuse(runs: Path, protocol: str, options: dict):
    data = "images" if protocol in ("finetune", "attentive") else "scenes:count=16,seed=2"
    with pytest.raises(ValueError, match=f"{protocol} reads tokens, and --layer, --normalize and --pool auto are of"):
        unveil.evaluate("multimae" if protocol == "reconstruct" else "mae", data=data, protocol=(protocol,), **options)
