"""Every recipe's step on CUDA tensors without values: devices do not mix, and the host does not wait for the device.

They need a torch that is built for CUDA, and no card.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fake_cuda import devices, fake_cuda, why_not
from step_cases import CASES, MAIN, small
from unveil.data.augment import Mix, mix_images, soft_labels
from unveil.evaluation.analysis.attention import collect_attention_maps
from unveil.evaluation.dense.heads import HeadName
from unveil.evaluation.dense.model import DenseModel
from unveil.evaluation.finetuning import Classifier, StochasticDepth
from unveil.evaluation.protocols.knn import knn_votes
from unveil.evaluation.protocols.linear import LARS
from unveil.evaluation.types import FeatureSplit
from unveil.evaluation.visualize.reconstructions import feature_distances, reconstructions
from unveil.modeling.image_encoder import ImageEncoder
from unveil.modeling.types import RGB
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


@pytest.mark.parametrize("name", [*MAIN, "milan", "hpm", "multimae, lacking maps", "multimae-attention, errors"])
def test_pictures_and_features_mix_no_devices(name: str) -> None:
    """What `look`, validation and evaluation compute of a model before they read it."""
    case = CASES[name]
    recipe = case.build()
    with small(), fake_cuda(), torch.no_grad():
        model = recipe.stages[-1].build().to("cuda").eval()
        batch = case.batch().on("cuda")
        output = model.encode_decode(batch, model.masker.predict_all())
        attention = collect_attention_maps(model, batch, output)
        shown = [*reconstructions(model, batch, output).values(), *feature_distances(model, batch, output).values()]
        assert {x.device.type for x in (attention.student, *shown)} == {"cuda"}
        encoder = ImageEncoder(model.encoder, "both").eval()
        images = batch.maps["rgb"]
        assert encoder.features(images, "both").device.type == "cuda"
        assert [x.device.type for x in encoder.maps(images, [1, 2])] == ["cuda", "cuda"]


@pytest.mark.parametrize("head", ["linear", "convnext", "upernet", "dpt"])
def test_heads_for_every_pixel_mix_no_devices(head: HeadName) -> None:
    with small(depth=4), fake_cuda() as device:
        encoder = ImageEncoder(CASES["mae"].build(depth=4).encoder).to("cuda")
        model = DenseModel(encoder, (RGB,), head, 5, frozen=False, seed=0, dropout=0.1).train()
        batch = CASES["mae"].batch().on("cuda")
        model.predictions(batch)  # moves what is constant
        device.waits.clear()
        losses = [weight * x.square().mean() for weight, x in model.predictions(batch)]
        torch.stack(losses).sum().backward()
        assert all(p.grad is not None for p in model.head.parameters())
        assert device.waits == []


def test_probes_mix_no_devices() -> None:
    with fake_cuda():
        train, test = torch.randn(64, 16, device="cuda"), torch.randn(8, 16, device="cuda")
        labels = torch.zeros(64, dtype=torch.int64, device="cuda")
        split = FeatureSplit(train, labels, test, labels[:8], 4)
        assert [votes.shape for votes in knn_votes(split, [1, 5])] == [(8, 4), (8, 4)]
        weight = torch.nn.Parameter(torch.randn(4, 16, device="cuda"))
        torch.nn.functional.cross_entropy(train @ weight.T, labels).backward()
        LARS([weight], lr=0.1).step()


def test_fine_tuning_mixes_no_devices() -> None:
    with small(), fake_cuda() as device:
        encoder = ImageEncoder(CASES["mae"].build().encoder).to("cuda")
        model = Classifier(encoder, 4, "mean", torch.Generator().manual_seed(0)).train()
        depth, labels = StochasticDepth(encoder.branches(), 0.1), torch.zeros(6, dtype=torch.int64, device="cuda")
        mix, batch = Mix(0.7, (2, 9, 4, 12)), CASES["mae"].batch().on("cuda")
        for _ in range(2):
            device.waits.clear()  # what is constant is moved by the first step
            # RandAugment and erasing ask the device which images were drawn, so they are not computed here
            images = mix_images(batch.maps["rgb"], mix)
            depth.draw(batch.rng)
            scores = model(images)
            torch.nn.functional.cross_entropy(scores, soft_labels(labels, 4, 0.1, mix)).backward()
        assert scores.device.type == "cuda"
        assert device.waits == []
