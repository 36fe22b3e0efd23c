"""`unveil analyze blocks`: parts that sum to the prediction, and what is told and drawn of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from test_look import FEW, SMALL
from tiny import batch, build
from tiny_runs import write_images
from unveil.cli import main
from unveil.evaluation.analysis.decoder_blocks import decoder_contributions, decompose, detail
from unveil.modeling.decoder import CrossDecoder
from unveil.modeling.masked_model import MaskedModel, Objective
from unveil.modeling.masking import Masker, Uniform

ALL = {"visible": 0.25, "predicted": 0.25}


@pytest.mark.parametrize(
    "options", [{"decoder": "cross", "blend": "linear"}, {"decoder": "cross"}, {"decoder": "self"}]
)
@torch.no_grad()
def test_parts_sum_to_the_prediction(options: dict[str, str]):
    model, on = build(**ALL, **options), batch(3)
    output, contributions = decompose(model, on)
    objective = next(iter(model.objectives))
    whole = objective.head(output.decoded["pixels"])
    assert whole.shape[1] == 18  # of 24 patches: every hidden one
    assert torch.allclose(contributions["pixels"].added.sum(dim=0), whole, atol=1e-5)


@torch.no_grad()
def test_shares_sum_to_one_and_the_last_error_is_the_models():
    model, on = build(**ALL, decoder="cross", blend="linear"), batch(3)
    (result,) = decoder_contributions(model, on)
    output = model.encode_decode(on, Masker(Uniform(), 0.25, 0.75))
    total, count = next(iter(model.objectives))(output, on)
    assert sum(block.share for block in result.parts) == pytest.approx(1, abs=1e-5)
    assert result.parts[-1].error == pytest.approx(float(total / count), rel=1e-5)
    assert len({block.error for block in result.parts}) == 3


@torch.no_grad()
def test_a_block_that_does_nothing_adds_nothing():
    model, on = build(**ALL, decoder="cross"), batch(2)
    block = model.decoders["pixels"].blocks[0]
    for layer in (block.cross_attn.proj, block.mlp[2]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    (result,) = decoder_contributions(model, on)
    assert result.parts[1].share == 0
    assert result.parts[1].error == result.parts[0].error
    assert abs(result.parts[2].share) > 0.01


@torch.no_grad()
def test_what_a_block_reads_is_weighed_by_the_size_of_the_maps():
    model, on = build(**ALL, decoder="cross", blend="linear"), batch(2)
    blend = model.decoders["pixels"].blend
    blend.weight.copy_(torch.tensor([[0.0, -2.0, 0.0], [1.0, 1.0, 1.0]]))
    (result,) = decoder_contributions(model, on)
    assert result.maps == (0, 1, 2)
    assert result.reads[0] == (0, 1, 0)
    sizes = torch.stack([model.encode_decode(on).latents.layers[m].square().mean().sqrt() for m in (0, 1, 2)])
    assert result.reads[1] == pytest.approx((sizes / sizes.sum()).tolist(), rel=1e-4)
    (without,) = decoder_contributions(build(**ALL, decoder="cross"), on)
    assert without.reads == ()


def test_detail_by_hand():
    objective: Objective = next(iter(build().objectives))  # type: ignore[assignment]
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    board = ((rows + columns) % 2 * 2.0 - 1)[..., None].expand(4, 4, 3).reshape(1, 48)
    assert detail(board, objective) == pytest.approx(2)  # neighbours differ by 2, the variance is 1
    assert detail(torch.ones(1, 48), objective) == 0
    ramp = rows.float()[..., None].expand(4, 4, 3).reshape(1, 48)
    assert detail(ramp, objective) == pytest.approx(0.5 / 2.5)  # steps of 1 down and 0 across, a variance of 1.25
    noise = torch.randn(500, 48, generator=torch.Generator().manual_seed(0))
    assert detail(noise, objective) == pytest.approx(16 / 15, abs=0.02)


def test_on_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = str(tmp_path / "run")
    words = [*FEW, *SMALL, "--data", str(write_images(tmp_path / "images", 20))]
    assert main(["pretrain", "crossmae", *words, "--decoder-depth", "2", "--out", run]) == 0
    assert main(["analyze", "blocks", run, "--samples", "1", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "mask tokens" in out
    assert "in the input of each block" in out
    stored = json.loads((tmp_path / "run/analysis/blocks.json").read_text())
    assert len(stored["decoders"][0]["parts"]) == 3
    assert len(stored["decoders"][0]["reads"]) == 2
    drawn = np.asarray(Image.open(tmp_path / "run/analysis/blocks.png"))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 100
    page = unveil.report([run]).read_text()
    assert "Decoder, block by block" in page
    assert "how much each encoder map" in page.lower()
    assert main(["analyze", "blocks", run, "--samples", "0"]) == 2


def test_a_model_without_such_a_decoder_is_told_apart():
    model = build(**ALL, decoder="cross")
    decoder = model.decoders["pixels"]
    assert isinstance(decoder, CrossDecoder)
    other = MaskedModel(model.encoder, model.masker, {"other": decoder}, [])
    assert decoder_contributions(other, batch(2)) == []
