"""An encoder in Python: features of patches and of blocks, attention, pictures of any kind, scikit-learn, training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from torch import Tensor, nn

import unveil
from public_models import clip, dinov2_registers
from tiny_runs import write_images
from unveil.data.decode import Unreadable
from unveil.modeling.image_encoder import FeatureExtractor
from unveil.sklearn import Encoder

TRAIN = {"size": "nano", "image_size": (16,), "patch": 4, "epochs": 0.2, "batch_size": 8, "lr": 0.01, "device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with labelled images, a run of CrossMAE and one of MAE, and a CLIP and a DINOv2 with registers."""
    home = tmp_path_factory.mktemp("python")
    data = str(write_images(home / "images"))
    for recipe in ("mae", "crossmae"):
        unveil.pretrain(recipe, data=data, out=str(home / recipe), **TRAIN)
    clip().save_pretrained(home / "clip")
    dinov2_registers().save_pretrained(home / "dinov2")
    return home


@pytest.fixture(params=["mae", "crossmae", "clip", "dinov2"])
def encoder(place: Path, request: pytest.FixtureRequest) -> FeatureExtractor:
    return unveil.load(str(place / request.param), device="cpu")


@pytest.fixture
def images(encoder: FeatureExtractor) -> Tensor:
    """Three images, two patches taller than in training."""
    height, width = encoder.image_size
    return torch.rand(3, 3, height + 2 * encoder.patch, width, generator=torch.Generator().manual_seed(0))


def test_features_of_patches_lie_where_the_patches_are(encoder: FeatureExtractor, images: Tensor):
    rows, columns = images.shape[-2] // encoder.patch, images.shape[-1] // encoder.patch
    patches = encoder.patch_features(images)
    assert patches.shape == (3, encoder.dim, rows, columns)
    torch.testing.assert_close(patches.mean(dim=(2, 3)), encoder.features(images, "mean"))
    with_other_corner = images.clone()
    with_other_corner[:, :, -encoder.patch :, : encoder.patch] = 0.5
    first = (encoder.intermediate_features(x, (1,))[0] for x in (images, with_other_corner))
    change = (next(first) - next(first)).abs().sum(dim=1)
    assert (change.flatten(1).argmax(dim=1) == (rows - 1) * columns).all()  # the corner, bottom left


def test_all_blocks_by_one_call(encoder: FeatureExtractor, images: Tensor):
    blocks = encoder.intermediate_features(images)
    assert len(blocks) == encoder.depth
    assert torch.equal(blocks[-1], encoder.patch_features(images))
    assert torch.equal(blocks[0], encoder.patch_features(images, layer=1))
    assert torch.equal(encoder.intermediate_features(images, (-1, 1))[1], blocks[0])
    with pytest.raises(ValueError, match=f"blocks of 1 to {encoder.depth}"):
        encoder.patch_features(images, layer=encoder.depth + 1)
    with pytest.raises(ValueError, match="B x 3 x H x W"):
        encoder.patch_features(images[:, :1])


def test_attention_is_the_softmax_of_each_head(encoder: FeatureExtractor, images: Tensor):
    rows, columns = images.shape[-2] // encoder.patch, images.shape[-1] // encoder.patch
    cls, mean, every = (encoder.attention(images, query=query) for query in ("cls", "mean", "all"))
    heads = encoder.blocks[-1].attn.heads
    for attention in (cls, mean, every):
        assert attention.shape == (3, heads, rows, columns)
        total = attention.sum(dim=(2, 3))
        assert ((total > 0) & (total <= 1 + 1e-5)).all()  # the rest goes to the class token and registers
    assert torch.equal(encoder.attention(images), cls)
    assert not torch.allclose(encoder.attention(images, layer=1), cls)
    with pytest.raises(ValueError, match="--layer names blocks"):
        encoder.attention(images, layer=99)


def test_a_picture_of_any_kind_is_read_as_its_file(encoder: FeatureExtractor, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (150, 210, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    transform = encoder.transform
    assert transform is not None
    result = transform(tmp_path / "a.png")
    assert result.shape == (3, *encoder.image_size)
    assert result.dtype == torch.float32
    kinds = [str(tmp_path / "a.png"), Image.open(tmp_path / "a.png"), pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
    assert all(torch.equal(transform(kind), result) for kind in kinds)
    with_alpha = np.concatenate([pixels, pixels[..., :1]], axis=2)
    assert torch.equal(transform(with_alpha), result)
    torch.testing.assert_close(transform((pixels / 255).astype(np.float32)), result, atol=0.01, rtol=0)
    grey = transform(pixels[..., 0])
    assert torch.equal(grey[0], grey[2])


def test_the_transform_is_what_embed_does(place: Path, tmp_path: Path):
    run, data = str(place / "mae"), place / "images"
    content = np.load(unveil.embed(run, data=str(data), out=str(tmp_path / "f.npz"), device="cpu"))
    encoder = unveil.load(run, device="cpu")
    assert encoder.transform is not None
    features = encoder(torch.stack([encoder.transform(data / name) for name in content["names"]]))
    cosine = nn.functional.cosine_similarity(features, torch.from_numpy(content["features"]))
    assert cosine.min() > 0.999  # embed may compute in bf16


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        (np.zeros((8, 8, 3), np.int64), Unreadable, "no known range"),
        (np.full((8, 8, 3), 2.0), Unreadable, r"float values lie in \[2, 2\]"),
        (np.zeros(5, np.uint8), Unreadable, r"the ndarray: has the shape \(5,\)"),
        (torch.zeros(2, 8, 8), Unreadable, "has 2 channels; 3 are needed"),
        (3, TypeError, "a picture is a path"),
        ("none.png", FileNotFoundError, "none.png"),
    ],
)
def test_what_is_no_picture_is_one_error(place: Path, picture, error, message):
    transform = unveil.load(str(place / "mae"), device="cpu").transform
    assert transform is not None
    with pytest.raises(error, match=message):
        transform(picture)


def test_the_configuration_of_the_input_repeats_what_the_encoder_does(place: Path):
    encoder = unveil.load(str(place / "clip"), device="cpu")
    config = encoder.preprocess_config
    assert config["input_size"] == (3, *encoder.image_size)
    assert config["mean"] == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert (config["interpolation"], config["crop_mode"]) == ("bicubic", "center")


def test_it_trains_in_a_loop_of_ones_own(encoder: FeatureExtractor, images: Tensor):
    model = nn.Sequential(encoder, nn.LazyLinear(2))
    model(images)
    model.requires_grad_(True)
    before = {name: value.clone() for name, value in encoder.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 0])).backward()
    optimizer.step()
    changed = {name for name, value in encoder.named_parameters() if not torch.equal(value, before[name])}
    assert any(".0." in name or "blocks.0" in name for name in changed), "the first block learns too"


class TestScikitLearn:
    def test_in_a_pipeline_and_in_cross_validation(self, place: Path):
        paths = sorted((place / "images").rglob("*.png"))
        labels = [path.parent.name for path in paths]
        pipeline = make_pipeline(Encoder(place / "mae", pool="both", device="cpu"), LogisticRegression(max_iter=500))
        scores = cross_val_score(pipeline, paths, labels, cv=2)
        assert len(scores) == 2
        assert (scores >= 0).all()
        features = pipeline.fit(paths, labels)[0].transform(paths)
        encoder = unveil.load(str(place / "mae"), pool="both", device="cpu")
        assert encoder.transform is not None
        expected = encoder(torch.stack([encoder.transform(path) for path in paths]))
        np.testing.assert_allclose(features, expected.numpy(), rtol=1e-4, atol=1e-5)
        assert len(pipeline[0].get_feature_names_out()) == features.shape[1]

    def test_it_is_cloned_with_its_options(self, place: Path):
        encoder = Encoder(place / "mae", layer=(1, -1), normalize="l2", batch_size=7)
        assert clone(encoder).get_params() == encoder.get_params()
        arrays = np.zeros((9, 20, 20, 3), np.uint8)
        result = encoder.fit(arrays).transform(arrays)
        np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1, rtol=1e-4)

    def test_nothing_to_encode_is_an_error(self, place: Path):
        encoder = Encoder(place / "mae").fit([])
        with pytest.raises(ValueError, match="X is empty"):
            encoder.transform([])
