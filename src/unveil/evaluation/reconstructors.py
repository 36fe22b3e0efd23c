"""Masked models that reconstruct hidden tokens, and what they are measured beside, for protocols that need a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.sources import Source, Subset, spread
from ..data.splits import hold_out
from ..modeling.masked_model import ForwardOutput, MaskedModel, Objective
from ..modeling.masking import ByModality, DirichletBudget, Masker, Uniform
from ..modeling.patches import unpatchify, validity
from ..modeling.rng import sample_keys
from ..modeling.targets import Classes, Pixels
from ..modeling.types import Batch
from ..recipes.run import Run
from ..runs.hardware import choose_device
from .analysis.decoder_blocks import without_head
from .run import UNTRAINED
from .types import THIS_RUN, Context, HeldOutSamples, Masks, Reconstruction, Reconstructor, Visible
from .visualize.reconstructions import HideModalities, map_objectives, only_visible, reconstruct_map
from .visualize.samples import load_samples

TEST_SAMPLES, MEAN_SAMPLES = 1000, 1000  # at most, of the test and of the training mean
HELD_OUT = 0.2


class ModelReconstructor:
    """The objectives of a masked model whose targets are pixels or classes."""

    def __init__(self, model: MaskedModel):
        self.model = model.eval()
        self.objectives = map_objectives(model)
        self.inputs = [m.name for m in model.encoder.modalities]
        self.outputs = list(dict.fromkeys(target.modality.name for _, target in self.objectives))

    def forward(self, batch: Batch, visible: Visible) -> ForwardOutput:
        return self.model.encode_decode(batch, self.masker(batch, visible))

    def masker(self, batch: Batch, visible: Visible) -> Masker:
        """The masker of a share of visible tokens, of visible modalities, or of `Masks`."""
        if isinstance(visible, Masks):
            own = self.model.masker.predict_all()
            return own if visible is Masks.OWN else replace(own, score=DirichletBudget(ByModality(Uniform())))
        if isinstance(visible, float):
            return Masker(Uniform(), visible, 1 - visible)
        if set(self.inputs) - set(visible):
            return only_visible(visible, self.inputs)
        share = 1 - 1 / self.model.encoder.layout(batch).num_tokens  # a mask hides one token at least
        return Masker(HideModalities(frozenset()), share, 1 - share)

    @torch.no_grad()
    def reconstruct(self, batch: Batch, visible: Visible) -> dict[str, Reconstruction]:
        output = self.forward(batch, visible)
        return {o.name: _reconstruction(o, target, batch, output) for o, target in self.objectives}


class TrainingMean:
    """The mean target of training samples at each place, or their most frequent class, under any mask."""

    def __init__(self, model: ModelReconstructor, batches: Callable[[], Iterator[Batch]]):
        self.model, self.inputs, self.outputs = model, model.inputs, model.outputs
        self.means = {o.name: _mean_target(target, batches()) for o, target in model.objectives}

    @torch.no_grad()
    def reconstruct(self, batch: Batch, visible: Visible) -> dict[str, Reconstruction]:
        output = self.model.forward(batch, visible)
        reconstructions = {}
        for o, target in self.model.objectives:
            mean = replace(output, decoded={o.decoder: self.means[o.name][output.queries[o.decoder].cells]})
            reconstructions[o.name] = _reconstruction(without_head(o), target, batch, mean)
        return reconstructions


@torch.no_grad()
def _mean_target(target: Pixels | Classes, batches: Iterator[Batch]) -> Float[Tensor, "N T"]:
    """The mean of the valid targets at each place; of classes the logarithm of the frequency of each."""
    total: Tensor | None = None
    count: Tensor | None = None
    for batch in batches:
        values, valid = target(batch, {})
        if isinstance(target, Classes):
            ids = values[valid.expand_as(values)]
            one = torch.bincount(ids.flatten(), minlength=target.modality.num_classes).float()
            total = one if total is None else total + one
        else:
            weight = valid.expand_as(values).float()
            sums = ((values * weight).sum(0), weight.sum(0))
            total, count = sums if total is None or count is None else (total + sums[0], count + sums[1])
    if total is None:
        raise ValueError("no training sample can be read, so there is no mean to compare with")
    if isinstance(target, Classes):
        pixels = target.dim // target.modality.num_classes
        cells = values.shape[1]
        return (total.clamp_min(0.5) / total.sum()).log().repeat(pixels).expand(cells, -1)
    assert count is not None
    return total / count.clamp_min(1)


def _reconstruction(
    objective: Objective, target: Pixels | Classes, batch: Batch, output: ForwardOutput
) -> Reconstruction:
    queries, image = output.queries[objective.decoder], batch.maps[target.modality.name]
    side = target.modality.side(target.patch)
    grid = (image.shape[-2] // side, image.shape[-1] // side)
    predicted = torch.zeros(len(batch), grid[0] * grid[1], device=image.device)
    predicted = predicted.scatter(1, queries.cells, queries.weight)
    pixels = unpatchify(predicted[..., None].expand(-1, -1, side * side), side, grid) > 0
    total, count = objective.loss(*objective.prediction_and_target(output, batch))
    return Reconstruction(
        target.modality,
        reconstruct_map(objective, batch, output),
        image,
        pixels & validity(batch, target.modality),
        torch.where(count > 0, total / count.clamp_min(1), torch.nan),
    )


def open_reconstructors(
    run: Run,
    data: str,
    test_data: str | None,
    context: Context,
    *,
    baselines: bool = True,
    at_epoch: float | None = None,
    device: str = "auto",
) -> tuple[dict[str, Reconstructor], HeldOutSamples]:
    """The run, the training mean and the untrained model of its stage, and samples that the run was not trained on.

    Of the run's own data these are the ones that it held out; of others the last fifth, or `test_data`. The weights are
    the newest, or those that the run has of an epoch. Raises ValueError where no sample can be read, and what opening
    weights or data raises.
    """
    where = choose_device(device)
    trained = run.model(epoch=at_epoch).to(where)
    train, test = _sources(run, data, test_data)
    model = ModelReconstructor(trained)
    size = trained.encoder.image_size

    def batches(source: Source, most: int) -> Iterator[Batch]:
        chosen, read = spread(len(source), most), 0
        for start in range(0, len(chosen), context.micro_batch):
            subset = Subset(source, chosen[start : start + context.micro_batch])
            samples = load_samples(subset, run.modalities, size, len(subset))
            if len(samples):
                key = sample_keys(context.seed, 0, [start + place for place in samples.places])
                read += len(samples)
                yield replace(samples.views, key=key).on(where)
        if not read:
            raise ValueError(f"no sample of {source.address} can be read; see `unveil inspect`")

    models: dict[str, Reconstructor] = {THIS_RUN: model}
    if baselines:
        stage = run.checkpoint(at_epoch).state["stage"]
        models["training mean"] = TrainingMean(model, lambda: batches(train, context.limit or MEAN_SAMPLES))
        models[UNTRAINED] = ModelReconstructor(run.model(stage, trained=False).to(where))
    count = min(context.limit or TEST_SAMPLES, len(test))
    return models, HeldOutSamples(data, test_data, lambda: batches(test, count), count)


def _sources(run: Run, data: str, test_data: str | None) -> tuple[Source, Source]:
    """The samples of the training mean, and those to reconstruct."""
    train, unseen = run.split(data)
    if test_data is not None:
        return train if len(train) else unseen, run.split(test_data)[1]
    return (train, unseen) if len(train) else hold_out(unseen, HELD_OUT, run.config.seed, last=True)
