"""The house's set-up: shapes are checked under test, `./go` finishes what was begun, pins agree with the project."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jaxtyping
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def test_wrong_shape_is_refused_under_test():
    from unveil.modeling.losses import l2

    guess, truth = torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)
    with pytest.raises(jaxtyping.TypeCheckError):
        l2(guess, truth, torch.ones(2, 3, 1))


def test_checked_functions_still_compile_in_one_graph():
    from unveil.modeling.losses import l2

    arguments = (torch.rand(2, 3, 4), torch.rand(2, 3, 4), torch.ones(2, 3, 4))
    compiled = torch.compile(l2, fullgraph=True, backend="eager")(*arguments)
    for result, expected in zip(compiled, l2(*arguments), strict=True):
        torch.testing.assert_close(result, expected)


def test_every_requirement_is_pinned_within_its_range():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = project["optional-dependencies"]
    del extras["trackio"]  # needs an older Pillow
    for text in (*project["dependencies"], *(text for extra in extras.values() for text in extra)):
        wanted = Requirement(text)
        if wanted.name != "unveil":
            assert wanted.specifier.contains(pins[wanted.name.lower().replace("_", "-")]), text


class TestGo:
    """`./go` in a copy of the repository, with a pip that only writes down that it was called."""

    @pytest.fixture
    def copy(self, tmp_path: Path) -> Path:
        for name in ("go", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, tmp_path)
        return tmp_path

    def go(self, copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `./go` with every pip replaced, so that nothing is installed."""
        (copy / "fake").mkdir(exist_ok=True)
        (copy / "fake" / "sitecustomize.py").write_text(
            "import os, sys\n"
            "words = sys.orig_argv[1:]\n"
            "if words[:2] == ['-m', 'venv']:\n"
            "    import venv\n"
            f"    open({str(copy / 'made')!r}, 'a').write('made\\n')\n"
            "    venv.create(words[-1], clear=True, with_pip=False)\n"
            "    os._exit(0)\n"
            "if words[:3] == ['-m', 'pip', 'install']:\n"
            f"    open({str(copy / 'calls')!r}, 'a').write('install\\n')\n"
            f"    os._exit(1 if os.path.exists({str(copy / 'broken')!r}) else 0)\n"
            "if words[:2] in (['-m', 'pytest'], ['-m', 'unveil']):\n"
            "    print('ran', *words[1:], flush=True)\n"
            "    os._exit(7)\n"
        )
        environment = os.environ | {"PYTHONPATH": str(copy / "fake")}
        command = [sys.executable, str(copy / "go"), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=copy.parent)

    def counts(self, copy: Path) -> tuple[int, int]:
        """How often `.venv` was made, and how often pip installed."""
        files = (copy / "made", copy / "calls")
        made, calls = (len(file.read_text().splitlines()) if file.exists() else 0 for file in files)
        return made, calls

    def test_sets_up_once_then_hands_over_words_and_exit_code(self, copy: Path):
        first = self.go(copy, "test", "-k", "cli")
        assert first.stdout.splitlines()[-1] == "ran pytest -k cli", first.stderr
        assert first.returncode == 7
        second = self.go(copy, "demo", "--minutes", "1")
        assert second.stdout.splitlines() == ["ran unveil demo --minutes 1"]
        assert self.counts(copy) == (1, 1)

    def test_changed_requirements_are_installed_on_top(self, copy: Path):
        self.go(copy, "test")
        with (copy / "constraints.txt").open("a") as file:
            file.write("# another version\n")
        self.go(copy, "test")
        assert self.counts(copy) == (1, 2)

    def test_half_made_set_up_is_made_again(self, copy: Path):
        (copy / "broken").touch()
        failed = self.go(copy, "test")
        assert failed.returncode == 1
        assert "set-up failed" in failed.stderr
        (copy / "broken").unlink()
        (copy / ".venv" / "bin" / "python").unlink()
        assert self.go(copy, "test").stdout.splitlines()[-1].startswith("ran pytest -n ")  # a process for each core
        assert self.counts(copy) == (2, 2)

    def test_no_command_shows_help_and_installs_nothing(self, copy: Path):
        shown = self.go(copy)
        assert shown.returncode == 0
        assert "./go demo" in shown.stdout
        assert self.go(copy, "dmeo").returncode == 2
        assert not (copy / ".venv").exists()

    def test_old_python_is_told_which_one_is_needed(self, copy: Path):
        """The file itself must parse on any Python 3 for that, so it uses nothing that is new."""
        source = re.sub(r"NEEDED = .*", "NEEDED = (99, 0)", (copy / "go").read_text())
        (copy / "go").write_text(source.replace("(13, 12, 11, 14)", "()"))
        printed = self.go(copy, "test")
        assert printed.returncode == 1
        assert "needs Python 99.0" in printed.stderr
        ast.parse(source, feature_version=(3, 7))
