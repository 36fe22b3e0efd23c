"""Colour of 16 bits a channel keeps its bits, as a picture and as a declared map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unveil.data.decode import decode, read_header
from unveil.data.modality_config import read_toml
from unveil.data.read_map import read_map
from unveil.modeling.types import to_float

rasterio = pytest.importorskip("rasterio", reason="colour of 16 bits is read with rasterio")


def written(file: Path, bands: int) -> tuple[bytes, np.ndarray]:
    """A file with the values of a satellite or a microscope, 0..1023 of 65535, and the values."""
    values = np.random.default_rng(0).integers(0, 1024, (bands, 24, 16)).astype(np.uint16)
    driver = "PNG" if file.suffix == ".png" else "GTiff"
    options = {"photometric": "RGB"} if driver == "GTiff" else {}
    with rasterio.open(file, "w", driver=driver, height=24, width=16, count=bands, dtype="uint16", **options) as opened:
        opened.write(values)
    return file.read_bytes(), values


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(("name", "bands"), [("a.png", 3), ("a.png", 4), ("a.tif", 3)])
def test_a_picture_keeps_its_levels(tmp_path: Path, name: str, bands: int):
    data, values = written(tmp_path / name, bands)
    image = decode(data)
    np.testing.assert_allclose(image.numpy(), values[:3] / 65535, rtol=1e-6)
    assert read_header(data).bits == 16
    assert to_float(image).unique().numel() == len(np.unique(values[:3]))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_declared_map_is_in_its_unit(tmp_path: Path, name: str):
    file = tmp_path / "rgb.toml"
    file.write_text("[rgb]\nchannels = 3\nscale = 0.0001\n")
    (declared,) = read_toml(file)
    data, values = written(tmp_path / name, 3)
    read = read_map(data, declared)
    np.testing.assert_allclose(read.values.numpy(), values * 1e-4, rtol=1e-6)
    assert read.stored.startswith("16-bit")
