"""Reconstruction: how close a run's own decoders come to what is hidden, and to one modality from others."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..dense.metrics import DELTA, LEAST_DEPTH, Confusion, DepthErrors
from ..types import THIS_RUN, Context, HeldOutSamples, Needs, Reconstruction, Reconstructor, Score

LEAST_ERROR = 0.25  # of 255, squared, at which PSNR ends: rounding alone can make it


@dataclass(frozen=True)
class Reconstruct:
    """PSNR and loss on hidden patches for several shares hidden, and of one modality predicted from others.

    hidden: the shares of all patches that are hidden
    cross_modal: of a run of several modalities, hide each whole and predict it from the first, and from all others
    predict: the modalities of which that is measured, by default all
    by_place: measure the training mean with the most frequent class of each pixel too, not of all pixels together
    """

    needs: ClassVar[Needs] = "model"

    hidden: tuple[float, ...] = (0.5, 0.75, 0.9)
    cross_modal: bool = True
    by_place: bool = False
    predict: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.hidden or not all(0 < share < 1 for share in self.hidden):
            raise ValueError(f"hidden is one share between 0 and 1 or several; got {self.hidden}")

    def run(self, subject: Reconstructor, data: HeldOutSamples, context: Context) -> Score | None:
        """The metrics; None for a baseline that says nothing of what the run predicts."""
        shown: dict[str, float | tuple[str, ...]] = {f"{share:g}": 1 - share for share in self.hidden}
        targets: dict[str, str] = {}  # where whole modalities are shown, the one to predict from them
        if unknown := [name for name in self.predict if name not in subject.outputs]:
            raise ValueError(
                f"this run predicts {', '.join(subject.outputs)}, not {', '.join(unknown)}; give --predict"
            )
        if self.cross_modal and len(subject.inputs) > 1:
            for target in self.predict or subject.outputs:
                others = tuple(name for name in subject.inputs if name != target)
                for modalities in dict.fromkeys((others[:1], others)):
                    key = f"{target}_from_{'_and_'.join(modalities)}"
                    shown[key], targets[key] = modalities, target
        predictions: dict[str, _Metrics] = defaultdict(_Metrics)
        done = 0
        for batch in data.batches():
            for key, what in shown.items():
                for name, reconstruction in subject.reconstruct(batch, what).items():
                    if key not in targets:
                        predictions[f"{key}_{name}"].add(reconstruction)
                    elif reconstruction.modality.name == targets[key]:
                        predictions[name + key.removeprefix(targets[key])].add(reconstruction)
            done += len(batch)
            context.progress(f"reconstruction, {context.subject}", done, data.num_samples)
        metrics = {f"{name}_{key}": value for key, own in predictions.items() for name, value in own.metrics().items()}
        if not metrics and context.subject != THIS_RUN:
            return None
        if not metrics:
            raise ValueError("this run predicts features only, no pixels, depth or classes that could be reconstructed")
        return Score(
            metrics=metrics,
            settings={"hidden": list(self.hidden), "cross_modal": sorted(targets), "test_images": done},
            card=(
                f"The run's own decoders on centre views of {done} samples that it was not trained on, at"
                f" {', '.join(f'{share:g}' for share in self.hidden)} of all patches hidden: the same uniform masks"
                " for every model with this grid, whatever it was trained with. The loss is the model's own, on"
                " hidden patches. PSNR is of hidden pixels in 0 to 255, clipped and rounded, the mean over images."
                " Where targets were normalised (by their own patch's mean and deviation, or by each image's, as"
                " depth), the truth's are put back, as published: the model never saw them, so only models of one"
                " target compare."
                + (" Cross-modal: a modality is hidden whole and told from others that are whole." if targets else "")
                + " Training mean: at each place the mean target of training images, or their most frequent class, put"
                " back in the same way; it reads nothing."
                + (" By place it is the most frequent class of each pixel." if self.by_place else "")
            ),
            outcomes={f"{n}_{key}": v for key, own in predictions.items() for n, v in own.outcomes.items()},
        )


class _Metrics:
    """The metrics of one prediction, which add up over batches: PSNR, errors of depth, or IoU."""

    def __init__(self) -> None:
        self.losses: list[Float[Tensor, " B"]] = []
        self.psnr: list[float] = []
        self.right: list[float] = []  # of each image the share of the pixels whose class is told, or whose depth nearly
        self.depth = DepthErrors()
        self.confusion: Confusion | None = None

    def add(self, reconstruction: Reconstruction) -> None:
        self.losses.append(reconstruction.losses.cpu())
        modality, predicted = reconstruction.modality, reconstruction.predicted
        prediction, target = reconstruction.prediction, reconstruction.target
        if modality.kind == "categorical":
            self.confusion = self.confusion or Confusion(modality.num_classes)
            self.confusion.add(prediction[:, :1], target[:, :1], predicted)
            self._add_share(prediction[:, :1] == target[:, :1], predicted)
        elif modality.normalise == "fixed":
            prediction, target = ((x * 255).round().clamp(0, 255) for x in (prediction, target))
            error = ((prediction - target).square().mean(1, keepdim=True) * predicted).flatten(1).sum(1)
            count = predicted.flatten(1).sum(1)
            mean = (error / count.clamp_min(1)).clamp_min(LEAST_ERROR)
            self.psnr += (20 * math.log10(255) - 10 * mean[count > 0].log10()).tolist()
        elif modality.channels == 1:
            known = predicted & (target > 0)
            self.depth.add(prediction, target, known)
            least = prediction.clamp_min(LEAST_DEPTH)
            self._add_share(torch.maximum(least / target, target / least) < DELTA, known)

    def _add_share(self, right: Bool[Tensor, "B 1 H W"], counted: Bool[Tensor, "B 1 H W"]) -> None:
        count = counted.flatten(1).sum(1)
        self.right += ((right & counted).flatten(1).sum(1) / count.clamp_min(1))[count > 0].tolist()

    @property
    def outcomes(self) -> dict[str, list[float]]:
        """Of each image that counts; the means of `metrics` are over all pixels, which is the same if all are known."""
        share = "pixel_accuracy" if self.confusion else "delta1"
        return {name: values for name, values in (("psnr", self.psnr), (share, self.right)) if values}

    def metrics(self) -> dict[str, float]:
        losses = torch.cat(self.losses)
        metrics = {"loss": losses[losses.isfinite()].mean().item()} if losses.isfinite().any() else {}
        if self.psnr:
            metrics["psnr"] = sum(self.psnr) / len(self.psnr)
        if self.depth.count:
            metrics |= self.depth.metrics()
        if self.confusion is not None and self.confusion.counts.sum():
            metrics |= self.confusion.metrics()
        return metrics
