"""Batches on their way to a device: one memory of their own, pinned for a GPU, copied as bytes before the step."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from test_data_loader import Numbers
from unveil.data.loader import Loader
from unveil.data.transforms import View
from unveil.data.upload import uploaded

concat = torch.cat
VIEW = View((6, 8), flip="d4")


def test_a_batch_is_copied_once_into_memory_of_its_own(monkeypatch):
    """Threads write into one memory, in the layout of the decoded images; that of the next step is another."""
    copied = "unveil.data.collate.torch.cat"
    monkeypatch.setattr(
        copied, lambda tensors: concat(tensors) if tensors[0].ndim == 1 else pytest.fail("copied twice")
    )
    loader = Loader(Numbers(40), VIEW, 16, workers=1)
    first, second = (made.maps["rgb"] for made in loader.batches(0))
    assert first.shape == second.shape == (16, 1, 6, 8)
    assert first.untyped_storage().nbytes() == first.nbytes
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()


def test_pinned_batches_lie_in_memory_that_a_gpu_reads(monkeypatch):
    asked = []
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *a, pin_memory=False, **k: asked.append((a[0], pin_memory)) or empty(*a, **k)
    )
    list(Loader(Numbers(20), VIEW, 10, pinned=True).batches(0))
    assert asked == [((10, 1, 6, 8), True)] * 2


class RecordedStream:
    """A stream that notes what is done while copies are queued, and what is handed over."""

    def __init__(self) -> None:
        self.is_copying, self.log = False, []

    @contextmanager
    def copying(self):
        self.log.append("copy")
        yield

    def hand_over(self, tensors) -> None:
        self.log.append([(t.device.type, t.dtype) for t in tensors])


def test_batches_are_uploaded_as_bytes_and_handed_over_before_the_step():
    stream, loader = RecordedStream(), Loader(Numbers(20), VIEW, 10)
    batches = list(loader.batches(0))
    for made, whole in zip(uploaded(batches, torch.device("meta"), stream), batches, strict=True):
        assert stream.log[-2:] == ["copy", [("meta", torch.uint8)]]
        assert made.maps["rgb"].shape == whole.maps["rgb"].shape
        assert made.key is whole.key  # the processor reads it, and it is small
    assert len(stream.log) == 4
    assert list(uploaded(batches, torch.device("cpu"))) == batches
