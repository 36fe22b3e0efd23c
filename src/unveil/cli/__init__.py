"""The command line: `unveil COMMAND ...`. Results go to stdout, everything else to stderr.

A user's mistake is one line and exit status 2, never a traceback; a fault of ours keeps its traceback and exits with
1. docs/scale.md lists all exit statuses.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO, cast

from ..recipes.options import UsageError
from ..runs.console import Diverged, HarmlessStream, RankLost, RankZeroFailed, exit_status, log, one_message, suggest
from .command import COMMANDS, HelpAsked
from .commands import UNSOUND
from .flags import columns

_HERE = Path(__file__).resolve().parents[1]


_STORAGE = {  # what to do about a disk
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "your quota is used up: remove files or have it raised",
    errno.EROFS: "the file system is read-only: mount it for writing, or give another --out",
    errno.EACCES: "get the permission of the folder back, or give another --out",
    errno.EIO: "the disk or its network fails: see the log of the system, and copy the folder elsewhere if it stays so",
    errno.ESTALE: "the network drive was mounted anew: enter the folder again",
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 our fault, 2 the user's mistake, 3 a training that went
    wrong, 75 a process was lost.

    After a signal it is 128 and its number: 130 for Ctrl-C, 143 for SIGTERM.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # names of files may hold what its encoding does not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with redirect_stdout(cast("TextIO", HarmlessStream(sys.stdout))):
            code = _dispatch(list(sys.argv[1:] if words is None else words))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `unveil recipes | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as stopped:
        log("\nstopped")
        return exit_status(stopped)
    except RankLost as error:
        if error.speaks:
            print(f"error: {error}", file=sys.stderr)
        return error.status
    except RankZeroFailed:
        return 2
    except Diverged as error:
        for line in f"error: {error}".splitlines():  # what to do is on lines of its own
            log(line)
        return UNSOUND
    except (ValueError, OSError) as error:
        _say_mistake(error)
        return 2
    except Exception:  # whatever else ends a command is a fault of ours
        traceback.print_exc()
        print("this is a fault of unveil: please report it with the lines above and `unveil doctor`", file=sys.stderr)
        return 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"unveil {version('unveil')}")
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        hint = suggest(words[0], COMMANDS, shown=lambda name: f"unveil {name}")
        raise UsageError(f"there is no command {words[0]}", hint)
    try:
        return command.run(words[1:])
    except HelpAsked as answer:
        print(answer)
        return 0


def _overview() -> str:
    uses = columns([(f"{c.name} {c.places}".strip(), c.summary) for c in COMMANDS.values()])
    return (
        "unveil: hide a part of your images, predict it, measure what was learned\n\n"
        f"{uses}\n\nunveil COMMAND --help tells more.\nnext: unveil demo"
    )


def _say_mistake(error: ValueError | OSError) -> None:
    """One line on what is wrong, one on what to do; where the message is not ours, one on where it comes from."""
    message = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    print(one_message(f"error: {message}"), file=sys.stderr)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, UsageError):
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
    elif isinstance(error, OSError) and error.errno in _STORAGE:
        print(f"hint: {_STORAGE[error.errno]}; then the same command goes on from what is stored", file=sys.stderr)
    elif isinstance(error, ValueError) and _HERE not in Path(frame.filename).resolve().parents:
        print(
            f"hint: said by {frame.filename}, line {frame.lineno}; if yours is right, please report it", file=sys.stderr
        )
