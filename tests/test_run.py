"""`unveil.Run`: a stored run, opened; what it held out, however its data are written; how often its files are read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from test_old_runs import OLD
from tiny_runs import write_images
from unveil import Run
from unveil.data.sources import open_source
from unveil.modeling.encoder import SIZES

pytestmark = pytest.mark.filterwarnings("ignore:unveil:FutureWarning")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stored runs of release 0.1 beside the images that they were trained on, in the working directory."""
    monkeypatch.setitem(SIZES, "nano", (8, 2, 2))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    write_images(tmp_path / "images")
    return tmp_path


def names(source: Any) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def test_an_opened_run_says_what_it_is(runs: Path):
    run = Run.open("mae")
    told = repr(run)
    for part in ("mae", "finished", "step 12", "3 epochs", "40 images of images (2 held out)", "size=nano", "patch=8"):
        assert part in told
    assert run.config.options["image_size"] == (32,)
    assert [m.name for m in run.modalities] == ["rgb"]
    assert [d.name for d in Run.open("multimae").declared] == ["rgb", "depth", "semseg"]


def test_models_and_encoders_have_the_weights_of_their_epoch(runs: Path):
    run = Run.open("mae")
    assert [(w.step, w.epoch) for w in run.checkpoints()][-1] == (12, 3.0)
    epochs = {w.epoch for w in run.checkpoints()}
    assert {1.0, 2.0, 3.0} <= epochs
    newest, first, begun = run.model(), run.model(epoch=1), run.model(trained=False)
    for model, encoder in ((newest, run.encoder()), (first, run.encoder(epoch=1)), (begun, run.encoder(trained=False))):
        for name, tensor in encoder.encoder.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[f"encoder.{name}"])
    heads = [m.encoder.blocks[0].mlp[0].weight for m in (newest, first, begun)]
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[1], heads[2])
    with pytest.raises(ValueError, match=r"no weights of epoch 1\.5: there are epochs 1, 2, 3"):
        run.model(epoch=1.5)
    with pytest.raises(ValueError, match="those of stage 1, not 0"):
        Run.open("cmtmae").model(stage=0)
    assert Run.open("cmtmae").model(stage=0, trained=False)


def test_train_images_and_held_out_ones_are_all(runs: Path):
    run = Run.open("mae")
    train, held_out = names(run.train_images()), names(run.held_out())
    assert len(train) == 38
    assert len(held_out) == 2
    assert sorted(train + held_out) == names(open_source("images"))
