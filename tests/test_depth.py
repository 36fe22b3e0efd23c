"""Depth and reconstruction: losses and errors by hand, toys that are learned, what is put back, what is crossed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from measuring import on_dense
from tiny import batch, build
from tiny_runs import write_recipe
from unveil.cli import main
from unveil.commands.evaluate import evaluate
from unveil.data.dense_layouts import open_dense
from unveil.evaluation.dense.metrics import DepthErrors
from unveil.evaluation.protocols.depth import DepthLoss
from unveil.evaluation.protocols.reconstruct import Reconstruct
from unveil.evaluation.reconstructors import ModelReconstructor, TrainingMean
from unveil.evaluation.results import table
from unveil.evaluation.run import run_protocols
from unveil.evaluation.types import Context, HeldOutSamples, Masks, Score
from unveil.modeling.decoder import SelfDecoder
from unveil.modeling.encoder import Encoder
from unveil.modeling.image_encoder import ImageEncoder
from unveil.modeling.losses import cross_entropy, l1, l2
from unveil.modeling.masked_model import MaskedModel, Objective
from unveil.modeling.masking import Masker, Uniform
from unveil.modeling.rng import sample_keys
from unveil.modeling.targets import Classes, Pixels
from unveil.modeling.types import DEPTH, RGB, Batch, Modality, Observation

CLASSES = Modality("semseg", 1, (0.0,), (1.0,), kind="categorical", num_classes=3)


@pytest.fixture(scope="module")
def ramps(tmp_path_factory) -> Path:
    """Images whose brightness is their depth, from 1 m to 3 m; the first column is not known."""
    root, rng = tmp_path_factory.mktemp("ramps"), np.random.default_rng(0)
    for i in range(15):
        grey = np.kron(rng.integers(50, 250, (2, 3)), np.ones((8, 8))).astype(np.uint16)
        metres = (1000 + 10 * (grey - 50)).astype(np.uint16)
        metres[:, 0] = 0
        for kind, array in (("rgb", np.repeat(grey.astype(np.uint8)[..., None], 3, 2)), ("depth", metres)):
            (root / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(root / kind / f"{i:02}.png")
    return root


def tiny(seed: int = 0) -> ImageEncoder:
    torch.manual_seed(seed)
    return ImageEncoder(Encoder([RGB], (16,), 4, dim=16, depth=2, heads=2))


def test_errors_of_depth_by_hand():
    truth = torch.tensor([[1.0, 2.0, 4.0, 0.0]])
    guess = torch.tensor([[1.2, 3.0, 4.0, 9.0]])
    errors = DepthErrors()
    errors.add(guess, truth, truth > 0)
    result = errors.metrics()
    assert result["delta1"] == pytest.approx(2 / 3)  # ratios 1.2, 1.5 and 1: 1.25, 1.5625 and 1.953 are the limits
    assert result["delta2"] == pytest.approx(1.0)
    assert result["abs_rel"] == pytest.approx((0.2 + 0.5 + 0) / 3)
    assert result["rmse"] == pytest.approx(math.sqrt((0.04 + 1) / 3), rel=1e-6)
    errors.add(-torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert errors.metrics()["delta3"] == pytest.approx(0.75), "a depth below 0 is wrong, not an error of arithmetic"
    with pytest.raises(ValueError, match="no pixel of the test images has a depth"):
        DepthErrors().metrics()


def test_berhu_is_l1_below_a_fifth_of_the_largest_error():
    truth = torch.tensor([2.0, 2.0, 2.0, 2.0]).view(1, 1, 1, 4)
    valid = torch.tensor([True, True, True, False]).view(1, 1, 1, 4)
    guess = torch.tensor([0.1, 1.0, -0.5, 99.0]).view(1, 1, 1, 4).requires_grad_()  # truth is 0 when normalised
    loss = DepthLoss(mean=2.0, std=4.0)(guess, truth, valid)
    c = 0.2
    assert loss.item() == pytest.approx(0.1 + (1 + c * c) / (2 * c) + (0.25 + c * c) / (2 * c))
    loss.backward()
    assert guess.grad.flatten()[3] == 0
    plain = DepthLoss(2.0, 4.0, is_berhu=False)
    assert plain(guess.detach(), truth, valid).item() == pytest.approx(1.6)
    assert plain.metres(torch.tensor(0.5)).item() == 4.0


def test_depth_is_learned_and_the_same_call_gives_the_same_numbers(ramps):
    options = {"epochs": 30, "batch_size": 6, "lr": 2e-2, "loss": "l1"}
    (result,) = on_dense(tiny(), ["depth"], str(ramps), options=options)
    (again,) = on_dense(tiny(), ["depth"], str(ramps), options=options)
    assert result.metrics == again.metrics
    assert result.metrics["rmse"] < result.baselines["training mean"]["rmse"]
    assert result.settings["test_images"] == 3
    assert "the last fifth of the images is held out" in result.card
    train = open_dense(str(ramps)).train
    known = torch.cat([train.read(i, "depth").values.flatten() for i in range(len(train))])
    assert result.settings["train_depth_mean"] == pytest.approx(known[known > 0].mean().item(), rel=1e-5)
    assert "depth RMSE" in table([result])


@pytest.mark.parametrize("head", ["dpt", "convnext"])
def test_other_heads_run_from_scratch_and_fine_tuned(ramps, head):
    options = {"head": head, "frozen": False, "epochs": 1, "batch_size": 6}
    (result,) = on_dense(tiny(), ["depth"], str(ramps), options=options, baselines={"untrained": tiny(1)})
    assert set(result.baselines) == {"training mean", "from scratch"}
    assert all(math.isfinite(value) for value in result.metrics.values())


def test_wrong_dials_are_told(ramps):
    with pytest.raises(ValueError, match=r"no preset 'mae-ade20k' .*; there are probe, small, multimae-nyuv2"):
        on_dense(tiny(), ["depth"], str(ramps), options={"schedule": "mae-ade20k"})
    with pytest.raises(ValueError, match=r"no pixel of .* has a depth up to 0.5 m"):
        on_dense(tiny(), ["depth"], str(ramps), options={"max_depth": 0.5})
    with pytest.raises(ValueError, match="depth is what is to be predicted"):
        on_dense(tiny(), ["depth"], str(ramps), options={"inputs": ("depth",)})
    with pytest.raises(ValueError, match="has no semseg"):
        on_dense(tiny(), ["segment"], str(ramps))


# reconstruction


def samples(made: Batch) -> HeldOutSamples:
    return HeldOutSamples("scenes", None, lambda: iter([made]), len(made))


def reconstructed(model: MaskedModel, made: Batch, **options: Any) -> Score:
    return Reconstruct(**options).run(ModelReconstructor(model), samples(made), Context())


def scene_model(seed: int = 0) -> MaskedModel:
    """A model of pictures, depth and classes, each with a decoder of its own."""
    torch.manual_seed(seed)
    modalities = (RGB, DEPTH, CLASSES)
    encoder = Encoder(modalities, (8,), 4, dim=16, depth=2, heads=2)
    decoders = {m.name: SelfDecoder(m.name, encoder, 16, 1, 2) for m in modalities}
    aims = {
        "rgb": (Pixels(RGB, 4), l2),
        "depth": (Pixels(DEPTH, 4, norm_pix=False), l1),
        "semseg": (Classes(CLASSES, 4), cross_entropy),
    }
    objectives = [Objective(name, name, 16, target, loss) for name, (target, loss) in aims.items()]
    return MaskedModel(encoder, Masker(Uniform(), 0.25, 0.5), decoders, objectives)


def scene_batch(count: int = 4) -> Batch:
    rng = torch.Generator().manual_seed(0)
    maps = {
        "rgb": torch.rand(count, 3, 8, 8, generator=rng),
        "depth": 1 + torch.rand(count, 1, 8, 8, generator=rng),
        "semseg": torch.randint(0, 2, (count, 1, 8, 8), generator=rng),
    }
    valid = {name: torch.ones(count, 1, 8, 8, dtype=torch.bool) for name in maps}
    valid["depth"][0] = False
    return Batch(maps, sample_keys(0, 0, range(count)), torch.ones(()), valid)


def test_the_loss_is_the_models_own_under_common_masks():
    model, made = build().eval(), batch(3)
    result = reconstructed(model, made, hidden=(0.75,))
    model.masker = Masker(Uniform(), 0.25, 0.75)
    total, count = model(made)["pixels"]
    assert result.metrics["loss_0.75_pixels"] == pytest.approx((total / count).item(), rel=1e-5)


def test_psnr_is_of_hidden_pixels_with_the_truths_statistics_put_back():
    model, made = build().eval(), batch(3)
    result = reconstructed(model, made, hidden=(0.75,)).metrics["psnr_0.75_pixels"]
    (objective,) = model.objectives
    with torch.no_grad():
        output = model.encode_decode(made, Masker(Uniform(), 0.25, 0.75))
        guess = objective.head(output.decoded[objective.decoder])
    patches = torch.stack(
        [i.unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 3, 4, 0).flatten(2) for i in made.maps["rgb"]]
    )
    mean, std = objective.target.modality.mean[0], objective.target.modality.std[0]
    truth = (patches.flatten(1, 2) - mean) / std
    values = []
    for i, cells in enumerate(output.queries[objective.decoder].cells):
        own = truth[i][cells]
        said = guess[i] * (own.var(1, keepdim=True) + 1e-6).sqrt() + own.mean(1, keepdim=True)
        said, own = (((x * std + mean) * 255).round().clamp(0, 255) for x in (said, own))
        values.append(20 * math.log10(255 / (said - own).square().mean().sqrt().item()))
    assert result == pytest.approx(np.mean(values), abs=1e-3)


def test_every_modality_is_told_from_others():
    made = scene_batch()
    mean = TrainingMean(ModelReconstructor(scene_model()), lambda: iter([made]))
    models = {"this run": ModelReconstructor(scene_model()), "training mean": mean}
    (result,) = run_protocols({"reconstruct": Reconstruct((0.5,))}, models, samples(made))
    (again,) = run_protocols({"reconstruct": Reconstruct((0.5,))}, models, samples(made))
    assert result.metrics == again.metrics
    crossed = {name.split("_", 1)[1] for name in result.metrics if "_from_" in name and name.startswith("loss")}
    assert crossed == {
        *("rgb_from_depth", "rgb_from_depth_and_semseg", "depth_from_rgb", "depth_from_rgb_and_semseg"),
        *("semseg_from_rgb", "semseg_from_rgb_and_depth"),
    }
    model = ModelReconstructor(scene_model())
    depth = model.reconstruct(made, ("rgb",))["depth"]
    known = depth.predicted & (depth.target > 0)
    ratio = depth.prediction[known].clamp_min(1e-3) / depth.target[known]
    near = torch.maximum(ratio, 1 / ratio) < 1.25
    assert result.metrics["delta1_depth_from_rgb"] == pytest.approx(near.double().mean().item())
    classes = model.reconstruct(made, ("rgb", "depth"))["semseg"]
    guess, truth = (x[:, :1][classes.predicted] for x in (classes.prediction, classes.target))
    both = [((guess == k) & (truth == k)).sum() / ((guess == k) | (truth == k)).sum() for k in range(3)]
    mean = torch.stack([iou for iou in both if not iou.isnan()]).mean().item()
    assert result.metrics["miou_semseg_from_rgb_and_depth"] == pytest.approx(mean)
    assert result.baselines["training mean"].keys() == result.metrics.keys()
    assert "reconstruct RMSE depth from rgb" in table([result])
    plain = reconstructed(scene_model(), made, hidden=(0.5,), cross_modal=False)
    assert not any("_from_" in name for name in plain.metrics)
    of_depth = reconstructed(scene_model(), made, hidden=(0.5,), predict=("depth",)).metrics
    assert of_depth.items() <= result.metrics.items()
    assert {name.partition("_from_")[0] for name in of_depth if name.startswith("delta1")} == {
        "delta1_depth",
        "delta1_0.5_depth",
    }
    with pytest.raises(ValueError, match="predicts rgb, depth, semseg, not sound"):
        reconstructed(scene_model(), made, predict=("sound",))


def test_masks_that_read_no_teacher_are_drawn_without_one():
    """The guide's pass over all patches would take as long as the rest, and change nothing."""

    class Guide(nn.Module):
        def observe(self, *_: object) -> Observation:
            raise AssertionError("it was asked")

    plain, made = scene_model(), scene_batch()
    guided = MaskedModel(
        plain.encoder, plain.masker, plain.decoders, list(plain.objectives), {"student": Guide()}, plain.hide
    )
    assert reconstructed(guided, made, hidden=(0.5,)).metrics == reconstructed(plain, made, hidden=(0.5,)).metrics
    with pytest.raises(AssertionError, match="it was asked"):
        ModelReconstructor(guided).forward(made, Masks.OWN)


def test_what_is_hidden_whole_is_not_seen():
    """Depth told from colour stays what it is when depth changes, but for the statistics that are put back."""
    reconstructor, made = ModelReconstructor(scene_model()), scene_batch()
    for shown in (("rgb",), ("depth",), ("rgb", "semseg")):
        output = reconstructor.forward(made, shown)
        spans = output.latents.tokens.layout.spans
        expected = {i for name in shown for i in range(spans[name].start, spans[name].stop)}
        assert set(output.mask.visible.flatten().tolist()) == expected
    output = reconstructor.forward(made, ("rgb",))
    changed = Batch({**made.maps, "depth": made.maps["depth"] * 3}, made.key, made.progress, made.valid)
    other = reconstructor.forward(changed, ("rgb",))
    assert torch.equal(output.decoded["depth"], other.decoded["depth"])


def test_the_training_mean_is_the_mean_and_the_most_frequent_class():
    made = scene_batch()
    made.maps["semseg"][1:] = 1
    mean = TrainingMean(ModelReconstructor(scene_model()), lambda: iter([made, made]))
    target = scene_model().objectives[1].target
    values = target(made, {})[0]
    torch.testing.assert_close(mean.means["depth"], values[1:].mean(0))  # the first sample has no depth
    output = mean.reconstruct(made, ("rgb",))
    assert (output["semseg"].prediction == 1).all()
    assert not output["depth"].predicted[0].any()
    assert output["depth"].losses[0].isnan()


def test_what_cannot_be_reconstructed_is_told():
    made = batch(2)
    with pytest.raises(ValueError, match="hidden is one share between 0 and 1"):
        reconstructed(build(), made, hidden=(1.0,))
    model = build()
    model.objectives = torch.nn.ModuleList()
    with pytest.raises(ValueError, match="predicts features only"):
        reconstructed(model, made)


def test_a_run_from_the_command_line(ramps, tmp_path, monkeypatch, capsys):
    """A run is trained and evaluated as a user would; results lie beside the others'."""
    monkeypatch.chdir(tmp_path)
    run, few = str(tmp_path / "run"), ("--epochs", "1", "--batch-size", "6")
    words = ("--data", str(ramps / "rgb"), "--image-size", "16", "--out", run, *few)
    assert main(["pretrain", write_recipe(tmp_path), *words, "--held-out-share", "0.2"]) == 0
    assert main(["evaluate", run, "--data", str(ramps), "--protocol", "depth", *few]) == 0
    assert main(["evaluate", run, "--data", str(ramps / "rgb"), "--protocol", "reconstruct", "--hidden", "0.75"]) == 0
    depth, restored = (
        json.loads((tmp_path / f"run/eval/{name}.json").read_text()) for name in ("depth", "reconstruct")
    )
    assert set(depth["baselines"]) == {"training mean", "untrained"}
    assert set(restored["baselines"]) == {"training mean", "untrained"}
    assert restored["settings"]["test_images"] == 3, "those that the run has held out"
    assert "depth RMSE" in capsys.readouterr().out
    for limit, used in ((2, 2), (4, 3)):  # of test data, too, those that the run was trained on are left out
        other = (
            "--data",
            str(ramps / "rgb"),
            "--test-data",
            str(ramps / "rgb"),
            "--no-baselines",
            "--limit",
            str(limit),
        )
        assert main(["evaluate", run, *other, "--protocol", "reconstruct"]) == 0
        settings = json.loads((tmp_path / "run/eval/reconstruct.json").read_text())["settings"]
        assert settings["test_images"] == used
    assert main(["evaluate", run, "--data", str(ramps), "--protocol", "depth", "knn"]) == 2
    assert "give a command for each" in capsys.readouterr().err
    (tmp_path / "vit.safetensors").write_bytes(b"weights")
    with pytest.raises(ValueError, match="needs a run with its decoders"):
        evaluate("vit.safetensors", data=str(ramps), protocol=("reconstruct",))
