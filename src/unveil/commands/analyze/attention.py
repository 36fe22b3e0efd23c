"""`unveil analyze`: the attention of a run, the layers of two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...data.aligned_folders import aligned_modalities, open_images
from ...data.decode import Unreadable
from ...data.modality_config import declare
from ...data.samples import SampleSource, origin
from ...data.sources import Source, spread
from ...data.transforms import center_view
from ...evaluation.analysis.attention import DecoderAttention, attention_metrics, decoder_attention, foreground_share
from ...evaluation.analysis.layer_features import LayerFeatures, cka_matrix, layer_features
from ...evaluation.visualize import load_samples
from ...modeling.image_encoder import ImageEncoder
from ...modeling.public_vits import PublicViT, is_public_vit
from ...modeling.types import Modality, to_float
from ...recipes.run import Run
from ...runs.atomic import write_json
from ...runs.console import log, table
from ...runs.folder import check_writable
from ..load import load
from ..open_run import Opened, device_of, open_run

_BATCH = 32
BACKGROUND = {  # names of what fills a scene; whatever else is labelled is a thing in it
    *("sky", "floor", "wall", "ground", "ceiling", "road", "pavement", "sidewalk", "building", "tree", "vegetation"),
    *("terrain", "grass", "water", "sea", "sand", "fence", "background"),
}

ATTENTION = {  # figure -> how its column is headed
    "student_evenness": "student even",
    "teacher_evenness": "teacher even",
    "guide_evenness": "guide even",
    "rank_correlation": "rank corr.",
    "top_overlap": "top overlap",
    "hidden_attention": "attention hidden",
    "hidden_most_attended": "top hidden",
    "hidden_tokens": "tokens hidden",
    "student_foreground": "student on things",
    "teacher_foreground": "teacher on things",
    "hidden_foreground": "mask on things",
    "foreground_area": "area of things",
}


def analyze_attention(
    run: str,
    *,
    data: str | None = None,
    labels: str | None = None,
    foreground: tuple[str, ...] = (),
    limit: int = 128,
    device: str = "auto",
) -> dict[str, Any]:
    """Where a run looks, at each of its checkpoints: printed, and kept in its `analysis/attention.json`.

    How even the attention of student, teacher and guide is (1: even); how the teacher's and the student's agree (rank
    correlation, overlap of the quarter of patches with the most); how much of it the masks hide. Where pixels are
    labelled, how much lies on things. In an MAE-like decoder, what masked tokens attend to.

    data: samples to look at; by default the run's own held-out ones
    labels: the map of classes: semseg, or a .toml file that declares it; by default semseg where there is one
    foreground: names or numbers of the classes that are things; by default all that fill no scene as sky or road do
    limit: look at most at so many samples, evenly spread
    device: cpu, cuda, mps; auto takes the best
    """
    stored = Run.open(run)
    path, address = stored.path, data or stored.config.data.address
    has_labels = address.startswith("scenes") or any(d.name == "semseg" for d in aligned_modalities(address))
    more = declare((labels or "semseg",)) if labels or has_labels else ()
    check_writable(path)
    lines: list[dict[str, Any]] = []
    decoders: list[DecoderAttention] = []
    for weights in stored.checkpoints():
        opened = open_run(stored, data, more, device, weights.epoch)
        figures, decoders = _attention(opened, *_things(opened, foreground), limit)
        lines.append({"step": weights.step, "epoch": opened.epoch, **figures})
    told = {"data": address, "samples": limit, "checkpoints": lines, "decoders": [d.to_dict() for d in decoders]}
    _keep(path, "attention", told)
    named = {name: word for name, word in ATTENTION.items() if name in lines[-1]}
    head = ["attention", *(f"epoch {line['epoch']:.4g}" for line in lines)]
    print(table([head, *([word, *(line.get(name) for line in lines)] for name, word in named.items())]))
    for d in decoders:
        rows = [[f"block {k}", b.to_visible, b.to_masked, b.mass_on_visible] for k, b in enumerate(d.blocks, start=1)]
        rows += [["summed", *d.summed, None], ["mean per pair", *d.mean, d.mass_on_visible]]
        print(f"\ndecoder {d.decoder}: masked tokens attend; summed, an even map has {d.even:.3f} and {d.even:.3f}")
        print(table([["", "to visible", "to masked", "mass on visible"], *rows]))
    return told


def analyze_features(
    run_a: str, run_b: str, *, data: str | None = None, limit: int = 256, device: str = "auto"
) -> dict[str, Any]:
    """The layers of two runs, or public ViTs, beside one another: printed, and kept in the first's `analysis/`.

    Linear CKA of every layer of one with every layer of the other (features are means over patches), RankMe, and how
    far attention reaches in pixels.

    data: images to look at; by default the first run's own held-out ones
    limit: look at most at so many images, evenly spread
    device: cpu, cuda, mps; auto takes the best
    """
    pair = (run_a, run_b)
    first = None if is_public_vit(run_a) else Run.open(run_a)
    encoders = [load(run, device=device) for run in (first or run_a, run_b)]
    given = None if data is None else open_images(data, encoders[0].channels, first.declared if first else ())
    source = given if first is None else first.held_out(given)
    if source is None:
        raise ValueError(f"{run_a} is not a run with images of its own; give --data")
    folder = Path("runs", Path(run_a).stem) if first is None else first.path
    check_writable(folder)
    read = [_layers(encoder, source, limit) for encoder in encoders]
    names = [Path(run).name for run in pair]
    matrix = cka_matrix(*read)
    told = {
        "runs": names,
        "data": source.address,
        "images": len(read[0][0].features),
        "cka": matrix,
        "layers": [[{"rankme": x.rankme, "distance": x.distance, "heads": x.distances} for x in xs] for xs in read],
    }
    _keep(folder, f"features-{names[1]}", told)
    print(f"linear CKA of the layers of {names[0]} (down) and {names[1]} (across), {told['images']} images")
    print(table([["", *range(1, len(read[1]) + 1)], *([k, *row] for k, row in enumerate(matrix, start=1))]))
    for name, xs in zip(names, read, strict=True):
        rows = [[k, x.rankme, x.distance, min(x.distances), max(x.distances)] for k, x in enumerate(xs, start=1)]
        print(f"\n{name}: dimensions in use, and the mean distance in pixels from a patch to those it attends to")
        print(table([["layer", "RankMe", "distance", "nearest head", "farthest head"], *rows]))
    return told


def _attention(
    opened: Opened, labels: Modality | None, things: list[int], limit: int
) -> tuple[dict[str, float], list[DecoderAttention]]:
    """The figures of one checkpoint, the mean over batches, and those of its decoders."""
    model = opened.model
    modalities = (*opened.modalities, *([labels] if labels and labels not in opened.modalities else []))
    seen = load_samples(opened.samples, modalities, model.encoder.image_size, limit)
    if not len(seen):
        raise ValueError(f"no sample of {opened.samples.address} can be read; see `unveil inspect`")
    whole = seen.batch(device_of(model))
    totals: dict[str, list[tuple[float, int]]] = {}
    for start in range(0, len(seen), _BATCH):
        batch = whole[start : start + _BATCH]
        shown = None if labels is None else foreground_share(batch, labels, things, model.encoder.patch)
        for name, value in attention_metrics(model, batch, model.encode_decode(batch), shown).items():
            totals.setdefault(name, []).append((value, len(batch)))
    figures = {}
    for name, parts in totals.items():
        values, counts = zip(*parts, strict=True)
        figures[name] = float(np.average(values, weights=counts))
    return figures, decoder_attention(model, whole[:_BATCH])


def _things(opened: Opened, foreground: tuple[str, ...]) -> tuple[Modality | None, list[int]]:
    """The modality with labels, and its classes that are things. None where nobody knows which they are."""
    whole = origin(opened.samples)[0]
    declared = next((d for d in whole.declared if d.is_categorical), None) if isinstance(whole, SampleSource) else None
    if declared is None:
        return None, []
    names = declared.classes
    if foreground:
        known = {name: i for i, name in enumerate(names)} | {str(i): i for i in range(declared.modality.num_classes)}
        if unknown := [word for word in foreground if word not in known]:
            raise ValueError(f"--foreground {unknown[0]}: the classes are {', '.join(known)}")
        return declared.modality, [known[word] for word in foreground]
    if names:
        return declared.modality, [i for i, name in enumerate(names) if name not in BACKGROUND]
    log("note: the classes have no names; --foreground with their numbers says which are things")
    return None, []


def _layers(encoder: ImageEncoder | PublicViT, source: Source, limit: int) -> list[LayerFeatures]:
    images = []
    for index in spread(len(source), limit):
        try:
            images.append(to_float(center_view(source.image(index), encoder.image_size)))
        except Unreadable:
            continue
    if len(images) < 2:
        raise ValueError(f"{source.address} gives {len(images)} images that can be read; 2 or more are needed")
    if images[0].shape[0] != encoder.channels:
        raise ValueError(f"an encoder reads {encoder.channels} channels, {source.address} has {images[0].shape[0]}")
    return layer_features(encoder, images)


def _keep(run: Path, name: str, told: dict[str, Any]) -> None:
    (run / "analysis").mkdir(parents=True, exist_ok=True)
    write_json(run / "analysis" / f"{name}.json", told)
