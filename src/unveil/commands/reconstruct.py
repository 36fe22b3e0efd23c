"""Whole models as reconstructors of hidden patches, for the protocols that measure them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.sources import Source, Subset, spread
from ..data.splits import hold_out
from ..evaluation.analysis.decoder_blocks import without_head
from ..evaluation.dense.reconstruction import HeldOutSamples, Masks, Restored, Restorer, Shown
from ..evaluation.run import UNTRAINED
from ..evaluation.types import THIS_RUN, Context
from ..evaluation.visualize.reconstructions import reconstruct_map
from ..evaluation.visualize.samples import load_samples
from ..modeling.masked_model import ForwardOutput, MaskedModel, Objective
from ..modeling.masking import ByModality, DirichletBudget, Masker, Uniform
from ..modeling.patches import unpatchify, validity
from ..modeling.rng import sample_keys
from ..modeling.targets import Classes, Pixels
from ..modeling.types import Batch, Observations, Tokens
from ..recipes.run import Run
from ..runs.hardware import choose_device

TEST_SAMPLES, MEAN_SAMPLES = 1000, 1000  # at most, of the test and of the training mean
HELD_OUT = 0.2


@dataclass(frozen=True)
class Hidden:
    """Every token of some modalities is hidden, none of the others."""

    modalities: frozenset[str]

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch) -> Float[Tensor, "B N"]:
        score = torch.zeros_like(tokens.ids, dtype=torch.float32)
        for name in self.modalities:
            score[:, tokens.layout.spans[name]] = 1
        return score


class ModelRestorer:
    """A masked model whose objectives with pixels or classes as targets say what is hidden."""

    def __init__(self, model: MaskedModel):
        self.model = model.eval()
        self.objectives = [
            o for o in model.objectives if isinstance(o, Objective) and isinstance(o.target, Pixels | Classes)
        ]

    @property
    def inputs(self) -> list[str]:
        """The modalities that the encoder reads."""
        return [m.name for m in self.model.encoder.modalities]

    @property
    def outputs(self) -> list[str]:
        """The modalities that an objective tells."""
        return list(dict.fromkeys(cast("Pixels | Classes", o.target).modality.name for o in self.objectives))

    def imagined(self, batch: Batch, shown: Shown) -> ForwardOutput:
        """One pass with a share of the tokens shown, by chance, or the tokens of some modalities, or by a mask."""
        if isinstance(shown, Masks):
            return self.model.encode_decode(batch, self.masker(shown))
        if isinstance(shown, float):
            return self.model.encode_decode(batch, Masker(Uniform(), shown, 1 - shown))
        share = len(shown) / len(self.inputs)
        hidden = frozenset(self.inputs) - frozenset(shown)
        if not hidden:  # what is told is no input: all that is there is shown, but for a patch that a mask must hide
            layout = self.model.encoder.layout(batch)
            share = 1 - 1 / layout.num_tokens
        return self.model.encode_decode(batch, Masker(Hidden(hidden), share, 1 - share))

    def masker(self, masks: Masks) -> Masker:
        """The model's own masks or MultiMAE's random ones, all that is hidden asked for."""
        own = self.model.masker.predict_all()
        return own if masks is Masks.OWN else replace(own, score=DirichletBudget(ByModality(Uniform())))

    @torch.no_grad()
    def restored(self, batch: Batch, shown: Shown) -> dict[str, Restored]:
        """What each objective says of what is hidden."""
        seen = self.imagined(batch, shown)
        return {o.name: said(o, batch, seen) for o in self.objectives}


class TrainingMean:
    """The mean target of training samples at each place, or their most frequent class, whatever is shown."""

    def __init__(self, model: ModelRestorer, batches: Callable[[], Iterator[Batch]]):
        self.model = model
        self.guesses = {o.name: _mean(o, batches()) for o in model.objectives}

    @property
    def inputs(self) -> list[str]:
        """Those of the model whose masks it answers."""
        return self.model.inputs

    @property
    def outputs(self) -> list[str]:
        return self.model.outputs

    @torch.no_grad()
    def restored(self, batch: Batch, shown: Shown) -> dict[str, Restored]:
        """The same guess for every sample."""
        seen = self.model.imagined(batch, shown)
        found = {}
        for o in self.model.objectives:
            told = {o.decoder: self.guesses[o.name][seen.queries[o.decoder].cells]}
            found[o.name] = said(without_head(o), batch, replace(seen, decoded=told))
        return found


@torch.no_grad()
def _mean(objective: Objective, batches: Iterator[Batch]) -> Float[Tensor, "N T"]:
    """What to guess at each place: the mean of valid targets; of classes the logarithm of how frequent each is."""
    target = cast("Pixels | Classes", objective.target)
    total: Tensor | None = None
    count: Tensor | None = None
    for batch in batches:
        truth, valid = target(batch, {})
        if isinstance(target, Classes):
            ids = truth[valid.expand_as(truth)]
            one = torch.bincount(ids.flatten(), minlength=target.modality.num_classes).float()
            total = one if total is None else total + one
        else:
            weight = valid.expand_as(truth).float()
            sums = ((truth * weight).sum(0), weight.sum(0))
            total, count = sums if total is None or count is None else (total + sums[0], count + sums[1])
    if total is None:
        raise ValueError("no training sample can be read, so there is no mean to compare with")
    if isinstance(target, Classes):
        pixels = target.dim // target.modality.num_classes
        cells = truth.shape[1]
        return (total.clamp_min(0.5) / total.sum()).log().repeat(pixels).expand(cells, -1)
    assert count is not None
    return total / count.clamp_min(1)


def said(objective: Objective, batch: Batch, seen: ForwardOutput) -> Restored:
    """What an objective says of the tokens that were asked for."""
    target = cast("Pixels | Classes", objective.target)
    queries, truth = seen.queries[objective.decoder], batch.maps[target.modality.name]
    side = target.modality.side(target.patch)
    grid = (truth.shape[-2] // side, truth.shape[-1] // side)
    asked = torch.zeros(len(batch), grid[0] * grid[1], device=truth.device).scatter(1, queries.cells, queries.weight)
    pixels = unpatchify(asked[..., None].expand(-1, -1, side * side), side, grid) > 0
    total, count = objective.loss(*objective.prediction_and_target(seen, batch))
    return Restored(
        target.modality,
        reconstruct_map(objective, batch, seen),
        truth,
        pixels & validity(batch, target.modality),
        torch.where(count > 0, total / count.clamp_min(1), torch.nan),
    )


def open_decoders(
    run: Run,
    data: str,
    test_data: str | None,
    context: Context,
    *,
    baselines: bool = True,
    at_epoch: float | None = None,
    device: str = "auto",
) -> tuple[dict[str, Restorer], HeldOutSamples]:
    """The run, the training mean and the model as it was before training, and samples that the run has not seen.

    Of the run's own data these are the ones that it held out; of others the last fifth, or `test_data`. The weights are
    the newest, or those that the run kept at an epoch; the untrained model is one of the same stage. Raises
    ValueError where none can be read, and what opening a run or data raises.
    """
    where = choose_device(device)
    trained = run.model(epoch=at_epoch).to(where)
    train, test = _sources(run, data, test_data)
    model = ModelRestorer(trained)
    size = trained.encoder.image_size

    def batches(source: Source, most: int) -> Iterator[Batch]:
        chosen, read = spread(len(source), most), 0
        for start in range(0, len(chosen), context.micro_batch):
            part_of = Subset(source, chosen[start : start + context.micro_batch])
            seen = load_samples(part_of, run.modalities, size, len(part_of))
            if len(seen):
                key = sample_keys(context.seed, 0, [start + place for place in seen.places])
                read += len(seen)
                yield replace(seen.batch("cpu"), key=key).on(where)
        if not read:
            raise ValueError(f"no sample of {source.address} can be read; see `unveil inspect`")

    restorers: dict[str, Restorer] = {THIS_RUN: model}
    if baselines:
        stage = run.checkpoint(at_epoch).state["stage"]
        restorers["training mean"] = TrainingMean(model, lambda: batches(train, context.limit or MEAN_SAMPLES))
        restorers[UNTRAINED] = ModelRestorer(run.model(stage, trained=False).to(where))
    count = min(context.limit or TEST_SAMPLES, len(test))
    return restorers, HeldOutSamples(data, test_data, lambda: batches(test, count), count)


def _sources(run: Run, data: str, test_data: str | None) -> tuple[Source, Source]:
    """What the mean is taken of, and what is reconstructed."""
    train, unseen = run.split(data)
    if test_data is not None:
        return train if len(train) else unseen, run.split(test_data)[1]
    return (train, unseen) if len(train) else hold_out(unseen, HELD_OUT, run.config.seed, last=True)
