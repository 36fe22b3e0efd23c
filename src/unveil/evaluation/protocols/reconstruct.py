"""Reconstruction: how close a run's own decoders come to what is hidden, and to one modality from others."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..dense import Confusion, DepthErrors
from ..dense.reconstruction import HeldOutSamples, Reconstruction, Reconstructor
from ..types import Context, Needs, Score

LEAST_ERROR = 0.25  # of 255, squared, at which PSNR ends: rounding alone can make it


@dataclass(frozen=True)
class Reconstruct:
    """PSNR and loss on hidden patches for several shares hidden, and of one modality predicted from others.

    hidden: the shares of all patches that are hidden
    cross_modal: of a run of several modalities, hide each whole and predict it from the first, and from all others
    """

    needs: ClassVar[Needs] = "model"

    hidden: tuple[float, ...] = (0.5, 0.75, 0.9)
    cross_modal: bool = True

    def run(self, subject: Reconstructor, data: HeldOutSamples, context: Context) -> Score:
        """The metrics of each prediction at each share."""
        if not self.hidden or not all(0 < share < 1 for share in self.hidden):
            raise ValueError(f"hidden is one share between 0 and 1 or several; got {self.hidden}")
        ways: dict[str, float | tuple[str, ...]] = {f"{share:g}": 1 - share for share in self.hidden}
        inputs, outputs = subject.inputs, subject.outputs
        crossings: dict[str, str] = {}
        if self.cross_modal and len(inputs) > 1:
            for name in outputs:
                others = tuple(other for other in inputs if other != name)
                for shown in dict.fromkeys((others[:1], others)):
                    way_name = f"{name}_from_{'_and_'.join(shown)}"
                    ways[way_name], crossings[way_name] = shown, name
        found: dict[str, _Metrics] = defaultdict(_Metrics)
        done = 0
        for batch in data.batches():
            for way_name, way in ways.items():
                for name, reconstruction in subject.reconstruct(batch, way).items():
                    target = crossings.get(way_name)
                    if target is None:
                        found[f"{way_name}_{name}"].add(reconstruction)
                    elif reconstruction.modality.name == target:
                        found[name + way_name.removeprefix(target)].add(reconstruction)
            done += len(batch)
            context.progress(f"reconstruction, {context.subject}", done, data.num_samples)
        metrics = {f"{metric}_{name}": value for name, own in found.items() for metric, value in own.metrics().items()}
        if not metrics:
            raise ValueError("this run predicts features only, no pixels, depth or classes that could be reconstructed")
        return Score(
            metrics=metrics,
            settings={"hidden": list(self.hidden), "cross_modal": sorted(crossings), "test_images": done},
            card=(
                f"The run's own decoders on centre views of {done} samples that it was not trained on, at"
                f" {', '.join(f'{share:g}' for share in self.hidden)} of all patches hidden: the same uniform masks"
                " for every model with this grid, whatever it was trained with. The loss is the model's own, on"
                " hidden patches. PSNR is of hidden pixels in 0 to 255, clipped and rounded, the mean over images."
                " Where targets were normalised (by their own patch's mean and deviation, or by each image's, as"
                " depth), the truth's are put back, as published: the model never saw them, so only models of one"
                " target compare."
                + (" Cross-modal: a modality is hidden whole and told from others that are whole." if crossings else "")
                + " Training mean: at each place the mean target of training images, or their most frequent class, put"
                " back in the same way; it reads nothing."
            ),
        )


class _Metrics:
    """What adds up over batches about one prediction."""

    def __init__(self) -> None:
        self.losses: list[Float[Tensor, " B"]] = []
        self.psnr: list[float] = []
        self.depth = DepthErrors()
        self.confusion: Confusion | None = None
        self.kind = "other"

    def add(self, reconstruction: Reconstruction) -> None:
        self.losses.append(reconstruction.losses.cpu())
        modality, predicted = reconstruction.modality, reconstruction.predicted
        if modality.kind == "categorical":
            self.kind = "classes"
            self.confusion = self.confusion or Confusion(modality.num_classes)
            self.confusion.add(reconstruction.guess[:, :1], reconstruction.truth[:, :1], predicted)
        elif modality.normalise == "fixed":
            self.kind = "picture"
            guess, truth = ((x * 255).round().clamp(0, 255) for x in (reconstruction.guess, reconstruction.truth))
            error = ((guess - truth).square().mean(1, keepdim=True) * predicted).flatten(1).sum(1)
            count = predicted.flatten(1).sum(1)
            mean = (error / count.clamp_min(1)).clamp_min(LEAST_ERROR)
            self.psnr += (20 * math.log10(255) - 10 * mean[count > 0].log10()).tolist()
        elif modality.channels == 1:
            self.kind = "depth"
            self.depth.add(reconstruction.guess, reconstruction.truth, predicted & (reconstruction.truth > 0))

    def metrics(self) -> dict[str, float]:
        losses = torch.cat(self.losses)
        found = {"loss": losses[losses.isfinite()].mean().item()} if losses.isfinite().any() else {}
        if self.kind == "picture" and self.psnr:
            found["psnr"] = sum(self.psnr) / len(self.psnr)
        elif self.kind == "depth" and self.depth.count:
            found |= self.depth.metrics()
        elif self.confusion is not None and self.confusion.counts.sum():
            found |= self.confusion.metrics()
        return found
