"""Other projects' weights: their names under ours, told key by key, and no file that runs code."""

from __future__ import annotations

import argparse
import collections
import datetime
import fractions
import os
import pickle
import re
import types
import uuid
import zipfile
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from tiny import batch, build
from unveil.modeling.layers import sincos_positions
from unveil.modeling.masked_model import MaskedModel, mean_loss
from unveil.modeling.public_vits import load_weights, read_weights, to_own_names

CROSS = {"decoder": "cross", "blend": "linear", "predicted": 0.25}


def public_names(model: MaskedModel) -> dict[str, Tensor]:
    """A model's weights as the public MAE and CrossMAE code names and shapes them, written out key by key."""
    own = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    patch = model.encoder.patch
    theirs = {
        "cls_token": own["encoder.prefix"][None],
        "mask_token": own["decoders.pixels.mask_token"][None, None],
        "patch_embed.proj.weight": own["encoder.adapters.rgb.proj.weight"]
        .unflatten(1, (patch, patch, -1))
        .permute(0, 3, 1, 2),
        "patch_embed.proj.bias": own["encoder.adapters.rgb.proj.bias"],
        "pos_embed": table(model.encoder.grid, 24),
        "decoder_pos_embed": table(model.encoder.grid, 16),
        "decoder_pred.weight": own["objectives.0.head.weight"],
        "decoder_pred.bias": own["objectives.0.head.bias"],
    }
    for name, tensor in own.items():
        words = name.split(".")
        if words[:2] == ["encoder", "norm"]:
            theirs[f"norm.{words[2]}"] = tensor
        elif words[:2] == ["encoder", "blocks"]:
            theirs[".".join(["blocks", *named(words[2:])])] = tensor
        elif words[:3] == ["decoders", "pixels", "blocks"]:
            theirs[".".join(["decoder_blocks", *named(words[3:])])] = tensor
        elif words[2:3] == ["embed"]:
            theirs[f"decoder_embed.{words[3]}"] = tensor
        elif words[2:3] == ["norm"]:
            theirs[f"decoder_norm.{words[3]}"] = tensor
        elif words[2:3] == ["context_norms"]:
            theirs[f"dec_norms.{words[3]}.{words[4]}"] = tensor
        elif words[2:4] == ["blend", "weight"]:
            theirs["wfm.linear.weight"] = tensor
    model.load_state_dict(own)
    return theirs


def named(words: list[str]) -> list[str]:
    """A layer of a block: the two linear layers of the MLP have names."""
    return [words[0], words[1], {"0": "fc1", "2": "fc2"}[words[2]], words[3]] if words[1] == "mlp" else words


def table(grid: tuple[int, int], dim: int) -> Tensor:
    return torch.cat([torch.zeros(1, dim), sincos_positions(grid, dim)])[None]


@pytest.mark.parametrize(
    "options", [{}, CROSS, {**CROSS, "decoder": "cross-self"}], ids=["mae", "crossmae", "ablation"]
)
@pytest.mark.parametrize("wrapper", [None, "model"])
def test_public_weights_load_under_our_names(options: dict, wrapper: str | None, tmp_path: Path):
    """All keys, and the model that they make: as the public repositories save them, with their arguments."""
    theirs, fresh = build(image_size=(16, 16), **options), build(image_size=(16, 16), **options)
    state = public_names(theirs)
    content = {wrapper: state, "epoch": 3, "args": argparse.Namespace(mask_ratio=0.75)} if wrapper else state
    torch.save(content, tmp_path / "checkpoint.pth")
    report = load_weights(fresh, to_own_names(read_weights(tmp_path / "checkpoint.pth")))
    assert set(report.loaded) == set(fresh.state_dict())
    assert (report.missing, report.unexpected, report.reshaped) == ((), (), ())
    assert str(report) == f"{len(report.loaded)} tensors loaded"
    on = batch(size=(16, 16))
    assert torch.equal(mean_loss(theirs(on)), mean_loss(fresh(on)))


def test_a_distributed_run_s_names(tmp_path: Path):
    model = build(image_size=(16, 16))
    torch.save({f"module.{name}": tensor for name, tensor in public_names(model).items()}, tmp_path / "w.pth")
    report = load_weights(build(image_size=(16, 16)), to_own_names(read_weights(tmp_path / "w.pth")))
    assert (report.missing, report.unexpected) == ((), ())


def test_every_key_that_does_not_fit_is_told(tmp_path: Path):
    state = public_names(build(image_size=(16, 16)))
    state["head.weight"] = torch.zeros(10, 24)
    state["decoder_pred.weight"] = torch.zeros(7, 16)
    del state["norm.weight"], state["cls_token"]
    model = build(image_size=(16, 16))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_weights(model, to_own_names(state))
    assert set(report.missing) == {"encoder.norm.weight", "encoder.prefix"}
    assert report.unexpected == ("head.weight",)
    assert report.reshaped == ("objectives.0.head.weight",)
    lines = str(report).splitlines()
    assert lines[0] == f"{len(before) - 3} tensors loaded"
    assert lines[2] == "1 unexpected (left out): head.weight"
    after = model.state_dict()
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert {"encoder.norm.weight", "encoder.prefix", "objectives.0.head.weight"} <= unchanged
    assert not torch.equal(before["encoder.blocks.0.mlp.0.weight"], after["encoder.blocks.0.mlp.0.weight"])


def test_learned_positions_are_not_ours():
    """A checkpoint with a learned table would read wrong places in silence: its table is told as left out."""
    state = public_names(build(image_size=(16, 16)))
    assert "pos_embed" not in to_own_names(state)
    state["pos_embed"] = state["pos_embed"] + 0.1
    assert load_weights(build(image_size=(16, 16)), to_own_names(state)).unexpected == ("pos_embed",)


def test_another_modality_s_adapter():
    state = public_names(build(image_size=(16, 16)))
    assert "encoder.adapters.thermal.proj.weight" in to_own_names(state, "thermal")


def test_our_own_names_pass():
    model = build()
    state = model.state_dict()
    assert to_own_names(state).keys() == state.keys()
    report = load_weights(build(), to_own_names(state))
    assert len(report.loaded) == len(state)


def test_crossmae_weights_in_mae_s_place_share_the_encoder():
    report = load_weights(build(image_size=(16, 16)), to_own_names(public_names(build(image_size=(16, 16), **CROSS))))
    assert {name for name in report.missing if name.startswith("encoder.")} == {
        "encoder.norm.weight", "encoder.norm.bias",
    }  # fmt: skip
    assert any("blend" in name for name in report.unexpected)


@pytest.mark.parametrize("base", [False, True])
def test_transformers_vit_mae_from_its_folder(tmp_path: Path, base: bool):
    transformers = pytest.importorskip("transformers", reason="the import of ViTMAE needs transformers")
    config = transformers.ViTMAEConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, decoder_hidden_size=16,
        decoder_num_hidden_layers=2, decoder_num_attention_heads=2, decoder_intermediate_size=64, image_size=16,
        patch_size=4, layer_norm_eps=1e-6, mask_ratio=0.0,
    )  # fmt: skip
    theirs = (transformers.ViTMAEModel if base else transformers.ViTMAEForPreTraining)(config).eval()
    vit = theirs if base else theirs.vit
    vit.embeddings.position_embeddings.data.copy_(table((4, 4), 24))
    if not base:
        theirs.decoder.decoder_pos_embed.data.copy_(table((4, 4), 16))
    theirs.save_pretrained(tmp_path)
    model = build(image_size=(16, 16)).eval()
    report = load_weights(model, to_own_names(read_weights(tmp_path / "model.safetensors")))
    assert not report.unexpected
    assert all(base and not name.startswith("encoder.") for name in report.missing)

    on = batch(size=(16, 16))
    normalised = (on.maps["rgb"] - 0.4) / 0.3
    expected = vit(normalised, noise=torch.arange(16.0).expand(3, -1)).last_hidden_state
    torch.testing.assert_close(model.encoder(model.encoder.embed(on)).final, expected, rtol=1e-4, atol=1e-5)


# Files that are not what they should be


class Hostile:
    """A pickle that makes a file when it is loaded carelessly."""

    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch '{self.victim}'",)


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w"])
def test_a_pickle_with_code_is_refused_and_runs_nothing(name: str, tmp_path: Path):
    victim, path = tmp_path / "victim", tmp_path / name
    torch.save({"model": {"weight": torch.zeros(1)}, "extra": Hostile(victim)}, path)
    with zipfile.ZipFile(path) as archive:
        content = next(archive.read(entry) for entry in archive.namelist() if entry.endswith("data.pkl"))
    assert b"system" in content, "it is loaded"
    with pytest.raises(ValueError, match="was refused: it is damaged or holds more than tensors"):
        read_weights(path)
    path.write_bytes(pickle.dumps(Hostile(victim)))  # and as a bare pickle
    with pytest.raises(ValueError, match="was refused"):
        read_weights(path)
    assert not victim.exists()
    pickle.loads(path.read_bytes())
    assert victim.exists(), "the trap is real"


def test_a_truncated_or_wrong_safetensors_file(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    save_file({"weight": torch.zeros(100)}, path)
    whole = path.read_bytes()
    for content in (whole[:-7], whole[:4], b"", b"no weights at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a whole safetensors file"):
            read_weights(path)


@settings(deadline=None)  # a loaded machine is no failure
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_way(content: bytes):
    path = Path(f"{FUZZ}/fuzz.pth")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"was refused|holds no weights"):
        read_weights(path)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=3))
@example(place=3244, junk=b"\x01")  # where zipfile itself asks whether it is one, and fails
def test_a_damaged_checkpoint_is_refused_or_read(place: int, junk: bytes):
    """Bytes changed anywhere in a real file: a ValueError, or tensors; never another error."""
    path = Path(f"{FUZZ}/damaged.pth")
    torch.save({"model": {"weight": torch.zeros(3, 4)}}, path)
    content = bytearray(path.read_bytes())
    place %= len(content)
    content[place : place + len(junk)] = junk
    path.write_bytes(content)
    try:
        read_weights(path)
    except ValueError as error:
        assert "was refused" in str(error) or "holds no weights" in str(error)  # noqa: PT017


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory):
    global FUZZ  # hypothesis shares no function's fixture among its examples
    FUZZ = tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("content", [{}, [1, 2], {"model": {}}, {"epoch": 3}, torch.zeros(3)], ids=repr)
def test_a_file_without_weights(content, tmp_path: Path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds no weights: a dict of tensors is needed"):
        read_weights(tmp_path / "w.pth")


def test_no_file(tmp_path: Path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no weight file at"):
            read_weights(path)


class Options(dict):
    """Hyper-parameters as a class of a trainer's own."""


def test_what_trainers_store_beside_tensors_is_harmless(tmp_path: Path):
    """NumPy's numbers and arrays, paths, options, counts, dates, shapes; tensors under DeepSpeed's and others' keys."""
    state = {"weight": torch.rand(3)}
    for i, content in enumerate(
        (
            {"model": state, "best": np.float64(0.7), "epoch": np.int64(3), "curve": np.arange(3.0)},
            {"model": state, "args": argparse.Namespace(output=Path("/out"), root=PureWindowsPath("a"), lr=1e-3)},
            {"model": collections.OrderedDict(state), "defaults": collections.defaultdict(int, a=1)},
            {"state_dict": state, "callbacks": {"seen": collections.Counter("ab"), "at": datetime.datetime.now()}},
            {"module": state, "param_shapes": [collections.OrderedDict(weight=torch.Size([3]))], "ds_version": "0.14"},
            {"model": state, "options": types.SimpleNamespace(size={1}, kind=frozenset("a"))},
            {"model": state, "last": collections.deque([1.0]), "id": uuid.uuid4(), "steps": range(3)},
        )
    ):
        torch.save(content, tmp_path / f"{i}.pth")
        assert torch.equal(read_weights(tmp_path / f"{i}.pth")["weight"], state["weight"]), content


def test_a_refused_pickle_says_what_was_refused_and_how_to_convert_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.save({"state_dict": {"weight": torch.ones(3)}, "hyper_parameters": Options(lr=1e-3)}, tmp_path / "a.ckpt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    for name, refused in (
        ("a.ckpt", r"test_public_vits\.Options"),
        ("module.pth", r"torch\.nn\.modules\.linear\.Linear"),
    ):
        with pytest.raises(ValueError, match=rf"its pickle names {refused}, .*convert it where it was made") as error:
            read_weights(tmp_path / name)
        assert "\x1b" not in str(error.value)
        code = re.search(r'python -c "(.*)"', str(error.value))
        assert code is not None
        monkeypatch.chdir(tmp_path)
        exec(code[1], {})
        assert "weight" in read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("kind", ["archive", "before 1.6", "bare", "bare, protocol 4"])
def test_a_refused_pickle_names_all_that_is_code_in_any_format(kind: str, tmp_path: Path, monkeypatch):
    """PyTorch's advice to run it is never repeated."""
    content: dict[str, Any] = {
        "state_dict": {"weight": torch.ones(3)},
        "o": Options(lr=1.0),
        "f": fractions.Fraction(1),
    }
    path = tmp_path / "w.pth"
    if kind.startswith("bare"):
        content["state_dict"] = {"weight": np.ones(3, np.float32)}
        path.write_bytes(pickle.dumps(content, protocol=4 if "4" in kind else 2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "archive")
    with pytest.raises(ValueError, match="its pickle names ") as error:
        read_weights(path)
    text = str(error.value)
    named = re.search(r"its pickle names (.*), which is code", text)
    assert named is not None
    assert sorted(named[1].split(", ")) == ["fractions.Fraction", "test_public_vits.Options"]
    assert "likely succeed" not in text
    assert "\n" not in text
    code = re.search(r'python -c "(.*)"', text)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    exec(code[1], {})
    assert read_weights(tmp_path / "weights.pth")["weight"].tolist() == [1.0] * 3


def test_a_name_that_would_write_to_the_terminal_is_quoted(tmp_path: Path):
    path = tmp_path / "w.pth"
    path.write_bytes(
        b"\x80\x02cevil\x1b[2J\nrun\n." + b"\x80\x02" + b"".join(b"cm.%d\nf\n" % i for i in range(8)) + b"."
    )
    with pytest.raises(ValueError, match="was refused") as error:
        read_weights(path)
    assert "\x1b" not in str(error.value)
    assert r"'evil\x1b[2J.run', m.0.f, m.1.f, m.2.f, m.3.f and 4 more" in str(error.value)


def test_a_whole_module_is_code(tmp_path: Path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match="was refused"):
        read_weights(tmp_path / "module.pth")


@pytest.mark.parametrize("key", ["model_ema", "ema_state_dict", "weights", "params", "target_encoder", "network"])
def test_an_encoder_under_any_key_is_read(tmp_path: Path, key: str):
    """Of several the teacher, then one that is no moving average; optimisers beside them hold none."""
    state = {"patch_embed.proj.weight": torch.rand(4, 3, 2, 2), "cls_token": torch.rand(1, 1, 4)}
    optimizer = torch.optim.AdamW([torch.zeros(1)]).state_dict()
    torch.save({key: state, "epoch": 3, "optimizer": optimizer}, tmp_path / "w.pth")
    read = read_weights(tmp_path / "w.pth")
    assert read.keys() == state.keys()
    torch.save({"online": state, "ema": {name: -tensor for name, tensor in state.items()}}, tmp_path / "two.pth")
    assert torch.equal(read_weights(tmp_path / "two.pth")["cls_token"], state["cls_token"])
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "none.pth")
    with pytest.raises(ValueError, match="it is a dict of epoch, best"):
        read_weights(tmp_path / "none.pth")
    torch.save([state], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="it is a list"):
        read_weights(tmp_path / "list.pth")
