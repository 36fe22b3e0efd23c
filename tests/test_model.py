"""The sentence and its layers: what is hidden stays hidden, and every shortcut equals the plain formula."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tiny import batch, build
from unveil.decoder import Blend, CrossDecoder, SelfDecoder, choose_maps
from unveil.encoder import Encoder, patchify, token_grid, unpatchify
from unveil.layers import Attention, CrossAttention, initialise, sincos_positions
from unveil.losses import l1, l2, smooth_l1
from unveil.masking import Masker, Uniform
from unveil.model import mean_loss
from unveil.optim import Optim, adamw, parameter_groups, warmup_cosine
from unveil.pretrained import Pretrained
from unveil.records import Batch, Modality, take
from unveil.targets import Pixels, patch_statistics

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
    before = model.imagine(on)
    hidden = torch.ones(3, 24, dtype=torch.bool).scatter(1, before.mask.visible, False).nonzero()[:, 1].view(3, -1)
    assert hidden.shape == (3, 12)
    after = model.imagine(noisy_where(on, hidden))
    assert torch.equal(before.mask.visible, after.mask.visible)
    assert torch.equal(before.latents.final, after.latents.final)
    for depth in before.latents.layers:
        assert torch.equal(before.latents.layers[depth], after.latents.layers[depth])
    assert torch.equal(before.decoded["pixels"], after.decoded["pixels"])

    for seen in before.mask.visible[0]:  # and every visible patch matters to every prediction
        other = model.imagine(noisy_where(on, seen.expand(3, 1)))
        changed = (other.decoded["pixels"][0] - before.decoded["pixels"][0]).abs().amax(dim=-1)
        assert (changed > 0).all() or pair["hide"] == "blank"
        assert (changed > 0).any()


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_no_loss_reads_the_truth_of_what_is_not_predicted(pair: dict):
    model, on = build(visible=0.25, predicted=0.5, **pair), batch()
    mask = model.imagine(on).mask
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
    seen = model.imagine(batch(2, channels, size))
    cells = size[0] // patch * (size[1] // patch)
    assert seen.mask.visible.shape[1] == cells // 2
    assert seen.latents.final.shape == (2, 1 + (cells if pair == "blank-linear" else cells // 2), 24)
    loss = mean_loss(model(batch(2, channels, size)))
    loss.backward()
    assert loss.isfinite()
    assert model.objectives[0].head.weight.shape[0] == channels * patch**2


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_another_grid_than_built_for(pair: dict):
    """The same weights read a larger image, and find its positions."""
    model = build(image_size=(16, 16), **pair)
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
    told = str(error.value).split("such as ")[1].split(", or")[0]
    assert all(int(side) % patch == 0 for side in told.split(", "))


@pytest.mark.parametrize(("size", "patch"), [((), 16), ((1, 2, 3), 16), ((32,), 0), ((32,), -4), ((-32, 32), 16)])
def test_no_size_at_all(size: tuple[int, ...], patch: int):
    with pytest.raises(ValueError, match="got|does not divide"):
        token_grid(size, patch)


# Layers


def test_patches_are_laid_out_row_column_channel():
    image = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)
    patches = patchify(image, 4)
    naive = torch.stack(
        [image[:, :, y : y + 4, x : x + 4].permute(0, 2, 3, 1).flatten(1) for y in (0, 4) for x in (0, 4, 8)], dim=1
    )
    assert torch.equal(patches, naive)
    assert torch.equal(unpatchify(patches, 4, (2, 3)), image)


def test_positions_encode_the_column_first():
    grid, dim = (3, 5), 16
    table = sincos_positions(grid, dim).numpy()
    for row in range(3):
        for column in range(5):
            omega = 10000.0 ** -(np.arange(4) / 4)
            parts = [wave(place * omega) for place in (column, row) for wave in (np.sin, np.cos)]
            np.testing.assert_allclose(table[row * 5 + column], np.concatenate(parts), atol=1e-6)
    with pytest.raises(ValueError, match="a width that 4 divides; got 18"):
        sincos_positions(grid, 18)


def naive_attention(layer: Attention, x: Tensor) -> tuple[Tensor, Tensor]:
    """Multi-head attention head by head: the output and the whole map, B H N N."""
    dim, size = x.shape[-1], x.shape[-1] // layer.heads
    q, k, v = layer.qkv(x).split(dim, dim=-1)
    maps, outputs = [], []
    for head in range(layer.heads):
        part = slice(head * size, (head + 1) * size)
        weights = (q[..., part] @ k[..., part].mT / math.sqrt(size)).softmax(dim=-1)
        maps.append(weights)
        outputs.append(weights @ v[..., part])
    return layer.proj(torch.cat(outputs, dim=-1)), torch.stack(maps, dim=1)


def test_attention_is_the_formula_and_its_rows_are_the_map_s():
    layer, x = Attention(24, 3), torch.randn(2, 7, 24)
    output, whole = naive_attention(layer, x)
    torch.testing.assert_close(layer(x), output)
    rows = layer.rows(x, torch.tensor([4, 0]))
    torch.testing.assert_close(rows, whole[:, :, [4, 0]])


def test_cross_attention_is_the_formula():
    layer, x, context = CrossAttention(16, 2, 24), torch.randn(2, 5, 16), torch.randn(2, 7, 24)
    k, v = layer.kv(context).chunk(2, dim=-1)
    q, outputs = layer.q(x), []
    for part in (slice(0, 8), slice(8, 16)):
        weights = (q[..., part] @ k[..., part].mT / math.sqrt(8)).softmax(dim=-1)
        outputs.append(weights @ v[..., part])
    torch.testing.assert_close(layer(x, context), layer.proj(torch.cat(outputs, dim=-1)))


@pytest.mark.parametrize("layer", [lambda: Attention(24, 5), lambda: CrossAttention(24, 0, 8), lambda: Attention(0, 1)])
def test_heads_divide_the_width(layer):
    with pytest.raises(ValueError, match="heads"):
        layer()


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("depth", [1, 3])
def test_observation_is_the_class_token_s_mean_attention_in_the_last_block(final_norm: bool, depth: int):
    encoder = Encoder((Modality(),), (16, 24), 4, 24, depth, 3, final_norm)
    encoder.prefix.data.normal_()
    on = batch()
    tokens = encoder.embed(on)
    x = torch.cat([encoder.prefix.expand(3, -1, -1), tokens.values], dim=1)
    for block in encoder.blocks[:-1]:
        x = block(x)
    _, whole = naive_attention(encoder.blocks[-1].attn, encoder.blocks[-1].norm1(x))
    naive = whole.mean(dim=1)[:, 0, 1:]
    seen = encoder.observe(tokens)
    torch.testing.assert_close(seen.attention, naive / naive.sum(dim=1, keepdim=True))
    torch.testing.assert_close(seen.attention.sum(dim=1), torch.ones(3))
    torch.testing.assert_close(seen.features, encoder.norm(encoder.blocks[-1](x))[:, 1:])


@given(st.integers(1, 6), st.integers(0, 9))
def test_take_is_indexing(width: int, seed: int):
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 7, width, generator=chance, requires_grad=True)
    places = torch.randint(7, (3, 5), generator=chance)
    naive = torch.stack([row[at] for row, at in zip(x, places, strict=True)])
    assert torch.equal(take(x, places), naive)
    assert torch.equal(take(x[..., 0], places), naive[..., 0])
    weight = torch.randn(3, 5, width, generator=chance)
    (ours,) = torch.autograd.grad((take(x, places) * weight).sum(), x)
    (theirs,) = torch.autograd.grad((naive * weight).sum(), x, retain_graph=True)
    torch.testing.assert_close(ours, theirs)


# Blends


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("project", [False, True])
def test_a_blend_is_a_weighted_sum_of_maps(softmax: bool, project: bool):
    blend = Blend((0, 2, 3), outputs=4, dim=8, softmax=softmax, project=project)
    layers = {m: torch.randn(2, 5, 8) for m in range(5)}
    weight = blend.weight.softmax(dim=1) if softmax else blend.weight
    maps = [layers[m] for m in (0, 2, 3)]
    if project:
        maps = [linear(x) for linear, x in zip(blend.projections, maps, strict=True)]
    naive = [sum(w * x for w, x in zip(row, maps, strict=True)) for row in weight]
    for found, expected in zip(blend(layers), naive, strict=True):
        torch.testing.assert_close(found, expected)


def test_the_blend_s_first_weights():
    torch.manual_seed(0)
    paper = Blend(range(16), 4000, 4, init="paper").weight.detach()
    assert paper.std().item() == pytest.approx(0.25, rel=0.02)
    assert paper.abs().max() > 0.75, "a normal has tails"
    released = Blend(range(13), 12, 4, init="released").weight.detach()
    bound = math.sqrt(6 / (13 + 12))
    assert 0.9 * bound < released.abs().max() <= bound


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"depth": 12}, tuple(range(13))),
        ({"depth": 12, "use_input": False}, tuple(range(1, 13))),
        ({"depth": 12, "num_maps": 1}, (0, 12)),
        ({"depth": 12, "num_maps": 3}, (0, 4, 8, 12)),
        ({"depth": 12, "num_maps": 6}, (0, 2, 4, 6, 8, 10, 12)),
        ({"depth": 12, "maps": (3, 12), "use_input": False}, (3, 12)),
    ],
)
def test_maps_are_spread_evenly_and_end_at_the_last(arguments: dict, expected: tuple[int, ...]):
    assert choose_maps(**arguments) == expected


@given(st.integers(1, 40), st.data())
def test_any_number_of_maps(depth: int, data: st.DataObject):
    count = data.draw(st.integers(1, depth))
    maps = choose_maps(depth, count, use_input=False)
    assert len(set(maps)) == count
    assert maps[-1] == depth
    assert list(maps) == sorted(maps)
    gaps = np.diff((0, *maps))
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"num_maps": 13}, "from 1 to 12; got num_maps=13"),
        ({"num_maps": 0}, "from 1 to 12; got num_maps=0"),
        ({"maps": (0, 12)}, r"from 1 to 12; got \(0, 12\)"),
        ({"maps": (12, 13)}, r"got \(12, 13\)"),
        ({"maps": (12, 12)}, r"each once, .* got \(12, 12\)"),
        ({"maps": ()}, r"got \(\)"),
        ({"maps": (3, 6)}, "block 12 must be among the maps"),
        ({"maps": (12,), "num_maps": 1}, "give one of the two"),
    ],
)
def test_maps_that_are_none(arguments: dict, told: str):
    with pytest.raises(ValueError, match=told):
        choose_maps(12, **arguments)


@pytest.mark.parametrize("self_attention", [False, True])
def test_without_a_blend_every_block_reads_the_last_map(self_attention: bool):
    encoder = Encoder((Modality(),), (16, 24), 4, 24, 2, 2)
    decoder = CrossDecoder("rgb", encoder, 16, 3, 2, blend=None, self_attention=self_attention)
    assert decoder.reads == ()
    on = batch()
    tokens = encoder.embed(on)
    mask = Masker(Uniform(), 0.5, 0.25)(tokens, {}, on)
    latents = encoder(tokens.take(mask.visible))
    queries = decoder.asks(mask, tokens.layout)
    x = decoder.mask_token + sincos_positions((4, 6), 16)[queries.cells]
    for block in decoder.blocks:
        if self_attention:
            x = x + block.self_attn(block.norm0(x))
        x = x + block.cross_attn(block.norm1(x), latents.final)
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(decoder(latents, queries), decoder.norm(x))


def test_an_answer_depends_on_who_is_asked_not_on_the_order():
    """Queries of a cross-decoder do not see one another, so each may be asked alone."""
    model, on = build(**PAIRS["drop-cross"]), batch()
    seen = model.imagine(on)
    queries, decoder = seen.queries["pixels"], model.decoders["pixels"]
    one = replace(queries, ids=queries.ids[:, 3:4], cells=queries.cells[:, 3:4], weight=queries.weight[:, 3:4])
    torch.testing.assert_close(decoder(seen.latents, one), seen.decoded["pixels"][:, 3:4])


@pytest.mark.parametrize("make", [SelfDecoder, CrossDecoder])
def test_a_decoder_has_a_block(make):
    encoder = Encoder((Modality(),), (16, 24), 4, 24, 1, 2)
    with pytest.raises(ValueError, match="at least one block"):
        make("rgb", encoder, 16, 0, 2, blend=None)


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
        kept = valid[sample].flatten().tolist()
        assert total[sample].item() == pytest.approx(
            sum(formula(d) * v for d, v in zip(differences, kept, strict=True)), rel=1e-5
        )
        assert count[sample] == sum(kept)
    weight = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])[..., None]  # one weight for all numbers of a query
    total, count = loss(guess, truth, weight)
    assert count.tolist() == [8, 0]
    torch.testing.assert_close(total[0], loss(guess[:1, ::2], truth[:1, ::2], torch.ones(1, 1, 1))[0][0])


def test_a_sample_without_an_answer_does_not_count():
    model, on = build(), batch()
    seen = model.imagine(on)
    objective, queries = model.objectives[0], seen.queries["pixels"]
    weight = queries.weight.clone()
    weight[1] = 0
    total, count = objective(seen.decoded["pixels"], replace(queries, weight=weight), on, {})
    alone = [objective(seen.decoded["pixels"][i : i + 1], part(queries, i), on[i : i + 1], {})[0] for i in (0, 2)]
    assert count == 2
    torch.testing.assert_close(total, sum(alone))
    total, count = objective(seen.decoded["pixels"], replace(queries, weight=torch.zeros_like(weight)), on, {})
    total.backward()
    assert count == 0
    assert mean_loss({"pixels": (total, count)}) == 0
    assert objective.head.weight.grad.isfinite().all()


def part(queries, sample: int):
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


# Optimisation


def test_what_decays():
    model = build(hide="blank", decoder="cross-self", blend="linear")
    decayed, free = parameter_groups(model.named_parameters(), 0.05)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    groups = {id(p): where for where in (decayed, free) for p in where["params"]}
    assert len(groups) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        is_free = name.endswith("bias") or "norm" in name
        assert groups[id(p)] is (free if is_free else decayed), name
    decays = {name for name, p in model.named_parameters() if groups[id(p)] is decayed}
    assert {"encoder.prefix", "hide.mask_token", "decoders.pixels.mask_token", "decoders.pixels.blend.weight"} <= decays


def test_what_is_frozen_is_not_optimised():
    model = build()
    model.encoder.requires_grad_(False)
    trained = {id(p) for group in adamw(model, Optim()).param_groups for p in group["params"]}
    assert trained == {id(p) for name, p in model.named_parameters() if not name.startswith("encoder.")}


@given(st.integers(1, 500), st.integers(0, 60), st.integers(1, 20))
def test_the_schedule_is_the_papers_formula(epochs: int, warmup: int, per_epoch: int):
    """papers: lr e / w while e < w, then half a cosine to zero, per step."""
    peak, steps = 2.4e-3, epochs * per_epoch
    for step in sorted({0, 1, steps // 3, steps // 2, steps - 1, warmup * per_epoch}):
        if not 0 <= step < steps:
            continue
        e, w = step / per_epoch, warmup
        expected = peak * e / w if e < w else peak * 0.5 * (1 + math.cos(math.pi * (e - w) / (epochs - w)))
        assert peak * warmup_cosine(step, steps, w * per_epoch) == pytest.approx(expected, abs=1e-12)


def test_the_peak_rate():
    assert Optim().peak_lr == pytest.approx(2.4e-3)
    assert Optim(lr_factor=1 / 3).peak_lr == pytest.approx(8e-4)
    assert warmup_cosine(10, 10, 5) == pytest.approx(0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1e-3}, {"lr": float("nan")}, {"batch_size": 0}, {"warmup_epochs": -1.0}, {"weight_decay": -0.1},
        {"clip": 0.0}, {"lr": float("inf")},
    ],
)  # fmt: skip
def test_an_optimiser_s_numbers(wrong: dict):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name} .*; got {value}"):
        Optim(**wrong)


def test_first_weights_are_mae_s():
    layer = nn.Linear(300, 900)
    initialise(layer)
    bound = math.sqrt(6 / 1200)
    assert 0.99 * bound < layer.weight.abs().max() <= bound
    assert layer.bias.abs().max() == 0
    model = build(depth=3, hide="blank", decoder="cross", blend="linear")
    tokens = torch.cat([p.flatten() for name, p in model.named_parameters() if "token" in name or "prefix" in name])
    assert 0.01 < tokens.std() < 0.03
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert module.eps == 1e-6


def test_position_tables_are_not_saved():
    assert not [name for name in build(hide="blank").state_dict() if "table" in name]


# The pretrained encoder


@pytest.mark.parametrize("pool", ["cls", "mean", "both"])
@pytest.mark.parametrize("decoder", ["drop-self", "drop-cross"])
def test_features_of_whole_images(decoder: str, pool: str):
    model = build(**PAIRS[decoder])
    encoder, images = Pretrained(model.encoder, pool), batch().maps["rgb"]
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
