"""JPEGs that are decoded where they are viewed: the same pixels, fewer of them where the view is much smaller."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.data import decode as decode_module
from unveil.data.decode import decode, jpeg_size
from unveil.data.encoded import encoded_picture, reduction
from unveil.data.loader import Loader
from unveil.data.sources import open_source
from unveil.data.transforms import CenterView, Sample, View, draw_cuts, view_of
from unveil.modeling.rng import sample_keys
from unveil.modeling.types import RGB


def photograph(height: int, width: int, orientation: int = 1, grey: bool = False) -> bytes:
    """A JPEG with an edge and texture of several scales, the finer the weaker, as in photographs."""
    rng = np.random.default_rng(height)
    layers = [
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for side in (3, 9, height // 8)
    ]
    pixels = np.average([np.array(layer) for layer in layers], axis=0, weights=(8, 3, 1)).astype(np.uint8)
    pixels[height // 3 :, width // 2 : 2 * width // 3] = (250, 200, 20)
    image = Image.fromarray(pixels).convert("L" if grey else "RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, **({"exif": exif} if orientation > 1 else {}))
    return buffer.getvalue()


def seen(source, view: View, **options) -> torch.Tensor:
    loader = Loader(source, view, 8, seed=3, **options)
    return torch.cat([batch.maps["rgb"] for epoch in (0, 1) for batch in loader.batches(epoch)])


@pytest.fixture
def folder(tmp_path):
    sizes = [(60, 80), (90, 70), (64, 64), (150, 200), (300, 200), (33, 47), (80, 60), (410, 399)]
    for number, (height, width) in enumerate(sizes):
        (tmp_path / f"{number}.jpg").write_bytes(photograph(height, width, number + 1, grey=number == 2))
    return tmp_path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_at_full_size_the_pixels_are_those_of_decode(orientation):
    data = photograph(50, 70, orientation)
    picture = encoded_picture("rgb", "a.jpg", data, 3)
    assert picture is not None
    assert picture.size == decode(data).shape[1:] == ((50, 70) if orientation < 5 else (70, 50))
    assert torch.equal(picture.pixels(), decode(data))
    halved = picture.pixels(2)
    assert halved.shape == (3, *(-(-side // 2) for side in picture.size))
    means = torch.nn.functional.avg_pool2d(decode(data).float()[None], 2)[0]
    assert (halved.float() - means).abs().mean() < 2


@pytest.mark.parametrize("flip", ["h", "d4"])
def test_views_that_need_every_pixel_are_those_of_decoded_images_to_the_bit(folder, flip):
    """224 pixels of photographs that are hardly larger, whatever the cache holds and however many threads there are."""
    source, view = open_source(folder), View((48, 40), flip=flip)
    loader = Loader(source, view, 8, seed=3)
    rows = [sample_keys(3, epoch, loader.order(epoch)) for epoch in (0, 1)]
    keys, order = torch.cat(rows), torch.cat([loader.order(0), loader.order(1)]).tolist()
    whole = [Sample({"rgb": source.image(i)}) for i in order]
    theirs = torch.stack([made.maps["rgb"] for made in view(whole, [RGB], keys)])
    for options in ({"cache_bytes": 0}, {"cache_bytes": 10**8}, {"cache_bytes": 60_000, "workers": 3}):
        ours = seen(source, view, **options)
        cuts = draw_cuts([s.size for s in whole], view, keys)
        exact = torch.tensor([reduction((cut.height, cut.width), (40, 40)) == 1 for cut in cuts])
        assert exact.sum() >= 8
        assert torch.equal(ours[exact], theirs[exact])
        assert torch.equal(ours, seen(source, view))


def test_a_large_photograph_is_decoded_reduced_within_a_tolerance():
    """A quarter of a pixel of the view at most, and two levels of 255 in the mean, from a box of the same place."""
    data, size = photograph(1210, 1603), (64, 64)
    picture = encoded_picture("rgb", "a.jpg", data, 3)
    assert picture is not None
    whole, keys, by = Sample({"rgb": decode(data)}), sample_keys(0, 0, range(24)), set()
    for cut in draw_cuts([picture.size] * 24, View(size, flip="d4"), keys):
        factor = reduction((cut.height, cut.width), size)
        frame = (-(-1210 // factor), -(-1603 // factor))
        box = cut.reduced(factor, frame) if factor > 1 else cut
        assert abs(box.height * factor - cut.height) <= cut.height / size[0] / 2
        assert abs(box.top * factor - cut.top) <= cut.height / size[0] / 4
        assert abs(box.left * factor - cut.left) <= cut.width / size[1] / 4
        assert min(box.height, box.width) >= 2 * 64 or factor == 1
        ours, theirs = (view_of(s, cut, size, [RGB]).maps["rgb"].float() for s in (picture, whole))
        assert (ours - theirs).abs().mean() < 2
        by.add(factor)
    assert by >= {4, 8}


def test_reductions_are_chosen_by_the_narrower_side():
    assert reduction((448, 448), (224, 224)) == 1
    assert reduction((896, 896), (224, 224)) == 2
    assert reduction((4000, 895), (224, 224)) == 1
    assert reduction((4000, 1792), (224, 224)) == 4
    assert reduction((9000, 9000), (224, 224)) == 8


def test_a_picture_that_is_damaged_behind_its_header_is_replaced_and_named(folder):
    for number in range(8, 40):
        (folder / f"{number:02d}.jpg").write_bytes(photograph(40 + number, 60))
    healthy = seen(open_source(folder), View((16, 16)), cache_bytes=0)
    data = photograph(64, 64)
    (folder / "2.jpg").write_bytes(data[: len(data) // 2])
    assert jpeg_size((folder / "2.jpg").read_bytes()) == (64, 64)
    source = open_source(folder)
    for options in ({"cache_bytes": 0}, {}, {"cache_bytes": 3000, "workers": 3}):
        loader = Loader(source, View((16, 16)), 8, seed=3, **options)
        ours = torch.cat([batch.maps["rgb"] for epoch in (0, 1) for batch in loader.batches(epoch)])
        (name,) = loader.unreadable
        assert name == "2.jpg"
        assert "truncated" in loader.unreadable[name]
        rows = torch.cat([loader.order(0), loader.order(1)])
        others = rows != [source.name(i) for i in range(len(source))].index("2.jpg")
        assert torch.equal(ours[others], healthy[others])
        assert not torch.equal(ours[~others], healthy[~others])
    left_out = Loader(source, View((16, 16)), 8, seed=3, max_broken=None)
    assert sum(len(batch) for batch in left_out.batches(0)) == 39


def test_views_that_show_the_middle_are_of_whole_images(folder, monkeypatch):
    """What features are measured on does not change with the way in which views are decoded."""
    source = open_source(folder)
    (made, rows) = next(Loader(source, CenterView((16, 16)), 8).in_order())
    whole = [Sample({"rgb": source.image(i)}) for i in rows.tolist()]
    views = CenterView((16, 16))(whole, [RGB], made.key)
    assert torch.equal(made.maps["rgb"], torch.stack([view.maps["rgb"] for view in views]))


def test_only_a_plain_jpeg_stays_encoded():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    cmyk = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(cmyk, "JPEG")
    for data in (b"", buffer.getvalue(), cmyk.getvalue(), b"\xff\xd8\xff broken"):
        assert encoded_picture("rgb", "a", data, 3) is None


def test_words_that_look_like_exif_are_no_orientation(monkeypatch):
    """The segments are walked, so a comment or a thumbnail that holds the word costs nothing and turns nothing."""
    data = photograph(50, 70)
    comment = b"see Exif\0\0"
    marked = data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]
    monkeypatch.setattr(decode_module.Image, "open", lambda *_: pytest.fail("a plain JPEG went through Pillow"))
    assert torch.equal(decode(marked), decode(data))
    assert jpeg_size(marked) == (50, 70)
