"""Validation during training: label-free metrics and pictures on held-out images."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.sources import Source, class_of
from ..evaluation.analysis.attention import attention_metrics
from ..evaluation.features import feature_std, rankme
from ..evaluation.visualize.embeddings import embed_map
from ..evaluation.visualize.neighbours import Neighbour, colour_histograms, distinct_neighbours
from ..evaluation.visualize.panels import (
    FEATURES,
    MapPictures,
    map_renderers,
    other_masks,
    predicts_norm_pix,
    sample_pictures,
)
from ..evaluation.visualize.patch_features import patch_images
from ..evaluation.visualize.samples import SampleViews, load_samples
from ..modeling.image_encoder import pooled
from ..modeling.masked_model import MaskedModel
from ..modeling.types import Batch, Modality, to_float
from ..reporting.pictures import (
    MapImage,
    Near,
    NearRow,
    Picture,
    Probe,
    write_map,
    write_neighbours,
    write_patches,
    write_probes,
)
from ..runs.folder import RunFolder

PROBES, SIGNAL_IMAGES, NEIGHBOUR_IMAGES, QUERIES, NEIGHBOURS = 6, 256, 1000, 5, 6
PATCH_IMAGES = 3  # whose patches are shown
SEVERAL_PROBES = 3  # samples whose maps are shown where there are several of each
_BATCH = 64


class ValidationMonitor:
    """Validates a model: held-out loss, RankMe, feature std, and reconstructions of a few images.

    Images and masks are the same in every validation, so metrics and pictures compare over a run.
    """

    def __init__(
        self, run: RunFolder, train: Source, held_out: Source, modalities: Sequence[Modality], size: tuple[int, int]
    ):
        self.run, self.size, self.modalities = run, size, tuple(modalities)
        self.first = next(m for m in modalities if m.role != "output")  # the one that features and pictures are of
        self.train, self.held_out = train, held_out
        self.probes = self._samples(held_out, PROBES if len(self.modalities) == 1 else SEVERAL_PROBES)
        self.queries = self._samples(held_out, QUERIES)
        self.held_out_views = self._samples(held_out, SIGNAL_IMAGES).views
        self.train_views = self._samples(train, max(0, SIGNAL_IMAGES - len(self.held_out_views))).views
        self.viewers = map_renderers(self.modalities, held_out, self.probes.views) if len(self.probes) else {}

    @torch.no_grad()
    def __call__(self, model: MaskedModel, epoch: float, step: int) -> None:
        if not len(self.held_out_views):
            return
        was_training = model.training
        model.eval()
        try:
            both = (self.held_out_views, self.train_views)
            features = torch.cat([features_of(model, views.maps[self.first.name]) for views in both if len(views)])
            losses = self._losses(model)
            metrics: dict[str, Any] = {
                "heldout_loss": sum(losses.values()),
                "rankme": _computable(rankme, features),
                "feature_std": _computable(feature_std, features),
            }
            missing = [name for name, value in metrics.items() if not math.isfinite(value)]
            more: dict[str, Any] = (
                {"heldout_losses": losses} if len(losses) > 1 and "heldout_loss" not in missing else {}
            )
            if missing:
                more["not_computable"] = missing
            elif model.teachers:
                batch = self.held_out_views.on(model.encoder.prefix.device)[:_BATCH]
                more["attention"] = attention_metrics(model, batch, model.encode_decode(batch))
            line = {
                "kind": "signals",
                "step": step,
                "epoch": epoch,
                "feature_dim": features.shape[1],
                **metrics,
                **more,
            }
            self.run.log_metrics({**line, **dict.fromkeys(missing)})
            with self.run.tolerate_io_errors("pictures"):
                self._picture(model, epoch, step)
        finally:
            model.train(was_training)

    @torch.no_grad()
    def finish(self, model: MaskedModel) -> None:
        """Write the nearest neighbours of a few held-out images among the training images, by cosine of features; a map
        of these training images; and what the patches of a few images are to the encoder."""
        others = self._samples(self.train, NEIGHBOUR_IMAGES)
        if self.first.kind == "categorical" or not len(others) or not len(self.queries):
            return  # class ids are not compared as images are
        model.eval()
        images, queries = (samples.views.maps[self.first.name] for samples in (others, self.queries))
        features = features_of(model, queries), features_of(model, images)
        near = distinct_neighbours(features, (queries, images), NEIGHBOURS)
        by_colour = distinct_neighbours((colour_histograms(queries), colour_histograms(images)), (queries, images), 3)

        def pictures(of: list[Neighbour]) -> list[Near]:
            labels = [class_of(self.train, others.places[one.place]) for one in of]
            return [
                Near(self._view(others.views, one.place), one.distance, label, one.alike)
                for one, label in zip(of, labels, strict=True)
            ]

        rows = []
        for q, place in enumerate(self.queries.places):
            query = Near(self._view(self.queries.views, q), label=class_of(self.held_out, place))
            rows.append(NearRow(query, pictures(near[q]), pictures(by_colour[q])))
        with self.run.tolerate_io_errors("pictures"):
            write_neighbours(self.run.path, rows)
            self._draw_data(model, others, features[1])

    def _draw_data(self, model: MaskedModel, others: SampleViews, features: Float[Tensor, "N D"]) -> None:
        """Write the map of training images by their features, and what the patches of a few held-out images are."""
        if len(others) < 3 or not features.isfinite().all():
            return
        embedded = embed_map(features, others.views.maps[self.first.name])
        images = [
            MapImage(name, self._view(others.views, i), (x, y), class_of(self.train, others.places[i]))
            for i, (name, (x, y)) in enumerate(zip(others.names, embedded.points.tolist(), strict=True))
        ]
        write_map(self.run.path, embedded.method, images, embedded.duplicates, embedded.outliers)
        shown = self.probes.views[:PATCH_IMAGES]
        originals = [self._view(shown, i) for i in range(len(shown))]
        names, where = self.probes.names[: len(shown)], model.encoder.prefix.device
        batch, typical = shown.on(where), others.views[:_BATCH].on(where)
        write_patches(self.run.path, patch_images(model.encoder, batch, typical, self.first.name, names, originals))

    def _samples(self, source: Source, count: int) -> SampleViews:
        return load_samples(source, self.modalities, self.size, count)

    def _losses(self, model: MaskedModel) -> dict[str, float]:
        """The mean loss of each objective on the held-out images."""
        batch = self.held_out_views.on(model.encoder.prefix.device)
        totals: defaultdict[str, float] = defaultdict(float)
        counts: defaultdict[str, float] = defaultdict(float)
        for start in range(0, len(batch), _BATCH):
            for name, (summed, counted) in model(batch[start : start + _BATCH]).items():
                totals[name] += float(summed)
                counts[name] += float(counted)
        return {name: totals[name] / max(counts[name], 1.0) for name in totals}

    def _view(self, views: Batch, place: int) -> Picture:
        image = views.maps[self.first.name][place]
        valid = views.valid.get(self.first.name)
        known = torch.ones_like(image[:1]) > 0 if valid is None else valid[place]
        return self.viewers[self.first.name](image if image.dtype == torch.int64 else to_float(image), known)

    def _picture(self, model: MaskedModel, epoch: float, step: int) -> None:
        batch = self.probes.views.on(model.encoder.prefix.device)
        shown = sample_pictures(model, batch, self.probes.names, self.modalities, self.viewers)
        several = len(self.modalities) > 1
        further = other_masks(model, batch, self.modalities, self.viewers)
        items = [
            _probe(one, several, bool(model.teachers), further.get(one.modality, ()) if i == 0 else ())
            for i, rows in enumerate(shown)
            for one in rows
        ]
        notes = [view.note for view in self.viewers.values() if view.note]
        keys = [view.key.to_dict() for view in self.viewers.values() if view.key]
        keys += [FEATURES.to_dict()] if any(one.features is not None for rows in shown for one in rows) else []
        write_probes(self.run.path, epoch, step, items, predicts_norm_pix(model), " ".join(notes), keys)


def _probe(one: MapPictures, several: bool, is_guided: bool, further: Sequence[tuple[Picture, Picture]] = ()) -> Probe:
    """The pictures of one map; with attention-guided masks, those of each sampler; `further` masks and predictions."""
    names = ("original", "hidden", "reconstructed", "attention", "teacher", "blend", "features", "unaided")
    pictures: dict[str, Picture] = {n: getattr(one, n) for n in (*names, "interpolated") if getattr(one, n) is not None}
    if is_guided:
        pictures |= {f"draw {way}": picture for way, picture in one.masks.items()}
    pictures |= {f"from {source}": picture for source, picture in one.given.items()}
    for k, (hidden, predicted) in enumerate(further, start=2):
        pictures |= {f"mask {k}": hidden, f"predicted {k}": predicted}
    name = f"{one.sample} · {one.modality}" if several else one.sample
    return Probe(name, pictures, one.errors, one.hidden_patches, one.grid)


def _computable(signal: Callable[[Tensor], float], features: Float[Tensor, "N D"]) -> float:
    """A signal of features; NaN where it cannot be computed, since weights have diverged."""
    if not features.isfinite().all():
        return math.nan
    try:
        return signal(features)
    except torch.linalg.LinAlgError:  # numbers so large that no rank can be told
        return math.nan


def features_of(model: MaskedModel, images: Tensor) -> Tensor:
    """Mean features of whole images, in float32 on the processor."""
    device = model.encoder.prefix.device
    return torch.cat([pooled(model.encoder, i.to(device), "mean").float().cpu() for i in images.split(_BATCH)])
