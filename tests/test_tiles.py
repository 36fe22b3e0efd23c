"""Tiles of large images: windows of their own pixels, no data and edges as validity, aligned in all modalities."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from tiny_runs import write_recipe
from unveil.cli import main
from unveil.data import rasters, tiled_source
from unveil.data.aligned_folders import open_samples
from unveil.data.listing import split_addresses
from unveil.data.loader import Loader
from unveil.data.modality_config import RGB, declare
from unveil.data.rasters import open_raster
from unveil.data.sources import open_source
from unveil.data.tiled_source import TiledSource
from unveil.data.tiling import Tiling, split_tiling, with_tiles
from unveil.data.transforms import View

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
rng = np.random.default_rng(0)
HEIGHT, WIDTH = 150, 200


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("UNVEIL_CACHE", str(folder))
    return folder


def colours(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return rng.integers(1, 256, (3, height, width)).astype(np.uint8)


def write_tiff(path: Path, values: np.ndarray, nodata: float | None = None, mask: np.ndarray | None = None) -> None:
    """A tiled GeoTIFF of blocks of 64 pixels, as satellites' products are."""
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype, "nodata": nodata}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", tiled=True, blockxsize=64, blockysize=64, compress="deflate", **shape
    ) as f:
        f.write(values)
        if mask is not None:
            f.write_mask(mask)


def test_tiles_cover_an_image_and_neighbours_overlap():
    assert Tiling(64).corners((150, 100)) == [(0, 0), (0, 64), (64, 0), (64, 64), (128, 0), (128, 64)]
    assert Tiling(64, 14).corners((150, 64)) == [(0, 0), (50, 0), (100, 0)]
    assert Tiling(512).corners((20, 20)) == [(0, 0)]
    for overlap in (0, 5, 31):
        covered = np.zeros((131, 97), int)
        for top, left in Tiling(32, overlap).corners((131, 97)):
            covered[top : top + 32, left : left + 32] += 1
        assert covered.min() == 1
    assert Tiling(64).share_inside((128, 64), (150, 100)) == pytest.approx(22 * 36 / 64**2)


def test_an_address_asks_for_tiles():
    assert with_tiles("a/b", 64, 8, 0.5) == "a/b:tile=64,overlap=8,valid=0.5"
    for words in ((64,), (64, 8), (64, 0, 0.75)):
        assert split_tiling(with_tiles("a", *words)) == ("a", Tiling(*words))
    assert split_tiling("a.parquet:image=x") == ("a.parquet:image=x", None)
    assert with_tiles("a", None) == "a"
    for words, message in (
        ((0,), "--tile 0"),
        ((8, 8), "--tile-overlap 8"),
        ((8, 0, 2), "--tile-valid 2"),
        ((None, 3), "of --tile"),
    ):
        with pytest.raises(ValueError, match=message):
            with_tiles("a", *words)


@pytest.mark.parametrize("kind", ["tif", "png", "npy", "strips"])
def test_every_tile_is_the_window_of_its_image(tmp_path, kind, monkeypatch):
    values = colours()
    if kind == "tif":
        write_tiff(tmp_path / "a.tif", values)
    elif kind == "strips":
        Image.fromarray(values.transpose(1, 2, 0)).save(tmp_path / "a.tif", compression="tiff_lzw")
    elif kind == "png":
        Image.fromarray(values.transpose(1, 2, 0)).save(tmp_path / "a.png")
    else:
        Image.fromarray(values.transpose(1, 2, 0)).save(tmp_path / "other.png")  # arrays alone are no folder of images
        np.save(tmp_path / "a.npy", values)
    if kind == "npy":
        raster = open_raster(tmp_path / "a.npy", "a.npy", RGB)
        assert (raster.size, raster.is_whole, raster.channels) == ((HEIGHT, WIDTH), True, 3)
        assert torch.equal(raster.read((64, 128, 64, 64)).values, torch.from_numpy(values[:, 64:128, 128:192]))
        return
    source = open_source(f"{tmp_path}:tile=64,valid=0")
    assert isinstance(source, TiledSource)
    assert (len(source), source.channels) == (12, 3)
    for index in range(len(source)):
        _, top, left = source.places[index]
        tile = source.read(index)["rgb"]
        inside = values[:, top : top + 64, left : left + 64]
        assert tile.values.shape == (3, 64, 64)
        height, width = inside.shape[1:]
        own = tile.values[:, :height, :width]
        assert torch.equal(
            own if own.dtype == torch.uint8 else (own * 255).round().to(torch.uint8), torch.from_numpy(inside)
        )
        if (height, width) == (64, 64):
            assert tile.valid is None
        else:
            assert int(tile.valid.sum()) == height * width
            assert not tile.values[:, height:].any()
        suffix = "png" if kind == "png" else "tif"
        assert source.name(index) == f"a.{suffix}[{top}:{top + height},{left}:{left + width}]"


@pytest.mark.parametrize("reader", ["rasterio", "tifffile"])
def test_no_data_becomes_validity_and_empty_tiles_are_passed_over(tmp_path, monkeypatch, reader, cache):
    pytest.importorskip(reader, reason=f"{reader} is not installed")
    values = rng.integers(1, 4000, (2, 128, 192)).astype(np.uint16)
    values[:, :64, :64] = 0  # a tile without data
    values[:, :, 64:100] = 0  # more than half of two others
    write_tiff(tmp_path / "scenes" / "a.tif", values, nodata=0)
    (tmp_path / "two.toml").write_text("[rgb]\nchannels = 2\nscale = 0.001\n")
    if reader == "tifffile":
        monkeypatch.setattr(rasters, "find_spec", lambda name: name == "tifffile")
    source = open_samples(f"{tmp_path / 'scenes'}:tile=64,valid=0.4", declare((str(tmp_path / "two.toml"),)))
    assert [tuple(place[1:]) for place in source.places.tolist()] == [(0, 64), (0, 128), (64, 0), (64, 64), (64, 128)]
    assert source.passed_over == {"tile of few valid pixels": 1}
    tile = source.sample(0)
    assert torch.equal(tile.valid["rgb"][0], torch.from_numpy(values[0, :64, 64:128] > 0))
    assert torch.allclose(tile.maps["rgb"], torch.from_numpy(values[:, :64, 64:128] * 0.001).float())
    assert source.sample(1).valid["rgb"] is None
    assert "1 tile of few valid pixels" in str(unveil.inspect(source.address, modalities=(str(tmp_path / "two.toml"),)))
    assert list(cache.glob("tiles-1/*"))
    monkeypatch.setattr(tiled_source, "_KIND", "tiles-1")
    monkeypatch.setattr(rasters._Gdal, "read", lambda *_: pytest.fail("the shares were in the cache"))
    monkeypatch.setattr(rasters._Tiff, "read", lambda *_: pytest.fail("the shares were in the cache"))
    again = open_samples(source.address, source.declared)
    assert np.array_equal(again.places, source.places)
    with pytest.raises(ValueError, match=r"no tile of which 90% has data.*--tile-valid"):
        open_samples(f"{tmp_path / 'scenes'}:tile=400,valid=0.9", source.declared)


@pytest.mark.parametrize("reader", ["rasterio", "tifffile"])
def test_an_internal_mask_or_alpha_is_validity(tmp_path, monkeypatch, reader):
    pytest.importorskip(reader, reason=f"{reader} is not installed")
    values, mask = colours(64, 64), np.full((64, 64), 255, np.uint8)
    mask[:20] = 0
    rgba = np.concatenate([values, mask[None]]).transpose(1, 2, 0)
    Image.fromarray(rgba).save(tmp_path / "alpha.tif")
    if reader == "rasterio":
        write_tiff(tmp_path / "mask.tif", values, mask=mask)
    else:
        monkeypatch.setattr(rasters, "find_spec", lambda name: name == "tifffile")
    source = open_source(f"{tmp_path}:tile=64")
    assert len(source) == (2 if reader == "rasterio" else 1)
    for index in range(len(source)):
        tile = source.read(index)["rgb"]
        assert torch.equal(tile.valid[0], torch.from_numpy(mask > 0))
        assert torch.equal((tile.values[:, 20:] * 255).round().to(torch.uint8), torch.from_numpy(values[:, 20:]))


@pytest.mark.parametrize("kind", ["rgba.png", "rgba.webp", "palette.png", "grey.png", "tiff without a reader.tif"])
def test_alpha_of_formats_without_windows_is_validity(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(rasters, "find_spec", lambda _: None)
    values, mask = colours(100, 50), np.full((100, 50), 255, np.uint8)
    mask[:70] = 0
    image = Image.fromarray(np.concatenate([values, mask[None]]).transpose(1, 2, 0))
    if kind == "palette.png":
        image = Image.fromarray(np.where(mask > 0, 1, 0).astype(np.uint8), "P")
        image.putpalette([9, 9, 9, 200, 100, 50])
        image.save(tmp_path / kind, transparency=0)
    elif kind == "grey.png":
        image.convert("LA").save(tmp_path / kind)
    else:
        image.save(tmp_path / kind, **({"lossless": True} if kind.endswith("webp") else {}))
    source = open_source(f"{tmp_path}:tile=50,valid=0.1")
    assert [source.name(i) for i in range(len(source))] == [f"{kind}[50:100,0:50]"]
    tile = source.read(0)["rgb"]
    assert torch.equal(tile.valid[0], torch.from_numpy(mask > 0)[50:])
    assert (tile.values[:, :20] == 0).all()
    assert tile.values[:, 20:].float().mean() > 0.1
    assert source.passed_over == {"tile of few valid pixels": 1}


def write_scene(root: Path, number: int) -> None:
    """Colours, and heights at half the resolution with a corner without data."""
    write_tiff(root / "rgb" / f"{number}.tif", colours())
    heights = np.arange(HEIGHT // 2 * (WIDTH // 2), dtype=np.float32).reshape(1, HEIGHT // 2, WIDTH // 2) + 1
    heights[:, :8, :8] = -9999
    write_tiff(root / "height" / f"{number}.tif", heights, nodata=-9999)


@pytest.fixture
def scenes(tmp_path) -> tuple[Path, str]:
    for number in range(3):
        write_scene(tmp_path / "data", number)
    (tmp_path / "height.toml").write_text('[height]\nunit = "m"\n')
    return tmp_path / "data", str(tmp_path / "height.toml")


def test_modalities_of_another_resolution_have_the_same_windows(scenes):
    root, toml = scenes
    source = open_samples(f"{root}:tile=50", declare(("rgb", toml)))
    assert len(source) == 3 * 12
    first, inner = source.read(0), source.read(5)
    assert first["height"].values.shape == (1, 25, 25)
    assert not first["height"].valid[0, :8, :8].any()
    assert int(first["height"].valid.sum()) == 25 * 25 - 64
    _, top, left = source.places[5]
    assert float(inner["height"].values[0, 0, 0]) == (top // 2) * (WIDTH // 2) + left // 2 + 1
    sample = source.sample(0)
    assert sample.maps["height"].shape == (1, 50, 50)
    settled = unveil.inspect(str(root), modalities=("rgb", toml), tile=50)
    assert settled.count == 36
    views = [
        next(
            Loader(source, View((16, 16)), 36, 1, workers=w, modality=[d.modality for d in source.declared]).batches(0)
        )
        for w in (1, 3)
    ]
    assert torch.equal(views[0].maps["height"], views[1].maps["height"])


def test_several_modalities_are_trained_on_as_tiles_and_embedded(scenes, tmp_path, monkeypatch):
    root, toml = scenes
    monkeypatch.chdir(tmp_path)
    words = "--size nano --patch 8 --image-size 16 --batch-size 18 --precision float32 --tile 50 --tile-overlap 4"
    command = ["pretrain", "multimae", "--data", str(root), "--out", "run", *words.split(), "--modalities", "rgb", toml]
    assert main([*command, "--epochs", "1"]) == 0
    stored = json.loads(Path("run/run.json").read_text())
    assert stored["data"]["address"].endswith(":tile=50,overlap=4")
    assert main(["embed", "run", "--data", str(root), "--tile", "50", "--out", "features.npz"]) == 0
    made = np.load("features.npz")
    assert made["features"].shape[0] == 36
    assert "1.tif" not in str(made["names"][0])
    assert str(made["names"][13]) == "1[0:50,50:100]"


def test_plain_images_are_trained_on_and_packed_as_tiles(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        write_tiff(tmp_path / "data" / f"{number}.tif", colours(96, 130))
    assert main(["inspect", "data", "--tile", "32"]) == 0
    assert "next: unveil pretrain crossmae --data data --tile=32 --out runs/a" in capsys.readouterr().out
    assert main(["pack", "data:tile=32", "--out", "packed", "--lossless", "--short-side", "none"]) == 0
    packed, source = open_source("packed"), open_source("data:tile=32")
    assert len(packed) == len(source) == 48
    assert {packed.image(i).numpy().tobytes() for i in range(48)} == {
        source.image(i).numpy().tobytes() for i in range(48)
    }
    words = "--batch-size 20 --epochs 1 --warmup-epochs 0 --tile 32"
    command = ["pretrain", write_recipe(tmp_path), "--data", "data", "--out", "run", *words.split()]
    assert main(command) == 0
    assert (
        json.loads(Path("run/run.json").read_text())["data"]["count"] == 4 * 12
    )  # 2 pixels of a column are passed over
    assert main(["embed", "run", "--data", "data", "--tile", "32", "--out", "a.npz"]) == 0
    assert np.load("a.npz")["features"].shape[0] == 48


def test_a_large_tiff_is_not_decoded_whole(tmp_path):
    """20,000 x 20,000 pixels, most of them blocks that take no place in the file: 400 MB if decoded."""
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    from rasterio.windows import Window

    side = 20_000
    options = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "sparse_ok": True}
    with rasterio.open(
        tmp_path / "a.tif", "w", "GTiff", width=side, height=side, count=1, dtype="uint8", **options
    ) as f:
        f.write(np.full((1, 512, 512), 7, np.uint8), window=Window(512 * 5, 512 * 3, 512, 512))
    tracemalloc.start()
    source = open_source(f"{tmp_path}:tile=512")
    assert len(source) == 39 * 39
    assert source.channels == 1
    assert int(source.image(3 * 39 + 5).float().mean()) == 7
    assert not source.image(0).any()
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_what_cannot_be_tiled_says_so(tmp_path):
    (tmp_path / "a.parquet").touch()
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="tiles are cut of image files in a folder"):
        open_source("scenes:count=4:tile=8")
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "c.png").write_bytes(b"nothing")
    facts = unveil.inspect(str(tmp_path), tile=8)
    assert list(facts.unreadable) == ["c.png[0:8,0:8]"]
    assert facts.count == 2


def test_splits_of_tiles_are_told_apart(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / split / "a.png")
    assert split_addresses(f"{tmp_path}:tile=4") == {s: f"{tmp_path / s}:tile=4" for s in ("train", "val")}
