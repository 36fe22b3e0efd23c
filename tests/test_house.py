"""The house: packages import downwards only, files stay short, nothing names the machine it was written on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Collection
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "unveil"

PACKAGES = (
    *("cli", "experiments", "commands", "training", "evaluation"),
    *("recipes", "data", "modeling", "reporting", "runs"),
)
TOP = {"__init__", "__main__", "_version", "parts", "sklearn"}
ONLY = {  # a package imports from those after it in the list; these know less
    "reporting": ("runs.atomic", "runs.console", "runs.lock", "runs.run_config"),
    "modeling": ("modeling", "runs"),
    "data": ("data", "modeling.rng", "modeling.types", "runs"),
    "evaluation.protocols": ("evaluation", "data", "modeling.optim", "modeling.rng", "modeling.types", "runs"),
    "evaluation.finetuning": ("evaluation", "data", "modeling.optim", "modeling.rng", "modeling.types", "runs"),
    "evaluation.detection": ("evaluation", "data", "modeling.optim", "modeling.rng", "modeling.types", "runs"),
    "evaluation.dense": ("evaluation", "data", "modeling.optim", "modeling.rng", "modeling.types", "runs"),
    "modeling.masking": ("modeling.masking", "modeling.constants", "modeling.rng", "modeling.types"),
    "modeling.targets": ("modeling.targets", "modeling.constants", "modeling.patches", "modeling.types"),
}
PURE = ("modeling.masking", "modeling.targets", "modeling.losses", "modeling.patches", "modeling.types", "modeling.rng")
ALLOWED_IN_PURE = {
    "__future__", "collections", "dataclasses", "einops", "jaxtyping", "math", "torch", "typing",
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def is_inside(module: str, packages: Collection[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def imports(path: Path, at_start: bool = False) -> tuple[set[str], set[str]]:
    """The modules of unveil and the other packages that a file imports: wherever in it, or as it is imported itself."""
    own: set[str] = set()
    others: set[str] = set()
    inside = path.relative_to(PACKAGE).parts[:-1]
    tree = ast.parse(path.read_text())
    for node in tree.body if at_start else ast.walk(tree):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = [*inside[: len(inside) - node.level + 1], *(node.module.split(".") if node.module else ())]
            own |= {".".join([*base, alias.name]) for alias in node.names}
    return own, others


def test_nothing_but_the_packages_lies_at_the_top():
    top = {path.stem for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed")}
    assert top == {*PACKAGES, *TOP}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down(path: Path):
    module = module_of(path)
    package = module.partition(".")[0]
    if package in TOP:
        return
    known = PACKAGES[PACKAGES.index(package) :]
    bad = {m for m in imports(path)[0] if not is_inside(m, known) and not is_inside(m, TOP)}
    assert not bad, f"{package} may import from {' '.join(known)}"
    for name, few in ONLY.items():
        if is_inside(module, [name]):
            bad = {m for m in imports(path)[0] if not is_inside(m, [name, *few]) and not is_inside(m, TOP)}
            assert not bad, f"{name} imports from {' '.join(few)} only"


def test_modules_are_imported_without_a_cycle():
    modules = {module_of(path).removesuffix(".__init__"): path for path in FILES}
    graph = {}
    for module, path in modules.items():
        names = imports(path, at_start=True)[0]
        known = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = known & modules.keys() - {module}
    TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_hold_functions_of_tensors(module: str):
    paths = [path for path in FILES if is_inside(module_of(path), [module])]
    assert paths
    for path in paths:
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


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_docstrings_say_something(path: Path):
    """Five words only repeat a name. Methods and private functions may do without a docstring."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, documented)]
    texts = [text for node in nodes if (text := ast.get_docstring(node)) is not None]
    short = [text for text in texts if len(text.split()) <= 5]
    assert not short, "say what comes in and out, in which unit, or what is raised"


def test_parts_are_frozen_or_modules():
    """Records, scores and targets are frozen dataclasses: state lives in modules and in the loop."""
    for path in FILES:
        if not is_inside(module_of(path), [*PURE, "recipes.recipe", "modeling.optim"]):
            continue
        for node in ast.parse(path.read_text()).body:
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
