"""Updates and the loop: what a micro-batch may change, what a number that is not finite may not, one stage after
another."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tiny_runs import write_images, write_recipe
from unveil.data.loader import Loader
from unveil.data.sources import open_source
from unveil.data.transforms import Sample
from unveil.modeling.encoder import Encoder
from unveil.modeling.rng import sample_keys, seed_stage, step_key
from unveil.modeling.types import Batch, Observation, Tokens
from unveil.recipes.recipe import Recipe
from unveil.recipes.registry import load_recipe
from unveil.runs.checkpoint import read_latest
from unveil.runs.folder import RunFolder
from unveil.training.health import MAX_SKIPPED
from unveil.training.ladder import WentBack
from unveil.training.loop import Loop
from unveil.training.metrics import MetricsWindow, progress_text
from unveil.training.stopping import stop_on_signal
from unveil.training.trainer import Settings, Trainer, Update

CPU = Settings("cpu", "float32", micro_batch=64, compile=False, save_minutes=10, val_every=100)


def build(tmp_path: Path, **options: Any) -> Recipe:
    seed_stage(0, -1)
    return load_recipe(write_recipe(tmp_path))(**options)


def trainer_of(recipe: Recipe, settings: Settings = CPU, teachers: Callable[[Any], dict] | None = None) -> Trainer:
    seed_stage(0, 0)
    model = recipe.stages[0].build()
    if teachers:
        model.teachers = nn.ModuleDict(teachers(model))  # type: ignore[assignment]
    return Trainer(model, recipe.optim, settings)


def batches(count: int, size: int = 16) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            {"rgb": torch.rand(size, 3, 16, 16, generator=generator)}, sample_keys(0, i, range(size)), torch.tensor(0.5)
        )
        for i in range(count)
    ]


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Weights, buffers and everything that the optimizer remembers."""
    moments = {
        f"{i}:{name}": value
        for i, p in enumerate(trainer.parameters)
        for name, value in trainer.optimizer.state.get(p, {}).items()
    }
    return {name: value.clone() for name, value in {**trainer.model.state_dict(), **moments}.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_close(a: Trainer, b: Trainer) -> None:
    """Equal weights but for rounding; not keys' biases: their true gradient is 0, and Adam scales up its noise."""
    for (name, x), (_, y) in zip(a.model.named_parameters(), b.model.named_parameters(), strict=True):
        if name.endswith("qkv.bias"):
            x, y = (torch.cat([v.chunk(3)[0], v.chunk(3)[2]]) for v in (x, y))
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-5, msg=lambda message, name=name: f"{name}: {message}")


class TestMicroBatches:
    @pytest.mark.parametrize("size", [8, 5, 4, 1])
    def test_losses_and_weights_do_not_depend_on_them(self, tmp_path: Path, size: int):
        whole = trainer_of(build(tmp_path, clip=0.5))
        parts = trainer_of(build(tmp_path, clip=0.5), replace(CPU, micro_batch=size))
        for batch in batches(4):
            one, many = whole.update(batch, 0.01), parts.update(batch, 0.01)
            torch.testing.assert_close(many.losses["pixels"], one.losses["pixels"], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(many.norm, one.norm, rtol=1e-4, atol=1e-6)
        assert_close(whole, parts)

    def test_what_is_hidden_of_a_sample_is_its_own_affair(self, tmp_path: Path):
        model = trainer_of(build(tmp_path)).model
        batch = batches(1)[0]
        whole = model.encode_decode(batch).mask
        for samples in (slice(0, 5), slice(5, 16)):
            text = model.encode_decode(batch[samples]).mask
            assert torch.equal(text.visible, whole.visible[samples])
            assert torch.equal(text.predicted, whole.predicted[samples])


class ModelEma(nn.Module):
    """A teacher that follows the student."""

    def __init__(self, student: nn.Module):
        super().__init__()
        self.weights = copy.deepcopy(student).requires_grad_(False)
        self.student = [student]

    def observe(self, batch: Batch, tokens: Tokens, student: Encoder) -> Observation:
        return Observation(tokens.layout, features=tokens.values)

    def after_step(self, losses: Mapping[str, torch.Tensor], updated: torch.Tensor) -> None:
        with torch.no_grad():
            for mine, its in zip(self.weights.parameters(), self.student[0].parameters(), strict=True):
                mine.lerp_(its, 0.1 * updated)


def spoil_input(trainer: Trainer, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> Batch:
    spoilt = batch.maps["rgb"].clone()
    spoilt[3, 1, 5, 5] = torch.nan
    return Batch({"rgb": spoilt}, batch.key, batch.progress)


def spoil_loss(trainer: Trainer, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> Batch:
    forward = trainer.forward
    # a constant: the loss is infinite, every gradient finite
    monkeypatch.setattr(
        trainer, "forward", lambda b: {k: (total + torch.inf, count) for k, (total, count) in forward(b).items()}
    )
    return batch


def spoil_gradient(trainer: Trainer, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> Batch:
    handle = trainer.parameters[-1].register_hook(lambda gradient: gradient * torch.nan)
    monkeypatch.setattr(trainer, "unhook", handle.remove, raising=False)
    return batch


class TestNotFinite:
    @pytest.mark.parametrize("spoil", [spoil_input, spoil_loss, spoil_gradient])
    @pytest.mark.parametrize("clip", [None, 1.0])
    @pytest.mark.parametrize("micro_batch", [16, 5])
    def test_an_update_that_is_not_finite_changes_nothing_at_all(
        self, tmp_path: Path, spoil: Callable, clip: float | None, micro_batch: int
    ):
        trainer = trainer_of(
            build(tmp_path, clip=clip),
            replace(CPU, micro_batch=micro_batch),
            lambda model: {"average": ModelEma(model.encoder)},
        )
        first, second, third = batches(3)
        assert not trainer.update(first, 0.01).skipped
        before = state_of(trainer)
        with pytest.MonkeyPatch.context() as patch:
            assert trainer.update(spoil(trainer, second, patch), 0.01).skipped
            if hasattr(trainer, "unhook"):
                trainer.unhook()
        assert same(state_of(trainer), before)
        # and it recovers: the next update is the one that would have come had there been no bad batch
        assert not trainer.update(third, 0.01).skipped
        after = state_of(trainer)
        assert not same(after, before)
        untroubled = trainer_of(
            build(tmp_path, clip=clip),
            replace(CPU, micro_batch=micro_batch),
            lambda model: {"average": ModelEma(model.encoder)},
        )
        untroubled.update(first, 0.01), untroubled.update(third, 0.01)
        assert same(state_of(untroubled), after)

    def test_the_average_does_move_with_a_good_update(self, tmp_path: Path):
        trainer = trainer_of(build(tmp_path), CPU, lambda model: {"average": ModelEma(model.encoder)})
        name = "teachers.average.weights.blocks.0.attn.qkv.weight"
        before = trainer.model.state_dict()[name].clone()
        trainer.update(batches(1)[0], 0.01)
        assert not torch.equal(trainer.model.state_dict()[name], before)


def loop_of(tmp_path: Path, recipe: Recipe, settings: Settings = CPU, watch: Callable | None = None) -> Loop:
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    source = open_source(write_images(tmp_path / "images", 20))
    loader = Loader(source, recipe.view, recipe.optim.batch_size, seed=0, workers=1)
    return Loop(RunFolder(run), recipe, loader, settings, 0, watch or (lambda *_: None), {})


def train(loop: Loop) -> Any:
    return loop.train(threading.Event(), lambda model: None)


class TestLoop:
    def test_it_takes_the_steps_and_rates_of_the_recipe(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        rates, progress, keys = [], [], []
        update = Trainer.update

        def noted(self: Trainer, batch: Batch, lr: float) -> Update:
            rates.append(lr)
            progress.append(float(batch.progress))
            keys.append(batch.step_key)
            return update(self, batch, lr)

        monkeypatch.setattr(Trainer, "update", noted)
        train(loop_of(tmp_path, build(tmp_path, epochs=4, warmup_epochs=2, batch_size=5, lr=0.256)))
        assert len(rates) == 16
        peak = 0.256 * 5 / 256
        assert rates[:9] == pytest.approx([peak * i / 8 for i in range(9)])
        assert max(rates) == rates[8] == pytest.approx(peak)
        assert rates[9:] == sorted(rates[9:], reverse=True)
        assert progress == pytest.approx([i / 16 for i in range(16)])
        assert keys == [step_key(0, i) for i in range(16)], "of seed and step alone: the same when it is resumed"

    def test_held_out_looks_come_at_their_epochs(self, tmp_path: Path):
        calls: list[tuple[float, int]] = []
        recipe = build(tmp_path, epochs=5, batch_size=10)
        train(loop_of(tmp_path, recipe, replace(CPU, val_every=2), lambda m, epoch, step: calls.append((epoch, step))))
        assert calls == [(0, 0), (2, 4), (4, 8), (5, 10)]

    def test_a_stop_that_is_asked_for_in_the_middle_of_a_step_leaves_a_checkpoint(self, tmp_path: Path):
        stop = threading.Event()

        def ask(model: nn.Module, epoch: float, step: int) -> None:
            if step:
                stop.set()

        loop = loop_of(tmp_path, build(tmp_path, epochs=5, batch_size=5), replace(CPU, val_every=0.01), ask)
        with pytest.raises(KeyboardInterrupt):
            loop.train(stop, lambda model: None)
        latest, _ = read_latest(tmp_path / "run")
        assert latest is not None
        assert latest.state["step"] == 2  # the step after the one in which it was asked

    def test_a_stage_starts_from_what_the_encoder_has_become_with_its_moments_and_new_ones_for_new_parts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        updated: list[tuple[Trainer, dict[str, Tensor], int]] = []
        adopt = Trainer.adopt

        def noted(self: Trainer, moments: Any) -> None:
            adopt(self, moments)
            steps = [int(m["step"]) for m in self.optimizer.state.values()]
            assert set(steps) == {4}
            updated.append((self, {k: v.clone() for k, v in self.model.state_dict().items()}, len(steps)))

        monkeypatch.setattr(Trainer, "adopt", noted)
        recipe = build(tmp_path, stages=2, epochs=4, batch_size=10)
        model = train(loop_of(tmp_path, recipe))
        ((second, begun, carried),) = updated
        assert model is second.model
        assert carried == len(list(recipe.encoder.parameters()))
        fresh = build(tmp_path, stages=2).encoder.state_dict()
        name = "encoder.blocks.0.attn.qkv.weight"
        assert not torch.equal(begun[name], fresh[name.removeprefix("encoder.")])

    def test_every_stage_has_a_step_however_short(self, tmp_path: Path):
        loop = loop_of(tmp_path, build(tmp_path, stages=2, epochs=0.02, batch_size=10))
        assert loop.schedule.ends == [1, 2]
        train(loop)

    def test_twenty_in_a_row_go_back_to_the_last_good_weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        good: dict[str, Tensor] = {}
        update, count = Trainer.update, 0

        def spoilt(self: Trainer, batch: Batch, lr: float) -> Update:
            nonlocal count
            count += 1
            if count == 21:
                good.update({k: v.clone() for k, v in self.model.state_dict().items()})
            if count >= 23:
                batch = Batch({"rgb": batch.maps["rgb"].float() * torch.nan}, batch.key, batch.progress)
            return update(self, batch, lr)

        monkeypatch.setattr(Trainer, "update", spoilt)
        with pytest.raises(WentBack):
            train(loop_of(tmp_path, build(tmp_path, epochs=50, batch_size=10)))
        assert count == 22 + MAX_SKIPPED
        latest, _ = read_latest(tmp_path / "run")
        assert latest
        assert (latest.state["step"], latest.state["skipped"]) == (20, 0)
        assert all(torch.equal(latest.model[name], value) for name, value in good.items())

    def test_refused_updates_are_counted_and_their_images_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        read = []
        recipe = build(tmp_path, epochs=4, batch_size=5)
        loop = loop_of(tmp_path, recipe)
        loop.log_every = 4
        sample, poisoned = loop.loader._read, 7

        def spoilt(index: int, decoding: bool) -> Sample:
            read.append(index)
            image = sample(index).maps["rgb"]
            return Sample({"rgb": image.float() / 255 * (torch.nan if index == poisoned else 1.0)})

        monkeypatch.setattr(loop.loader, "_read", spoilt)
        train(loop)
        stored = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
        lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert [line["skipped"] for line in lines] == [1, 2, 3, 4]  # once in each epoch of 4 steps
        assert [1 + (u["step"] - 1) // 4 for u in stored] == [1, 2, 3, 4]
        name = loop.loader.source.name(poisoned)
        assert all(name in u["images"] and len(u["images"]) == 5 for u in stored)
        assert all(line["loss"] < 5 for line in lines)  # means over the others

    def test_seconds_and_refused_updates_are_counted_over_all_sessions(self, tmp_path: Path, monkeypatch):
        update = Trainer.update

        def spoilt(self: Trainer, batch: Batch, lr: float) -> Update:
            if calls.pop() in (1, 3):
                batch = Batch({"rgb": batch.maps["rgb"].float() * torch.nan}, batch.key, batch.progress)
            return update(self, batch, lr)

        monkeypatch.setattr(Trainer, "update", spoilt)
        calls, stop = [3, 2, 1, 0], threading.Event()
        stop.set()
        recipe = build(tmp_path, epochs=2, batch_size=10)
        skipped = []
        for _ in range(3):
            loop, (latest, _) = loop_of(tmp_path, recipe), read_latest(tmp_path / "run")
            if latest is None:
                loop.seconds = 1000.0  # as if it had trained for so long
            with pytest.raises(KeyboardInterrupt):
                loop.train(stop, lambda model: None, latest)
            state = read_latest(tmp_path / "run")[0].state  # type: ignore[union-attr]
            assert 1000 < state["seconds"] < 1100
            skipped.append(state["skipped"])
        assert skipped == [0, 1, 1]
        train_again = loop_of(tmp_path, recipe)
        train_again.train(threading.Event(), lambda model: None, read_latest(tmp_path / "run")[0])
        lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert [line["skipped"] for line in lines] == [0, 1, 1, 2]
        assert all(1000 < line["time"] < 1100 for line in lines)

    def test_a_thread_of_its_own_trains_without_touching_signals(self, tmp_path: Path):
        def use() -> None:
            with stop_on_signal() as stop:
                collected.append(stop.is_set())

        collected: list[bool] = []
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert collected == [False]

    def test_no_threads_are_left(self, tmp_path: Path):
        before = threading.active_count()
        train(loop_of(tmp_path, build(tmp_path, epochs=2, batch_size=10)))
        assert threading.active_count() == before


class TestPrecision:
    def test_bf16_trains_here_too_and_keeps_its_weights_in_float32(self, tmp_path: Path):
        trainer = trainer_of(build(tmp_path), replace(CPU, precision="bf16"))
        batch = batches(1)[0]
        losses = [float(trainer.update(batch, 0.01).losses["pixels"]) for _ in range(10)]
        assert losses[-1] < losses[0]
        assert {p.dtype for p in trainer.parameters} == {torch.float32}
        exact = trainer_of(build(tmp_path)).update(batch, 0.01).losses["pixels"]
        assert losses[0] != float(exact)
        assert losses[0] == pytest.approx(float(exact), rel=0.02)


LINE = {
    **{"step": 5, "epoch": 2.5, "loss": 0.5, "lr": 1e-3, "grad_norm": 1.5, "images_per_second": 321.4},
    **{"data_wait": 0.25, "memory_mb": 2048, "skipped": 0},
}


class TestTelling:
    def test_a_window_without_a_single_update_made_says_so(self):
        window = MetricsWindow(0.0)
        window.add(Update({"pixels": torch.tensor(torch.nan)}, torch.tensor(1.0), torch.tensor(True)), 4)
        line = window.line(0.0)
        assert (line["loss"], line["losses"], line["grad_norm"]) == (None, {}, None)
        json.dumps(line, allow_nan=False)

    def test_a_line_of_progress_holds_every_item(self):
        text = progress_text(LINE, total=10, per_epoch=2)
        items = ("epoch 2.5/5", "loss 0.5000", "lr 1.0e-03", "grad 1.50", "321 images/s", "data wait 25%", "2.0 GB")
        for item in ("step 5/10", *items):
            assert item in text
        assert "skipped" not in text

    def test_skipped_updates_show(self):
        text = progress_text({**LINE, "loss": None, "grad_norm": None, "skipped": 3}, 10, 2)
        assert "loss -" in text
        assert "3 skipped" in text


@pytest.mark.slow
def test_a_compiled_step_makes_the_same_updates(tmp_path: Path):
    plain, fast = trainer_of(build(tmp_path)), trainer_of(build(tmp_path), replace(CPU, compile=True, micro_batch=5))
    for batch in batches(2):
        one, two = plain.update(batch, 0.01), fast.update(batch, 0.01)
        torch.testing.assert_close(two.losses["pixels"], one.losses["pixels"], rtol=1e-4, atol=1e-5)
    assert_close(plain, fast)
