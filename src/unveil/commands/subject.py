"""A masked model and samples to draw or measure it on, for `unveil look` and `unveil analyze`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.sources import Source
from ..evaluation.visualize.samples import SampleViews, first_reason, load_samples
from ..modeling.masked_model import MaskedModel
from ..modeling.masking import Masker, Uniform
from ..modeling.types import Batch, Modality
from ..recipes.run import Run
from ..runs.atomic import make_folder, write_json
from ..runs.hardware import choose_device

_BATCH = 32


@dataclass(frozen=True)
class Subject:
    """A masked model in eval mode on its device, and samples that it was not trained on; no epoch: untrained."""

    name: str
    model: MaskedModel
    modalities: tuple[Modality, ...]
    samples: Source
    epoch: float | None = None

    @classmethod
    def of_run(cls, run: Run, data: str | None, device: str, trained: bool = True) -> Subject:
        """A run with its newest weights, and the samples of `data`, or its own, that it was not trained on."""
        model = run.model(trained=trained).to(choose_device(device))
        epoch = run.checkpoint().state["epoch"] if trained else None
        return cls(run.name, model, run.modalities, run.held_out(data), epoch)

    @classmethod
    def of_encoder(cls, run: Run, data: str | None, device: str) -> Subject:
        """As `of_run`, with the encoder alone: nothing is predicted, and its masks are not those of the run."""
        model = MaskedModel(run.own_encoder().encoder, Masker(Uniform()), {}, []).eval().to(choose_device(device))
        inputs = [m.name for m in model.encoder.modalities]
        modalities = tuple(m for m in run.modalities if m.name in inputs)
        return cls(run.name, model, modalities, run.held_out(data), run.checkpoint().state["epoch"])

    @property
    def is_encoder_alone(self) -> bool:
        return not self.model.decoders

    @property
    def title(self) -> str:
        """The name with the epoch of the weights."""
        return f"{self.name}, " + ("untrained" if self.epoch is None else f"epoch {self.epoch:.4g}")

    @property
    def device(self) -> torch.device:
        """Where the weights of the model are."""
        return self.model.encoder.prefix.device

    def load(self, count: int) -> tuple[SampleViews, Batch]:
        """At most `count` samples, evenly spread, and the batch of them. Raises ValueError where none can be read."""
        samples = load_samples(self.samples, self.modalities, self.model.encoder.image_size, count)
        if not len(samples):
            why = first_reason(self.samples, self.modalities)
            raise ValueError(f"no sample of {self.samples.address} can be read; {why}")
        return samples, samples.views.on(self.device)


def chunks(batch: Batch) -> list[Batch]:
    """A batch in parts that are small enough for attention maps."""
    return batch.split(_BATCH)


def print_conclusions(content: Mapping[str, Any]) -> None:
    """Print the sentences at the end of an analysis, a paragraph each."""
    for sentence in content["conclusions"]:
        print(f"\n{sentence}")


def write_analysis(run: Path, name: str, content: Mapping[str, Any]) -> None:
    """Write `analysis/<name>.json` in a run folder."""
    make_folder(run / "analysis")
    write_json(run / "analysis" / f"{name}.json", content)
