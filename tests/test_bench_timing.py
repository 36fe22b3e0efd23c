"""The clock of the bench: turns, phases, spread, and the memory of a step. No test looks at how long anything took."""

from __future__ import annotations

import pytest
import torch

from unveil.experiments.bench import flops_and_memory
from unveil.experiments.bench.contenders import CONTENDERS
from unveil.experiments.bench.flops_and_memory import count_flops, peak
from unveil.experiments.bench.timing import Quartiles, Seconds, Stepper, interleave, quartiles, speed
from unveil.experiments.bench.work import Work

CPU = torch.device("cpu")
SMALL = Work("tiny", 8, (32,), 2, 0)
BASE = Work("base", 16, (224,), 8, 0)
LADDER: tuple[str, ...] = ("mae", "cross-attention", "partial", "inter-block")
quick = {"size": "tiny", "patch": 8, "image_size": (32,), "batch_size": 2, "memory": False, "device": "cpu"}


class TestTiming:
    def test_all_take_turns_and_warming_up_does_not_count(self):
        calls: list[str] = []

        def step(name: str, took: float) -> Seconds:
            calls.append(name)
            return Seconds(took, len(calls), 0.0)

        told: list[tuple[int, int]] = []
        times = interleave(
            {name: lambda name=name: step(name, 1.0) for name in "abc"}, 3, 2, lambda *at: told.append(at)
        )
        assert "".join(calls) == "abc" * 5
        assert [s.backward for s in times["b"]] == [8, 11, 14]
        assert told == [(-1, 3), (0, 3), (1, 3), (2, 3), (3, 3)]

    def test_a_ratio_is_taken_within_each_round_so_drift_cancels(self):
        base = [Seconds(t, t, 2 * t) for t in (1.0, 5.0, 2.0)]
        half = [Seconds(0.0, t, t) for t in (1.0, 5.0, 2.0)]
        assert speed(base, half) == Quartiles(2.0, 2.0, 2.0)

    def test_spread_is_median_and_quartiles(self):
        assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == Quartiles(3.0, 2.0, 4.0)
        assert quartiles([7.0]) == Quartiles(7.0, 7.0, 7.0)

    def test_a_step_trains(self):
        stepper = Stepper(CONTENDERS["inter-block"].build(SMALL), SMALL.batch(CPU), CPU)
        before = [p.detach().clone() for p in stepper.model.parameters()]
        seconds = stepper.step("float32")
        assert min(seconds.forward, seconds.backward, seconds.update) > 0
        for old, new in zip(before, stepper.model.parameters(), strict=True):
            assert new.grad is None
            assert not torch.equal(old, new)
        assert len(stepper.optimizer.state) == len(before)
        assert all(group["fused"] for group in stepper.optimizer.param_groups)

    @pytest.mark.parametrize("name", ["mae", "transformers"])
    def test_precision_is_what_the_products_are_made_in(self, name: str):
        if name == "transformers":
            pytest.importorskip("transformers", reason="the comparison needs transformers")
        stepper = Stepper(CONTENDERS[name].build(SMALL), SMALL.batch(CPU), CPU)
        made: set[torch.dtype] = set()
        for module in stepper.model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda _, __, output: made.add(output.dtype))
        stepper.step("float32")
        assert made == {torch.float32}
        made.clear()
        stepper.step("bf16")
        assert made == {torch.bfloat16}
        assert {p.dtype for p in stepper.model.parameters()} == {torch.float32}

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_on_a_gpu_the_parts_are_timed_by_events(self):
        device = torch.device("cuda")
        stepper = Stepper(CONTENDERS["mae"].build(SMALL), SMALL.batch(device), device)
        assert min(vars(stepper.step("bf16")).values()) > 0


class TestMemory:
    def test_a_process_of_its_own_holds_weights_gradients_and_moments(self):
        megabytes = peak(CONTENDERS["mae"], SMALL, "float32", CPU)
        assert megabytes is not None
        weights = 4 * count_flops(CONTENDERS["mae"], SMALL).parameters / 2**20
        assert 4 * weights < megabytes < 4 * weights + 300

    @pytest.mark.parametrize(
        ("code", "said"), [("raise MemoryError('all gone')", "all gone"), ("import os; os.abort()", "ended with -")]
    )
    def test_a_process_that_fails_says_why(self, code: str, said: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(flops_and_memory, "_CODE", code)
        with pytest.raises(ValueError, match=f"mae with 2 images.*{said}.*--batch-size"):
            peak(CONTENDERS["mae"], SMALL, "float32", CPU)

    def test_a_device_that_cannot_tell(self):
        assert peak(CONTENDERS["mae"], SMALL, "float32", torch.device("mps")) is None
