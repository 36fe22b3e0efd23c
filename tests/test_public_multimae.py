"""A public MultiMAE file as an encoder: of images, and of depth and classes beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from public_models import close
from test_public_vits import CROSS
from test_public_vits_encoders import folder_of
from tiny import build
from unveil.modeling.encoder import Encoder
from unveil.modeling.image_encoder import ImageEncoder, pooled
from unveil.modeling.layers import sincos_positions
from unveil.modeling.public_vits import load_encoder, untrained_vit
from unveil.modeling.types import DEPTH, RGB, SEMSEG, Batch


def test_multimae_s_rgb_encoder(tmp_path: Path):
    """Its global token is the last, its positions count rows first, an adapter without a bias is left out."""
    encoder = build(image_size=(16, 16), **CROSS).encoder
    theirs = load_encoder(folder_of(tmp_path / "multimae", public_multimae(encoder) | WITHOUT_BIAS))
    assert [m.name for m in theirs.modalities] == ["rgb"]
    theirs.mean.fill_(0.4)
    theirs.std.fill_(0.3)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        close(theirs.features(images, "both"), pooled(encoder, images, "both"))


WITHOUT_BIAS = {
    "input_adapters.depth.proj.weight": torch.zeros(24, 1, 4, 4),
    "output_adapters.rgb.mask_token": torch.zeros(1, 1, 8),
}


def test_multimae_s_encoder_reads_depth_and_classes_beside_images(tmp_path: Path):
    """Of a file in the public layout, any of its maps, one after another: what `--inputs rgb depth` reads."""
    semantics = replace(SEMSEG, num_classes=5, stride=2)
    encoder = Encoder((RGB, DEPTH, semantics), (16,), 4, 24, 2, 2, final_norm=False)
    theirs = load_encoder(folder_of(tmp_path / "multimae", public_multimae(encoder)))
    assert theirs.modalities == encoder.modalities
    own = ImageEncoder(encoder)
    maps = {
        "rgb": torch.rand(2, 3, 16, 16),
        "depth": 1 + torch.rand(2, 1, 16, 16),
        "semseg": torch.randint(0, 5, (2, 1, 8, 8)),
    }
    for names in (("rgb",), ("depth",), ("rgb", "depth"), ("rgb", "depth", "semseg")):
        valid = {"depth": torch.rand(2, 1, 16, 16) > 0.1} if "depth" in names else {}
        batch = Batch({n: maps[n] for n in names}, torch.zeros(2, dtype=torch.int64), torch.zeros(()), valid)
        with torch.no_grad():
            for mine, public in zip(own.tokens(batch, (1, 2)), theirs.tokens(batch, (1, 2)), strict=True):
                assert public.shape == (2, 1 + 16 * len(names), 24)
                close(public, mine)
    untrained = untrained_vit(theirs.config, 0)
    assert untrained.modalities == encoder.modalities


def test_a_public_multimae_is_evaluated_on_images_and_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The classes are in the depth alone: its slope. Images are noise."""
    monkeypatch.chdir(tmp_path)
    encoder = Encoder((RGB, DEPTH), (16,), 4, 24, 2, 2, final_norm=False)
    file = folder_of(tmp_path / "multimae", public_multimae(encoder))
    rng = np.random.default_rng(0)
    slope = np.tile(np.linspace(1000, 5000, 16), (16, 1))
    for number in range(40):
        kind = ("right", "down")[number % 2]
        for name in ("rgb", "depth"):
            (tmp_path / "data" / name / kind).mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        depth = (slope if kind == "right" else slope.T) + rng.normal(0, 50, (16, 16))
        Image.fromarray(noise).save(tmp_path / f"data/rgb/{kind}/{number}.png")
        Image.fromarray(depth.astype(np.uint16)).save(tmp_path / f"data/depth/{kind}/{number}.png")

    def accuracy(inputs: tuple[str, ...], **options: object) -> dict[str, float]:
        given = {"protocol": ("knn", "linear"), "baselines": False, "device": "cpu", **options}
        results = unveil.evaluate(str(file), data=str(tmp_path / "data"), inputs=inputs, **given)
        assert all(result.settings.get("inputs", []) == list(inputs) for result in results)
        return {result.protocol: result.metrics["accuracy"] for result in results}

    assert max(accuracy(()).values()) < 0.9
    assert accuracy(("depth",)) == {"knn": 1.0, "linear": 1.0}
    together = unveil.evaluate(
        str(file), data=str(tmp_path / "data"), inputs=("depth", "rgb"), protocol=("knn",), device="cpu"
    )
    assert together[0].settings["inputs"] == ["rgb", "depth"]
    assert {"pixels", "untrained"} <= set(together[0].baselines)
    with pytest.raises(ValueError, match="finetune with these options reads images alone"):
        accuracy(("rgb", "depth"), protocol=("finetune",))
    with pytest.raises(ValueError, match="this encoder reads rgb, depth, not thermal; give other --inputs"):
        accuracy(("thermal",))


def public_multimae(encoder: Encoder) -> dict[str, torch.Tensor]:
    """The weights of an encoder of 4 x 4 patches of 4 pixels as MultiMAE's repository lays them out."""
    own = encoder.state_dict()
    rows_first = sincos_positions((4, 4), 24).unflatten(0, (4, 4)).transpose(0, 1).permute(2, 0, 1)[None]
    encoder.positions.table = rows_first[0].flatten(1).T
    state = {"global_tokens": own["prefix"][None]}
    for m in encoder.modalities:
        public, mine, side = f"input_adapters.{m.name}.", f"adapters.{m.name}.", m.side(4)
        weight = own[f"{mine}proj.weight"].unflatten(1, (side, side, -1)).permute(0, 3, 1, 2)
        state |= {f"{public}pos_emb": rows_first, f"{public}proj.weight": weight}
        state[f"{public}proj.bias"] = own[f"{mine}proj.bias"]
        if m.kind == "categorical":
            state[f"{public}class_emb.weight"] = own[f"{mine}classes.weight"]
    for name, tensor in own.items():
        if name.startswith("blocks."):
            name = name.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.2.", ".mlp.fc2.")
            state["encoder." + name.removeprefix("blocks.")] = tensor
    return state
