"""Modalities by declaration: TOML and its mistakes, and the files of every kind that are read by it."""

from __future__ import annotations

import importlib.util
import io
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.data.decode import Unreadable
from unveil.data.modality_config import _KEYS, DEPTH, RGB, SEMSEG, Declared, declare, declared_from, read_toml
from unveil.data.read_map import read_map
from unveil.modeling.types import Modality

THERMAL = Declared(Modality("thermal", 1, (0.0,), (1.0,)), scale=0.01, offset=-273.15, unit="°C", nodata=(0.0,))
CLASSES = replace(
    SEMSEG, modality=replace(SEMSEG.modality, num_classes=4), measured=False, void=11
)  # ids 0..3, 11 is void


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def toml(folder: Path, text: str) -> str:
    file = folder / "mine.toml"
    file.write_text(text)
    return str(file)


class TestDeclaring:
    def test_built_in_ones_and_files_come_in_the_order_of_the_words(self, tmp_path: Path):
        mine = toml(tmp_path, "[thermal]\nunit = '°C'\n[normals]\nchannels = 3\n")
        assert [d.name for d in declare(["rgb", mine, "depth"])] == ["rgb", "thermal", "normals", "depth"]

    def test_every_key_reaches_the_declaration(self, tmp_path: Path):
        text = """
        [thermal]
        files = "lwir"
        suffix = "_t.npz"
        key = "kelvin"
        channels = 2
        kind = "continuous"
        stride = 2
        normalise = "percentile"
        scale = 0.01
        offset = -273.15
        unit = "°C"
        nodata = [0, 9]
        role = "output"
        loss = "l1"
        weight = 2
        [mask]
        kind = "validity"
        of = "thermal"
        files = "masks"
        """
        (result,) = declare([toml(tmp_path, text)])
        modality = Modality(
            "thermal", 2, (0.0, 0.0), (1.0, 1.0), normalise="percentile", stride=2, role="output", loss="l1", weight=2.0
        )
        reading = {"files": "lwir", "suffix": "_t.npz", "key": "kelvin", "scale": 0.01, "offset": -273.15}
        assert result == Declared(modality, **reading, unit="°C", nodata=(0.0, 9.0), validity="masks")

    def test_a_table_of_a_built_in_name_starts_from_it(self, tmp_path: Path):
        (depth,) = declare([toml(tmp_path, "[depth]\nscale = 0.0002")])
        assert depth == replace(DEPTH, scale=0.0002)
        (semseg,) = declare([toml(tmp_path, "[semseg]\nclasses = ['road', 'sky']\nvoid = 2")])
        assert semseg.modality == replace(SEMSEG.modality, num_classes=2)
        assert (semseg.void, semseg.classes, semseg.measured) == (2, ("road", "sky"), False)

    def test_what_is_left_to_the_data_is_settled_by_them(self, tmp_path: Path):
        (open_,) = declare([toml(tmp_path, "[elevation]\nunit = 'm'")])
        assert open_.measured
        assert open_.settled([312.5], [80.0], 0).modality == Modality("elevation", 1, (312.5,), (80.0,))
        assert SEMSEG.settled((), (), 19).modality.num_classes == 19
        (declared,) = declare([toml(tmp_path, "[elevation]\nmean = 1\nstd = 2")])
        assert declared.settled([312.5], [80.0], 0).modality == Modality("elevation", 1, (1.0,), (2.0,))

    @pytest.mark.parametrize("declared", [RGB, DEPTH, SEMSEG, THERMAL, replace(THERMAL, window=(40.0, 80.0))])
    def test_json_gives_back_the_same(self, declared: Declared):
        assert declared_from(json.loads(json.dumps(asdict(declared)))) == declared

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[thermal]\nchanels = 1", "no key 'chanels'; did you mean channels?"),
            ("[thermal]\nnormalise = 'robst'", "one of fixed, robust, percentile is needed; did you mean robust?"),
            ("[thermal]\nkind = 'class'", "one of continuous, categorical, validity"),
            ("[thermal]\nchannels = 'three'", "channels = 'three': a whole number is needed"),
            ("[thermal]\nstride = true", "a whole number is needed"),
            ("[thermal]\nstride = 0", "stride = 0"),
            ("[thermal]\nmean = [1, 2]\nstd = 1", "mean = [1, 2]: 1 numbers are needed"),
            ("[thermal]\nmean = 1", "mean and std go together"),
            ("[thermal]\nclasses = 4", "classes is for kind = 'categorical'"),
            ("[thermal]\nvoid = 4", "void = 4: kind = 'categorical' is needed"),
            ("[labels]\nkind = 'categorical'\nchannels = 3", "class ids have one"),
            ("[mask]\nkind = 'validity'", "of is missing"),
            ("[thermal]\n[mask]\nkind = 'validity'\nof = 'termal'", "did you mean thermal?"),
            ("channels = 1", "'channels' lies outside a table"),
            ("", "declares nothing"),
            ("[thermal", "is no TOML"),
        ],
    )
    def test_mistakes_name_the_key_and_what_is_allowed(self, tmp_path: Path, text: str, message: str):
        with pytest.raises(ValueError, match=r"mine\.toml") as raised:
            read_toml(Path(toml(tmp_path, text)))
        assert message in str(raised.value)

    def test_words_that_name_nothing(self, tmp_path: Path):
        with pytest.raises(ValueError, match="no modality 'deph'; did you mean depth"):
            declare(["rgb", "deph"])
        with pytest.raises(ValueError, match="'rgb' is declared twice"):
            declare(["rgb", toml(tmp_path, "[rgb]")])
        with pytest.raises(FileNotFoundError, match=r"nowhere\.toml"):
            declare(["nowhere.toml"])


class TestReading:
    def test_16_bit_depth_becomes_metres_and_0_is_no_truth(self):
        stored = np.array([[0, 1500], [2000, 65535]], np.uint16)
        result = read_map(png(stored), DEPTH)
        assert torch.allclose(result.values, torch.tensor([[[0.0, 1.5], [2.0, 65.535]]]))
        assert result.valid.tolist() == [[[False, True], [True, True]]]
        assert result.stored == "16-bit PNG"

    def test_floats_are_in_the_unit_and_nan_is_no_truth(self):
        stored = np.array([[np.nan, 1.5], [np.inf, 0.0]], np.float64)
        result = read_map(npy(stored), DEPTH)
        assert result.values.tolist() == [[[0.0, 1.5], [0.0, 0.0]]]
        assert result.valid.tolist() == [[[False, True], [False, False]]]

    def test_scale_and_offset(self):
        result = read_map(png(np.array([[0, 30315]], np.uint16)), THERMAL)
        assert result.values[0, 0, 1].item() == pytest.approx(30.0, abs=1e-4)
        assert result.valid.tolist() == [[[False, True]]]

    def test_a_picture_stays_in_bytes_and_is_whole(self):
        colours = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
        for data in (png(colours), npy(colours), npy(np.ascontiguousarray(colours.transpose(2, 0, 1)))):
            result = read_map(data, RGB)
            assert torch.equal(result.values, torch.from_numpy(colours).permute(2, 0, 1))
            assert result.is_picture
            assert result.valid is None
        assert read_map(png(colours[..., 0]), RGB).values.shape == (3, 2, 4)

    def test_an_npz_by_its_key(self):
        two = npz(near=np.ones((2, 2), np.float32), far=np.full((2, 2), 9, np.float32))
        assert read_map(two, replace(DEPTH, key="far")).values.unique().tolist() == [9]
        assert read_map(npz(only=np.ones((2, 2), np.float32)), DEPTH).values.unique().tolist() == [1]
        with pytest.raises(Unreadable, match="several arrays, and no key is declared; it holds near, far"):
            read_map(two, DEPTH)
        with pytest.raises(Unreadable, match="no array 'fa'"):
            read_map(two, replace(DEPTH, key="fa"))

    def test_class_ids_stay_exact_and_void_is_no_truth(self):
        ids = np.array([[0, 3], [11, 2]], np.uint8)
        palette = Image.fromarray(ids, "L").convert("P")
        palette.putdata(ids.ravel().tolist())
        buffer = io.BytesIO()
        palette.save(buffer, "PNG")
        for data in (png(ids), npy(ids.astype(np.int64)), buffer.getvalue()):
            result = read_map(data, CLASSES)
            assert result.values.tolist() == [[[0, 3], [0, 2]]]
            assert result.valid.tolist() == [[[True, True], [False, True]]]

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (png(np.array([[4, 200, 1]], np.uint8)), "class ids 4, 200; 0 to 3 and void 11 are declared"),
            (npy(np.array([[-1]])), "class ids -1"),
            (npy(np.array([[1.0]])), "class ids are whole numbers"),
            (png(np.zeros((2, 2, 3), np.uint8)), "3 channels, class ids have one"),
            (b"", "0 bytes"),
            (b"GIF89a nothing", "."),
            (npy(np.array(["a"])), "is no map"),
        ],
    )
    def test_what_is_no_map_of_class_ids(self, data: bytes, message: str):
        with pytest.raises(Unreadable, match=message):
            read_map(data, CLASSES, "x")

    def test_numbers_without_a_known_range(self):
        with pytest.raises(Unreadable, match="declare a scale"):
            read_map(npy(np.array([[70000]])), replace(THERMAL, scale=None, nodata=()))
        with pytest.raises(Unreadable, match="has 2 channels, 1 declared"):
            read_map(npy(np.zeros((2, 5, 5), np.float32)), DEPTH)


@pytest.mark.skipif(importlib.util.find_spec("rasterio") is None, reason="the extra geotiff is not installed")
class TestGeotiff:
    def test_bands_and_no_data(self, tmp_path: Path):
        import rasterio

        bands = np.arange(5 * 3 * 4, dtype=np.float32).reshape(5, 3, 4)
        bands[2, 1, 1] = -9999
        where = {"width": 4, "height": 3, "count": 5, "dtype": "float32", "nodata": -9999}
        with rasterio.open(
            tmp_path / "a.tif", "w", driver="GTiff", crs="EPSG:4326", transform=rasterio.Affine.scale(0.1), **where
        ) as file:
            file.write(bands)
        declared = Declared(Modality("bands", 5, (0.0,) * 5, (1.0,) * 5))
        result = read_map((tmp_path / "a.tif").read_bytes(), declared)
        assert result.valid.sum() == 11
        assert not result.valid[0, 1, 1]
        assert result.values[:, 1, 1].tolist() == [0] * 5
        assert torch.equal(result.values[:, 0], torch.from_numpy(bands[:, 0]))

    def test_without_the_extra_the_error_says_how(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        self.test_bands_and_no_data(tmp_path)
        monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
        with pytest.raises(Unreadable, match=r"unveil\[geotiff\]"):
            read_map((tmp_path / "a.tif").read_bytes(), Declared(Modality("bands", 5, (0.0,) * 5, (1.0,) * 5)))


@pytest.mark.skipif(importlib.util.find_spec("pydicom") is None, reason="the extra dicom is not installed")
class TestDicom:
    def file(self, **tags: object) -> bytes:
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 1, 4, 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.RescaleSlope, data.RescaleIntercept = 2, -1000
        data.PixelData = np.array([[-2000, 500, 520, 900]], np.int16).tobytes()
        for name, value in tags.items():
            setattr(data, name, value)
        buffer = io.BytesIO()
        data.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    CT = Declared(Modality("ct", 1, (0.0,), (1.0,)), unit="HU")

    def test_rescale_alone(self):
        assert read_map(self.file(), self.CT).values[0, 0].tolist() == [-5000, 0, 40, 800]

    def test_the_window_of_the_file_or_a_declared_one(self):
        windowed = read_map(self.file(WindowCenter=[40, 300], WindowWidth=[401, 2000]), self.CT).values[0, 0]
        assert windowed.tolist() == pytest.approx([0.0, (0 - 39.5) / 400 + 0.5, (40 - 39.5) / 400 + 0.5, 1.0])
        declared = replace(self.CT, window=(0.5, 81.0))
        assert read_map(self.file(WindowCenter=40, WindowWidth=401), declared).values[0, 0].tolist() == pytest.approx(
            [0.0, 0.5, 1.0, 1.0]
        )

    def test_padding_is_no_truth(self):
        result = read_map(self.file(PixelPaddingValue=-2000), self.CT)
        assert result.valid[0, 0].tolist() == [False, True, True, True]

    def test_monochrome1_is_turned(self):
        tags = {"WindowCenter": 0.5, "WindowWidth": 81}
        bright = read_map(self.file(**tags), self.CT).values
        assert torch.allclose(
            read_map(self.file(PhotometricInterpretation="MONOCHROME1", **tags), self.CT).values, 1 - bright
        )


class TestDocument:
    text = (Path(__file__).resolve().parents[1] / "docs" / "modalities.md").read_text()

    def test_every_declaration_in_it_is_one(self, tmp_path: Path):
        blocks = re.findall(r"^```toml\n(.*?)^```", self.text, re.M | re.S)
        assert len(blocks) == 3
        names = [[d.name for d in declare([toml(tmp_path, block)])] for block in blocks]
        assert names == [["semseg"], ["rgb", "depth"], ["thermal", "bands", "elevation", "ct"]]

    def test_its_table_has_every_key(self):
        rows = self.text.partition("| key |")[2].partition("\n\n")[0]
        assert set(re.findall(r"^\| `(\w+)` \|", rows, re.M)) == set(_KEYS)
