"""Updates in bf16 and compiled updates agree with those in float32 without compilation, for every recipe."""

from __future__ import annotations

import pytest
import torch

from step_cases import CASES, MAIN, losses, settings_on

NOISE = 0.02  # of a loss in bf16: sums of products of 8 bits each; masks by attention differ in a token here and there


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in MAIN else pytest.mark.slow) for name in CASES])
def test_five_updates_in_bf16_are_those_in_float32(name: str) -> None:
    exact, rounded = (losses(CASES[name], settings_on("cpu", precision)) for precision in ("float32", "bf16"))
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=NOISE, atol=NOISE)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "mae" else pytest.mark.slow) for name in CASES]
)
def test_five_compiled_updates_are_the_plain_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the differentiation and the fusion of the whole graph; the compiler of its kernels is the next test's."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile(f, **{**options, "backend": "aot_eager"}))
    torch._dynamo.reset()
    plain, compiled = (losses(CASES[name], settings_on("cpu", compile=on), 3, depth=1) for on in (False, True))
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", MAIN)
def test_five_updates_through_the_compiler_are_the_plain_ones(name: str, precision: str) -> None:
    plain, compiled = (losses(CASES[name], settings_on("cpu", precision, on)) for on in (False, True))
    tolerance = NOISE if precision == "bf16" else 1e-3
    torch.testing.assert_close(compiled, plain, rtol=tolerance, atol=tolerance)
