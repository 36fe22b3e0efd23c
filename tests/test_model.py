"""The masked model and its layers: what is hidden stays hidden, and every shortcut equals the plain formula."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tiny import batch, build
from unveil.modeling.encoder import Encoder, token_grid
from unveil.modeling.image_encoder import ImageEncoder
from unveil.modeling.layers import Positions, sincos_positions
from unveil.modeling.losses import l1, l2, smooth_l1
from unveil.modeling.masked_model import mean_loss
from unveil.modeling.patches import patchify, unpatchify
from unveil.modeling.targets import Pixels, patch_statistics
from unveil.modeling.types import Batch, Modality
from unveil.recipes.mae import recipe as mae
from unveil.recipes.recipe import Hyperparameters

PAIRS = {  # every legal pair of hide and decoder
    "drop-self": {"hide": "drop", "decoder": "self"},
    "drop-self-blend": {"hide": "drop", "decoder": "self", "blend": "linear"},
    "drop-cross": {"hide": "drop", "decoder": "cross", "blend": "linear"},
    "drop-cross-last": {"hide": "drop", "decoder": "cross"},
    "drop-cross-self": {"hide": "drop", "decoder": "cross-self", "blend": "linear"},
    "blank-linear": {"hide": "blank", "decoder": "linear"},
    "blank-self": {"hide": "blank", "decoder": "self"},
    "blank-cross": {"hide": "blank", "decoder": "cross", "blend": "linear"},
    "blank-cross-self": {"hide": "blank", "decoder": "cross-self"},
}


@dataclass(frozen=True)
class Given:
    """A score that was given, for a mask that stays."""

    values: Tensor

    def __call__(self, tokens, observations, batch) -> Tensor:
        return self.values


def noisy_where(on: Batch, ids: Tensor, patch: int = 4) -> Batch:
    """The same images with noise in the patches of these ids."""
    image = on.maps["rgb"]
    patches = patchify(image, patch)
    chosen = torch.zeros(patches.shape[:2], dtype=torch.bool).scatter(1, ids, True)[..., None]
    patches = torch.where(chosen, torch.rand_like(patches), patches)
    grid = (image.shape[-2] // patch, image.shape[-1] // patch)
    return replace(on, maps={"rgb": unpatchify(patches, patch, grid)})


# What is hidden stays hidden


@pytest.mark.parametrize("masking", ["uniform", "block", "inverse-block", "grid"])
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_noise_in_hidden_pixels_changes_no_latent(pair: dict, masking: str):
    model, on = build(masking=masking, visible=0.5, predicted=0.25, **pair).eval(), batch()
    before = model.encode_decode(on)
    hidden = torch.ones(3, 24, dtype=torch.bool).scatter(1, before.mask.visible, False).nonzero()[:, 1].view(3, -1)
    assert hidden.shape == (3, 12)
    after = model.encode_decode(noisy_where(on, hidden))
    assert torch.equal(before.mask.visible, after.mask.visible)
    assert torch.equal(before.latents.final, after.latents.final)
    for depth in before.latents.layers:
        assert torch.equal(before.latents.layers[depth], after.latents.layers[depth])
    assert torch.equal(before.decoded["pixels"], after.decoded["pixels"])

    for visible in before.mask.visible[0]:  # and every visible patch matters to every prediction
        other = model.encode_decode(noisy_where(on, visible.expand(3, 1)))
        changed = (other.decoded["pixels"][0] - before.decoded["pixels"][0]).abs().amax(dim=-1)
        assert (changed > 0).all()


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_no_loss_reads_the_truth_of_what_is_not_predicted(pair: dict):
    model, on = build(visible=0.25, predicted=0.5, **pair), batch()
    mask = model.encode_decode(on).mask
    known = torch.zeros(3, 24, dtype=torch.bool).scatter(1, torch.cat([mask.visible, mask.predicted], 1), True)
    skipped = (~known).nonzero()[:, 1].view(3, -1)
    assert torch.equal(mean_loss(model(on)), mean_loss(model(noisy_where(on, skipped))))
    assert mean_loss(model(on)) != mean_loss(model(noisy_where(on, mask.predicted)))


# Any channels, sizes and patches


@pytest.mark.parametrize("pair", ["drop-self", "drop-cross", "blank-linear"])
@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize(("size", "patch"), [((32, 48), 4), ((32, 48), 8), ((28, 42), 14), ((32, 48), 16)])
def test_any_channels_and_sizes(channels: int, size: tuple[int, int], patch: int, pair: str):
    model = build(channels=channels, image_size=size, patch=patch, visible=0.5, **PAIRS[pair])
    output = model.encode_decode(batch(2, channels, size))
    cells = size[0] // patch * (size[1] // patch)
    assert output.mask.visible.shape[1] == cells // 2
    assert output.latents.final.shape == (2, 1 + (cells if pair == "blank-linear" else cells // 2), 24)
    loss = mean_loss(model(batch(2, channels, size)))
    loss.backward()
    assert loss.isfinite()
    assert model.objectives[0].head.weight.shape[0] == channels * patch**2


def test_positions_of_another_grid_are_those_of_the_training_interpolated():
    """As MAE and MultiMAE do: bicubic, without aligned corners; the other way is a named choice of every recipe."""
    table = Positions((4, 4), 8)
    maps = table.table.T.reshape(1, 8, 4, 4)
    expected = torch.nn.functional.interpolate(maps, size=(6, 8), mode="bicubic", align_corners=False)
    torch.testing.assert_close(table((6, 8)), expected.permute(0, 2, 3, 1).reshape(48, 8))
    torch.testing.assert_close(Positions((4, 4), 8, "extrapolate")((6, 8)), sincos_positions((6, 8), 8))
    for how in ("interpolate", "extrapolate"):
        recipe = mae(train=Hyperparameters(size="nano", patch=8, image_size=(32,), resize_positions=how))
        assert recipe.encoder.positions.resize == how


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_another_grid_than_built_for(pair: dict):
    """The same weights read a larger image; with waves that go on they are those of a model of that size."""
    model = build(image_size=(16, 16), **pair)
    assert mean_loss(model(batch(size=(24, 32)))).isfinite()
    for module in model.modules():
        if isinstance(module, Positions):
            module.resize = "extrapolate"
    other = build(image_size=(24, 32), **pair)
    other.load_state_dict(model.state_dict())
    on = batch(size=(24, 32))
    torch.testing.assert_close(mean_loss(model(on)), mean_loss(other(on)))


@pytest.mark.parametrize(
    ("size", "patch", "near"),
    [((225,), 16, "224, 240"), ((32, 50), 16, "32, 48, 64"), ((10, 10), 16, "16"), ((160, 220), 14, "154, 168, 210")],
)
def test_a_size_that_the_patch_does_not_divide(size: tuple[int, ...], patch: int, near: str):
    with pytest.raises(ValueError, match=rf"a patch of {patch} does not divide .* such as {near}") as error:
        token_grid(size, patch)
    text = str(error.value).split("such as ")[1].split(", or")[0]
    assert all(int(side) % patch == 0 for side in text.split(", "))


@pytest.mark.parametrize(("size", "patch"), [((), 16), ((1, 2, 3), 16), ((32,), 0), ((32,), -4), ((-32, 32), 16)])
def test_no_size_at_all(size: tuple[int, ...], patch: int):
    with pytest.raises(ValueError, match=r"got|does not divide"):
        token_grid(size, patch)


# Truth and loss


@pytest.mark.parametrize("channels", [1, 3])
def test_norm_pix_is_numpy_s(channels: int):
    modality = Modality("rgb", channels, (0.4,) * channels, (0.3,) * channels)
    on = batch(channels=channels)
    values, valid = Pixels(modality, 4, norm_pix=True)(on, {})
    image = (on.maps["rgb"].double().numpy() - 0.4) / 0.3
    rows = [image[:, :, y : y + 4, x : x + 4] for y in range(0, 16, 4) for x in range(0, 24, 4)]
    patches = np.stack([row.transpose(0, 2, 3, 1).reshape(3, -1) for row in rows], axis=1)
    mean, var = patches.mean(axis=2, keepdims=True), patches.var(axis=2, ddof=1, keepdims=True)
    np.testing.assert_allclose(values.numpy(), (patches - mean) / np.sqrt(var + 1e-6), atol=2e-4)
    assert (valid == 1).all()
    plain, _ = Pixels(modality, 4, norm_pix=False)(on, {})
    np.testing.assert_allclose(plain.numpy(), patches, atol=1e-5)
    found_mean, found_std = patch_statistics(plain)
    torch.testing.assert_close(values * found_std + found_mean, plain)  # as a viewer turns them back


def test_a_flat_patch_has_a_finite_truth_and_gradient():
    model, on = build(), batch()
    flat = replace(on, maps={"rgb": torch.full((3, 3, 16, 24), 0.5)})
    loss = mean_loss(model(flat))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("loss", "formula"),
    [
        (l2, lambda d: d**2),
        (l1, abs),
        (smooth_l1, lambda d: 0.5 * d**2 if abs(d) < 1 else abs(d) - 0.5),
    ],
)
def test_losses_are_their_formulas_where_the_truth_is_valid(loss, formula):
    guess, truth = 2 * torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    valid = (torch.rand(2, 3, 4) > 0.3).float()
    total, count = loss(guess, truth, valid)
    for sample in range(2):
        differences = (guess - truth)[sample].flatten().tolist()
        valid_values = valid[sample].flatten().tolist()
        assert total[sample].item() == pytest.approx(
            sum(formula(d) * v for d, v in zip(differences, valid_values, strict=True)), rel=1e-5
        )
        assert count[sample] == sum(valid_values)
    weight = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])[..., None]  # one weight for all numbers of a query
    total, count = loss(guess, truth, weight)
    assert count.tolist() == [8, 0]
    torch.testing.assert_close(total[0], loss(guess[:1, ::2], truth[:1, ::2], torch.ones(1, 1, 1))[0][0])


def test_a_sample_without_an_answer_does_not_count():
    model, on = build(), batch()
    output = model.encode_decode(on)
    objective, queries = model.objectives[0], output.queries["pixels"]
    weight = queries.weight.clone()
    weight[1] = 0
    total, count = objective(replace(output, queries={"pixels": replace(queries, weight=weight)}), on)
    alone = [
        objective(
            replace(
                output,
                queries={"pixels": sample_of(queries, i)},
                decoded={"pixels": output.decoded["pixels"][i : i + 1]},
            ),
            on[i : i + 1],
        )[0]
        for i in (0, 2)
    ]
    assert count == 2
    torch.testing.assert_close(total, sum(alone))
    nothing = replace(queries, weight=torch.zeros_like(weight))
    total, count = objective(replace(output, queries={"pixels": nothing}), on)
    total.backward()
    assert count == 0
    assert mean_loss({"pixels": (total, count)}) == 0
    assert objective.head.weight.grad.isfinite().all()


def sample_of(queries, sample: int):
    some = slice(sample, sample + 1)
    return replace(queries, ids=queries.ids[some], cells=queries.cells[some], weight=queries.weight[some])


@pytest.mark.parametrize("pair", ["drop-self", "drop-cross", "blank-linear"])
def test_micro_batches_add_up_to_the_whole_batch(pair: str):
    model, on = build(predicted=0.5, **PAIRS[pair]), batch(6)
    mean_loss(model(on)).backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for start, size in ((0, 1), (1, 3), (4, 2)):
        (mean_loss(model(on[start : start + size])) * size / 6).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, whole[name], rtol=1e-4, atol=1e-6)


# The pretrained encoder


@pytest.mark.parametrize("pool", ["cls", "mean", "both"])
@pytest.mark.parametrize("decoder", ["drop-self", "drop-cross"])
def test_features_of_whole_images(decoder: str, pool: str):
    model = build(**PAIRS[decoder])
    encoder, images = ImageEncoder(model.encoder, pool), batch().maps["rgb"]
    features = encoder(images)
    assert features.shape == (3, 48 if pool == "both" else 24)
    assert torch.equal(features, encoder(images))
    torch.testing.assert_close(features[1:2], encoder(images[1:2]))
    torch.testing.assert_close(encoder((images * 255).round().byte()), features, atol=0.05, rtol=0)
    head = nn.Linear(features.shape[1], 2)
    head(features).sum().backward()  # a head may be trained on what it gives
    assert head.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"images are B x 3 x H x W .* got \(3, 16, 24\)"):
        encoder(images[0])
    with pytest.raises(ValueError, match="a patch of 4 does not divide"):
        encoder(images[..., :23])


def test_modalities_of_a_batch_need_one_size():
    encoder = Encoder((Modality(), Modality("depth", 1, (0.0,), (1.0,))), (16,), 4, 24, 1, 2)
    maps = {"rgb": torch.rand(2, 3, 16, 16), "depth": torch.rand(2, 1, 16, 16)}
    on = Batch(maps, torch.arange(2), torch.zeros(()))
    tokens = encoder.embed(on)
    assert tokens.values.shape == (2, 32, 24)
    assert tokens.layout.spans == {"rgb": slice(0, 16), "depth": slice(16, 32)}
    assert torch.equal(tokens.cells[0], torch.arange(16).repeat(2))
    with pytest.raises(ValueError, match="need one size"):
        encoder.embed(replace(on, maps={**maps, "depth": torch.rand(2, 1, 8, 8)}))
    with pytest.raises(ValueError, match="2 channels, so it needs 2 means"):
        Modality("x", 2)
