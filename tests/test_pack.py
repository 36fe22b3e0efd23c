"""`unveil pack`: the same pixels at the pack's size, bytes that depend on data and options alone, after a kill too."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from tiny_runs import facts, write_images, write_recipe
from unveil.cli import main
from unveil.data import pack as packs
from unveil.data.aligned_folders import open_images, open_samples
from unveil.data.decode import decode
from unveil.data.dense_layouts import open_dense
from unveil.data.identity import identities
from unveil.data.loader import Loader
from unveil.data.modality_config import DEPTH, RGB, SEMSEG, declare
from unveil.data.pack_shard import unique_keys
from unveil.data.sources import open_source
from unveil.data.transforms import Sample, View, at_size, resize
from unveil.evaluation.datasets import open_sets
from unveil.modeling.types import Modality


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a pack, without its lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".pack.lock" not in path.name
    }


def write_maps(folder: Path, count: int = 6) -> Path:
    """Colour, depth in millimetres with holes, and classes with void, one sample without depth; and a thermal map."""
    rng = np.random.default_rng(0)
    for i in range(count):
        small = rng.integers(0, 255, (6, 8, 3), np.uint8)
        colour = np.asarray(Image.fromarray(small).resize((80, 60), Image.Resampling.BICUBIC))
        depth = rng.integers(500, 9000, (60, 80)).astype(np.uint16)
        depth[:20, :10] = 0
        classes = rng.integers(0, 5, (30, 40)).astype(np.uint8)
        classes[:5] = 255
        thermal = rng.normal(20, 5, (60, 80)).astype(np.float32)
        thermal[3, 4] = np.nan
        for name in ("rgb", "depth", "semseg", "thermal"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(colour).save(folder / "rgb" / f"s{i}.png")
        if i != 2:
            Image.fromarray(depth).save(folder / "depth" / f"s{i}.png")
        Image.fromarray(classes).save(folder / "semseg" / f"s{i}.png")
        np.save(folder / "thermal" / f"s{i}.npy", thermal)
    return folder


@pytest.mark.parametrize("short_side", [None, 20])
def test_views_of_a_lossless_pack_are_those_of_resized_images(short_side: int | None, tmp_path: Path):
    source = open_source(write_images(tmp_path / "images"))
    unveil.pack(str(tmp_path / "images"), out=str(tmp_path / "pack"), short_side=short_side, lossless=True)
    pack = open_source(tmp_path / "pack")
    assert [pack.name(i) for i in range(len(pack))] == [source.name(i)[:-4] for i in range(40)]
    assert (pack.labels, pack.classes) == (source.labels, source.classes)
    assert np.array_equal(identities(pack), identities(source))
    for i in (0, 1, 39):
        expected = source.image(i) if short_side is None else resize(source.image(i), (20, 20))
        assert torch.equal(pack.image(i), expected)
    if short_side is None:
        views = [next(Loader(s, View((16, 16)), 40).batches(0)) for s in (source, pack)]
        assert torch.equal(views[0].maps["rgb"], views[1].maps["rgb"])


def test_a_jpeg_that_is_small_enough_is_kept_and_a_large_one_resized(tmp_path: Path):
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.asarray(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)).resize((70, 50))
    )
    Image.fromarray(pixels[:40, :30]).save(folder / "small.jpg", quality=95)
    Image.fromarray(pixels).save(folder / "tall.jpg", quality=95, exif=exif_turned())
    unveil.pack(str(folder), out=str(tmp_path / "pack"), short_side=40, quality=97)
    pack = open_source(tmp_path / "pack")
    assert pack.encoded(0) == (folder / "small.jpg").read_bytes()
    assert pack.image(1).shape == (3, 56, 40)  # upright
    expected = resize(decode((folder / "tall.jpg").read_bytes()), (56, 40)).float()
    assert (pack.image(1).float() - expected).abs().mean() < 4


def exif_turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_pictures_of_16_bits_and_of_many_channels_keep_them(tmp_path: Path):
    grey, bands = tmp_path / "grey", tmp_path / "bands"
    grey.mkdir()
    bands.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        deep = rng.integers(0, 65535, (24, 30)).astype(np.uint16)
        Image.fromarray(deep).save(grey / f"{i}.png")
        pages = [Image.fromarray(rng.integers(0, 255, (24, 30), np.uint8)) for _ in range(5)]
        pages[0].save(bands / f"{i}.tif", save_all=True, append_images=pages[1:])
    for folder, channels in ((grey, 1), (bands, 5)):
        source = open_source(folder)
        for name, options in {"a": {"lossless": True}, "b": {"short_side": 12}, "c": {}}.items():
            unveil.pack(str(folder), out=str(tmp_path / name / folder.name), **options)
            pack = open_source(tmp_path / name / folder.name)
            assert pack.channels == source.channels == channels
            size = (12, 15) if name == "b" else (24, 30)
            assert pack.image(2).dtype == source.image(2).dtype
            assert (pack.image(2).float() - resize(source.image(2), size).float()).abs().max() < 1e-5
        assert "unreadable" in str(unveil.inspect(str(tmp_path / "b" / folder.name)))


@pytest.mark.parametrize("lossless", [True, False])
def test_maps_of_several_modalities_are_those_of_the_library_at_that_size(lossless: bool, tmp_path: Path):
    folder = write_maps(tmp_path / "maps")
    toml = tmp_path / "thermal.toml"
    toml.write_text('[thermal]\nunit = "C"\nscale = 0.01\noffset = -20\n')
    words = ("rgb", "depth", "semseg", str(toml))
    unveil.pack(str(folder), out=str(tmp_path / "pack"), short_side=45, lossless=lossless, modalities=words)
    declared = declare(words)
    source, pack = open_samples(folder, declared), open_samples(tmp_path / "pack", declared)
    modalities = [d.modality for d in declared]
    assert len(pack) == len(source) == 6
    assert [pack.has(i) for i in range(6)] == [source.has(i) for i in range(6)]
    assert pack.complete().isdisjoint({"depth", "semseg"})  # whose declarations have a number for no data
    for i in range(6):
        read = source.read(i)
        valid = {name: m.valid for name, m in read.items() if not m.is_picture}
        expected = at_size(Sample({name: m.values for name, m in read.items()}, valid), (45, 60), modalities, "s")
        sample = pack.sample(i)
        assert sample.maps.keys() == expected.maps.keys()
        for name, values in expected.maps.items():
            known, own = expected.valid.get(name), sample.valid.get(name)
            assert (known is None or known.all()) if own is None else torch.equal(own, known)
            error = (sample.maps[name].float() - values.float()).abs()
            if name == "rgb" and not lossless:  # a JPEG
                assert error.mean() < 5
            else:
                assert error.max() <= {"rgb": 0, "depth": 6e-4, "semseg": 0, "thermal": 6e-3}[name] * (not lossless)
    facts_of = {facts.name: facts for facts in unveil.inspect(str(tmp_path / "pack")).maps}
    assert facts_of["depth"].count == 5
    assert facts_of["semseg"].num_classes == 5


def test_a_pack_says_how_its_numbers_are_read(tmp_path: Path):
    """The built-in word is enough for a pack of a declared scale; another declaration is refused."""
    folder = write_maps(tmp_path / "maps")
    (tmp_path / "a.toml").write_text("[depth]\nscale = 0.0002\n[semseg]\nvoid = 4\n")
    unveil.pack(str(folder), out=str(tmp_path / "pack"), modalities=("rgb", str(tmp_path / "a.toml")))
    source = open_samples(folder, declare(("rgb", str(tmp_path / "a.toml"))))
    pack = open_samples(tmp_path / "pack", (RGB, DEPTH, SEMSEG))
    assert torch.allclose(pack.sample(0).maps["depth"], source.sample(0).maps["depth"], atol=2e-4)
    (tmp_path / "b.toml").write_text("[depth]\nscale = 0.5\n")
    with pytest.raises(ValueError, match=r"depth was packed with scale = 0\.0002, and scale = 0\.5 is declared"):
        open_samples(tmp_path / "pack", declare((str(tmp_path / "b.toml"),)))
    with pytest.raises(ValueError, match="is continuous, channels = 1"):
        open_samples(tmp_path / "pack", (replace(DEPTH, modality=Modality("depth", 2, (0.0,) * 2, (1.0,) * 2)),))


def test_splits_are_packed_apart_and_evaluated_together(tmp_path: Path):
    for split in ("train", "val"):
        write_images(tmp_path / "images" / split, 10 if split == "train" else 6)
    assert main(["pack", str(tmp_path / "images"), "--out", str(tmp_path / "pack")]) == 0
    train, test = open_sets(str(tmp_path / "pack"), None, 3)
    assert test is not None
    assert (len(train), len(test), test.classes) == (10, 6, ["even", "odd"])
    with pytest.raises(ValueError, match=r"holds the splits train, val; name one"):
        open_source(tmp_path / "pack")


def test_a_run_trains_on_a_pack_as_on_its_images(tmp_path: Path):
    write_images(tmp_path / "images")
    write_recipe(tmp_path)
    unveil.pack(str(tmp_path / "images"), out=str(tmp_path / "pack"), shard_size="30kB", lossless=True, short_side=None)
    assert len(list((tmp_path / "pack").glob("*.tar"))) > 2
    runs = [
        unveil.pretrain(
            str(tmp_path / "tiny.py"),
            data=str(tmp_path / data),
            out=str(tmp_path / f"run-{data}"),
            epochs=1,
            batch_size=10,
        )
        for data in ("images", "pack")
    ]
    a, b = ((run / "checkpoints" / "step-00000003" / "model.safetensors").read_bytes() for run in runs)
    assert a[-4000:] == b[-4000:]  # the weights; the header names the data
    assert facts(runs[1])["status"] == "finished"


def test_a_second_command_writes_nothing_and_other_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_images(tmp_path / "images", 8)
    command = ["pack", str(tmp_path / "images"), "--out", str(tmp_path / "pack")]
    assert main(command) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pack").glob("[!.]*")}
    assert main(command) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "pack").glob("[!.]*")}
    assert "as before" in capsys.readouterr().out
    assert main([*command, "--quality", "80"]) == 2
    assert "holds a pack of encoding" in capsys.readouterr().err
    write_images(tmp_path / "others", 9)
    assert main(["pack", str(tmp_path / "others"), "--out", str(tmp_path / "pack")]) == 2
    assert "holds a pack of other data" in capsys.readouterr().err
    assert main(["pack", str(tmp_path / "others"), "--out", str(tmp_path / "images")]) == 2
    assert "holds files that are no pack" in capsys.readouterr().err


def test_shuffled_bytes_depend_on_the_seed_alone(tmp_path: Path):
    write_images(tmp_path / "images", 12)
    for name, seed, workers in (("a", 1, 1), ("b", 1, 4), ("c", 2, 2)):
        unveil.pack(
            str(tmp_path / "images"), out=str(tmp_path / name), shuffle=seed, shard_size="10kB", workers=workers
        )
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b != c
    index = json.loads(a["index.json"])
    assert index["__kind__"] == "wids-shard-index-v1"
    for shard in index["shardlist"]:
        assert sha256(a[shard["url"]]).hexdigest() == shard["sha256"]
        assert len(a[shard["url"]]) == shard["filesize"] <= 10_000
    with tarfile.open(tmp_path / "a" / "000000.tar") as file:
        names = file.getnames()
        assert all(info.mtime == 0 for info in file)
    assert {name.partition(".")[2] for name in names} == {"jpg", "cls"}
    assert sum(shard["nsamples"] for shard in index["shardlist"]) == 12


def test_a_killed_pack_is_continued_to_the_same_bytes(tmp_path: Path):
    """Killed by SIGKILL between shards or in one; what has a final name is always whole."""
    write_images(tmp_path / "images", 120)
    out = tmp_path / "killed"
    words = ["pack", "images", "--shard-size", "20kB", "--short-side", "24", "--shuffle", "3", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "unveil", *words, "--out", "killed"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and len(list(out.glob("*.tar"))) < 2:
        time.sleep(0.002)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as file:
            assert len(file.getnames()) > 1
    if not (out / "index.json").exists():
        with pytest.raises(ValueError, match="unfinished pack: give the command that made it again"):
            open_source(out)
    unveil.pack(str(tmp_path / "images"), out=str(out), shard_size="20kB", short_side=24, shuffle=3)
    unveil.pack(str(tmp_path / "images"), out=str(tmp_path / "whole"), shard_size="20kB", short_side=24, shuffle=3)
    assert contents(out) == contents(tmp_path / "whole")
    assert len(open_source(out)) == 120


def test_a_full_disk_is_one_error_and_the_pack_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_images(tmp_path / "images", 40)
    command = ["pack", str(tmp_path / "images"), "--out", str(tmp_path / "pack"), "--shard-size", "20kB"]
    put, written = packs.ShardWriter._put, [0]

    def full(self: packs.ShardWriter, data: bytes) -> None:
        written[0] += len(data)
        if written[0] > 50_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, data)

    with monkeypatch.context() as patched:
        patched.setattr(packs.ShardWriter, "_put", full)
        assert main(command) == 2
    message = capsys.readouterr().err
    assert "is full, finished shards: 2; make room and give the same command" in message
    assert "Traceback" not in message
    assert main(command) == 0
    unveil.pack(str(tmp_path / "images"), out=str(tmp_path / "whole"), shard_size="20kB")
    assert contents(tmp_path / "pack") == contents(tmp_path / "whole")


def test_broken_images_are_left_out_and_listed_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_images(tmp_path / "images", 30)
    (folder / "odd" / "zz.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (folder / "odd" / "zy.jpg").write_bytes(b"")
    command = ["pack", str(folder), "--out", str(tmp_path / "pack"), "--max-broken"]
    assert main([*command, "0.01"]) == 2
    assert "2 of the 32 samples read so far" in capsys.readouterr().err
    assert main([*command, "0.1"]) == 0
    assert "2 unreadable ones left out" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "pack" / "broken.json").read_text())) == ["odd/zy.jpg", "odd/zz.jpg"]
    assert len(open_source(tmp_path / "pack")) == 30


def test_a_damaged_pack_says_which_file(tmp_path: Path):
    write_images(tmp_path / "images", 8)
    unveil.pack(str(tmp_path / "images"), out=str(tmp_path / "pack"))
    shard, table = tmp_path / "pack" / "000000.tar", tmp_path / "pack" / "index.arrow"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    with pytest.raises(ValueError, match=r"000000\.tar has [\d,]+ bytes, not [\d,]+"):
        open_source(tmp_path / "pack")
    shard.write_bytes(whole)
    table.write_bytes(table.read_bytes().replace(b"even", b"EVEN"))
    with pytest.raises(ValueError, match=r"index\.arrow is damaged"):
        open_source(tmp_path / "pack")


def test_features_come_from_the_first_modality_of_a_pack(tmp_path: Path):
    folder = write_maps(tmp_path / "maps")
    unveil.pack(str(folder), out=str(tmp_path / "pack"), modalities=("rgb", "depth"))
    assert open_images(tmp_path / "pack", 3).image(0).shape == (3, 60, 80)
    assert open_images(tmp_path / "pack", 1, (DEPTH,)).channels == 1


def test_keys_have_no_dots_and_differ():
    assert unique_keys(["a/b.c.jpg", "a/b_c.png", "x.parquet[12]", "a/b.c.JPG", "ü é.tif"]) == [
        *("a/b_c", "a/b_c-2", "x_parquet_12_", "a/b_c-3", "ü é")
    ]


def test_a_pack_is_a_dense_set_by_itself(tmp_path: Path):
    for split in ("train", "val"):
        write_maps(tmp_path / "maps" / split)
    unveil.pack(str(tmp_path / "maps"), out=str(tmp_path / "pack"), modalities=("rgb", "semseg"), short_side=30)
    pair = open_dense(str(tmp_path / "pack"))
    assert (len(pair.train), len(pair.test), pair.is_held_out) == (6, 6, False)
    sample = pair.test.select(["rgb", "semseg"]).sample(0)
    assert sample.maps["semseg"].shape == (1, 30, 40)
    assert sample.valid["semseg"] is not None
    assert not sample.valid["semseg"][0, :4].any()  # void
