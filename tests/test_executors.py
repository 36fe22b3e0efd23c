"""Studies and features by several processes that share a folder: `--on local`, a fake Slurm, and Ray of two workers."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

import test_study
import test_submit
from tiny_runs import Place, write_images, write_recipe
from unveil.cli import main
from unveil.commands import embed_parts
from unveil.commands.embed import embed
from unveil.commands.embed_parts import Parts, merge, write_features
from unveil.runs.executors import Work, each_once, executor

DATA = "images"
slurm, study_place = test_submit.slurm, test_study.place  # fixtures
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed here")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    place = Place(folder, write_recipe(folder), str(write_images(folder / "images")))
    assert place.pretrain("--epochs", "1") == 0
    (folder / "images" / "even" / "016.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run; the commands run beside its images, one of which is unreadable."""
    shutil.copytree(trained / "images", tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    return trained / "run"


def words(run: Path, data: str, out: str, *more: str) -> list[str]:
    return ["embed", str(run), "--data", data, "--batch-size", "3", "--part-size", "5", "--out", out, *more]


def begin(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "unveil", *words], text=True, stderr=subprocess.PIPE)


def test_parts_are_joined_to_the_bytes_of_one_process(run: Path, capsys: pytest.CaptureFixture[str]):
    """Batches of parts are those of a whole; an unreadable image, labels and normalisation are as there."""
    more = ["--normalize", "standardize", "--limit", "35"]
    assert main(["embed", str(run), "--data", DATA, "--batch-size", "3", "--out", "one.npz", *more]) == 0
    assert main(words(run, DATA, "parts.npz", "--on", "local", *more)) == 0
    assert "016.png" in capsys.readouterr().err
    assert Path("parts.npz").read_bytes() == Path("one.npz").read_bytes()
    with np.load("parts.npz") as content:
        assert len(content["features"]) == len(content["labels"]) == 34
    assert not list(Path("parts.npz.parts").glob("*/*.npz"))
    before = Path("parts.npz").stat().st_mtime_ns
    assert main(words(run, DATA, "parts.npz", "--on", "local", *more)) == 0
    assert Path("parts.npz").stat().st_mtime_ns == before  # nothing was computed again


def test_parts_that_are_there_are_kept_and_others_computed(run: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped after three of seven parts, and of other images nothing is taken."""
    embed(str(run), data=DATA, batch_size=3, out="one.npz")
    written: list[str] = []
    write = embed_parts.write_features

    def stopping(path: Path, content: dict[str, object]) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, content)

    monkeypatch.setattr(embed_parts, "write_features", stopping)
    assert main(words(run, DATA, "parts.npz", "--on", "local")) == 130
    written.append("stopped")
    assert main(words(run, DATA, "parts.npz", "--on", "local")) == 0
    assert written == [f"part-{k:06}.npz" for k in (0, 1, 2)] + ["stopped"] + [f"part-{k:06}.npz" for k in range(3, 7)]
    assert Path("parts.npz").read_bytes() == Path("one.npz").read_bytes()
    (Path(DATA) / "odd" / "001.png").write_bytes((Path(DATA) / "odd" / "003.png").read_bytes())
    assert main(words(run, DATA, "parts.npz", "--on", "local")) == 0
    assert Path("parts.npz").read_bytes() != Path("one.npz").read_bytes()
    assert len(written) == 15


def test_a_part_without_a_readable_image_is_none_of_the_file(tmp_path: Path):
    parts = Parts.of(tmp_path / "f.npz", "facts", 4, 2)
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    whole = {"features": rows, "names": np.array(["a", "bcd"]), "weights": np.array("{}"), "labels": np.array([0, 1])}

    def extract(part: range) -> dict[str, object]:
        if part[0] == 0:
            raise embed_parts.NoneReadable("none")
        return whole

    parts.finish(extract)
    write_features(tmp_path / "one.npz", whole)
    assert (tmp_path / "f.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
    empty = {"features": np.zeros((0, 0), np.float32), "names": np.zeros(0, "U1")}
    write_features(tmp_path / "empty.npz", empty)
    with pytest.raises(ValueError, match="none of the images"):
        merge([tmp_path / "empty.npz"], tmp_path / "two.npz")


@pytest.mark.scale
@pytest.mark.slow
def test_the_part_of_a_lost_process_is_done_by_another(run: Path):
    """One of two processes is killed in the midst of a part, for which the other waits."""
    assert begin("embed", str(run), "--data", DATA, "--batch-size", "3", "--out", "one.npz").wait(timeout=300) == 0
    first = begin(*words(run, DATA, "parts.npz", "--on", "local"))
    while first.poll() is None and not list(Path("parts.npz.parts").glob("*/locks/part-*.owner")):
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)  # it holds a part now
    second = begin(*words(run, DATA, "parts.npz", "--on", "local"))
    time.sleep(20)
    assert second.poll() is None
    first.kill()
    assert second.wait(timeout=300) == 0
    assert Path("parts.npz").read_bytes() == Path("one.npz").read_bytes()


@pytest.mark.scale
@pytest.mark.slow
def test_two_processes_here_write_the_bytes_of_one(run: Path):
    assert begin("embed", str(run), "--data", DATA, "--batch-size", "3", "--out", "one.npz").wait(timeout=300) == 0
    assert main(words(run, DATA, "parts.npz", "--on", "local", "--jobs", "2")) == 0
    assert Path("parts.npz").read_bytes() == Path("one.npz").read_bytes()
    assert main(words(run, "nowhere", "parts.npz", "--on", "local", "--jobs", "2")) == 2


def test_a_part_is_done_once_by_threads_that_share_it(tmp_path: Path):
    done: list[str] = []

    def work() -> None:
        each_once("abcdef", tmp_path, lambda part: part in done, done.append)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [*"abcdef"]


def test_a_part_that_appears_late_is_made_again(tmp_path: Path):
    """As on a network drive, whose other hosts see a file only after a while."""
    written: dict[str, float] = {}
    made: list[str] = []

    def write(part: str) -> None:
        made.append(part)
        written.setdefault(part, time.monotonic())

    def is_seen(part: str) -> bool:
        return part in written and time.monotonic() - written[part] > 0.3

    each_once("ab", tmp_path, is_seen, write)
    assert all(map(is_seen, "ab"))
    assert len(made) > 2


def test_an_array_of_slurm_embeds_with_a_task_for_each_part(
    slurm: Path,
    run: Path,
    place: Place,
    capsys: pytest.CaptureFixture[str],
):
    on = "slurm:partition=gpu,time=2:00:00,gpus-per-node=1"
    assert main(words(run, DATA, "parts.npz", "--pool", "auto", "--on", on, "--dry-run")) == 0
    out = capsys.readouterr().out
    assert "#SBATCH --array=0-6\n" in out
    assert {"#SBATCH --partition=gpu", "#SBATCH --time=2:00:00", "#SBATCH --gpus-per-node=1"} <= {*out.splitlines()}
    assert not slurm.exists()
    assert main(words(run, DATA, "parts.npz", "--pool", "auto", "--on", on, "--jobs", "2")) == 0
    calls = [line for line in slurm.read_text().splitlines() if line.startswith("unveil")]
    assert len(calls) == 2
    assert len({*calls}) == 1
    given = calls[0].removeprefix("unveil [").removesuffix("]").split("] [")
    assert {"--on", "local", "--pool", "auto"} <= {*given}
    assert not Path("parts.npz").exists()
    assert "next: squeue --me" in capsys.readouterr().out
    assert main([*given, "--pool", "mean"]) == 0  # the task's own command
    assert Path("parts.npz").exists()


def test_an_array_of_slurm_makes_the_runs_of_a_study(
    slurm: Path,
    study_place: Path,
    capsys: pytest.CaptureFixture[str],
):
    command = ["study", "rates.py", "--scale", "smoke", "--out", "s", "--seeds", "2"]
    assert main([*command, "--on", "slurm:account=lab", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "#SBATCH --array=0-3\n#SBATCH" in out
    assert "#SBATCH --account=lab\n" in out
    assert "srun --kill-on-bad-exit=0 unveil study rates.py --scale smoke --out s --seeds 2\n" in out
    assert not (study_place / "s").exists()
    assert main([*command, "--on", "slurm:account=lab"]) == 0
    assert slurm.read_text().count("unveil [study] [rates.py]") == 4
    assert "next: squeue --me" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--on", "slrum"], "did you mean slurm?"),
        (["--on", "slurm:part=gpu"], "'part=gpu' is no option of slurm; there are gpus_per_node"),
        (["--on", "slurm:time=soon"], "--time soon: a time as Slurm writes it"),
        (["--on", "ray:gpus=all"], "gpus is a number, got 'all'"),
        (["--jobs", "2"], "--jobs is for --on"),
        (["--on", "local", "--part-size", "0"], "--part-size 0"),
    ],
)
def test_a_mistake_is_one_line(run: Path, capsys: pytest.CaptureFixture[str], more, said: str):
    assert main([*words(run, DATA, "parts.npz"), *more]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_what_starts_processes_is_not_started_by_torchrun(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="not to torchrun"):
        executor("slurm")


def test_without_ray_it_says_how_to_install_it(run: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(words(run, DATA, "parts.npz", "--on", "ray")) == 2
    assert "pip install 'unveil[ray]'" in capsys.readouterr().err


@pytest.fixture
def two_workers() -> Iterator[None]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False)
    yield
    ray.shutdown()


@needs_ray
@pytest.mark.scale
@pytest.mark.slow
def test_two_workers_of_ray_embed_what_one_process_does(two_workers: None, run: Path):
    assert begin("embed", str(run), "--data", DATA, "--batch-size", "3", "--out", "one.npz").wait(timeout=300) == 0
    assert main(words(run, DATA, "parts.npz", "--on", "ray")) == 0
    assert Path("parts.npz").read_bytes() == Path("one.npz").read_bytes()


@needs_ray
@pytest.mark.scale
@pytest.mark.slow
def test_the_part_of_a_lost_worker_of_ray_is_done_again(two_workers: None, run: Path):
    """Whoever holds the third part is killed there."""
    assert begin("embed", str(run), "--data", DATA, "--batch-size", "3", "--out", "one.npz").wait(timeout=300) == 0
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        while not killed and not ended.wait(0.001):
            for owner in Path("parts.npz.parts").glob("*/locks/part-000002.owner"):
                process = int(owner.read_text().split()[1])
                if process != os.getpid() and psutil.pid_exists(process):
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert main(words(run, DATA, "parts.npz", "--on", "ray")) == 0
    finally:
        ended.set()
        killer.join()
    assert killed
    assert Path("parts.npz").read_bytes() == Path("one.npz").read_bytes()


@needs_ray
@pytest.mark.scale
@pytest.mark.slow
def test_two_workers_of_ray_make_the_table_of_a_study(two_workers: None, study_place: Path):
    command = ["study", "rates.py", "--scale", "smoke", "--seeds", "1", "--device", "cpu"]
    assert main([*command, "--out", "here"]) == 0
    assert main([*command, "--out", "there", "--on", "ray"]) == 0
    here, there = (json.loads((study_place / name / "results.json").read_text())["rows"] for name in ("here", "there"))
    assert there == here
    assert main([*command, "--out", "there", "--on", "ray", "--data", "nowhere"]) == 2


def test_processes_get_every_option_that_is_not_at_its_default():
    """Whatever its value: a folder may be called local, and off is no default of what is on."""

    def verb(subject: str, *, data: str = "", device: str = "auto", baselines: bool = True, seed: int = 1) -> None: ...

    work = Work(verb, "verb", "a", {"data": "local", "device": "auto", "baselines": False, "seed": 0})
    assert work.given == {"data": "local", "baselines": False, "seed": 0}
    assert work.words == ["verb", "a", "--data", "local", "--no-baselines", "--seed", "0"]
