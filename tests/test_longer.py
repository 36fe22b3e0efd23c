"""A finished run that is given more epochs, or more minutes, goes on in its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

import unveil
from tiny_runs import facts, journal, listing, write_images, write_recipe
from unveil.runs.folder import LongerError

OPTIONS = {"epochs": 2.0, "batch_size": 10, "lr": 0.05, "warmup_epochs": 1.0, "image_size": 16, "device": "cpu"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> unveil.Run:
    home = tmp_path_factory.mktemp("longer")
    write_images(home / "images")
    return unveil.pretrain(write_recipe(home), data=home / "images", out=home / "run", val_every=1.0, **OPTIONS)


def test_it_goes_on_at_its_last_step_with_a_longer_schedule(run: unveil.Run):
    home, before = run.path.parent, {line["step"]: line["loss"] for line in journal(run.path, "step")}
    given = {**OPTIONS, "data": home / "images", "out": run.path, "val_every": 1.0}
    start = listing(run.path)
    with pytest.raises(LongerError, match=r"another run .*trained for 2 epochs, .* minutes; give more"):
        unveil.pretrain(str(home / "tiny.py"), **{**given, "epochs": 1.0})
    with pytest.raises(ValueError, match="another run"):
        unveil.pretrain(str(home / "tiny.py"), **{**given, "epochs": 4.0, "visible": 0.5})
    assert {n: t for n, t in listing(run.path).items() if "lock" not in n} == {
        n: t for n, t in start.items() if "lock" not in n
    }
    longer = unveil.pretrain(str(home / "tiny.py"), **{**given, "epochs": 4.0})
    lines = journal(run.path, "step")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert {line["step"]: line["loss"] for line in lines[:6]} == before  # it was not begun again
    straight = unveil.pretrain(str(home / "tiny.py"), **{**given, "epochs": 4.0, "out": home / "straight"})
    rates = [[line["lr"] for line in journal(r.path, "step")] for r in (longer, straight)]
    assert rates[0][6:] == pytest.approx(rates[1][6:])
    now = facts(run.path)
    assert now["status"] == "finished"
    assert now["given"]["epochs"] == 4.0
    assert now["extended"] == [{"step": 6, "epochs": [2.0, 4.0]}]
    assert longer.config.epochs == 4.0
    assert "epochs: 4.0" in (run / "config.yaml").read_text()
    again = listing(run.path)
    unveil.pretrain(str(home / "tiny.py"), **{**given, "epochs": 4.0})  # finished, and left alone
    assert {n: t for n, t in listing(run.path).items() if "lock" not in n} == {
        n: t for n, t in again.items() if "lock" not in n
    }


def test_minutes_become_epochs_at_the_pace_of_the_run(run: unveil.Run):
    home, seconds, done = run.path.parent, facts(run.path)["seconds"], facts(run.path)["last_checkpoint"] / 3
    given = {name: value for name, value in OPTIONS.items() if name != "epochs"}
    minutes = 1.5 * seconds / 60
    unveil.pretrain(str(home / "tiny.py"), data=home / "images", out=run.path, val_every=1.0, minutes=minutes, **given)
    now = facts(run.path)
    assert now["status"] == "finished"
    assert now["extended"][-1]["epochs"] == [done, pytest.approx(1.5 * done, rel=1e-3)]
    assert now["plan"]["budget"] == pytest.approx(60 * minutes)
    assert journal(run.path, "step")[-1]["step"] > done * 3


def test_several_stages_name_the_other_way(tmp_path: Path):
    options = {**OPTIONS, "data": write_images(tmp_path / "images"), "out": tmp_path / "run"}
    unveil.pretrain(write_recipe(tmp_path), stages=2, **options)
    with pytest.raises(LongerError, match=r"--continue-schedule tail.*several stages"):
        unveil.pretrain(str(tmp_path / "tiny.py"), stages=2, **{**options, "epochs": 4.0})
