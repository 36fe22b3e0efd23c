"""The terminal: aligned tables, one progress line, times in readable units."""

from __future__ import annotations

import io
import os
import sys
from types import SimpleNamespace

import pytest

from unveil.runs import console
from unveil.runs.console import Progress, duration, plural, table


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: clock.now)
    return clock


def test_nouns_stand_as_their_number_asks():
    assert [plural("class", n) for n in (0, 1, 2)] == ["classes", "class", "classes"]
    assert [plural("thread", n) for n in (1, 2, 0.5)] == ["thread", "threads", "threads"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(12, "12 s"), (600, "10 min"), (7200, "2.0 h"), (3e5, "3.5 days"), (float("nan"), "–"), (float("inf"), "–")],
)
def test_durations_are_in_a_readable_unit(seconds: float, words: str):
    assert duration(seconds) == words


class TestTable:
    def test_columns_line_up(self):
        rows = [["", "share", "count"], ["a", 0.25, 7], ["longer", 123.456, None]]
        assert table(rows) == "        share  count\na       0.250      7\nlonger  123.5      -"

    def test_alignment_and_indent(self):
        assert table([["a", "b"], ["ccc", "dd"]], "l", "  ") == "  a    b\n  ccc  dd"
        assert table([["a", "1", "b", "2"], ["cc", "11", "dd", "22"]], "lrlr") == "a    1  b    2\ncc  11  dd  22"

    def test_wide_characters_take_two_columns(self):
        assert table([["猫", 1], ["cat", 2]]) == "猫   1\ncat  2"

    def test_no_rows(self):
        assert table([]) == ""


class TestProgress:
    def test_without_a_terminal_lines_come_now_and_then(self, capsys: pytest.CaptureFixture[str], clock):
        progress = Progress()
        for step, seconds in ((1, 0), (2, 5), (3, 5), (4, 5), (10, 1)):
            clock.now += seconds
            progress.update(f"step {step}", step, 10)
        progress.close()
        assert capsys.readouterr().err.splitlines() == ["step 1", "step 3  35 s left", "step 10"]

    def test_the_time_left_is_that_of_the_last_minute(self, capsys: pytest.CaptureFixture[str], clock):
        progress = Progress()
        for step in range(8):
            progress.update(f"step {step}", step, 100)
            clock.now += 120 if step == 0 else 10  # the first step is compiled
        said = capsys.readouterr().err.splitlines()
        assert said[1] == "step 1  3.3 h left"
        assert said[-1] == "step 7  16 min left"
        for step in (0, 10):
            progress.update(f"step {step} of the next", step, 100)
            clock.now += 10
        assert capsys.readouterr().err.splitlines()[-1] == "step 10 of the next  2 min left"

    def test_a_quiet_task_that_is_short_prints_nothing(self, capsys: pytest.CaptureFixture[str], clock):
        progress = Progress(quiet=20)
        for task in ("a", "b"):
            for done in (1, 2, 3):
                progress.update(f"{task} {done}", done, 3, task)
        assert capsys.readouterr().err == ""
        for done in (1, 2, 3):
            clock.now += 15
            progress.update(f"c {done}", done, 3, "c")
        assert capsys.readouterr().err.splitlines() == ["c 3"]

    def test_on_a_terminal_one_line_is_rewritten_and_never_wider_than_it(self, monkeypatch: pytest.MonkeyPatch, clock):
        terminal = io.StringIO()
        terminal.isatty = lambda: True  # type: ignore[method-assign]
        terminal.fileno = lambda: 2  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((20, 5)))
        progress = Progress()
        for step in (1, 2):
            clock.now += 1
            progress.update(f"step {step} of a long line", step, 3)
        progress.log("a message")
        assert terminal.getvalue() == "\rstep 1 of a long li\rstep 2 of  1 s left\na message\n"

    def test_in_a_notebook_one_line_is_rewritten(self, clock, capsys, monkeypatch: pytest.MonkeyPatch):
        shell = SimpleNamespace(kernel=object())
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
        progress = Progress(quiet=20)
        for done in range(11):
            clock.now += 0.25
            progress.update(f"step {done} of 10", done, 10)
        progress.close()
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert said.split("\r")[-1].rstrip() == "step 10 of 10"
        assert said.count("\r") == 6  # twice a second
        del shell.kernel  # IPython in a terminal, its output in a file
        assert not Progress().is_rewritten
