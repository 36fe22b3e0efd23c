"""The loader's promises: nothing depends on threads or on the past, and broken images are replaced and counted."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unveil.data import encoded
from unveil.data.decode import Unreadable, decode
from unveil.data.loader import Loader, TooManyBroken
from unveil.data.prefetch import prefetch
from unveil.data.sources import open_source
from unveil.data.transforms import CenterView, Sample, View, center_view
from unveil.modeling.rng import sample_keys
from unveil.modeling.types import RGB

VIEW = View((6, 8), flip="d4")


class Numbers:
    """A source of n images of noise, some of them broken; it counts how often each is decoded."""

    address, channels, classes, labels = "numbers", 1, None, None

    def __init__(self, n: int, broken: set[int] | None = None) -> None:
        self.n, self.broken = n, broken or set()
        self.decoded: list[int] = []

    def __len__(self) -> int:
        return self.n

    def image(self, index: int) -> torch.Tensor:
        self.decoded.append(index)
        if index in self.broken:
            raise Unreadable(self.name(index), "made so")
        noise = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (1, 9 + index % 5, 12), dtype=torch.uint8, generator=noise)

    def name(self, index: int) -> str:
        return f"#{index}"


def same(ours, theirs) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    return all(torch.equal(a.maps["rgb"], b.maps["rgb"]) and torch.equal(a.key, b.key) for a, b in pairs)


@given(st.integers(1, 90), st.integers(1, 40), st.integers(0, 5), st.integers(0, 9), st.integers(2, 5), st.booleans())
@settings(max_examples=25, deadline=None)
def test_threads_cache_and_start_change_nothing(n, batch_size, epoch, seed, workers, cached):
    broken = {3} if n > 60 else set()
    alone = Loader(Numbers(n, broken), VIEW, batch_size, seed, workers=1, cache_bytes=0)
    many = Loader(Numbers(n, broken), VIEW, batch_size, seed, workers=workers, cache_bytes=10**6 * cached)
    batches = list(alone.batches(epoch))
    assert len(batches) == alone.steps_per_epoch == max(1, n // batch_size)
    assert same(batches, many.batches(epoch))
    assert alone.unreadable == many.unreadable
    start = len(batches) // 2
    assert same(batches[start:], many.batches(epoch, start))


@given(st.integers(1, 500), st.integers(0, 2**31), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_an_epoch_is_a_permutation(n, seed, epoch):
    loader = Loader(Numbers(n), VIEW, 8, seed)
    order = loader.order(epoch)
    assert order.sort().values.tolist() == list(range(n))
    if n > 20:
        assert not torch.equal(order, loader.order(epoch + 1))
        assert not torch.equal(order, Loader(Numbers(n), VIEW, 8, seed + 1).order(epoch))


def test_a_batch_is_the_random_views_of_its_samples():
    source = Numbers(20)
    loader = Loader(source, VIEW, 8, seed=4, modality="thermal")
    samples = loader.order(2)[8:16]
    batch = list(loader.batches(2))[1]
    assert torch.equal(batch.key, sample_keys(4, 2, samples))
    rows = zip(samples.tolist(), batch.key, strict=True)
    views = [VIEW([Sample({"rgb": source.image(i)})], [RGB], key[None])[0].maps["rgb"] for i, key in rows]
    assert torch.equal(batch.maps["thermal"], torch.stack(views))
    assert batch.maps["thermal"].dtype == torch.uint8
    assert batch.progress.shape == ()


def test_a_sample_is_seen_anew_in_every_epoch():
    loader = Loader(Numbers(1), View((32, 32)), 1, seed=0)
    first, second = (next(loader.batches(epoch)).maps["rgb"] for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_a_source_smaller_than_a_batch_is_one_batch():
    batches = list(Loader(Numbers(5), VIEW, 64, seed=0).batches(0))
    assert [len(batch) for batch in batches] == [5]


def test_what_is_skipped_is_not_decoded_and_what_is_cached_not_again():
    source = Numbers(40)
    loader = Loader(source, VIEW, 10, seed=0, cache_bytes=10**6)
    list(loader.batches(0, start_step=3))
    assert sorted(source.decoded) == sorted(loader.order(0)[30:].tolist())
    list(loader.batches(0))
    list(loader.batches(1))
    assert sorted(source.decoded) == list(range(40))
    small = Numbers(40)
    loader = Loader(small, VIEW, 10, seed=0, workers=1, cache_bytes=500)
    list(loader.batches(0))
    assert 500 - 200 <= sum(image.nbytes for image in loader._cache.values()) <= 500


def test_8_and_16_bits_share_a_batch(tmp_path):
    Image.new("L", (8, 8), 51).save(tmp_path / "a.png")
    Image.fromarray(np.full((8, 8), 13107, np.uint16)).save(tmp_path / "b.png")
    maps = next(Loader(open_source(tmp_path), VIEW, 2, seed=0).batches(0)).maps["rgb"]
    assert maps.dtype == torch.float32
    assert torch.allclose(maps, torch.tensor(0.2), atol=1e-6)


def test_a_broken_image_is_replaced_and_named():
    broken = {7, 31, 58}
    loader = Loader(Numbers(100, broken), VIEW, 20, seed=0)
    batches = list(loader.batches(0))
    assert [len(batch) for batch in batches] == [20] * 5
    assert loader.unreadable == {f"#{i}": "made so" for i in broken}
    healthy = Loader(Numbers(100), VIEW, 20, seed=0).batches(0)
    place = loader.order(0).tolist()
    for step, (ours, theirs) in enumerate(zip(batches, healthy, strict=True)):
        replaced = torch.tensor([i in broken for i in place[20 * step : 20 * step + 20]])
        equal = (ours.maps["rgb"] == theirs.maps["rgb"]).flatten(1).all(1)
        assert torch.equal(equal, ~replaced)  # the others stay as they were


def test_too_many_broken_stop_the_run():
    loader = Loader(Numbers(200, set(range(0, 200, 5))), VIEW, 50, seed=0)
    with pytest.raises(TooManyBroken, match=r"numbers are broken, more than 5%:\n  #\d+: made so") as stopped:
        list(loader.batches(0))
    assert str(stopped.value).count("made so") == min(10, len(loader.unreadable))
    assert "inspect" in str(stopped.value)
    tolerant = Loader(Numbers(200, set(range(0, 200, 5))), VIEW, 50, seed=0, max_broken=0.3)
    assert len(list(tolerant.batches(0))) == 4


@pytest.mark.parametrize("n", [1, 7, 300])
def test_all_broken_is_the_same_clear_error(n):
    with pytest.raises(TooManyBroken, match="made so"):
        list(Loader(Numbers(n, set(range(n))), VIEW, 16, seed=0).batches(0))


def test_bad_luck_at_the_start_is_no_reason_to_stop():
    first = Loader(Numbers(2000), VIEW, 20, seed=0).order(0)[:20].tolist()
    loader = Loader(Numbers(2000, set(first[:3])), VIEW, 20, seed=0)
    assert len(list(loader.batches(0))) == 100


def test_broken_images_are_left_out_without_a_bound_on_them():
    broken = {0, 7, 31}
    loader, whole = (Loader(Numbers(40, b), VIEW, 10, seed=0, max_broken=None) for b in (broken, set()))
    for (ours, rows), (theirs, all_rows) in zip(loader.numbered(1), whole.numbered(1), strict=True):
        readable = torch.tensor([i not in broken for i in all_rows.tolist()])
        assert torch.equal(rows, all_rows[readable])
        assert torch.equal(ours.key, theirs.key[readable])
        assert torch.equal(ours.maps["rgb"], theirs.maps["rgb"][readable])
    assert loader.unreadable == {f"#{i}": "made so" for i in broken}
    with pytest.raises(ValueError, match=r"none of the 3 images of numbers can be read; #\d: made so"):
        list(Loader(Numbers(3, {0, 1, 2}), VIEW, 2, seed=0, max_broken=None).in_order())


def test_samples_come_in_order_as_centre_views_or_whole():
    source, view = Numbers(23, {5}), CenterView((8, 8))
    loader = Loader(source, view, 10, max_broken=None, workers=3)
    batches = list(loader.in_order())
    assert torch.cat([rows for _, rows in batches]).tolist() == [i for i in range(23) if i != 5]
    assert [len(batch) for batch, _ in batches] == [9, 10, 3]
    views = torch.cat([batch.maps["rgb"] for batch, _ in batches])
    assert torch.equal(views[7], center_view(source.image(8), (8, 8)))
    samples = [sample for chunk in loader.whole_samples() for sample in chunk]
    assert len(samples) == 22
    assert torch.equal(samples[7].maps["rgb"], source.image(8))


@pytest.mark.parametrize("held", [1, 300, 1 << 30])
def test_large_photographs_are_held_a_few_at_a_time(held: int, monkeypatch: pytest.MonkeyPatch):
    """Views are drawn as soon as what was decoded is large; the batches are the same to the bit."""
    together = list(Loader(Numbers(40, {3, 11}), VIEW, 20, seed=0, workers=1, max_broken=0.1).numbered(0))
    monkeypatch.setattr("unveil.data.loader._DECODED_BYTES", held)
    shown: list[int] = []

    class Counted(View):
        def __call__(self, samples, modalities, keys):
            shown.append(sum(sample.nbytes for sample in samples))
            return super().__call__(samples, modalities, keys)

    source = Numbers(40, {3, 11})
    loader = Loader(source, Counted((6, 8), flip="d4"), 20, seed=0, workers=1, max_broken=0.1)
    apart = list(loader.numbered(0))
    assert same([batch for batch, _ in apart], [batch for batch, _ in together])
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(apart, together, strict=True))
    largest = source.image(4).nbytes
    assert max(shown) <= held + largest
    wholes = list(Loader(Numbers(40), VIEW, 20, workers=1).whole_samples())
    assert all(sum(sample.nbytes for sample in chunk) <= held + largest for chunk in wholes)
    assert sum(map(len, wholes)) == 40


def test_prefetch_keeps_the_order_and_works_no_further_ahead_than_allowed():
    started: list[int] = []

    def job(number: int) -> int:
        started.append(number)
        time.sleep(0.02 * (number % 3))
        return number

    results = prefetch((partial(job, number) for number in range(20)), ahead=4, workers=4)
    assert next(results) == 0
    time.sleep(0.2)
    assert max(started) == 4
    assert list(results) == list(range(1, 20))

    def fail(number: int) -> int:
        if number == 3:
            raise ValueError("a bug")
        return number

    with pytest.raises(ValueError, match="a bug"):
        list(prefetch((partial(fail, number) for number in range(9)), ahead=2, workers=2))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("unveil-data")]


def test_the_wait_for_data_is_measured():
    class Slow(Numbers):
        def image(self, index: int) -> torch.Tensor:
            time.sleep(0.02)
            return super().image(index)

    loader = Loader(Slow(16), VIEW, 8, seed=0, workers=1, cache_bytes=0)
    list(loader.batches(0))
    assert 0.2 < loader.wait_seconds < 2


def test_stopping_early_leaves_no_thread():
    batches = Loader(Numbers(200), VIEW, 10, seed=0, workers=4).batches(0)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("unveil-data")]


def test_a_fault_in_a_source_is_not_hidden():
    class Faulty(Numbers):
        def image(self, index: int) -> torch.Tensor:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(Loader(Faulty(8), VIEW, 4, seed=0).batches(0))


@pytest.mark.parametrize("source", [Numbers(0), Numbers(5)])
def test_what_cannot_be_loaded_is_refused(source):
    with pytest.raises(ValueError, match="no images" if len(source) == 0 else "batch size 0"):
        Loader(source, VIEW, 0 if len(source) else 4, seed=0)


# In a process of its own: the checks of shapes in this one draw from `random`.
ENDLESS = """
import random, sys
import numpy, torch
from unveil.data.loader import Loader
from unveil.data.sources import open_source
from unveil.data.transforms import View
loader = Loader(open_source(sys.argv[1]), View((64, 64)), 4, seed=0, workers=4, cache_bytes=0)
def chance(): return random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
before = chance()
for batch in loader.batches(0): pass
print("no global chance was used" if chance() == before else "global chance was used")
try:
    for epoch in range(10**6):
        for batch in loader.batches(epoch):
            print("batch", flush=True)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_no_global_chance_is_used_and_ctrl_c_ends_it_cleanly(tmp_path):
    for i in range(8):
        Image.effect_noise((300, 300), 50).save(tmp_path / f"{i}.png")
    command = [sys.executable, "-c", ENDLESS, str(tmp_path)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert run.stdout.readline() == "no global chance was used\n"
        assert run.stdout.readline() == "batch\n"
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=20)
    finally:
        run.kill()
    assert out.endswith("stopped\n")
    assert (run.returncode, err) == (0, "")


def test_threads_that_read_compute_with_one_thread_and_leave_the_caller_its_own():
    """In a process of its own, where nothing was computed before: else the caller takes over the readers' number."""
    readers = "from unveil.runs.hardware import reading_threads\nwith reading_threads(2) as readers: "
    code_of_reader = "print(readers.submit(lambda: (torch.get_num_threads(), os.nice(0))).result())\n"
    own = "print((torch.get_num_threads(), os.nice(0)))"

    def run(code: str) -> list[tuple[int, int]]:
        command = [sys.executable, "-c", f"import os, torch\n{code}"]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        return [ast.literal_eval(line) for line in ran.stdout.splitlines()]

    (threads, nice), caller = run(readers + code_of_reader + own)
    assert threads == 1
    assert [caller] == run(own)
    if sys.platform == "linux":
        assert nice > caller[1] or nice == 19


@pytest.mark.parametrize(("shards", "repeats"), [(1, 4), (2, 3), (3, 2)])
def test_repeats_show_in_a_cycle_what_its_epochs_show_one_by_one(shards, repeats):
    """The same samples and views in another order, each sample decoded once in a batch; resumed anywhere alike."""
    n, batch = 50, 12
    plain = Loader(Numbers(n), VIEW, batch, seed=5)
    source = Numbers(n)
    own = [
        Loader(source, VIEW, batch, seed=5, repeats=repeats, shard=(k, shards), cache_bytes=0, workers=2)
        for k in range(shards)
    ]
    views = []
    for epoch in range(repeats, 2 * repeats):
        source.decoded.clear()
        parts = [list(loader.numbered(epoch)) for loader in own]
        assert [len(part) for part in parts] == [own[0].steps_per_epoch] * shards == [n // batch] * shards
        rows = torch.cat([torch.cat([part[s][1] for part in parts]) for s in range(n // batch)])
        assert torch.equal(rows, own[0].order(epoch))
        assert len(source.decoded) == len(rows) // repeats
        views += [
            (int(row), int(key), image.numpy().tobytes())
            for part in parts
            for made, numbers in part
            for row, key, image in zip(numbers, made.key, made.maps["rgb"], strict=True)
        ]
        for loader, part in zip(own, parts, strict=True):
            assert same([made for made, _ in part[2:]], loader.batches(epoch, 2))
    seen = {row for row, *_ in views}
    assert len(seen) * repeats == len(views) == len(set(views)) == repeats * (n // batch) * batch
    for epoch in range(repeats, 2 * repeats):
        for made, numbers in plain.numbered(epoch):
            for row, key, image in zip(numbers.tolist(), made.key.tolist(), made.maps["rgb"], strict=True):
                assert row not in seen or (row, key, image.numpy().tobytes()) in views


def test_a_repeated_jpeg_is_decoded_once_and_seen_differently(tmp_path, monkeypatch):
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(noise).resize((300, 220)).save(tmp_path / f"{number}.jpg")
    decoded = []
    monkeypatch.setattr(encoded, "decode", lambda data, name, by: decoded.append((name, by)) or decode(data, name, by))
    loader = Loader(open_source(tmp_path), View((8, 8), (1, 1), (4 / 3, 4 / 3)), 6, repeats=3, cache_bytes=0)
    (made,) = loader.batches(0)
    assert sorted(decoded) == sorted({(f"{i}.jpg", 8) for i in loader.order(0).tolist()})
    mirrored = [made.maps["rgb"][i : i + 3] for i in (0, 3)]
    assert any(not torch.equal(one[0], one[1]) or not torch.equal(one[1], one[2]) for one in mirrored)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_the_first_pass_ends_where_memory_serves_what_was_read(cache_bytes: int):
    loader = Loader(Numbers(24), View((8, 8)), 8, cache_bytes=cache_bytes)
    told = []
    for epoch in range(2):
        told.append(loader.is_first_pass)
        list(loader.batches(epoch))
    assert told == [cache_bytes > 0, False]
