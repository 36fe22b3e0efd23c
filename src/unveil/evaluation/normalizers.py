"""How an encoder's features are read, and their normalisation: fitted on training images, kept in the run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ..data.kept_views import KeptViews
from ..data.loader import ViewPolicy
from ..data.sources import SampleSource, Source, Subset, origin, presence, spread
from ..modeling.image_encoder import FeatureExtractor
from ..modeling.normalizer import SHRINKAGE as SHRINKAGE
from ..modeling.normalizer import Normalize, Normalizer
from ..modeling.normalizer import whitening as whitening  # protocols take it from here
from ..runs.atomic import make_folder
from ..runs.checkpoint import write_weights
from ..runs.run_config import Precision
from .features import ImageFeatures, RawPixels, extract
from .results import checksum
from .types import FeatureEncoder

FOLDER = "features"  # of a run, in which normalisations are kept
FITTED_ON = 5000  # training images at most, evenly spread


@dataclass(frozen=True)
class FittedOn:
    """The images that normalisations are fitted on, which of their maps are read, and how.

    `source` opens them; where it raises FileNotFoundError they are not there any more. Encoders read their own pool.
    """

    source: Callable[[], Source]
    inputs: tuple[str, ...] = ()
    micro_batch: int = 256
    precision: Precision = "auto"
    progress: Callable[[int, int], None] | None = None
    views: KeptViews | None = None  # for the baselines

    @cached_property
    def images(self) -> tuple[Source, Source]:
        """The images that are fitted on, and those that they are spread over; of aligned maps those that are read."""
        try:
            source = with_maps(self.source(), self.inputs)
        except FileNotFoundError as error:
            raise ValueError(
                f"normalisation and auto read training images, and these are gone: {error}; leave --normalize and auto"
                " out, or put the images back"
            ) from error
        return Subset(source, spread(len(source), FITTED_ON)), source

    def fit(self, encoder: FeatureEncoder, kind: Normalize) -> tuple[Normalizer, dict[str, object]]:
        """The normalisation of an encoder's features, on its device, and what it was fitted on.

        Raises ValueError where the images are gone or too few.
        """
        if kind in ("none", "l2"):
            return Normalizer(kind), {}
        few, source = self.images
        features = self.extract(encoder, few)
        facts = {"images": len(features), "among": len(source), "of": source.address}
        return Normalizer.fit(features.values, kind).to(encoder.device), facts

    def extract(
        self, encoder: FeatureEncoder, source: Source, view: ViewPolicy | None = None, seed: int = 0
    ) -> ImageFeatures:
        """The features of some of the images, of their centre views, or of views drawn by a seed."""
        return extract(
            encoder,
            source,
            getattr(encoder, "pool", "mean"),
            self.micro_batch,
            self.progress,
            inputs=self.inputs,
            precision=self.precision,
            views=self.views if view is None else None,
            view=view,
            seed=seed,
        )

    def normalised(self, encoder: FeatureEncoder, kind: Normalize) -> FeatureEncoder:
        """A baseline with the normalisation of its own features."""
        if isinstance(encoder, FeatureExtractor):
            encoder.normalizer = self.fit(encoder, kind)[0]
            return encoder
        assert isinstance(encoder, RawPixels)
        return replace(encoder, normalizer=self.fit(encoder, kind)[0])


def with_maps(source: Source, names: Sequence[str]) -> Source:
    """Of aligned maps those of these names, of the samples that have them all; by default the first that is an input.

    Other sources are returned as they are.
    """
    whole, numbers = origin(source)
    if not isinstance(whole, SampleSource):
        return source
    inputs = [i for i, d in enumerate(whole.declared) if d.modality.role != "output"]
    columns = [i for i in inputs if whole.declared[i].name in names] or inputs[:1]
    complete = np.flatnonzero(np.all(presence(source)[:, columns], axis=1))
    declared = tuple(whole.declared[i] for i in columns)
    return Subset(whole.settled(declared), [numbers[row] for row in complete.tolist()])


def normalise(
    encoder: FeatureExtractor, kind: Normalize, images: FittedOn, folder: Path, of: Source | None = None
) -> dict[str, Any]:
    """Give an encoder the normalisation of its features: the one that is kept in a run folder, or fitted and kept now.

    One that was fitted with other weights, or on other images than those `of` a source, is fitted anew. Returns what
    it was fitted on. Raises ValueError where it has to be fitted and the images are gone.
    """
    if kind == "none":
        return {}
    names = [kind, encoder.pool, "layer", *map(str, encoder.layers or (encoder.depth,))]
    names += [encoder.combine] if len(encoder.layers) > 1 else []
    file = folder / FOLDER / f"{'-'.join([*names, *images.inputs])}.safetensors"
    weights = checksum(encoder)
    known = _read(file, kind, weights)
    if known is None or (of is not None and not same_images(known[1], of)):
        normalizer, facts = images.fit(encoder, kind)
        if facts:
            make_folder(file.parent)
            state = {name: tensor.cpu() for name, tensor in normalizer.state_dict().items()}
            write_weights(file, state, {"unveil": json.dumps({**facts, "kind": kind, "weights": weights})})
        known = normalizer, facts
    encoder.normalizer = known[0].to(encoder.device)
    return known[1]


def same_images(facts: Mapping[str, Any], source: Source) -> bool:
    """Whether something was fitted or chosen on the images of a source, by its address and their number."""
    return (facts.get("of"), facts.get("among")) == (source.address, len(source))


def _read(file: Path, kind: Normalize, weights: int) -> tuple[Normalizer, dict[str, Any]] | None:
    """A kept normalisation; None where there is none, it is damaged, or was fitted with other weights."""
    try:
        with safe_open(file, "pt") as content:
            facts: dict[str, Any] = json.loads((content.metadata() or {})["unveil"])
            tensors = {name: content.get_tensor(name) for name in ("mean", "scale")}
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return (Normalizer(kind, **tensors), facts) if facts.get("weights") == weights else None


def reads(encoder: object) -> dict[str, object]:
    """What features are made of, beside the pool, where that is not the last block alone."""
    facts: dict[str, object] = {}
    layers = getattr(encoder, "layers", ())
    if layers and layers != (getattr(encoder, "depth", 0),):
        facts["layers"] = list(layers)
        if len(layers) > 1:
            facts["combine"] = getattr(encoder, "combine", "concat")
    normalizer = getattr(encoder, "normalizer", None)
    if isinstance(normalizer, Normalizer):
        facts["normalize"] = normalizer.kind
    return facts


def described(encoder: object) -> str:
    """The same as a sentence for a card; empty for the last block alone."""
    facts = reads(encoder)
    layers = facts.get("layers", [])
    blocks = ""
    if isinstance(layers, list) and layers:
        depth = getattr(encoder, "depth", 0)
        names = ", ".join(map(str, layers))
        blocks = f"block {names} of {depth}" if len(layers) == 1 else f"blocks {names} of {depth}"
        if len(layers) > 1:
            blocks += ", side by side" if facts["combine"] == "concat" else ", their mean"
    how = {
        "standardize": "standardised",
        "whiten": f"whitened ({SHRINKAGE:g} of the mean variance added to each variance)",
        "l2": "divided by their length",
    }.get(str(facts.get("normalize")), "")
    if how and how != "divided by their length":
        how += f" by at most {FITTED_ON:,} training images, without labels; so are those of the baselines"
    sentence = " and ".join(filter(None, (f"read from {blocks}" if blocks else "", how)))
    return f" Features are {sentence}." if sentence else ""
