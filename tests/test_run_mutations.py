"""Run folders with files cut off, or entries missing or of another type: an answer or an error without traceback."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tiny_runs import TRAIN, Place, write_images, write_recipe
from unveil.cli import main

VALUES = (None, 7, -1.5, "x", [], {}, [1], {"a": 1}, True)  # what an entry becomes
FILES = ("inspection.json", "metrics.jsonl", "pictures/index.json", "pictures/neighbours.json", "trained_images.u64")
QUICK = 100


def paths(content: Any, depth: int = 2) -> Iterator[tuple[str, ...]]:
    """The places of all entries of a JSON object."""
    for key, value in content.items():
        yield (key,)
        if isinstance(value, dict) and depth > 1:
            yield from ((key, *rest) for rest in paths(value, depth - 1))


def changed(content: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The content with another value at a place; without the entry where the value is `...`."""
    content = copy.deepcopy(content)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return content


def mutations(run: Path) -> Iterator[tuple[str, str, bytes]]:
    """Of a whole run folder: what is changed, in which file, and the file's new content."""
    facts = json.loads((run / "run.json").read_text())
    places = [p for p in paths(facts) if p[0] not in ("schedule", "versions")]
    for i, place in enumerate(places):
        for value in (..., VALUES[i % len(VALUES)], VALUES[(i + 3) % len(VALUES)]):
            yield f"{'.'.join(place)} = {value!r}", "run.json", json.dumps(changed(facts, place, value)).encode()
    state = next((run / "checkpoints").glob("*/state.json")).relative_to(run)
    for name in ("run.json", str(state), *FILES):
        content = (run / name).read_bytes()
        for text in (b"", content[: len(content) // 2], content[:-1], b"[]", b"{}", b"null", b"\x00\xff", b'{"a": '):
            yield f"{name}: {text[:8]!r}", name, text


def verbs(place: Place, out: Path) -> dict[str, Callable[[Path], int]]:
    def continued(run: Path) -> int:
        return place.pretrain(*TRAIN, "--epochs", "2", out=str(run))

    return {
        "embed": lambda run: main(["embed", str(run), "--data", place.data, "--out", str(out / "f.npz")]),
        "look": lambda run: main(["look", str(run), "--samples", "1", "--out", str(out / "l.png")]),
        "report": lambda run: main(["report", str(run), "--out", str(out / "r.html")]),
        "evaluate": lambda run: main(["evaluate", str(run), "--data", place.data, "--protocols", "knn"]),
        "masks": lambda run: main(["analyze", "masks", str(run)]),
        "pretrain": continued,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Place:
    path = tmp_path_factory.mktemp("mutated")
    place = Place(path, write_recipe(path), str(write_images(path / "images", 12)))
    assert place.pretrain(*TRAIN, "--epochs", "2") == 0
    facts = json.loads((place.run / "run.json").read_text())
    (place.run / "run.json").write_text(json.dumps({**facts, "status": "stopped"}))  # so that `pretrain` opens it
    return place


def opened(folder: Place, out: Path, every: int, names: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    """Open mutated folders with verbs: an answer, or an error of one line."""
    count, faults = 0, []
    for i, (what, name, content) in enumerate(mutations(folder.run)):
        if i % every:
            continue
        count += 1
        for verb, opens in verbs(folder, out).items():
            if names and verb != names[(i // every) % len(names)]:
                continue
            run = out / "mutated"
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(folder.run, run)
            (run / name).write_bytes(content)
            capsys.readouterr()
            code = opens(run)
            text = capsys.readouterr().err
            if code not in (0, 2) or "Traceback" in text:
                faults.append(f"{verb}, {what}: {text.strip().splitlines()[-2:]}")
    assert not faults, "\n".join(faults)
    return count


def test_a_mutated_run_folder_is_an_answer_or_an_error(
    folder: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    every = len(list(mutations(folder.run))) // QUICK
    assert opened(folder, tmp_path, every, ["embed", "pretrain", "look", "report", "masks"], capsys) >= QUICK


@pytest.mark.slow
def test_every_mutated_run_folder_is_an_answer_or_an_error_of_every_verb(
    folder: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert opened(folder, tmp_path, 1, [], capsys) >= 300
