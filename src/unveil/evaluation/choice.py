"""Which blocks and tokens features are read from, and their normalisation, chosen on training images without labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.sources import Source, Subset, spread
from ..data.transforms import View
from ..modeling.image_encoder import FeatureExtractor
from ..modeling.normalizer import Normalize, Normalizer
from ..modeling.pooling import combined, resolve_layers
from ..modeling.types import PARTS, Combine, Pool
from ..runs.atomic import make_folder, write_json
from .features import rankme
from .normalizers import FOLDER, FittedOn, normalise, same_images
from .results import checksum
from .types import FeatureEncoder

Auto = Literal["auto"]
FILE = "chosen.json"
CARD = (
    "Blocks, pool and normalisation that are auto were chosen on training images, without labels; baselines are read in"
    " the same way."
)
LOOKED_AT = 3000  # training images, a third of them to compare on
FEWEST = 10  # to compare on
POOLS: Sequence[Pool] = ("mean", "cls", "both", "mean-std")  # that may be chosen: all three parts are worse by k-NN
SEVERAL = 4  # of the last blocks, as DINO's linear probe reads them


@dataclass(frozen=True)
class Reading:
    """What an image's feature is: tokens of some blocks, counted from 1, and their normalisation.

    No blocks are the last one.
    """

    pool: Pool = "mean"
    layers: tuple[int, ...] = ()
    combine: Combine = "concat"
    normalize: Normalize = "none"

    def __str__(self) -> str:
        blocks = " ".join(map(str, self.layers))
        together = f" --combine {self.combine}" if len(self.layers) > 1 else ""
        return f"--layer {blocks}{together} --pool {self.pool} --normalize {self.normalize}"


def settle(
    encoder: FeatureExtractor,
    images: FittedOn,
    folder: Path,
    pool: Pool | Auto,
    layer: Sequence[int | Auto],
    combine: Combine,
    normalize: Normalize | Auto,
    note: Callable[[str], None],
    of: Source | None = None,
) -> Reading:
    """The reading of an encoder's features that was asked for, what is auto in it chosen on `images`.

    A choice is kept in a run folder and holds for the same weights and, of a public ViT, the images `of` a source. It
    is told to `note`. Raises ValueError for blocks that there are not, and where images to choose on are gone.
    """
    for name, value, known in (("pool", pool, get_args(Pool)), ("normalize", normalize, get_args(Normalize))):
        if value not in (*known, "auto"):
            raise ValueError(f"{name} is one of {', '.join(known)}, auto; got {value!r}")
    is_open = "auto" in layer
    if is_open and len(layer) > 1:
        raise ValueError("--layer takes numbers of blocks or auto, not both")
    layers = () if is_open else resolve_layers([number for number in layer if number != "auto"], encoder.depth)
    if not is_open and pool != "auto" and normalize != "auto":
        return Reading(pool, layers, combine, normalize)
    question: dict[str, Any] = {"pool": pool, "layers": "auto" if is_open else list(layers), "combine": combine}
    question |= {"normalize": normalize, "inputs": list(images.inputs), "weights": checksum(encoder)}
    file = folder / FOLDER / FILE
    content = _read(file, question)
    if content is None or (of is not None and not same_images(content, of)):
        candidates = list(_candidates(encoder, pool, None if is_open else layers, combine, normalize))
        content = {**question, **_compare(encoder, images, candidates)}
        make_folder(file.parent)
        write_json(file, content)
    chosen = Reading(**{**content["chosen"], "layers": tuple(content["chosen"]["layers"])})
    note(
        f"features: {chosen}, chosen by their rank ({content['rankme']:.0f}; {content['rankme_of_default']:.0f} of the"
        f" default) on {content['images']:,} training images, without labels"
    )
    return chosen


def take(encoder: FeatureExtractor, reading: Reading, images: FittedOn, folder: Path, of: Source | None = None) -> None:
    """Let an encoder read its features so, with the normalisation that is kept in a folder or fitted on the images.

    Raises ValueError as `normalise` does.
    """
    encoder.pool = reading.pool
    encoder.read(reading.layers, reading.combine)
    normalise(encoder, reading.normalize, images, folder, of)


def alike(encoder: FeatureEncoder, reading: Reading, images: FittedOn) -> FeatureEncoder:
    """A baseline, or other weights, whose features are read so, and normalised by their own statistics."""
    if isinstance(encoder, FeatureExtractor):
        encoder.pool = reading.pool
        encoder.read(reading.layers, reading.combine)
    return encoder if reading.normalize == "none" else images.normalised(encoder, reading.normalize)


def _read(file: Path, question: dict[str, Any]) -> dict[str, Any] | None:
    """A kept choice; None where there is none, it is damaged, or it is of other weights or another question."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return content if all(content[name] == value for name, value in question.items()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _candidates(
    encoder: FeatureExtractor,
    pool: Pool | Auto,
    layers: tuple[int, ...] | None,
    combine: Combine,
    normalize: Normalize | Auto,
) -> Iterator[Reading]:
    """What may be chosen, the default first."""
    pools: Sequence[Pool] = POOLS if pool == "auto" else [pool]
    if not encoder.has_class_token:
        pools = [own for own in pools if pool != "auto" or "cls" not in PARTS[own]]
    last = tuple(range(max(1, encoder.depth - SEVERAL + 1), encoder.depth + 1))
    blocks = [last[-1:], last] if layers is None else [layers]
    kinds: Sequence[Normalize] = ["none", "standardize", "whiten"] if normalize == "auto" else [normalize]
    for own, of, kind in product(blocks, pools, kinds):
        yield Reading(of, own, combine, kind)


@torch.no_grad()
def _compare(encoder: FeatureExtractor, images: FittedOn, candidates: Sequence[Reading]) -> dict[str, Any]:
    """Every candidate's RankMe, and how often the other view of an image is found among those of others; the best.

    That is the one of the highest rank among those by which the other view is found no worse than by the default.
    Normalisations are fitted on two thirds of the images and compared on the others.
    """
    blocks = sorted({block for candidate in candidates for block in candidate.layers})
    widest: Pool = "cls-mean-std" if encoder.has_class_token else "mean-std"
    _, source = images.images
    before = encoder.pool, encoder.layers, encoder.combine
    encoder.pool, encoder.layers, encoder.combine = widest, tuple(blocks), "concat"
    try:
        places = spread(len(source), LOOKED_AT)
        to_fit, to_compare = Subset(source, [p for i, p in enumerate(places) if i % 3]), Subset(source, places[::3])
        if len(to_compare) < FEWEST:
            raise ValueError(f"auto needs {3 * FEWEST} images to choose on, and {source.address} has {len(source)}")
        fitted_on, compared = (images.extract(encoder, half).values for half in (to_fit, to_compare))
        view = View(encoder.image_size)
        views = [images.extract(encoder, to_compare, view, seed).values for seed in (1, 2)]
    finally:
        encoder.pool, encoder.layers, encoder.combine = before

    rows = []
    for candidate in candidates:
        sets = (narrowed(x, widest, blocks, candidate) for x in (fitted_on, compared, *views))
        normalizer = Normalizer.fit(next(sets), candidate.normalize)
        own, *both = map(normalizer, sets)
        rows.append({**asdict(candidate), "rankme": rankme(own), "retrieval": retrieval(*both)})
    default = rows[0]
    best = max((row for row in rows if row["retrieval"] >= default["retrieval"]), key=lambda row: row["rankme"])
    chosen = {name: best[name] for name in ("pool", "layers", "combine", "normalize")}
    signals = {"rankme": best["rankme"], "rankme_of_default": default["rankme"]}
    facts = {"images": len(fitted_on) + len(compared), "among": len(source), "of": source.address}
    return {"chosen": chosen, **signals, **facts, "candidates": rows}


def narrowed(
    features: Float[Tensor, "N F"], pool: Pool, blocks: Sequence[int], reading: Reading
) -> Float[Tensor, "N D"]:
    """The features of a reading, before its normalisation, of those of a wider pool of blocks that are side by side."""
    parts = features.unflatten(1, (len(blocks), len(PARTS[pool]), -1))
    taken = [PARTS[pool].index(part) for part in PARTS[reading.pool]]
    return combined([parts[:, blocks.index(b)][:, taken].flatten(1) for b in reading.layers], reading.combine)


def retrieval(first: Float[Tensor, "N D"], second: Float[Tensor, "N D"]) -> float:
    """The mean reciprocal rank of an image's second view among all second views, by cosine similarity with its first.

    From 1 / N to 1. Both ways are averaged; of equal similarities the own one comes last.
    """
    similarity = torch.nn.functional.normalize(first, dim=1) @ torch.nn.functional.normalize(second, dim=1).T
    own = similarity.diagonal()
    ranks = torch.cat([(similarity >= own[:, None]).sum(1), (similarity >= own[None]).sum(0)])
    return float((1 / ranks.double()).mean())
