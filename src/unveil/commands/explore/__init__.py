"""`unveil explore`: a page of this machine to look at runs: masks, predictions, attention, features, neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ...recipes.options import accept_python_values
from ...reporting.server import Answer, Server
from ...runs.console import log, user_path
from ...runs.hardware import num_cores
from .app import Explorer, Slot, open_slot
from .images import MAX_UPLOAD
from .worker import Worker


@accept_python_values
def explore(
    runs: str | Path | Sequence[str | Path],
    *,
    data: str | None = None,
    teacher: tuple[str, ...] = (),
    search: int = 2000,
    host: str = "127.0.0.1",
    port: int = 0,
    device: str = "auto",
    trust: bool = False,
) -> None:
    """Serve a page on which runs, or public ViTs, are tried on images and masks of your choice, until Ctrl-C.

    A run shows held-out images; a picture can be uploaded. Two runs are compared on one image and mask. It is served
    to this machine alone, unless another `host` is given.

    data: images to choose from and to search for neighbours: by default those that the first run held out
    teacher: further runs or public ViTs whose attention masks may follow
    search: how many images, evenly spread, are searched for nearest neighbours at most
    host: the address to listen at; 0.0.0.0 is every one of this machine, so that others reach it too
    port: by default any that is free
    device: cpu, cuda, mps; auto takes the best
    trust: execute the recipe file of a run where you have not run it before, for its masks and predictions

    Raises ValueError where the port is taken, and FileNotFoundError or ValueError where there is no such run or data.
    """
    addresses = [str(run) for run in ([runs] if isinstance(runs, (str, Path)) else runs)]
    if not addresses:
        raise ValueError("explore needs at least one run folder or public ViT; got none")
    if search < 1:
        raise ValueError(f"--search {search}: 1 or more are needed")
    server = Server(lambda request: Answer.error("not ready yet", 503), host, port, MAX_UPLOAD)
    try:
        server.application = explorer = _opened(addresses, teacher, data, search, device, trust)
        torch.set_num_threads(min(torch.get_num_threads(), num_cores()))
        server.run("explorer")
    finally:
        server.server_close()
    explorer.close()


def _opened(
    addresses: Sequence[str], teachers: Sequence[str], data: str | None, search: int, device: str, trust: bool
) -> Explorer:
    """The page of what can be opened. A run that has no weights yet is one to look at later."""
    slots: list[Slot] = []
    guides: list[Slot] = []
    for address in (*dict.fromkeys(addresses), *teachers):
        log(f"opening {address} ...")
        slot = open_slot(address, device, trust)
        is_later = len(slots) < len(set(addresses)) and (user_path(address) / "run.json").is_file()
        if slot.error and not is_later:
            raise ValueError(slot.error)
        for note in (slot.error, *(slot.explored.notes if slot.explored else ())):
            if note:
                log(f"note: {note}")
        (slots if len(slots) < len(set(addresses)) else guides).append(slot)
    return Explorer(slots, guides, data, Worker(), search, device, trust)
