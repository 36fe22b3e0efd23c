"""`unveil.load`: a run folder, a public ViT's weights, or a name on the hub, as an encoder of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

from ..data.image_transform import ImageTransform
from ..data.sources import Source
from ..evaluation.choice import Auto, settle, take
from ..evaluation.kept_heads import read_head
from ..evaluation.normalizers import FittedOn
from ..evaluation.predictors import Predictor, predictor
from ..evaluation.results import checksum
from ..modeling.image_encoder import ImageEncoder
from ..modeling.normalizer import Normalize
from ..modeling.public_vits import PublicViT, is_public_vit, load_encoder
from ..modeling.types import Combine, Pool
from ..recipes.run import Run
from ..runs.console import log
from ..runs.hardware import choose_device
from .head_files import is_head_folder, read_head_folder


@overload
def load(
    address: str | Path | Run,
    *,
    pool: Pool | Auto = "mean",
    layer: Sequence[int | Auto] | Auto = (),
    combine: Combine = "concat",
    normalize: Normalize | Auto = "none",
    head: None = None,
    device: str = "auto",
    at_epoch: float | None = None,
    trust: bool = False,
) -> ImageEncoder | PublicViT: ...


@overload
def load(
    address: str | Path | Run, *, head: str, device: str = "auto", at_epoch: float | None = None, trust: bool = False
) -> Predictor: ...


def load(
    address: str | Path | Run,
    *,
    pool: Pool | Auto = "mean",
    layer: Sequence[int | Auto] | Auto = (),
    combine: Combine = "concat",
    normalize: Normalize | Auto = "none",
    head: str | None = None,
    device: str = "auto",
    at_epoch: float | None = None,
    trust: bool = False,
) -> ImageEncoder | PublicViT | Predictor:
    """An encoder, of a run or a public ViT: `features = load("runs/a")(images)`.

    A run's weights are the newest that are whole (a line on stderr says why not the newest of all), or those that it
    has of an epoch (`--save-every`).
    A public ViT (CLIP, DINO, DeiT, MAE, ...) is a weight file, a folder with its configuration, or a name on the hub.
    Images are B C H W in [0, 1]; their normalisation is included and nothing is masked. Raises FileNotFoundError when
    there is nothing at the address, OSError when the hub does not answer, ValueError when a run has no whole
    checkpoint yet, or the format of a file is unknown.

    No code of a run is executed, except of a run whose encoder is of classes of the user's own: by who has run its
    recipe file before, or with `trust`.

    Features are of the blocks in `layer`, counted from 1, or from the end (-1), side by side or (`combine`) their mean,
    by default of the last. With `normalize` they are standardised, whitened or divided by their length: by statistics
    of the run's training images that its folder keeps, and that are computed where it does not; a public ViT needs
    those that `evaluate` or `embed` kept. What is `auto` is chosen on the same images, as `settle` says.

    With `head`, the name of a protocol whose head `evaluate --keep` has kept, it is a `Predictor`: images to scores of
    classes, to a prediction for every pixel, or to boxes; the address may be what `unveil export --head` has written.

    >>> import torch
    >>> import unveil
    >>> encoder = unveil.load("runs/a", device="cpu")
    >>> encoder(torch.rand(2, 3, 16, 16)).shape
    torch.Size([2, 128])
    """
    if head is not None:
        if (pool, layer, combine, normalize, at_epoch) != ("mean", (), "concat", "none", None):
            raise ValueError("a head says itself what it reads: give no pool, layer, combine, normalize or at_epoch")
        return load_predictor(address, head, device, trust)
    encoder, run = load_plain(address, device, at_epoch, trust)
    layers = (layer,) if isinstance(layer, str) else layer
    images, folder = FittedOn(training_images(address, run)), folder_of(address, run)
    take(encoder, settle(encoder, images, folder, pool, layers, combine, normalize, log), images, folder)
    return encoder


def load_predictor(address: str | Path | Run, head: str | None, device: str = "auto", trust: bool = False) -> Predictor:
    """The encoder of a run, or a public ViT, with a head that was kept; of no name the only one.

    The address of an exported head is its folder. Raises ValueError as `read_head`, and where a head without an encoder
    of its own was trained on other weights.
    """
    if not isinstance(address, Run) and is_head_folder(address):
        return read_head_folder(address, head).to(choose_device(device))
    run = address if isinstance(address, Run) or is_public_vit(address) else Run.open(address, trust)
    stored = run if isinstance(run, Run) else None
    kept = read_head(folder_of(address, stored), head)
    encoder: ImageEncoder | PublicViT
    if stored is not None and kept.trains_encoder:
        encoder = stored.encoder("mean", trained=False)
    else:
        at_epoch = kept.facts.get("at_epoch")
        encoder, _ = load_plain(run, "cpu", at_epoch)
        there, of = weights_of(encoder, stored, at_epoch)["checksum"], kept.facts.get("weights", {}).get("checksum")
        if there != of:
            raise ValueError(
                f"the head {kept.facts.get('protocol')} was trained on other weights of"
                f" {stored.path if stored else address} ({of}, now {there}); evaluate again with --keep"
            )
    return predictor(kept, encoder).to(choose_device(device))


def load_plain(
    address: str | Path | Run, device: str, at_epoch: float | None = None, trust: bool = False
) -> tuple[ImageEncoder | PublicViT, Run | None]:
    """As `load`, reading the mean of the last block, and the run, where it is one."""
    encoder: ImageEncoder | PublicViT
    if not isinstance(address, Run) and is_head_folder(address):
        raise ValueError(f"{address} is an exported head, which `unveil predict` and unveil.load(..., head=NAME) read")
    if isinstance(address, Run) or not is_public_vit(address):
        run = address if isinstance(address, Run) else Run.open(address, trust)
        encoder = run.encoder("mean", at_epoch)
    else:
        if at_epoch is not None:
            raise ValueError(f"{address} is not a run, so it has no weights of epoch {at_epoch:g}; leave the epoch out")
        run, encoder = None, load_encoder(address)
        encoder.transform = ImageTransform(encoder.modalities[0], encoder.image_size)
    return encoder.to(choose_device(device)), run


def weights_of(encoder: ImageEncoder | PublicViT, run: Run | None, at_epoch: float | None = None) -> dict[str, Any]:
    """Which weights an encoder that was just loaded has: a checksum, and of a run step and epoch."""
    return run.checkpoint(at_epoch).identity if run else {"checksum": f"crc32:{checksum(encoder):08x}"}


def folder_of(address: str | Path | Run, run: Run | None) -> Path:
    """Where results of an encoder are kept: in the run, or for a public ViT in `runs/<its name>`."""
    return run.path if run else Path("runs", Path(address).stem)


def training_images(address: str | Path | Run, run: Run | None) -> Callable[[], Source]:
    """What opens the images that a run was trained on; of a public ViT it raises ValueError, as nobody has them."""

    def unknown() -> Source:
        raise ValueError(
            f"the training images of {address} are not here to normalise its features by; `unveil evaluate` or"
            " `unveil embed` with --normalize computes that from their --data and keeps it"
        )

    return run.train_images if run and not run.imported else unknown
