"""`unveil analyze attention`: the attention of a run and its masks, at each of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

from ...data.aligned_folders import aligned_modalities
from ...data.columns import with_columns
from ...data.given_types import Data
from ...data.modality_config import declare
from ...data.sources import SampleSource, Source, origin
from ...evaluation.analysis.attention import DecoderAttention, attention_metrics, decoder_attention, foreground_share
from ...evaluation.analysis.conclusions import of_attention
from ...modeling.masked_model import MaskedModel
from ...modeling.types import Batch, Modality
from ...recipes.options import accept_python_values, as_text, as_tuple
from ...recipes.run import Run
from ...reporting.analyses import METRICS
from ...runs.console import log, table
from ...runs.folder import check_writable
from ...runs.hardware import choose_device
from ..subject import Subject, chunks, print_conclusions, write_analysis

BACKGROUND = {  # names of classes that fill a scene; all others are foreground
    *("sky", "floor", "wall", "ground", "ceiling", "road", "pavement", "sidewalk", "building", "tree", "vegetation"),
    *("terrain", "grass", "water", "sea", "sand", "fence", "background"),
}


@accept_python_values
def analyze_attention(
    run: str | PathLike[str] | Run,
    *,
    data: Data | None = None,
    image_column: str | None = None,
    labels: str | None = None,
    foreground: str | Sequence[str] = (),
    limit: int = 128,
    device: str = "auto",
    trust: bool = False,
) -> dict[str, Any]:
    """Measure the attention maps of a run at each of its checkpoints; printed, and written to
    `analysis/attention.json`.

    The normalised entropy of the maps of student, teacher and guide; rank correlation and top overlap of teacher and
    student; how much of the attention the masks hide; where pixels are labelled, how much of it is on the foreground.
    For a self-attention decoder (MAE's), the attention from masked to visible and to masked tokens.

    data: samples to measure on; by default those that the run held out
    image_column: the column of a Parquet file that holds the images, where there are several
    labels: the map of classes: semseg, or a .toml file that declares it; by default semseg where there is one
    foreground: names or numbers of the foreground classes; by default all but those that fill a scene, as sky and road
    limit: use at most so many samples, evenly spread
    device: cpu, cuda, mps; auto takes the best
    trust: execute the run's own recipe file where you have not run it before: this needs its whole model

    >>> import unveil
    >>> measured = unveil.analyze_attention("runs/a")
    a: attention on 2 samples of images (2 of 40), means over samples ...
    >>> measured["checkpoints"][-1]["hidden_tokens"]
    0.75
    """
    stored, where = Run.open(as_text(run), trust), choose_device(device)
    data = with_columns(as_text(data), image_column)
    address = data or stored.config.data.address
    has_labels = address.startswith("scenes") or any(d.name == "semseg" for d in aligned_modalities(address))
    check_writable(stored.path)
    samples = stored.held_out(data, declare((labels or "semseg",)) if labels or has_labels else ())
    label_map, things = _foreground(samples, as_tuple(foreground))
    modalities = tuple(dict.fromkeys([*stored.modalities, *([label_map] if label_map else [])]))
    checkpoints: list[dict[str, Any]] = []
    decoders: list[DecoderAttention] = []
    batch: Batch | None = None
    for weights in stored.checkpoints():
        try:
            identity = stored.checkpoint(weights.epoch).identity
        except ValueError as error:
            log(f"warning: {error}; these weights are left out")
            continue
        model = stored.model(epoch=weights.epoch).to(where)
        batch = batch or Subject(stored.name, model, modalities, samples).load(limit)[1]
        metrics = _mean_metrics(model, batch, label_map, things)
        checkpoints.append({"step": weights.step, "epoch": weights.epoch, **metrics})
        decoders = decoder_attention(model, chunks(batch)[0])
    if batch is None:
        raise ValueError(f"{stored.path} has no checkpoint yet")
    one_by_one = [metrics for metrics, _ in _metrics(model, batch.split(1), label_map, things)]
    content = {
        "data": address,
        "samples": len(batch),
        "checkpoints": checkpoints,
        "weights": identity,
        "decoders": [d.to_dict() for d in decoders],
        "conclusions": of_attention(one_by_one),
    }
    write_analysis(stored.path, "attention", content)
    print(f"{stored.name}: attention on {len(batch)} samples of {samples.address}, means over samples")
    head = ["", *(f"epoch {line['epoch']:.4g}" for line in checkpoints)]
    named = [(row, name) for name, row in METRICS.items() if name in checkpoints[-1]]
    print(table([head, *([row, *(line.get(name) for line in checkpoints)] for row, name in named)]))
    for d in decoders:
        print(
            f"\ndecoder {d.decoder}: attention from a masked token to one visible and to one masked token, summed over"
            f" {d.heads} heads, and the share of all that goes to visible tokens"
        )
        rows = [[f"block {k}", b.to_visible, b.to_masked, b.mass_on_visible] for k, b in enumerate(d.blocks, start=1)]
        rows += [["sum over blocks", *d.summed, None], ["the same, uniform attention", d.even, d.even, None]]
        rows += [["mean over blocks and heads", *d.mean, d.mass_on_visible]]
        print(table([["", "to visible", "to masked", "share on visible"], *rows]))
    print_conclusions(content)
    return content


def _mean_metrics(model: MaskedModel, batch: Batch, labels: Modality | None, things: list[int]) -> dict[str, float]:
    """The metrics of one checkpoint, means over the samples that have them."""
    values: dict[str, list[tuple[float, int]]] = {}
    for metrics, count in _metrics(model, chunks(batch), labels, things):
        for name, value in metrics.items():
            values.setdefault(name, []).append((value, count))
    return {
        name: sum(value * count for value, count in pairs) / sum(count for _, count in pairs)
        for name, pairs in values.items()
    }


def _metrics(
    model: MaskedModel, parts: Sequence[Batch], labels: Modality | None, things: list[int]
) -> Iterator[tuple[dict[str, float], int]]:
    """The metrics of each part of a batch, and the number of its samples."""
    for part in parts:
        foreground = None if labels is None else foreground_share(part, labels, things, model.encoder.patch)
        yield attention_metrics(model, part, model.encode_decode(part), foreground), len(part)


def _foreground(samples: Source, foreground: tuple[str, ...]) -> tuple[Modality | None, list[int]]:
    """The modality with labels, and the ids of its foreground classes; None where they are not known."""
    source = origin(samples)[0]
    maps = source.declared if isinstance(source, SampleSource) else ()
    declared = next((d for d in maps if d.is_categorical), None)
    if declared is None:
        return None, []
    names = declared.classes
    if foreground:
        ids = {name: i for i, name in enumerate(names)} | {str(i): i for i in range(declared.modality.num_classes)}
        if unknown := [word for word in foreground if word not in ids]:
            raise ValueError(f"--foreground {unknown[0]}: the classes are {', '.join(ids)}")
        return declared.modality, [ids[word] for word in foreground]
    if names:
        return declared.modality, [i for i, name in enumerate(names) if name not in BACKGROUND]
    log("note: the classes have no names; give the numbers of the foreground classes with --foreground")
    return None, []
