"""`unveil.load`: a run folder, a public ViT's weights, or a name on the hub, as an encoder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data.modality_config import Declared
from ..modeling.image_encoder import Pool, Pretrained
from ..modeling.public_vits import ForeignEncoder, describe, fresh, is_foreign, load_encoder
from ..modeling.seeding import seed_stage
from ..recipes.recipe import Recipe
from ..recipes.registry import handed, load_recipe
from ..runs.checkpoint import Checkpoint, read_epoch, read_latest
from ..runs.folder import read_metadata
from ..runs.hardware import choose_device
from ..training.run_metadata import part, read_declared, read_dials, read_modalities


def load(
    address: str | Path, *, pool: Pool = "mean", device: str = "auto", at_epoch: float | None = None
) -> Pretrained | ForeignEncoder:
    """An encoder, of a run or a public ViT: `features = load("runs/a")(images)`.

    A run's weights are those of its newest whole checkpoint, or those that it kept at an epoch (`--keep-every`).
    A public ViT (CLIP, DINO, DeiT, MAE, ...) is a weight file, a folder with its configuration, or a name on the hub.
    Images are B C H W in [0, 1]; their normalisation is included and nothing is masked. Raises FileNotFoundError when
    there is nothing at the address, OSError when the hub does not answer, ValueError when a run has no whole
    checkpoint yet, or a file no encoder that is known.
    """
    if is_foreign(address):
        if at_epoch is not None:
            raise ValueError(f"{address} is no run and has kept no weights of epoch {at_epoch:g}; leave the epoch out")
        return load_encoder(address, pool).to(choose_device(device))
    path = Path(address).expanduser()
    encoder = rebuild(path).encoder
    own = {name: tensor for name, tensor in read_weights(path, at_epoch).model.items() if name.startswith("encoder.")}
    encoder.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in own.items()})
    return Pretrained(encoder, pool).to(choose_device(device))


def read_weights(run: Path, at_epoch: float | None = None) -> Checkpoint:
    """The newest whole checkpoint of a run, or the weights that it kept at an epoch. Raises ValueError for none."""
    if at_epoch is not None:
        return read_epoch(run, at_epoch)
    found, complaints = read_latest(run)
    if found is None:
        raise ValueError(f"{run} has no whole checkpoint yet" + "".join(f"; {c}" for c in complaints))
    return found


def untrained(address: str | Path, *, pool: Pool = "mean", device: str = "auto") -> Pretrained | ForeignEncoder:
    """The encoder of a run as it was before training; of a public ViT, one of its shape that was never trained."""
    if is_foreign(address):
        return fresh(describe(address), seed=0, pool=pool).to(choose_device(device))
    return Pretrained(rebuild(Path(address).expanduser()).encoder, pool).to(choose_device(device))


def declared_of(address: str | Path) -> tuple[Declared, ...]:
    """The modalities of a run that reads several; none of others, and of a public ViT."""
    return () if is_foreign(address) else read_declared(known_facts(Path(address).expanduser()))


def rebuild(path: Path) -> Recipe:
    """A run's recipe with its dials, freshly initialised just as the run began."""
    facts = known_facts(path)
    own = path / "recipe.py"
    recipe = load_recipe(str(own) if own.exists() else part(facts, "recipe", path))
    seed_stage(part(facts, "seed", path), -1)
    return recipe(**handed(recipe, read_modalities(facts, path)), **read_dials(facts, path))


def known_facts(path: Path) -> dict[str, Any]:
    """What `run.json` says. Raises FileNotFoundError when the folder is no run."""
    facts = read_metadata(path)
    if not facts:
        near = [str(p.parent) for p in sorted(path.glob("*/run.json"))[:5]]
        hint = f"; there are runs at {', '.join(near)}" if near else ""
        raise FileNotFoundError(f"{path} is no run folder: it has no run.json{hint}")
    return facts
