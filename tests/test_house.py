"""The house: rooms import downwards only, files stay short, nothing names the machine it was written on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "unveil"

LEVELS = (  # each room may import rooms of the levels above it in this list, and no other room of its own level
    "chance machine losses layers optim checkpoint progress reporting board recipe_files",
    "records runs asked group",
    "patches",
    "masking targets encoder data augment foreign",
    "decoder pretrained protocols adaptive",
    "model",
    "recipe trainer objectives teachers analysis",
    "recipes facts journal showing",
    "training watch benchmark opening",
    "plan loading initial",
    "continuing",
    "preparation embedding looking",
    "pretraining restoring",
    "evaluation",
    "scene_files",
    "study",
    "studies demonstration",
    "__init__ cli",
    "__main__",
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms.split()}
ONLY = {  # rooms that know less than their level would let them
    "reporting": set(),
    "foreign": {"checkpoint", "layers", "patches", "progress", "records", "runs"},
    "data": {"chance", "machine", "records"},
    "masking": {"chance", "records"},
    "targets": {"patches", "records"},
    "encoder": {"layers", "patches", "records"},
    "decoder": {"encoder", "layers", "masking", "records"},
    "protocols": {"augment", "chance", "checkpoint", "data", "machine", "optim", "records"},
    "augment": {"chance"},
    "recipe": {"data", "encoder", "model", "optim"},
    "objectives": {"layers", "masking", "model", "records"},
    "recipes": {
        *("decoder", "encoder", "losses", "masking", "model", "objectives", "optim", "recipe", "records", "targets"),
        *("adaptive", "teachers"),
    },
}
PURE = (
    "masking",
    "targets",
    "losses",
    "patches",
    "records",
    "chance",
)  # tensor functions: no module, no file
ALLOWED_IN_PURE = {
    "__future__", "collections", "dataclasses", "einops", "jaxtyping", "math", "torch", "typing",
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def files_of(room: str) -> list[Path]:
    return [path for path in FILES if room_of(path) == room]


def imports(path: Path) -> tuple[set[str], set[str]]:
    """The rooms and the other packages that a file imports, wherever in it; a name of the package is no room."""
    rooms: set[str] = set()
    packages: set[str] = set()
    inside = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            packages.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1]
            for alias in node.names:
                rooms.add((*base, *(node.module.split(".") if node.module else (alias.name,)))[0])
    return {room for room in rooms if room in LEVEL or (PACKAGE / f"{room}.py").exists()}, packages


def test_every_room_has_its_place():
    assert {room_of(path) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path):
    room = room_of(path)
    others = imports(path)[0] - {room}
    upwards = {other for other in others if LEVEL[other] >= LEVEL[room]}
    assert not upwards, f"{room} may import rooms below it only"
    assert others <= ONLY.get(room, others), f"{room} imports {', '.join(sorted(ONLY[room])) or 'no other room'} only"


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_hold_functions_of_tensors(room: str):
    for path in files_of(room):
        assert imports(path)[1] <= ALLOWED_IN_PURE
        assert "nn.Module" not in path.read_text()


def test_a_report_is_made_without_torch():
    for path in (PACKAGE / "reporting").rglob("*.py"):
        assert not imports(path)[1] & {"torch", "einops", "safetensors"}, path.name


def test_the_command_starts_without_torch():
    """`unveil --help` and `unveil report` answer at once: what they import by themselves is light."""
    code = "import sys, unveil.reporting, unveil.cli.flags; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_short(path: Path):
    assert len(path.read_text().splitlines()) <= 400, "a file of more than 400 lines has more than one job"
    assert ast.get_docstring(ast.parse(path.read_text())), "and says what it is"


def test_parts_are_frozen_or_modules():
    """Records, scores and targets are frozen dataclasses: state lives in modules and in the loop."""
    for room in (*PURE, "recipe", "optim"):
        for node in (node for path in files_of(room) for node in ast.parse(path.read_text()).body):
            if isinstance(node, ast.ClassDef) and not any("Protocol" in ast.unparse(base) for base in node.bases):
                assert [ast.unparse(d) for d in node.decorator_list] == ["dataclass(frozen=True)"], node.name


def tracked() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git repository: the tracked files are not known")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_names_a_machine_or_a_registry():
    hosts = ("pypi" + ".org", "python" + "hosted", "registry" + ".npm", "download.py" + "torch", "/simple" + "/")
    folders = re.compile(r"(?<![\w.~])/(?:work|root|home|Users|tmp)" + r"/\w")
    for path in tracked():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        assert not [host for host in hosts if host in text], path
        assert not folders.search(text), f"{path}: {folders.search(text)}"


def blocks(language: str) -> list[str]:
    texts = [path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.exists()]
    return [block for text in texts for block in re.findall(rf"^```(?:{language})\n(.*?)^```", text, re.S | re.M)]


def test_code_in_the_documents_parses():
    for block in blocks("python|py"):
        ast.parse(block)
    for block in blocks("bash|sh|console"):
        checked = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, f"{block}\n{checked.stderr}"
