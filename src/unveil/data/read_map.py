"""Files of any modality to maps: images, arrays, HDF5, GeoTIFF and DICOM, with pixels without data marked."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from PIL import UnidentifiedImageError
from torch import Tensor

from ..modeling.types import to_float
from .cut_files import check_whole
from .decode import (
    EXTENSIONS,
    Unreadable,
    decode,
    deep_colour,
    oriented,
    read_header,
    reading,
    to_channels,
)
from .extras import optional
from .limits import check_npy, check_npz, check_size, check_values, open_image
from .modality_config import DEPTH, Declared
from .picture_arrays import NPY, array_of
from .tiff_files import check_tiff, gdal_driver, is_tiff

READ = (*EXTENSIONS, ".npy", ".npz", ".dcm")
_LISTED_IDS = 5
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_AT_ONCE = 1 << 24  # bytes
_GEO_TAGS = (34735, 42113)  # GeoKeyDirectory, GDAL_NODATA
NYUV2, NYUV2_CLASSES = "nyu_depth_v2_labeled.mat", "classMapping40.mat"
_HDF5 = "is read with h5py: pip install 'unveil[hdf5]'"


@dataclass(frozen=True)
class Map:
    """A map as it was read: uint8 in 0..255, float32 in its unit, or class ids (uint8 or int32).

    `valid` is None where every pixel is valid; where one is not, the map is 0. A picture is whole, in bytes or in
    [0, 1]. `stored` is the format in the file.
    """

    values: Shaped[Tensor, "C H W"]
    valid: Bool[Tensor, "1 H W"] | None
    stored: str
    is_picture: bool = False

    def only(self, valid: Bool[Tensor, "1 H W"]) -> Map:
        """The map where these pixels, too, are valid; 0 elsewhere."""
        valid = valid if self.valid is None else valid & self.valid
        return Map(torch.where(valid, self.values, 0), valid, self.stored)


@dataclass(frozen=True)
class Stored:
    """The numbers of a file, or of a window of it, as they are in it; `nodata` is the one that means none."""

    values: Shaped[np.ndarray, "C H W"]
    kind: str
    nodata: float | None = None


def read_map(data: bytes, declared: Declared, name: str = "map") -> Map:
    """The map that a file of this modality holds. Raises `Unreadable`, also for a class id that is not declared."""
    return reading(name, lambda data: _read_map(data, declared, name), data)


def _read_map(data: bytes, declared: Declared, name: str) -> Map:
    kind = _format(data)
    if kind == "image" and declared.scale is None and not declared.nodata and not declared.is_categorical:
        header = read_header(data, name)
        if header.mode == "F" and declared.name != "rgb":  # numbers in the unit of the map, not a picture
            return measured(_stored(data, kind, declared), declared)
        pixels = to_channels(decode(data, name), declared.modality.channels, name)
        return Map(pixels, None, f"{header.bits}-bit {header.format}", is_picture=True)
    return map_of(_stored(data, kind, declared), declared)


def map_of(stored: Stored, declared: Declared) -> Map:
    """The map that stored numbers mean. Raises ValueError for another number of channels, and for unknown ids."""
    channels, needed = len(stored.values), declared.modality.channels
    if channels != needed:
        wanted, way = f"{needed} declared", f"save it with {needed}, or declare channels = {channels}"
        if declared.is_categorical:
            wanted, way = "class ids have one", "save the number of the class at each pixel, not its colour"
        raise ValueError(f"has {channels} channel{'s' * (channels > 1)}, {wanted} ({stored.kind}): {way}")
    return _ids(stored, declared) if declared.is_categorical else measured(stored, declared)


def _format(data: bytes) -> Literal["array", "dicom", "geotiff", "image"]:
    if data[:6] == b"\x93NUMPY" or data[:4] == b"PK\x03\x04":
        return "array"
    if data[128:132] == b"DICM":
        return "dicom"
    if not is_tiff(data):
        return "image"
    try:
        with open_image(io.BytesIO(data)) as image:
            return "geotiff" if any(tag in getattr(image, "tag_v2", {}) for tag in _GEO_TAGS) else "image"
    except UnidentifiedImageError:
        return "geotiff"  # bands that Pillow does not know


def _stored(data: bytes, kind: str, declared: Declared) -> Stored:
    if kind == "array":
        return _array(data, declared)
    if kind == "dicom":
        return _dicom(data, declared)
    check_whole(data)
    if kind == "geotiff":
        return _geotiff(data)
    with open_image(io.BytesIO(data)) as image:
        if declared.is_categorical and image.format == "JPEG":
            raise ValueError("class ids are changed by the compression of JPEG; save them as PNG")
        if (deep := deep_colour(image, data)) is not None:
            return Stored(deep[0], f"16-bit {image.format}")
        if image.mode not in ("L", "P", "1", "I", "F", "RGB") and not image.mode.startswith("I;16"):
            raise ValueError(f"its numbers cannot be read as stored (mode {image.mode}); save it as grey or RGB")
        values = array_of(image)
        values = values.astype(np.uint8) if image.mode == "1" else values
        values = values.astype(np.uint16) if image.mode == "I" and image.format == "PNG" else values
        values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
        turned = oriented(torch.from_numpy(values), image).numpy()
        return Stored(turned, f"{8 * values.itemsize}-bit {image.format}")


def _array(data: bytes, declared: Declared) -> Stored:
    """An `.npy`, or the one array of an `.npz` that `key` names: H W, C H W, or H W C."""
    if data[:6] == NPY:
        check_npy(io.BytesIO(data), len(data))
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
    except zipfile.BadZipFile as error:
        raise ValueError(f"the .npz is damaged ({error})") from error
    if isinstance(loaded, np.ndarray):
        array, kind = loaded, "npy"
    else:
        names, key = list(loaded.files), declared.key
        if not key and len(names) == 1:
            key = names[0]
        if key not in names:
            problem = f"no array {key!r}" if key else "several arrays, and no key is declared"
            raise ValueError(f"the .npz has {problem}; it holds {', '.join(names)}: declare key = {names[:1]}")
        check_npz(data, key)
        array, kind = loaded[key], f"npz[{key}]"
    channels = declared.modality.channels
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[0] != channels and array.shape[2] == channels:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        raise ValueError(f"an array of {array.dtype} {array.shape} is no map; H W, C H W or H W C numbers are needed")
    return Stored(np.ascontiguousarray(array), f"{array.dtype} {kind}")


def _geotiff(data: bytes) -> Stored:
    rasterio = optional("rasterio", "a GeoTIFF is read with rasterio: pip install 'unveil[geotiff]'")
    check_tiff(io.BytesIO(data))
    with rasterio.MemoryFile(data) as memory, memory.open(driver=gdal_driver(data)) as file:
        check_size(file.height, file.width, file.count, max(np.dtype(kind).itemsize for kind in file.dtypes))
        values, nodata = file.read(), file.nodata
        return Stored(values, f"{values.dtype} GeoTIFF", nodata)


def _dicom(data: bytes, declared: Declared) -> Stored:
    """One frame with rescale slope and intercept applied, and the window, which maps to [0, 1], where there is one.

    PS3.3, C.11.1 and C.11.2.1.2. `MONOCHROME1` is turned, so that high is bright. Padding is no data.
    """
    pydicom = optional("pydicom", "DICOM is read with pydicom: pip install 'unveil[dicom]'")
    _check_deflated(data)
    file = pydicom.dcmread(io.BytesIO(data))
    frames = int(file.get("NumberOfFrames") or 1) * int(file.get("SamplesPerPixel") or 1)
    check_size(int(file.get("Rows") or 0), int(file.get("Columns") or 0), frames, 4)
    array = file.pixel_array
    if array.ndim != 2:
        raise ValueError(f"a DICOM of shape {array.shape} is not one grey frame; save each frame as a file")
    values = array.astype(np.float32)
    padding = file.get("PixelPaddingValue")
    if not declared.is_categorical:
        values = values * float(file.get("RescaleSlope", 1)) + float(file.get("RescaleIntercept", 0))
        if (window := declared.window or _own_window(file)) is not None:
            centre, width = window
            values = ((values - (centre - 0.5)) / max(width - 1, 1e-6) + 0.5).clip(0, 1)
            if file.get("PhotometricInterpretation") == "MONOCHROME1":
                values = 1 - values
        values[array == padding] = np.nan
        return Stored(values[None], f"{file.BitsStored}-bit DICOM")
    return Stored(array[None], f"{file.BitsStored}-bit DICOM", padding)


def _check_deflated(data: bytes) -> None:
    """Raise ValueError for a deflated DICOM (PS3.5, A.5) that unpacks to more than an image may have."""
    place, is_deflated = 132, False
    while data[place : place + 2] == b"\2\0":  # the elements of the file's head, which are never packed
        is_long = data[place + 4 : place + 6] in (b"OB", b"OW", b"UN", b"UT", b"SQ")
        start = place + (12 if is_long else 8)
        end = start + int.from_bytes(data[start - (4 if is_long else 2) : start], "little")
        if data[place + 2 : place + 4] == b"\x10\0":
            is_deflated = data[start:end].rstrip(b"\0 ") == _DEFLATED
        place = end
    unpacker, packed, size = zlib.decompressobj(-zlib.MAX_WBITS), data[place:] if is_deflated else b"", 0
    while packed:
        size += len(unpacker.decompress(packed, _AT_ONCE))
        check_values((size,))
        packed = unpacker.unconsumed_tail


def _own_window(file: object) -> tuple[float, float] | None:
    centre, width = (getattr(file, name, None) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None:
        return None
    several = [value if isinstance(value, Sequence) else [value] for value in (centre, width)]
    return float(several[0][0]), float(several[1][0])


def measured(stored: Stored, declared: Declared) -> Map:
    """Stored numbers in the unit of the map, however many channels it has; 0 where they mean no data.

    Raises ValueError where their range is unknown.
    """
    values = stored.values
    nodata = [n for n in (stored.nodata, *declared.nodata) if n is not None and not np.isnan(n)]
    valid = np.ones((1, *values.shape[1:]), bool)
    if declared.name == DEPTH.name and declared.nodata == DEPTH.nodata:  # no distance is below 0, as -9999 is
        valid &= (values > 0).all(0)
    for none in nodata:
        valid &= (values != none).all(0)
    units: np.ndarray
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(0)
        units = values.astype(np.float32)
    elif declared.scale is not None:
        units = (values.astype(np.float64) * declared.scale + declared.offset).astype(np.float32)
    elif values.dtype == np.uint8 and not nodata:
        return Map(torch.from_numpy(np.ascontiguousarray(values)), None, stored.kind, is_picture=True)
    elif values.dtype in (np.uint8, np.uint16):
        units = values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    else:
        raise ValueError(f"its {values.dtype} numbers have no known range; declare a scale, such as scale = 0.001")
    if valid.all():
        return Map(torch.from_numpy(np.ascontiguousarray(units)), None, stored.kind)
    return Map(torch.from_numpy(np.where(valid, units, np.float32(0))), torch.from_numpy(valid), stored.kind)


def _ids(stored: Stored, declared: Declared) -> Map:
    """Class ids, exact; void and no data become 0 and are not valid."""
    values = stored.values
    if values.dtype.kind not in "biu":
        raise ValueError(f"class ids are whole numbers; its {values.dtype} are none ({stored.kind})")
    ids = values.astype(np.int32)
    valid = np.ones(ids.shape, bool)
    for none in (stored.nodata, *declared.nodata, declared.void):
        if none is not None:
            valid &= ids != none
    known = ids[valid]
    top = np.iinfo(np.int32).max if declared.measured else declared.modality.num_classes
    if wrong := np.unique(known[(known < 0) | (known >= top)]).tolist():
        listed = ", ".join(map(str, wrong[:_LISTED_IDS])) + (", ..." if len(wrong) > _LISTED_IDS else "")
        void = f" and void {declared.void}" if declared.void is not None else ""
        declares = f"0 to {top - 1}{void} are declared"
        raise ValueError(f"holds the class ids {listed}; {declares}: correct the file, or classes and void")
    ids = np.where(valid, ids, 0)
    ids = ids.astype(np.uint8) if top <= 256 or ids.max(initial=0) <= 255 else ids
    return Map(torch.from_numpy(ids), None if valid.all() else torch.from_numpy(valid), stored.kind)


def as_npy(root: Path, path: str) -> bytes:
    """A map in HDF5 as an `.npy` would hold it. `path` is a file below `root`, or NYUv2's with `#` array `/` number.

    Raises `Unreadable` for a damaged file, ValueError where a reader is not installed.
    """
    file, _, entry = path.partition("#")
    h5py = optional("h5py", f"{file} {_HDF5}")
    try:
        with h5py.File(root / file, "r") as stored:
            if not entry:
                own = _own_numbers(stored, "dataset")
                check_values(own.shape, own.dtype.itemsize)
                array = np.asarray(own)
            else:
                name, number = entry.split("/")
                own = _own_numbers(stored, name)
                check_values(own.shape[1:], own.dtype.itemsize)
                array = np.asarray(own[int(number)]).swapaxes(-1, -2)  # MATLAB counts columns first
                array = _forty(root)[array] if name == "labels" else array
    except ValueError as error:  # it is too large
        raise Unreadable(path, str(error)) from error
    except (OSError, KeyError) as error:
        raise Unreadable(path, f"the HDF5 file is damaged, or lacks an array ({error})") from error
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _own_numbers(stored: Any, name: str) -> Any:
    """A data set of an HDF5 file whose numbers are in it. Raises ValueError for one that names other files."""
    if type(stored.get(name, getlink=True)).__name__ != "HardLink":
        raise ValueError(f"its {name!r} is missing, or a link, which is not followed")
    own = stored[name]
    if not hasattr(own, "shape") or own.external or own.is_virtual:
        raise ValueError(f"the numbers of its {name!r} are in other files, which are not read")
    return own


@cache
def _forty(root: Path) -> np.ndarray:
    """Of NYUv2, the class of 40 for each of the 894 stored ones, 0 for none."""
    return np.concatenate([[0], loaded_mat(root / NYUV2_CLASSES)["mapClass"].flatten()]).astype(np.uint8)


def loaded_mat(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a MATLAB file."""
    from scipy.io import loadmat, whosmat  # only for these files

    for _, shape, _ in whosmat(path):
        check_values(shape, 8)
    arrays: dict[str, np.ndarray] = loadmat(path)
    return arrays


def masked(stored: Map, declared: Declared, mask_file: Path | io.BytesIO, name: str) -> Map:
    """A map with a mask file applied: 0 where it is not valid. Raises `Unreadable` for a mask that does not fit."""
    try:
        with open_image(mask_file) as image:
            mask = np.array(image)
    except (OSError, ValueError) as error:
        raise Unreadable(name, str(error)) from error
    if mask.shape[:2] != stored.values.shape[-2:]:
        raise Unreadable(name, f"the mask has {mask.shape[1::-1]} pixels, the map {tuple(stored.values.shape[:0:-1])}")
    values = stored.values if declared.is_categorical else to_float(stored.values)
    return replace(stored, values=values).only(torch.from_numpy(mask.reshape(*mask.shape[:2], -1).any(-1))[None])
