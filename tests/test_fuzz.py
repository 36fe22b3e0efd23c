"""Files and command lines with anything in them: an answer, or one error of the kind that is documented.

Whole files are changed by hypothesis: bytes flipped, cut out, doubled, zeroed or cut off, alone and together, since a
parser gets furthest on what is almost right. UNVEIL_FUZZ is the number of examples of each in the proof.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from unveil.cli import COMMANDS, main
from unveil.data.decode import Unreadable, decode, read_header
from unveil.data.modality_config import BUILT_IN, read_toml
from unveil.data.read_map import read_map
from unveil.data.sources import open_source
from unveil.modeling.public_vits import load_encoder
from unveil.runs.checkpoint_state import checksum_of, read_state

EXAMPLES = int(os.environ.get("UNVEIL_FUZZ", 5000))
SAMPLE = 60
KINDS = ("flip", "cut out", "double", "zero", "end", "number")
EDITS = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(KINDS), st.integers(0, 255)), min_size=1, max_size=4)


def edited(content: bytes, edits: list[tuple[float, str, int]]) -> bytes:
    """The content after these edits, each at a share of its length."""
    for share, kind, value in edits:
        place, width = int(share * len(content)), value % 32 + 1
        before, here, after = content[:place], content[place : place + width], content[place + width :]
        match kind:
            case "flip":
                here = bytes([here[0] ^ (value or 1)]) + here[1:] if here else here
            case "cut out":
                here = b""
            case "double":
                here = here * 2
            case "zero":
                here = bytes(len(here))
            case "end":
                here = after = b""
            case "number":
                here = (b"\xff\xff\xff\xff" if value % 2 else b"\x7f\xff\xff\xff") + here[4:]
        content = before + here + after
    return content


def picture(kind: str, mode: str = "RGB", **how: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (Image.fromarray(pixels[..., 0].astype(np.uint16)) if mode == "I;16" else image.convert(mode)).save(
        buffer, kind, **how
    )
    return buffer.getvalue()


def many_channels() -> bytes:
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.arange(6 * 12 * 8, dtype=np.uint16).reshape(6, 12, 8), photometric="minisblack")
    return buffer.getvalue()


def array(packed: bool = False) -> bytes:
    buffer = io.BytesIO()
    values = np.linspace(0, 5, 12 * 8, dtype=np.float32).reshape(12, 8)
    np.savez_compressed(buffer, values) if packed else np.save(buffer, values)
    return buffer.getvalue()


def dicom() -> bytes:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = SecondaryCaptureImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    file = FileDataset("x", {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = 12, 8, 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.PixelData = np.arange(96, dtype=np.uint16).tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    return buffer.getvalue()


def table() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    rows = [{"image": {"bytes": picture("PNG"), "path": f"{i}.png"}, "label": i % 2} for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def weights() -> bytes:
    """The key map of a timm ViT, cut down."""
    shapes = {"cls_token": (1, 1, 8), "pos_embed": (1, 5, 8), "patch_embed.proj.weight": (8, 3, 4, 4)}
    shapes |= {"patch_embed.proj.bias": (8,), "norm.weight": (8,), "norm.bias": (8,)}
    for n in range(2):
        block = {"norm1.weight": (8,), "norm1.bias": (8,), "norm2.weight": (8,), "norm2.bias": (8,)}
        block |= {
            "attn.qkv.weight": (24, 8),
            "attn.qkv.bias": (24,),
            "attn.proj.weight": (8, 8),
            "attn.proj.bias": (8,),
        }
        block |= {"mlp.fc1.weight": (32, 8), "mlp.fc1.bias": (32,), "mlp.fc2.weight": (8, 32), "mlp.fc2.bias": (8,)}
        shapes |= {f"blocks.{n}.{name}": shape for name, shape in block.items()}
    return save({name: torch.zeros(shape) for name, shape in shapes.items()})


def state() -> bytes:
    content = {
        "step": 3,
        "stage": 0,
        "epoch": 1.5,
        "seconds": 2.0,
        "skipped": 0,
        "checksums": {"model.safetensors": "crc32:0"},
    }
    return json.dumps({**content, "checksum": checksum_of(content)}).encode()


TOML = b"""[thermal]
channels = 1
folder = "thermal"
mean = [0.5]
std = [0.2]
"""
YAML = b"""recipe: mae
data: nowhere
epochs: 3.0
image_size: [32]
lr: 1e-3
"""


def images(content: bytes, place: Path) -> None:
    for read in (decode, read_header):
        with suppress(Unreadable):
            read(content, "x")


def maps(content: bytes, place: Path) -> None:
    for name in ("depth", "semseg"):
        with suppress(Unreadable):
            read_map(content, BUILT_IN[name], "x")


def of_file(suffix: str, read: Callable[[Path], Any]) -> Callable[[bytes, Path], None]:
    def reads(content: bytes, place: Path) -> None:
        file = place / f"x{suffix}"
        file.write_bytes(content)
        try:
            read(file)
        except (ValueError, OSError) as error:
            if not str(error):
                raise AssertionError(repr(error)) from error

    return reads


def opened(file: Path) -> None:
    source = open_source(str(file))
    for i in range(len(source)):
        with suppress(Unreadable):
            source.image(i)


def stored_state(file: Path) -> None:
    read_state(file.parent)


def configured(file: Path) -> None:
    assert main(["pretrain", "--config", str(file), "--data", str(file.parent / "none")]) == 2


READERS: dict[str, tuple[Callable[[], bytes], Callable[[bytes, Path], None]]] = {
    **{
        kind: (lambda kind=kind: picture(kind), images) for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
    },
    "TIFF, compressed": (lambda: picture("TIFF", compression="tiff_lzw"), images),
    "TIFF of channels": (many_channels, images),
    "PNG, palette": (lambda: picture("PNG", "P"), images),
    "map of TIFF": (lambda: picture("TIFF", "I;16"), maps),
    "npy": (array, maps),
    "npz": (lambda: array(packed=True), maps),
    "DICOM": (dicom, maps),
    "TOML": (lambda: TOML, of_file(".toml", read_toml)),
    "YAML": (lambda: YAML, of_file(".yaml", configured)),
    "Parquet": (table, of_file(".parquet", opened)),
    "safetensors": (weights, of_file(".safetensors", load_encoder)),
    "state": (state, lambda content, place: of_file(".json", stored_state)(content, place)),
}

RARE = ("ICO", "SGI", "TGA", "PCX", "DDS", "AVIF", "JPEG2000", "DIB", "QOI")  # formats that the proof alone tries


def fuzz(name: str, examples: int, place: Path) -> None:
    make, read = READERS.get(name) or (lambda: picture(name), images)
    whole = make()

    @settings(
        max_examples=examples, derandomize=examples == SAMPLE, deadline=None, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(EDITS)
    def run(edits: list[tuple[float, str, int]]) -> None:
        read(edited(whole, edits), place)

    run()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_a_file_of_anything_is_read_or_refused(name: str, tmp_path: Path):
    fuzz(name, SAMPLE, tmp_path)


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*READERS, *RARE])
def test_many_files_of_anything_are_read_or_refused(name: str, tmp_path: Path):
    fuzz(name, EXAMPLES, tmp_path)


WORDS = (
    "",
    "x",
    "-1",
    "0",
    "1e99",
    "nan",
    "none",
    "auto",
    "mae",
    "knn",
    "a,b",
    "\x1b[31m",
    "ü",
    "--",
    "-",
    "=",
    "../..",
    "/dev/null",
)
STARTS = {"demo", "bench", "study", "doctor"}  # verbs that do something without data: a flag that there is not is added


def command_line(rng: random.Random, flags: dict[str, list[str]], place: Path) -> list[str]:
    """A verb with flags of its own and of others, values, and data that is not there, empty or no images."""
    verb = rng.choice([*flags, rng.choice(WORDS)])
    words = [verb]
    places = (str(place / "empty"), str(place / "broken"), str(place / "none"), *WORDS)
    if rng.random() < 0.8:
        words.append(rng.choice(("mae", "crossmae", "attention", *places)))
    for _ in range(rng.randint(0, 5)):
        own = flags.get(verb, []) if rng.random() < 0.8 else flags[rng.choice(list(flags))]
        words.append(rng.choice(own or ["--x"]) + rng.choice(("", "", "=" + rng.choice(places))))
        words += [rng.choice(places) for _ in range(rng.choice((0, 1, 1, 1, 2)))]
    return [*words, "--no-such-flag"] if verb in STARTS else words


def command_lines(count: int, seed: int, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "empty").mkdir()
    (place / "broken").mkdir()
    (place / "broken" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    flags = {}
    for verb in COMMANDS:
        main([verb, *(["mae"] if verb == "pretrain" else []), "--help"])
        flags[verb] = sorted(set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)))
    assert sum(map(len, flags.values())) > 100
    rng, faults = random.Random(seed), []
    for _ in range(count):
        words = command_line(rng, flags, place)
        code = main(words)
        text = capsys.readouterr().err
        if code not in (0, 2) or "Traceback" in text or (code == 2 and not text.strip()):
            faults.append(f"{words}: {code} {text.strip().splitlines()[-3:]}")
    assert not faults, f"{len(faults)} of {count}\n" + "\n".join(faults[:20])


def test_a_command_line_of_anything_is_an_answer_or_an_error(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    command_lines(150, 0, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.fuzz
def test_many_command_lines_are_an_answer_or_an_error(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    command_lines(int(os.environ.get("UNVEIL_LINES", 2000)), 1, tmp_path, capsys)
