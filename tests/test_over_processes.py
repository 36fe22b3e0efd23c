"""`embed` and `evaluate` in several processes, each with its share: the numbers and files of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from test_pack import contents
from tiny_runs import Place, listing, write_images
from unveil.cli import main
from unveil.cli.command import COMMANDS
from unveil.data.aligned_folders import open_images
from unveil.data.loader import Loader
from unveil.data.transforms import CenterView


def in_tasks(folder: Path, size: int, *words: str) -> tuple[set[int], list[str], list[str]]:
    """`unveil` in tasks as `srun` starts them: their statuses, and what each wrote to stdout and stderr."""
    tasks = []
    for rank in range(size):
        env = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": str(size), "SLURM_STEP_NUM_TASKS": str(size)}
        env |= {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NODELIST": "localhost"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-m", "unveil", *words]
        tasks.append(subprocess.Popen(command, cwd=folder, env={**os.environ, **env}, text=True, **pipes))
    told = [task.communicate(timeout=600) for task in tasks]
    return {task.returncode for task in tasks}, [out for out, _ in told], [err for _, err in told]


def features(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as content:
        return dict(content)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_hold_every_batch_once(tmp_path: Path, place: Place, size: int):
    source = open_images(place.data, 3)
    view = CenterView((16, 16))
    loaders = [Loader(source, view, 7, cache_bytes=0, max_broken=None, shard=(k, size)) for k in range(size)]
    numbers = [[rows.tolist() for _, rows in loader.in_order()] for loader in loaders]
    assert sorted(row for own in numbers for rows in own for row in rows) == list(range(40))
    assert sorted(rows for own in numbers for rows in own) == [list(range(i, min(i + 7, 40))) for i in range(0, 40, 7)]


def test_two_processes_embed_what_one_does_and_write_once(place: Place):
    """With a broken image in the share of the second, and batches that do not divide evenly."""
    assert place.pretrain("--epochs", "1") == 0
    (Path(place.data) / "even" / "016.png").write_bytes(b"no image")
    folder = place.run.parent
    words = ["embed", str(place.run), "--data", place.data, "--batch-size", "9"]
    assert in_tasks(folder, 1, *words, "--out", "one.npz")[0] == {0}
    status, out, err = in_tasks(folder, 2, *words, "--out", "two.npz")
    assert status == {0}, err
    assert [text.count("two.npz") for text in out] == [2, 0]  # the result, and the next command
    assert err[0].count("016.png") == 1
    one, two = features(folder / "one.npz"), features(folder / "two.npz")
    assert one.keys() == two.keys()
    assert len(two["names"]) == 39
    for name, values in one.items():
        assert np.array_equal(values, two[name]), name


def run_of(place: Place, words: Sequence[str]) -> dict[str, dict[str, object]]:
    return {f.stem: json.loads(f.read_text())["metrics"] for f in sorted((place.run / "eval").glob("*.json"))}


@pytest.mark.scale
@pytest.mark.slow
def test_three_processes_evaluate_to_the_results_of_one(place: Place, monkeypatch: pytest.MonkeyPatch):
    """With probes on features chosen and normalised, baselines, a protocol that trains; mistakes end all of them."""
    assert place.pretrain("--epochs", "2") == 0
    monkeypatch.chdir(place.run.parent)
    probes = ["evaluate", str(place.run), "--data", place.data, "--micro-batch", "4", "--no-cache"]
    probes += ["--precision", "float32", "--threads", "1"]
    several = ["--protocol", "knn", "linear-lbfgs", "--pool", "auto", "--normalize", "whiten"]
    for more in (several, ["--protocol", "linear", "finetune", "--epochs", "1"]):
        assert main([*probes, *more]) == 0
        one = run_of(place, more)
        before = listing(place.run / "eval").keys()
        status, out, err = in_tasks(place.run.parent, 3, *probes, *more)
        assert status == {0}, err
        assert [bool(text.strip()) for text in out] == [True, False, False]
        assert run_of(place, more) == one
        assert listing(place.run / "eval").keys() == before
    status, _, err = in_tasks(place.run.parent, 2, "embed", str(place.run), "--data", "nowhere")
    assert status == {2}
    assert [text.count("nowhere") for text in err] == [1, 0]
    status, out, _ = in_tasks(place.run.parent, 2, "report", str(place.run))
    assert status == {0}
    assert [text.count("report: ") for text in out] == [1, 0]


def test_two_processes_pack_the_bytes_of_one(place: Place):
    """In several shards, shuffled, with a broken image; a pack that one process began is ended by two."""
    folder = place.run.parent
    (Path(place.data) / "even" / "016.png").write_bytes(b"no image")
    words = ["pack", place.data, "--shuffle", "3", "--shard-size", "20kB", "--workers", "1"]
    assert main([*words, "--out", str(folder / "one")]) == 0
    status, out, err = in_tasks(folder, 2, *words, "--out", "two")
    assert status == {0}, err
    assert [text.count("39 samples") for text in out] == [1, 0]
    assert contents(folder / "two") == contents(folder / "one")
    assert len(list((folder / "two").glob("*.tar"))) > 2


@pytest.mark.scale
@pytest.mark.slow
def test_processes_that_pack_end_together(place: Place, tmp_path: Path):
    """Too many broken samples are one error of rank zero; a process that is killed is named."""
    write_images(tmp_path / "many", 400)
    for i in range(0, 400, 3):
        (tmp_path / "many" / ("even", "odd")[i % 2] / f"{i:03}.png").write_bytes(b"no image")
    status, _, err = in_tasks(tmp_path, 3, "pack", "many", "--out", "packed")
    assert status == {2}
    assert [text.count("are broken, more than 5%") for text in err] == [1, 0, 0]
    before = {path.name for path in (tmp_path / "packed").glob("*.tar")}
    status, _, err = in_tasks(tmp_path, 3, "pack", "many", "--out", "packed", "--max-broken", "1")
    assert status == {0}, err
    assert before < {path.name for path in (tmp_path / "packed").glob("*.tar")}


def test_of_several_processes_rank_zero_alone_runs_what_has_no_shares(monkeypatch: pytest.MonkeyPatch, capsys):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    shared = {"demo", "pretrain", "evaluate", "study", "embed", "pack"}
    for command in COMMANDS.keys() - shared:
        assert main([command, "nowhere"]) == 0, command
    assert not capsys.readouterr().out
