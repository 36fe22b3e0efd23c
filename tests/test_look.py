"""`unveil look`: pictures of real runs, their parts, and what is told where there is nothing to see."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from test_cmtmae import RELATIVES
from test_cmtmae import build as built
from test_modalities_runs import two
from tiny import batch, build
from tiny_runs import write_images
from unveil.cli import main
from unveil.data.modality_config import declare
from unveil.evaluation.analysis.attention import find_guided_score, hidden_tokens, masks_by_sampler
from unveil.evaluation.visualize.panels import draw_samples, map_renderers, sample_pictures
from unveil.evaluation.visualize.reconstructions import feature_distances, only_visible, reconstructions
from unveil.experiments.scenes import SceneSource
from unveil.modeling.encoder import SIZES
from unveil.modeling.masking import AttentionGuided, ByModality, DirichletBudget, IfObserved, RandomHeads, Uniform
from unveil.modeling.types import DEPTH, RGB, Batch
from unveil.recipes import cmtmae, maskfeat, multimae
from unveil.recipes.registry import build_recipe
from unveil.reporting.figures import WIDTH, Bar, Legend, Panel, PanelBlock, draw_sheet
from unveil.reporting.pictures import (
    class_colours,
    class_picture,
    colours,
    patch_values,
    scalar_colours,
    scalar_picture,
)

FEW = ("--epochs", "1", "--batch-size", "10", "--image-size", "16", "--patch", "4", "--device", "cpu", "--workers", "1")
SMALL = ("--size", "nano", "--decoder-dim", "16", "--decoder-depth", "1", "--decoder-heads", "2")
SCENES = "scenes:count=12,size=32"
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a run of MAE on them, a CMT-MAE that it teaches, and a run of two modalities."""
    home = tmp_path_factory.mktemp("look")
    data = str(write_images(home / "images", 20))
    words = [*FEW, *SMALL, "--data", data]
    assert main(["pretrain", "mae", *words, "--out", str(home / "mae")]) == 0
    guided = ["pretrain", "cmtmae", *words, "--teacher", str(home / "mae"), "--stage1-epochs", "0.5"]
    assert main([*guided, "--out", str(home / "cmtmae")]) == 0
    several = ["pretrain", two(home), "--data", SCENES, "--modalities", "rgb", "depth", *FEW]
    assert main([*several, "--out", str(home / "two")]) == 0
    return home


def grey_patches(picture: np.ndarray | None, side: int = 4) -> np.ndarray:
    assert picture is not None
    grey = (picture == 128).all(axis=-1)
    return grey.reshape(grey.shape[0] // side, side, -1, side).all(axis=(1, 3))


class TestLook:
    def test_a_guided_run(self, made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
        drawn: list[PanelBlock] = []
        monkeypatch.setattr(
            sys.modules[draw_samples.__module__], "draw_sheet", lambda *args: drawn.extend(args[1]) or draw_sheet(*args)
        )
        assert main(["look", str(made / "cmtmae"), "--samples", "1", "--device", "cpu"]) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[0] == str(made / "cmtmae" / "look.png")
        assert out[1].startswith("next: unveil ")
        assert Image.open(out[0]).width == WIDTH
        (block,) = drawn
        attention, masks = ({p.caption.partition(",")[0]: p for p in row} for row in block.rows)
        assert list(masks) == ["gumbel", "hard", "noisy", "hint", "low", "keep"]
        maps = [attention[name].picture for name in ("teacher attention", "student attention", "blend")]
        assert len({np.asarray(one).tobytes() for one in maps}) == 3
        hidden = {name: grey_patches(one.picture) for name, one in masks.items()}
        assert all(grey.sum() == 12 for grey in hidden.values()), "75% of 16 patches"
        assert (hidden["gumbel"] == grey_patches(attention["mask as trained"].picture)).all(), "the run's own way"
        shares = {name: int(one.caption.partition(", ")[2].removesuffix("%")) for name, one in masks.items()}
        assert shares["low"] == min(shares.values()) < max(shares.values()) == shares["hard"]

    def test_several_modalities(self, made: Path):
        path = unveil.look(str(made / "two"), samples=2, device="cpu", out=str(made / "two.png"))
        sheet = np.asarray(Image.open(path))
        assert path == made / "two.png"
        assert sheet.shape[1] == WIDTH
        assert sheet.shape[0] > 2 * 2 * 150

    def test_a_recipe_that_has_not_been_run(self, made: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(made)
        words = ["--data", str(made / "images"), "--teacher", str(made / "mae"), "--size", "nano", "--samples", "1"]
        assert main(["look", "--recipe", "cmtmae", *words, "--device", "cpu", "--draw", "hard"]) == 0
        assert Image.open(made / "look-cmtmae.png").width == WIDTH

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["nowhere"], "is not a run folder"),
            ([], "look needs RUN"),
            (["--recipe", "cmtmea"], "did you mean cmtmae"),
            (["RUN", "--out", "a.jpg"], "is not a .png file"),
            (["RUN", "--samples", "0"], "1 or more"),
            (["RUN", "--recipe", "mae"], "not both"),
            (["--recipe", "mae", "--visibel", "0.5"], "did you mean --visible"),
        ],
    )
    def test_mistakes_are_one_error(
        self, made: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ):
        before = sorted(made.rglob("*"))
        assert main(["look", *(str(made / "mae") if w == "RUN" else w for w in words)]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
        assert sorted(made.rglob("*")) == before


class TestTheReport:
    def test_the_watcher_leaves_what_the_report_shows(self, made: Path):
        page = unveil.report([made / "cmtmae"]).read_text()
        for word in (
            *("Guidance", "teacher", "blend", "gumbel hides", "Attention and masks"),
            *("this model predicts features, not pixels", "1 - cos of predicted and true features"),
        ):
            assert word in page
        page = unveil.report([made / "two"]).read_text()
        assert "Across modalities" in page
        assert "rgb from depth" in page
        assert "rgb" in page
        assert " m<" in page, "depth has its unit"


@pytest.mark.parametrize("width", [390, 1280])
def test_the_sections_in_a_browser(made: Path, width: int):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    unveil.analyze_features(str(made / "cmtmae"), str(made / "mae"), data=SCENES, device="cpu")
    report = unveil.report([made / "cmtmae", made / "two"], made / "both.html")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 844}, offline=True)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(report.resolve().as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert page.locator(".gone").count() == 0, "a picture is missing"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"
        titles = set(page.locator("h2").all_inner_texts())
        assert {"Across modalities", "Guidance", "Attention and masks", "Layers compared"} <= titles
        assert page.locator(".cell").count() == 36
        captions = page.locator("#guidance .strip").first.locator("figcaption").all_inner_texts()
        assert captions == ["original", "teacher", "student", "blend", "mask"]
        assert said == []
        browser.close()


@pytest.mark.parametrize("name", RELATIVES)
def test_every_relative_can_be_looked_at(name: str):
    recipe, options = RELATIVES[name]
    model, on = built(recipe, **options).eval(), batch(2)
    modality = model.encoder.modalities[0]
    views = map_renderers([modality], SceneSource(), on)
    for ((one,),) in zip(sample_pictures(model, on, ["a", "b"], [modality], views), strict=True):
        assert one.original is not None
        assert one.attention is not None
        assert one.hidden is not None
        assert (one.teacher is not None) == ("teacher" in model.teachers and name != "hpm")
        assert (one.reconstructed is not None) == (name.startswith("attmask") or name == "hpm")
        assert (one.features is not None) == (one.reconstructed is None), "one of the two is there to be seen"
        assert len(one.masks) == (0 if name in ("maskfeat", "hpm") else 6), "of masks that attention guides"


class TestMasks:
    @pytest.mark.parametrize("visible", [0.25, 0.5])
    def test_each_way_hides_its_part_of_the_map(self, visible: float):
        model, on = build(visible=visible, predicted=1 - visible), batch(4)
        attention = torch.rand(4, 24, generator=torch.Generator().manual_seed(0))
        hidden = masks_by_sampler(model, on, attention)
        assert set(hidden) == {"gumbel", "hard", "noisy", "hint", "low", "keep"}
        assert all((h.sum(dim=1) == round(24 * (1 - visible))).all() for h in hidden.values())
        on_hidden = {way: (attention * h).sum() for way, h in hidden.items()}
        assert on_hidden["hard"] == max(on_hidden.values())
        assert on_hidden["low"] == min(on_hidden.values())
        least_hidden = torch.where(hidden["hard"], attention, 2).min(dim=1).values
        assert (least_hidden >= torch.where(hidden["hard"], -1, attention).max(dim=1).values).all()

    def test_the_guided_score_is_found_inside_others(self):
        guided = AttentionGuided(lambda observations: torch.ones(1, 1))
        nested = DirichletBudget(IfObserved("student", RandomHeads("student", ByModality(guided)), Uniform()))
        assert find_guided_score(nested) is guided
        assert find_guided_score(DirichletBudget()) is None


class TestAnswers:
    def test_what_is_visible_comes_back_as_it_was(self):
        model, on = build(target="pixels"), batch(2)
        with torch.no_grad():
            output = model.encode_decode(on)
        (back,) = reconstructions(model, on, output).values()
        image = on.maps["rgb"]
        patches = back.unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3)  # B C N 4 4
        truth = image.unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3)
        for i in range(2):
            visible = output.mask.visible[i]
            assert torch.allclose(patches[i][:, visible], truth[i][:, visible], atol=1e-5)
        assert not torch.allclose(back, image, atol=1e-2)

    def test_so_it_does_in_each_of_several_modalities_that_ask_for_all(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(SIZES, "tiny", (24, 2, 2))
        options = {"size": "tiny", "patch": 4, "image_size": (16,), "decoder_dim": 16, "decoder_depth": 1}
        model = (
            build_recipe(multimae.recipe, (RGB, DEPTH), {"visible": 0.5, "decoder_heads": 2, **options})
            .stages[0]
            .build()
        )
        maps = {"rgb": torch.rand(2, 3, 16, 16), "depth": 1 + torch.rand(2, 1, 16, 16)}
        on = Batch(maps, batch(2).key, torch.ones(()))
        with torch.no_grad():
            output = model.encode_decode(on)
        for name, back in reconstructions(model, on, output).items():
            span = output.latents.tokens.layout.spans[name]
            hidden = hidden_tokens(output.mask.visible, 32)[:, span].reshape(2, 1, 4, 4)
            hidden = hidden.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3).expand_as(back)
            assert torch.allclose(back[~hidden], maps[name][~hidden], atol=1e-4)
            assert not torch.allclose(back[hidden], maps[name][hidden], atol=1e-2)

    def test_one_modality_alone_shows_all_of_it_and_nothing_else(self):
        model = build()
        on = Batch(batch(2).maps, batch(2).key, torch.ones(()))
        tokens = model.encoder.embed(on)
        layout = type(tokens.layout)({"rgb": slice(0, 24), "depth": slice(24, 48)}, tokens.layout.grid)
        both = type(tokens)(tokens.values.repeat(1, 2, 1), torch.arange(48).expand(2, -1), layout)
        mask = only_visible(["depth"], both.layout.spans)(both, {}, on)
        assert (mask.visible.sort(dim=1).values == torch.arange(24, 48)).all()
        assert (mask.predicted.sort(dim=1).values == torch.arange(24)).all()


class TestDistances:
    @pytest.mark.parametrize(("recipe", "options"), [(cmtmae, {}), (cmtmae, {"positions": "all"}), (maskfeat, {})])
    def test_they_are_those_of_what_is_asked(self, recipe, options):
        model, on = built(recipe, **options).eval(), batch(2)
        with torch.no_grad():
            output = model.encode_decode(on)
            (apart,) = feature_distances(model, on, output).values()
            objective = model.objectives[0]
            guess, truth, _ = objective.prediction_and_target(output, on)
        cells = output.queries[objective.decoder].cells
        cosine = (guess * truth).sum(-1) / guess.norm(dim=-1) / truth.norm(dim=-1)
        torch.testing.assert_close(apart.gather(1, cells), 1 - cosine, rtol=1e-4, atol=1e-5)
        is_hidden = hidden_tokens(output.mask.visible, 24)
        assert (apart.isnan() == (~is_hidden if not options else torch.zeros_like(is_hidden))).all()

    def test_none_where_there_are_pixels_to_be_seen(self):
        for options in ({"targets": "pixels"}, {"pixels": 0.1}):
            model, on = built(cmtmae, **options).eval(), batch(2)
            assert feature_distances(model, on, model.encode_decode(on)) == {}


class TestPictures:
    def test_patches_without_a_value_stay_as_they_are(self):
        image = np.full((4, 6, 3), 77, np.uint8)
        picture = patch_values(image, np.array([[0.0, np.nan, 1.0], [2.0, 0.5, np.nan]]), (0.0, 1.0))
        assert (picture[:2, 2:4] == 77).all()
        assert (picture[2:, 4:] == 77).all()
        low, middle, high = scalar_colours(np.array([0.0, 0.5, 1.0]))
        assert (picture[:2, :2] == low).all()
        assert (picture[2:, 2:4] == middle).all()
        assert (picture[:2, 4:] == high).all()
        assert (picture[2:, :2] == high).all(), "beyond the limits is at them"

    def test_measured_maps_take_the_colours_of_their_limits(self):
        depth = np.array([[1.0, 3.0], [5.0, 0.0]])
        picture = scalar_picture(depth, depth > 0, (1.0, 5.0))
        assert (picture[0, 0] == scalar_colours(np.array([0.0]))[0]).all()
        assert (picture[0, 1] == scalar_colours(np.array([0.5]))[0]).all()
        assert (picture[1, 0] == scalar_colours(np.array([1.0]))[0]).all()
        assert picture[1, 1].max() < 60, "nothing is known there"

    @pytest.mark.parametrize("ramp", [colours, scalar_colours])
    def test_colours_rise_evenly_in_lightness(self, ramp):
        linear = ramp(np.linspace(0, 1, 64)).astype(float) / 255
        linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
        steps = np.diff(np.cbrt(linear @ [0.2126, 0.7152, 0.0722]))
        assert (steps > 0).all()
        assert steps.max() < 3 * steps.min()

    def test_classes_have_colours_of_their_own(self):
        palette = class_colours(20).astype(int)
        apart = np.abs(palette[:, None] - palette[None]).sum(-1) + 1000 * np.eye(20, dtype=int)
        assert apart.min() > 20
        ids = np.array([[0, 19, 255]])
        picture = class_picture(ids, ids < 20, 20)
        assert (picture[0, :2] == palette[[0, 19]]).all()
        assert picture[0, 2].max() < 60

    def test_panels_of_one_sheet_are_aligned_and_captioned(self):
        red, blue = (np.full((8, 8, 3), c, np.uint8) for c in ((255, 0, 0), (0, 0, 255)))
        row = [Panel("a", red), Panel("b", blue), Panel("c", None, "missing")]
        keys = [Bar("depth", scalar_colours, "1", "5 m"), Legend("classes", 3, [0, 2, -1], ["x", "z", "none"])]
        sheet = draw_sheet("title", [PanelBlock("one", [row, row])], keys, ["a note " * 60])
        is_red, is_blue = ((sheet == c).all(-1) for c in ((255, 0, 0), (0, 0, 255)))
        (ys, xs), (yb, xb) = np.nonzero(is_red), np.nonzero(is_blue)
        assert np.ptp(xs) == np.ptp(xb)
        assert ys.min() == yb.min()
        assert ys.max() == yb.max()
        assert xb.min() > xs.max()
        assert is_red.sum() == is_blue.sum() == 2 * (np.ptp(xs) + 1) ** 2

    def test_a_lead_ends_where_its_rows_end(self):
        red, blue = (np.full((8, 8, 3), c, np.uint8) for c in ((255, 0, 0), (0, 0, 255)))
        sheet = draw_sheet(
            "t", [PanelBlock("one", [[Panel("a", blue)], [Panel("b", blue)]], Panel("image", red))], [], []
        )
        ends = [np.nonzero((sheet == c).all(-1))[0].max() for c in ((255, 0, 0), (0, 0, 255))]
        assert abs(ends[0] - ends[1]) <= 1


def test_depth_keeps_its_unit():
    assert declare(("depth",))[0].unit == "m"
    assert DEPTH.normalise == "robust"
