"""Every recipe's step on CUDA tensors without values: devices do not mix, and the host does not wait for the device.

They need a torch that is built for CUDA, and no card.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from fake_cuda import devices, fake_cuda, why_not
from step_cases import CASES, small
from unveil.training.trainer import Settings, Trainer

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
CUDA = Settings("cuda", "bf16", micro_batch=4, compile=False, save_minutes=10, val_every=1.0)


@pytest.mark.parametrize("name", CASES)
def test_a_step_mixes_no_devices_and_never_waits(name: str) -> None:
    case = CASES[name]
    recipe = case.build()
    before = None
    with small(), fake_cuda() as device:
        for stage in recipe.stages:
            trainer = Trainer(stage.build(), replace(recipe.optim, clip=1.0), CUDA)
            if before is not None:
                trainer.adopt(before.optimizer.state)
            assert devices(trainer.model) == {"cuda"}
            trainer.update(case.batch(), 0.01)  # moves what is constant
            device.waits.clear()
            for step in range(2):
                trainer.model.before_step(step, step / 4)
                update = trainer.update(case.batch(step), 0.01)
                assert {x.device.type for x in (update.norm, update.skipped, *update.losses.values())} == {"cuda"}
            assert device.waits == []
            assert all(p.grad is None for p in trainer.parameters)
            before = trainer
