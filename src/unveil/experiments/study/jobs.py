"""A study at one scale as jobs: each a run and its measurements, with a folder name made from its settings."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...evaluation.registry import Data, data_for
from ...recipes.registry import default_modalities, defaults_of, load_recipe
from ...runs.console import user_path
from ...runs.run_config import OLD_NAMES, current_names
from ...training.config import OPTION_NAMES, json_like
from .design import Arm, Options, RunOf, Scale, ScaleName, Setting, Share, Study, Times

# Arguments that change how a run uses the machine, not its outcome: they may differ when it is continued.
MACHINE = ("device", "workers", "micro_batch", "compile", "save_minutes", "tensorboard", "log")
_OWN = ("recipe", "data", "out", "overwrite", "config", "save_config")  # options of pretrain that a study sets itself
OF_PRETRAIN = (*(name for name in OPTION_NAMES if name not in _OWN), *OLD_NAMES)
_NAMES_IN_DIGEST = {new: old for old, new in OLD_NAMES.items()}  # so that folders of release 0.1 keep their names
SAVE_MINUTES = 2.0
LABELLED_PIXELS: Data = "images with a label per pixel"
VIDEOS: Data = "videos with masks of objects"
BOXES: Data = "images with boxes"
VALIDATIONS = 10  # of a run, at equal epochs of all arms: not as often as the machine has time for


@dataclass(frozen=True)
class Job:
    """One run of a study as JSON values only, so that any process can run it."""

    name: str
    arm: str
    setting: str
    seed: int
    recipe: str
    pretrain: dict[str, Any]
    evaluate: list[dict[str, Any]]
    analyze: list[dict[str, Any]]
    needs: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def expand(study: Study, scale: ScaleName, folder: Path) -> list[Job]:
    """The jobs of a study, each after those that it needs; all arms of a seed come before the next seed.

    Raises ValueError for a setting without images.
    """
    at = study.scales[scale]
    jobs: dict[tuple[str, str, int], Job] = {}
    for seed in at.seeds:
        for setting in at.settings:
            for arm in _in_order(study.arms_at(scale), at, setting):
                needed = {a: jobs[a, setting.name, seed] for a in needs_of(arm, at, setting)}
                jobs[arm.name, setting.name, seed] = _job(study, at, setting, arm, seed, needed, folder)
    return list(jobs.values())


def images_of(setting: Setting) -> str:
    """The address of the images that are trained on. Raises ValueError for a setting without."""
    if setting.data is None:
        raise ValueError(f"setting {setting.name} has no images; give --data {setting.name}=FOLDER")
    return setting.data


def settled(arm: Arm, at: Scale, setting: Setting) -> dict[str, Any]:
    """The options of an arm in a setting: the scale's and the setting's as far as its recipe has them, then its own."""
    defaults = recipe_options(arm.recipe)
    known = {*defaults, *OF_PRETRAIN}
    shared = {name: value for name, value in current_names({**at.options, **setting.options}).items() if name in known}
    options = {**shared, **current_names(arm.options)}
    if options.get("init_epoch") and options.get("continue_schedule", "restart") == "restart":
        del options["init_epoch"]  # a new schedule resumes nowhere
    whole: Any = shared.get("epochs", defaults.get("epochs"))
    if isinstance(options.get("epochs"), Share):
        options["epochs"] = options["epochs"].of_epochs * whole
    epochs: Any = options.get("epochs", whole)

    def settle(name: str, value: Any) -> Any:
        if isinstance(value, Share):
            return value.of_epochs * epochs
        if isinstance(value, Times):
            usual: Any = shared.get(name, defaults.get(name))
            return tuple(value.factor * side for side in usual) if isinstance(usual, tuple) else value.factor * usual
        return value

    return {name: settle(name, value) for name, value in options.items()}


def digest(settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for the settings of a run or of a measurement."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _job(
    study: Study, at: Scale, setting: Setting, arm: Arm, seed: int, needed: Mapping[str, Job], folder: Path
) -> Job:
    def run_folder(value: Any) -> Any:
        return str(folder / "runs" / needed[value.arm].name) if isinstance(value, RunOf) else value

    data, options = images_of(setting), settled(arm, at, setting)
    named = {name: needed[v.arm].name if isinstance(v, RunOf) else json_like(v) for name, v in options.items()}
    identity = {
        "recipe": user_path(arm.recipe).read_text() if arm.recipe.endswith(".py") else arm.recipe,
        "data": data,
        "seed": seed,
        **{_NAMES_IN_DIGEST.get(name, name): value for name, value in named.items() if name not in MACHINE},
    }
    multimodal = reads_maps(arm.recipe)
    evaluate = [
        {
            **_evaluation_data(setting, folder, multimodal, data_for(names)),
            "protocol": names,
            "seed": seed,
            "baselines": arm.name == study.baseline and not when,
            **{n: json_like(v) for n, v in {**at.evaluation, **given}.items()},
            **when,
        }
        for chosen, times in ((at.along, _saved_epochs(options, arm.recipe)), (at.protocols, [{}]))
        for names, given in _grouped(chosen)
        for when in times
    ]
    scenes = {"data": str(scenes_folder(data, folder))} if is_scenes(data) else {}  # the classes of pixels are known
    analyze = [
        {"analysis": name, **(scenes if name == "attention" else {}), **{n: run_folder(v) for n, v in given.items()}}
        for name, given in at.analyses.items()
        if not any(isinstance(v, RunOf) and v.arm == arm.name for v in given.values())  # not compared with itself
    ]
    return Job(
        name=f"{slug(f'{setting.name} {arm.name}')[:60]}-seed{seed}-{digest(identity)[:8]}",
        arm=arm.name,
        setting=setting.name,
        seed=seed,
        recipe=arm.recipe,
        pretrain={
            "data": place(data, folder, multimodal),
            "seed": seed,
            "save_minutes": SAVE_MINUTES,
            "val_every": epochs_of(options, arm.recipe) / VALIDATIONS,
            **{name: json_like(run_folder(value)) for name, value in options.items()},
        },
        evaluate=evaluate,
        analyze=analyze,
        needs=[job.name for job in needed.values()],
    )


def _evaluation_data(setting: Setting, folder: Path, multimodal: bool, kind: Data) -> dict[str, str | None]:
    """The data of protocols of one kind: labelled images, or for a run's own decoders all maps that it reads.

    The user's own test images are labelled, but need not have those maps: the run's held-out samples replace them.
    Images with a label per pixel have a test set of their own, or their last fifth is held out.
    """
    data, test = images_of(setting), setting.test_data
    if kind == VIDEOS:
        return {"data": videos_of(setting, folder), "test_data": None}
    if kind == BOXES:
        return {"data": boxes_of(setting, folder), "test_data": None}
    if kind == LABELLED_PIXELS:
        data, test, multimodal = setting.dense or data, None if setting.dense else test, True
    elif kind == "samples for a run's decoders":
        test = test if test and is_scenes(test) else None
    else:
        data, multimodal = setting.labelled or data, False
    return {"data": place(data, folder, multimodal), "test_data": test and place(test, folder, multimodal)}


def measures_on(at: Scale, kind: Data) -> bool:
    """Whether a scale has protocols on data of a kind, such as images with a label per pixel."""
    return any(data_for([name]) == kind for name in (*at.protocols, *at.along))


def videos_of(setting: Setting, folder: Path) -> str:
    """The folder of a setting's videos; those of scenes are rendered into the study's."""
    address = setting.videos or ""
    return str(folder / "videos" / slug(address.partition(":")[2])) if is_scenes(address) else address


def boxes_of(setting: Setting, folder: Path) -> str:
    """The folder of a setting's images with boxes; those of scenes are rendered into the study's."""
    address = setting.boxes or images_of(setting)
    return str(folder / "boxes" / (slug(address.partition(":")[2]) or "default")) if is_scenes(address) else address


def place(address: str, folder: Path, multimodal: bool = False) -> str:
    """The path of images: scenes are rendered into the study's folder; of aligned folders, most recipes read `rgb`."""
    if is_scenes(address):
        return str(scenes_folder(address, folder) / ("" if multimodal else "rgb"))
    inside = user_path(address) / "rgb"
    return str(inside) if not multimodal and inside.is_dir() else address


def epochs_of(options: Mapping[str, Any], recipe: str) -> float:
    """The length of a run with these options."""
    return float(options.get("epochs", recipe_options(recipe)["epochs"]))


def _saved_epochs(options: Options, recipe: str) -> list[dict[str, float]]:
    """The epochs whose weights a run saves, as an argument of `evaluate`."""
    if not (every := options.get("save_every")):
        return []
    count = int(epochs_of(options, recipe) / every + 1e-9)
    return [{"at_epoch": k * every} for k in range(1, count + 1)]


@cache
def reads_maps(recipe: str) -> bool:
    """Whether a recipe reads several modalities."""
    return default_modalities(load_recipe(recipe)) is not None


def is_scenes(address: str) -> bool:
    """Whether an address of data means rendered scenes."""
    return address == "scenes" or address.startswith("scenes:")


def scenes_folder(address: str, folder: Path) -> Path:
    """The folder that the scenes of an address are rendered to."""
    return folder / "scenes" / (slug(address.partition(":")[2]) or "default")


def _grouped(chosen: Mapping[str, Options]) -> list[tuple[list[str], Options]]:
    """Protocols of equal options and data are measured together: features are computed once for them."""
    groups: dict[str, tuple[list[str], Options]] = {}
    for name, options in chosen.items():
        names, _ = groups.setdefault(json.dumps([data_for([name]), options], sort_keys=True), ([], options))
        names.append(name)
    return list(groups.values())


def slug(text: str) -> str:
    """Text in lower case with hyphens, for the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def needs_of(arm: Arm, at: Scale, setting: Setting) -> list[str]:
    """The other arms whose runs an arm starts from or is analysed with."""
    values = [*settled(arm, at, setting).values(), *(v for given in at.analyses.values() for v in given.values())]
    return list(dict.fromkeys(v.arm for v in values if isinstance(v, RunOf) and v.arm != arm.name))


def _in_order(arms: Sequence[Arm], at: Scale, setting: Setting) -> list[Arm]:
    """The arms, each after those that it needs. `check` has excluded cycles."""
    ordered: list[Arm] = []
    while len(ordered) < len(arms):
        known = {arm.name for arm in ordered}
        ordered += [arm for arm in arms if arm.name not in known and known.issuperset(needs_of(arm, at, setting))]
    return ordered


@cache  # recipes are read as text to find one, for each arm in each setting and seed
def recipe_options(recipe: str) -> dict[str, Any]:
    """The options of a recipe with their defaults."""
    return defaults_of(load_recipe(recipe))
