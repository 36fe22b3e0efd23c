"""Baselines that an earlier command measured on the same images: their scores, and an untrained encoder's features."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from ..data.identity import identities
from ..data.sources import EncodedSource, Samples, Subset, origin
from ..runs.cache import cache_folder, cached, store
from ..runs.hardware import choose_precision
from ..runs.threads import use_threads
from .datasets import ImageSplit
from .types import Context, EvaluationProtocol, FeatureEncoder, FeatureSplit, Score

_SCORES, _FEATURES = "baseline-scores-1", "baseline-features-1"
_MOST_BYTES = 512 << 20  # of the features of one baseline
_PACKAGES = ("data", "evaluation", "modeling", "runs")  # whose code decides the scores
_LIBRARIES = ("torch", "numpy", "pillow", "simplejpeg")
_AT_ONCE = 4096  # images whose files are read between two lines of progress
_TENSORS = ("train", "train_labels", "test", "test_labels")


class MeasuredBaselines:
    """What is known of baselines on a split: scores of protocols on features, by all that they depend on.

    That is the content of the images in their order, their classes, the split, the code, and what the encoder and the
    protocol are. Nothing is known of images without files (rendered ones), of aligned maps, and of a user's own
    protocols.
    """

    def __init__(self, data: ImageSplit, context: Context):
        self.data, self.context = data, context
        wholes = [origin(images)[0] for images in (data.train, data.test)]
        has_files = all(isinstance(whole, EncodedSource) and not isinstance(whole, Samples) for whole in wholes)
        self.is_used = has_files and not data.inputs and cache_folder() is not None

    def of(self, encoder: FeatureEncoder, context: Context) -> MeasuredBaseline | None:
        """What is known of a baseline; None where nothing is kept."""
        if not self.is_used:
            return None
        key = {"images": self._images, "code": _code(), "encoder": _digest_of(encoder, context.pool)}
        key |= {"image_size": encoder.image_size, "pool": context.pool, "subject": context.subject}
        key |= {"precision": choose_precision(context.precision, encoder.device), "on": encoder.device.type}
        return MeasuredBaseline(json.dumps(key, sort_keys=True), self.data)

    @cached_property
    def _images(self) -> list[object]:
        """A digest of the content and the classes of the images of either set, and how they are read."""
        sets, done = (self.data.train, self.data.test), 0
        total, described = sum(map(len, sets)), list[object]()
        for images in sets:
            whole = origin(images)[0]
            digest = hashlib.blake2b(digest_size=16)
            for start in range(0, len(images), _AT_ONCE):
                rows = range(start, min(start + _AT_ONCE, len(images)))
                digest.update(identities(Subset(images, list(rows))).tobytes())
                done += len(rows)
                self.context.progress("looking for baselines of the same images", done, total)
            labels = hashlib.blake2b(np.array(images.numbers, np.int64).tobytes(), digest_size=16)
            for content in _sources([type(whole)]):
                digest.update(content)
            described += [digest.hexdigest(), labels.hexdigest(), len(images), images.channels]
        return [*described, self.data.num_classes]


class MeasuredBaseline:
    """Scores and features of one baseline."""

    def __init__(self, key: str, data: ImageSplit):
        self.key, self.data = key, data

    def score(self, name: str, protocol: EvaluationProtocol, seed: int) -> Score | None:
        content = cached(_SCORES, self._key_of(name, protocol, seed)) if _is_known(protocol) else None
        return None if content is None else Score(**json.loads(content))

    def keep_score(self, name: str, protocol: EvaluationProtocol, seed: int, score: Score) -> None:
        if _is_known(protocol):
            store(_SCORES, self._key_of(name, protocol, seed), json.dumps(asdict(score)).encode())

    def features(self) -> FeatureSplit | None:
        content = cached(_FEATURES, self.key)
        if content is None:
            return None
        tensors = load(content)
        facts = json.loads(tensors["facts"].numpy().tobytes())
        train, train_labels, test, test_labels = (tensors[name] for name in _TENSORS)
        classes, identity = self.data.num_classes, self.data.identity
        return FeatureSplit(train, train_labels, test, test_labels, classes, facts, identity)

    def keep_features(self, features: FeatureSplit) -> None:
        """Keep the features, but for those that would fill the cache, such as raw pixels of many images."""
        tensors: dict[str, Tensor] = {name: getattr(features, name).cpu() for name in _TENSORS}
        if sum(tensor.nbytes for tensor in tensors.values()) <= _MOST_BYTES:
            tensors["facts"] = torch.frombuffer(bytearray(json.dumps(features.facts).encode()), dtype=torch.uint8)
            store(_FEATURES, self.key, save(tensors))

    def _key_of(self, name: str, protocol: EvaluationProtocol, seed: int) -> str:
        options: Any = protocol
        return json.dumps([self.key, name, type(protocol).__qualname__, asdict(options), seed], sort_keys=True)


def _is_known(protocol: EvaluationProtocol) -> bool:
    return protocol.needs == "features" and type(protocol).__module__.startswith(f"{__package__}.")


def _digest_of(encoder: FeatureEncoder, pool: Any) -> str:
    """What an encoder computes: its classes' code, its weights, and its features of two fixed images, to the bit."""
    digest = hashlib.blake2b(digest_size=16)
    modules = list(encoder.modules()) if isinstance(encoder, nn.Module) else [encoder]
    for content in _sources(type(module) for module in modules):
        digest.update(content)
    for name, tensor in encoder.state_dict().items() if isinstance(encoder, nn.Module) else ():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    shape = (2, encoder.channels, *encoder.image_size)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(encoder.device)
    with torch.inference_mode(), use_threads(1):  # so that no rounding depends on their number
        digest.update(encoder.features(images, pool).float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _sources(classes: Iterable[type]) -> list[bytes]:
    """The files that define these classes, each once."""
    files = set[str]()
    for each in classes:
        try:
            files.add(inspect.getsourcefile(each) or each.__qualname__)
        except TypeError:  # of a class without a file, which was typed into an interpreter
            files.add(each.__qualname__)
    return [Path(file).read_bytes() if Path(file).is_file() else file.encode() for file in sorted(files)]


@cache
def _code() -> str:
    """A digest of the code of unveil that decides the scores, and the versions of the libraries below it."""
    root = Path(__file__).parents[1]
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(path for package in _PACKAGES for path in (root / package).rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    digest.update(" ".join(version(library) for library in _LIBRARIES).encode())
    return digest.hexdigest()
