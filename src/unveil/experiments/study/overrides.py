"""What a person chooses in place of a study's own: images, teacher, arms, seeds, how much is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...modeling.public_vits import is_public_vit
from ...modeling.teachers.frozen import RANDOM
from ...runs.console import log
from .design import ScaleName, Setting, Study
from .jobs import is_scenes

SCENES = "scenes"  # what settings of rendered scenes are named after


def check_numbers(**given: int | None) -> None:
    """Raise ValueError for a flag whose number is below 1."""
    for flag, number in given.items():
        if number is not None and number < 1:
            raise ValueError(f"--{flag} {number}: a whole number, 1 or more, is needed")


def with_overrides(
    study: Study,
    at: ScaleName,
    *,
    teacher: str | None = None,
    arms: Sequence[str] = (),
    seeds: int | None = None,
    limit: int | None = None,
) -> Study:
    """The study with what the user chose in place of the scale's own. Raises FileNotFoundError for no such teacher."""
    if at not in study.scales:
        return study  # which `check` tells
    scale = study.scales[at]
    if teacher is not None:
        path = Path(teacher).expanduser()
        if not path.exists() and not is_public_vit(teacher) and teacher != RANDOM:
            raise FileNotFoundError(f"--teacher {teacher}: there is no such file, folder or name on the hub")
        scale = replace(scale, dials={**scale.dials, "teacher": str(path) if path.exists() else teacher})
    if arms:
        scale = replace(scale, arms=tuple(arms))
    if seeds is not None:
        scale = replace(scale, seeds=tuple(range(seeds)))
    if limit is not None:
        scale = replace(scale, evaluation={**scale.evaluation, "limit": limit})
    return replace(study, scales={**study.scales, at: scale})


def with_data(study: Study, scale: ScaleName, **given: Sequence[str]) -> Study:
    """The study with the user's own images: each word is PATH, for the only or the first setting, or SETTING=PATH.

    `given` names what the words are of a setting: data, labelled, test_data. Settings that have no images, where
    others have, are left out, which is said; one that is named after its scenes gets the name of what takes their
    place. Raises ValueError for a setting that is not there.
    """
    at = study.scales[scale]
    settings = {setting.name: setting for setting in at.settings}
    for what, words in given.items():
        for word in words:
            name, equals, path = word.partition("=")
            if not equals or name not in settings:
                if equals and not Path(word).expanduser().exists() and not word.startswith(SCENES):
                    raise ValueError(f"{word}: there is no setting {name!r}; there are {', '.join(settings)}")
                name, path = at.settings[0].name, word
            told: dict[str, Any] = {what: path}
            settings[name] = replace(settings[name], **told)
    kept = tuple(s for s in settings.values() if s.data is not None) or tuple(settings.values())
    for setting in settings.values():
        if setting not in kept:
            log(f"setting {setting.name} is left out, for it has no images; --data {setting.name}=FOLDER takes it in")
    return replace(study, scales={**study.scales, scale: replace(at, settings=tuple(_renamed(s) for s in kept))})


def _renamed(setting: Setting) -> Setting:
    """A setting of scenes whose images are others, named after these: a file's with its folder's name before it."""
    if setting.data is None or is_scenes(setting.data) or not setting.name.startswith(SCENES):
        return setting
    path = Path(setting.data).expanduser().absolute()
    own = f"{path.parent.name}/{path.stem}" if path.is_file() else path.name
    return replace(setting, name=own + setting.name.removeprefix(SCENES))
