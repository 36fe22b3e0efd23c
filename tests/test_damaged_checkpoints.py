"""A finished run whose newest checkpoint is damaged: every verb says what it uses, no result is filed as another's, and
the same command trains the lost steps again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import unveil
from tiny_runs import STEPS, TRAIN, facts, journal, listing, weights, write_images, write_recipe
from unveil.cli import main
from unveil.commands.explore.models import open_explored
from unveil.experiments.study import worker
from unveil.modeling.public_vits import read_weights
from unveil.modeling.public_vits.weight_files import find_weights
from unveil.reporting.run_record import read_run

LAST, BEFORE = f"step-{STEPS:08d}", f"step-{STEPS - 1:08d}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe, and a finished run with a checkpoint of each of its last two steps."""
    home = tmp_path_factory.mktemp("made")
    write_recipe(home)
    write_images(home / "images")
    assert main(command(home, home / "run")) == 0
    return home


def command(home: Path, run: Path) -> list[str]:
    words = ["pretrain", str(home / "tiny.py"), "--data", str(home / "images"), "--out", str(run), *TRAIN]
    return [*words, "--device", "cpu", "--workers", "1", "--compile", "off", "--save-minutes", "0"]


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def flip(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def halve(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def another(folder: Path) -> None:
    """A whole file with other weights, which only the checksum tells."""
    file = folder / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_state(folder: Path) -> None:
    (folder / "state.json").unlink()


def odd_state(folder: Path) -> None:
    file = folder / "state.json"
    file.write_text(file.read_text().replace('"epoch": 3.0', '"epoch": 2.0'))


DAMAGES: dict[Callable[[Path], None], str] = {
    flip: "model.safetensors is damaged: its checksum is not the one that was written",
    halve: "model.safetensors is damaged: its checksum is not the one that was written",
    another: "model.safetensors is damaged: its checksum is not the one that was written",
    no_weights: "model.safetensors cannot be read: No such file",
    no_state: "state.json is damaged: ",
    odd_state: "state.json is damaged: its checksum",
    lambda folder: shutil.rmtree(folder): f"has no checkpoint of step {STEPS}, the last",
}
NAMES = ["flip", "halve", "another", "no_weights", "no_state", "odd_state", "gone"]


def embed(run: Path, home: Path) -> dict[str, Any]:
    file = unveil.embed(str(run), data=str(home / "images"), out=str(run.parent / "f.npz"), device="cpu")
    return json.loads(str(np.load(file)["weights"]))


def evaluate(run: Path, home: Path) -> dict[str, Any]:
    unveil.evaluate(str(run), data=str(home / "images"), protocol=("knn",), baselines=False, device="cpu")
    return json.loads((run / "eval/knn.json").read_text())["weights"]


def heldout(run: Path, home: Path) -> dict[str, Any]:
    unveil.evaluate(str(run), data=str(home / "images"), protocol=("heldout",), baselines=False, device="cpu")
    return json.loads((run / "eval/heldout.json").read_text())["weights"]


def load(run: Path, home: Path) -> None:
    unveil.load(run, device="cpu")


def find(run: Path, home: Path) -> None:
    find_weights(run)


def look(run: Path, home: Path) -> None:
    unveil.look(str(run), samples=1, device="cpu")


def blocks(run: Path, home: Path) -> dict[str, Any]:
    assert main(["analyze", "blocks", str(run), "--limit", "2", "--samples", "1", "--device", "cpu"]) == 0
    return json.loads((run / "analysis/blocks.json").read_text())["weights"]


def attention(run: Path, home: Path) -> dict[str, Any]:
    assert main(["analyze", "attention", str(run), "--limit", "2", "--device", "cpu"]) == 0
    return json.loads((run / "analysis/attention.json").read_text())["weights"]


def features(run: Path, home: Path) -> dict[str, Any]:
    assert main(["analyze", "features", str(run), str(home / "run"), "--limit", "2", "--device", "cpu"]) == 0
    (file,) = (run / "analysis").glob("features-*.json")
    return json.loads(file.read_text())["weights"][0]


def init_from(run: Path, home: Path) -> None:
    words = command(home, run.parent / "next")
    words[words.index("--epochs") + 1] = "1"
    assert main([*words, "--init-from", str(run)]) == 0


def explore(run: Path, home: Path) -> None:
    explored = open_explored(str(run), "cpu")
    assert any("not the newest weights" in note for note in explored.notes) == (explored.epoch != 3)


VERBS = [embed, evaluate, heldout, load, find, look, blocks, attention, features, init_from, explore]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_every_verb_says_which_checkpoint_it_uses(run: Path, made: Path, verb, capsys: pytest.CaptureFixture[str]):
    whole = verb(run, made)
    said = capsys.readouterr().err
    assert "damaged" not in said
    if whole is not None:
        state = json.loads((run / "checkpoints" / LAST / "state.json").read_text())
        assert whole == {"step": STEPS, "epoch": 3.0, "checksum": state["checksums"]["model.safetensors"]}
    shutil.rmtree(run.parent / "next", ignore_errors=True)
    flip(run / "checkpoints" / LAST)
    measured = verb(run, made)
    lines = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(lines) == 1, lines
    assert f"{LAST}/model.safetensors is damaged" in lines[0]
    if verb is attention:
        assert "left out" in lines[0]
    else:
        assert f"checkpoints/{BEFORE}, of epoch 2.667, is used instead of step {STEPS}; the" in lines[0]
        assert f"`unveil pretrain` command of the run, with --out {run}, trains the rest again" in lines[0]
    if measured is not None:
        assert measured["step"] == STEPS - 1
        assert measured["checksum"] != whole["checksum"]


@pytest.mark.parametrize(("damage", "said"), DAMAGES.items(), ids=NAMES)
def test_any_damage_is_said_and_the_same_command_makes_it_good(
    run: Path, made: Path, damage, said: str, capsys: pytest.CaptureFixture[str]
):
    before = weights(run)
    result = evaluate(run, made)
    damage(run / "checkpoints" / LAST)
    capsys.readouterr()
    unveil.load(run, device="cpu")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert said in line
    assert f"{BEFORE}, of epoch 2.667, is used" in line
    assert main(command(made, run)) == 0
    told = capsys.readouterr().err
    assert (said if "no checkpoint" not in said else f"had a checkpoint of step {STEPS}; it goes on from") in told
    assert f"continuing {run} at step {STEPS - 1}" in told
    assert weights(run) == before
    assert facts(run)["status"] == "finished"
    assert journal(run, "step")[-1]["step"] == STEPS
    assert evaluate(run, made) == result
    before = listing(run)
    capsys.readouterr()
    assert main(command(made, run)) == 0, "finished: nothing is lost any more"
    assert f"{run} holds this run, finished; to train it for longer" in capsys.readouterr().err
    assert listing(run) == before


def test_without_a_whole_checkpoint_nothing_is_used_or_removed(run: Path, made: Path, capsys):
    for step in (LAST, BEFORE):
        halve(run / "checkpoints" / step)
    with pytest.raises(ValueError, match=f"no whole checkpoint yet; .*{LAST}.* is damaged.*{BEFORE}.* is damaged"):
        unveil.load(run)
    before = sorted(run.rglob("*"))
    assert main(command(made, run)) == 2
    assert "has no whole checkpoint to continue from" in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("damage", ["gone", "half"])
def test_without_the_optimiser_state_the_weights_are_used(run: Path, made: Path, damage: str, capsys):
    file = run / "checkpoints" / LAST / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:1000]) if damage == "half" else file.unlink()
    assert evaluate(run, made)["step"] == STEPS
    said = capsys.readouterr().err
    assert f"{LAST}/optimizer.safetensors" in said
    assert f"the weights of this step in checkpoints/{LAST} are whole and are used" in said


def test_a_result_of_other_weights_is_no_result_of_the_run(run: Path, made: Path, capsys):
    """Of the weights before, measured while the newest were damaged; of old runs, whose results do not say, all are."""
    flip(run / "checkpoints" / LAST)
    evaluate(run, made)
    record = read_run(run)
    assert record.evaluations == []
    assert [e.protocol for e in record.earlier[STEPS - 1]] == ["knn"]
    assert any(f"of step {STEPS - 1}" in remark for remark in record.remarks)
    assert main(command(made, run)) == 0
    assert read_run(run).evaluations == []
    evaluate(run, made)
    assert [e.protocol for e in read_run(run).evaluations] == ["knn"]
    file = run / "eval/knn.json"
    content = json.loads(file.read_text())
    for weights_known in ({"step": STEPS, "checksum": "crc32:00000000"}, {"step": 3}):
        file.write_text(json.dumps({**content, "weights": weights_known}))
        assert read_run(run).evaluations == []
    del content["weights"]
    file.write_text(json.dumps(content))
    assert len(read_run(run).evaluations) == 1


def test_a_kept_copy_of_the_same_step_is_used(run: Path):
    shutil.copytree(run / "checkpoints" / LAST, run / "kept" / LAST)
    flip(run / "checkpoints" / LAST)
    stored = unveil.Run.open(run)
    assert (stored.checkpoint().state["step"], stored.checkpoint().path.parent.name) == (STEPS, "kept")
    flip(run / "kept" / LAST)
    assert unveil.Run.open(run).checkpoint().state["step"] == STEPS - 1


def test_a_weight_file_named_by_itself_is_checked(run: Path):
    file = run / "checkpoints" / LAST / "model.safetensors"
    read_weights(file)
    flip(file.parent)
    with pytest.raises(ValueError, match="its checksum is not the one that was written"):
        read_weights(file)
    (moved := run.parent / "model.safetensors").write_bytes(file.read_bytes())
    read_weights(moved)  # elsewhere nothing is known of it


def test_a_study_trains_again_and_measures_anew(run: Path, made: Path, monkeypatch: pytest.MonkeyPatch):
    measured: list[str] = []
    monkeypatch.setattr(worker, "evaluate", lambda run, **given: measured.append(run))
    monkeypatch.setattr(worker, "pretrain", lambda recipe, out, **given: main(command(made, Path(out))))
    job = {"recipe": "tiny", "pretrain": {}, "evaluate": [{"protocol": "knn"}], "analyze": [], "device": "cpu"}
    worker.perform(run, job)
    worker.perform(run, job)
    assert len(measured) == 1
    assert worker.is_done(run, job)
    flip(run / "checkpoints" / LAST)
    worker.perform(run, job)
    assert len(measured) == 1, "the same bits are trained again, so what was measured holds"
    state = json.loads((run / "study.json").read_text())
    (run / "study.json").write_text(json.dumps({**state, "weights": {"step": 3, "checksum": "crc32:00000000"}}))
    assert not worker.is_done(run, job)
    worker.perform(run, job)
    assert len(measured) == 2
    (run / "study.json").write_text(json.dumps({"measured": state["measured"]}))
    assert worker.is_done(run, job), "a study of an earlier release"


def test_a_public_vit_has_a_checksum_too(run: Path, made: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(run.parent)
    file = run / "checkpoints" / LAST / "model.safetensors"
    encoder = unveil.load(file, device="cpu")
    (result,) = unveil.evaluate(str(file), data=str(made / "images"), protocol=("knn",), baselines=False, device="cpu")
    assert result.weights.keys() == {"checksum"}
    assert str(result.weights["checksum"]).startswith("crc32:")
    assert encoder(torch.rand(1, 3, 16, 16)).shape == (1, 16)
