"""What stops a run in order: a closed terminal, an output that nobody reads."""

from __future__ import annotations

import io
import os
import signal
import sys

import pytest

from unveil.runs.console import log
from unveil.training.stopping import stop_on_signal


@pytest.mark.parametrize(("error", "number"), [(BrokenPipeError, signal.SIGPIPE), (OSError, 0)])
def test_a_run_stops_in_order_where_nobody_reads_its_output(
    monkeypatch: pytest.MonkeyPatch, error: type[OSError], number: int
):
    """Of `2>&1 | head`; it goes on where a log is on a full disk, or a terminal is gone under `nohup`."""

    class Closed(io.StringIO):
        def flush(self) -> None:
            raise error

    monkeypatch.setattr("sys.stderr", closed := Closed())
    log("outside of training it is no error either")
    with stop_on_signal() as stop:
        log("a line")
        assert (stop.is_set(), stop.number) == (number > 0, number)
    assert sys.stderr is closed


def test_a_terminal_that_is_closed_stops_a_run_in_order_unless_that_is_ignored(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.write", lambda *_: (_ for _ in ()).throw(BrokenPipeError))  # Ctrl-C ended `tee`, too
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for handler, number in ((signal.SIG_IGN, 0), (signal.SIG_DFL, signal.SIGHUP)):
            signal.signal(signal.SIGHUP, handler)
            with stop_on_signal() as stop:
                os.kill(os.getpid(), signal.SIGHUP)
                assert stop.number == number
    finally:
        signal.signal(signal.SIGHUP, before)
