"""The compiled step of every recipe: one graph without a break for each path of a step, and none compiled twice.

What `TORCH_LOGS=graph_breaks,recompiles` would log raises an error or is counted here. The compiler behind the trace
is left out: what it makes of a graph is not of interest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from step_cases import CASES, MAIN, small
from tiny_runs import Place
from unveil.training.compiled import even_size
from unveil.training.trainer import Settings, Trainer

CPU = Settings("cpu", "float32", micro_batch=4, compile=True, save_minutes=10, val_every=1.0)
EVERY_SECOND = "multimae-attention, heads of a step, every second"
ALWAYS = (*MAIN, EVERY_SECOND)
NAMES = [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in CASES]


@contextmanager
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile traces alone, and a recompilation is an error. All that was traced had no graph break."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: compile(model, **{**options, "backend": "eager"}))
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    assert not counters["graph_break"]


def num_graphs() -> int:
    return int(counters["stats"].get("unique_graphs", 0))


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_compiled_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches, the progress of masks and momenta, stages, budgets that adapt: nothing of it is another shape."""
    case = CASES[name]
    recipe = case.build(depth=1)
    paths = 2 if name == EVERY_SECOND else 1
    with small(depth=1), traced(monkeypatch):
        for number, stage in enumerate(recipe.stages, start=1):
            trainer = Trainer(stage.build(), recipe.optim, CPU)
            for step in range(4):
                trainer.model.before_step(step, step / 4)
                update = trainer.update(case.batch(step, progress=step / 4), 0.01)
                assert not update.skipped
                assert num_graphs() == paths * (number - 1) + min(paths, step + 1)


def test_a_last_smaller_micro_batch_is_a_graph_of_its_own_and_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [even_size(96, 64), even_size(100, 64), even_size(64, 64), even_size(6, 4), even_size(97, 64)] == [
        *(48, 50, 64, 3, 64),
    ]
    recipe = CASES["mae"].build(depth=1)
    with small(depth=1), traced(monkeypatch):
        trainer = Trainer(recipe.stages[0].build(), recipe.optim, CPU)
        for step in range(3):
            trainer.update(CASES["mae"].batch(step, count=7), 0.01)
            assert num_graphs() == 2  # of four samples, and of three


def test_more_models_than_dynamo_keeps_of_one_function_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the trials before training, a study or a notebook compile them in one process."""
    recipe = CASES["simmim"].build(depth=1)
    with small(depth=1), traced(monkeypatch), torch._dynamo.config.patch(recompile_limit=2):
        for number in range(1, 5):
            Trainer(recipe.stages[0].build(), recipe.optim, CPU).update(CASES["simmim"].batch(), 0.01)
            assert num_graphs() == number


def test_a_run_compiles_each_stage_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command: measuring, two stages of three epochs, validation, the last batch of an epoch."""
    words = ("--stages", "2", "--epochs", "6", "--batch-size", "10", "--warmup-epochs", "1", "--image-size", "16")
    graphs: list[int] = []
    update = Trainer.update

    def counted(self: Trainer, *args: Any) -> Any:
        made = update(self, *args)
        graphs.append(num_graphs())
        return made

    monkeypatch.setattr(Trainer, "update", counted)
    with traced(monkeypatch):
        assert place.pretrain(*words, "--compile", "on", "--precision", "float32") == 0
    in_training = graphs[-18:]
    assert in_training == [graphs[-18]] * 9 + [graphs[-18] + 1] * 9
    assert json.loads((place.run / "run.json").read_text())["settings"]["compile"]
