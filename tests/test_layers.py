"""Layers, blends and decoders: every shortcut equals the plain formula."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tiny import batch, build
from unveil.modeling.decoder import Blend, CrossDecoder, SelfDecoder, choose_maps
from unveil.modeling.encoder import Encoder
from unveil.modeling.layers import (
    SHORT,
    Attention,
    Block,
    CrossAttention,
    attend,
    sincos_positions,
    writes_out_attention,
)
from unveil.modeling.masking import Masker, Uniform
from unveil.modeling.patches import patchify, unpatchify
from unveil.modeling.types import FeatureSpec, Modality, take


def test_patches_are_laid_out_row_column_channel():
    image = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)
    patches = patchify(image, 4)
    naive = torch.stack(
        [image[:, :, y : y + 4, x : x + 4].permute(0, 2, 3, 1).flatten(1) for y in (0, 4) for x in (0, 4, 8)], dim=1
    )
    assert torch.equal(patches, naive)
    assert torch.equal(unpatchify(patches, 4, (2, 3)), image)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 9, 9), (2, 3, 4, 17)])
def test_written_out_attention_is_the_fused_one(shape, masked):
    """Outputs and gradients in bf16 are as near to those in float64 as the fused kernel's are."""
    b, h, q, n = shape
    exact = [torch.randn(b, h, rows, 16, dtype=torch.float64) for rows in (q, n, n)]
    keys = torch.arange(n)[None] < torch.tensor([[n], [n - 3]]) if masked else None
    mask = None if keys is None else keys[:, None, None]

    def run(function, dtype):
        given = [x.to(dtype, copy=True).requires_grad_() for x in exact]
        out = function(*given)
        out.square().sum().backward()
        return [y.double() for y in (out.detach(), *(x.grad for x in given))]

    true = run(lambda *x: F.scaled_dot_product_attention(*x, attn_mask=mask), torch.float64)
    fused = run(lambda *x: F.scaled_dot_product_attention(*x, attn_mask=mask), torch.bfloat16)
    ours = run(lambda *x: attend(*x, keys), torch.bfloat16)
    for name, y, theirs, own in zip(("out", "q", "k", "v"), true, fused, ours, strict=True):
        error, noise = (own - y).norm() / y.norm(), (theirs - y).norm() / y.norm()
        assert error < 2 * noise + 2e-3, name


def test_attention_is_written_out_where_that_is_faster():
    """For few tokens in bf16 on a CPU, trained or evaluated; not in float32 or where the map is large."""
    q = torch.zeros(1, 1, 4, 8, dtype=torch.bfloat16, requires_grad=True)
    assert writes_out_attention(q, q)
    assert not writes_out_attention(q.float(), q.float())
    assert not writes_out_attention(q.detach(), q.detach())  # a frozen teacher
    assert not writes_out_attention(q, q.expand(1, 1, 4, 8).repeat(1, 1, SHORT, 1))
    elsewhere = torch.empty(1, 1, 4, 8, dtype=torch.bfloat16, device="meta", requires_grad=True)
    assert not writes_out_attention(elsewhere, elsewhere)
    with torch.inference_mode():
        assert writes_out_attention(q, q)
        assert not writes_out_attention(q.float(), q.float())


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
        rows = slice(head * size, (head + 1) * size)
        weights = (q[..., rows] @ k[..., rows].mT / math.sqrt(size)).softmax(dim=-1)
        maps.append(weights)
        outputs.append(weights @ v[..., rows])
    return layer.proj(torch.cat(outputs, dim=-1)), torch.stack(maps, dim=1)


def test_attention_is_the_formula_and_its_rows_are_the_map_s():
    layer, x = Attention(24, 3), torch.randn(2, 7, 24)
    output, whole = naive_attention(layer, x)
    torch.testing.assert_close(layer(x), output)
    rows = layer.rows(x, x[:, [4, 0]])
    torch.testing.assert_close(rows, whole[:, :, [4, 0]])


def test_cross_attention_is_the_formula():
    layer, x, context = CrossAttention(16, 2, 24), torch.randn(2, 5, 16), torch.randn(2, 7, 24)
    k, v = layer.kv(context).chunk(2, dim=-1)
    q, outputs = layer.q(x), []
    for rows in (slice(0, 8), slice(8, 16)):
        weights = (q[..., rows] @ k[..., rows].mT / math.sqrt(8)).softmax(dim=-1)
        outputs.append(weights @ v[..., rows])
    torch.testing.assert_close(layer(x, context), layer.proj(torch.cat(outputs, dim=-1)))


@pytest.mark.parametrize("layer", [lambda: Attention(24, 5), lambda: CrossAttention(24, 0, 8), lambda: Attention(0, 1)])
def test_heads_divide_the_width(layer):
    with pytest.raises(ValueError, match="heads"):
        layer()


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("depth", [1, 3])
def test_observation_is_attention_of_the_last_block_and_its_features(final_norm: bool, depth: int):
    encoder = Encoder((Modality(),), (16, 24), 4, 24, depth, 3, final_norm)
    encoder.prefix.data.normal_()
    on = batch()
    tokens = encoder.embed(on)
    x = torch.cat([encoder.prefix.expand(3, -1, -1), tokens.values], dim=1)
    for block in encoder.blocks[:-1]:
        x = block(x)
    _, whole = naive_attention(encoder.blocks[-1].attn, encoder.blocks[-1].norm1(x))
    rows = {"cls": whole[:, :, 0], "all": whole[:, :, 1:].mean(dim=2)}
    for query, row in rows.items():
        for features in (0, 1):
            observation = encoder.observe(tokens, FeatureSpec(query, features=features))
            torch.testing.assert_close(observation.attention, row[:, :, 1:])
    assert encoder.observe(tokens, FeatureSpec(features=0)).features is None
    torch.testing.assert_close(observation.features, encoder.norm(encoder.blocks[-1](x))[:, 1:])


def test_an_earlier_block_is_read_and_the_later_ones_are_not_run(monkeypatch: pytest.MonkeyPatch):
    encoder = Encoder((Modality(),), (16, 24), 4, 24, 4, 3)
    tokens = encoder.embed(batch())
    x = torch.cat([encoder.prefix.expand(3, -1, -1), tokens.values], dim=1)
    x = encoder.blocks[0](x)
    layer = encoder.blocks[1]
    q, k, _ = layer.attn.qkv(layer.norm1(x)).unflatten(-1, (3, 3, -1)).unbind(2)  # each B N H d
    mean = torch.einsum("bhd,bnhd->bhn", q[:, 1:].mean(dim=1), k) / q.shape[-1] ** 0.5
    run = []
    for index, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda *_, index=index: run.append(index))
    observation = encoder.observe(tokens, FeatureSpec("mean", layer=1, features=0))
    torch.testing.assert_close(observation.attention, mean.softmax(dim=-1)[:, :, 1:])
    assert run == [0]
    deep = encoder.observe(tokens, FeatureSpec(attention=None, features=2))
    assert deep.attention is None
    maps = encoder(tokens, keep=(3, 4)).layers
    normed = [F.layer_norm(maps[m][:, 1:], (24,), eps=1e-6) for m in (3, 4)]
    torch.testing.assert_close(deep.features, sum(normed) / 2)
    for wrong in (FeatureSpec(layer=4), FeatureSpec(features=5), FeatureSpec(projected=True)):
        with pytest.raises(ValueError, match="encoder"):
            encoder.observe(tokens, wrong)


@given(st.integers(1, 6), st.integers(0, 9))
def test_take_is_indexing(width: int, seed: int):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 7, width, generator=rng, requires_grad=True)
    places = torch.randint(7, (3, 5), generator=rng)
    naive = torch.stack([row[at] for row, at in zip(x, places, strict=True)])
    assert torch.equal(take(x, places), naive)
    assert torch.equal(take(x[..., 0], places), naive[..., 0])
    weight = torch.randn(3, 5, width, generator=rng)
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
    for result, expected in zip(blend(layers), naive, strict=True):
        torch.testing.assert_close(result, expected)


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
    ("arguments", "message"),
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
def test_maps_that_are_none(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
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
    queries = decoder.make_queries(mask, tokens.layout)
    x = decoder.mask_token + sincos_positions((4, 6), 16)[queries.cells]
    for block in decoder.blocks:
        if self_attention:
            x = x + block.self_attn(block.norm0(x))
        x = x + block.cross_attn(block.norm1(x), latents.final)
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(decoder(latents, queries), decoder.norm(x))


def test_an_answer_depends_on_who_is_asked_not_on_the_order():
    """Queries of a cross-decoder do not see one another, so each may be asked alone."""
    model, on = build(decoder="cross", blend="linear"), batch()
    output = model.encode_decode(on)
    queries, decoder = output.queries["pixels"], model.decoders["pixels"]
    one = replace(queries, ids=queries.ids[:, 3:4], cells=queries.cells[:, 3:4], weight=queries.weight[:, 3:4])
    torch.testing.assert_close(decoder(output.latents, one), output.decoded["pixels"][:, 3:4])


@pytest.mark.parametrize("make", [SelfDecoder, CrossDecoder])
def test_a_decoder_has_a_block(make):
    encoder = Encoder((Modality(),), (16, 24), 4, 24, 1, 2)
    with pytest.raises(ValueError, match="at least one block"):
        make("rgb", encoder, 16, 0, 2, blend=None)


@pytest.mark.parametrize("masked", [False, True])
def test_a_block_answers_the_last_tokens_as_it_answers_all(masked):
    block = Block(24, 3)
    x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    keys = (torch.arange(9) % 4 > 0).expand(2, 9) if masked else None
    whole, last = block(x, keys)[:, -4:], block(x, keys, last=4)
    assert torch.allclose(whole, last, atol=1e-6)
    parameters = [x, *block.parameters()]
    for one, other in zip(
        torch.autograd.grad(whole.square().sum(), parameters), torch.autograd.grad(last.square().sum(), parameters),
        strict=True,
    ):  # fmt: skip
        assert torch.allclose(one, other, atol=1e-5)
