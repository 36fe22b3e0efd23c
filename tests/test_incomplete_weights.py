"""Weights that lack a tensor, or a part that encoders usually have: refused or said, never filled in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import unveil
from unveil.cli import main
from unveil.modeling.encoder import Encoder
from unveil.modeling.image_encoder import ImageEncoder
from unveil.modeling.types import RGB

WIDTH = 64


def timm_vit(fused: bool = True) -> dict[str, Tensor]:
    """A ViT of two blocks under timm's names, with one projection for queries, keys and values or three."""
    rng = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 17, WIDTH)}
    linears = {"patch_embed.proj": (WIDTH, 3, 4, 4)}
    for block in ("blocks.0", "blocks.1"):
        parts = {"qkv": 3 * WIDTH} if fused else dict.fromkeys(("q_proj", "k_proj", "v_proj"), WIDTH)
        linears |= {f"{block}.attn.{linear}": (rows, WIDTH) for linear, rows in parts.items()}
        linears |= {f"{block}.attn.proj": (WIDTH, WIDTH)}
        linears |= {f"{block}.mlp.fc1": (4 * WIDTH, WIDTH), f"{block}.mlp.fc2": (WIDTH, 4 * WIDTH)}
        linears |= {f"{block}.norm1": (WIDTH,), f"{block}.norm2": (WIDTH,)}
    linears["norm"] = (WIDTH,)
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {name: 0.1 * torch.randn(shape, generator=rng) for name, shape in shapes.items()}


def loaded(state: dict[str, Tensor], folder: Path) -> torch.nn.Module:
    torch.save(state, folder / "vit.pth")
    return unveil.load(folder / "vit.pth")


@pytest.mark.parametrize("name", sorted(timm_vit().keys() - {"cls_token"}))
def test_a_vit_that_lacks_a_tensor_is_refused(name: str, tmp_path: Path):
    state = timm_vit()
    del state[name]
    with pytest.raises(ValueError, match=r"Missing|lacks|no plain ViT|no tensor|holds no|positions|Left over"):
        loaded(state, tmp_path)


def test_an_encoder_without_a_final_norm_is_said_to_have_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """As MAE's fine-tuned ViTs, whose norm comes after pooling and belongs to the classifier."""
    state = {
        name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: t for name, t in timm_vit().items()
    }
    loaded(state, tmp_path)
    assert "it has no final norm" in "".join(capsys.readouterr())


@pytest.mark.parametrize("letter", "qkv")
@pytest.mark.parametrize("end", ["weight", "bias"])
def test_separate_projections_that_lack_one_of_a_block_are_refused(letter: str, end: str, tmp_path: Path):
    state = timm_vit(fused=False)
    loaded(state, tmp_path)
    del state[f"blocks.1.attn.{letter}_proj.{end}"]
    with pytest.raises(ValueError, match=rf"blocks\.1\.attn\.{letter}_proj\.{end}|[Mm]issing|Left over"):
        loaded(state, tmp_path)


def test_encoders_without_key_biases_and_without_biases_load(tmp_path: Path):
    state = timm_vit(fused=False)
    without = {name: t for name, t in state.items() if not name.endswith("k_proj.bias")}
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    zeroed = {name: torch.zeros_like(t) if name.endswith("k_proj.bias") else t for name, t in state.items()}
    torch.testing.assert_close(loaded(without, tmp_path)(images), loaded(zeroed, tmp_path)(images))
    fused = {name: t for name, t in timm_vit().items() if not name.endswith("qkv.bias")}
    assert loaded(fused, tmp_path)(images).isfinite().all()


def test_an_encoder_is_saved_under_a_name_as_text_and_no_other_kind_of_file(tmp_path: Path):
    encoder = ImageEncoder(Encoder([RGB], (8,), 4, dim=16, depth=2, heads=2))
    encoder.save(str(tmp_path / "encoder.safetensors"))
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(unveil.load(tmp_path / "encoder.safetensors")(images), encoder.eval()(images))
    for name in ("encoder", "encoder.pth"):
        with pytest.raises(ValueError, match=r"saved to a \.safetensors file; got"):
            encoder.save(tmp_path / name)
        assert not (tmp_path / name).exists()


def test_depth_of_8_bits_and_maps_of_one_class_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rng = np.random.default_rng(0)
    for i in range(4):
        maps = {"rgb": rng.integers(0, 255, (16, 16, 3)), "depth": rng.integers(1, 255, (16, 16))}
        maps["semseg"] = rng.integers(0, 2, (16, 16)) * 255
        for name, pixels in maps.items():
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / f"{i}.png")
    assert main(["inspect", str(tmp_path), "--modalities", "rgb", "depth", "semseg"]) == 0
    text = "".join(capsys.readouterr())
    assert "8-bit numbers are read as millimetres; declare their scale" in text
    assert "one class alone; 255 is no class" in text
