"""Run folders, recipe files and module paths of release 0.1 work as they did."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import unveil
from tiny_runs import write_images
from unveil.cli import main
from unveil.modeling.encoder import SIZES
from unveil.recipes.old_paths import MOVED, RENAMED, moved_to

OLD = Path(__file__).parent / "old_runs"
RUNS = ("mae", "centre_first", "tiny", "cmtmae", "multimae")
pytestmark = pytest.mark.filterwarnings("ignore:unveil:FutureWarning")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Copies of the stored runs beside the images that they were trained on."""
    monkeypatch.setitem(SIZES, "nano", (8, 2, 2))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    write_images(tmp_path / "images")
    return tmp_path


@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_is_an_encoder(runs: Path, run: str) -> None:
    encoder = unveil.load(run)
    stored = load_file(sorted((runs / run).glob("checkpoints/*/model.safetensors"))[-1])
    own = encoder.encoder.state_dict()
    assert own
    for name, tensor in own.items():
        assert torch.equal(tensor, stored[f"encoder.{name}"])


def test_an_old_run_is_measured_as_it_was(runs: Path) -> None:
    before = json.loads((runs / "mae/eval/knn.json").read_text())
    (result,) = unveil.evaluate("mae", data="images", protocol=("knn",))
    assert result.metrics == pytest.approx(before["metrics"])
    assert main(["evaluate", "mae", "--data", "images", "--protocol", "knn", "--at-epoch", "1"]) == 0


@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_is_looked_at_and_reported(runs: Path, run: str) -> None:
    trust = ["--trust"] if (runs / run / "recipe.py").exists() else []
    assert main(["look", run, *trust]) == 0
    assert (runs / run / "look.png").exists()
    assert main(["report", run]) == 0
    assert main(["analyze", "attention", run]) == 0


@pytest.mark.parametrize(
    ("run", "data"), [("mae", "images"), ("tiny", "images"), ("multimae", "scenes:count=8,size=32,seed=5")]
)
def test_the_decoders_of_an_old_run_reconstruct(runs: Path, run: str, data: str) -> None:
    assert main(["evaluate", run, "--data", data, "--protocol", "reconstruct", "--limit", "8", "--trust"]) == 0


def test_an_old_run_that_was_stopped_goes_on(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its recipe file imports module paths of release 0.1; the end is what release 0.1 came to."""
    monkeypatch.setattr("unveil.modeling.layers.SHORT", 0)  # attention by the fused kernel, as release 0.1 had it
    run = runs / "tiny"
    last = run / "checkpoints/step-00000009"
    expected = load_file(last / "model.safetensors")
    shutil.rmtree(last)
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "status": "stopped"}))
    shutil.copyfile(run / "recipe.py", runs / "tiny.py")
    words = ["tiny.py", "--data", "images", "--out", "tiny", "--paper", "--stages", "2", "--device", "cpu"]
    assert main(["pretrain", *words]) == 0
    result = load_file(last / "model.safetensors")
    assert result.keys() == expected.keys()
    for name, tensor in result.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("old", MOVED)
def test_an_old_module_path_is_an_alias_that_warns_once(old: str) -> None:
    sys.modules.pop(f"unveil.{old}", None)
    with pytest.warns(FutureWarning, match="unveil.parts"):
        alias = importlib.import_module(f"unveil.{old}")
    new = importlib.import_module(f"unveil.{MOVED[old]}")
    for name in (n for n in vars(new) if not n.startswith("_")):
        assert getattr(alias, name) is getattr(new, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.import_module(f"unveil.{old}")


@pytest.mark.parametrize(("package", "old", "new"), [(p, old, new) for p in RENAMED for old, new in RENAMED[p].items()])
def test_an_old_name_is_the_thing_under_its_new_name(package: str, old: str, new: str) -> None:
    here = importlib.import_module(f"unveil.{package}")
    aliases = [f"unveil.{path}" for path in MOVED if f"{moved_to(f'unveil.{path}')}.".startswith(f"unveil.{package}.")]
    result = [getattr(importlib.import_module(path), old, None) for path in aliases]
    assert not hasattr(here, old)
    assert any(value is not None for value in result)
    assert all(value is getattr(here, new, value) for value in result if value is not None)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("data.samples", "Sample SampleSource origin sampler as_sample in_one_frame view_of join"),
        ("data.declaration", "Declared declared_from modality_from declare read_toml"),
        ("data.reading", "Map read_map"),
        ("data.aligned", "open_samples aligned_modalities open_images AlignedSource"),
        ("data.layouts", "Stored open_dense"),
        ("data.dense", "Labels DenseSet DensePair"),
        ("data.scenes.source", "SceneSource parse"),
        ("augment.mixing", "Mix mix_images soft_labels"),
        ("foreign.addresses", "Found is_foreign is_hub_name find"),
        ("foreign.keys", "KeyReport load_weights"),
        ("foreign.bands", "adapt_bands with_bands"),
        ("foreign.names", "rename fuse"),
        ("foreign.script", "read_script"),
        ("foreign.vit", "Spec ViT"),
        ("loading", "load"),
        ("recipe_files", "load_recipe recipe_cards"),
        ("checkpoint", "Checkpoint read"),
        ("machine", "choose_device choose_precision"),
        ("pretraining", "pretrain"),
    ],
)
def test_the_names_of_an_old_data_or_weights_module_are_there(module: str, names: str) -> None:
    alias = importlib.import_module(f"unveil.{module}")
    for name in names.split():
        assert callable(getattr(alias, name)), name
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = alias.nothing_of_this_name


def test_a_recipe_file_of_release_0_1_uses_old_arguments_attributes_and_overrides() -> None:
    """In a process of its own: the classes keep what they have learned."""
    code = """
        import torch
        from unveil.decoder import Decoder, SelfDecoder, ask
        from unveil.encoder import Encoder
        from unveil.masking import Masker, Uniform
        from unveil.model import MaskedModel, Objective
        from unveil.records import RGB, Batch, Observation
        from unveil.targets import Pixels

        class Nothing(torch.nn.Module):
            def observe(self, batch, tokens):
                return Observation(tokens.layout)

        class Half(Decoder):
            def make_queries(self, mask, layout):
                return "half of them"

        encoder = Encoder([RGB], (16,), 4, dim=16, depth=2, heads=2)
        decoder = SelfDecoder("rgb", encoder, 16, 1, 2, outputs="all")
        masker = Masker(Uniform(), 0.25, 0.5, ask=Uniform("other"))
        objective = Objective("pixels", "pixels", 16, Pixels(RGB, 4))
        model = MaskedModel(encoder, masker, {"pixels": decoder}, [objective], {"t": Nothing()})
        batch = Batch({"rgb": torch.rand(2, 3, 16, 16)}, torch.arange(2), torch.zeros(()))
        seen = model.imagine(batch)
        assert decoder.outputs == decoder.outputs == "all" and masker.predict_score.purpose == "other"
        assert Half("rgb").make_queries(None, None) == "half of them"
        assert decoder.make_queries(seen.mask, seen.latents.tokens.layout).ids.shape == (2, 12)
        assert ask(seen.mask, seen.latents.tokens.layout, "rgb").ids.shape == (2, 8)
        assert torch.equal(batch.chance.uniform("x", 3), batch.rng.uniform("x", 3))
        """
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], check=True)


def test_a_path_that_never_was_is_no_alias() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("unveil.nothing")
