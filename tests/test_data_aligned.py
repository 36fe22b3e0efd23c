"""Aligned folders: one sample of several modalities, one view for all of them, what is missing, what is broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unveil.commands.inspect import inspect
from unveil.data.aligned_folders import aligned_modalities, open_images, open_samples
from unveil.data.inspection import inspect_samples
from unveil.data.loader import Loader, TooManyBroken
from unveil.data.modality_config import DEPTH, RGB, SEMSEG, Declared, declare
from unveil.data.sources import Subset
from unveil.data.splits import hold_out
from unveil.data.transforms import (
    CenterView,
    Sample,
    View,
    draw_cuts,
    in_one_frame,
    resize_known,
    resize_nearest,
    view_of,
)
from unveil.modeling.rng import sample_keys
from unveil.modeling.types import Modality
from unveil.runs.run_config import Check

LABELS = replace(SEMSEG, modality=replace(SEMSEG.modality, num_classes=4), measured=False, void=11)
VIEW = View((16, 16))


def write(root: Path, count: int = 10, size: tuple[int, int] = (24, 32), without: dict[str, set[int]] | None = None):
    """A folder of rgb, depth (mm, some 0) and semseg (0..3, some 11) of so many samples in two scenes."""
    rng = np.random.default_rng(0)
    lacks = without or {}
    for i in range(count):
        maps = {
            "rgb": rng.integers(0, 256, (*size, 3), np.uint8),
            "depth": rng.integers(0, 4000, size, np.uint16) * (rng.random(size) > 0.2).astype(np.uint16),
            "semseg": np.where(rng.random(size) > 0.1, rng.integers(0, 4, size), 11).astype(np.uint8),
        }
        for name, array in maps.items():
            place = root / name / f"scene{i % 2}" / f"{i:03}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            if i not in lacks.get(name, ()):
                Image.fromarray(array).save(place)
    return root


def batch_of(root: Path, declared: tuple[Declared, ...] = (RGB, DEPTH, LABELS), batch_size: int = 10, **kwargs):
    source = open_samples(root, declared)
    loader = Loader(source, VIEW, batch_size, seed=0, modality=[d.modality for d in declared], **kwargs)
    return next(loader.batches(0)), loader


class TestSamples:
    def test_files_of_one_stem_are_one_sample(self, tmp_path: Path):
        source = open_samples(write(tmp_path), (RGB, DEPTH, LABELS))
        assert [source.name(i) for i in (0, 1, 9)] == ["scene0/000", "scene0/002", "scene1/009"]
        assert source.classes == ["scene0", "scene1"]
        sample = source.sample(0)
        depth = np.array(Image.open(tmp_path / "depth/scene0/000.png"))
        assert torch.allclose(sample.maps["depth"][0], torch.from_numpy(depth / 1000).float())
        assert torch.equal(sample.valid["depth"][0], torch.from_numpy(depth > 0))
        assert torch.equal(source.image(0), sample.maps["rgb"])

    def test_a_suffix_tells_modalities_in_one_folder_apart(self, tmp_path: Path):
        for kind, mode in (("color", "RGB"), ("depth", "I;16")):
            Image.new(mode, (8, 8)).save(tmp_path / f"frame-1.{kind}.png")
        declared = tuple(replace(d, files=".", suffix=f".{k}.png") for d, k in ((RGB, "color"), (DEPTH, "depth")))
        assert open_samples(tmp_path, declared).stems == ["frame-1"]

    def test_a_mask_of_validity(self, tmp_path: Path):
        write(tmp_path, 1)
        mask = np.zeros((24, 32), np.uint8)
        mask[:5] = 255
        (tmp_path / "sure/scene0").mkdir(parents=True)
        Image.fromarray(mask).save(tmp_path / "sure/scene0/000.png")
        sample = open_samples(tmp_path, (replace(RGB, validity="sure"),)).sample(0)
        assert sample.valid["rgb"].sum() == 5 * 32
        assert not sample.maps["rgb"][:, 5:].any()

    def test_misaligned_folders_are_told(self, tmp_path: Path):
        write(tmp_path, 2)
        for file in (tmp_path / "depth").rglob("*.png"):
            file.rename(file.with_name(f"d{file.name}"))
        with pytest.raises(ValueError, match=r"is not aligned: no file of 'depth' .*d000"):
            open_samples(tmp_path, (RGB, DEPTH))

    @pytest.mark.parametrize(
        ("spoil", "error", "message"),
        [
            (lambda root: (root / "depth").rename(root / "dept"), FileNotFoundError, "did you mean dept"),
            (lambda root: [f.unlink() for f in (root / "depth").rglob("*.png")], ValueError, "has no files in"),
            (
                lambda root: Image.new("L", (4, 4)).save(root / "depth/scene0/000.tif"),
                ValueError,
                "two files of one stem",
            ),
        ],
    )
    def test_folders_that_cannot_be(self, tmp_path: Path, spoil, error, message):
        spoil(write(tmp_path, 2))
        with pytest.raises(error, match=message):
            open_samples(tmp_path, (RGB, DEPTH))

    def test_scenes_have_what_is_rendered_and_no_more(self):
        source = open_samples("scenes:count=2,size=32", (RGB, DEPTH, SEMSEG))
        assert {n: tuple(m.shape) for n, m in source.sample(0).maps.items()} == {
            "rgb": (3, 32, 32),
            "depth": (1, 32, 32),
            "semseg": (1, 32, 32),
        }
        assert source.declared[2].modality.num_classes == len(source.declared[2].classes)
        with pytest.raises(ValueError, match="scenes have no 'thermal'"):
            open_samples("scenes", (Declared(Modality("thermal", 1, (0.0,), (1.0,))),))

    def test_an_encoder_of_images_reads_the_first_input(self, tmp_path: Path):
        root = write(tmp_path)
        source = open_images(root, 3)
        assert (source.channels, source.classes) == (3, ["scene0", "scene1"])
        assert torch.equal(source.image(3), open_images(root / "rgb", 3).image(3)), "the order is that of names"
        assert source.name(3) == "scene0/006"
        assert open_images(root, 3, (DEPTH, RGB)).channels == 1
        output = replace(DEPTH, modality=replace(DEPTH.modality, role="output"))
        assert open_images(root, 3, (output, RGB)).channels == 3, "what is only predicted is not read"
        own = replace(DEPTH, modality=replace(DEPTH.modality, name="range"), files="depth")
        assert open_images(root, 1, (own,)).channels == 1
        assert open_images(root / "rgb", 3, (RGB,)).classes == ["scene0", "scene1"], "a plain folder is a plain source"

    @pytest.mark.parametrize("view", [CenterView((20, 20)), View((20, 20))])
    def test_depth_read_as_an_image_is_resized_by_its_known_pixels(self, tmp_path: Path, view):
        depth = np.full((150, 120), 2500, np.uint16)
        depth[np.random.default_rng(0).random(depth.shape) < 0.3] = 0
        (tmp_path / "depth").mkdir()
        for name in ("a", "b"):
            Image.fromarray(depth).save(tmp_path / "depth" / f"{name}.png")
        source = Subset(open_images(tmp_path, 1, (DEPTH,)), [1, 0])
        (batch, _), *_ = Loader(source, view, 2).in_order()
        image = batch.maps["rgb"]
        assert image.shape == (2, 1, 20, 20)
        assert (image[image > 0] - 2.5).abs().max() < 1e-4, "no unknown pixel is blended in"
        assert (image > 0).float().mean() > 0.5

    def test_a_sample_without_the_image_is_unreadable(self, tmp_path: Path):
        source = open_samples(write(tmp_path, without={"depth": {4}}), (DEPTH, RGB))
        loader = Loader(source, CenterView((16, 16)), 10, max_broken=None)
        assert sum(len(batch) for batch, _ in loader.in_order()) == 9
        assert loader.unreadable == {"scene0/004": "has no file of depth"}


class TestViews:
    @settings(max_examples=40, deadline=None)
    @given(seed=st.integers(0, 10**6), flip=st.sampled_from(["none", "h", "hv", "d4"]))
    def test_one_crop_and_flip_for_all(self, seed: int, flip):
        """Every map is an image of its own coordinates, so maps of one view must tell the same places."""
        rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(56.0), indexing="ij")
        place = torch.stack([rows, columns])
        modalities = [
            Modality("a", 2, (0.0,) * 2, (1.0,) * 2),
            Modality("b", 2, (0.0,) * 2, (1.0,) * 2, stride=4),
            Modality("ids", 1, (0.0,), (1.0,), kind="categorical", num_classes=40 * 56, stride=4),
        ]
        ids = (rows * 56 + columns).int()[None]
        sample = Sample({"a": place, "b": place, "ids": ids}, {"a": None, "b": None, "ids": None})
        cut = draw_cuts([sample.size], View((32, 32), flip=flip), sample_keys(seed, 0, [0]))[0]
        maps = view_of(sample, cut, (32, 32), modalities).maps
        assert maps["a"].shape == (2, 32, 32)
        assert maps["b"].shape == (2, 8, 8)
        mean = torch.nn.functional.avg_pool2d(maps["a"], 4)
        assert (maps["b"] - mean)[:, 1:-1, 1:-1].abs().max() < 0.75  # in pixels
        place_of_ids = torch.stack([maps["ids"][0] // 56, maps["ids"][0] % 56])
        assert (place_of_ids - mean).abs().max() < 1.6

    @pytest.mark.parametrize("size", [(4, 6), (7, 5), (3, 3)])
    def test_only_known_pixels_count(self, size: tuple[int, int]):
        torch.manual_seed(0)
        values, known = torch.rand(2, 12, 18) * 5, (torch.rand(1, 12, 18) > 0.4).float()
        made = resize_known(torch.cat([values.masked_fill(known == 0, 1e4), known]), size)
        for row in range(size[0]):
            for column in range(size[1]):
                weight = naive(12, size[0], row)[:, None] * naive(18, size[1], column)[None] * known[0]
                share = weight.sum()
                assert made[2, row, column] == (share >= 0.5)
                expected = (values * weight).sum((1, 2)) / share if share >= 0.5 else torch.zeros(2)
                assert torch.allclose(made[:2, row, column], expected, atol=1e-3)

    def test_class_ids_are_taken_where_the_new_pixel_lies(self):
        ids = torch.arange(64).reshape(1, 8, 8)
        assert resize_nearest(ids, (2, 2)).tolist() == [[[18, 22], [50, 54]]]
        assert resize_nearest(ids, (16, 16))[0, ::2, ::2].equal(ids[0])

    def test_maps_of_another_size_but_the_same_shape_are_brought_into_the_frame(self):
        modalities = [RGB.modality, DEPTH.modality]
        depth, valid = torch.full((1, 12, 16), 2.0), torch.ones(1, 12, 16, dtype=torch.bool)
        valid[:, :6] = False
        sample = Sample({"rgb": torch.zeros(3, 25, 33, dtype=torch.uint8), "depth": depth * valid}, {"depth": valid})
        fitted = in_one_frame(sample, modalities, "x")
        assert fitted.maps["depth"].shape == (1, 25, 33)
        assert fitted.maps["depth"][fitted.valid["depth"]].unique().tolist() == pytest.approx([2.0])
        with pytest.raises(ValueError, match="depth has 16 x 12 pixels and rgb 24 x 24"):
            in_one_frame(Sample({"rgb": torch.zeros(3, 24, 24), "depth": depth}, {"depth": None}), modalities, "x")


def naive(old: int, new: int, place: int) -> torch.Tensor:
    """The weights of a triangle that is as wide as the scale, centred at a new pixel, over the old ones."""
    scale = old / new
    centre = (place + 0.5) * scale
    weights = (1 - ((torch.arange(old) + 0.5 - centre) / max(scale, 1)).abs()).clamp_min(0)
    return weights / weights.sum()


class TestBatches:
    def test_maps_come_with_what_is_known_of_them(self, tmp_path: Path):
        batch, _ = batch_of(write(tmp_path))
        assert {n: (m.dtype, tuple(m.shape)) for n, m in batch.maps.items()} == {
            "rgb": (torch.uint8, (10, 3, 16, 16)),
            "depth": (torch.float32, (10, 1, 16, 16)),
            "semseg": (torch.int64, (10, 1, 4, 4)),
        }
        assert batch.maps["semseg"].max() <= 3
        assert 0 < batch.valid["depth"].float().mean() < 1
        assert not batch.maps["depth"][~batch.valid["depth"]].any()
        assert not batch.present  # no sample lacks anything
        assert set(batch.valid) == {"depth", "semseg"}, "of a picture nothing is unknown, so nothing is said"

    def test_samples_lack_a_modality_and_train_on_what_they_have(self, tmp_path: Path):
        batch, loader = batch_of(write(tmp_path, without={"depth": {1, 4, 7}, "rgb": {0}}))
        names = [loader.source.name(i) for i in loader.order(0).tolist()]
        assert {n for n, has in zip(names, batch.present["depth"], strict=True) if not has} == {
            "scene1/001",
            "scene0/004",
            "scene1/007",
        }
        missing = ~batch.present["depth"]
        assert not batch.maps["depth"][missing].any()
        assert not batch.valid["depth"][missing].any()
        assert (~batch.present["rgb"]).sum() == 1
        assert set(batch.present) == {"rgb", "depth"}
        assert not loader.unreadable

    def test_batches_do_not_depend_on_threads(self, tmp_path: Path):
        root = write(tmp_path, 40, without={"depth": set(range(0, 40, 3))})
        one, many = (batch_of(root, batch_size=40, workers=w)[0] for w in (1, 4))
        for name in one.maps:
            assert torch.equal(one.maps[name], many.maps[name])
        assert set(one.valid) == set(many.valid)
        for name in one.valid:
            assert torch.equal(one.valid[name], many.valid[name])

    def test_scenes_are_whole_and_say_nothing(self):
        source = open_samples("scenes:count=4,size=32", (RGB, DEPTH))
        loader = Loader(source, View((16, 16)), 4, 0, modality=[d.modality for d in source.declared])
        (batch,) = loader.batches(0)
        assert (batch.valid, batch.present) == ({}, {})

    def test_arrays_and_masks_may_hold_holes(self, tmp_path: Path):
        root = write(tmp_path, 4)
        plain = replace(DEPTH, nodata=())
        assert open_samples(root, (RGB, plain)).complete() == {"rgb", "depth"}
        assert open_samples(root, (replace(RGB, validity="semseg"), plain)).complete() == {"depth"}
        array = np.full((24, 32), 2.0, np.float32)
        array[:, :16] = np.nan
        file = next((root / "depth").rglob("*.png"))
        np.save(file.with_suffix(".npy"), array)
        file.unlink()
        source = open_samples(root, (RGB, plain))
        assert source.complete() == {"rgb"}
        loader = Loader(source, View((16, 16), (1.0, 1.0), (1.0, 1.0)), 4, 0, modality=[RGB.modality, plain.modality])
        (batch,) = loader.batches(0)
        assert sorted(v.float().mean().item() == 1 for v in batch.valid["depth"]) == [False, True, True, True]

    def test_what_does_not_fit_is_replaced_and_listed(self, tmp_path: Path):
        write(tmp_path, 20)
        Image.fromarray(np.full((24, 32), 7, np.uint8)).save(tmp_path / "semseg/scene0/004.png")
        Image.fromarray(np.ones((24, 24), np.uint16)).save(tmp_path / "depth/scene1/003.png")
        batch, loader = batch_of(tmp_path, batch_size=20, max_broken=0.2)
        assert len(batch) == 20
        assert "class ids 7; 0 to 3 and void 11" in loader.unreadable["scene0/004"]
        assert "another shape" in loader.unreadable["scene1/003"]
        with pytest.raises(TooManyBroken, match=r"scene0/004: .*class ids 7"):
            batch_of(tmp_path, batch_size=20, max_broken=0.05)

    def test_a_stride_has_to_divide_the_view(self, tmp_path: Path):
        source = open_samples(write(tmp_path, 2), (RGB, LABELS))
        with pytest.raises(ValueError, match=r"'semseg' has a pixel for every 4 .* 18 x 18"):
            Loader(source, View((18, 18)), 2, 0, modality=[RGB.modality, LABELS.modality])


class TestRealData:
    def test_rgb_and_depth_of_a_camera(self, data_folder: Path):
        source = open_samples(data_folder / "rgbd", (RGB, DEPTH))
        assert len(source) == 500
        inspection = inspect_samples(source, 20)
        assert not inspection.orphans
        assert not inspection.unreadable
        assert inspection.maps[1].stored == {"16-bit PNG": 20}
        assert 1 < inspection.maps[1].mean[0] < 3  # metres in a room
        assert 0.8 < inspection.maps[1].share_valid < 0.97
        train, held = hold_out(source, 0.2, 0, last=True)
        assert max(train.name(i) for i in range(len(train))) < min(held.name(i) for i in range(len(held)))

    def test_rgb_and_classes_of_a_street(self, data_folder: Path, tmp_path: Path):
        text = (Path(__file__).resolve().parents[1] / "docs" / "modalities.md").read_text()
        (tmp_path / "camvid.toml").write_text(text.partition("```toml\n")[2].partition("```")[0])
        declared = declare(["rgb", str(tmp_path / "camvid.toml")])
        for split, count in (("train", 367), ("val", 101)):
            inspection = inspect_samples(open_samples(data_folder / "camvid" / split, declared), 20)
            assert (inspection.count, inspection.orphans, inspection.unreadable) == (count, {}, {})
            assert inspection.maps[1].num_classes == 11
            assert 0.9 < inspection.maps[1].share_valid < 0.99


class TestInspection:
    @pytest.mark.parametrize(
        ("check", "ids", "checked"), [("auto", {0, 1, 2, 3}, 10), ("all", {0, 1, 2, 3}, 10), ("none", {0, 2}, 2)]
    )
    def test_maps_of_classes_are_read_as_is_asked(self, tmp_path: Path, check: Check, ids: set[int], checked: int):
        write(tmp_path)
        for file in sorted((tmp_path / "semseg").rglob("*.png")):
            Image.fromarray(np.full((24, 32), 1, np.uint8)).save(file)
        for number, value in ((0, 0), (5, 2), (7, 3)):  # of which 0 and 5 are decoded
            file = sorted((tmp_path / "semseg").rglob("*.png"))[number]
            Image.fromarray(np.full((24, 32), value, np.uint8)).save(file)
        inspection = inspect_samples(open_samples(tmp_path, (RGB, SEMSEG)), 2, check)
        assert set(inspection.maps[1].ids) == ids
        assert inspection.num_checked == checked
        assert ("2 (--check all reads all)" in str(inspection)) == (check == "none")

    def test_each_modality_and_the_orphans(self, tmp_path: Path):
        write(tmp_path, without={"depth": {1, 4}})
        Image.fromarray(np.full((24, 32), 2, np.uint8)).save(tmp_path / "semseg/scene0/000.png")
        source = open_samples(tmp_path, (RGB, DEPTH, SEMSEG))
        inspection = inspect_samples(source)
        rgb, depth, semseg = inspection.maps
        assert (inspection.count, rgb.count, depth.count) == (10, 10, 8)
        assert inspection.orphans == {"depth": ["scene0/004", "scene1/001"]}
        assert rgb.stored == {"8-bit PNG": 10}
        assert depth.stored == {"16-bit PNG": 8}
        assert (depth.median, depth.unit) == ((24, 32), "m")
        stored = [np.array(Image.open(f)) for f in sorted((tmp_path / "depth").rglob("*.png"))]
        assert depth.mean[0] == pytest.approx(np.mean([a[a > 0].mean() for a in stored]) / 1000, rel=1e-4)
        assert depth.share_valid == pytest.approx(np.mean([(a > 0).mean() for a in stored]))
        assert set(semseg.ids) == {0, 1, 2, 3, 11}
        settled = inspection.settle(source.declared)
        assert settled[2].modality.num_classes == 12  # nobody said that 11 is void
        assert settled[0].modality.mean == pytest.approx(rgb.mean, abs=1e-4)
        text = str(inspection)
        assert "missing in 2 samples: scene0/004, scene1/001" in text
        assert "16-bit PNG 8" in text

    def test_folders_of_built_in_names_are_taken_for_modalities(self, tmp_path: Path):
        write(tmp_path)
        assert [d.name for d in aligned_modalities(tmp_path)] == ["rgb", "depth", "semseg"]
        assert "class ids" in str(inspect(str(tmp_path)))
        assert not aligned_modalities(tmp_path / "rgb")
