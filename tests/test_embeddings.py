"""Maps of images by their features, near-duplicates and outliers, and what patches are to the encoder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from report_fakes import fake_images, fake_run
from tiny import batch, build_of
from unveil.evaluation.visualize.embeddings import embed_map
from unveil.evaluation.visualize.patch_features import (
    attention_by_head,
    compressed,
    head_sheet,
    patch_images,
    principal_colours,
)
from unveil.recipes import mae
from unveil.reporting.page import write_report


def test_copies_and_strangers_are_named():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(20, 3, 16, 16, generator=generator)
    features = torch.randn(20, 8, generator=generator) * 0.1 + torch.eye(8)[torch.arange(20) % 2]
    images[11], features[11] = images[4] * 0.95, features[4] + 0.001
    features[7] = 5 * torch.eye(8)[5]
    embedded = embed_map(features, images)
    assert [pair[:2] for pair in embedded.duplicates] == [(4, 11)]
    assert embedded.duplicates[0][2] > 0.99
    assert embedded.outliers[0][0] == 7
    assert embedded.outliers[0][1] > 1.5
    assert embedded.method == "PCA", "of few images"
    assert embedded.points.shape == (20, 2)
    assert (embedded.points.min(), embedded.points.max()) == (0, 1)


def test_two_groups_are_apart_on_the_map():
    pytest.importorskip("sklearn")
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(120) % 2
    features = torch.eye(6)[group] + 0.05 * torch.randn(120, 6, generator=generator)
    embedded = embed_map(features, torch.rand(120, 3, 8, 8, generator=generator))
    assert embedded.method in ("t-SNE", "UMAP")
    centres = [embedded.points[group.numpy() == k].mean(axis=0) for k in (0, 1)]
    spread = max(embedded.points[group.numpy() == k].std() for k in (0, 1))
    assert np.linalg.norm(centres[0] - centres[1]) > 1.5 * spread


def test_three_images_with_one_number_each_are_enough():
    embedded = embed_map(torch.tensor([[1.0], [2.0], [4.0]]), torch.rand(3, 1, 4, 4))
    assert np.isfinite(embedded.points).all()


def test_codes_keep_the_cosines_of_patches():
    patches = torch.randn(2, 12, 40, generator=torch.Generator().manual_seed(0))
    patches[1, 3] = patches[0, 5] * 1.0
    patches = patches @ torch.diag(torch.linspace(1, 0, 40) ** 4)  # a few directions carry all
    codes = compressed(patches).astype(int)
    centred = torch.nn.functional.normalize(patches.flatten(0, 1) - patches.flatten(0, 1).mean(0), dim=1)
    true = (centred @ centred.T).reshape(2, 12, 2, 12).numpy()
    stored = np.einsum("ank,bmk->anbm", codes, codes) / 127**2
    assert np.abs(stored - true).max() < 0.05
    assert codes.dtype == np.int64
    assert stored[0, 5, 1, 3] > 0.98
    colours = principal_colours(patches)
    assert (colours[0, 5] == colours[1, 3]).all(), "one feature, one colour, in whatever image"


def test_the_patches_of_an_encoder():
    model, on = build_of(mae).eval(), batch(2)
    originals = [np.zeros((16, 24, 3), np.uint8)] * 2
    one, other = patch_images(model.encoder, on, on, "rgb", ["a", "b"], originals)
    assert one.codes.shape == (24, 16)
    assert one.principal.shape == (16, 24, 3)
    assert one.heads.shape == (2 * 66 - 2, 2 * 66 - 2, 3), "two blocks of two heads"
    assert (one.codes != other.codes).any()
    (typical,) = patch_images(model.encoder, on[:1], on[:1], "rgb", ["a"], originals[:1])
    assert not typical.codes.any(), "of the features nothing is left that only the place has made"
    attention = attention_by_head(model.encoder, on, "rgb")
    assert attention.shape == (2, 2, 2, 24)
    peaked = np.full((1, 2, 24), 0.01)
    peaked[0, 1, 0] = 1
    sheet = head_sheet(peaked, (4, 6)).astype(int)
    assert sheet[2, 68].sum() > sheet[2, 2].sum() > sheet[60, 120].sum()


@pytest.mark.parametrize(
    "wrong", [{}, {"images": 5}, {"columns": 0}, {"duplicates": [[0, 99, 1]]}, {"outliers": [[0]]}]
)
def test_a_map_that_is_damaged_leaves_the_page_whole(tmp_path, wrong):
    run = fake_run(tmp_path / "a", epochs=2, picture_epochs=1, images=fake_images(1, (8, 8)), grid=(2, 2))
    file = run / "pictures" / "map.json"
    assert "12 images, placed by t-SNE" in write_report(run).read_text()
    file.write_text(json.dumps({**json.loads(file.read_text()), **wrong} if wrong else wrong))
    assert ("placed by t-SNE" in write_report(run).read_text()) == ("duplicates" in wrong or "outliers" in wrong)
    (run / "pictures" / "patches.json").write_text('[{"grid": [2, 2], "width": 4, "codes": "AAAA"}, 5]')
    assert "click a patch" not in write_report(run).read_text()
