"""The public implementations' numbers, through the real importer: tests/parity/README.md says how they were made."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from torch import Tensor

from formulas import formula, noise, weights
from unveil.modeling.decoder import Blend, CrossDecoder, SelfDecoder, TaskDecoder, choose_maps
from unveil.modeling.encoder import SIZES, Encoder
from unveil.modeling.layers import sincos_positions
from unveil.modeling.losses import cross_entropy, l1, l2
from unveil.modeling.masked_model import MaskedModel, Objective, mean_loss
from unveil.modeling.masking import Masker
from unveil.modeling.public_vits import load_weights, to_own_names
from unveil.modeling.targets import Classes, Pixels
from unveil.modeling.types import Batch, Modality
from unveil.recipes import mae
from unveil.recipes.registry import build_recipe

FOLDER = Path(os.environ.get("UNVEIL_PARITY", Path(__file__).parent / "parity"))
CASES = [case for file in sorted(FOLDER.glob("*.json")) for case in json.loads(file.read_text())]
PLAIN = Modality("rgb", 3, (0.0,) * 3, (1.0,) * 3)  # the cases' images are normalised already
OURS = {  # gradients are compared under the public names
    "patch_embed.proj.weight": "encoder.adapters.rgb.proj.weight",
    "blocks.0.attn.qkv.weight": "encoder.blocks.0.attn.qkv.weight",
    "cls_token": "encoder.prefix",
    "mask_token": "decoders.pixels.mask_token",
    "wfm.linear.weight": "decoders.pixels.blend.weight",
    "decoder_pred.weight": "objectives.0.head.weight",
}


@dataclass(frozen=True)
class Given:
    """A score that was given."""

    values: Tensor

    def __call__(self, tokens, observations, batch) -> Tensor:
        return self.values


def build(case: dict) -> MaskedModel:
    cross = case["method"] == "crossmae"
    encoder = Encoder(
        (PLAIN,), (case["image_size"],), case["patch"], case["dim"], case["depth"], case["heads"], final_norm=not cross
    )
    shape = ("rgb", encoder, case["decoder_dim"], case["decoder_depth"], case["decoder_heads"])
    if cross:
        maps = None if case["use_fm"] == [-1] else [m + 1 for m in case["use_fm"]]  # theirs count blocks from 0
        blend = Blend(
            choose_maps(case["depth"], maps=maps, use_input=case["use_input"]), case["decoder_depth"], encoder.dim
        )
        decoder = CrossDecoder(*shape, blend=blend, self_attention=case["self_attn"])
    else:
        decoder = SelfDecoder(*shape)
    score = Given(noise((case["batch"], encoder.grid[0] * encoder.grid[1]), case["seed"]))
    masker = Masker(score, 1 - case["mask_ratio"], case.get("kept_mask_ratio", case["mask_ratio"]), predict_score=score)
    target = Pixels(PLAIN, case["patch"], case["norm_pix"])
    return MaskedModel(
        encoder, masker, {"pixels": decoder}, [Objective("pixels", "pixels", case["decoder_dim"], target)]
    )


def batch_of(case: dict) -> Batch:
    rgb = 1.5 * formula("image", (case["batch"], 3, case["image_size"], case["image_size"]), case["seed"])
    return Batch({"rgb": rgb}, torch.arange(case["batch"]), torch.zeros(()))


MULTIMAE = {
    "global_tokens": "encoder.prefix",
    "encoder.0.attn.qkv.weight": "encoder.blocks.0.attn.qkv.weight",
    "input_adapters.rgb.proj.weight": "encoder.adapters.rgb.proj.weight",
    "input_adapters.semseg.class_emb.weight": "encoder.adapters.semseg.classes.weight",
    "output_adapters.depth.out_proj.weight": "objectives.2.head.weight",
    "output_adapters.rgb.task_embeddings.depth": "decoders.rgb.tasks.depth",
    "output_adapters.norm_rgb.mask_token": "decoders.norm_rgb.mask_token",
}


def build_multimae(case: dict) -> MaskedModel:
    depth = Modality("depth", 1, (0.0,), (1.0,))  # the cases' depth is standardised already
    semseg = Modality("semseg", 1, (0.0,), (1.0,), "categorical", case["num_classes"], stride=case["semseg_stride"])
    modalities, patch = (PLAIN, depth, semseg), case["patch"]
    encoder = Encoder(
        modalities, (case["image_size"],), patch, case["dim"], case["depth"], case["heads"], final_norm=False,
        class_dim=case["dim_class_emb"],
    )  # fmt: skip
    shape = (encoder, case["decoder_dim"], case["decoder_depth"], case["decoder_heads"])
    decoders = {
        name: TaskDecoder(name.removeprefix("norm_"), *shape) for name in ("rgb", "norm_rgb", "depth", "semseg")
    }
    targets = (
        (Pixels(PLAIN, patch, norm_pix=False), l2), (Pixels(PLAIN, patch), l2),
        (Pixels(depth, patch, norm_pix=False), l1), (Classes(semseg, patch), cross_entropy),
    )  # fmt: skip
    objectives = [
        Objective(name, name, case["decoder_dim"], target, loss)
        for name, (target, loss) in zip(decoders, targets, strict=True)
    ]
    num_tokens = 3 * (case["image_size"] // patch) ** 2
    score = Given(noise((case["batch"], num_tokens), case["seed"]))
    visible = case["num_visible"] / num_tokens
    return MaskedModel(encoder, Masker(score, visible, 1 - visible), decoders, objectives)


def batch_of_multimae(case: dict) -> Batch:
    count, size, classes = case["batch"], case["image_size"], case["num_classes"]
    semseg = (classes * noise((count, size // 4, size // 4), case["seed"] + 1)).floor().clamp_max(classes - 1)
    maps = {
        "rgb": 1.5 * formula("image", (count, 3, size, size), case["seed"]),
        "depth": formula("depth", (count, 1, size, size), case["seed"]),
        "semseg": semseg.long()[:, None],
    }
    return Batch(maps, torch.arange(count), torch.zeros(()))


def in_public_order(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The order of the public file: inputs, then the outputs depth, semseg, rgb, norm_rgb; ours has norm_rgb second."""
    outputs = ("depth", "semseg", "rgb", "norm_rgb")
    rank = {f"output_adapters.{name}": number for number, name in enumerate(outputs, start=1)}
    return dict(sorted(state.items(), key=lambda item: rank.get(".".join(item[0].split(".")[:2]), 0)))


@pytest.mark.parametrize("order", [dict, in_public_order])
@pytest.mark.parametrize("case", [c for c in CASES if c["method"] == "multimae"], ids=lambda case: case["name"])
def test_multimae_s_numbers(case: dict, order: Callable):
    model, batch = build_multimae(case), batch_of_multimae(case)
    report = load_weights(model, to_own_names(order(weights(case["state_dict"], case["seed"]))))
    assert not report.missing, report
    assert not report.unexpected, report
    assert not report.reshaped, report

    output = model.encode_decode(batch)
    cells = output.latents.tokens.layout.num_cells
    counted = [(output.mask.visible // cells == m).sum(dim=1).tolist() for m in range(3)]
    assert list(map(list, zip(*counted, strict=True))) == case["visible_per_modality"]
    for objective in model.objectives:
        norm = objective.head(output.decoded[objective.decoder][0]).norm().item()
        assert norm == pytest.approx(case["pred_norm_first_sample"][objective.name], rel=1e-5), objective.name

    losses = model(batch)
    for name, expected in case["losses"].items():
        assert mean_loss({name: losses[name]}).item() == pytest.approx(expected, rel=1e-5), name
    mean_loss(losses).backward()
    parameters = dict(model.named_parameters())
    for name, expected in case["grad_norm"].items():
        assert parameters[MULTIMAE[name]].grad.norm().item() == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("case", [c for c in CASES if c["method"] != "multimae"], ids=lambda case: case["name"])
def test_public_numbers(case: dict):
    model, batch = build(case), batch_of(case)
    report = load_weights(model, to_own_names(weights(case["state_dict"], case["seed"])))
    assert not report.missing, report
    assert not report.unexpected, report
    assert not report.reshaped, report

    output = model.encode_decode(batch)
    if "visible_first_sample" in case:
        assert sorted(output.mask.visible[0].tolist()) == case["visible_first_sample"]
    if "predicted_first_sample" in case:
        assert sorted(output.mask.predicted[0].tolist()) == case["predicted_first_sample"]
    if "latent_mean_abs" in case:
        assert output.latents.final.abs().mean().item() == pytest.approx(case["latent_mean_abs"], rel=1e-5)
        assert output.latents.final[0, 0, :6].tolist() == pytest.approx(case["latent_cls_head"], rel=1e-4, abs=1e-6)
    if "last_feature_mean_abs" in case:
        assert output.latents.final.abs().mean().item() == pytest.approx(case["last_feature_mean_abs"], rel=1e-5)

    loss = mean_loss(model(batch))
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-5)
    parameters = dict(model.named_parameters())
    for name, expected in case["grad_norm"].items():
        assert parameters[OURS[name]].grad.norm().item() == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("norm_pix", [True, False])
def test_transformers_vit_mae(norm_pix: bool):
    """ViTMAE of transformers at shared random weights: the same loss and the same gradients."""
    transformers = pytest.importorskip("transformers", reason="the parity with ViTMAE needs transformers")
    torch.manual_seed(0)
    theirs = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, decoder_hidden_size=32,
            decoder_num_hidden_layers=2, decoder_num_attention_heads=4, decoder_intermediate_size=128, image_size=64,
            patch_size=8, mask_ratio=0.75, norm_pix_loss=norm_pix, layer_norm_eps=1e-6,
        )
    )  # fmt: skip
    for tables, dim in ((theirs.vit.embeddings.position_embeddings, 48), (theirs.decoder.decoder_pos_embed, 32)):
        tables.data[:, 1:] = sincos_positions((8, 8), dim)  # a model made without a checkpoint starts with zeros here
    case = {
        "method": "mae", "image_size": 64, "patch": 8, "dim": 48, "depth": 3, "heads": 4, "decoder_dim": 32,
        "decoder_depth": 2, "decoder_heads": 4, "mask_ratio": 0.75, "norm_pix": norm_pix, "batch": 3, "seed": 1,
    }  # fmt: skip
    ours, batch = build(case), batch_of(case)
    report = load_weights(ours, to_own_names(theirs.state_dict()))
    assert not report.missing, report
    assert not report.unexpected, report

    expected = theirs(batch.maps["rgb"], noise=noise((3, 64), 1)).loss
    expected.backward()
    loss = mean_loss(ours(batch))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    grads = to_own_names({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    parameters = dict(ours.named_parameters())
    for name in ("encoder.blocks.0.attn.qkv.weight", "encoder.adapters.rgb.proj.weight", "objectives.0.head.bias"):
        torch.testing.assert_close(parameters[name].grad, grads[name], rtol=1e-4, atol=1e-7)


def test_the_recipe_is_mae_in_one_file(monkeypatch: pytest.MonkeyPatch):
    """The recipe `mae` and docs/mae_in_one_file.py, at one set of weights and one mask: equal loss and gradients."""
    spec = spec_from_file_location("mae_in_one_file", Path(__file__).parents[1] / "docs" / "mae_in_one_file.py")
    assert spec
    assert spec.loader
    one_file = module_from_spec(spec)
    spec.loader.exec_module(one_file)
    torch.manual_seed(0)
    plain = one_file.MAE(32, 4, dim=48, depth=3, heads=4, decoder_dim=32, decoder_depth=2, decoder_heads=4)

    monkeypatch.setitem(SIZES, "tiny", (48, 3, 4))
    options = {"size": "tiny", "image_size": (32,), "patch": 4, "decoder_dim": 32, "decoder_depth": 2}
    model = build_recipe(mae.recipe, [PLAIN], {**options, "decoder_heads": 4}).stages[0].build()
    report = load_weights(model, to_own_names(plain.state_dict()))
    assert not report.missing, report
    assert not report.unexpected, report

    scores = noise((3, 64), 1)
    model.masker = Masker(Given(scores), model.masker.visible, model.masker.predicted, predict_score=Given(scores))
    images = torch.randn(3, 3, 32, 32)
    expected = plain(images, scores)
    expected.backward()
    loss = mean_loss(model(Batch({"rgb": images}, torch.arange(3), torch.zeros(()))))
    loss.backward()
    torch.testing.assert_close(loss, expected)
    grads = to_own_names({name: p.grad for name, p in plain.named_parameters() if p.grad is not None})
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert grads.keys() == trained.keys()
    for name, grad in trained.items():
        torch.testing.assert_close(grad.reshape(grads[name].shape), grads[name], rtol=1e-4, atol=1e-6)
