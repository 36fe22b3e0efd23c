"""MAE's published linear probe, `linear --preset mae`, against a plain computation of its own."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from measuring import on_images
from test_finetune import tiny
from tiny_runs import write_images
from unveil.cli.flags import flags_of, parse
from unveil.data.sources import open_source
from unveil.data.transforms import View, draw_cuts
from unveil.evaluation import fit
from unveil.evaluation.datasets import ImageSplit
from unveil.evaluation.protocols import linear
from unveil.evaluation.protocols.linear import Linear, _train, _Views
from unveil.evaluation.registry import choose, find_protocol
from unveil.evaluation.results import ResultCache
from unveil.evaluation.types import Context
from unveil.modeling.image_encoder import ImageEncoder
from unveil.modeling.rng import SampleRng, sample_keys

SEED, EPOCHS, BATCH = 3, 4, 8
PRESET = {"preset": "mae", "probe_epochs": EPOCHS}


@pytest.fixture(autouse=True)
def float32():
    with patch.object(torch.cpu, "get_capabilities", dict):  # whatever the processor has in hardware
        yield


@pytest.fixture
def split(tmp_path: Path) -> ImageSplit:
    return ImageSplit.of(open_source(write_images(tmp_path / "images", 33)), seed=SEED)


def crop(image: torch.Tensor, key: torch.Tensor, side: int) -> torch.Tensor:
    """One draw of area (0.08 to 1) and ratio (3/4 to 4/3), cut to the image, then a flip half of the time."""
    rng = SampleRng(key[None])
    top, left, area, ratio = rng.uniform("view crop", 22)[0, :4].double().tolist()
    height, width = image.shape[-2:]
    area = (0.08 + 0.92 * area) * height * width
    ratio = math.exp(math.log(3 / 4) + ratio * (math.log(4 / 3) - math.log(3 / 4)))
    h, w = min(height, round(math.sqrt(area / ratio))), min(width, round(math.sqrt(area * ratio)))
    i, j = math.floor(top * (height - h + 1)), math.floor(left * (width - w + 1))
    view = F.interpolate(image[None, :, i : i + h, j : j + w], (side, side), mode="bicubic", antialias=True)[0]
    return (view.flip(-1) if rng.uniform("view flips", 3)[0, 0] < 0.5 else view).float() / 255


def class_tokens(encoder: ImageEncoder, images: torch.Tensor) -> torch.Tensor:
    (tokens,) = encoder.maps(images, [encoder.depth])
    return F.layer_norm(tokens[:, 0], (encoder.dim,), eps=1e-6)


def plain_probe(encoder: ImageEncoder, split: ImageSplit, lr: float) -> nn.Sequential:
    """A BatchNorm without affine and a linear layer, learned as MAE's appendix A.1 and its public code say."""
    head = nn.Linear(encoder.dim, 2)
    nn.init.trunc_normal_(head.weight, std=0.01, generator=torch.Generator().manual_seed(SEED))
    nn.init.zeros_(head.bias)
    probe = nn.Sequential(nn.BatchNorm1d(encoder.dim, affine=False, eps=1e-6), head).train()
    labels, count = split.train_labels, len(split.train)
    speed = [torch.zeros_like(p) for p in head.parameters()]
    for epoch in range(EPOCHS):
        keys = sample_keys(SEED, epoch, range(count))
        order = SampleRng(keys).fold("order").key.argsort()
        for step in range(count // BATCH):
            rows = order[step * BATCH :][:BATCH]
            views = torch.stack([crop(split.train.image(row), keys[row], 8) for row in rows.tolist()])
            F.cross_entropy(probe(class_tokens(encoder, views)), labels[rows]).backward()
            now, warm = epoch + step / (count // BATCH), 0.2 * EPOCHS  # of 90 epochs 10
            share = now / warm if now < warm else 0.5 + 0.5 * math.cos(math.pi * (now - warm) / (EPOCHS - warm))
            for p, v in zip(head.parameters(), speed, strict=True):
                assert p.grad is not None
                trust = 0.001 * p.norm() / p.grad.norm() if p.ndim > 1 else 1.0
                v.mul_(0.9).add_(p.grad * trust)
                p.data -= lr * BATCH / 256 * share * v
                p.grad = None
    return probe.eval()


@torch.no_grad()
def scores(probe: nn.Sequential, encoder: ImageEncoder, split: ImageSplit) -> torch.Tensor:
    images = torch.stack([split.test.image(k) for k in range(len(split.test))])  # 32 pixels: nothing is cut
    views = F.interpolate(images, (8, 8), mode="bicubic", antialias=True).float() / 255
    return probe(class_tokens(encoder, views))


def test_the_preset_is_the_published_probe(split: ImageSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "BATCH_SIZE", BATCH)
    encoder, lr = tiny(1), 300.0  # so that the weights move far in a dozen updates
    ours = _train(_Views(encoder, split, EPOCHS, Context(SEED, micro_batch=5)), (lr,))
    probe = plain_probe(copy.deepcopy(encoder), split, lr)
    norm, head = probe
    torch.testing.assert_close(ours.weights[0], head.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.biases[0], head.bias, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((ours.mean, ours.var), (norm.running_mean, norm.running_var), rtol=1e-5, atol=1e-6)
    first = nn.init.trunc_normal_(torch.empty(2, 16), std=0.01, generator=torch.Generator().manual_seed(SEED))
    assert (ours.weights[0] - first).norm() > 0.02 * first.norm()

    score = Linear((lr,), "mae", EPOCHS).run(encoder, split, Context(SEED, micro_batch=5))
    right = (scores(probe, encoder, split).argmax(1) == torch.tensor(split.test.numbers)).double().mean()
    assert score.metrics["accuracy"] == pytest.approx(right.item())
    assert (score.settings["batch_size"], score.settings["lr"]) == (BATCH, pytest.approx(lr * BATCH / 256))


def test_its_settings_are_the_published_ones(split: ImageSplit) -> None:
    whole = Linear(preset="mae")
    assert (whole.lrs, whole.probe_epochs, linear.BATCH_SIZE, linear.CROP_SCALE) == ((0.1,), 90, 16384, (0.08, 1.0))
    inputs = _Views(tiny(), split, 90, Context())
    assert inputs.warmup_share * 90 == 10
    assert (inputs.batch_size, inputs.peak(0.1)) == (len(split.train), 0.1 * len(split.train) / 256)


def test_it_reads_the_class_token_unless_a_pool_is_chosen(split: ImageSplit) -> None:
    def pool(**context: object) -> tuple[str, float]:
        (result,) = on_images(tiny(), ["linear"], split.train.source, options=PRESET, pool="mean", **context)
        assert result.settings["pool"] == result.pool
        return result.pool, result.metrics["accuracy"]

    assert pool(pool_is_chosen=False)[0] == "cls"
    assert pool()[0] == "mean"


def test_rates_are_chosen_on_training_images_and_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 40)
    (images / "odd" / "001.png").write_bytes(b"no image")
    notes: list[str] = []
    results = on_images(
        *(tiny(), ["linear", "knn"], open_source(images)), options={**PRESET, "lrs": (0.1, 30.0)}, note=notes.append
    )
    settings = results[0].settings
    assert len(settings["lrs_tried"]) == 2
    assert settings["unreadable_names"] == ["odd/001.png"]
    assert settings["train_images"] + settings["test_images"] == 39
    assert "chosen among 2 on a tenth" in results[0].card
    assert "smaller than the published batch of 16384" in results[0].card


def test_an_interrupted_probe_goes_on_with_the_same_bits(
    split: ImageSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "SAVE_EVERY", 0)
    monkeypatch.setattr(linear, "BATCH_SIZE", BATCH)
    done: list[int] = []

    def trained(cache: ResultCache, stop: float = math.inf) -> dict[str, torch.Tensor]:
        def tell(what: str, now: int, total: int) -> None:
            done.append(now)
            if now > stop * total:
                raise KeyboardInterrupt

        probe = _train(_Views(tiny(1), split, EPOCHS, Context(SEED, cache=cache, progress=tell)), (100.0,))
        return {name: value.clone() for name, value in probe.state_dict().items()}

    whole = trained(ResultCache())
    cache = ResultCache(tmp_path / "unfinished")
    with pytest.raises(KeyboardInterrupt):
        trained(cache, stop=0.6)
    before, done[:] = max(done), []
    resumed = trained(cache)
    assert min(done) > before / 3
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_a_preset_goes_to_the_protocols_that_list_it() -> None:
    for word, presets in (("mae", ("mae", "auto")), ("small", ("cached", "small"))):
        chosen = choose(["linear", "finetune"], {"preset": word})
        assert tuple(getattr(protocol, "preset") for protocol in chosen.values()) == presets  # noqa: B009
        flags = [flag for name in ("finetune", "linear") for flag in flags_of(find_protocol(name))]
        assert parse(["--preset", word], flags)[1] == {"preset": word}
    with pytest.raises(ValueError, match="preset of linear is one of cached, mae; preset of finetune is one of auto"):
        choose(["linear", "finetune"], {"preset": "nonesuch"})


def test_a_box_that_exceeds_the_image_is_cut_to_it() -> None:
    keys = sample_keys(0, 0, range(200))
    sizes = [(10, 60)] * 200  # no box of half the area and these ratios fits
    clipped = draw_cuts(sizes, View((8, 8), (0.5, 1.0), oversize="clip"), keys)
    assert all(cut.height == 10 and cut.width < 60 for cut in clipped)
    widths = np.array([cut.width for cut in clipped])
    assert len(np.unique(widths)) > 5
    inside = [(30, 30)] * 200
    small = {"crop_scale": (0.1, 0.2)}  # every first box fits
    assert draw_cuts(inside, View((8, 8), **small, oversize="clip"), keys) == draw_cuts(
        inside, View((8, 8), **small), keys
    )
