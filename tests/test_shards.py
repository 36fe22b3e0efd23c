"""Shards that others wrote: WebDataset layouts, labels, tars that are hostile or damaged."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from unveil.data import shards
from unveil.data.aligned_folders import aligned_modalities, open_samples
from unveil.data.decode import Unreadable
from unveil.data.listing import split_addresses
from unveil.data.modality_config import DEPTH, RGB, declare
from unveil.data.shard_files import expand_braces
from unveil.data.sources import Source, open_source
from unveil.data.splits import locations


def picture(seed: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (24, 20, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes], layout: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=layout) as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, shards: int = 3, each: int = 4, **members: object) -> Path:
    """Shards that use the same keys; `members` are further ones by suffix, made of the number of a sample."""
    for s in range(shards):
        files: dict[str, bytes] = {}
        for k in range(each):
            number = s * each + k
            files[f"{k:04}.jpg"] = picture(number)
            files |= {f"{k:04}.{suffix.replace('_', '.')}": made(number) for suffix, made in members.items()}  # type: ignore[operator]
        write_tar(folder / f"part-{s:03}.tar", files)
    return folder


def pixels(source: Source) -> list[torch.Tensor]:
    return [source.image(i) for i in range(len(source))]


def test_addresses_of_shards(tmp_path: Path):
    folder = write_shards(tmp_path / "shards")
    whole = open_source(folder)
    assert (len(whole), whole.channels, whole.name(0), whole.name(11)) == (12, 3, "part-000/0000", "part-002/0003")
    assert torch.equal(whole.image(5), open_source(folder / "part-001.tar").image(1))
    for address, count in (("part-{000..001}.tar", 8), ("part-*.tar", 12), ("part-{000,002}.tar", 8), ("*[12].tar", 8)):
        assert len(open_source(folder / address)) == count
    assert locations(whole)[4] == f"{folder / 'part-001.tar'}#0000"
    copy = pickle.loads(pickle.dumps(whole))
    assert all(map(torch.equal, pixels(whole), pixels(copy)))
    with pytest.raises(FileNotFoundError, match=r"no data at .*part-003\.tar"):
        open_source(folder / "part-{000..004}.tar")
    assert expand_braces("a{01..3}{x,y}") == ["a01x", "a01y", "a02x", "a02y", "a03x", "a03y"]


@pytest.mark.parametrize(
    ("members", "label", "expected", "classes"),
    [
        ({"cls": lambda n: str(n % 3).encode()}, None, [0, 1, 2, 0], None),
        ({"json": lambda n: json.dumps({"label": f"c{n % 2}", "url": "x"}).encode()}, None, [0, 1, 0, 1], ["c0", "c1"]),
        ({"txt": lambda n: b"dog\n" if n % 2 else b"cat"}, None, [0, 1, 0, 1], ["cat", "dog"]),
        ({"txt": lambda n: f"a photo of {n}".encode()}, None, None, None),
        ({"json": lambda n: json.dumps({"kind": n % 2}).encode()}, "kind", [0, 1, 0, 1], None),
        ({"cls": lambda n: b"0", "species_txt": lambda n: b"ab"[n % 2 :][:1]}, "species.txt", [0, 1, 0, 1], ["a", "b"]),
    ],
)
def test_labels_of_shards(
    members: dict, label: str | None, expected: list[int] | None, classes: list[str] | None, tmp_path: Path
):
    folder = write_shards(tmp_path / "shards", **members)
    source = open_source(f"{folder}:label={label}" if label else folder)
    assert (source.labels and source.labels[:4], source.classes) == (expected, classes)


def test_a_tar_of_class_folders_and_names_with_dots(tmp_path: Path):
    """`tar -cf images.tar cat dog`, as it is: no WebDataset, the last dot ends the name."""
    files = {f"./{'cat' if i % 2 else 'dog'}/IMG.2024.{i:03}.jpg": picture(i) for i in range(140)}
    source = open_source(write_tar(tmp_path / "images.tar", files, tarfile.GNU_FORMAT))
    assert (len(source), source.classes) == (140, ["cat", "dog"])
    assert source.name(3) == "cat/IMG.2024.003"
    assert source.labels is not None
    assert source.labels[:3] == [1, 0, 1]


def test_splits_in_names_of_shards_are_kept_apart(tmp_path: Path):
    for split in ("train", "val"):
        write_tar(tmp_path / f"images-{split}-000.tar", {"0.jpg": picture(0)})
    with pytest.raises(ValueError, match="holds the splits train, val"):
        open_source(tmp_path)
    addresses = split_addresses(str(tmp_path))
    assert [Path(address).name for address in addresses.values()] == ["images-train-*.tar", "images-val-*.tar"]
    assert all(len(open_source(address)) == 1 for address in addresses.values())


def test_a_member_that_a_later_one_replaces_is_counted(tmp_path: Path):
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        for number in range(5):
            for name, content in ((f"{number % 3}.jpg", picture(number)), (f"{number % 3}.cls", b"%d" % number)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    source = open_source(tmp_path / "x.tar")
    assert source.passed_over == {"file in a tar with the name of a later one": 4}
    assert [source.classes[label] for label in source.labels] == ["3", "4", "2"]
    apart = [write_tar(tmp_path / "y" / f"{n}.tar", {"0.jpg": picture(n)}) for n in (3, 4, 2)]
    assert all(torch.equal(source.image(n), open_source(path).image(0)) for n, path in enumerate(apart))


def test_the_error_of_names_with_dots_is_short(tmp_path: Path):
    write_tar(tmp_path / "x.tar", {f"a/im.{n}.v2.jpg": picture(n) for n in range(30)})
    with pytest.raises(ValueError, match=r"first dot of a name\): name one, --image-column 0\.v2\.jpg") as error:
        open_source(tmp_path / "x.tar")
    assert "and 25 more" in str(error.value)
    assert len(str(error.value)) < 400


def test_several_pictures_are_named_or_told_apart(tmp_path: Path):
    depth = io.BytesIO()
    Image.fromarray(np.full((24, 20), 1500, np.uint16)).save(depth, "PNG")
    files = {f"{k}.{m}": c for k in "ab" for m, c in (("left.jpg", picture(1)), ("depth.png", depth.getvalue()))}
    address = write_tar(tmp_path / "x.tar", files)
    with pytest.raises(ValueError, match=r"several pictures, depth\.png, left\.jpg: name one"):
        open_source(address)
    assert open_source(f"{address}:image=left.jpg").image(1).shape == (3, 24, 20)
    (tmp_path / "m.toml").write_text('[rgb]\nsuffix = ".left.jpg"\n')
    samples = open_samples(address, (*declare((str(tmp_path / "m.toml"),)), DEPTH))
    assert samples.sample(0).maps["depth"].unique().tolist() == [1.5]
    with pytest.raises(ValueError, match=r"no member of the samples of .* is 'rgb'"):
        open_samples(address, (RGB, DEPTH))
    assert [
        d.name for d in aligned_modalities(write_tar(tmp_path / "y.tar", {"a.rgb.jpg": b"", "a.depth.png": b""}))
    ] == [*("rgb", "depth")]


def test_a_mask_says_where_a_map_is_valid(tmp_path: Path):
    mask = io.BytesIO()
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(mask, "PNG")
    array = io.BytesIO()
    np.save(array, np.full((4, 4), 2, np.float32))
    write_tar(tmp_path / "x.tar", {"a.heat.npy": array.getvalue(), "a.heat-mask.png": mask.getvalue()})
    (tmp_path / "m.toml").write_text('[heat]\n[heat-mask]\nkind = "validity"\nof = "heat"\n')
    sample = open_samples(tmp_path / "x.tar", declare((str(tmp_path / "m.toml"),))).sample(0)
    assert torch.equal(sample.maps["heat"][0], 2 * torch.eye(4))


def test_what_leads_out_of_a_tar_is_passed_over(tmp_path: Path):
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as file:
        for name in ("good.jpg", "../out.jpg", "/etc/x.jpg", "a/../../b.jpg", "._good.jpg", "x" * 300 + "/long.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(picture(0))
            file.addfile(info, io.BytesIO(picture(0)))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("link.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    source = open_source(path)
    assert [source.name(i)[-4:] for i in range(len(source))] == ["good", "long"]
    counts = source.passed_over  # type: ignore[attr-defined]
    assert counts == {"unsafe path in a tar": 3, "hidden file in a tar": 1, "link or device in a tar": 3}
    assert "3 link or device in a tar" in str(unveil.inspect(str(path)))


def negative_size() -> bytes:
    """A tar whose second header leads back to itself."""
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT))
    header[124:136], header[148:156] = tarfile.itn(-512, 12, tarfile.GNU_FORMAT), b" " * 8  # type: ignore[attr-defined]
    header[148:155] = b"%06o\0" % sum(header)
    return tarfile.TarInfo("b.jpg").tobuf() + bytes(header) + bytes(1024)


def test_damaged_tars_are_one_error(tmp_path: Path):
    whole = write_tar(tmp_path / "a.tar", {f"{i}.jpg": picture(i) for i in range(5)}).read_bytes()
    path = tmp_path / "b.tar"
    for content, message in (
        (whole[:3000], "is cut off after 3,000 bytes: copy it again"),
        (b"\x1f\x8b" + whole[2:], "is no tar file, or is damaged at byte 0 .*unpack it to a plain"),
        (whole[:512] + b"x" * 512, "cut off"),
        (negative_size(), "is damaged at byte 512: a size of -512 bytes"),
        (b"", "no files in the shards"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            open_source(path)
    path.write_bytes(whole[: whole.rstrip(b"\0").__len__() // 512 * 512 + 512])  # without the blocks at its end
    assert len(open_source(path)) == 5


def test_a_broken_member_is_unreadable_by_its_name(tmp_path: Path):
    path = write_tar(tmp_path / "a.tar", {"a.jpg": picture(0), "b.jpg": b"\xff\xd8\xffno", "c.txt": b"no picture"})
    source = open_source(path)
    assert (len(source), source.passed_over) == (2, {"sample without a picture": 1})  # type: ignore[attr-defined]
    with pytest.raises(Unreadable, match=r"^b: "):
        source.image(1)
    path.write_bytes(path.read_bytes()[:600])  # after it was opened
    with pytest.raises(Unreadable, match="cut off"):
        source.image(0)


def test_headers_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))
    folder = write_shards(tmp_path / "shards", cls=lambda n: b"01"[n % 2 :][:1])
    first = open_source(folder)
    shards._scanned.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(shards, "members", lambda *_: pytest.fail("headers are read again"))
        again = open_source(folder)
    assert again.labels == first.labels
    assert all(map(torch.equal, pixels(again), pixels(first)))
    write_tar(folder / "part-001.tar", {"other.jpg": picture(0)})
    assert len(open_source(folder)) == 9
