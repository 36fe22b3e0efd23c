"""Watching a model learn: label-free signals and pictures, on images that it does not train on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .chance import sample_keys
from .data.decode import Unreadable
from .data.sources import Source, spread
from .data.views import center_view
from .model import MaskedModel, Objective
from .patches import unpatchify
from .pretrained import pooled
from .protocols.signals import feature_std, rankme
from .records import Batch, Modality, Observations, Reading, unit
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

    def __init__(self, run: RunFolder, train: Source, held_out: Source, modality: Modality, size: tuple[int, int]):
        self.run, self.modality, self.size = run, modality, size
        self.train, self.held_out = train, held_out
        self.shown, self.probes = _read(held_out, PROBES, size)
        self.names = [held_out.name(i) for i in self.shown]
        self.unseen = _read(held_out, SIGNAL_IMAGES, size)[1]
        self.more = _read(train, max(0, SIGNAL_IMAGES - len(self.unseen)), size)[1]

    @torch.no_grad()
    def __call__(self, model: MaskedModel, epoch: float, step: int) -> None:
        if not len(self.unseen):
            return
        was_training = model.training
        model.eval()
        try:
            features = torch.cat([self._features(model, images) for images in (self.unseen, self.more) if len(images)])
            signals = {
                "heldout_loss": self._loss(model),
                "rankme": rankme(features),
                "feature_std": feature_std(features),
                "feature_dim": features.shape[1],
            }
            if all(math.isfinite(value) for value in signals.values()):
                self.run.log({"kind": "signals", "step": step, "epoch": epoch, **signals})
            with self.run.spared("pictures"):
                self._picture(model, epoch, step)
        finally:
            model.train(was_training)

    @torch.no_grad()
    def finish(self, model: MaskedModel) -> None:
        """The nearest neighbours of a few held-out images among the training images."""
        places, images = _read(self.train, NEIGHBOUR_IMAGES, self.size)
        queries = self.probes[:QUERIES]
        if not len(images) or not len(queries):
            return
        model.eval()
        sought, known = (torch.nn.functional.normalize(self._features(model, i), dim=1) for i in (queries, images))
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

    def _batch(self, model: MaskedModel, images: Tensor) -> Batch:
        key = sample_keys(0, 0, range(len(images)))
        return Batch({self.modality.name: images}, key, torch.ones(())).on(model.encoder.prefix.device)

    def _loss(self, model: MaskedModel) -> float:
        batch = self._batch(model, self.unseen)
        total = count = 0.0
        for start in range(0, len(batch), _BATCH):
            for summed, counted in model(batch[start : start + _BATCH]).values():
                total += float(summed)
                count += float(counted)
        return total * len(model.objectives) / max(count, 1.0)

    def _features(self, model: MaskedModel, images: Tensor) -> Tensor:
        return features_of(model, images)

    def _view(self, image: Tensor) -> np.ndarray:
        return viewable(unit(image).numpy())

    def _picture(self, model: MaskedModel, epoch: float, step: int) -> None:
        objectives = [o for o in model.objectives if isinstance(o, Objective)]
        found = [(o, o.target) for o in objectives if isinstance(o.target, Pixels)]
        if not found:
            return
        pixels, target = found[0]
        batch = self._batch(model, self.probes)
        seen = model.imagine(batch, replace(model.masker, predicted=1 - model.masker.visible))
        heads = model.encoder.observe(model.encoder.embed(batch), Reading(features=0)).attention
        assert heads is not None
        attention = heads.mean(dim=1).cpu().numpy()
        restored = restore(
            pixels, batch, seen.decoded[pixels.decoder], seen.queries[pixels.decoder].cells, seen.observations
        )
        grid = model.encoder.grid
        items = []
        for i, name in enumerate(self.names):
            image = unit(self.probes[i]).numpy()
            hidden = sorted(seen.mask.predicted[i].tolist())
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
        write_probes(self.run.path, epoch, step, items, target.norm_pix, how_viewed(self.modality.channels))


def features_of(model: MaskedModel, images: Tensor) -> Tensor:
    """Mean features of whole images, in float32 on the processor."""
    parts = [
        pooled(model.encoder, i.to(model.encoder.prefix.device), "mean").float().cpu() for i in images.split(_BATCH)
    ]
    return torch.cat(parts)


def restore(objective: Objective, batch: Batch, decoded: Tensor, cells: Tensor, observations: Observations) -> Tensor:
    """Images in [0, 1] with every predicted patch replaced by what the model says: B C H W.

    Where patches were normalised by their own mean and standard deviation, the true patch's are put back: without them
    such predictions cannot be looked at (MAE's norm-pix).
    """
    target = objective.target
    assert isinstance(target, Pixels)
    patches = target.patches(batch)
    guess = objective.head(decoded).float()
    index = cells[..., None].expand(-1, -1, patches.shape[-1])
    if target.norm_pix:
        mean, std = (s.expand_as(patches).gather(1, index) for s in patch_statistics(patches))
        guess = guess * std + mean
    image = batch.maps[target.modality.name]
    grid = (image.shape[-2] // target.patch, image.shape[-1] // target.patch)
    whole = unpatchify(patches.scatter(1, index, guess.to(patches.dtype)), target.patch, grid)
    mean, std = (whole.new_tensor(s)[:, None, None] for s in (target.modality.mean, target.modality.std))
    return (whole * std + mean).clamp(0, 1)


def _read(source: Source, limit: int, size: Sequence[int]) -> tuple[list[int], Tensor]:
    """Centre views of a few images, evenly spread, and their places in the source; unreadable ones are left out."""
    places, images = [], []
    for index in spread(len(source), limit) if limit else []:
        try:
            images.append(center_view(source.image(index), (size[0], size[1])))
        except Unreadable:
            continue
        places.append(index)
    return places, torch.stack([unit(i) for i in images]) if images else torch.empty(0, source.channels, *size)


def _class_of(source: Source, index: int) -> str | None:
    """An image's class in words, where its source has any."""
    if source.labels is None or source.labels[index] < 0:
        return None
    number = source.labels[index]
    return source.classes[number] if source.classes else str(number)
