"""What only a process of its own can show of the command line, and the machine that `unveil doctor` looks at."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from unveil.cli import COMMANDS, main
from unveil.cli.commands import _after_embed


class TestProcess:
    """What only a process of its own can show."""

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "unveil", *words], capture_output=True, text=True)

    def test_alone_it_shows_every_command_and_where_to_begin(self):
        shown = self.run()
        assert shown.returncode == 0
        for name in COMMANDS:
            assert f"  {name}" in shown.stdout
        assert shown.stdout.endswith("next: unveil demo\n")

    def test_the_next_step_after_embed_runs(self, tmp_path: Path):
        np.savez(tmp_path / "f's.npz", features=np.zeros((2, 3)))
        words = shlex.split(_after_embed(tmp_path / "f's.npz"))
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
        assert done.stdout == "{'features': (2, 3)}\n", done.stderr

    def test_help_and_lists_never_wait_for_torch(self):
        code = textwrap.dedent("""
            import sys
            from unveil.cli import main
            lines = ["", "--help", "--version", "recipes", "pretrain --help", "nope"]
            print([main(line.split()) for line in lines], "torch" in sys.modules, "numpy" in sys.modules)
            print([main([name, "--help"]) for name in ("inspect", "report")], "torch" in sys.modules)
        """)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "\n[0, 0, 0, 0, 0, 2] False False\n" in done.stdout, done.stderr
        assert done.stdout.endswith("\n[0, 0] False\n"), done.stderr

    def test_a_mistake_ends_the_process_with_two(self):
        done = self.run("pretrain", "nosuch", "--data", "x")
        assert (done.returncode, done.stdout) == (2, "")

    def test_a_closed_pipe_is_no_fault(self):
        for words in (["recipes"], ["--help"], ["report", "--help"]):
            reader, writer = os.pipe()
            os.close(reader)
            command = [sys.executable, "-m", "unveil", *words]
            done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
            os.close(writer)
            assert (done.returncode, done.stderr) == (141, ""), words  # as of a program that SIGPIPE ends


class TestDoctor:
    def test_a_healthy_machine(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(["doctor"]) == 0
        stdout = capsys.readouterr().out
        assert "problem" not in stdout
        for text in ("unveil ", "torch ", "cores", "memory", "MiB/s", "JPEG", "a training step works"):
            assert text in stdout
        assert stdout.endswith("next: unveil demo\n")
        assert list(tmp_path.iterdir()) == []

    def test_a_broken_part_is_a_problem_and_the_rest_is_still_looked_at(self, capsys, monkeypatch):
        import simplejpeg

        def broken(*_: object) -> None:
            raise OSError("libturbojpeg is missing")

        monkeypatch.setattr(simplejpeg, "decode_jpeg", broken)
        assert main(["doctor"]) == 1
        stdout = capsys.readouterr().out
        assert "problem decoding: OSError: libturbojpeg is missing" in stdout
        assert "a training step works" in stdout
        assert stdout.endswith("next: unveil doctor\n")
