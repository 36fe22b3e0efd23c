"""Held-out loss: how well a run predicts samples that it was not trained on, under masks that compare and its own."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..types import THIS_RUN, Context, HeldOutSamples, Masks, Needs, Reconstructor, Score


@dataclass(frozen=True)
class Heldout:
    """The loss on hidden patches, at the run's own share, under random masks that all runs share and under its own."""

    needs: ClassVar[Needs] = "model"

    def run(self, subject: Reconstructor, data: HeldOutSamples, context: Context) -> Score | None:
        """The losses; None for a baseline without any, such as inpainting."""
        losses_of: dict[tuple[Masks, str], list[Float[Tensor, " B"]]] = defaultdict(list)
        done = 0
        for batch in data.batches():
            for masks in Masks:
                for name, reconstruction in subject.reconstruct(batch, masks).items():
                    losses_of[masks, name].append(reconstruction.losses.cpu())
            done += len(batch)
            context.progress(f"held-out loss, {context.subject}", done, data.num_samples)
        if not losses_of:
            raise ValueError("this run predicts features only: it has no loss of pixels, depth or classes")
        details: dict[str, dict[str, float]] = defaultdict(dict)
        for (masks, name), batches in losses_of.items():
            losses = torch.cat(batches)
            if (known := losses[losses.isfinite()]).numel():
                details[name][f"loss_{masks.value}"] = known.mean().item()
        if not details and context.subject != THIS_RUN:
            return None
        keys = [f"loss_{masks.value}" for masks in Masks]
        return Score(
            metrics={key: sum(losses.get(key, 0.0) for losses in details.values()) for key in keys},
            settings={"test_images": done},
            card=(
                f"The run's own losses on the hidden patches of centre views of {done} samples that it was not trained"
                " on, the mean over samples that count, added up over what it predicts. Random masks: the tokens of"
                " each modality by chance, its share by a Dirichlet draw, the same for every run of this grid and"
                " share; these compare. Own masks: as the run was trained; these say how hard its own task is, and do"
                " not compare."
            ),
            details=dict(details),
        )
