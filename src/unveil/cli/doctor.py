"""`unveil doctor`: what this machine has, what it can do, and what to do about what it cannot."""

from __future__ import annotations

import io
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..modeling.masked_model import MaskedModel
    from ..modeling.types import Batch

GIB = 2**30
NEEDS = [re.split(r"[^\w.-]", need)[0] for need in requires("unveil") or () if "extra ==" not in need]
EXTRAS = {
    "matplotlib": "figures of reconstructions, attention and neighbours in Python",
    "tensorboard": "pretrain --log tensorboard",
    "wandb": "pretrain --log wandb",
    "tifffile": "TIFF files of any number of channels",
    "transformers": "comparison with other implementations in tests and unveil bench",
}


Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the examination, and what to do about it."""

    level: Level
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:8}{self.text}" + (f"\n{'':8}-> {self.advice}" if self.advice else "")


def _judged(is_fine: bool, text: str, advice: str, otherwise: Level = "note") -> Finding:
    return Finding("ok", text) if is_fine else Finding(otherwise, text, advice)


def examine(*, full: bool = False) -> bool:
    """Print every finding as it is made; whether nothing is broken.

    full: compile a small model too, which takes up to a minute
    """
    checks: list[Callable[[], Iterator[Finding]]] = [_packages, _processor, _devices, _memory, _folder, _decoding]
    checks += [_step, _compiling] if full else [_step]
    is_well = True
    for check in checks:
        for finding in _guarded(check):
            print(finding, flush=True)
            is_well &= finding.level != "problem"
    return is_well


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # whatever is broken on this machine: it is a finding, and the other checks still run
        name = check.__name__.strip("_")
        advice = 'install again: pip install -c constraints.txt -e ".[test]"; if it stays, please report it'
        yield Finding("problem", f"{name}: {type(error).__name__}: {error}", advice)


def _packages() -> Iterator[Finding]:
    yield Finding("ok", f"unveil {version('unveil')}, Python {platform.python_version()}, {platform.platform()}")
    versions = {name: _version(name) for name in (*NEEDS, *EXTRAS)}
    yield Finding("ok", ", ".join(f"{name} {versions[name]}" for name in NEEDS if versions[name]))
    if missing := [name for name in NEEDS if not versions[name]]:
        yield Finding("problem", f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    for name, use in EXTRAS.items():
        text = f"{name} {versions[name]}: {use}" if versions[name] else f"no {name}"
        yield _judged(bool(versions[name]), text, f"pip install {name} gives {use}")


def _version(package: str) -> str:
    """The installed version of a package; empty where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> Iterator[Finding]:
    import torch

    from ..runs.console import plural
    from ..runs.hardware import num_cores

    cores, threads = num_cores(), torch.get_num_threads()
    used = f"{cores} {plural('core', cores)}, torch uses {threads} {plural('thread', threads)}"
    yield Finding("ok", used)
    capabilities = torch.cpu.get_capabilities()
    if native := [name for name in ("avx512_bf16", "amx_bf16", "bf16") if capabilities.get(name)]:
        yield Finding("ok", f"bf16 is native on this processor ({', '.join(native)})")
    else:
        yield Finding("note", "this processor has no native bf16: float32 is used on it")


def _devices() -> Iterator[Finding]:
    import torch

    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no native bf16"
        name = torch.cuda.get_device_name(i)
        yield Finding("ok", f"cuda:{i} {name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, {bf16}")
    if torch.backends.mps.is_available():
        yield Finding("ok", "mps: the GPU of this Mac")
    elif not torch.cuda.is_available():
        has_driver = shutil.which("nvidia-smi") is not None
        advice = "this torch is built without CUDA: install the CUDA build" if has_driver else ""
        yield Finding("note", "no GPU: runs go on the processor, so keep models and images small", advice)


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    text = f"memory: {memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    advice = "close what is not needed, or choose --size tiny and a small --micro-batch"
    yield _judged(memory.available > 2 * GIB, text, advice)


def _folder() -> Iterator[Finding]:
    """Where runs would be written: room, permission, speed of a synced write."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free / GIB
    try:
        with tempfile.TemporaryFile(dir=here) as file:
            block = os.urandom(2**20)
            start = time.perf_counter()
            for _ in range(64):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            speed = 64 / (time.perf_counter() - start)
    except OSError as error:
        yield Finding("note", f"{here}: {error.strerror}", "write runs elsewhere: --out FOLDER")
        return
    text = f"{here}: {free:.1f} GiB free, {speed:.0f} MiB/s written"
    yield _judged(free > 2, text, "a run of ViT-B needs 2 GiB: --out on another disk")


def _decoding() -> Iterator[Finding]:
    import numpy as np
    import simplejpeg
    from PIL import Image, features

    side, count = 512, 20
    ramp = np.linspace(0, 255, side, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(128)), axis=-1)
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=90)
    decoders: dict[str, Callable[[], object]] = {
        "simplejpeg": lambda: simplejpeg.decode_jpeg(jpeg),
        "Pillow": lambda: Image.open(io.BytesIO(jpeg)).convert("RGB"),
    }
    rates = []
    for name, decode in decoders.items():
        start = time.perf_counter()
        for _ in range(count):
            decode()
        rates.append(f"{name} {count / (time.perf_counter() - start):.0f}/s")
    error = float(np.abs(simplejpeg.decode_jpeg(jpeg).astype(int) - image).mean())
    if error > 4:
        advice = "pip install --force-reinstall simplejpeg"
        yield Finding("problem", f"a decoded JPEG is {error:.1f} grey levels off", advice)
    yield Finding("ok", f"JPEG of {side} px on one core: {', '.join(rates)}")
    for name in ("webp", "libtiff"):
        if not features.check(name):
            yield Finding("note", f"this Pillow cannot read {name}", "pip install --upgrade pillow")


def _step() -> Iterator[Finding]:
    """One update of the smallest MAE: the whole chain from bytes to gradients."""
    import torch

    from ..modeling.masked_model import mean_loss

    model, batch = _smallest()
    start = time.perf_counter()
    loss = mean_loss(model(batch))
    loss.backward()
    text = f"loss {loss.item():.3f}, {time.perf_counter() - start:.2f} s for {len(batch)} images of 32 px"
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    works = bool(gradients) and all(bool(t.isfinite().all()) for t in (loss, *gradients))
    text = f"a training step {'works' if works else 'fails'}: {text}"
    yield _judged(works, text, f"torch {torch.__version__} is at fault here", "problem")


def _compiling() -> Iterator[Finding]:
    import torch

    from ..modeling.masked_model import mean_loss

    model, batch = _smallest()
    expected = mean_loss(model(batch)).item()
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = mean_loss(torch.compile(model)(batch)).item()
    except Exception as error:  # every toolchain fails in its own way; the run does without
        reason = str(error).strip().partition("\n")[0]
        compiler = "a C++ compiler" if sys.platform != "win32" else "the MSVC compiler"
        advice = f"install {compiler}, or train with --compile off"
        yield Finding("note", f"torch.compile does not work: {reason}", advice)
        return
    if abs(loss - expected) > 1e-3 * abs(expected):
        yield Finding("problem", f"compiled, the loss is {loss}, not {expected}", "train with --compile off")
    else:
        yield Finding("ok", f"torch.compile works: {time.perf_counter() - start:.0f} s for the smallest model")


def _smallest() -> tuple[MaskedModel, Batch]:
    """A tiny MAE on 32 px and eight grey images."""
    import torch

    from ..modeling.rng import sample_keys
    from ..modeling.types import Batch
    from ..recipes.mae import recipe
    from ..recipes.recipe import DecoderShape, Hyperparameters

    torch.manual_seed(0)
    train = Hyperparameters(size="tiny", patch=8, image_size=(32,))
    model = recipe(train=train, shape=DecoderShape(64, 1)).stages[0].build()
    images = torch.rand(8, 3, 32, 32)
    return model, Batch({"rgb": images}, sample_keys(0, 0, range(8)), torch.tensor(0.0))
