"""Muon: its update against a plain computation, which weights it is for, and how it skips steps and continues."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing import spawn

import unveil
from tiny import build, build_of
from tiny_runs import write_images, write_recipe
from unveil.modeling.layers import Block
from unveil.modeling.optim import OPTIMIZERS, Optim, block_matrices, make_optimizer
from unveil.modeling.optimizers import Muon, orthogonal
from unveil.recipes import crossmae, mae
from unveil.recipes.registry import build_recipe, default_modalities, defaults_of, load_recipe, recipe_cards
from unveil.runs.checkpoint import fitting_moments, optimizer_tensors, read_latest, restore_optimizer
from unveil.training.autoconfig import AutoConfig, configure_schedule
from unveil.training.init_from import PreviousTraining, check_rate

MUON = Optim(optimizer="muon")


def written_out(weight: np.ndarray, gradients: list[np.ndarray], lr: float, decay: float, parts: int) -> np.ndarray:
    """Muon on one weight of so many matrices, one below another, by the papers' formulas, in float64."""
    momentum = np.zeros_like(weight)
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * gradient
        ahead = 0.05 * gradient + 0.95 * momentum
        updates = []
        for part in np.split(ahead, parts):
            x = part.T if part.shape[0] > part.shape[1] else part
            x = x / np.sqrt((x**2).sum())
            for _ in range(5):
                square = x @ x.T
                x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
            longer = max(part.shape)
            updates.append(0.2 * math.sqrt(longer) * (x.T if part.shape[0] > part.shape[1] else x))
        weight = weight * (1 - lr * decay) - lr * np.concatenate(updates)
    return weight


@pytest.mark.parametrize(
    ("shape", "parts"), [((12, 12), 1), ((36, 12), 3), ((36, 12), 1), ((48, 12), 2), ((16, 40), 2), ((8, 32), 1)]
)
def test_the_update_is_the_papers(shape: tuple[int, int], parts: int):
    rng = np.random.default_rng(0)
    weights, gradients = rng.normal(size=(3, *shape)), rng.normal(size=(4, 3, *shape)) * 1e-3
    parameters = [nn.Parameter(torch.tensor(w, dtype=torch.float32)) for w in weights]
    optimizer = Muon([{"params": parameters, "stacked": parts}], lr=0.02, weight_decay=0.5)
    for of_step in gradients:
        for parameter, gradient in zip(parameters, of_step, strict=True):
            parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    for index, parameter in enumerate(parameters):
        expected = written_out(weights[index], list(gradients[:, index]), 0.02, 0.5, parts)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, atol=1e-5)
        assert np.abs(expected - weights[index]).max() > 0.02


@pytest.mark.parametrize("shape", [(24, 24), (96, 24), (24, 96)])
def test_the_update_is_torch_s_in_bf16(shape: tuple[int, int]):
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(2, *shape, generator=generator)
    ours, theirs = ([nn.Parameter(w.clone()) for w in first] for _ in range(2))
    batched = Muon([{"params": ours}], lr=0.01, weight_decay=0.1)
    plain = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = b.grad = torch.randn(shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            batched.step()
        plain.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)  # bf16 of three updates of 0.002


def test_the_size_of_an_update_is_adamw_s():
    """Whatever the gradient's: singular values near one, a root mean square of about 0.2 times the rate."""
    torch.manual_seed(0)
    for shape in ((48, 48), (144, 48), (48, 192)):
        gradient = torch.randn(1, *shape) * 1e-6
        values = torch.linalg.svdvals(orthogonal(gradient))
        assert values.max() < 1.3
        assert values[values > 0.5].numel() > 0.9 * values.numel()
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = gradient[0]
        Muon([{"params": [weight]}], lr=0.01).step()
        assert 0.7 * 0.002 < weight.square().mean().sqrt() < 1.2 * 0.002


def test_which_weights_are_whose():
    model = build_of(crossmae, optimizer="muon")
    optimizer = make_optimizer(model, MUON)
    names = {p: name for name, p in model.named_parameters()}
    groups = [({names[p] for p in group["params"]}, group) for group in optimizer.param_groups]
    assert sorted(n for of, _ in groups for n in of) == sorted(names.values()), "each once"
    linear = ("attn.proj", "cross_attn.q", "mlp.0", "mlp.2")
    expected = {f"{layer}.weight": 1 for layer in linear} | {"attn.qkv.weight": 3, "cross_attn.kv.weight": 2}
    for of, group in groups:
        for name in of:
            layer = name.partition("blocks.")[2].partition(".")[2].replace("cross_attn.proj", "attn.proj")
            assert group.get("stacked") == (expected.get(layer) if "blocks." in name else None), name
            assert group["weight_decay"] == (0.0 if name.endswith("bias") or "norm" in name else 0.05), name
    adamw = {name for of, group in groups if "stacked" not in group for name in of}
    assert {"encoder.prefix", "encoder.adapters.rgb.proj.weight", "objectives.0.head.weight"} <= adamw
    assert {"decoders.pixels.mask_token", "decoders.pixels.blend.weight"} <= adamw
    everything = make_optimizer(model, Optim(optimizer="muon", weight_decay_on="all"))
    assert {group["weight_decay"] for group in everything.param_groups} == {0.0, 0.05}
    assert not everything.param_groups[-1]["params"]


def test_a_frozen_block_is_left_alone_and_a_model_without_blocks_is_refused():
    model = build_of(mae)
    model.encoder.requires_grad_(False)
    assert set(block_matrices(model)) == {
        p for n, p in model.named_parameters() if n.startswith("decoders.") and "blocks." in n and p.ndim == 2
    }
    with pytest.raises(ValueError, match="--optimizer adamw"):
        make_optimizer(nn.Linear(3, 3), MUON)


def test_every_recipe_has_the_option():
    for name in recipe_cards():
        recipe = load_recipe(name)
        teacher = {"teacher": "random"} if defaults_of(recipe).get("teacher") else {}
        built = build_recipe(recipe, default_modalities(recipe) or (), {"size": "nano", "optimizer": "muon", **teacher})
        assert built.optim.optimizer == "muon", name


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_skipped_step_leaves_everything_as_it_was(name: str):
    """A first one, before there are moments, and a later one; the next step is as if it had not been."""
    models = [build(), build()]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [make_optimizer(model, Optim(optimizer=name)) for model in models]
    torch.manual_seed(0)
    for is_skipped in (True, False, True, False):
        for group in (g for optimizer in optimizers for g in optimizer.param_groups):
            group["lr"] = 0.01
        for pair in zip(*(model.parameters() for model in models), strict=True):
            pair[0].grad = torch.full_like(pair[0], math.nan) if is_skipped else torch.randn_like(pair[0])
            pair[1].grad = pair[0].grad.clone()
        optimizers[0].found_inf = torch.tensor(float(is_skipped))
        optimizers[1].found_inf = torch.tensor(0.0)
        optimizers[0].step()
        if not is_skipped:
            optimizers[1].step()
        for a, b in zip(*(model.parameters() for model in models), strict=True):
            assert torch.equal(a, b)
    states = [optimizer_tensors(m, o) for m, o in zip(models, optimizers, strict=True)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_moments_go_to_those_who_keep_them():
    """Into the optimizer of the same name all; from AdamW to Muon those that AdamW still updates."""
    model = build()
    saved = {}
    for name in OPTIMIZERS:
        optimizer = make_optimizer(model, Optim(optimizer=name))
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        saved[name] = optimizer_tensors(model, optimizer)
        again = make_optimizer(model, Optim(optimizer=name))
        restore_optimizer(model, again, saved[name])
        assert all(torch.equal(v, saved[name][n]) for n, v in optimizer_tensors(model, again).items())
        assert fitting_moments(model, again, saved[name]).keys() == saved[name].keys()
    matrices = {name for name, p in model.named_parameters() if p in block_matrices(model)}
    muon = make_optimizer(model, MUON)
    fitting = fitting_moments(model, muon, saved["adamw"])
    assert {n.partition(":")[0] for n in fitting} == {n for n, _ in model.named_parameters()} - matrices
    assert {n.partition(":")[0] for n in fitting_moments(model, muon, saved["sgd"])} == matrices


def learn(model: nn.Module, wrapped: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """The weights after three updates by Muon, without biases: that of keys has no gradient but rounding."""
    optimizer = make_optimizer(model, MUON)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    for _ in range(3):
        wrapped(batch).square().mean().backward()
        optimizer.found_inf = torch.tensor(0.0)
        optimizer.step()
        optimizer.zero_grad()
    weights = {name: p for name, p in model.named_parameters() if not name.endswith("qkv.bias")}
    return {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in weights.items()}


def one_of_two(rank: int, file: str) -> None:
    """What one of two processes checks: each learns from its half, by DDP and by FSDP2, what one learns from all."""
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    batch = torch.randn(4, 3, 10, generator=torch.Generator().manual_seed(0))
    own = batch[2 * rank : 2 * rank + 2]
    torch.manual_seed(0)
    alone, copied, sharded = (nn.ModuleDict({"blocks": Block(10, 2)}) for _ in range(3))
    for model in (copied, sharded):
        model.load_state_dict(alone.state_dict())
    expected = learn(alone, alone["blocks"], batch)
    fully_shard(sharded["blocks"], mesh=init_device_mesh("cpu", (2,)))
    for weights in (
        learn(copied, DistributedDataParallel(copied["blocks"]), own),
        learn(sharded, sharded["blocks"], own),
    ):
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-4)
    destroy_process_group()


def test_two_processes_learn_what_one_learns_with_whole_and_with_sharded_weights(tmp_path: Path):
    spawn(one_of_two, (str(tmp_path / "meet"),), nprocs=2)


def test_the_automatic_rate_is_adamw_s_and_sgd_needs_its_own():
    options = {"size": "tiny", "image_size": (32,), "patch": 4}
    rates = []
    for name in ("adamw", "muon"):
        auto = AutoConfig(mae.recipe, {**options, "optimizer": name})
        configure_schedule(auto, 5000, 0.004, minutes=10)
        check_rate(auto, None)
        rates.append((auto.options["lr"], auto.options["batch_size"]))
    assert rates[0] == rates[1]
    with pytest.raises(ValueError, match="give --lr"):
        check_rate(AutoConfig(mae.recipe, {"optimizer": "sgd"}), None)
    with pytest.raises(ValueError, match="give --lr"):
        check_rate(AutoConfig(mae.recipe, {"optimizer": "sgd"}), PreviousTraining(10, {"optimizer": "adamw"}))
    check_rate(AutoConfig(mae.recipe, {"optimizer": "sgd"}), PreviousTraining(10, {"optimizer": "sgd"}))
    check_rate(AutoConfig(mae.recipe, {"optimizer": "sgd", "lr": 0.1}), None)


def test_an_optimizer_that_there_is_not():
    with pytest.raises(ValueError, match="optimizer is one of adamw, muon, sgd; got 'lion'"):
        Optim(optimizer="lion")


def test_a_continued_run_keeps_its_optimizer(tmp_path: Path, capsys: pytest.CaptureFixture):
    quick = {"data": str(write_images(tmp_path / "images")), "workers": 1, "device": "cpu", "epochs": 1.0}
    quick |= {"val_every": 99.0, "compile": "off"}
    recipe = write_recipe(tmp_path)
    first = unveil.pretrain(recipe, out=str(tmp_path / "first"), optimizer="muon", **quick)
    assert json.loads((first / "run.json").read_text())["optim"]["optimizer"] == "muon"
    again = {"init_from": str(first), "continue_schedule": "tail"}
    second = unveil.pretrain(recipe, out=str(tmp_path / "second"), **again, **quick)
    assert json.loads((second / "run.json").read_text())["options"]["optimizer"] == "muon"
    assert {n.rpartition(":")[2] for n in read_latest(second)[0].optimizer} > {"momentum_buffer", "exp_avg"}
    count = len({n.partition(":")[0] for n in read_latest(second)[0].optimizer})
    assert f"the optimiser's moments of {count} of {count} parameters go on\n" in capsys.readouterr().err
    unveil.pretrain(recipe, out=str(tmp_path / "third"), optimizer="adamw", **again, **quick)
    assert "parameters go on; those of the other" in capsys.readouterr().err
