"""The report of runs that still train, served to this machine's own browser; it needs the run folders alone."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from .server import Answer, Application, Request, Server

_READ = ("run.json", "metrics.jsonl", "pictures/index.json", "pictures/neighbours.json", "broken.json")
_FOLDERS = ("eval", "analysis")  # whose files are read too


def fingerprint(folders: Sequence[Path]) -> str:
    """What changes when a report on these run folders would: names, sizes and times of the files that it reads."""
    digest = hashlib.sha256()
    for folder in folders:
        files = [folder / name for name in _READ]
        files += [file for name in _FOLDERS for file in sorted((folder / name).glob("**/*.json"))]
        for file in files:
            try:
                status = file.stat()
            except OSError:
                continue
            digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def live_application(folders: Callable[[], Sequence[Path]], compose: Callable[[], str]) -> Application:
    """Answers `/` with the page, which is composed again where something changed, and `/state` with what to compare.

    Raises what `compose` raises, within a request.
    """
    lock, page = threading.Lock(), dict[str, bytes]()

    def answer(request: Request) -> Answer:
        if request.path not in ("/", "/state"):
            return Answer.error("there is nothing here", 404)
        with lock:  # one request at a time reads folders and composes
            state = fingerprint(folders())
            if request.path == "/state":
                return Answer.json({"state": state})
            if state not in page:
                text = compose().replace("<html", f'<html data-state="{state}"', 1)
                page.clear()
                page[state] = text.encode()
            return Answer(page[state])

    return answer


def serve(application: Application, port: int) -> None:
    """Serve at 127.0.0.1 until Ctrl-C. Raises ValueError where the port is taken."""
    Server(application, port=port).run("the report")
