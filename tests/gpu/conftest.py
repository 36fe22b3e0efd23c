"""The device of these tests: the GPU of this machine; without one they are skipped."""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # sums in one order; read when CUDA starts


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    """`cuda`, or what UNVEIL_GPU_TESTS_DEVICE says: with cpu the tests themselves are tested."""
    device = os.environ.get("UNVEIL_GPU_TESTS_DEVICE", "cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device: these tests are for a machine with a card")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # float32 means float32
    return device
