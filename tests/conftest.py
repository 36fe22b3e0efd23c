"""What all tests share: shapes checked as the code runs, a seed, the real data where there is some, `--slow`."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import jaxtyping

ROOT = Path(__file__).resolve().parents[1]
os.environ["UNVEIL_CACHE"] = "off"  # the user's cache is neither read nor written; tests of a cache name their own

# Shape annotations are checked at every call, which needs the hook before the first import. Two places go without:
# the command line, whose signatures are read as data, and the modules whose dataclasses are built inside a compiled
# forward, because torch.compile cannot trace the check of a dataclass. While torch.compile traces, no call is checked.
_UNCHECKED = {
    *("__init__", "__main__", "modeling.types", "modeling.rng", "modeling.masked_model", "training.compiled"),
}
_package = find_spec("unveil")
assert _package
assert _package.submodule_search_locations
_root = Path(_package.submodule_search_locations[0])
_modules = {".".join(p.relative_to(_root).with_suffix("").parts): p for p in _root.rglob("*.py")}
assert _modules.keys() >= _UNCHECKED
jaxtyping.install_import_hook(
    [f"unveil.{m}" for m in _modules if m not in _UNCHECKED and not m.startswith("cli.") and "__init__" not in m],
    "shapes.check",
)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from tiny_runs import Place, write_images, write_recipe  # noqa: E402

if find_spec("torchvision"):  # before transformers imports it, which fails beside a torch without its operators
    from unveil.evaluation.detection.ops import detection_modules

    detection_modules()


class _OffWhileTracing(type(jaxtyping.config)):  # type: ignore[misc]
    """Jaxtyping's switch, turned off for as long as torch.compile traces."""

    @property
    def jaxtyping_disable(self) -> bool:
        return torch.compiler.is_compiling()

    @jaxtyping_disable.setter
    def jaxtyping_disable(self, value: bool) -> None:
        raise AssertionError("the tests decide by themselves when shapes are checked")


jaxtyping.config.__class__ = _OffWhileTracing

_capabilities = torch.cpu.get_capabilities
torch.cpu.get_capabilities = dict  # float32, also on a processor that multiplies bfloat16 in hardware
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(4, torch.get_num_threads()))))


@pytest.fixture
def as_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The precision that a run takes on this processor, not the tests' float32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", _capabilities)


PROOFS = ("power", "kill", "fuzz", "scale")  # `pytest -m power` runs them to their full counts, without --slow


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the proofs that take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow") or config.option.markexpr in PROOFS:
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="a proof that takes minutes: --slow runs it"))


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the tests run is kept in a folder of their own, not in the user's."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same chance, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real images (UNVEIL_DATA, by default ../shared/data beside the repository); skips without it."""
    folder = Path(os.environ.get("UNVEIL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: UNVEIL_DATA says where it is")
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A user's recipe of a tiny ViT and 40 images."""
    return Place(tmp_path, write_recipe(tmp_path), str(write_images(tmp_path / "images")))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run that was never stopped, made once for each set of options."""
    made: dict[tuple[str, ...], Path] = {}

    def make(*words: str) -> Path:
        if words not in made:
            path = tmp_path_factory.mktemp("whole")
            here = Place(path, write_recipe(path), str(write_images(path / "images")))
            assert here.pretrain(*words) == 0
            made[words] = here.run
        return made[words]

    return make


@pytest.fixture(scope="session")
def red_bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blue images with a red bar: the bar is class 1, the first rows are void, and the bar is twice as deep."""
    root, rng = tmp_path_factory.mktemp("bars"), np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for i in range(count):
            ids = np.zeros((16, 24), np.uint8)
            left = rng.integers(0, 16)
            ids[:, left : left + 8] = 1
            pixels = np.where(ids[..., None] == 1, (200, 60, 60), (60, 60, 200)).astype(np.uint8)
            metres = (1000 + 1000 * ids.astype(np.uint16)).astype(np.uint16)
            ids[:2] = 255
            for kind, array in (("rgb", pixels), ("semseg", ids), ("depth", metres)):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(root / split / kind / f"{i}.png")
    return root
