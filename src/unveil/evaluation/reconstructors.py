"""Masked models that reconstruct hidden tokens, and what they are measured beside, for protocols that need a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..data.sources import Source, Subset, spread
from ..data.splits import hold_out
from ..modeling.constants import constant
from ..modeling.masked_model import ForwardOutput, MaskedModel, Objective
from ..modeling.masking import ByModality, DirichletBudget, Masker, Uniform
from ..modeling.patches import validity
from ..modeling.rng import sample_keys
from ..modeling.targets import Classes, Pixels
from ..modeling.types import Batch, Latents, Mask, Observations, Queries, Tokens
from ..recipes.run import Run
from ..runs.hardware import choose_device
from .analysis.attention import hidden_tokens
from .analysis.decoder_blocks import without_head
from .inpainting import FILLS, Fill
from .run import UNTRAINED
from .types import THIS_RUN, Context, HeldOutSamples, Masks, Reconstruction, Reconstructor, Visible
from .visualize.reconstructions import (
    HideModalities,
    map_objectives,
    only_visible,
    pixels_of_cells,
    predicted_pixels,
    reconstruct_map,
)
from .visualize.samples import load_samples

TEST_SAMPLES, MEAN_SAMPLES = 1000, 1000  # at most, of the test and of the training mean
HELD_OUT = 0.2


class ModelReconstructor:
    """The objectives of a masked model whose targets are pixels or classes."""

    def __init__(self, model: MaskedModel):
        self.model = model.eval()
        self.objectives = map_objectives(model)
        # Its maps alone, without teachers: these are read by masks of its own, which others replace, and by features.
        decoders = {o.decoder: model.decoders[o.decoder] for o, _ in self.objectives}
        maps = MaskedModel(model.encoder, model.masker, decoders, [o for o, _ in self.objectives], hide=model.hide)
        self.unguided = maps.eval()
        self.inputs = [m.name for m in model.encoder.modalities]
        self.outputs = list(dict.fromkeys(target.modality.name for _, target in self.objectives))

    @property
    def predicts_raw_pixels(self) -> bool:
        """Whether it reads one modality and predicts its pixels as they are, so that inpainting compares."""
        targets = [target for _, target in self.objectives if isinstance(target, Pixels)]
        return len(self.inputs) == 1 and any(t.modality.normalise == "fixed" and not t.norm_pix for t in targets)

    def forward(self, batch: Batch, visible: Visible) -> ForwardOutput:
        model = self.model if isinstance(visible, Masks) else self.unguided
        return model.encode_decode(batch, self.masker(batch, visible))

    def mask_input(self, batch: Batch, visible: Visible) -> tuple[Tokens, Observations, Mask, dict[str, Queries]]:
        """What comes before the encoder, as `MaskedModel.mask_input` gives it."""
        model = self.model if isinstance(visible, Masks) else self.unguided
        return model.mask_input(batch, self.masker(batch, visible))

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
    """The mean target of training samples at each place, or their most frequent class, under any mask.

    That class is one for all places, or `by_place` that of each pixel.
    """

    def __init__(self, model: ModelReconstructor, batches: Callable[[], Iterator[Batch]], by_place: bool = False):
        self.model, self.inputs, self.outputs = model, model.inputs, model.outputs
        self.means = {o.name: _mean_target(target, batches(), by_place) for o, target in model.objectives}

    @torch.no_grad()
    def reconstruct(self, batch: Batch, visible: Visible) -> dict[str, Reconstruction]:
        tokens, observations, mask, queries = self.model.mask_input(batch, visible)
        unread = Latents(tokens.values, {}, tokens, 0)  # a mean reads nothing, so nothing is encoded
        reconstructions = {}
        for o, target in self.model.objectives:
            decoded = {o.decoder: self.means[o.name][queries[o.decoder].cells]}
            mean = ForwardOutput(observations, mask, unread, queries, decoded)
            reconstructions[o.name] = _reconstruction(without_head(o), target, batch, mean)
        return reconstructions


class Inpainting:
    """The pixels that a model of one modality predicts, filled in from the visible ones, under that model's masks.

    An image without a visible pixel gets the colour that is 0 for the model. Nothing is said of other targets.
    """

    def __init__(self, model: ModelReconstructor, fill: Fill):
        self.model, self.fill = model, fill
        self.inputs, self.outputs = model.inputs, model.outputs

    @torch.no_grad()
    def reconstruct(self, batch: Batch, visible: Visible) -> dict[str, Reconstruction]:
        tokens, _, mask, queries = self.model.mask_input(batch, visible)
        hidden = hidden_tokens(mask.visible, tokens.layout.num_tokens)
        reconstructions = {}
        for o, target in self.model.objectives:
            if not isinstance(target, Pixels) or target.norm_pix or target.modality.normalise != "fixed":
                continue
            image = batch.maps[target.modality.name]
            known = ~pixels_of_cells(hidden, target, batch) & validity(batch, target.modality)
            colour = constant(target.modality.mean, image)[:, None, None]
            filled = self.fill(torch.where(known, image, 0.0), known)
            filled = torch.where(known.flatten(1).any(1)[:, None, None, None], filled, colour)
            predicted = predicted_pixels(queries[o.decoder], target, batch)
            losses = image.new_full((len(image),), torch.nan)
            reconstructions[o.name] = Reconstruction(target.modality, filled, image, predicted, losses)
        return reconstructions


@torch.no_grad()
def _mean_target(target: Pixels | Classes, batches: Iterator[Batch], by_place: bool) -> Float[Tensor, "N T"]:
    """The mean of the valid targets at each place; of classes the logarithm of the frequency of each."""
    total: Tensor | None = None
    count: Tensor | None = None
    for batch in batches:
        values, valid = target(batch, {})
        if isinstance(target, Classes) and by_place:
            counts = F.one_hot(values.long(), target.modality.num_classes) * valid.expand_as(values)[..., None]
            total = counts.sum(0).float() if total is None else total + counts.sum(0)
        elif isinstance(target, Classes):
            ids = values[valid.expand_as(values)]
            one = torch.bincount(ids.flatten(), minlength=target.modality.num_classes).float()
            total = one if total is None else total + one
        else:
            weight = valid.expand_as(values).float()
            sums = ((values * weight).sum(0), weight.sum(0))
            total, count = sums if total is None or count is None else (total + sums[0], count + sums[1])
    if total is None:
        raise ValueError("no training sample can be read, so there is no mean to compare with")
    if isinstance(target, Classes) and by_place:
        return total.clamp_min(0.5).log().flatten(1)
    if isinstance(target, Classes):
        pixels = target.dim // target.modality.num_classes
        cells = values.shape[1]
        return (total.clamp_min(0.5) / total.sum()).log().repeat(pixels).expand(cells, -1)
    assert count is not None
    return total / count.clamp_min(1)


def _reconstruction(
    objective: Objective, target: Pixels | Classes, batch: Batch, output: ForwardOutput
) -> Reconstruction:
    total, count = objective.loss(*objective.prediction_and_target(output, batch))
    return Reconstruction(
        target.modality,
        reconstruct_map(objective, batch, output),
        batch.maps[target.modality.name],
        predicted_pixels(output.queries[objective.decoder], target, batch),
        torch.where(count > 0, total / count.clamp_min(1), torch.nan),
    )


def open_reconstructors(
    run: Run,
    data: str,
    test_data: str | None,
    context: Context,
    *,
    baselines: bool = True,
    by_place: bool = False,
    at_epoch: float | None = None,
    device: str = "auto",
) -> tuple[dict[str, Reconstructor], HeldOutSamples]:
    """The run, the training mean and the untrained model of its stage, and samples that the run was not trained on.

    Beside a run that predicts raw pixels of one modality there is inpainting; `by_place` adds the most frequent class
    of each pixel. Of the run's own data the samples are those that it held out; of others the last fifth, or
    `test_data`. The weights are the newest, or those that the run has of an epoch. Raises ValueError where no sample
    can be read, and what opening weights or data raises.
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
        mean_batches = partial(batches, train, context.limit or MEAN_SAMPLES)
        models["training mean"] = TrainingMean(model, mean_batches)
        if by_place:
            models["training mean by place"] = TrainingMean(model, mean_batches, by_place)
        if model.predicts_raw_pixels:
            models |= {name: Inpainting(model, fill) for name, fill in FILLS.items()}
        models[UNTRAINED] = ModelReconstructor(run.model(stage, trained=False).to(where))
    count = min(context.limit or TEST_SAMPLES, len(test))
    return models, HeldOutSamples(data, test_data, lambda: batches(test, count), count)


def _sources(run: Run, data: str, test_data: str | None) -> tuple[Source, Source]:
    """The samples of the training mean, and those to reconstruct."""
    train, unseen = run.split(data)
    if test_data is not None:
        return train if len(train) else unseen, run.split(test_data)[1]
    return (train, unseen) if len(train) else hold_out(unseen, HELD_OUT, run.config.seed, last=True)
