"""A score of the user's own as `masking`: from a file, from Python; kept by the run, executed by consent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
import unveil
from tiny_runs import at_steps, facts, interrupt, write_images
from unveil.modeling.masking import Uniform
from unveil.recipes import attmask, cmtmae, mim, multimae
from unveil.recipes.options import Option, UsageError
from unveil.recipes.own_score import load_score, text_of
from unveil.runs import trust
from unveil.training.config import PretrainConfig

TRAIN = {"size": "nano", "image_size": 16, "patch": 4, "epochs": 1.0, "batch_size": 8, "lr": 0.01, "device": "cpu"}
FILE = '''
"""Two scores: the middle first, and by the length of tokens."""
import torch


def centre(tokens, grid):
    rows, columns = grid
    y, x = torch.linspace(-1, 1, rows)[:, None], torch.linspace(-1, 1, columns)[None]
    return -(x * x + y * y).flatten().expand(len(tokens), -1)


class Longest:
    def __call__(self, tokens, observations, batch):
        return tokens.values.norm(dim=-1)


def pixels(tokens):
    return tokens


def too_many(tokens, teacher):
    return tokens[..., 0]
'''
MIDDLE = [False, False, False, False, False, True, True, False] * 1


@pytest.fixture
def mask(tmp_path: Path) -> str:
    (tmp_path / "my_mask.py").write_text(FILE)
    return str(tmp_path / "my_mask.py")


def first_hidden(model: Any, batch: Any, count: int) -> set[int]:
    """The tokens that are hidden first."""
    tokens, observations, *_ = model.mask_input(batch)
    return set(model.masker.score(tokens, observations, batch)[0].argsort(descending=True)[:count].tolist())


@pytest.mark.parametrize("recipe", [mim, attmask, cmtmae])
def test_recipes_hide_what_the_score_says(recipe: Any, mask: str):
    teacher = {"teacher": "random"} if recipe is cmtmae else {}
    model = tiny.build_of(recipe, masking=f"{mask}:centre", **teacher)
    assert first_hidden(model, tiny.batch(), 4) == {8, 9, 14, 15}  # the middle of 4 x 6 patches
    mask_of = model.encode_decode(tiny.batch()).mask
    assert mask_of.visible.shape[1] == 12
    assert torch.equal(mask_of.visible[0].sort().values, mask_of.visible[1].sort().values)


def test_of_several_modalities_it_orders_each(mask: str):
    model = tiny.build_of(multimae, masking=load_score(f"{mask}:Longest"))
    inner = model.masker.score.guide if hasattr(model.masker.score, "guide") else model.masker.score.score
    assert inner.elsewhere.name.endswith(":Longest")


def test_what_is_no_score_is_one_error(mask: str):
    with pytest.raises(ValueError, match=r"returns a tensor \(3, 24, 24\) for tokens \(3, 24, 24\)"):
        tiny.build_of(mim, masking=f"{mask}:pixels").encode_decode(tiny.batch())
    with pytest.raises(ValueError, match=r"has no function 'edge'; there are .*centre"):
        load_score(f"{mask}:edge")
    with pytest.raises(ValueError, match=r"write def too_many\(tokens\) -> scores"):
        load_score(f"{mask}:too_many")
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.py"):
        load_score("nowhere.py:centre")
    option = Option("masking", mim.recipe.__annotations__ and _kind(), "uniform")
    assert option.parse([f"{mask}:centre"]) == f"{mask}:centre"
    assert option.choices == ["uniform", "block", "inverse-block", "grid", "attention"]
    with pytest.raises(UsageError, match=r"a score of your own, FILE\.py:NAME"):
        option.parse(["blok"])


def _kind() -> Any:
    from unveil.recipes.registry import options_of

    return next(o.kind for o in options_of(mim.recipe) if o.name == "masking")


def by_channel(tokens: Tensor, rng: Any) -> Tensor:
    return tokens[..., 0] + 1e-3 * rng.uniform("mine", tokens.shape[1])


LEVEL = 3.0


def closed(tokens: Tensor) -> Tensor:
    return tokens[..., 0] * LEVEL


@pytest.mark.parametrize(
    "given", [lambda tokens: tokens, Uniform(), closed, torch.norm], ids=lambda given: type(given).__name__
)
def test_a_function_that_cannot_stand_alone_is_refused(given: Callable[..., Any]):
    with pytest.raises(ValueError, match=r"give a file, masking='my_mask\.py:centre'|or a file, masking"):
        text_of(given)


def test_a_run_keeps_its_score_and_executes_it_by_consent(
    tmp_path: Path, mask: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    images, out = write_images(tmp_path / "images", 24), tmp_path / "run"
    options = {**TRAIN, "data": images, "out": out, "masking": f"{mask}:centre"}
    at_steps(monkeypatch, [1], interrupt)
    with pytest.raises(KeyboardInterrupt):
        unveil.pretrain("mim", **options)
    assert (out / "masking.py").read_text() == FILE
    assert facts(out)["given"]["masking"] == f"{mask}:centre"
    Path(mask).write_text(FILE + "\n# another\n")
    with pytest.raises(ValueError, match="has changed since"):
        unveil.pretrain("mim", **options)
    Path(mask).write_text(FILE)
    run = unveil.pretrain("mim", **options)
    hidden = run.reconstruct().hidden["rgb"]
    assert hidden[0, 1:3, 1:3].all()
    assert torch.equal(hidden, hidden[:1].expand_as(hidden))
    Path(mask).unlink()
    assert unveil.Run(out).model() is not None  # from its own file, which this user has run
    monkeypatch.setattr(trust, "_here", set())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    with pytest.raises(trust.UntrustedCodeError, match=r"masking\.py"):
        unveil.Run(out).model()
    assert unveil.load(out, device="cpu") is not None  # the encoder needs no code
    (out / "config.yaml").write_text((out / "config.yaml").read_text().replace(mask, str(out / "masking.py")))
    with pytest.raises(trust.UntrustedCodeError, match="names a score"):
        PretrainConfig.resolve(None, {"config": str(out / "config.yaml")})
    assert unveil.Run(out, trust=True).model() is not None
    capsys.readouterr()


def test_a_function_is_kept_by_its_source(tmp_path: Path):
    images = write_images(tmp_path / "images", 24)
    options = {**TRAIN, "epochs": 0.4, "data": images, "out": tmp_path / "run"}

    def longest(tokens):  # type: ignore[no-untyped-def]
        return tokens.norm(dim=-1)

    run = unveil.pretrain("mim", masking=longest, **options)
    assert facts(run.path)["given"]["masking"] == "python:longest"
    assert "def longest(tokens)" in (run / "masking.py").read_text()
    assert run.reconstruct().hidden["rgb"].sum() == 12
    with pytest.raises(ValueError, match=r"annotations out|import or write what it needs"):
        unveil.pretrain("mim", masking=by_channel, **options)
