"""`unveil analyze`: measures against their definitions, decoders and layers against other ways to compute them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import unveil
from test_cmtmae import build as guided
from test_look import FEW, SMALL
from tiny import batch, build
from tiny_runs import write_images
from unveil.cli import main
from unveil.evaluation.analysis.attention import (
    attention_metrics,
    attention_share,
    decoder_attention,
    evenness,
    foreground_share,
    rank_correlation,
    top_overlap,
)
from unveil.evaluation.analysis.layer_features import attention_distance, layer_features, linear_cka
from unveil.modeling.image_encoder import ImageEncoder
from unveil.modeling.public_vits import ViTConfig, untrained_vit
from unveil.modeling.types import Batch, Modality
from unveil.recipes import attmask


def features(seed: int, count: int = 12, width: int = 5) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestMeasures:
    @settings(deadline=None, max_examples=20)
    @given(st.integers(0, 1000), st.integers(2, 8), st.floats(0.1, 10))
    def test_cka_is_hsic_of_linear_kernels_and_knows_no_rotation_or_scale(self, seed: int, width: int, scale: float):
        x, y = features(seed, width=width), features(seed + 1)
        centre = torch.eye(12, dtype=torch.float64) - 1 / 12
        k, h = (centre @ m @ m.T @ centre for m in (x, y))
        direct = (k * h).sum() / (k.norm() * h.norm())
        assert linear_cka(x, y) == pytest.approx(float(direct), abs=1e-9)
        turn = torch.linalg.qr(features(seed + 2, width, width)).Q
        assert linear_cka(x @ turn * scale + 3, y) == pytest.approx(float(direct), abs=1e-9)
        assert linear_cka(x, x @ turn) == pytest.approx(1, abs=1e-9)
        assert 0 <= direct <= 1 + 1e-9

    def test_the_distance_of_an_even_map_by_hand(self):
        even = torch.full((1, 2, 4, 4), 0.2)  # the rest lies on the class token
        assert attention_distance(even, (2, 2), 8).tolist() == pytest.approx([8 * (2 + math.sqrt(2)) / 4] * 2)
        own = torch.eye(4).expand(1, 1, 4, 4)
        assert attention_distance(own, (2, 2), 8).tolist() == [0]
        far = torch.eye(4).flip(1).expand(1, 1, 4, 4)  # each looks at the opposite corner
        assert attention_distance(far, (2, 2), 8).tolist() == pytest.approx([8 * math.sqrt(2)])

    def test_overlaps_by_hand(self):
        a = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
        b = torch.tensor([[0.4, 0.1, 0.2, 0.3]])
        assert top_overlap(a, b, 0.5) == 0.5
        assert top_overlap(a, a, 0.5) == 1
        assert rank_correlation(a, a) == pytest.approx(1)
        assert rank_correlation(a, -a) == pytest.approx(-1)
        assert rank_correlation(a, b) == pytest.approx(1 - 6 * 8 / (4 * 15))  # Spearman's formula: d = 0 2 0 2
        assert attention_share(a, torch.tensor([[True, False, False, True]])) == pytest.approx(0.5)
        assert attention_share(2 * a, torch.tensor([[0.5, 0, 0, 0]])) == pytest.approx(0.2)
        assert evenness(torch.full((3, 7), 0.1)) == pytest.approx(1)
        assert evenness(torch.eye(4)) == pytest.approx(0)

    def test_ties_share_their_rank(self):
        assert rank_correlation(torch.tensor([[1.0, 1, 2, 2]]), torch.tensor([[1.0, 2, 3, 4]])) == pytest.approx(
            4 / math.sqrt(4 * 5)
        )

    def test_foreground_counts_labelled_pixels_only(self):
        labels = Modality("semseg", 1, (0.0,), (1.0,), kind="categorical", num_classes=3)
        ids = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [2, 7, 7, 7], [0, 7, 7, 7]])[None, None]
        on = Batch({"semseg": ids}, torch.zeros(1, dtype=torch.int64), torch.ones(()))
        assert foreground_share(on, labels, [1, 2], 2).tolist() == [[0.75, 0, 0.5, 0]]


class TestAttention:
    def test_figures_of_an_unguided_model(self):
        model, on = build(visible=0.25, predicted=0.75), batch(4)
        with torch.no_grad():
            result = attention_metrics(model, on, model.encode_decode(on), torch.ones(4, 24))
        assert result["hidden_tokens"] == 0.75
        assert result["student_foreground"] == pytest.approx(1)
        assert result["foreground_area"] == 1
        assert "guide_evenness" not in result
        assert 0.9 < result["student_evenness"] <= 1

    def test_a_teacher_that_attends_as_the_student_agrees_with_it(self):
        model, on = guided(attmask).eval(), batch(4)
        output = model.encode_decode(on)
        student = output.observations["student"]
        same = replace(output, observations={"student": student, "teacher": student})
        figures = attention_metrics(model, on, same)
        assert figures["rank_correlation"] == pytest.approx(1)
        assert figures["top_overlap"] == 1
        assert figures["teacher_evenness"] == figures["student_evenness"]
        opposite = replace(student, attention=student.attention.amax() - student.attention)
        figures = attention_metrics(model, on, replace(output, observations={"student": student, "teacher": opposite}))
        assert figures["rank_correlation"] == pytest.approx(-1)
        assert figures["top_overlap"] == 0

    def test_even_attention_in_a_decoder_gives_the_even_figures(self):
        model, on = build(visible=0.25, predicted=0.75, decoder="self"), batch(2)
        for block in model.decoders["pixels"].blocks:  # all queries alike: softmax is even
            torch.nn.init.zeros_(block.attn.qkv.weight)
        (result,) = decoder_attention(model, on)
        keys = 1 + 6 + 18
        assert result.even == pytest.approx(2 * result.heads / keys)
        assert result.summed == pytest.approx((result.even, result.even))
        assert result.mean == pytest.approx((1 / keys, 1 / keys))
        assert result.mass_on_visible == pytest.approx(7 / keys)

    def test_mass_and_pairs_tell_the_same(self):
        """Of each masked token all attention goes to visible or to masked ones."""
        model, on = build(visible=0.25, predicted=0.75, decoder="self"), batch(2)
        (result,) = decoder_attention(model, on)
        for block in result.blocks:
            assert 7 * block.to_visible + 18 * block.to_masked == pytest.approx(result.heads, rel=1e-4)
            assert 7 * block.to_visible / result.heads == pytest.approx(block.mass_on_visible, rel=1e-4)

    def test_a_cross_decoder_has_none(self):
        assert decoder_attention(build(decoder="cross"), batch(2)) == []


class TestLayers:
    def test_own_and_foreign_encoders_give_a_layer_a_block(self):
        images = list(batch(5, size=(16, 16)).maps["rgb"])
        own = ImageEncoder(build(image_size=(16, 16)).encoder)
        config = ViTConfig(width=24, depth=3, heads=2, patch=4, hidden=48, grid=(4, 4))
        for encoder, depth in ((own, 2), (untrained_vit(config, seed=0), 3)):
            result = layer_features(encoder, images)
            assert len(result) == depth
            for layer, block in zip(result, range(1, depth + 1), strict=True):
                expected = encoder.maps(torch.stack(images), [block])[0][:, encoder.num_prefix :].mean(dim=1)
                assert torch.allclose(layer.features, expected, atol=1e-5)
                assert len(layer.distances) == 2
                assert 0 < layer.distance < 4 * math.sqrt(18)

    def test_even_attention_reaches_as_far_as_patches_lie_apart(self):
        encoder = build(image_size=(16, 16)).encoder
        for block in encoder.blocks:
            torch.nn.init.zeros_(block.attn.qkv.weight)
        places = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)) * 4
        apart = float(torch.cdist(places, places).mean())
        for layer in layer_features(ImageEncoder(encoder), list(batch(2, size=(16, 16)).maps["rgb"])):
            assert layer.distance == pytest.approx(apart, rel=1e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An MAE on scenes of its own making, and a guided run that it teaches."""
    home = tmp_path_factory.mktemp("analyze")
    words = [*FEW, *SMALL, "--data", str(write_images(home / "images", 20))]
    mae, guided = home / "mae", home / "guided"
    assert main(["pretrain", "mae", *words, "--out", str(mae)]) == 0
    more = ["--teacher", str(mae), "--stage1-epochs", "0.5"]
    assert main(["pretrain", "cmtmae", *words, *more, "--out", str(guided)]) == 0
    return mae, guided


class TestAnalyze:
    def test_the_attention_of_a_guided_run(self, runs, capsys: pytest.CaptureFixture[str]):
        guided = runs[1]
        assert main(["analyze", "attention", str(guided), "--device", "cpu"]) == 0
        out = capsys.readouterr().out
        assert "rank correlation" in out
        assert "to visible" in out
        stored: dict[str, Any] = json.loads((guided / "analysis/attention.json").read_text())
        first, last = stored["checkpoints"]
        assert first["rank_correlation"] != last["rank_correlation"]
        assert first["teacher_evenness"] == last["teacher_evenness"], "the teacher is frozen"
        assert last["hidden_tokens"] == 0.75
        assert stored["decoders"][0]["heads"] == 2
        page = unveil.report([guided]).read_text()
        assert "Attention statistics" in page
        assert "as CrossMAE reports it" in page

    def test_labels_tell_what_lies_on_things(self, runs):
        text = unveil.analyze_attention(str(runs[0]), data="scenes:count=6,size=32", device="cpu")
        last = text["checkpoints"][-1]
        assert 0 < last["foreground_area"] < 1
        assert 0 < last["student_foreground"] < 1
        only = unveil.analyze_attention(
            str(runs[0]), data="scenes:count=6,size=32", foreground=("floor",), device="cpu"
        )
        assert only["checkpoints"][-1]["foreground_area"] != last["foreground_area"]

    def test_the_layers_of_two_runs(self, runs, capsys: pytest.CaptureFixture[str]):
        mae, guided = map(str, runs)
        assert main(["analyze", "features", mae, guided, "--data", "scenes:count=6,size=32", "--device", "cpu"]) == 0
        assert "linear CKA" in capsys.readouterr().out
        stored = json.loads((runs[0] / "analysis/features-guided.json").read_text())
        assert len(stored["cka"]) == len(stored["cka"][0]) == 6
        same = unveil.analyze_features(mae, mae, data="scenes:count=6,size=32", device="cpu")
        assert [row[k] for k, row in enumerate(same["cka"])] == pytest.approx([1] * 6)
        assert "Layers compared" in unveil.report([mae]).read_text()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["attention", "nowhere"], "is not a run folder"),
            (["attnetion", "RUN"], "analyze needs attention, blocks or masks and a run, or features and two"),
            (["features", "RUN"], "analyze needs attention, blocks or masks and a run, or features and two"),
            (["attention", "RUN", "--data", "scenes:count=4", "--foreground", "flor"], "the classes are"),
        ],
    )
    def test_mistakes_are_one_error(self, runs, words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
        assert main(["analyze", *(str(runs[0]) if w == "RUN" else w for w in words)]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
