"""The run folder: which run it holds, who may write it, what is removed and what is not."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unveil.runs.folder import RunFolder, check_writable, choose_folder, is_continuation, read_metadata
from unveil.training.config import PretrainConfig

CHOSEN = {"recipe": "mae", "seed": 0, "visible": 0.25}


def begun(path: Path, **facts: object) -> RunFolder:
    path.mkdir(exist_ok=True)
    run = RunFolder(path)
    run.update_metadata(asked=CHOSEN, **{"status": "running", **facts})
    return run


def trained(path: Path, **facts: object) -> RunFolder:
    run = begun(path, **facts)
    run.log_metrics({"kind": "step", "step": 1})
    return run


class TestIntents:
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_where_nothing_is_a_run_begins(self, tmp_path: Path, overwrite: bool):
        assert not is_continuation(tmp_path / "new", CHOSEN, overwrite)
        assert not is_continuation(tmp_path, CHOSEN, overwrite)

    @pytest.mark.parametrize("status", ["running", "stopped", "failed"])
    def test_the_same_run_unfinished_goes_on_unless_it_is_to_be_replaced(self, tmp_path: Path, status: str):
        trained(tmp_path, status=status)
        assert is_continuation(tmp_path, CHOSEN, overwrite=False)
        assert not is_continuation(tmp_path, CHOSEN, overwrite=True)

    def test_a_finished_run_is_left_alone(self, tmp_path: Path):
        trained(tmp_path, status="finished")
        with pytest.raises(
            ValueError, match=r"finished; .*--init-from .* --continue-schedule tail and a new --out.*--overwrite"
        ):
            is_continuation(tmp_path, CHOSEN, overwrite=False)

    def test_a_finished_run_that_is_to_be_longer_names_the_way(self, tmp_path: Path):
        trained(tmp_path, status="finished")
        with pytest.raises(ValueError, match=r"epochs: None then, 3 now.*--init-from .* --continue-schedule tail"):
            is_continuation(tmp_path, {**CHOSEN, "epochs": 3}, overwrite=False)
        with pytest.raises(ValueError, match="another run") as refusal:
            is_continuation(tmp_path, {**CHOSEN, "epochs": 3, "visible": 0.5}, overwrite=False)
        assert "--init-from" not in str(refusal.value)

    def test_another_run_is_refused_with_what_differs(self, tmp_path: Path):
        trained(tmp_path)
        with pytest.raises(ValueError, match=r"visible: 0.25 then, 0.5 now") as refusal:
            is_continuation(tmp_path, {**CHOSEN, "visible": 0.5}, overwrite=False)
        assert "recipe" not in str(refusal.value)
        with pytest.raises(ValueError, match=r"epochs: None then, 3 now; recipe: 'mae' then, 'crossmae' now"):
            is_continuation(tmp_path, {**CHOSEN, "recipe": "crossmae", "epochs": 3}, overwrite=False)

    @pytest.mark.parametrize("status", ["running", "stopped", "failed"])
    def test_a_run_killed_before_its_first_step_makes_way_for_another(self, tmp_path: Path, status: str, capsys):
        (trained(tmp_path, status=status).path / "metrics.jsonl").write_text('{"kind": "signals", "step": 0}\n')
        assert is_continuation(tmp_path, CHOSEN, overwrite=False)
        assert not is_continuation(tmp_path, {**CHOSEN, "batch_size": 32}, overwrite=False)
        assert "stopped before its first step" in capsys.readouterr().err

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_folder_of_other_files_is_never_ours(self, tmp_path: Path, overwrite: bool):
        (tmp_path / "photo.jpg").touch()
        with pytest.raises(ValueError, match="holds files that are no run"):
            is_continuation(tmp_path, CHOSEN, overwrite)

    def test_a_run_killed_before_it_began_is_begun_again(self, tmp_path: Path):
        run = RunFolder(tmp_path)
        with run.lock():
            (tmp_path / "inspection.json").touch()
        assert not is_continuation(tmp_path, CHOSEN, overwrite=False)

    @pytest.mark.parametrize("text", ['{"given": {', "[]", "\x00"])
    def test_a_damaged_description_is_named(self, tmp_path: Path, text: str):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ValueError, match=r"run.json is damaged"):
            is_continuation(tmp_path, CHOSEN, overwrite=False)
        assert not is_continuation(tmp_path, CHOSEN, overwrite=True)


class TestRemoving:
    def test_only_what_a_run_wrote_goes(self, tmp_path: Path):
        run = begun(tmp_path)
        for name in ("checkpoints/step-1/model.safetensors", "pictures/a.png", "eval/knn.json", "metrics.jsonl"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "notes.txt").write_text("mine")
        run.clear()
        assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]

    def test_what_a_killed_process_left_half_written_goes(self, tmp_path: Path):
        run = begun(tmp_path)
        (tmp_path / "checkpoints" / ".step-00000007").mkdir(parents=True)
        (tmp_path / "pictures").mkdir()
        for name in (".run.json.part", "pictures/.index.json.123.part"):
            (tmp_path / name).touch()
        run.remove_partial_files()
        assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
            "checkpoints",
            "pictures",
            "run.json",
        ]


class TestJournal:
    def test_it_goes_back_to_a_step_without_the_line_that_was_cut_off(self, tmp_path: Path):
        run = begun(tmp_path)
        for step in (0, 1, 2, 3):
            run.log_metrics({"kind": "step", "step": step})
        with (tmp_path / "metrics.jsonl").open("a") as journal:
            journal.write('{"kind": "step", "step": 2')
        run.rewind(2)
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
        run.rewind(-1)
        assert (tmp_path / "metrics.jsonl").read_text() == ""

    def test_without_one_there_is_nothing_to_go_back_in(self, tmp_path: Path):
        begun(tmp_path).rewind(3)
        assert not (tmp_path / "metrics.jsonl").exists()

    def test_a_disk_that_takes_nothing_is_told_once_for_each_file(self, tmp_path: Path, capsys):
        run = begun(tmp_path)
        (tmp_path / "metrics.jsonl").mkdir()
        (tmp_path / "broken.json").mkdir()
        for _ in range(3):
            run.log_metrics({"step": 1})
            run.write_optional_json("broken.json", {})
        stderr = capsys.readouterr().err.splitlines()
        assert len(stderr) == 2
        assert "metrics.jsonl cannot be written" in stderr[0]
        assert all("training goes on" in line for line in stderr)


class TestLock:
    def test_a_second_process_is_kept_out_and_told_who_is_in(self, tmp_path: Path):
        code = (
            "import sys; from pathlib import Path; from unveil.runs.folder import RunFolder\n"
            "with RunFolder(Path(sys.argv[1])).lock(): print('in', flush=True); sys.stdin.read()"
        )
        words = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout
            assert other.stdout.readline() == "in\n"
            with (
                pytest.raises(ValueError, match=rf"process {other.pid} on .* is training in"),
                RunFolder(tmp_path).lock(),
            ):
                pass
            other.kill()
        with RunFolder(tmp_path).lock():  # a killed process keeps nobody out
            pass

    def test_it_is_open_again_afterwards_even_after_an_error(self, tmp_path: Path):
        with pytest.raises(KeyError), RunFolder(tmp_path).lock():
            raise KeyError
        with RunFolder(tmp_path).lock():
            pass

    def test_a_place_without_locks_is_told_and_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", refuse)
        with RunFolder(tmp_path).lock():
            assert "No locks available" in capsys.readouterr().err


class TestPlace:
    def test_without_a_name_the_next_free_one_is_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(tmp_path)
        assert choose_folder(None, "mae") == Path("runs/mae-1")
        for name in ("mae-1", "mae-2", "mae-4"):
            (tmp_path / "runs" / name).mkdir(parents=True)
        assert choose_folder(None, "mae") == Path("runs/mae-3")

    def test_looking_whether_a_folder_can_be_written_leaves_nothing(self, tmp_path: Path):
        check_writable(tmp_path / "a" / "b")
        assert list(tmp_path.iterdir()) == []

    def test_a_file_in_the_way_is_named(self, tmp_path: Path):
        (tmp_path / "file").touch()
        for place in (tmp_path / "file", tmp_path / "file" / "run"):
            with pytest.raises(NotADirectoryError, match=f"{tmp_path / 'file'} is a file"):
                check_writable(place)

    def test_a_folder_that_takes_no_files_is_refused(self, tmp_path: Path):
        with pytest.raises(PermissionError, match="give another --out"):
            check_writable(read_only(tmp_path))

    def test_a_run_json_that_is_not_there_says_nothing(self, tmp_path: Path):
        assert read_metadata(tmp_path) == {}


def read_only(folder: Path) -> Path:
    """A folder that cannot be written: to root, none of the usual ones is."""
    if os.geteuid() == 0:
        if not Path("/proc/self").exists():
            pytest.skip("root may write everywhere here")
        return Path("/proc/runs/a")
    folder.chmod(0o555)
    return folder / "a"


class TestPretrainConfig:
    def test_the_command_says_all_that_was_given_and_where_the_run_is(self):
        options = {"image_size": (160, 224), "norm_pix": False, "predicted": None, "lr": 1e-5}
        given = {"data": "my photos", "seed": 3, "overwrite": True, "minutes": 1.5}
        config = PretrainConfig("my recipe.py", **given, recipe_options=options)  # type: ignore[arg-type]
        assert config.command(Path("runs/a")) == (
            "unveil pretrain 'my recipe.py' --data 'my photos' --out runs/a --minutes 1.5 --seed 3"
            " --image-size 160 224 --no-norm-pix --predicted none --lr 1e-05"
        )

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("minutes", v) for v in (0, -1, float("nan"), float("inf"))),
            *(("seed", v) for v in (-1, 2**62)),
            *(("micro_batch", v) for v in (0, -4)),
            *(("save_minutes", v) for v in (-1, float("nan"))),
            *(("val_every", v) for v in (0, float("nan"))),
            *(("max_broken", v) for v in (-0.1, 1.1, float("nan"))),
            ("workers", 0),
            ("precision", "fp16"),
            ("compile", "yes"),
        ],
    )
    def test_a_number_that_no_run_could_have_is_named(self, name: str, value: object):
        with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')} {value}: .* is needed"):
            PretrainConfig("mae", **{name: value})  # type: ignore[arg-type]
