"""The data of a run: opened, inspected, and split into training and held-out images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..data.aligned_folders import aligned_modalities, open_samples
from ..data.identity import replaced
from ..data.inspection import AlignedInspection, Inspection, inspect_samples, inspect_source
from ..data.listing import splits_in
from ..data.loader import Loader
from ..data.modality_config import BUILT_IN, Declared, declare
from ..data.sources import Samples, SampleSource, Source, Subset, names_of, open_source, origin, presence
from ..data.splits import hold_out
from ..modeling.types import Modality
from ..recipes.recipe import Recipe
from ..recipes.registry import check_modalities, default_modalities
from ..runs.console import log, quoted
from ..runs.folder import read_trained_images
from ..runs.run_config import Check
from .config import PretrainConfig

DataInspection = Inspection | AlignedInspection
_COMPARED = 2000  # images whose content is compared when a run continues
_STORED = 20  # names in each list of a run folder; `unveil inspect` finds all


def declared_for(config: PretrainConfig, recipe: Callable[..., Any]) -> tuple[Declared, ...]:
    """The modalities of a run, given or those of its recipe; none for plain images.

    Raises ValueError for several where the recipe reads one, and for none that is an input.
    """
    by_default = (BUILT_IN.get(m.name, Declared(m)) for m in default_modalities(recipe) or ())
    declared = declare(config.modalities) or tuple(by_default)
    check_modalities(recipe, [d.modality for d in declared])
    if declared and all(d.modality.role == "output" for d in declared):
        raise ValueError(f"--modalities {' '.join(d.name for d in declared)}: all are outputs; one input is needed")
    return declared


def open_data(address: str, declared: tuple[Declared, ...], *, as_recorded: bool = False) -> Source:
    """The source at an address: of samples with the declared maps, or of plain images where nothing is declared."""
    if declared:
        source = open_samples(address, declared)
        if splits := splits_in(names_of(source)):
            log(
                f"warning: each modality of {address} holds the splits {', '.join(splits)}; all are read. To read one,"
                " keep train/rgb, train/depth and give train, or declare the folders rgb/train, depth/train in a .toml"
            )
        return source
    if several := " ".join(d.name for d in aligned_modalities(address)):
        log(
            f"note: {address} has a folder for each of {several}; all are read as images. --modalities tells them apart"
        )
    return open_source(address, as_recorded=as_recorded)


def check_augment_on(config: PretrainConfig, source: Source) -> None:
    """Raise ValueError where views are to be made on the device of maps that only the processor can view."""
    if config.augment_on == "device" and isinstance(source, Samples):
        names = ", ".join(d.name for d in source.declared)
        raise ValueError(
            f"--augment-on device makes views of plain pictures; {source.address} has maps ({names}) of which pixels or"
            " files may be missing: leave it out, or leave --modalities and --tile out"
        )


def inspect_data(source: Source, check: Check = "auto") -> DataInspection:
    """The inspection of a source: counts, sizes, unreadable and duplicate files."""
    is_aligned = isinstance(origin(source)[0], SampleSource)
    return (inspect_samples if is_aligned else inspect_source)(source, check=check)


def facts_to_store(inspection: DataInspection) -> dict[str, Any]:
    """What a run folder stores of an inspection, of names the first 20 of each list and how many there are."""
    facts = asdict(inspection)
    facts["num_unreadable"] = len(facts["unreadable"])
    facts["unreadable"] = dict(list(facts["unreadable"].items())[:_STORED])
    if isinstance(inspection, Inspection):
        facts["num_duplicates"] = sum(len(names) - 1 for names in inspection.duplicates)
        facts["duplicates"] = [names[:_STORED] for names in inspection.duplicates[:_STORED]]
    else:
        facts["num_orphans"] = {name: len(names) for name, names in inspection.orphans.items()}
        facts["orphans"] = {name: names[:_STORED] for name, names in inspection.orphans.items()}
    return facts


def settle(source: Source, inspection: DataInspection) -> Source:
    """The source, with what its modalities leave to the data set by the inspection."""
    if isinstance(source, SampleSource) and isinstance(inspection, AlignedInspection):
        return source.settled(inspection.settle(source.declared))
    return source


def modalities_of(source: Source, inspection: DataInspection) -> tuple[Modality, ...]:
    """The modalities of a source, in the order they were given; of plain images, by their channel statistics."""
    if isinstance(inspection, Inspection):
        return (inspection.modality,)
    whole = origin(source)[0]
    assert isinstance(whole, SampleSource)
    return tuple(d.modality for d in inspection.settle(whole.declared))


def present(source: Source) -> dict[str, Bool[Tensor, " N"]]:
    """Which samples have each modality, as a mask per modality; empty for plain images, which are complete."""
    whole = origin(source)[0]
    if not isinstance(whole, SampleSource):
        return {}
    has = torch.from_numpy(presence(source))
    return {d.name: column for d, column in zip(whole.declared, has.unbind(dim=1), strict=True)}


def split_data(source: Source, config: PretrainConfig, seed: int) -> tuple[Subset, Subset]:
    """The source in two: images to train on, and held-out ones for validation and pictures."""
    return hold_out(source, config.held_out_share, seed, last=config.held_out == "last", group_by=config.group_by)


def make_loader(
    train: Source,
    recipe: Recipe,
    modalities: tuple[Modality, ...],
    config: PretrainConfig,
    device: str,
    shard: tuple[int, int] = (0, 1),
) -> Loader:
    """The loader of a run, or of one of its processes: `shard` is its rank and the number of processes."""
    return Loader(
        train,
        recipe.view,
        recipe.optim.batch_size,
        config.seed,
        workers=config.workers,
        max_broken=config.max_broken,
        modality=modalities,
        shard=shard,
        repeats=config.repeats,
        pinned=device.startswith("cuda"),
        on_device=config.augment_on == "device",
    )


def check_images(run: Path, train: Source) -> None:
    """Raise ValueError where files that a run was started on have other content by now; looks at 2000 of them."""
    stored = read_trained_images(run)
    if stored is not None and (others := replaced(train, stored, _COMPARED)):
        names = ", ".join(quoted(train.name(i)) for i in others[:3])
        raise ValueError(
            f"{len(others)} of {min(len(train), _COMPARED)} images looked at have other content than when {run} began,"
            f" such as {names}; give the same images, another --out, or --overwrite"
        )


def check_unreadable(inspection: DataInspection, train: Source, max_broken: float) -> None:
    """Raise ValueError when more of the images to train on are unreadable than is accepted."""
    if not inspection.unreadable:
        return
    broken = [name for name in names_of(train) if name in inspection.unreadable]
    if len(broken) > max_broken * len(train):
        examples = "; ".join(f"{quoted(name)}: {quoted(inspection.unreadable[name])}" for name in broken[:10])
        raise ValueError(
            f"{len(broken)} of {len(train)} images of {inspection.address} cannot be read ({examples});"
            " mend or remove them, or raise --max-broken"
        )
