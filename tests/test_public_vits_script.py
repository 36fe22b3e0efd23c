"""TorchScript archives: real ones give their tensors, and none of them runs anything."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from unveil.modeling.public_vits import load_encoder, read_weights

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what is published is not deprecated


class Whole(nn.Module):
    """One of everything that a script's attributes are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.rest = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4, bias=False))
        self.turned = nn.Parameter(torch.randn(2, 3).T)
        self.small = nn.Parameter(torch.randn(3).half())
        self.register_buffer("steps", torch.arange(3))
        self.register_buffer("none", torch.zeros(0, 2))
        self.sizes, self.name, self.share = [1, 2], "whole", 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(x)) * self.share


def saved(path: Path) -> Path:
    torch.jit.script(Whole()).save(str(path))
    return path


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.zeros(1, 3))])
def test_its_tensors_are_those_of_its_state_dict(make, tmp_path: Path):
    module = Whole()
    make(module).save(str(tmp_path / "ViT-B-16.pt"))
    result, state = read_weights(tmp_path / "ViT-B-16.pt"), module.state_dict()
    assert set(result) == set(state)
    assert all(result[name].dtype == state[name].dtype and torch.equal(result[name], state[name]) for name in state)


class Tree(nn.Module):
    """A module with parameters at these dotted names."""

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        for head in dict.fromkeys(name.partition(".")[0] for name in state):
            below = {n.partition(".")[2]: t for n, t in state.items() if n.startswith(f"{head}.")}
            if below:
                self.add_module(head, Tree(below))
            else:
                self.register_parameter(head, nn.Parameter(state[head]))

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_clip_as_openai_publishes_it(tmp_path: Path):
    draw, width = torch.randn, 64
    block = {
        "ln_1.weight": draw(width), "ln_1.bias": draw(width), "ln_2.weight": draw(width), "ln_2.bias": draw(width),
        "attn.in_proj_weight": draw(3 * width, width), "attn.in_proj_bias": draw(3 * width),
        "attn.out_proj.weight": draw(width, width), "attn.out_proj.bias": draw(width),
        "mlp.c_fc.weight": draw(4 * width, width), "mlp.c_fc.bias": draw(4 * width),
        "mlp.c_proj.weight": draw(width, 4 * width), "mlp.c_proj.bias": draw(width),
    }  # fmt: skip
    state = {
        "visual.class_embedding": draw(width), "visual.positional_embedding": draw(5, width),
        "visual.proj": draw(width, 8), "visual.conv1.weight": draw(width, 3, 4, 4),
        **{f"visual.ln_{place}.{name}": draw(width) for place in ("pre", "post") for name in ("weight", "bias")},
        **{f"visual.transformer.resblocks.{k}.{name}": t.clone() for k in (0, 1) for name, t in block.items()},
        "positional_embedding": draw(7, width), "logit_scale": draw(()),
    }  # fmt: skip
    torch.jit.script(Tree(state)).save(str(tmp_path / "clip.pt"))
    save_file(state, tmp_path / "clip.safetensors")
    script, plain = (load_encoder(tmp_path / name) for name in ("clip.pt", "clip.safetensors"))
    assert script.config == plain.config
    assert script.config.activation == "quick-gelu"
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(script(images), plain(images))


class Trap:
    """A pickle that makes a file when it is loaded carelessly."""

    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch '{self.victim}'",)


def with_pickle(path: Path, content: bytes) -> Path:
    """A real archive, its attributes replaced."""
    source = io.BytesIO(saved(path).read_bytes())
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("/data.pkl") else old.read(name))
    return path


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_with_code_is_refused_and_runs_nothing(protocol: int, tmp_path: Path):
    victim = tmp_path / "victim"
    content = pickle.dumps({"weight": Trap(victim)}, protocol)
    with pytest.raises(ValueError, match=r"w.pt was refused: .* \(its pickle calls \w+.system\)"):
        read_weights(with_pickle(tmp_path / "w.pt", content))
    assert not victim.exists()
    pickle.loads(content)
    assert victim.exists(), "the trap is real"


@pytest.mark.parametrize(
    "content",
    [
        b"c__torch__\nM\n(tR}(S'f'\ncbuiltins\neval\nub.",  # as an attribute of a module
        b"\x80\x04\x8c\x07__torch__\x8c\x0f__init__.__globals__\x93.",  # a dotted path into what is allowed
        b"(S'touch x'\nios\nsystem\n.",  # by another opcode
        b"c__torch__\nM\n(tR(lp0\nb.",  # a state that is none
        b"(S'storage'\nS'torch.FloatStorage'\nS'../version'\nS'cpu'\nI9\ntQ.",  # numbers from elsewhere
    ],
)  # fmt: skip
def test_ways_around_are_closed(content: bytes, tmp_path: Path):
    with pytest.raises(ValueError, match=r"was refused|holds no weights"):
        read_weights(with_pickle(tmp_path / "w.pt", content))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("scripts") / "whole.pt")


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10**6), junk=st.binary(min_size=1, max_size=3))
def test_a_damaged_archive_is_refused_or_read(whole: Path, place: int, junk: bytes):
    """Bytes changed anywhere: a ValueError, or tensors; never another error."""
    content = bytearray(whole.read_bytes())
    place %= len(content)
    content[place : place + len(junk)] = junk
    damaged = whole.with_name("damaged.pt")
    damaged.write_bytes(content)
    try:
        read_weights(damaged)
    except ValueError as error:
        assert "was refused" in str(error) or "holds no weights" in str(error)  # noqa: PT017
