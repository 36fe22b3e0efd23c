"""Power lost at any moment of a training, an evaluation, a study, a pack or a report: see crash_journal.

What is opened afterwards is whole: no checkpoint that was synced is lost, nothing is half-read, and the same command
ends with the same bits.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import unveil
from crash_journal import Journal, promised, rebuild, recording, states
from tiny_runs import TRAIN, Place, at_steps, interrupt, write_images, write_recipe
from unveil.cli import main
from unveil.commands import pretrain as pretraining
from unveil.data.sources import open_source
from unveil.reporting.run_record import read_run
from unveil.runs import atomic, checkpoint, folder
from unveil.runs.checkpoint import read_latest

STATES = int(os.environ.get("UNVEIL_STATES", 500))  # for each way to open them, in the slow proof
WORDS = (*TRAIN, "--epochs", "4", "--save-minutes", "0", "--save-every", "2", "--threads", "1", "--workers", "1")
LAST = 4  # steps: an epoch is one
FILE = '''
"""Two rates."""
from unveil.study import Arm, Scale, Setting, Study

study = Study(
    question="Which rate?",
    arms=(Arm("slow", "tiny.py", {"lr": 0.01}), Arm("fast", "tiny.py", {"lr": 0.05})),
    baseline="slow",
    scales={"smoke": Scale((Setting("colours", "images"),), (0,), {"knn": {}},
                           {"epochs": 1, "batch_size": 10, "image_size": (16,), "precision": "float32"})},
)
'''


@dataclass
class Scene:
    """A recorded command, and what was made when nothing happened."""

    place: Place
    journal: Journal
    whole: Path


class _Here:
    """A worker of a study in this process, so that it is recorded."""

    pid, stdin, returncode = 0, None, 0

    def __init__(self, command: list[str], **_: Any):
        from unveil.experiments.study.worker import main as work

        self.code = work(Path(command[3]), command[4])

    def poll(self) -> int:
        return self.code

    def communicate(self) -> None:
        """There is no pipe to close."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A user's recipe, 12 images and a study, and the folder `disk` that loses power."""
    path = tmp_path_factory.mktemp("power")
    place = Place(path, write_recipe(path), str(write_images(path / "images", 12)))
    (path / "rates.py").write_text(FILE)
    return place


def recorded(place: Place, command: Callable[[], Any], before: Path | None = None) -> Scene:
    """What a command writes below `disk`, which begins as a copy of `before`."""
    disk = place.path / "disk"
    shutil.rmtree(disk, ignore_errors=True)
    shutil.copytree(before, disk) if before else disk.mkdir()
    with recording(disk) as journal, pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.path)

        def promising(owner: Any, name: str, what: str, value: Callable[..., Any]) -> None:
            do = getattr(owner, name)

            def done(*words: Any, **named: Any) -> Any:
                result = do(*words, **named)
                if (promise := value(*words, **named)) is not None:
                    journal.promise(what, promise)
                return result

            patch.setattr(owner, name, done)

        promising(checkpoint, "save", "checkpoint", lambda *words: words[1] if (*words, None)[6] is None else None)
        promising(pretraining, "_write_start", "begun", lambda *_: True)
        command()
        journal.promise("finished")
    whole = place.path / f"whole-{len(list(place.path.iterdir()))}"
    return Scene(place, journal, Path(shutil.copytree(disk, whole)))


def train(place: Place, stopped: bool = True) -> Scene:
    """A training, stopped and continued."""

    def command() -> None:
        if not stopped:
            assert place.pretrain(*WORDS, "--epochs", "2", out="disk/run") == 0
            return
        with pytest.MonkeyPatch.context() as patch:
            at_steps(patch, [2], interrupt)
            assert place.pretrain(*WORDS, out="disk/run") == 130
        assert place.pretrain(*WORDS, out="disk/run") == 0

    return recorded(place, command)


Check = Callable[[Scene, Path, dict[str, Any], pytest.CaptureFixture[str]], None]


def kept_checkpoints(scene: Scene, disk: Path, promises: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """What `load` and the readers of the run say: never less than was promised, and nothing half."""
    run = disk / "run"
    latest, _ = read_latest(run)
    step = promises.get("checkpoint", 0)
    assert (latest.state["step"] if latest else 0) >= step
    if promises.get("begun"):
        record = read_run(run)
        assert {line.step for line in record.steps} >= set(range(1, step + 1)), "metrics of a stored step are lost"
        assert not [r for r in record.remarks if "metrics" not in r], record.remarks
    if step:
        assert unveil.Run.open(run).checkpoint().state["step"] >= step


def opened(scene: Scene, disk: Path, promises: dict[str, Any], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """A verb: an answer where there is something that was promised, else an answer or one error."""
    code = main([*words])
    text = capsys.readouterr().err
    assert code == 0 or (code == 2 and not promises), text
    assert "Traceback" not in text
    assert "fault of unveil" not in text


def load(scene: Scene, disk: Path, promises: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    if "checkpoint" in promises:
        unveil.load(disk / "run")
        return
    try:
        unveil.load(disk / "run")
    except (ValueError, FileNotFoundError) as error:
        lines = str(error).splitlines()
        if len(lines) > 1:
            raise AssertionError(lines) from error


def report(scene: Scene, disk: Path, promises: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    opened(scene, disk, promises, capsys, "report", str(disk / "run"))


def evaluate(scene: Scene, disk: Path, promises: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    relied = promises if "checkpoint" in promises else {}
    words = ("--protocol", "knn", "--precision", "float32", "--threads", "1")
    opened(scene, disk, relied, capsys, "evaluate", str(disk / "run"), "--data", scene.place.data, *words)
    if relied:
        result = json.loads((disk / "run/eval/knn.json").read_text())
        assert 0 < result["metrics"]["accuracy"] <= 1


def continued(scene: Scene, disk: Path, promises: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The same command, whatever is left: the same bits and the same rows as if nothing had happened."""
    code = scene.place.pretrain(*WORDS, out=f"{disk.name}/run")
    text = capsys.readouterr().err
    assert code == 0, text
    for name in ("model.safetensors", "optimizer.safetensors"):
        file = f"run/checkpoints/step-{LAST:08d}/{name}"
        assert (disk / file).read_bytes() == (scene.whole / file).read_bytes()
    rows, expected = ([line.loss for line in read_run(f / "run").steps] for f in (disk, scene.whole))
    assert rows == expected
    assert not list((disk / "run").rglob("*.part"))


def faults(
    scene: Scene, count: int, check: Check, capsys: pytest.CaptureFixture[str], first_only: bool = False
) -> list[str]:
    """Open so many states of the disk; what is wrong."""
    wrong: list[str] = []
    disk, number = scene.place.path / "after", 0
    for crash, left in states(scene.journal, count, random.Random(check.__name__)):
        number += 1
        shutil.rmtree(disk, ignore_errors=True)
        rebuild(left, disk)
        try:
            check(scene, disk, promised(scene.journal, crash), capsys)
        except (Exception, SystemExit) as error:
            lines = str(error).strip().splitlines() or [""]
            wrong.append(f"{crash}: {type(error).__name__}: {' | '.join(lines[:6])}")
            if first_only:
                return wrong
    with capsys.disabled():
        print(f" {number} states", end="")
    return wrong


def evaluation(place: Place, run: Path) -> Scene:
    """Two evaluations of a finished run, one that trains a probe, and its report again."""

    def command() -> None:
        words = ["--data", place.data, "--precision", "float32", "--threads", "1", "--normalize", "standardize"]
        for protocol in ("knn", "linear"):
            assert main(["evaluate", "disk/run", *words, "--protocol", protocol]) == 0
            Journal.active.promise(protocol)  # type: ignore[union-attr]
        assert main(["report", "disk/run"]) == 0
        assert main(["evaluate", "disk/run", *words[:-1], "none", "--protocol", "knn"]) == 0

    return recorded(place, command, run)


def results(scene: Scene, disk: Path, promises: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Results are whole or not there, and those that were promised are; the page is whole; the run as before."""
    run = disk / "run"
    record = read_run(run)
    assert not record.remarks, record.remarks
    assert {e.protocol for e in record.evaluations} >= {"knn", "linear"} & promises.keys()
    for file in run.glob("eval/*.json"):
        json.loads(file.read_text())
    if (run / "report.html").exists():
        assert (run / "report.html").read_text().rstrip().endswith("</html>")
    assert unveil.Run.open(run).checkpoint().state["step"] == LAST
    report(scene, disk, promises | {"begun": True}, capsys)


def measured_again(scene: Scene, disk: Path, promises: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The evaluation is repeated on whatever is left of it, and measures the same."""
    words = ["--data", scene.place.data, "--precision", "float32", "--threads", "1", "--normalize", "standardize"]
    opened(scene, disk, {"begun": True}, capsys, "evaluate", str(disk / "run"), *words, "--protocol", "linear")
    ours, theirs = (json.loads((f / "run/eval/linear.json").read_text()) for f in (disk, scene.whole))
    for key in ("metrics", "baselines", "weights"):
        assert ours[key] == theirs[key]


def pack(place: Place) -> Scene:
    def command() -> None:
        assert main(["pack", place.data, "--out", "disk/pack", "--shard-size", "10kB", "--workers", "1"]) == 0

    return recorded(place, command)


def packed(scene: Scene, disk: Path, promises: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """What reads as a pack is whole, and the same command ends with the same bytes."""
    pack = disk / "pack"
    if "finished" in promises or (pack / "wids.json").exists():
        source = open_source(str(pack))
        assert [source.image(i).shape for i in range(len(source))] == [(3, 32, 32)] * 12
    code = main(["pack", scene.place.data, "--out", str(pack), "--shard-size", "10kB", "--workers", "1"])
    assert code == 0, capsys.readouterr().err
    for file in sorted(scene.whole.rglob("*.*")):
        if not file.name.startswith(".") and file.is_file():
            assert (disk / file.relative_to(scene.whole)).read_bytes() == file.read_bytes()


def study(place: Place) -> Scene:
    def command() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("unveil.experiments.study.schedule.subprocess.Popen", _Here)
            assert main(["study", "rates.py", "--out", "disk/study"]) == 0

    return recorded(place, command)


def studied(scene: Scene, disk: Path, promises: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The same command makes the table that it makes when nothing happens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unveil.experiments.study.schedule.subprocess.Popen", _Here)
        patch.chdir(scene.place.path)
        code = main(["study", "rates.py", "--out", str(disk / "study")])
    text = capsys.readouterr()
    assert code == 0, text.err
    if "finished" in promises:
        assert "2 of 2 runs are there already" in text.err
    rows, expected = (json.loads((f / "study/results.json").read_text())["rows"] for f in (disk, scene.whole))
    assert [(r["arm"], r["metric"], r["values"]) for r in rows] == [
        (r["arm"], r["metric"], r["values"]) for r in expected
    ]


WRITING = {  # commands that write files of a finished run
    "export": "export disk/run --to safetensors --out disk/files --overwrite",
    "embed": "embed disk/run --data images --out disk/files/f.npz --batch-size 4 --on local --part-size 4",
}


def rewritten(scene: Scene, disk: Path, promises: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The same command makes the same files of what is left of them, where it asks for that with --overwrite."""
    files = [file for file in scene.whole.rglob("files/*") if file.suffix in (".safetensors", ".npz")]
    words = WRITING["embed" if files[0].suffix == ".npz" else "export"].replace("disk/", f"{disk}/")
    with chdir(scene.place.path):
        opened(scene, disk, {"begun": True}, capsys, *words.split())
    assert all((disk / f.relative_to(scene.whole)).read_bytes() == f.read_bytes() for f in files)


OPENED: list[tuple[str, Check, int]] = [  # with the number of states where the proof is not run (STATES)
    ("train", kept_checkpoints, 50),
    ("train", load, 10),
    ("train", report, 10),
    ("train", evaluate, 3),
    ("train", continued, 4),
    ("evaluate", results, 12),
    ("evaluate", measured_again, 1),
    ("pack", packed, 8),
    ("export", rewritten, 0),
    ("embed", rewritten, 0),
    ("study", studied, 0),
]


@pytest.fixture(scope="module")
def scenes(place: Place) -> Callable[[str], Scene]:
    """What a command wrote, recorded once."""
    made: dict[str, Scene] = {}

    def scene(name: str) -> Scene:
        if name not in made:
            if name == "evaluate":
                made[name] = evaluation(place, scene("train").whole)
            elif name in WRITING:
                made[name] = recorded(place, lambda: main(WRITING[name].split()), scene("train").whole)
            else:
                made[name] = {"train": train, "pack": pack, "study": study}[name](place)
        return made[name]

    return scene


IDS = [f"{command}-{check.__name__}" for command, check, _ in OPENED]


@pytest.mark.parametrize(("command", "check", "count"), OPENED[:-3], ids=IDS[:-3])
def test_what_a_power_loss_leaves_is_whole(scenes, command: str, check: Check, count: int, capsys):
    assert not (wrong := faults(scenes(command), count, check, capsys)), "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.power
@pytest.mark.parametrize(("command", "check", "count"), OPENED, ids=IDS)
def test_what_many_power_losses_leave_is_whole(scenes, command: str, check: Check, count: int, capsys):
    assert not (wrong := faults(scenes(command), STATES, check, capsys)), "\n".join(wrong)


def _no_sync(patch: pytest.MonkeyPatch) -> None:
    for module in (atomic, checkpoint, folder):
        patch.setattr(module, "sync", lambda path: None)


def _rename_first(patch: pytest.MonkeyPatch) -> None:
    """A file is synced under its last name: after the rename."""

    @contextmanager
    def replacing(path: Path) -> Iterator[Path]:
        temporary = path.with_name(f".{path.name}.part")
        yield temporary
        temporary.replace(path)
        atomic.sync(path)
        atomic.sync(path.parent)

    patch.setattr(atomic, "replacing", replacing)


def _in_place(patch: pytest.MonkeyPatch) -> None:
    """`run.json` is written under its own name, and synced."""

    def write_json(path: Path, content: Any) -> None:
        if path.name != "run.json":
            return atomic.write_json(path, content)
        path.write_text(json.dumps(content, indent=1))
        atomic.sync(path)
        return atomic.sync(path.parent)

    patch.setattr(folder, "write_json", write_json)


def _names_not_synced(patch: pytest.MonkeyPatch) -> None:
    """Files are synced, folders are not."""
    sync = atomic.sync
    for module in (atomic, checkpoint, folder):
        patch.setattr(module, "sync", lambda path: None if path.is_dir() else sync(path))


@pytest.mark.parametrize("mutant", [_no_sync, _rename_first, _in_place, _names_not_synced])
def test_a_library_that_syncs_less_is_caught(place: Place, mutant: Callable[..., None], capsys):
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        scene = train(place, stopped=False)
    assert faults(scene, 150, kept_checkpoints, capsys, first_only=True)
