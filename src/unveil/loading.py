"""`unveil.load`: a run folder, or a weight file, as an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .checkpoint import read_latest
from .facts import part, read_dials, read_modality
from .machine import choose_device
from .pretrained import Pool, Pretrained
from .recipe import Recipe
from .recipe_files import load_recipe
from .runs import read_facts
from .training import seed_stage


def load(run: str | Path, *, pool: Pool = "mean", device: str = "auto") -> Pretrained:
    """The encoder of a run, from its newest whole checkpoint: `features = load("runs/a")(images)`.

    Images are B C H W in [0, 1]; their normalisation is included and nothing is masked. Raises FileNotFoundError when
    there is no such run, ValueError when it has no whole checkpoint yet.
    """
    path = Path(run).expanduser()
    encoder = rebuild(path).encoder
    found, complaints = read_latest(path)
    if found is None:
        raise ValueError(f"{path} has no whole checkpoint yet" + "".join(f"; {c}" for c in complaints))
    own = {name: tensor for name, tensor in found.model.items() if name.startswith("encoder.")}
    encoder.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in own.items()})
    return Pretrained(encoder, pool).to(choose_device(device))


def untrained(run: str | Path, *, pool: Pool = "mean", device: str = "auto") -> Pretrained:
    """The encoder of a run as it was before training."""
    return Pretrained(rebuild(Path(run).expanduser()).encoder, pool).to(choose_device(device))


def rebuild(path: Path) -> Recipe:
    """A run's recipe with its dials, freshly initialised just as the run began."""
    facts = known_facts(path)
    own = path / "recipe.py"
    recipe = load_recipe(str(own) if own.exists() else part(facts, "recipe", path))
    seed_stage(part(facts, "seed", path), -1)
    return recipe(modality=read_modality(facts, path), **read_dials(facts, path))


def known_facts(path: Path) -> dict[str, Any]:
    """What `run.json` says. Raises FileNotFoundError when the folder is no run."""
    facts = read_facts(path)
    if not facts:
        near = [str(p.parent) for p in sorted(path.glob("*/run.json"))[:5]]
        hint = f"; there are runs at {', '.join(near)}" if near else ""
        raise FileNotFoundError(f"{path} is no run folder: it has no run.json{hint}")
    return facts
