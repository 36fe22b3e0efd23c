"""What a release is made of: a wheel that is the same wherever it is built, its SBOM, advisories on what it needs."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
CI = ROOT / ".ci"


def in_place_of(module: str, code: str, folder: Path) -> dict[str, str]:
    """The environment in which `python -m MODULE` runs this code."""
    (folder / module).mkdir(exist_ok=True)
    (folder / module / "__init__.py").touch()
    (folder / module / "__main__.py").write_text(code)
    return {**os.environ, "PYTHONPATH": str(folder)}


def audit(output: str, error: str, status: int, folder: Path) -> tuple[int, str]:
    code = f"import sys\nprint({output!r})\nprint({error!r}, file=sys.stderr)\nsys.exit({status})"
    done = subprocess.run(
        [sys.executable, str(CI / "audit")],
        env=in_place_of("pip_audit", code, folder),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def answer(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
BAD = {"name": "pillow", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": []}]}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found"}


def test_advisories_fail_the_audit_and_no_network_skips_it(tmp_path: Path):
    assert audit(answer(CLEAN, UNKNOWN), "", 0, tmp_path) == (
        0,
        "not known: torch\n0 known advisories on 1 of 2 packages\n",
    )
    status, text = audit(answer(CLEAN, BAD), "", 1, tmp_path)
    assert status == 1
    assert text.startswith("pillow 1.0: PYSEC-1; mended in 1.1\n")
    for output, error in ((answer(UNKNOWN, UNKNOWN), ""), ("", "ConnectionError: Max retries exceeded")):
        status, text = audit(output, error, int(not output), tmp_path)
        assert status == 0
        assert text.startswith("skipped: ")
    status, text = audit("", "No module named pip_audit", 1, tmp_path)
    assert status == 2
    assert "pip install" in text


def test_the_sbom_of_a_wheel_holds_what_it_needs_alone(tmp_path: Path):
    wheel = tmp_path / "unveil-1.2.3-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    installed = ["torch", "numpy", "sympy", "mpmath", "einops", "jaxtyping", "pytest", "pluggy", "unveil"]
    bom = {
        "bomFormat": "CycloneDX",
        "metadata": {"component": {"bom-ref": "root", "name": "unveil", "type": "library"}},
        "components": [{"bom-ref": f"ref-{name}", "name": name} for name in installed],
        "dependencies": [{"ref": "root", "dependsOn": [f"ref-{name}" for name in installed]}],
    }
    code = f"import sys\nassert sys.argv[1] == 'environment'\nprint({json.dumps(bom)!r})"
    needs = {"unveil": ["torch", "einops", "numpy"], "torch": ["sympy"], "sympy": ["mpmath"], "pytest": ["pluggy"]}
    for name in ("unveil", "torch", "sympy"):
        (tmp_path / f"{name}-9.dist-info").mkdir()
        lines = [f"Requires-Dist: {one}" for one in needs[name]] + ["Requires-Dist: pytest; extra == 'test'"]
        text = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", "Version: 9", *lines])
        (tmp_path / f"{name}-9.dist-info" / "METADATA").write_text(text)
    for name in ("numpy", "mpmath", "einops"):
        (tmp_path / f"{name}-9.dist-info").mkdir()
        (tmp_path / f"{name}-9.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9")
    done = subprocess.run(
        [sys.executable, str(CI / "sbom"), str(wheel)],
        env=in_place_of("cyclonedx_py", code, tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    made = json.loads(done.stdout)
    assert {c["name"] for c in made["components"]} == {"torch", "numpy", "sympy", "mpmath", "einops"}
    edges = {d["ref"]: d["dependsOn"] for d in made["dependencies"]}
    assert edges["root"] == ["ref-einops", "ref-numpy", "ref-torch"]
    assert edges["ref-torch"] == ["ref-sympy"]
    root = made["metadata"]["component"]
    assert root["version"] == "1.2.3"
    assert root["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(b"wheel").hexdigest()}]


@pytest.mark.slow
def test_a_wheel_is_the_same_wherever_it_is_built(tmp_path: Path):
    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("no git repository: there is no commit to build")
    for module in ("pip", "setuptools"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"a wheel is built with {module}")

    def built(place: str, umask: int, zone: str) -> Path:
        (tmp_path / place).mkdir()
        env = {**os.environ, "PYTHON": sys.executable, "TMPDIR": str(tmp_path / place), "TZ": zone}
        out = tmp_path / place / "out"
        subprocess.run([str(CI / "wheel"), str(out)], env=env, check=True, preexec_fn=lambda: os.umask(umask))
        return next(out.glob("unveil-*.whl"))

    first, second = built("a", 0o022, "UTC"), built("longer", 0o077, "Asia/Tokyo")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as wheel:
        names = wheel.namelist()
        times = {info.date_time for info in wheel.infolist()}
    commit = subprocess.check_output(["git", "ls-files", "src/unveil"], cwd=ROOT, text=True).split()
    own = {name for name in names if ".dist-info/" not in name}
    assert own == {name.removeprefix("src/") for name in commit}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert len(times) == 1
