"""The terminal: messages and one progress line on stderr, tables as plain text, names and paths as users type them."""

from __future__ import annotations

import difflib
import math
import os
import re
import signal
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from .launcher import is_rank_zero

_PLAIN_SECONDS = 10.0  # between two lines where there is no terminal
_TERMINAL_SECONDS, _NOTEBOOK_SECONDS, _NOTEBOOK_COLUMNS = 0.2, 0.5, 120
_RATE_SECONDS = 60.0  # the time left is told from the progress of the last minute, since first steps are often slow
_REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # what follows is shown in another order
_CODES = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029{_REORDERING}]")  # all but tabs and ends of lines


class RankZeroFailed(Exception):  # noqa: N818
    """The process of rank zero has stopped and logged the reason."""


class RankLost(RuntimeError):  # noqa: N818
    """One of several processes is gone or hangs; the message names it. `speaks`: this process says so for all."""

    status = 75  # EX_TEMPFAIL of sysexits.h: to be tried again

    def __init__(self, message: str, speaks: bool):
        super().__init__(message)
        self.speaks = speaks


class Diverged(ValueError):  # noqa: N818
    """Training went back and lowered its rate as often as it may, and still cannot go on.

    `remedy` is what promises most: a lower rate, float32, or other images.
    """

    def __init__(self, message: str, remedy: str = "rate"):
        super().__init__(message)
        self.remedy = remedy


class Stopped(KeyboardInterrupt):
    """A signal has stopped a command in order, with everything saved: SIGTERM or SIGUSR1, as Ctrl-C does."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__()
        self.number = number


def exit_status(stopped: KeyboardInterrupt) -> int:
    """128 and the number of the signal, as shells and Slurm's `srun` count a process that a signal has ended."""
    return 128 + (stopped.number if isinstance(stopped, Stopped) else signal.SIGINT)


def log(text: str) -> None:
    """A message on stderr, from rank 0 only; results go to stdout. Nothing fails because nobody can read it."""
    if is_rank_zero():
        with suppress(OSError):
            print(one_message(text), file=sys.stderr, flush=True)


def harmless(text: str) -> str:
    """The text with codes that a terminal obeys, or that turn the order of what is shown, written as escapes.

    Whatever is printed or reported goes through it once more, for a name from a stranger may be anywhere in it.
    """
    return _CODES.sub(lambda code: code[0].encode("unicode_escape").decode(), text)


def one_message(text: str) -> str:
    """A message as it is printed: `harmless`, and no line of it but the first looks like the first of a message."""
    return re.sub(r"\n(?=\w+: )", "\n  ", harmless(text))


class HarmlessStream:
    """A stream whose text is made `harmless` as it is written."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(harmless(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def printable(text: str) -> str:
    """The text for any stream of UTF-8: of file names that are none, the odd bytes are escaped."""
    return text.encode(errors="backslashreplace").decode()


def quoted(text: str) -> str:
    """A name from a stranger as one line of plain text: quoted where it holds line breaks or codes of a terminal."""
    hidden = ("Cc", "Zl", "Zp")  # control characters, separators of lines and of paragraphs
    return repr(text) if any(unicodedata.category(c) in hidden or c in _REORDERING for c in text) else text


def duration(seconds: float) -> str:
    """Seconds in a readable unit; a dash where they are not known."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 90 * 60:
        return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def plural(noun: str, count: float) -> str:
    """A noun as it stands behind a number: class, classes."""
    return noun if count == 1 else noun + ("es" if noun.endswith("s") else "s")


def suggest(name: str, known: Iterable[object], otherwise: str = "", shown: Callable[[str], str] = str) -> str:
    """Either "did you mean a or b?", the known names most like this one, or `otherwise`, or "there are a, b, c"."""
    names = [str(k) for k in known]
    if close := difflib.get_close_matches(name, names, n=3, cutoff=0.7):
        likeness = {other: difflib.SequenceMatcher(None, other, name).ratio() for other in close}
        close = [other for other in close if likeness[other] > likeness[close[0]] - 0.15]
        return f"did you mean {' or '.join(map(shown, close))}?"
    return otherwise or f"there are {', '.join(names) or 'none'}"


def user_path(address: str | Path) -> Path:
    """The path of an address, `~` and `~name` expanded. Raises ValueError for a user whose home is not known."""
    try:
        return Path(address).expanduser()
    except RuntimeError as error:
        home = Path(address).parts[0]
        raise ValueError(f"{str(address)!r}: there is no home folder for {home}; write the whole path") from error


def table(rows: Iterable[Sequence[object]], align: str = "lr", indent: str = "") -> str:
    """Rows of cells as text in aligned columns, the same on a terminal and in a file.

    `align` holds l or r for each column, its last letter for all further ones. Floats get three digits after the
    point, None is a dash.
    """
    cells = [[_cell(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    aligns = align.ljust(len(widths), align[-1])
    return "\n".join(
        indent
        + "  ".join(
            cell + " " * (width - _width(cell)) if a == "l" else " " * (width - _width(cell)) + cell
            for cell, width, a in zip(row, widths, aligns, strict=False)
        ).rstrip()
        for row in cells
    )


def _cell(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.3f}" if abs(cell) < 100 else f"{cell:.1f}"
    return "-" if cell is None else harmless(str(cell)).replace("\n", "\\n")


def _width(text: str) -> int:
    return len(text) + sum(unicodedata.east_asian_width(character) in "WF" for character in text)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, whose output goes back to the start of a line as a terminal's.

    A kernel has imported IPython, so nothing is imported to ask.
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class Progress:
    """A line on stderr with the progress of a task and the time left.

    On a terminal and in a notebook it is rewritten in place; elsewhere a line is printed every ten seconds, none of
    them in the first `quiet` seconds of a task.
    """

    def __init__(self, quiet: float = 0.0):
        self.is_terminal = sys.stderr.isatty()
        self.is_rewritten = self.is_terminal or in_notebook()
        self.quiet = 0.0 if self.is_rewritten else quiet
        self.interval = _PLAIN_SECONDS
        if self.is_rewritten:
            self.interval = _TERMINAL_SECONDS if self.is_terminal else _NOTEBOOK_SECONDS
        self.task: str | None = None
        self.due, self.is_shown, self.width = 0.0, False, 0
        self.marks: deque[tuple[float, float]] = deque()  # times of lines, and what was done by then

    def update(self, text: str, done: float, total: float, task: str = "") -> None:
        """Show `text` and the time left when a line is due; the last one of a task always is."""
        now, text = time.monotonic(), harmless(text).replace("\n", " ")
        if task != self.task:
            self.close()
            self.task, self.due, self.is_shown = task, now + self.quiet, False
            self.marks = deque([(now, done)])
        if now < self.due and (done < total or not self.is_shown):
            return
        self.due, self.is_shown = now + self.interval, True
        if done < self.marks[-1][1]:  # the next of several that are alike
            self.marks.clear()
            self.marks.append((now, done))
        while len(self.marks) > 1 and self.marks[1][0] <= now - _RATE_SECONDS:
            self.marks.popleft()
        start, first = self.marks[0]
        self.marks.append((now, done))
        left = f"  {duration((now - start) / (done - first) * (total - done))} left" if first < done < total else ""
        if not self.is_rewritten:
            log(text + left)
            return
        columns = os.get_terminal_size(sys.stderr.fileno()).columns if self.is_terminal else _NOTEBOOK_COLUMNS
        columns = columns or sys.maxsize  # 0: not known
        line = text[: max(0, columns - 1 - len(left))] + left
        print("\r" + line.ljust(self.width), end="", file=sys.stderr, flush=True)
        self.width = len(line)

    def log(self, text: str) -> None:
        self.close()
        log(text)

    def close(self) -> None:
        if self.width:
            log("")
            self.width = 0
