"""The commands. Each reads its words, calls the public function of its name and says what to do next.

A public function is imported when it is used: `unveil --help` never waits for torch.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..recipes.options import DATA, UsageError, spell
from ..recipes.registry import check_named, load_recipe, recipe_cards
from ..runs.console import is_rank_zero, user_path
from ..training.config import PretrainConfig, read_mapping
from .command import COMMANDS, Command, Function, HelpAsked, asks_help, command, flags, say_next
from .flags import columns, flag_name, flags_of, is_flag, split

UNSOUND = 3  # the exit code of a training whose weights are not to be trusted
_FIRST_RUN = "unveil pretrain crossmae --data FOLDER_OF_YOUR_IMAGES --out runs/a"  # a next step: the user's own images


@command("", "unveil demo")
def _demo(self: Command, words: list[str]) -> str:
    """the whole way on built-in images: pretrain, evaluate, report"""
    from ..experiments.demo import demo

    _, given = self.read(words, flags(demo))
    demo(**given)
    return _FIRST_RUN


@command("RECIPE", "unveil pretrain crossmae --data ~/photos --out runs/a")
def _pretrain(self: Command, words: list[str]) -> str | int:
    """learn from a folder of images by hiding a part and predicting it"""
    given_name, words = _take_recipe(words)
    name = given_name or _recipe_in_config(words, trust=any(flag_name(word) == "trust" for word, _ in split(words, [])))
    if name is None:
        if not asks_help(words):
            raise UsageError(f"pretrain needs a recipe:\n{_list_recipes()}", f"for example {self.example}")
        raise HelpAsked(f"unveil pretrain RECIPE --help lists all flags, also of the recipe, one of\n{_list_recipes()}")
    groups = flags(PretrainConfig, "recipe")
    own = flags_of(load_recipe(name), skip=DATA)
    clash = {flag.name for flag in groups["flags"]} & {flag.name for flag in own}
    if clash:
        raise UsageError(f"{name} has an option {min(clash)!r}, which is a flag of pretrain: rename the option")
    note = "the defaults are the paper's; without --paper, batch, size and epochs are set by data and machine"
    _, given = self.read([name, *words], groups | {f"options of {name} ({note})": own})
    from ..commands.pretrain import pretrain  # --help does not wait for torch

    path = str(pretrain(given_name, **given))
    if given.get("save_config"):
        return shlex.join(["unveil", "pretrain", "--config", path])
    from ..reporting.loss_curve import unsound
    from ..reporting.run_record import read_run

    step = shlex.join(["unveil", "report", path])
    if not is_rank_zero() or not Path(path).is_dir() or unsound(read_run(path)) is None:
        return step
    say_next(step)
    return UNSOUND


def _take_recipe(words: list[str]) -> tuple[str | None, list[str]]:
    """The recipe among the words: the first of them, or the one that names a recipe where a flag comes first."""
    known = recipe_cards()
    for i, word in enumerate(words):
        if (i == 0 and not is_flag(word)) or word in known or word.endswith(".py"):
            return word, words[:i] + words[i + 1 :]
    return None, words


def _recipe_in_config(words: list[str], trust: bool) -> str | None:
    """The recipe that the file of `--config` names. Raises UntrustedCodeError as `check_named` does."""
    file = next(iter(_values(words, "config")), None)
    recipe = None if file is None else read_mapping(file).get("recipe")
    if file is None or isinstance(recipe, str):
        check_named(recipe, str(file), trust)
        return recipe
    raise UsageError(f"{file} names no recipe", f"for example unveil pretrain crossmae --config {file}")


def _list_recipes() -> str:
    return columns([(card.name, card.summary) for card in recipe_cards().values()])


def _values(words: list[str], name: str) -> list[str]:
    """The values of a flag, before it is known which other flags there are."""
    return [value for word, values in split(words, []) if word and flag_name(word) == name for value in values]


@command("RUN", "unveil evaluate runs/a --data cifar10.parquet --protocol linear knn")
def _evaluate(self: Command, words: list[str]) -> str:
    """measure a run's frozen features on labelled images"""
    from ..commands.evaluate import evaluate
    from ..evaluation.registry import find_protocol, protocols
    from ..modeling.public_vits import is_public_vit

    groups = flags(evaluate, "run")
    own = (name for name in _values(words, "protocol") if name.endswith(".py"))
    for name in dict.fromkeys([*protocols(), *own]):
        groups[f"options of {name}"] = flags_of(find_protocol(name))
    (run,), given = self.read(words, groups)
    evaluate(run, **given)
    if is_public_vit(run):  # which has no report
        return shlex.join(["unveil", "embed", run, "--data", str(given["data"])])
    return shlex.join(["unveil", "report", run])


@command("NAME|FILE.py", "unveil study crossmae-mask-ratio --scale cpu --dry-run")
def _study(self: Command, words: list[str]) -> str:
    """answer a question by runs over seeds: intervals, a paired test, a page"""
    from ..experiments.study.command import study
    from ..experiments.study.registry import studies

    groups = flags(study, "name")
    if not words or asks_help(words):
        listed = columns([(name, built_in.question) for name, built_in in studies().items()])
        if not words:
            raise UsageError(f"study needs a study:\n{listed}", f"for example {self.example}")
        raise HelpAsked(f"{self.help(groups)}\n\nstudies:\n{listed}")
    (name,), given = self.read(words, groups)
    return _after_study(words, study(name, **given), is_dry=bool(given.get("dry_run")))


def _after_study(words: Sequence[str], folder: Path | None, is_dry: bool = True) -> str:
    """The report on the first runs of the study; after a dry run the study itself, after `--on slurm` its jobs."""
    if folder is None:
        return shlex.join(["unveil", "study", *drop(words)]) if is_dry else "squeue --me"
    return shlex.join(["unveil", "report", *map(str, sorted((folder / "runs").iterdir())[:4])])


def drop(words: Sequence[str]) -> list[str]:
    """The words of a dry run without the flag that makes it one."""
    return [word for word in words if not word.startswith("--dry-run")]


@command("RUN [RUN ...]", "unveil report runs/a")
def _report(self: Command, words: list[str]) -> str:
    """one self-contained page on one run or several"""
    from ..reporting.page import write_report

    runs, given = self.read(words, flags(write_report, "runs"), many=True)
    print(f"report: {write_report(runs, **given)}")
    return _after_report(runs)


def _after_report(runs: Sequence[str | Path]) -> str:
    """The evaluation of a run that has none yet, else the use of its features."""
    for run in runs:
        if not any((Path(run) / "eval").glob("*.json")):
            return f"unveil evaluate {shlex.quote(str(run))} --data LABELLED_IMAGES --protocol linear knn"
    return f"unveil embed {shlex.quote(str(runs[0]))} --data FOLDER_OF_YOUR_IMAGES --out features.npz"


@command("RUN", "unveil export runs/a --to timm --out exported")
def _export(self: Command, words: list[str]) -> str:
    """the encoder as files of timm, transformers, ONNX or torch, with a model card"""
    from ..commands.export import export

    (run,), given = self.read(words, flags(export, "run"))
    export(run, **given)
    return shlex.join(["unveil", "report", run])


@command("CHECKPOINT", "unveil import mae_pretrain_vit_base.pth --usual --out runs/mae")
def import_(self: Command, words: list[str]) -> str:
    """a public checkpoint (MAE, DINOv2, CLIP, timm, ...) as a run folder"""
    from ..commands.import_checkpoint import import_checkpoint

    (checkpoint,), given = self.read(words, flags(import_checkpoint, "checkpoint"))
    return shlex.join(["unveil", "evaluate", str(import_checkpoint(checkpoint, **given)), "--data", "LABELLED_IMAGES"])


@command("RUN", "unveil embed runs/a --data ~/photos --out features.npz")
def _embed(self: Command, words: list[str]) -> str:
    """the features of every image, as a file"""
    from ..commands.embed import embed

    (run,), given = self.read(words, flags(embed, "run"))
    features = embed(run, **given)
    if given.get("dry_run"):
        return shlex.join(["unveil", "embed", *drop(words)])
    return "squeue --me" if str(given.get("on")).startswith("slurm") else _after_embed(features)


def _after_embed(features: Path) -> str:
    opened = f"import numpy; print({{k: v.shape for k, v in numpy.load({str(features)!r}).items()}})"
    return shlex.join(["python", "-c", opened])


@command("RUN", "unveil predict runs/a --head finetune --data ~/photos --draw")
def _predict(self: Command, words: list[str]) -> str:
    """classes, masks, depth or boxes of any images, by a head that `unveil evaluate --keep` has kept"""
    from ..commands.predict import predict

    (run,), given = self.read(words, flags(predict, "run"))
    folder = predict(run, **given)
    if not (user_path(run) / "run.json").exists():  # an export, or public weights
        return shlex.join(["ls", str(folder)])
    head = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))["head"]["protocol"]
    return shlex.join(["unveil", "export", run, "--to", "safetensors", "--head", head])


@command("RUN", "unveil look runs/a")
def _look(self: Command, words: list[str]) -> str:
    """attention, masks and reconstructions of a run, or of an untrained recipe, as a picture"""
    from ..commands.look import look

    groups = flags(look, "run")
    recipe = next(iter(_values(words, "recipe")), None)
    if recipe is not None:
        known = {flag.name for flag in groups["flags"]}
        own = flags_of(load_recipe(recipe), skip=DATA)
        groups[f"options of {recipe}"] = [flag for flag in own if flag.name not in known]
    runs, given = self.read(words, groups, needs=recipe is None)
    look(*runs, **given)
    return shlex.join(["unveil", "report", *runs]) if runs else _FIRST_RUN.replace("crossmae", shlex.quote(str(recipe)))


@command("RUN [RUN ...]", "unveil explore runs/a")
def _explore(self: Command, words: list[str]) -> str:
    """a page to try runs on: draw masks, see predictions, attention, features, neighbours; two runs side by side"""
    from ..commands.explore import explore

    runs, given = self.read(words, flags(explore, "runs"), many=True)
    explore(runs, **given)
    return shlex.join(["unveil", "look", runs[0]])


@command("RUN", "unveil replay runs/a")
def _replay(self: Command, words: list[str]) -> str:
    """the step at which a run went wrong, again in float32: where the first bad number arises"""
    from ..commands.replay import replay

    (run,), given = self.read(words, flags(replay, "run"))
    replay(run, **given)
    return shlex.join(["unveil", "report", run])


@command("attention RUN | blocks RUN | masks RUN | features RUN RUN", "unveil analyze attention runs/a")
def _analyze(self: Command, words: list[str]) -> str:
    """statistics of attention, of decoder blocks, of masks under cheaper guidance, or of the layers of two runs"""
    from ..commands import analyze

    kinds: dict[str, tuple[Function, tuple[str, ...]]] = {
        "attention": (analyze.analyze_attention, ("run",)),
        "blocks": (analyze.analyze_blocks, ("run",)),
        "features": (analyze.analyze_features, ("run_a", "run_b")),
        "masks": (analyze.analyze_masks, ("run",)),
    }
    if words and words[0] in kinds:
        function, places = kinds[words[0]]
        groups = flags(function, *places)
    else:
        groups = {f"flags of {name}": flags_of(function, skip) for name, (function, skip) in kinds.items()}
        places = ("run",)
    plain, given = self.read(words, groups, many=True)
    if plain[0] not in kinds or len(plain) != 1 + len(places):
        raise UsageError(
            f"analyze needs attention, blocks or masks and a run, or features and two; got {' '.join(plain)}",
            self.example,
        )
    function(*plain[1:], **given)
    return shlex.join(["unveil", "report", *plain[1:]])


@command("DATA", "unveil inspect ~/photos")
def _inspect(self: Command, words: list[str]) -> str:
    """what a folder or a file of images holds"""
    from ..commands.inspect import inspect

    (data,), given = self.read(words, flags(inspect, "data"))
    from ..data.aligned_folders import aligned_modalities  # once the flags are read: --help does not wait for torch

    print(inspect(data, **given))
    modalities = given.get("modalities") or [d.name for d in aligned_modalities(data)]
    recipe, more = ("multimae", ["--modalities", *modalities]) if modalities else ("crossmae", [])
    same = [name for name in ("image_column", "tile", "tile_overlap", "tile_valid") if given.get(name) is not None]
    how = [f"--{name.replace('_', '-')}={given[name]}" for name in same]
    return shlex.join(["unveil", "pretrain", recipe, "--data", data, *how, *more, "--out", "runs/a"])


@command("DATA", "unveil pack ~/photos --out packed")
def _pack(self: Command, words: list[str]) -> str:
    """images as tar shards, resized beforehand, which train faster"""
    from ..commands.pack import pack

    (data,), given = self.read(words, flags(pack, "data"))
    out = str(pack(data, **given))
    if not is_rank_zero():
        return ""
    from ..data.listing import split_addresses

    splits = split_addresses(out)  # a pack of several is inspected one by one
    return shlex.join(["unveil", "inspect", splits.get("train", next(iter(splits.values()), out))])


@command("-- COMMAND", "unveil submit --nodes 4 --gpus-per-node 8 -- pretrain mae --data ~/photos --out runs/a")
def _submit(self: Command, words: list[str]) -> str:
    """a command as a job of Slurm, or a study as an array of jobs"""
    from ..experiments.submit import runs_of, submit

    own, command = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    _, given = self.read(own, flags(submit, "command"), needs=False)
    if command and command[0] not in COMMANDS:
        raise UsageError(f"there is no command {command[0]} to submit", f"for example {self.example}")
    if command[:1] == ["study"] and "array" not in given:
        from ..experiments.study.command import study

        (name,), of_study = COMMANDS["study"].read(command[1:], flags(study, "name"))
        given["array"] = runs_of(name, of_study)
    submit(tuple(command), **given)
    return "squeue --me" if not given.get("dry_run") else shlex.join(["unveil", "submit", *drop(words)])


@command("", "unveil scenes --layout davis --out videos")
def _scenes(self: Command, words: list[str]) -> str:
    """rendered scenes as files, with their truth: depth and classes, boxes and masks, or videos with masks"""
    from ..experiments.scenes.command import PICTURES, scenes

    _, given = self.read(words, flags(scenes))
    folder, layout = scenes(**given), given.get("layout", "folders")
    if layout == "davis":
        return shlex.join(["unveil", "evaluate", "runs/a", "--protocol", "vos", "--data", str(folder)])
    pictures = folder / PICTURES[layout]
    return shlex.join(["unveil", "pretrain", "crossmae", "--data", str(pictures), "--out", "runs/a"])


@command("", "unveil recipes")
def _recipes(self: Command, words: list[str]) -> str:
    """the recipes and their options, with the papers' defaults"""
    self.read(words, {})
    cards = recipe_cards()
    for card in cards.values():
        options = ", ".join(f"{name.replace('_', '-')} {spell(default)}" for name, default in card.options.items())
        print(f"{card.name}\n" + columns([("", card.summary), ("", options)]))
    return f"unveil pretrain {next(iter(cards))} --help"


@command("[data DATA | evaluate [RUN] | videos [RUN] | estimate]", "unveil bench --preset cifar --profile")
def _bench(self: Command, words: list[str]) -> str | int:
    """the time and memory of a training step here or, by formula, on a GPU; of reading data, an evaluation, a video"""
    from ..experiments import bench

    kinds: dict[str, tuple[Function, tuple[str, ...], str]] = {
        "": (bench.bench, (), "bench times a training step, or data DATA, evaluate [RUN], videos [RUN], estimate"),
        "data": (bench.bench_data, ("data",), "bench data needs one DATA"),
        "evaluate": (bench.bench_evaluate, ("run",), "bench evaluate takes one RUN, or none"),
        "videos": (bench.bench_videos, ("run",), "bench videos takes one RUN, or none"),
        "estimate": (bench.bench_estimate, (), "bench estimate takes flags alone"),
    }
    kind = words[0] if words and words[0] in kinds else ""
    function, places, needed = kinds[kind]
    groups = flags(function, *places)
    if not kind and asks_help(words):
        groups = {f"flags of bench {name}".strip(): flags_of(of, skip) for name, (of, skip, _) in kinds.items()}
    plain, given = self.read(words[bool(kind) :], groups, many=True, needs=False)
    if len(plain) > len(places) or (kind == "data" and not plain):
        got = " ".join(plain) or "none"
        raise UsageError(f"{needed}; got {got}", f"for example unveil bench {'data ~/photos' if kind else '--profile'}")
    function(*plain, **given)
    if given.get("json"):
        return 0  # nothing but the JSON goes to stdout
    return "unveil bench" if kind else _FIRST_RUN


@command("", "unveil doctor --full")
def _doctor(self: Command, words: list[str]) -> int:
    """whether this machine is ready, and what to do if not"""
    from .doctor import examine

    _, given = self.read(words, flags(examine))
    is_well = examine(**given)
    say_next("unveil demo" if is_well else "unveil doctor")
    return 0 if is_well else 1
