"""A frozen teacher: what it sees of a batch, and that it is no part of what is trained or saved."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tiny import batch, build, modality
from unveil.modeling.encoder import Encoder
from unveil.modeling.layers import sincos_positions
from unveil.modeling.masked_model import MaskedModel, Objective, mean_loss
from unveil.modeling.optim import Optim, adamw
from unveil.modeling.public_vits import PublicViT, ViTConfig, load_encoder, untrained_vit
from unveil.modeling.targets import Pixels
from unveil.modeling.teachers import FrozenTeacher, load_teacher
from unveil.modeling.teachers import frozen as frozen_file
from unveil.modeling.types import Batch, FeatureSpec, Observations

SPEC = ViTConfig(
    width=64, depth=2, heads=1, patch=8, hidden=128, grid=(2, 2), mean=(0.3, 0.4, 0.5), std=(0.1, 0.2, 0.3)
)


@pytest.fixture(autouse=True)
def _unread(monkeypatch: pytest.MonkeyPatch):
    """What one test reads and tells is nothing to the next; numbers are compared in float32."""
    frozen_file._read.cache_clear()
    frozen_file._log_once.cache_clear()
    monkeypatch.setattr(frozen_file, "has_native_bf16", lambda device: False)


def student(channels: int = 3, size: tuple[int, int] = (16, 24)) -> Encoder:
    return Encoder([modality(channels)], size, 4, 24, 2, 2)


def public_file(path: Path, channels: int = 3, patch: int = 8) -> Path:
    """A plain ViT of one head and two blocks as MAE, DINO and timm name it."""
    draw = torch.Generator().manual_seed(3)

    def tensor(*shape: int) -> Tensor:
        return 0.2 * torch.randn(*shape, generator=draw)

    state = {"cls_token": tensor(1, 1, 64), "pos_embed": tensor(1, 5, 64), "norm.weight": torch.ones(64)}
    state |= {"norm.bias": tensor(64), "patch_embed.proj.weight": tensor(64, channels, patch, patch)}
    state["patch_embed.proj.bias"] = tensor(64)
    shapes = {"attn.qkv": (192, 64), "attn.proj": (64, 64), "mlp.fc1": (128, 64), "mlp.fc2": (64, 128)}
    for i in range(2):
        for text in ("norm1", "norm2"):
            state |= {f"blocks.{i}.{text}.weight": torch.ones(64), f"blocks.{i}.{text}.bias": tensor(64)}
        for text, shape in shapes.items():
            state |= {f"blocks.{i}.{text}.weight": tensor(*shape), f"blocks.{i}.{text}.bias": tensor(shape[0])}
    save_file(state, path)
    return path


def test_it_sees_the_images_at_the_student_s_cells(tmp_path: Path):
    on = batch()
    pupil = student()
    teacher = load_teacher(str(public_file(tmp_path / "w.safetensors")), pupil, FeatureSpec("cls"))
    observation = teacher.observe(on, pupil.embed(on), pupil)
    assert observation.attention is not None
    assert observation.features is not None
    assert observation.attention.shape == (3, 1, 24)
    assert observation.features.shape == (3, 24, teacher.dim)
    assert observation.layout.grid == (4, 6)
    assert observation.layout.spans == {"rgb": slice(0, 24)}
    assert not observation.features.requires_grad
    larger = torch.nn.functional.interpolate(on.maps["rgb"], (32, 48), mode="bicubic", antialias=True).clamp(0, 1)
    encoder = teacher.encoder
    expected = encoder.vit((larger - encoder.mean) / encoder.std)[:, 1:]
    torch.testing.assert_close(observation.features, expected)


def test_it_is_neither_trained_nor_saved():
    model = with_teacher(untrained_vit(SPEC, 0))
    plain = with_teacher(None)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert dict(model.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    model.load_state_dict(plain.state_dict())
    count = sum(len(group["params"]) for group in adamw(model, Optim()).param_groups)
    assert count == len(list(plain.parameters()))
    before = model.train().teachers["teacher"].encoder.vit.embed.weight.clone()
    mean_loss(model(batch())).backward()
    teacher = model.teachers["teacher"]
    assert torch.equal(teacher.encoder.vit.embed.weight, before)
    assert teacher.encoder.vit.embed.weight.grad is None
    assert not any(submodule.training for submodule in teacher.modules())


def test_it_moves_with_its_model():
    teacher = with_teacher(untrained_vit(SPEC, 0)).to("meta").teachers["teacher"]
    assert teacher.encoder.device.type == "meta"
    assert {b.device.type for b in teacher.buffers()} == {"meta"}


def with_teacher(encoder: PublicViT | None, spec: FeatureSpec = FeatureSpec("cls")) -> MaskedModel:  # noqa: B008
    """A model that is taught nothing by it, but has it look: its features are a part of the loss through a score."""
    model = build(image_size=(16, 24))
    teachers = {"teacher": FrozenTeacher(encoder, spec)} if encoder else {}
    objectives = [Objective("pixels", "pixels", 16, Looking(modality(3), 4, bool(encoder)))]
    return MaskedModel(model.encoder, model.masker, dict(model.decoders), objectives, teachers)


class Looking(Pixels):
    """Pixels, plus what the teacher saw."""

    def __init__(self, modality, patch: int, looks: bool):
        super().__init__(modality, patch)
        object.__setattr__(self, "looks", looks)

    def __call__(self, batch: Batch, observations: Observations) -> tuple[Tensor, Tensor]:
        values, valid = super().__call__(batch, observations)
        if self.looks:
            observation = observations["teacher"]
            values = values + observation.features.mean(-1, keepdim=True) + observation.attention.mean(1)[..., None]
        return values, valid


@pytest.mark.parametrize(("query", "positions"), [("cls", "table"), ("mean", "rotary")])
def test_it_compiles_within_the_step(query: str, positions: str):
    """As one graph, and with the same numbers: images and positions are resized inside it."""
    config = replace(SPEC, positions=positions, antialias=True)
    model = with_teacher(untrained_vit(config, 1), FeatureSpec(query))
    expected = mean_loss(model(batch()))
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    result = mean_loss(compiled(batch()))
    torch.testing.assert_close(result, expected)
    result.backward()


def test_bf16_where_the_device_has_it(monkeypatch: pytest.MonkeyPatch):
    pupil, on = student(), batch()
    full = load_teacher("random", pupil)
    observation = full.observe(on, pupil.embed(on), pupil)
    monkeypatch.setattr(frozen_file, "has_native_bf16", lambda device: True)
    half = load_teacher("random", pupil)
    dtypes = []
    half.encoder.vit.embed.register_forward_hook(lambda module, given, result: dtypes.append(result.dtype))
    rough = half.observe(on, pupil.embed(on), pupil)
    assert dtypes == [torch.bfloat16]
    for exact, near in ((observation.attention, rough.attention), (observation.features, rough.features)):
        assert near.dtype == torch.float32
        torch.testing.assert_close(near, exact, rtol=0.1, atol=0.1)


# Channels


def test_bands_are_chosen_and_counted_from_one(tmp_path: Path):
    file = str(public_file(tmp_path / "w.safetensors"))
    pupil, on = student(channels=5), batch(channels=5)
    teacher = load_teacher(file, pupil, channels=(3, 2, 1))
    observation = teacher.observe(on, pupil.embed(on), pupil).features
    turned = Batch({"rgb": on.maps["rgb"][:, [2, 1, 0]]}, on.key, on.progress)
    other = student()
    torch.testing.assert_close(
        observation, load_teacher(file, other).observe(turned, other.embed(turned), other).features
    )
    assert observation.std() > 0.1


def test_a_grey_image_is_repeated(tmp_path: Path):
    file = str(public_file(tmp_path / "w.safetensors"))
    pupil, on = student(channels=1), batch(channels=1)
    observation = load_teacher(file, pupil).observe(on, pupil.embed(on), pupil).features
    thrice = Batch({"rgb": on.maps["rgb"].expand(-1, 3, -1, -1)}, on.key, on.progress)
    other = student()
    torch.testing.assert_close(
        observation, load_teacher(file, other).observe(thrice, other.embed(thrice), other).features
    )


def test_channels_that_do_not_fit(tmp_path: Path):
    file = str(public_file(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match="reads images of 3 channels, and those of rgb have 5; choose 3 of them with"):
        load_teacher(file, student(channels=5))
    with pytest.raises(ValueError, match="reads images of 3 channels, and those of rgb have 2"):
        load_teacher(file, student(channels=5), channels=(1, 2))
    for channels, wrong in (((0, 1, 2), 0), ((1, 2, 6), 6)):
        with pytest.raises(ValueError, match=f"from 1 to 5, as rgb has; got {wrong}"):
            load_teacher(file, student(channels=5), channels=channels)
    with pytest.raises(ValueError, match="the student reads rgb, not depth"):
        load_teacher(file, student(), modality="depth")


# Told, read once


def test_resizing_is_told_once_and_warned_of_beyond_a_factor_of_two(tmp_path: Path, capsys: pytest.CaptureFixture):
    file = str(public_file(tmp_path / "w.safetensors"))
    for _ in range(2):
        load_teacher(file, student())
    stderr = capsys.readouterr().err
    assert stderr.count("images of 16 x 24 are resized to 32 x 48 for the teacher") == 1
    assert stderr.count("tensors loaded") == 1
    assert "warning" not in stderr
    load_teacher(str(public_file(tmp_path / "large.safetensors", patch=16)), student())
    stderr = capsys.readouterr().err
    assert "warning: images of 16 x 24 are resized to 64 x 96 for the teacher" in stderr
    assert "by a factor of 4" in stderr
    load_teacher(str(public_file(tmp_path / "own.safetensors", patch=4)), student())
    assert "resized" not in capsys.readouterr().err


def test_a_file_that_has_changed_is_read_again(tmp_path: Path):
    path = public_file(tmp_path / "w.safetensors")
    first = load_teacher(str(path), student())
    assert load_teacher(str(path), student()).encoder is first.encoder
    os.utime(path, ns=(1, 1))
    assert load_teacher(str(path), student()).encoder is not first.encoder


def test_reading_a_teacher_draws_nothing_from_the_run_s_chance(tmp_path: Path):
    path = str(public_file(tmp_path / "w.safetensors"))
    torch.manual_seed(5)
    expected = torch.rand(3)
    for address in (path, "random"):
        pupil = student()
        torch.manual_seed(5)
        load_teacher(address, pupil)
        assert torch.equal(torch.rand(3), expected)


# The control


def test_a_random_teacher_is_of_the_student_s_shape_and_the_seed_s_chance():
    pupil, on = student(channels=5), batch(channels=5)
    torch.manual_seed(7)
    twin = Encoder([modality(5)], (16, 24), 4, 24, 2, 2)
    first, again, other = (load_teacher("random", pupil, seed=seed) for seed in (7, 7, 8))
    config = first.encoder.config
    assert (config.width, config.depth, config.heads, config.patch, config.channels) == (24, 2, 2, 4, 5)
    assert config.mean == (0.4,) * 5
    ours, theirs = (t.encoder.vit.embed.weight for t in (first, again))
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, other.encoder.vit.embed.weight)
    assert not torch.equal(ours, twin.adapters["rgb"].proj.weight), "nor the student's own numbers"
    observation = first.observe(on, pupil.embed(on), pupil)
    assert torch.equal(first.encoder.vit.position_embedding((4, 6)), sincos_positions((4, 6), 24))
    assert observation.attention.shape == (3, 2, 24)


def test_a_reading_that_the_teacher_has_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = str(public_file(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match="layers from -2 to 1"):
        load_teacher(file, student(), FeatureSpec("cls", 2))
    with pytest.raises(ValueError, match="no output projection"):
        FrozenTeacher(load_encoder(file), FeatureSpec("cls", projected=True))
    assert not load_teacher(file, student(), FeatureSpec("cls", projected=True)).spec.projected
    assert f"the teacher {file} has no output projection" in capsys.readouterr().err
    headless = untrained_vit(replace(SPEC, num_prefix=0), 0)
    with pytest.raises(ValueError, match="no class token whose attention"):
        FrozenTeacher(headless, FeatureSpec("cls"))
    assert isinstance(FrozenTeacher(headless, FeatureSpec("mean")), nn.Module)
