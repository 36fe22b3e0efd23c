"""Held-out loss: how well a run predicts samples that it was not trained on, under masks that compare and its own."""

from __future__ import annotations

from collections import defaultdict

import torch
from jaxtyping import Float
from torch import Tensor

from ..dense.reconstruction import Masks, RestoringTask
from ..types import Score


def heldout(task: RestoringTask, seed: int = 0) -> Score | None:
    """The loss on hidden patches, at the run's own share, under random masks that all runs share and under its own."""
    found: dict[tuple[Masks, str], list[Float[Tensor, " B"]]] = defaultdict(list)
    done = 0
    for batch in task.batches():
        for masks in Masks:
            for name, restored in task.model.restored(batch, masks).items():
                found[masks, name].append(restored.losses.cpu())
        done += len(batch)
        task.tell(f"held-out loss, {task.who}", done, task.num_samples)
    if not found:
        raise ValueError("this run predicts features only, no pixels, depth or classes of which a loss could be told")
    details: dict[str, dict[str, float]] = defaultdict(dict)
    for (masks, name), parts in found.items():
        losses = torch.cat(parts)
        if (known := losses[losses.isfinite()]).numel():
            details[name][f"loss_{masks.value}"] = known.mean().item()
    totals = {
        f"loss_{masks.value}": sum(own.get(f"loss_{masks.value}", 0.0) for own in details.values()) for masks in Masks
    }
    return Score(
        metrics=totals,
        settings={"test_images": done},
        card=(
            f"The run's own losses on the hidden patches of centre views of {done} samples that it was not trained on,"
            " the mean over samples that count, added up over what it predicts. Random masks: the tokens of each"
            " modality by chance, its share by a Dirichlet draw, the same for every run of this grid and share; these"
            " compare. Own masks: as the run was trained; these say how hard its own task is, and do not compare."
        ),
        details=dict(details),
    )
