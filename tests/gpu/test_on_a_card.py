"""All that differs on a GPU, on a machine that has one: `./go test tests/gpu`.

Every recipe's updates against the processor's, in bf16 and compiled; no wait for the device in a step; resuming to the
bit; several cards; the commands from data to report; the bench.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import unveil
from step_cases import CASES, MAIN, losses, settings_on, small
from test_distributed import done, journal, pairs, same, start, words  # noqa: F401  a fixture is one
from tiny_runs import TWO, Place, at_steps, interrupt, weights
from unveil.cli import main
from unveil.training.trainer import Trainer

# A rounding may hide another token where masks follow attention or losses, and a loss then has other tokens in it.
EXACT, GUIDED, NOISE = 1e-3, 0.02, 0.03


def is_guided(name: str) -> bool:
    recipe = CASES[name].build()
    with small():
        return len(recipe.stages[-1].build().teachers) > 0


@contextmanager
def in_one_order() -> Iterator[None]:
    """Sums of a GPU in one order: no atomic additions, no kernel of attention that has some."""
    kernels = (torch.backends.cuda.enable_flash_sdp, torch.backends.cuda.enable_mem_efficient_sdp)
    torch.use_deterministic_algorithms(True, warn_only=True)
    for enable in kernels:
        enable(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        for enable in kernels:
            enable(True)


@pytest.mark.parametrize("name", CASES)
def test_updates_are_those_of_the_processor(name: str, device: str) -> None:
    tolerance = GUIDED if is_guided(name) else EXACT
    there, here = losses(CASES[name], settings_on(device)), losses(CASES[name], settings_on("cpu"))
    torch.testing.assert_close(there, here, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["mae", "simmim", "mim, grid"])
def test_random_masks_are_those_of_the_processor_to_the_token(name: str, device: str) -> None:
    recipe = CASES[name].build()
    with small():
        model = recipe.stages[0].build()
    masks = [model.to(where).encode_decode(CASES[name].batch().on(where)).mask for where in ("cpu", device)]
    for here, there in zip(*(vars(mask).values() for mask in masks), strict=True):
        assert here is there is None or torch.equal(here, there.cpu())


@pytest.mark.parametrize("name", CASES)
def test_updates_in_bf16_are_those_in_float32(name: str, device: str) -> None:
    exact, rounded = (losses(CASES[name], settings_on(device, precision)) for precision in ("float32", "bf16"))
    torch.testing.assert_close(rounded, exact, rtol=NOISE, atol=NOISE)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", MAIN)
def test_compiled_updates_are_the_plain_ones(name: str, precision: str, device: str) -> None:
    torch._dynamo.reset()
    tolerance = NOISE if precision == "bf16" else GUIDED if is_guided(name) else EXACT
    plain, compiled = (losses(CASES[name], settings_on(device, precision, on)) for on in (False, True))
    torch.testing.assert_close(compiled, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_no_step_waits_for_the_device(name: str, device: str) -> None:
    """CUDA's own check raises at whatever makes the host wait; the batch comes from page-locked memory."""
    recipe = CASES[name].build()
    with small():
        trainer = Trainer(recipe.stages[-1].build(), recipe.optim, settings_on(device, "bf16"))
    batches, is_cuda = [CASES[name].batch(step) for step in range(3)], device.startswith("cuda")
    if is_cuda:
        batches = [batch._each(lambda tensor: tensor.pin_memory()) for batch in batches]
    trainer.update(batches[0], 1e-3)  # moves what is constant, and starts the libraries
    try:
        if is_cuda:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        for step, batch in enumerate(batches[1:]):
            trainer.model.before_step(step, step / 4)
            update = trainer.update(batch, 1e-3)
    finally:
        if is_cuda:
            torch.cuda.set_sync_debug_mode("default")
    assert update.norm.device.type == torch.device(device).type
    assert not update.skipped


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_stopped_run_ends_as_the_one_that_was_not_to_the_bit(
    place: Place, precision: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = (*TWO, "--device", device, "--precision", precision, "--compile", "off", "--threads", "1")
    with in_one_order():
        assert place.pretrain(*how, out="whole") == 0
        with monkeypatch.context() as patch:
            at_steps(patch, [4], interrupt)
            assert place.pretrain(*how) != 0
        assert json.loads((place.run / "run.json").read_text())["status"] == "stopped"
        assert place.pretrain(*how) == 0
    assert weights(place.run) == weights(place.path / "whole")


def test_all_cards_learn_what_one_learns(pairs: Path, device: str) -> None:  # noqa: F811
    """NCCL on all GPUs, where there are several; samples lack maps, so processes have unequal numbers that count."""
    cards = torch.cuda.device_count() if device.startswith("cuda") else 2
    processes = next((n for n in (8, 4, 2) if n <= cards), 1)
    if processes == 1:
        pytest.skip("one card: DistributedDataParallel needs two")
    how = ("--device", device, "--compile", "off")
    done(start(pairs, words(f"one-{device}", *how)))
    done(start(pairs, words(f"all-{device}", *how), processes=processes))
    same(pairs / f"one-{device}", pairs / f"all-{device}")
    one, every = (journal(pairs / f"{run}-{device}", "step") for run in ("one", "all"))
    assert [line["loss"] for line in every] == pytest.approx([line["loss"] for line in one], rel=5e-3)


@pytest.mark.parametrize("recipe", ["mae", "cmtmae", "multimae-attention"])
def test_commands_from_training_to_the_report(recipe: str, device: str, tmp_path: Path) -> None:
    """Pretraining as the command chooses on this device, compiled where that is on; probes, fine-tuning, pictures."""
    run, data, on = str(tmp_path / "run"), "scenes:count=60,size=32", ("--device", device)
    shape = ["--size", "nano", "--patch", "8", "--image-size", "32"]
    shape += ["--decoder-dim", "32", "--decoder-depth", "1", "--decoder-heads", "2"]
    more = {"cmtmae": ["--teacher", "random"], "multimae-attention": ["--modalities", "rgb", "depth", "semseg"]}
    own = [*shape, "--epochs", "4", "--batch-size", "8", "--save-every", "2", *more.get(recipe, [])]
    assert main(["pretrain", recipe, "--data", data, "--out", run, *own, *on]) == 0
    assert json.loads(Path(run, "run.json").read_text())["settings"]["device"].startswith(device)
    assert main(["look", run, *on]) == 0
    protocols = ["knn", "knn-whitened", "linear", "linear-lbfgs", "attentive"]
    assert main(["evaluate", run, "--data", data, "--protocol", *protocols, *on]) == 0
    tune = ["--epochs", "1", "--batch-size", "8"]
    assert main(["evaluate", run, "--data", data, "--protocol", "finetune", "--no-baselines", *tune, *on]) == 0
    if recipe != "cmtmae":  # which predicts features
        assert main(["evaluate", run, "--data", data, "--protocol", "reconstruct", *on]) == 0
    assert main(["embed", run, "--data", data, "--out", str(tmp_path / "features.npz"), *on]) == 0
    assert main(["analyze", "attention", run, *on]) == 0
    if recipe != "cmtmae":
        assert main(["analyze", "blocks" if recipe == "mae" else "masks", run, *on]) == 0
    assert main(["analyze", "features", run, run, *on]) == 0
    assert main(["report", run]) == 0
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_a_head_for_every_pixel_learns(red_bars: Path, device: str, tmp_path: Path) -> None:
    shape = {"size": "nano", "patch": 8, "image_size": (16,), "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}
    train = str(red_bars / "train" / "rgb")
    run = unveil.pretrain("mae", data=train, out=tmp_path / "run", epochs=4.0, batch_size=4, device=device, **shape)
    for protocol, head in (("segment", "upernet"), ("segment", "convnext"), ("depth", "dpt")):
        words = ["evaluate", str(run), "--data", str(red_bars), "--protocol", protocol, "--head", head]
        assert main([*words, "--epochs", "1", "--no-baselines", "--device", device]) == 0


def test_the_bench_writes_its_figures(device: str, tmp_path: Path) -> None:
    """Times, model FLOPs and memory of a small model; docs/performance.md takes `unveil bench --preset base --json`."""
    out = tmp_path / "bench.json"
    shape = ["--size", "nano", "--patch", "8", "--image-size", "32", "--batch-size", "8", "--rounds", "2"]
    which = ["--contenders", "mae", "cross-attention", "--device", device]
    assert main(["bench", *shape, *which, "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    for name in ("mae", "cross-attention"):
        measured = written["contenders"][name]
        assert all(len(turns) == 2 for turns in measured["seconds"].values())
        assert min(measured["megabytes"].values()) > 0
        assert measured["flops"] > 0
    assert set(written["ratios"]) == set(written["contenders"]["mae"]["seconds"])
    if device.startswith("cuda"):
        assert written["machine"]["device"] == torch.cuda.get_device_name()
