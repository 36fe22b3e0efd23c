"""Features and histograms of oriented gradients as the truth, and the losses that compare them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tiny import batch, modality
from unveil.modeling.losses import cosine, l1, l2, smooth_l1
from unveil.modeling.targets import HOG, Features
from unveil.modeling.types import Batch, Layout, Modality, Observation


def image(pixels: Tensor) -> Batch:
    return Batch({"rgb": pixels}, torch.zeros(len(pixels), dtype=torch.int64), torch.zeros(()))


class TestFeatures:
    def observed(self, values: Tensor) -> dict[str, Observation]:
        half = values.shape[1] // 2
        on = Layout({"depth": slice(0, half), "rgb": slice(half, 2 * half)}, (1, half))
        return {"teacher": Observation(on, features=values)}

    def test_they_are_those_of_the_modality_and_normalised_token_by_token(self):
        values = 3 * torch.randn(2, 8, 6) + 1
        observations = self.observed(values)
        whole, valid = Features("teacher", "rgb", 6, "none")(batch(), observations)
        assert torch.equal(whole, values[:, 4:])
        assert valid.item() == 1
        layer = Features("teacher", "rgb", 6)(batch(), observations)[0]
        torch.testing.assert_close(layer.mean(dim=-1), torch.zeros(2, 4), atol=1e-5, rtol=0)
        torch.testing.assert_close(layer.std(dim=-1, correction=0), torch.ones(2, 4))
        unit = Features("teacher", "rgb", 6, "l2")(batch(), observations)[0]
        torch.testing.assert_close(unit, values[:, 4:] / values[:, 4:].norm(dim=-1, keepdim=True))

    def test_those_of_samples_without_the_modality_do_not_count(self):
        lacking = replace(batch(2), present={"rgb": torch.tensor([True, False])})
        _, valid = Features("teacher", "rgb", 6)(lacking, self.observed(torch.randn(2, 8, 6)))
        assert valid.flatten().tolist() == [1, 0]

    def test_they_are_float32_whatever_the_teacher_runs_in(self):
        observations = self.observed(torch.randn(2, 8, 6, dtype=torch.bfloat16))
        assert Features("teacher", "rgb", 6)(batch(), observations)[0].dtype == torch.float32


def by_hand(pixels: np.ndarray, patch: int, cell: int, bins: int) -> np.ndarray:
    """The definition, pixel by pixel: C H W -> N T."""
    channels, height, width = pixels.shape
    result = np.zeros((channels, height // cell, width // cell, bins))
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1)), mode="edge")
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                p = padded[c, y : y + 3, x : x + 3]
                across = (p[:, 2] - p[:, 0]) @ (1, 2, 1)
                down = (p[2] - p[0]) @ (1, 2, 1)
                place = math.floor(math.atan2(down, across) / math.pi * bins) % bins
                result[c, y // cell, x // cell, place] += math.hypot(across, down)
    result /= np.maximum(np.linalg.norm(result, axis=-1, keepdims=True), 1e-12)
    side = patch // cell
    rows = [
        result[:, r * side : (r + 1) * side, k * side : (k + 1) * side].transpose(1, 2, 0, 3).ravel()
        for r in range(height // patch)
        for k in range(width // patch)
    ]
    return np.stack(rows)


class TestHOG:
    def test_a_patch_with_or_beside_a_hole_does_not_count_and_no_other_is_changed(self):
        pixels = torch.rand(2, 3, 32, 32)
        valid = torch.ones(2, 1, 32, 32, dtype=torch.bool)
        valid[0, 0, 8, 7] = False  # a pixel at the corner of four patches
        holes = torch.where(valid, pixels, torch.nan)
        target = HOG(modality(3), 8)
        values, counts = target(replace(image(holes), valid={"rgb": valid}), {})
        whole, _ = target(image(pixels), {})
        assert counts[0].flatten().nonzero().flatten().tolist() == [2, 3, *range(6, 16)]
        assert counts[1].all()
        torch.testing.assert_close(values[counts.expand_as(values) > 0], whole[counts.expand_as(values) > 0])
        absent = replace(image(pixels), present={"rgb": torch.tensor([True, False])})
        assert target(absent, {})[1].flatten(1).all(dim=1).tolist() == [True, False]

    def test_a_map_with_one_pixel_for_several_of_the_view_has_smaller_patches(self):
        half = Modality("rgb", 1, (0.0,), (1.0,), stride=2)
        values, _ = HOG(half, 16)(image(torch.rand(2, 1, 16, 16)), {})
        assert values.shape == (2, 4, HOG(half, 16).dim)

    @settings(max_examples=8, deadline=None)
    @given(st.integers(0, 99), st.sampled_from([(4, 4), (16, 8), (14, 7), (6, 6)]), st.integers(1, 4))
    def test_it_is_the_definition(self, seed: int, sides: tuple[int, int], channels: int):
        patch, cell = sides
        target = HOG(modality(channels), patch)
        assert target.cell == cell
        pixels = torch.rand(1, channels, patch, 2 * patch, generator=torch.Generator().manual_seed(seed))
        values, valid = target(image(pixels), {})
        assert values.shape == (1, 2, target.dim)
        assert valid.item() == 1
        truth = torch.from_numpy(by_hand(pixels[0].double().numpy(), patch, cell, 9)).float()
        torch.testing.assert_close(values[0], truth, atol=2e-3, rtol=0)

    @pytest.mark.parametrize(
        ("patch", "channels", "dim"), [(16, 3, 108), (8, 3, 27), (4, 1, 9), (14, 3, 108), (32, 2, 288), (13, 3, 27)]
    )
    def test_its_width(self, patch: int, channels: int, dim: int):
        assert HOG(modality(channels), patch).dim == dim

    def test_an_edge_points_one_way_and_its_reverse_the_same(self):
        ramp = torch.linspace(0.1, 0.9, 16)
        across = ramp.expand(1, 3, 16, 16)
        target = HOG(modality(3), 16)
        values = {
            "across": target(image(across), {})[0],
            "back": target(image(across.flip(3)), {})[0],
            "down": target(image(across.mT.contiguous()), {})[0],
        }
        bins = {name: v.view(2, 2, 3, 9) for name, v in values.items()}
        assert (bins["across"][..., 0] == 1).all()
        assert torch.equal(bins["across"], bins["back"])
        assert (bins["down"][..., 4] == 1).all()

    def test_contrast_does_not_matter_and_a_flat_patch_has_no_direction(self):
        pixels = torch.rand(2, 3, 32, 32)
        target = HOG(modality(3), 16)
        torch.testing.assert_close(
            target(image(pixels), {})[0], target(image(0.2 * pixels + 0.3), {})[0], atol=1e-2, rtol=0
        )
        flat = target(image(torch.full((1, 3, 16, 16), 0.5)), {})[0]
        assert (flat == 0).all()


class TestLosses:
    def test_cosine_looks_at_directions_alone(self):
        guess, truth = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
        valid = torch.ones(2, 5, 1)
        total, count = cosine(guess, truth, valid)
        cos = (guess * truth).sum(-1) / guess.norm(dim=-1) / truth.norm(dim=-1)
        torch.testing.assert_close(total, (2 - 2 * cos).sum(dim=1))
        assert count.tolist() == [5, 5]
        torch.testing.assert_close(cosine(3 * guess, 0.1 * truth, valid)[0], total)
        assert cosine(guess, 2 * guess, valid)[0].abs().max() < 1e-5
        torch.testing.assert_close(cosine(guess, -guess, valid)[0], torch.full((2,), 20.0))

    @pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
    def test_smooth_l1_is_squared_below_beta(self, beta: float):
        guess, truth = 3 * torch.randn(2, 5, 7), torch.zeros(2, 5, 7)
        error = guess.abs()
        total, _ = smooth_l1(guess, truth, torch.ones(2, 5, 1), beta)
        expected = torch.where(error < beta, error**2 / (2 * beta), error - beta / 2)
        torch.testing.assert_close(total, expected.sum(dim=(1, 2)))
        torch.testing.assert_close(
            smooth_l1(guess, truth, torch.ones(2, 5, 1), 0.0), l1(guess, truth, torch.ones(2, 5, 1))
        )

    @pytest.mark.parametrize("loss", [l2, l1, smooth_l1, cosine], ids=lambda f: f.__name__)
    def test_what_has_no_truth_does_not_count(self, loss):
        guess, truth = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
        valid = torch.ones(2, 5, 1)
        valid[0, 2:] = 0
        total, count = loss(guess, truth, valid)
        short, fewer = loss(guess[:1, :2], truth[:1, :2], valid[:1, :2])
        torch.testing.assert_close((total[0], count[0]), (short[0], fewer[0]))
