"""Code that comes with data: a recipe file in a run folder, or that a YAML file names, is executed by consent only.

Who gives the path of a recipe to `unveil pretrain`, or says `--trust`, has consented to its content. That is kept by
its checksum in the user's state folder, so that nobody is asked twice, and never about a recipe of his own.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from .atomic import replacing
from .console import log, quoted

_FILE = "trusted_recipes.json"
_PATIENCE = 10.0  # seconds that another process may take to write the file
_here: set[str] = set()  # checksums of this process, which hold where nothing can be written, too


class UntrustedCodeError(ValueError):
    """Code that came with data would have been executed, and this user has not run it before."""


def state_folder() -> Path | None:
    """The user's folder of state: $XDG_STATE_HOME/unveil, else ~/.local/state/unveil; None where no home is known.

    On macOS the last is ~/Library/Application Support/unveil, on Windows %LOCALAPPDATA%/unveil.
    """
    base = os.environ.get("XDG_STATE_HOME", "") or (os.environ.get("LOCALAPPDATA", "") if os.name == "nt" else "")
    if os.path.isabs(base):  # as the XDG specification demands
        return Path(base) / "unveil"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Application Support" if sys.platform == "darwin" else ".local/state") / "unveil"


def checksum(content: bytes) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def is_known(content: bytes) -> bool:
    """Whether this user has run a file of this content before."""
    digest = checksum(content)
    return digest in _here or digest in _read(_file())


def check_trusted(file: Path, content: bytes, trust: bool, why: str) -> None:
    """Raise UntrustedCodeError for a file that this user has not run before; with `trust` it is one from now on."""
    if trust:
        remember(file, content)
    elif not is_known(content):
        raise UntrustedCodeError(
            f"{why}: it would execute {quoted(str(file.absolute()))} (SHA-256 {checksum(content)}), which you have not"
            " run before; read that file, and give --trust (in Python trust=True) where you trust it"
        )


def remember(file: Path, content: bytes) -> None:
    """Keep that this user runs a file of this content; a line says where that cannot be kept."""
    digest, own = checksum(content), _file()
    _here.add(digest)
    if own is None or digest in _read(own):
        return
    try:
        own.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(own.with_suffix(".lock"), timeout=_PATIENCE):
            text = json.dumps(_read(own) | {digest: str(file.absolute())}, indent=1)
            with replacing(own) as temporary:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as opened:
                    opened.write(text)
    except (OSError, Timeout) as error:
        log(f"note: {own} cannot be written ({error}), so later commands ask for --trust to execute {file.name}")


def _file() -> Path | None:
    folder = state_folder()
    return None if folder is None else folder / _FILE


def _read(file: Path | None) -> dict[str, str]:
    """Paths by the checksums in the file; nothing from one that is damaged, or that others may have written."""
    try:
        if file is None or not _is_own(file):
            return {}
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_own(file: Path) -> bool:
    """Whether a file is a regular one that this user alone can write."""
    state = file.stat()
    is_private = os.name == "nt" or (state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    return stat.S_ISREG(state.st_mode) and is_private
