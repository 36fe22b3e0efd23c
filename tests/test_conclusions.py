"""The sentences of `unveil analyze`: a difference is told from none by its interval over samples."""

from __future__ import annotations

import math

import pytest
import torch

from unveil.evaluation.analysis.conclusions import of_attention, of_blocks, of_layers, of_masks
from unveil.evaluation.analysis.layer_features import LayerFeatures, linear_cka
from unveil.evaluation.statistics import jackknife, t_quantile


def noise(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def attention(more: float, count: int = 40) -> list[dict[str, float]]:
    """Metrics of samples whose masks hide so much more of the attention than of the patches, give or take 0.1."""
    hidden = (0.75 + more + 0.1 * noise(count)).tolist()
    return [{"hidden_attention": h, "hidden_tokens": 0.75, "student_evenness": 0.99} for h in hidden]


@pytest.mark.parametrize(
    ("more", "said"),
    [(0.1, "so they follow attention"), (0.0, "do not follow attention"), (-0.1, "so they spare what is attended to")],
)
def test_masks_and_attention(more: float, said: str):
    masks, entropy = of_attention(attention(more))
    assert said in masks
    assert "75.0 % of the patches" in masks
    assert " ± " in masks
    assert "0.990 ± 0.000 of the entropy of an even map: nearly even" in entropy


def test_what_was_not_measured_is_not_said():
    one = {"hidden_attention": 0.8, "hidden_tokens": 0.75, "student_evenness": 0.5}
    text = " ".join(of_attention([one]))
    assert "±" not in text, "one sample has no interval"
    assert "Teacher" not in text
    assert "foreground" not in text
    more = {"rank_correlation": 0.3, "top_overlap": 0.4, "student_foreground": 0.2, "foreground_area": 0.3}
    text = " ".join(of_attention([one | more, one | more]))
    assert "alike to 0.300 ± 0.000 (rank correlation): they agree; 40.0 % of" in text
    assert "a difference of -10.0 ± 0.0 points, attention avoids the foreground" in text


def test_the_block_that_lowers_the_loss_most():
    errors = torch.stack([torch.full((30,), 1.0), 0.9 + 0.01 * noise(30), torch.zeros(30), torch.zeros(30)], 1)
    errors[:, 2] = errors[:, 1] - 0.4 + 0.01 * noise(30, seed=1)
    errors[:, 3] = errors[:, 2] + 0.1 * noise(30, seed=2)
    (sentence,) = of_blocks("pixels", errors)
    assert "block 2 of 3 lowers the loss most, by 0.4" in sentence
    assert sentence.endswith("Of block 3 these samples show no gain.")
    (none,) = of_blocks("pixels", errors[:, [3, 2]] - 1)
    assert "of no block that it lowers the loss" in none


def test_the_cheaper_way_that_is_nearest():
    ways = [{"name": n, "cost": c} for n, c in (("faithful", 1.5), ("layer 1", 1.1), ("dear", 2.0), ("random", 1.0))]
    both = {
        "faithful": torch.full((20,), 40.0),
        "layer 1": 36 + noise(20).round(),
        "dear": torch.full((20,), 40.0),
        "random": torch.full((20,), 30.0),
    }
    (sentence,) = of_masks(ways, both, "faithful", "random")
    share = (float(both["layer 1"].sum()) - 600) / 200
    assert f"layer 1 comes nearest to the faithful masks: {100 * share:.1f} ± " in sentence
    assert "at 1.10 times a step with random masks in place of 1.50" in sentence
    both["layer 1"] = torch.full((20,), 31.0)
    assert len(of_masks(ways, both, "faithful", "random")) == 2, "a tenth is less than every 2nd step gives"


def test_layers_alike_and_apart():
    x = noise(60, 8)
    turned = x @ torch.linalg.qr(noise(8, 8, seed=1)).Q
    first = [LayerFeatures(f, 8.0, (1.0,)) for f in (x, x)]
    second = [LayerFeatures(f, 8.0, (1.0,)) for f in (noise(60, 8, seed=2), turned)]
    last, apart, dimensions = of_layers(("a", "b"), first, second)
    assert last.startswith("The last layers of a and b are alike to 1.000 ± 0.000")
    assert f"those at 1 differ most: {linear_cka(x, second[0].features):.3f} ± 0." in apart
    assert dimensions.count(" ± ") == 2


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = noise(12).double()
    without = [float(values[torch.arange(12) != k].mean()) for k in range(12)]
    assert jackknife(without) == pytest.approx(t_quantile(11) * float(values.std()) / math.sqrt(12))
