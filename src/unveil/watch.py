"""Watching a model learn: label-free signals and pictures, on images that it does not train on."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .chance import sample_keys
from .data.decode import Unreadable
from .data.samples import Sample, Stack, center_of, lacking, sampler, stack
from .data.sources import Source, spread
from .data.views import center_view
from .model import Imagined, MaskedModel, Objective
from .patches import unpatchify
from .pretrained import pooled
from .protocols.signals import feature_std, rankme
from .records import Batch, Modality, Reading, unit
from .reporting.pictures import (
    Near,
    Probe,
    attention_overlay,
    hide_patches,
    how_viewed,
    viewable,
    write_neighbours,
    write_probes,
)
from .runs import RunFolder
from .targets import Pixels, patch_statistics

PROBES, SIGNAL_IMAGES, NEIGHBOUR_IMAGES, QUERIES, NEIGHBOURS = 6, 256, 1000, 5, 6
_BATCH = 64


class Watcher:
    """Looks at the model every so often: held-out loss, RankMe, feature std, and what it makes of fixed images.

    The held-out images and their masks are the same every time, so numbers and pictures compare over a run.
    """

    def __init__(
        self, run: RunFolder, train: Source, held_out: Source, modalities: Sequence[Modality], size: tuple[int, int]
    ):
        self.run, self.size, self.modalities = run, size, tuple(modalities)
        self.first = next(m for m in modalities if m.role != "output")  # the one that features and pictures are of
        self.train, self.held_out = train, held_out
        self.shown, self.probes = self._read(held_out, PROBES)
        self.names = [held_out.name(i) for i in self.shown]
        self.unseen = self._read(held_out, SIGNAL_IMAGES)[1]
        self.more = self._read(train, max(0, SIGNAL_IMAGES - len(self.unseen)))[1]

    @torch.no_grad()
    def __call__(self, model: MaskedModel, epoch: float, step: int) -> None:
        if not len(self.unseen):
            return
        was_training = model.training
        model.eval()
        try:
            features = torch.cat([self._features(model, views) for views in (self.unseen, self.more) if len(views)])
            losses = self._losses(model)
            signals = {
                "heldout_loss": sum(losses.values()),
                "rankme": rankme(features),
                "feature_std": feature_std(features),
                "feature_dim": features.shape[1],
            }
            if all(math.isfinite(value) for value in signals.values()):
                told = {"heldout_losses": losses} if len(losses) > 1 else {}
                self.run.log({"kind": "signals", "step": step, "epoch": epoch, **signals, **told})
            with self.run.spared("pictures"):
                self._picture(model, epoch, step)
        finally:
            model.train(was_training)

    @torch.no_grad()
    def finish(self, model: MaskedModel) -> None:
        """The nearest neighbours of a few held-out images among the training images."""
        if not self._has_pictures():
            return
        places, views = self._read(self.train, NEIGHBOUR_IMAGES)
        if not len(views) or not len(self.probes):
            return
        model.eval()
        images, queries = (v.maps[self.first.name] for v in (views, self.probes))
        queries = queries[:QUERIES]
        sought, known = (torch.nn.functional.normalize(features_of(model, i), dim=1) for i in (queries, images))
        near = (sought @ known.T).topk(min(NEIGHBOURS, len(images)), dim=1)
        rows = []
        for q in range(len(queries)):
            found = [
                Near(self._view(images[i]), 1 - float(similarity), _class_of(self.train, places[i]))
                for i, similarity in zip(near.indices[q].tolist(), near.values[q].tolist(), strict=True)
            ]
            rows.append((Near(self._view(queries[q]), label=_class_of(self.held_out, self.shown[q])), found))
        with self.run.spared("pictures"):
            write_neighbours(self.run.path, rows)

    def _read(self, source: Source, limit: int) -> tuple[list[int], Stack]:
        """Centre views of a few samples that have the first modality, evenly spread, and their places in the source.

        Unreadable ones are left out. Images are in [0, 1].
        """
        read, lacks = sampler(source, self.first.name), lacking(source)
        places, views = [], []
        for index in spread(len(source), limit) if limit else []:
            try:
                sample = read(index)
            except Unreadable:
                continue
            if self.first.name in sample.maps:
                places.append(index)
                views.append(self._centre(sample, is_plain=lacks is None))
        return places, stack(views, self.modalities, self.size, lacks)

    def _centre(self, sample: Sample, is_plain: bool) -> Sample:
        if is_plain:  # by the resize that evaluations use, to the bit
            return Sample({name: unit(center_view(image, self.size)) for name, image in sample.maps.items()})
        views = center_of(sample, self.size, self.modalities)
        return replace(views, maps={n: unit(m) if n not in views.valid else m for n, m in views.maps.items()})

    def _batch(self, model: MaskedModel, views: Stack) -> Batch:
        key = sample_keys(0, 0, range(len(views)))
        return Batch(views.maps, key, torch.ones(()), views.valid, views.present).on(model.encoder.prefix.device)

    def _losses(self, model: MaskedModel) -> dict[str, float]:
        """The mean loss of each objective on the held-out images."""
        batch = self._batch(model, self.unseen)
        totals: defaultdict[str, float] = defaultdict(float)
        counts: defaultdict[str, float] = defaultdict(float)
        for start in range(0, len(batch), _BATCH):
            for name, (summed, counted) in model(batch[start : start + _BATCH]).items():
                totals[name] += float(summed)
                counts[name] += float(counted)
        return {name: totals[name] / max(counts[name], 1.0) for name in totals}

    def _features(self, model: MaskedModel, views: Stack) -> Tensor:
        return features_of(model, views.maps[self.first.name])

    def _has_pictures(self) -> bool:
        """Whether the first modality can be shown as it is; what has a unit of its own lies outside [0, 1]."""
        if self.first.kind == "categorical" or self.first.normalise != "fixed" or not len(self.probes):
            return False
        images = self.probes.maps[self.first.name]
        return bool(((images >= 0) & (images <= 1)).all())

    def _view(self, image: Tensor) -> np.ndarray:
        return viewable(unit(image).numpy())

    def _picture(self, model: MaskedModel, epoch: float, step: int) -> None:
        objectives = [o for o in model.objectives if isinstance(o, Objective)]
        found = [(o, o.target) for o in objectives if isinstance(o.target, Pixels) and o.target.modality == self.first]
        if not found or not self._has_pictures():
            return
        pixels, target = found[0]
        batch = self._batch(model, self.probes)
        seen = model.imagine(batch, replace(model.masker, predicted=1 - model.masker.visible))
        heads = model.encoder.observe(model.encoder.embed(batch), Reading(features=0)).attention
        assert heads is not None
        span = seen.latents.tokens.layout.spans[self.first.name]
        attention = heads.mean(dim=1)[:, span].cpu().numpy()
        restored = restore(pixels, batch, seen)
        grid = model.encoder.grid
        items = []
        for i, name in enumerate(self.names):
            image = unit(self.probes.maps[self.first.name][i]).numpy()
            hidden = sorted(set(range(span.start, span.stop)) - set(seen.mask.visible[i].tolist()))
            hidden = [token - span.start for token in hidden]
            original = viewable(image)
            items.append(
                Probe(
                    name,
                    original,
                    hide_patches(original, hidden, grid),
                    viewable(restored[i].cpu().numpy(), like=image),
                    attention_overlay(original, attention[i].reshape(grid)),
                )
            )
        write_probes(self.run.path, epoch, step, items, target.norm_pix, how_viewed(self.first.channels))


def features_of(model: MaskedModel, images: Tensor) -> Tensor:
    """Mean features of whole images, in float32 on the processor."""
    parts = [
        pooled(model.encoder, i.to(model.encoder.prefix.device), "mean").float().cpu() for i in images.split(_BATCH)
    ]
    return torch.cat(parts)


def restore(objective: Objective, batch: Batch, seen: Imagined) -> Tensor:
    """Images in [0, 1] with every patch that was asked for replaced by what the model says: B C H W.

    Where patches were normalised by their own mean and standard deviation, the true patch's are put back: without them
    such predictions cannot be looked at (MAE's norm-pix).
    """
    target = objective.target
    assert isinstance(target, Pixels)
    patches = target.patches(batch)
    guess = objective.head(seen.decoded[objective.decoder]).float()
    queries = seen.queries[objective.decoder]
    index = queries.cells[..., None].expand(-1, -1, patches.shape[-1])
    if target.norm_pix:
        mean, std = (s.expand_as(patches).gather(1, index) for s in patch_statistics(patches))
        guess = guess * std + mean
    guess = torch.where(queries.weight[..., None] > 0, guess.to(patches.dtype), patches.gather(1, index))
    image = batch.maps[target.modality.name]
    grid = (image.shape[-2] // target.patch, image.shape[-1] // target.patch)
    whole = unpatchify(patches.scatter(1, index, guess), target.patch, grid)
    mean, std = (whole.new_tensor(s)[:, None, None] for s in (target.modality.mean, target.modality.std))
    return (whole * std + mean).clamp(0, 1)


def _class_of(source: Source, index: int) -> str | None:
    """An image's class in words, where its source has any."""
    if source.labels is None or source.labels[index] < 0:
        return None
    number = source.labels[index]
    return source.classes[number] if source.classes else str(number)
