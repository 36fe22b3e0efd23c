"""Where the time of a step goes: operations by kind, their bytes and FLOPs, the sentence. No test looks at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.profiler import profile, record_function

from unveil.experiments.bench import bench
from unveil.experiments.bench.contenders import CONTENDERS
from unveil.experiments.bench.flops_and_memory import count_flops
from unveil.experiments.bench.modes import How
from unveil.experiments.bench.profile import (
    EMA_SCOPE,
    Part,
    StepProfile,
    TrafficRecorder,
    format_profile,
    kind_of,
    record_traffic,
    sentence,
    sum_by_kind,
)
from unveil.experiments.bench.timing import Stepper
from unveil.experiments.bench.work import Work

CPU = torch.device("cpu")
NANO = Work("nano", 8, (32,), 2, 0)


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unveil.experiments.bench.profile._BUFFER", 1 << 20)
    monkeypatch.setattr("unveil.experiments.bench.products.SIDE", 64)


class TestKinds:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("aten::addmm", "matrix products"),
            ("aten::mm", "matrix products"),
            ("mkldnn::_linear_pointwise", "matrix products"),
            ("aten::convolution_backward", "matrix products"),
            ("aten::bmm", "attention"),
            ("aten::_softmax_backward_data", "attention"),
            ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
            ("aten::copy_", "casts and copies"),
            ("aten::_to_copy", "casts and copies"),
            ("aten::gather", "casts and copies"),
            ("aten::native_layer_norm_backward", "norms"),
            ("aten::gelu_backward", "activation"),
            ("aten::_foreach_norm", "optimiser"),
            ("aten::add", "other element-wise"),
            ("aten::sum", "other element-wise"),
            ("aten::as_strided", "launches and overhead"),
            ("aten::empty_strided", "launches and overhead"),
            ("graph_0_cpp_fused_add_native_layer_norm_5", "norms"),
            ("cpp_fused__to_copy_gelu_3", "activation"),
            ("triton_poi_fused_gelu_backward_7", "activation"),
        ],
    )
    def test_an_operation_has_one_by_its_name(self, name: str, kind: str):
        assert kind_of(name) == kind

    def test_scopes_come_before_names(self):
        assert kind_of("aten::mul", ("Optimizer.step#AdamW.step",)) == "optimiser"
        assert kind_of("aten::lerp_", (EMA_SCOPE,)) == "averages (EMA)"

    def test_the_time_of_nested_operations_counts_once(self):
        x = torch.randn(64, 64)
        with profile() as seen:
            torch.nn.functional.linear(x, x)
            with record_function(EMA_SCOPE):
                x.mul_(2)
        events = seen.events()
        sums = sum_by_kind(events, on_gpu=False)
        assert {"matrix products", "averages (EMA)"} <= sums.keys()
        assert sums["matrix products"] <= sum(e.cpu_time_total for e in events if e.name == "aten::linear")


class TestTraffic:
    def test_bytes_are_those_that_are_read_and_written(self):
        a, b, c = (torch.zeros(8, 4) for _ in range(3))
        cases = {
            "a sum of two": (lambda: a + b, 3),
            "in place": (lambda: a.add_(b), 3),
            "a copy": (lambda: a.copy_(b), 2),
            "a view": (lambda: a.view(4, 8), 0),
            "memory": (lambda: torch.empty(8, 4), 0),
            "a row for all": (lambda: a + c[:1].expand(8, 4), 2 + 1 / 8),
        }
        for what, (act, times) in cases.items():
            with TrafficRecorder() as recorder:
                act()
            assert sum(t.bytes for t in recorder.of.values()) == times * a.nbytes, what

    @pytest.mark.parametrize("precision", ["float32", "bf16"])
    def test_flops_of_a_step_are_those_counted(self, precision: str):
        """The fused attention's backward pass computes one product more, which is no more than its own share."""
        stepper = Stepper(CONTENDERS["mae"].build(NANO), NANO.batch(CPU), CPU)
        traffic = record_traffic(stepper.model.model, stepper.optimizer, lambda: stepper.step(precision))
        counted = count_flops(CONTENDERS["mae"], NANO).flops
        assert traffic.of["matrix products"].flops < counted
        done = sum(t.flops for t in traffic.of.values())
        assert counted <= done <= counted + traffic.of["attention"].flops / 7
        moved = sum(p.nbytes for p in stepper.model.parameters() if p.requires_grad)
        assert traffic.of["optimiser"].bytes >= 7 * moved, "weights, gradients and two moments read, three written"

    def test_an_average_is_seen_apart(self):
        stepper = Stepper(CONTENDERS["cmtmae-stage2"].build(NANO), NANO.batch(CPU), CPU)
        before = stepper.model.model.after_step
        traffic = record_traffic(stepper.model.model, stepper.optimizer, lambda: stepper.step("float32"))
        assert traffic.of["averages (EMA)"].bytes > 0
        assert stepper.model.model.after_step == before


class TestProfile:
    def test_the_parts_add_up_to_the_step(self):
        stepper = Stepper(CONTENDERS["inter-block"].build(NANO), NANO.batch(CPU), CPU)
        found = stepper.profile("bf16", How("bf16"), peak=1e9)
        parts = {part.kind: part for part in found.parts}
        assert {"matrix products", "attention", "norms", "activation", "optimiser", "casts and copies"} <= parts.keys()
        assert sum(part.ms for part in found.parts) == pytest.approx(found.ms)
        assert parts["matrix products"].limit == "peak"
        assert parts["norms"].limit == "bandwidth"
        assert parts["waiting for data"].ms == pytest.approx(0, abs=0.1)
        assert "matrix products" in format_profile("inter-block", found)

    @pytest.mark.parametrize(
        ("part", "words"),
        [
            (Part("attention", 50.0, 10.0, "peak"), ["attention, 50% of the step", "20% of the peak", "1.67 times"]),
            (Part("launches and overhead", 60.0, 0.0, ""), ["launches and Python", "60%", "compile"]),
            (Part("waiting for data", 60.0, 0.0, ""), ["waiting for data, 60%", "--workers"]),
        ],
    )
    def test_one_sentence_says_what_limits_the_step(self, part: Part, words: list[str]):
        rest = Part("matrix products", 100.0 - part.ms, 99.0 - part.ms, "peak")
        found = StepProfile(100.0, (rest, part), 1e9, 1e9, is_compiled=False)
        assert all(word in sentence(found) for word in words)
        if part.kind == "launches and overhead":
            assert "compile" not in sentence(replace(found, is_compiled=True))

    def test_from_flags_on_images_that_are_loaded(self, capsys):
        small = {"size": "nano", "patch": 8, "image_size": (32,), "batch_size": 2, "memory": False, "device": "cpu"}
        found = bench(
            **small,
            contenders=("mae", "mae:bf16"),
            precision="float32",
            rounds=1,
            profile=True,
            data="scenes:count=4,size=32",
        )
        parts = {p["kind"]: p for p in found["contenders"]["mae"]["profiles"]["float32"]["parts"]}
        assert parts["waiting for data"]["ms"] > 0
        assert found["contenders"]["mae"]["profiles"].keys() == {"float32", "bf16"}
        assert capsys.readouterr().out.count("limited by") == 2

    def test_data_needs_a_profile(self):
        with pytest.raises(ValueError, match="--data is for --profile"):
            bench(data="photos")
