"""FSDP2 and DDP: several processes have the losses of one, for every recipe, sharded or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ranks import settings
from step_cases import CASES, Case, losses
from tiny_runs import facts, journal, write_images, write_recipe
from unveil.cli import main
from unveil.runs.checkpoint import read_latest
from unveil.training.trainer import Trainer

QUICK = ("crossmae", "multimae, tasks, uncertainty", "cmtmae, cross decoder, learned fusion, pixels")
RANKS = Path(__file__).with_name("ranks.py")


def in_processes(
    folder: Path, size: int, updates: int, modes: Sequence[str], names: Sequence[str]
) -> dict[tuple[str, str], Tensor]:
    """The losses of cases in each mode, in so many processes of gloo."""
    words = [str(size), str(updates), json.dumps(modes), json.dumps(names)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([sys.executable, str(RANKS), str(folder / f"store-{size}"), str(rank), *words], **pipes)
        for rank in range(size)
    ]
    told = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * size, told[0][1]
    lines = [json.loads(line) for line in told[0][0].splitlines()]
    failed = [line for line in lines if isinstance(line[2], str)]
    assert not failed
    return {(name, mode): torch.tensor(found, dtype=torch.float64) for name, mode, found in lines}


def test_two_processes_have_the_losses_of_one(tmp_path: Path):
    """With lacking maps, a weight of no dimension, an average, two stages; whole, in micro-batches, recomputed."""
    found = in_processes(tmp_path, 2, 3, ["ddp+micro", "shard", "shard+micro+checkpoint"], QUICK)
    assert len(found) == 9
    for name in QUICK:
        alone = losses(CASES[name], settings("ddp"), 3)
        for mode in ("ddp+micro", "shard", "shard+micro+checkpoint"):
            torch.testing.assert_close(
                found[name, mode], alone, rtol=1e-5, atol=1e-7, msg=f"{name} {mode}: {found[name, mode]}, and {alone}"
            )


@pytest.mark.scale
@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_have_the_losses_of_one_for_every_recipe_over_fifty_updates(tmp_path: Path, size: int):
    modes = ["ddp", "shard"]
    found = in_processes(tmp_path, size, 50, modes, list(CASES))
    for (name, mode), rows in found.items():
        alone = losses(CASES[name], settings("ddp"), 50)
        until = 20 if is_guided(CASES[name]) else len(alone)
        torch.testing.assert_close(rows[:until], alone[:until], rtol=1e-5, atol=1e-6, msg=f"{name} {mode}")
        torch.testing.assert_close(rows, alone, rtol=1e-3, atol=1e-4, msg=f"{name} {mode}")


def is_guided(case: Case) -> bool:
    """Whether masks follow from numbers of the model: of two tokens that tie within rounding another may be hidden."""
    return case.recipe in ("multimae-attention", "cmtmae", "attmask", "hpm") or case.options.get("ask") == "hardest"


def test_recomputed_activations_change_no_bit_and_are_not_kept():
    case = CASES["crossmae"]
    kept = losses(case, settings("ddp"), 3)
    assert torch.equal(losses(case, settings("ddp+checkpoint"), 3), kept)
    saved = []
    for recomputed in (False, True):
        recipe = case.build()
        trainer = Trainer(
            recipe.stages[0].build(), recipe.optim, replace(settings("ddp"), checkpoint_activations=recomputed)
        )
        sizes = dict[int, int]()

        def note(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            total, _ = next(iter(trainer.forward(case.batch().on("cpu")).values()))
        total.backward()
        saved.append(sum(sizes.values()))
    assert saved[1] < 0.6 * saved[0]


def test_a_step_is_sharded_or_compiled(capsys: pytest.CaptureFixture[str]):
    assert main(["pretrain", "mae", "--data", "x", "--shard", "--compile", "on"]) == 2
    assert "--shard trains a step that is not compiled" in capsys.readouterr().err


@pytest.mark.scale
@pytest.mark.slow
def test_a_sharded_run_goes_on_in_another_number_of_processes_to_the_same_weights(tmp_path: Path):
    """A recipe of two stages, clipped: begun by two processes, gone on with by three, and ended by one."""
    write_images(tmp_path / "images")
    write_recipe(tmp_path)
    sharded = ("--shard", "--checkpoint-activations")
    assert train(tmp_path, "whole", 1) == {0}
    assert train(tmp_path, "sharded", 2, *sharded, stop_at=5) == {143}  # SIGTERM of one ends all
    assert facts(tmp_path / "sharded")["settings"]["shard"]
    assert train(tmp_path, "sharded", 3, *sharded, stop_at=15) == {143}
    assert facts(tmp_path / "sharded")["settings"]["processes"] == 3
    assert train(tmp_path, "sharded", 1) == {0}
    one, other = (read_latest(tmp_path / run)[0] for run in ("whole", "sharded"))
    assert one
    assert other
    for name, value in one.model.items():
        if name.endswith("kv.bias"):  # that of keys changes no attention: its gradient is rounding alone
            continue
        torch.testing.assert_close(other.model[name], value, rtol=1e-3, atol=1e-4, msg=name)
    lines = [[line["loss"] for line in journal(tmp_path / run, "step")] for run in ("whole", "sharded")]
    assert lines[1] == pytest.approx(lines[0], rel=1e-5)


def train(folder: Path, out: str, size: int, *words: str, stop_at: int | None = None) -> set[int]:
    """`unveil pretrain` in tasks as `srun` starts them, the last of which gets SIGTERM at a step; their statuses."""
    own = "--epochs 8 --batch-size 12 --lr 0.05 --image-size 16 --workers 1 --precision float32 --stages 2 --clip 0.5"
    command = [sys.executable, "-m", "unveil", "pretrain", "tiny.py", "--data", "images", "--out", out, *own.split()]
    tasks = []
    for rank in range(size):
        env = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": str(size), "SLURM_STEP_NUM_TASKS": str(size)}
        env |= {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NODELIST": "localhost"}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        tasks.append(subprocess.Popen([*command, *words], cwd=folder, env={**os.environ, **env}, text=True, **pipes))
    metrics = folder / out / "metrics.jsonl"
    while stop_at and tasks[0].poll() is None:
        if metrics.exists() and f'"step": {stop_at},' in metrics.read_text():
            tasks[-1].terminate()
            break
        time.sleep(0.01)
    told = [task.communicate(timeout=600)[1] for task in tasks]
    assert not [text for text in told if "Traceback" in text]
    return {task.returncode for task in tasks}
