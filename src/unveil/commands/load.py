"""`unveil.load`: a run folder, a public ViT's weights, or a name on the hub, as an encoder of images."""

from __future__ import annotations

from pathlib import Path

from ..modeling.image_encoder import ImageEncoder
from ..modeling.public_vits import PublicViT, is_public_vit, load_encoder
from ..modeling.types import Pool
from ..recipes.run import Run
from ..runs.hardware import choose_device


def load(
    address: str | Path | Run, *, pool: Pool = "mean", device: str = "auto", at_epoch: float | None = None
) -> ImageEncoder | PublicViT:
    """An encoder, of a run or a public ViT: `features = load("runs/a")(images)`.

    A run's weights are those of its newest whole checkpoint, or those that it has of an epoch (`--save-every`).
    A public ViT (CLIP, DINO, DeiT, MAE, ...) is a weight file, a folder with its configuration, or a name on the hub.
    Images are B C H W in [0, 1]; their normalisation is included and nothing is masked. Raises FileNotFoundError when
    there is nothing at the address, OSError when the hub does not answer, ValueError when a run has no whole
    checkpoint yet, or the format of a file is unknown.
    """
    if isinstance(address, Run) or not is_public_vit(address):
        run = address if isinstance(address, Run) else Run.open(address)
        return run.encoder(pool, at_epoch).to(choose_device(device))
    if at_epoch is not None:
        raise ValueError(f"{address} is not a run, so it has no weights of epoch {at_epoch:g}; leave the epoch out")
    return load_encoder(address, pool).to(choose_device(device))
