"""`unveil.Run` in a notebook: what it shows, and what it makes of images of any kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from tiny_runs import write_images
from unveil.recipes.run import Run as StoredRun

TRAIN = {"size": "nano", "image_size": 16, "patch": 4, "epochs": 0.5, "batch_size": 8, "lr": 0.01, "device": "cpu"}
MAPS = "scenes:count=8,size=32"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with images and a run of MAE on them, which is the working directory."""
    path = tmp_path_factory.mktemp("run in python")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        write_images(Path("images"), 40)
        unveil.pretrain("mae", data="images", out="mae", **TRAIN)
        yield path


@pytest.fixture(scope="module")
def guided(home: Path) -> unveil.Run:
    """A run whose masks are guided by attention."""
    return unveil.pretrain("attmask", data="images", out="guided", **TRAIN)


@pytest.fixture(scope="module")
def maps(home: Path) -> unveil.Run:
    """A run of three modalities."""
    return unveil.pretrain("multimae", data=MAPS, out="maps", **TRAIN | {"batch_size": 4})


def test_pretrain_returns_the_run(home: Path):
    again = unveil.pretrain("mae", data="images", out="mae", **TRAIN)
    assert isinstance(again, unveil.Run)
    assert isinstance(again, StoredRun)
    assert str(again) == "mae"
    assert again == Path("mae") == unveil.Run("mae").path
    assert (again / "run.json").is_file()
    text = repr(again)
    assert "mae, finished at step 2" in text
    assert text.endswith(". Optimisation early; features not measured>")


def test_a_notebook_shows_verdict_curve_and_three_reconstructions(home: Path):
    html = unveil.Run("mae")._repr_html_()
    assert "optimisation: early." in html
    assert "features: not measured." in html
    assert html.count("<svg") == 1
    assert html.count("<figure") == 1 + 2  # the curve, and the two images that are held out
    assert html.count("data:image/png;base64,") == 6
    assert "http" not in html
    assert "img{width:96px;height:auto;" in html, "small images are enlarged in both directions"


def test_a_run_still_training_or_without_images_shows_what_there_is(home: Path, tmp_path: Path):
    shutil.copytree("mae", tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "pictures")
    (tmp_path / "a" / "metrics.jsonl").write_text("")
    facts = json.loads((tmp_path / "a" / "run.json").read_text()) | {"status": "running"}
    (tmp_path / "a" / "run.json").write_text(json.dumps(facts))
    html = unveil.Run(tmp_path / "a")._repr_html_()
    assert "No training step was logged yet." in html
    assert "<img" not in html
    assert "<svg" not in html
    assert len(unveil.Run(tmp_path / "a").curves()["step"]) == 0


def test_names_with_markup_are_text(home: Path, tmp_path: Path):
    run = tmp_path / "<img src=x onerror=alert(1)>"
    shutil.copytree("mae", run)
    index = json.loads((run / "pictures" / "index.json").read_text())
    index["probes"][0]["name"] = '"><script>alert(2)</script>'
    (run / "pictures" / "index.json").write_text(json.dumps(index))
    html = unveil.Run(run)._repr_html_()
    assert "<script" not in html
    assert "onerror=alert(1)>" not in html
    assert "&lt;script&gt;alert(2)" in html


def test_curves_are_what_was_logged(home: Path):
    curves = unveil.Run("mae").curves()
    assert list(curves["step"]) == [0, 1, 2]
    logged = [json.loads(line) for line in (home / "mae" / "metrics.jsonl").read_text().splitlines()]
    validated = {line["step"]: line["heldout_loss"] for line in logged if line["kind"] == "signals"}
    assert {s: v for s, v in zip(curves["step"], curves["heldout_loss"], strict=True) if v == v} == validated
    assert list(curves["loss"])[1:] == [line["loss"] for line in logged if line["kind"] == "step"]
    assert isinstance(curves, dict) == (find_spec("pandas") is None)


def test_reconstructions_are_the_truth_where_it_is_seen(home: Path):
    result = unveil.Run("mae").reconstruct()
    assert len(result) == 2
    hidden = result.hidden["rgb"].repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand(-1, 3, -1, -1)
    assert result.hidden["rgb"].sum(dim=(1, 2)).tolist() == [12, 12]
    image, predicted = result.images["rgb"], result.predicted["rgb"]
    torch.testing.assert_close(predicted[~hidden], image[~hidden])
    assert ((predicted - image)[hidden].abs() > 1e-4).float().mean() > 0.9
    assert result.image().width == 1280
    assert result._repr_png_().startswith(b"\x89PNG")


def test_images_of_any_kind_are_read_alike(home: Path):
    path = home / "images" / "even" / "000.png"
    opened = Image.open(path)
    array = np.asarray(opened)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    given = [str(path), path, opened, array, tensor, tensor / 255]
    run = unveil.Run("mae")
    together = run.reconstruct(given, mask=torch.eye(4) > 0)
    assert together.names[0] == str(path)
    for place in range(len(given)):
        level = 1.01 / 255 if place == 5 else 1e-6  # bytes are resized to bytes
        torch.testing.assert_close(together.images["rgb"][place], together.images["rgb"][0], atol=level, rtol=0)
    for place in range(5):
        torch.testing.assert_close(together.predicted["rgb"][place], together.predicted["rgb"][0])
    for one in (path, array, tensor):
        assert torch.equal(run.reconstruct(one).images["rgb"], together.images["rgb"][:1])
    assert torch.equal(run.reconstruct(tensor[None]).images["rgb"], together.images["rgb"][:1])


def test_masks_are_shares_patterns_and_drawings(home: Path):
    run = unveil.Run("mae")
    assert run.reconstruct(mask=0.5).hidden["rgb"].sum(dim=(1, 2)).tolist() == [8, 8]
    assert run.reconstruct(mask="grid").hidden["rgb"].sum(dim=(1, 2)).tolist() == [12, 12]
    several = torch.zeros(2, 4, 4, dtype=torch.bool)
    several[0, 0], several[1, 1:] = True, True
    assert torch.equal(run.reconstruct(mask=several).hidden["rgb"], several)
    assert torch.equal(run.reconstruct(mask=several[0].numpy()).hidden["rgb"], several[:1].expand(2, -1, -1))
    for mask, message in (
        (1.5, "between 0 and 1; got 1.5"),
        ("blok", "did you mean block"),
        (several.int(), "boolean array"),
        (several[:, :2], "4 x 4 patches"),
        (torch.ones(3, 4, 4) > 0, "3 masks were given for 2 samples"),
        (torch.ones(4, 4) > 0, "sample 0 hides every patch"),
        (torch.zeros(4, 4) > 0, "hides no patch"),
        ({"depth": True}, "no input; there are rgb"),
    ):
        with pytest.raises(ValueError, match=message):
            run.reconstruct(mask=mask)


def test_several_modalities_are_given_as_a_mapping_or_in_part(maps: unveil.Run):
    run = maps
    assert "semseg" in run._repr_html_()
    assert "loss depth" in run.curves()
    rgb, depth = np.full((32, 32, 3), 80, np.uint8), np.full((32, 32), 2.0, np.float32)
    alone = run.reconstruct(rgb)
    assert {name: int(hidden.sum()) for name, hidden in alone.hidden.items()}["depth"] == 16  # it is not there
    both = run.reconstruct({"rgb": [rgb, rgb], "depth": [depth, depth]}, mask={"depth": True})
    assert both.hidden["depth"].all()
    assert not both.hidden["rgb"].any()
    assert both.images["depth"].unique().tolist() == [2.0]
    assert both.predicted["semseg"].dtype == torch.int64
    assert set(run.guidance().student) == {"rgb", "depth", "semseg"}
    with pytest.raises(ValueError, match="there is no modality 'thermal'"):
        run.reconstruct({"thermal": [depth]})
    with pytest.raises(ValueError, match="differ in length"):
        run.reconstruct({"rgb": [rgb], "depth": [depth, depth]})


def test_guidance_is_what_masks_are_drawn_from(guided: unveil.Run):
    result = guided.guidance()
    assert result.teacher == {} or set(result.teacher) == {"rgb"}
    guide, hidden = result.guide["rgb"].flatten(1), result.hidden["rgb"].flatten(1)
    for row, mask in zip(guide, hidden, strict=True):
        assert row[mask].min() >= row[~mask].max()  # the most attended are hidden
    assert {"hard", "gumbel", "hint"} <= set(result.masks)
    plain = unveil.Run("mae").guidance("images/even/000.png")
    assert plain.guide == {}
    assert plain.student["rgb"].shape == (1, 4, 4)
    torch.testing.assert_close(plain.student["rgb"].sum(), torch.tensor(1.0), atol=0.2, rtol=0)


def test_an_image_is_its_own_nearest_neighbour(home: Path):
    run = unveil.Run("mae")
    trained = run.train_images()
    path = Path("images") / trained.name(0)
    near = run.neighbours(path, k=3)
    assert near.neighbours[0][0] == trained.name(0)
    assert near.indices[0, 0] == 0
    assert near.similarity[0, 0] > 0.9999
    assert (near.similarity.diff(dim=1) <= 0).all()
    assert near.image().width == 1280
    assert run.neighbours(k=2, among="images").similarity.shape == (2, 2)
    with pytest.raises(ValueError, match="1 or more; got 0"):
        run.neighbours(k=0)
    few = run.neighbours("images", k=3, among="images", count=1)
    assert repr(few) == f"<Neighbours of {few.names[0]}: indices 1 x 3; similarity 1 x 3>"


def test_images_that_cannot_be_read_are_said_with_the_reason(home: Path):
    run = unveil.Run("mae")
    with pytest.raises(ValueError, match=r"no sample of the images given can be read; .*nowhere.png"):
        run.reconstruct("nowhere.png")
    with pytest.raises(ValueError, match=r"no sample of the images given can be read; .*\[0, 1\]"):
        run.reconstruct(np.full((16, 16, 3), 200.0, np.float32))
    with pytest.raises(ValueError, match=r"channels first, or 3 grey images; give array.transpose\(1, 2, 0\)"):
        run.reconstruct(np.zeros((3, 16, 16), np.uint8))
    with pytest.raises(ValueError, match=r"has no labels, .* give \(images, labels\)"):
        unveil.evaluate(run, data=np.zeros((8, 16, 16, 3), np.uint8), protocol="knn", baselines=False)


def test_figures_need_matplotlib(home: Path):
    result = unveil.Run("mae").reconstruct()
    if find_spec("matplotlib") is None:
        with pytest.raises(ValueError, match=r"pip install 'unveil\[figures\]'"):
            result.figure()
        return
    figure = result.figure()
    assert sum(bool(axes.images) for axes in figure.axes) == sum(
        len(row) for block in result.sheet.blocks for row in block.rows
    ) + len(result.sheet.blocks)


def test_models_are_described_in_a_line(home: Path):
    run = unveil.Run("mae")
    assert "16 x 16 pixels in patches of 4, 6 blocks of width 128" in repr(unveil.load(run, device="cpu"))
    assert len(repr(run.model()).splitlines()) == 2
    assert "25.00% of the patches visible" in repr(run.model())
