"""The options of `unveil pretrain`, checked as far as possible before anything is opened."""

from __future__ import annotations

import inspect
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_type_hints

from ..data.columns import GIVEN, with_columns
from ..data.tiling import MIN_VALID, with_tiles
from ..recipes.options import OWN_SCORE_GIVEN, Option, UsageError, is_own_score, options_in
from ..recipes.registry import check_named, load_recipe, options_of
from ..runs.atomic import write_text
from ..runs.console import suggest, user_path
from ..runs.run_config import Check, CheckpointFormat, Precision, current_names
from ..runs.trust import check_trusted

Compile = Literal["auto", "on", "off"]
HeldOut = Literal["spread", "last"]
AugmentOn = Literal["cpu", "device"]
Continue = Literal["restart", "tail", "x10"]
TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The options of `unveil pretrain`. Raises ValueError for a value that no run could have.

    recipe: a recipe's name, or a file of your own
    config: a YAML file with options, such as the `config.yaml` of a run folder; options given beside it override it
    save_config: write all options, as they are resolved for this data and machine, to a YAML file, and do not train
    data: a folder of images, a Parquet file, tar shards, hf:OWNER/NAME, FOLDER.lance, or scenes (rendered
        here); with modalities, a folder that holds one for each, a table with a column for each, or scenes
    image_column: the column of a table that holds the images, where there are several
    tile: cut images into tiles of so many pixels a side, read by windows, instead of resizing them; pixels without data
        are not valid
    tile_overlap: pixels that neighbouring tiles have in common
    tile_valid: share of a tile that must be inside the image and have data; other tiles are passed over
    modalities: rgb, depth, semseg, or .toml files that declare others; by default what the recipe reads
    group_by: keeps a patient or a scene on one side of the split: a level of the path (1 is the first folder), or a
        regex with one group
    held_out: spread over the images, or the last part, for images in the order of time
    held_out_share: share of the images that is never trained on, for validation and pictures
    out: the run folder; by default runs/<recipe>-<n>
    init_from: start from these weights: a run, or a public MAE, CrossMAE or MultiMAE checkpoint
    init_channels: how the patch projection of init_from becomes one for other channels: mean, repeat, or for each
        channel the number of a trained one (0 is red) or mean
    allow_missing: go on where weights of init_from that should fit are missing, of another shape or left over
    init_epoch: epochs that init_from was trained; a run of unveil stores its own
    continue_schedule: with init_from: restart the schedule, resume the tail of the cosine schedule at init_epoch, or
        resume it at ten times the rate (x10)
    overwrite: replace the run that the folder holds
    paper: keep every default of the paper; otherwise batch, size and epochs are set by data and machine
    minutes: how long to train, which sets the epochs; by default 10 on a CPU, 120 on a GPU; a run that turns out slower
        makes fewer updates and ends at its time, unless --epochs is given
    seed: of initialisation, order, views and masks
    device: cpu, cuda, cuda:1, mps; auto takes the best
    precision: of the arithmetic; auto takes bf16 where the device has it in hardware
    compile: compile the step with torch.compile; auto does on a GPU
    shard: with several processes, each holds a part of weights, gradients, moments and averages (FSDP2), not all (DDP)
    checkpoint_activations: keep none inside of blocks and compute them again in the backward pass: less memory, a third
        more arithmetic
    checkpoint_format: safetensors, one file that rank zero writes, or dcp (torch.distributed.checkpoint): of several
        processes each writes its part, and nothing is gathered; every command reads both
    micro_batch: images that are computed at once; changes memory and speed, not the result
    repeats: views of each image in a batch, which is read and decoded once for all of them; an epoch stays as many
        views as there are images, so it reads a part of them
    augment_on: where views are resized and flipped: cpu, or the device that trains, which gets the boxes as bytes
    workers: threads that prepare images; by default one for each core
    threads: threads that compute a step on a CPU; by default all cores, or one while other programs keep them busy
        (with --precision float32, which repeats a run to the bit, always all)
    save_minutes: minutes between checkpoints
    val_every: epochs between two validations on held-out images; by default a tenth of the run, more in a short one
    save_every: epochs between weights that stay in the folder, for `evaluate --at-epoch`, `--over-training` and
        `analyze attention`; by default five over the run, where they are 160 MB at most
    hang_minutes: minutes without progress after which several processes write their stacks and end; 0 for never
    check: whose headers are read before training: all, a sample of 100,000, or none but those of 2000 images whose
        pixels are measured; auto takes all up to 100,000 files and a sample of more
    max_broken: share of unreadable images above which the run stops
    log: where the metrics go too: tensorboard (files in the run folder), wandb, mlflow, trackio
    tensorboard: the same as --log tensorboard
    trust: execute a recipe file that came with data and that you have not run before: of the run folder that is
        continued, of --init-from, or that the file of --config names; one whose path you give yourself needs no consent
    """

    recipe: str = field(kw_only=False)
    config: str | None = None
    save_config: str | None = None
    data: str = "scenes"
    image_column: str | None = None
    tile: int | None = None
    tile_overlap: int = 0
    tile_valid: float = MIN_VALID
    modalities: tuple[str, ...] = ()
    group_by: str | None = None
    held_out: HeldOut = "spread"
    held_out_share: float = 0.05
    out: str | None = None
    init_from: str | None = None
    init_channels: tuple[str, ...] = ()
    allow_missing: bool = False
    init_epoch: float | None = None
    continue_schedule: Continue = "restart"
    overwrite: bool = False
    paper: bool = False
    minutes: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    compile: Compile = "auto"
    shard: bool = False
    checkpoint_activations: bool = False
    checkpoint_format: CheckpointFormat = "safetensors"
    micro_batch: int | None = None
    repeats: int = 1
    augment_on: AugmentOn = "cpu"
    workers: int | None = None
    threads: int | None = None
    save_minutes: float = 10.0
    val_every: float | None = None
    save_every: float | None = None
    hang_minutes: float = 30.0
    check: Check = "auto"
    max_broken: float = 0.05
    log: tuple[TrackerName, ...] = ()
    tensorboard: bool = False
    trust: bool = False
    recipe_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        need(self.minutes is None or 0 < self.minutes < math.inf, "--minutes", self.minutes, "a time above 0")
        need(0 <= self.seed < 2**62, "--seed", self.seed, "a whole number, 0 or more")
        need(self.micro_batch is None or self.micro_batch >= 1, "--micro-batch", self.micro_batch, "1 image or more")
        need(self.repeats >= 1, "--repeats", self.repeats, "1 view or more")
        need(self.workers is None or self.workers >= 1, "--workers", self.workers, "1 thread or more")
        need(self.threads is None or self.threads >= 1, "--threads", self.threads, "1 thread or more")
        need(0 <= self.save_minutes < math.inf, "--save-minutes", self.save_minutes, "a time, 0 for every step")
        for name in ("val_every", "save_every", "init_epoch"):
            epochs = getattr(self, name)
            need(epochs is None or 0 < epochs < math.inf, _flag(name), epochs, "a number of epochs above 0")
        need(0 <= self.hang_minutes < math.inf, "--hang-minutes", self.hang_minutes, "a time, 0 for never")
        need(0 <= self.max_broken <= 1, "--max-broken", self.max_broken, "a share between 0 and 1")
        need(0 < self.held_out_share < 1, "--held-out-share", self.held_out_share, "a share between 0 and 1")
        choices = {"precision": Precision, "compile": Compile, "held_out": HeldOut, "continue_schedule": Continue}
        choices |= {"augment_on": AugmentOn, "check": Check, "checkpoint_format": CheckpointFormat}
        for name, kind in choices.items():
            value = getattr(self, name)
            need(value in get_args(kind), _flag(name), value, f"one of {', '.join(get_args(kind))}")
        for name in self.log:
            need(name in get_args(TrackerName), "--log", name, f"one of {', '.join(get_args(TrackerName))}")
        _ = self.address  # raises for columns and tiles that cannot be
        if self.shard and self.compile == "on":
            raise ValueError("--shard trains a step that is not compiled; leave --compile on out")
        if self.init_channels and not self.init_from:
            raise ValueError("--init-channels adapts the weights of --init-from; give both, or neither")
        if self.continue_schedule != "restart" and not self.init_from:
            raise ValueError("--continue-schedule resumes the schedule of --init-from; give both, or neither")
        if self.init_epoch is not None and self.continue_schedule == "restart":
            raise ValueError("--init-epoch is where --continue-schedule tail or x10 resumes; give one of them with it")
        if self.paper and self.minutes is not None:
            raise ValueError("--paper keeps the paper's epochs, --minutes sets them; give one of the two")

    @classmethod
    def resolve(cls, recipe: str | None, options: Mapping[str, Any]) -> Self:
        """From the options that were given, flat with those of the recipe, over those of the file `config`."""
        given = current_names({"recipe": recipe, **options} if recipe is not None else options, warn=True)
        given = {name: _OPTIONS[name].accept(value) if name in _OPTIONS else value for name, value in given.items()}
        if given.get("config") is not None:
            given = read_yaml(given["config"], given.get("recipe"), given.get("trust", False)) | given
        if not given.get("recipe"):
            raise ValueError("pretrain needs a recipe, such as crossmae, or --config with a file that names one")
        of_recipe = {option.name: option for option in options_of(load_recipe(given["recipe"]))}
        own = {name: given.pop(name) for name in OPTION_NAMES if name in given}
        return cls(**own, recipe_options={n: of_recipe[n].accept(v) if n in of_recipe else v for n, v in given.items()})

    @property
    def address(self) -> str:
        """Where the data are, with the column of images, or the tiles."""
        address = with_columns(self.data, self.image_column)
        return with_tiles(address, self.tile, self.tile_overlap, self.tile_valid)

    @property
    def trackers(self) -> tuple[str, ...]:
        """Where the metrics go beside the run folder."""
        return tuple(dict.fromkeys((*("tensorboard",) * self.tensorboard, *self.log)))

    @property
    def name(self) -> str:
        return Path(self.recipe).stem

    @property
    def is_own_recipe(self) -> bool:
        return self.recipe.endswith(".py")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The options that a continued run must share, as JSON stores them: not those of the machine or of places."""
        # Options after the first four are stored only where they differ from their defaults, as old runs lack them.
        always = ("seed", "paper", "minutes", "init_from")
        split = ("modalities", "group_by", "held_out", "held_out_share")
        stored = (*split, "init_channels", "init_epoch", "continue_schedule", "repeats")
        own = {n: getattr(self, n) for n in always} | {n: v for n, v in self._changed().items() if n in stored}
        return {name: json_like(value) for name, value in {"recipe": self.name, **own, **self.recipe_options}.items()}

    def check_recipe_options(self, recipe: Callable[..., Any]) -> None:
        """Raise ValueError, with the nearest names, for an option that the recipe does not have."""
        known = [option.name for option in options_of(recipe)]
        if unknown := [name for name in self.recipe_options if name not in known]:
            raise ValueError(f"the recipe {self.name} has no option {unknown[0]!r}; {suggest(unknown[0], known)}")

    def command(self, run: Path) -> str:
        """The command that continues this run, or starts it in an empty folder; of data given in Python the call."""
        words = ["unveil", "pretrain", self.recipe, "--data", self.data, "--out", str(run)]
        left_out = ("recipe", "data", "out", "overwrite", "config", "save_config", "trust")
        own = {n: v for n, v in self._changed().items() if n not in left_out}
        if self.data.startswith(f"{GIVEN}:"):
            given = "".join(f", {name}={value!r}" for name, value in {**own, **self.recipe_options}.items())
            return f"unveil.pretrain({self.recipe!r}, data=the same data, out={str(run)!r}{given})"
        return shlex.join([*words, *(word for n, v in {**own, **self.recipe_options}.items() for word in _words(n, v))])

    def _changed(self) -> dict[str, Any]:
        """The options that differ from their defaults, without those of the recipe."""
        return {n: v for n in OPTION_NAMES if (v := getattr(self, n)) != getattr(type(self), n, None)}

    def save(self, path: Path) -> None:
        """Write the options to a YAML file that `--config` reads."""
        left_out = ("overwrite", *_NOT_IN_FILES)
        own = {n: getattr(self, n) for n in OPTION_NAMES if n not in left_out}
        write_yaml(path, own, {f"options of the recipe {self.name}": self.recipe_options})


_OPTIONS = {option.name: option for option in options_in(PretrainConfig, skip=("recipe_options",))}
OPTION_NAMES = tuple(_OPTIONS)
_NOT_IN_FILES = ("config", "save_config", "trust")


def signature(taken: Mapping[str, Any]) -> inspect.Signature:
    """The signature of `unveil.pretrain`: the options, then those of all recipes, whose defaults differ (`...`).

    `taken` are the types that Python may give, of all of them.
    """
    kinds = get_type_hints(PretrainConfig) | dict(taken)
    known = inspect.signature(PretrainConfig).parameters
    own = [known[name].replace(annotation=kinds[name]) for name in OPTION_NAMES]
    own.insert(1, inspect.Parameter("callbacks", inspect.Parameter.KEYWORD_ONLY, default=(), annotation=Sequence))
    kind = inspect.Parameter.KEYWORD_ONLY
    rest = [
        inspect.Parameter(name, kind, default=..., annotation=type_)
        for name, type_ in taken.items()
        if name not in known
    ]
    return inspect.Signature([*own, *rest])


def need(holds: bool, name: str, value: object, needed: str) -> None:
    """Raise ValueError, in the words that all such errors use, unless a condition holds."""
    if not holds:
        raise ValueError(f"{name} {value}: {needed} is needed")


def json_like(value: Any) -> Any:
    """A value as JSON gives it back: it has no tuples."""
    return list(value) if isinstance(value, tuple) else value


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _words(name: str, value: Any) -> list[str]:
    """The flag that gives an option this value."""
    if isinstance(value, bool):
        return [_flag(name) if value else _flag(f"no_{name}")]
    if isinstance(value, (tuple, list)):
        return [_flag(name), *map(str, value)]
    return [_flag(name), "none" if value is None else str(value)]


def read_yaml(path: str | Path, recipe: str | None = None, trust: bool = False) -> dict[str, Any]:
    """The options of a YAML file, of `pretrain` and of its recipe, which `recipe` overrides.

    A value is read as the same words on the command line would be, so no object is built. A recipe file that it names
    is executed as `check_named` says.

    Raises FileNotFoundError, and ValueError that names the file and the option: for what is no YAML, an unknown option
    and a value of another type.
    """
    content = current_names(read_mapping(path), warn=True)
    if recipe is None:
        recipe = content.get("recipe")
        if isinstance(recipe, str):
            check_named(recipe, path, trust)
    for value in content.values():
        if isinstance(value, str) and is_own_score(value) and not value.startswith(OWN_SCORE_GIVEN):
            file = user_path(value.rpartition(":")[0])
            check_trusted(file, file.read_bytes(), trust, f"{path} names a score")
    known = {option.name: option for option in options_in(PretrainConfig, skip=_NOT_IN_FILES)}
    if isinstance(recipe, str):
        known |= {option.name: option for option in options_of(load_recipe(recipe)) if option.name not in known}
    return {name: _parse(path, known, name, value) for name, value in content.items()}


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The names of a YAML file with their values as text."""
    import yaml  # only runs with a file wait for it

    try:
        content = yaml.load(user_path(path).read_text(encoding="utf-8"), yaml.BaseLoader)  # text, lists, dicts
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no configuration file {path}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no options; write one in each line, such as `data: photos`")
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def _parse(path: str | Path, known: Mapping[str, Option], name: str, value: Any) -> Any:
    option = known.get(name)
    if option is None or not option.is_parsable:
        hint = suggest(name, known, "unveil pretrain RECIPE --help lists them")
        raise ValueError(f"{path}: there is no option {name!r}; {hint}")
    if isinstance(value, dict) or (isinstance(value, list) and not option.takes_many):
        raise ValueError(f"{path}: {name} has one value, not several; for example {name}: {_example(option)}")
    words = ["none" if v in ("", "~", "null") else v for v in (value if isinstance(value, list) else [value])]
    if option.is_switch:
        if words[0].lower() not in ("true", "false"):
            raise ValueError(f"{path}: {name}: {words[0]}: true or false is needed")
        return words[0].lower() == "true"
    try:
        return option.parse(words)
    except UsageError as error:
        raise ValueError(f"{path}: {name}: {error}; for example {name}: {_example(option)}") from error


def _example(option: Option) -> str:
    _, *words = option.example.split()
    return f"[{', '.join(words)}]" if option.takes_many else " ".join(words)


def write_yaml(path: str | Path, options: Mapping[str, Any], more: Mapping[str, Mapping[str, Any]]) -> None:
    """Write options, then those of each title in `more`, which becomes a comment."""
    import yaml

    def text(values: Mapping[str, Any]) -> str:
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000))

    parts = [text(options), *(f"\n# {title}\n{text(values)}" for title, values in more.items() if values)]
    write_text(user_path(path), "".join(parts))
