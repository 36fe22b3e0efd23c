"""A stranger's run executes nothing unasked: every verb on a run whose recipe file writes a mark."""

from __future__ import annotations

import importlib.util
import json
import marshal
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import unveil
from tiny_runs import RECIPE, Place, facts, write_images
from unveil.cli import main
from unveil.commands.explore.models import open_explored
from unveil.modeling.encoder import vit
from unveil.recipes.registry import build_recipe, default_modalities, load_recipe, recipe_cards
from unveil.recipes.stored_encoder import StoredEncoder, encoder_metadata
from unveil.runs import trust
from unveil.runs.trust import UntrustedCodeError, checksum, remember, state_folder

FEW = ("--epochs", "1", "--batch-size", "10", "--image-size", "16", "--save-every", "1")
TWO = RECIPE.replace("[objective])", "[objective, Objective('more', 'pixels', dim, Pixels(modality, patch))])")
MARK = "\n\nwith open({mark!r}, 'a') as file:\n    file.write('executed ')\n"


def own(file: str | Path) -> str:
    """A recipe of two objectives as a user's file."""
    Path(file).write_text(TWO)
    return str(file)


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has run nothing yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(trust, "_here", set())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a recipe file, made elsewhere."""
    path = tmp_path_factory.mktemp("elsewhere")
    place = Place(path, own(path / "tiny.py"), str(write_images(path / "images")))
    assert place.pretrain(*FEW) == 0
    return place.path


@pytest.fixture
def hostile(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run as a stranger would send it: its code leaves a mark, and so do compiled files beside it."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    (run / "recipe.py").write_text(TWO + MARK.format(mark=str(mark(run))))
    config = (run / "config.yaml").read_text().splitlines()
    (run / "config.yaml").write_text("\n".join(["recipe: run/recipe.py", *config[1:]]))
    compiled = Path(importlib.util.cache_from_source(str(run / "recipe.py")))
    compiled.parent.mkdir()
    code = compile(MARK.format(mark=str(mark(run, "compiled"))), "recipe.py", "exec")
    compiled.write_bytes(importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8) + marshal.dumps(code))
    return run


def mark(run: Path, name: str = "executed") -> Path:
    return run.parent / f"{name}.mark"


def files(run: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and ".lock" not in p.name}


def has_executed(run: Path) -> bool:
    assert not mark(run, "compiled").exists()
    return mark(run).exists()


FREE: dict[str, Callable[[str], Any]] = {  # verbs that need the encoder alone
    "evaluate": lambda d: main(["evaluate", "run", "--data", d, "--protocol", "knn", "--over-training"]),
    "embed": lambda d: main(["embed", "run", "--data", d, "--normalize", "standardize"]),
    "load": lambda d: unveil.load("run", at_epoch=1.0)(torch.rand(1, 3, 16, 16)) is None,
    "look": lambda d: main(["look", "run"]),
    "layers": lambda d: main(["analyze", "features", "run", "run"]),
    "report": lambda d: main(["report", "run"]),
    "bench": lambda d: main(["bench", "evaluate", "run", "--images", "4", "--protocol", "knn", "--train-images", "9"]),
    "images": lambda d: len(unveil.Run.open("run").held_out()) == 0,
    "names": lambda d: repr(unveil.Run.open("run")) == "",
    "explore": lambda d: open_explored("run", "cpu").model is not None,
    "init": lambda d: main(
        ["pretrain", str(own(Path("own.py"))), "--data", d, "--init-from", "run", "--out", "new", *FEW]
    ),
}
NEEDY: dict[str, Callable[..., int]] = {  # verbs that need the recipe
    "attention": lambda d, *more: main(["analyze", "attention", "run", *more]),
    "blocks": lambda d, *more: main(["analyze", "blocks", "run", *more]),
    "masks": lambda d, *more: main(["analyze", "masks", "run", *more]),
    "reconstruct": lambda d, *more: main(["evaluate", "run", "--data", d, "--protocol", "reconstruct", *more]),
    "heldout": lambda d, *more: main(["evaluate", "run", "--data", d, "--protocol", "heldout", *more]),
    "continue": lambda d, *more: main(["pretrain", "mae", "--data", d, "--out", "run", *FEW, *more]),
    "config": lambda d, *more: main(["pretrain", "--config", "run/config.yaml", "--out", "new", *more]),
}


def as_a_built_in(run: Path) -> None:
    """The metadata of a stopped run of MAE, that keeps its own recipe file."""
    content = facts(run)
    content |= {"recipe": "mae", "status": "stopped", "given": {**content["given"], "recipe": "mae"}}
    (run / "run.json").write_text(json.dumps(content))


@pytest.mark.parametrize("verb", FREE)
def test_what_needs_the_encoder_alone_executes_nothing(verb: str, hostile: Path, trained: Path):
    assert FREE[verb](str(trained / "images")) in (0, False)
    assert not has_executed(hostile)


@pytest.mark.parametrize("verb", NEEDY)
def test_what_needs_the_recipe_executes_it_with_trust_only(
    verb: str, hostile: Path, trained: Path, capsys: pytest.CaptureFixture[str]
):
    if verb == "continue":
        as_a_built_in(hostile)
    before = files(hostile)
    data = str(trained / "images")
    assert NEEDY[verb](data) == 2
    error = capsys.readouterr().err
    digest = checksum((hostile / "recipe.py").read_bytes())
    for part in (str(hostile / "recipe.py"), f"SHA-256 {digest}", "--trust"):
        assert part in error
    assert not has_executed(hostile)
    assert files(hostile) == before
    assert NEEDY[verb](data, "--trust") == 0
    assert has_executed(hostile)
    mark(hostile).unlink()
    assert main(["evaluate", "run", "--data", data, "--protocol", "reconstruct"]) == 0  # asked once
    assert has_executed(hostile)


def test_the_same_from_python(hostile: Path, trained: Path):
    for path in ("run", hostile):
        with pytest.raises(UntrustedCodeError, match="trust=True"):
            unveil.Run.open(path).model()
    with pytest.raises(UntrustedCodeError):
        unveil.analyze_masks("run")
    with pytest.raises(UntrustedCodeError):
        unveil.pretrain(config="run/config.yaml", out="new")
    assert not has_executed(hostile)
    assert unveil.Run.open("run", trust=True).model()
    assert has_executed(hostile)


def test_a_recipe_that_run_json_names_is_code_too(hostile: Path, tmp_path: Path):
    (hostile / "recipe.py").rename(tmp_path / "elsewhere.py")
    (hostile / "run.json").write_text(json.dumps({**facts(hostile), "recipe": str(tmp_path / "elsewhere.py")}))
    assert main(["analyze", "attention", "run"]) == 2
    assert unveil.load("run")
    assert not has_executed(hostile)
    assert main(["analyze", "attention", "run", "--trust"]) == 0
    assert has_executed(hostile)


def test_a_configuration_cannot_consent(hostile: Path, capsys: pytest.CaptureFixture[str]):
    with (hostile / "config.yaml").open("a") as file:
        file.write("\ntrust: true\n")
    assert main(["pretrain", "--config", "run/config.yaml", "--out", "new"]) == 2
    assert "executed" not in capsys.readouterr().out
    assert main(["pretrain", "--config", "run/config.yaml", "--out", "new", "--trust"]) == 2
    assert "no option 'trust'" in capsys.readouterr().err
    assert main(["pretrain", "mae", "--config", "run/config.yaml", "--help"]) == 0


def test_an_encoder_of_classes_of_its_own_needs_its_recipe(place: Place, capsys: pytest.CaptureFixture[str]):
    text = RECIPE.replace("Encoder([modality]", "Mine([modality]") + "\n\nclass Mine(Encoder):\n    pass\n"
    Path(place.recipe).write_text(text)
    assert place.pretrain(*FEW) == 0
    assert facts(place.run)["encoder"] is None
    assert unveil.load(place.run)  # this user's own
    trust._here.clear()
    shutil.rmtree(place.path / "state")
    capsys.readouterr()
    words = ["embed", str(place.run), "--data", place.data, "--out", str(place.path / "f.npz")]
    assert main(words) == 2
    assert "--trust" in capsys.readouterr().err
    assert main([*words, "--trust"]) == 0


def test_the_user_is_never_asked_about_a_recipe_of_his_own(place: Place, monkeypatch: pytest.MonkeyPatch):
    assert place.pretrain("--save-every", "1", "--epochs", "1", "--batch-size", "10", "--image-size", "16") == 0
    run = str(place.run)

    def later() -> None:
        monkeypatch.setattr(trust, "_here", set())

    for words in (["look", run], ["analyze", "masks", run]):
        later()
        assert main(words) == 0
    later()
    assert main(["evaluate", run, "--data", place.data, "--protocol", "reconstruct"]) == 0
    (place.run / "run.json").write_text(json.dumps({**facts(place.run), "status": "stopped"}))
    later()
    assert place.pretrain("--save-every", "1", "--epochs", "1", "--batch-size", "10", "--image-size", "16") == 0
    later()
    config = ["pretrain", "--config", str(place.run / "config.yaml"), "--out", str(place.path / "again")]
    assert main(config) == 0


def test_what_is_known_is_kept_privately_and_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = state_folder()
    assert folder == tmp_path / "state" / "unveil"
    for name in (b"one", b"two"):
        remember(tmp_path / f"{name.decode()}.py", name)
    file = folder / "trusted_recipes.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text()) == {
        checksum(b"one"): str(tmp_path / "one.py"),
        checksum(b"two"): str(tmp_path / "two.py"),
    }
    assert [p.name for p in folder.iterdir() if p.suffix == ".part"] == []
    monkeypatch.setattr(trust, "_here", set())
    assert trust.is_known(b"one")
    file.chmod(0o666)  # others may have written it
    assert not trust.is_known(b"one")
    file.chmod(0o600)
    file.write_text("[")
    assert not trust.is_known(b"one")
    remember(tmp_path / "one.py", b"one")
    monkeypatch.setattr(trust, "_here", set())
    assert trust.is_known(b"one")


def test_where_nothing_can_be_kept_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    remember(tmp_path / "one.py", b"one")
    assert "cannot be written" in capsys.readouterr().err
    assert trust.is_known(b"one")


def test_the_state_folder_of_each_platform(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/people/a")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # which the specification tells to ignore
    assert state_folder() == Path("/people/a/.local/state/unveil")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert state_folder() == Path("/people/a/Library/Application Support/unveil")


@pytest.mark.parametrize("name", recipe_cards())
def test_every_recipe_s_encoder_is_described_exactly(name: str):
    recipe = load_recipe(name)
    torch.manual_seed(1)
    built = build_recipe(recipe, default_modalities(recipe) or (), {"size": "nano", "image_size": (64,)}).encoder
    described = StoredEncoder.of(built)
    assert described is not None
    again = StoredEncoder.read(json.loads(json.dumps(encoder_metadata(built))))
    assert again == described
    torch.manual_seed(1)
    state = described.build().state_dict()
    assert state.keys() == built.state_dict().keys()
    for key, tensor in built.state_dict().items():
        assert torch.equal(tensor, state[key])
    assert described.fits(state)
    assert not described.fits({key: t for key, t in state.items() if key != "prefix"})


def test_an_encoder_that_was_changed_is_not_described():
    assert StoredEncoder.of(vit("nano", 8, (16,)))
    for change in (
        lambda e: setattr(e.blocks[0].mlp, "1", torch.nn.ReLU()),
        lambda e: setattr(e.blocks[1].attn, "heads", 2),
        lambda e: setattr(e.blocks[1].norm1, "eps", 1e-3),
        lambda e: setattr(e, "forward", lambda tokens: tokens),
        lambda e: e.register_forward_hook(lambda *_: None),
        lambda e: e.positions.table.mul_(2),
    ):
        encoder = vit("nano", 8, (16,))
        change(encoder)
        assert StoredEncoder.of(encoder) is None


@pytest.mark.parametrize(
    "entry", [{"dim": 1 << 30}, {"depth": 10**9}, {"image_size": [10**8, 10**8]}, {"heads": 0}, {"patch": "8"}, 7]
)
def test_a_description_that_no_encoder_has_is_refused(entry: Any, hostile: Path, capsys: pytest.CaptureFixture[str]):
    content = facts(hostile)
    content["encoder"] = {**content["encoder"], **entry} if isinstance(entry, dict) else entry
    (hostile / "run.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"encoder|pixels"):
        unveil.load("run")
    assert not has_executed(hostile)
