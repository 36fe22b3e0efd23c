"""A training of several processes that cannot go on: all go back together, end with one status, and it is replayed."""

from __future__ import annotations

from pathlib import Path

import pytest

from test_over_processes import in_tasks
from tiny_runs import facts, journal, write_images, write_recipe
from unveil.runs.checkpoint import read_latest

TRAIN = """pretrain tiny.py --data images --out run --epochs 60 --batch-size 10 --lr 1e8 --image-size 16 --workers 1
    --precision float32 --device cpu --compile off --val-every 30"""


@pytest.mark.scale
@pytest.mark.slow
@pytest.mark.parametrize("way", ["--no-shard", "--shard --checkpoint-format dcp"])
def test_two_processes_go_back_twice_and_end_with_status_3_and_the_step_is_replayed(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
):
    write_images(tmp_path / "images")
    write_recipe(tmp_path)
    status, out, err = in_tasks(tmp_path, 2, *TRAIN.split(), *way.split())
    assert status == {3}, err
    assert "Traceback" not in "".join(err)
    returns = facts(tmp_path / "run")["returns"]
    assert [entry["to"] for entry in returns] == sorted((entry["to"] for entry in returns), reverse=True)
    assert len(returns) == 2
    assert len(journal(tmp_path / "run", "return")) == 2
    assert "the rate was halved 2 times" in err[0]
    assert "diverged" not in err[1]  # one of them speaks for both
    latest, complaints = read_latest(tmp_path / "run")
    assert not complaints
    assert latest is None or all(t.isfinite().all() for t in latest.model.values())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "stranger"))
    replay = ["replay", "run", "--device", "cpu"]
    status, _, err = in_tasks(tmp_path, 1, *replay)
    assert status == {2}
    assert "--trust" in err[0]
    status, out, err = in_tasks(tmp_path, 1, *replay, "--trust")
    assert status == {0}, err
    assert "first number that is not finite: " in out[0]
    assert "they differ" not in out[0]
