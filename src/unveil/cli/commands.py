"""The commands. Each reads its words, calls the function of its name and says what to do next.

What a command needs is imported when it runs: `unveil --help` never waits for torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..recipes.options import DATA, Option, UsageError, spell
from ..recipes.registry import load_recipe, recipe_cards
from ..runs.console import is_rank_zero
from . import next_steps
from .flags import flag_name, flags_of, is_flag, parse, split, with_current_names
from .foreign_flags import refuse_foreign
from .help import columns, help_text

Function = Callable[..., Any]


class HelpAsked(Exception):  # noqa: N818  it is no error
    """A command was asked what it does; the text is the answer."""


@dataclass(frozen=True)
class Command:
    """A word after `unveil`: what it stands on, what it does, one use of it, and its code."""

    name: str
    places: str
    summary: str
    example: str
    run: Callable[[Command, list[str]], int]

    def read(
        self, words: list[str], groups: Mapping[str, Sequence[Option]], many: bool = False, needs: bool = True
    ) -> tuple[list[str], dict[str, Any]]:
        """The words in the command's places, which `needs` at least one, and the arguments given by flags."""
        if not {"-h", "--help"}.isdisjoint(words):
            head = " ".join(filter(None, ["unveil", self.name, self.places, "[--flag X ...]"]))
            raise HelpAsked(help_text(head, self.summary, groups, self.example))
        flags = [flag for group in groups.values() for flag in group]
        words = with_current_names(words, flags)
        refuse_foreign(self.name, words, flags)
        plain, given = parse(words, flags)
        if not plain and self.places and needs:
            raise UsageError(f"{self.name} needs {self.places}", f"for example {self.example}")
        if len(plain) > bool(self.places) and not many:
            extra = plain[bool(self.places)]
            raise UsageError(f"unexpected argument {extra!r}", f"for example {self.example}")
        return plain, given


def say_next(step: str) -> None:
    """The last line of a command."""
    if is_rank_zero():
        print(f"next: {step}", flush=True)


def _flags(function: Function, skip: Collection[str] = ()) -> dict[str, list[Option]]:
    return {"flags": flags_of(function, skip)}


def _demo(command: Command, words: list[str]) -> int:
    from ..experiments.demo import demo

    _, given = command.read(words, _flags(demo))
    demo(**given)
    say_next(next_steps.after_demo())
    return 0


def _pretrain(command: Command, words: list[str]) -> int:
    from ..commands.pretrain import pretrain

    given_name, words = _take_recipe(words)
    name = given_name or _recipe_in_config(words)
    if name is None:
        if {"-h", "--help"}.isdisjoint(words):
            raise UsageError(f"pretrain needs a recipe:\n{_list_recipes()}", f"for example {command.example}")
        raise HelpAsked(f"unveil pretrain RECIPE --help lists all flags, also of the recipe, one of\n{_list_recipes()}")
    groups = {"flags": flags_of(pretrain, skip=("recipe",))}
    own = flags_of(load_recipe(name), skip=DATA)
    clash = {flag.name for flag in groups["flags"]} & {flag.name for flag in own}
    if clash:
        raise UsageError(f"{name} has an option {min(clash)!r}, which is a flag of pretrain: rename the option")
    note = "the defaults are the paper's; without --paper, batch, size and epochs are set by data and machine"
    _, given = command.read([name, *words], groups | {f"options of {name} ({note})": own})
    path = pretrain(given_name, **given)
    say_next(next_steps.after_save_config(path) if given.get("save_config") else next_steps.after_pretrain(path))
    return 0


def _take_recipe(words: list[str]) -> tuple[str | None, list[str]]:
    """The recipe among the words: the first of them, or the one that names a recipe where a flag comes first."""
    known = recipe_cards()
    for i, word in enumerate(words):
        if (i == 0 and not is_flag(word)) or word in known or word.endswith(".py"):
            return word, words[:i] + words[i + 1 :]
    return None, words


def _recipe_in_config(words: list[str]) -> str | None:
    """The recipe that the file of `--config` names."""
    from ..training.config_file import read_mapping

    file = next((values[0] for name, values in _valued(words) if name == "config"), None)
    recipe = read_mapping(file).get("recipe") if file is not None else None
    if file is not None and not isinstance(recipe, str):
        raise UsageError(f"{file} names no recipe", f"for example unveil pretrain crossmae --config {file}")
    return recipe


def _list_recipes() -> str:
    return columns([(card.name, card.summary) for card in recipe_cards().values()])


def _evaluate(command: Command, words: list[str]) -> int:
    from ..commands.evaluate import evaluate
    from ..evaluation.registry import find_protocol, protocols

    groups = _flags(evaluate, skip=("run",))
    given = [name for flag, names in _valued(words) if flag == "protocol" for name in names]
    for name in dict.fromkeys([*protocols(), *(name for name in given if name.endswith(".py"))]):
        groups[f"options of {name}"] = flags_of(find_protocol(name))
    (run,), options = command.read(words, groups)
    evaluate(run, **options)
    say_next(next_steps.after_evaluate(run))
    return 0


def _study(command: Command, words: list[str]) -> int:
    from ..experiments.study.command import study
    from ..experiments.study.registry import studies, summary

    groups = _flags(study, skip=("name",))
    if not words or not {"-h", "--help"}.isdisjoint(words):
        listed = columns([(name, summary(file)) for name, file in studies().items()])
        if not words:
            raise UsageError(f"study needs a study:\n{listed}", f"for example {command.example}")
        text = help_text("unveil study NAME|FILE.py [--flag X ...]", command.summary, groups, command.example)
        raise HelpAsked(f"{text}\n\nstudies:\n{listed}")
    (name,), given = command.read(words, groups)
    folder = study(name, **given)
    say_next(next_steps.after_study(words, folder))
    return 0


def _report(command: Command, words: list[str]) -> int:
    from ..reporting import write_report

    runs, given = command.read(words, _flags(write_report, skip=("runs",)), many=True)
    print(f"report: {write_report(runs, **given)}")
    say_next(next_steps.after_report(runs))
    return 0


def _look(command: Command, words: list[str]) -> int:
    from ..commands.look import look

    groups = _flags(look, skip=("run",))
    recipe = next((value for word, (value, *_) in _valued(words) if word == "recipe"), None)
    if recipe is not None:
        taken = {flag.name for flag in groups["flags"]}
        own = [f for f in flags_of(load_recipe(recipe), skip=DATA) if f.name not in taken]
        groups[f"options of {recipe}"] = own
    runs, given = command.read(words, groups, needs=recipe is None)
    look(*runs, **given)
    say_next(next_steps.after_look(runs[0] if runs else None, recipe))
    return 0


def _analyze(command: Command, words: list[str]) -> int:
    from ..commands.analyze import analyze_attention, analyze_blocks, analyze_features, analyze_masks

    kinds: dict[str, tuple[Function, tuple[str, ...]]] = {
        "attention": (analyze_attention, ("run",)),
        "blocks": (analyze_blocks, ("run",)),
        "features": (analyze_features, ("run_a", "run_b")),
        "masks": (analyze_masks, ("run",)),
    }
    if words and words[0] in kinds:
        function, places = kinds[words[0]]
        groups = _flags(function, skip=places)
    else:
        groups = {f"flags of {name}": flags_of(function, skip) for name, (function, skip) in kinds.items()}
        places = ("run",)
    plain, given = command.read(words, groups, many=True)
    if plain[0] not in kinds or len(plain) != 1 + len(places):
        raise UsageError(
            f"analyze needs attention, blocks or masks and a run, or features and two; got {' '.join(plain)}",
            command.example,
        )
    function(*plain[1:], **given)
    say_next(next_steps.after_analyze(plain[1:]))
    return 0


def _valued(words: list[str]) -> list[tuple[str, list[str]]]:
    """The flags among the words that have a value, by name, before it is known which there are."""
    return [(flag_name(word), values) for word, values in split(words, []) if word and values]


def _embed(command: Command, words: list[str]) -> int:
    from ..commands.embed import embed

    (run,), given = command.read(words, _flags(embed, skip=("run",)))
    features = embed(run, **given)
    say_next(next_steps.after_embed(features))
    return 0


def _inspect(command: Command, words: list[str]) -> int:
    from ..commands.embed import inspect
    from ..data.aligned_folders import aligned_modalities

    (data,), given = command.read(words, _flags(inspect, skip=("data",)))
    print(inspect(data, **given))
    modalities = given.get("modalities") or [d.name for d in aligned_modalities(data)]
    say_next(next_steps.after_inspect(data, modalities))
    return 0


def _bench(command: Command, words: list[str]) -> int:
    from ..experiments.bench import bench

    _, given = command.read(words, _flags(bench))
    bench(**given)
    say_next(next_steps.after_bench())
    return 0


def _doctor(command: Command, words: list[str]) -> int:
    from .doctor import examine

    _, given = command.read(words, _flags(examine))
    is_well = examine(**given)
    say_next(next_steps.after_doctor(is_well))
    return 0 if is_well else 1


def _recipes(command: Command, words: list[str]) -> int:
    command.read(words, {})
    cards = recipe_cards()
    for card in cards.values():
        options = ", ".join(f"{name.replace('_', '-')} {spell(default)}" for name, default in card.options.items())
        print(f"{card.name}\n" + columns([("", card.summary), ("", options)]))
    say_next(next_steps.after_recipes(next(iter(cards))))
    return 0


_ALL = (
    Command("demo", "", "the whole way on built-in images: pretrain, evaluate, report", "unveil demo", _demo),
    Command(
        "pretrain",
        "RECIPE",
        "learn from a folder of images by hiding a part and predicting it",
        "unveil pretrain crossmae --data ~/photos --out runs/a",
        _pretrain,
    ),
    Command(
        "evaluate",
        "RUN",
        "measure a run's frozen features on labelled images",
        "unveil evaluate runs/a --data cifar10.parquet --protocol knn linear",
        _evaluate,
    ),
    Command(
        "study",
        "NAME|FILE.py",
        "answer a question by runs over seeds: intervals, a paired test, a page",
        "unveil study crossmae-mask-ratio --scale cpu --dry-run",
        _study,
    ),
    Command(
        "report", "RUN [RUN ...]", "one self-contained page on one run or several", "unveil report runs/a", _report
    ),
    Command(
        "embed",
        "RUN",
        "the features of every image, as a file",
        "unveil embed runs/a --data ~/photos --out features.npz",
        _embed,
    ),
    Command(
        "look",
        "RUN",
        "a picture of where a run, or a recipe, looks, what it hides and what it predicts",
        "unveil look runs/a",
        _look,
    ),
    Command(
        "analyze",
        "attention RUN | blocks RUN | masks RUN | features RUN RUN",
        "where a run looks, what its decoder's blocks add, what cheaper looks do to its masks, or two runs' layers",
        "unveil analyze attention runs/a",
        _analyze,
    ),
    Command("inspect", "DATA", "what a folder or a file of images holds", "unveil inspect ~/photos", _inspect),
    Command("recipes", "", "the recipes and their dials", "unveil recipes", _recipes),
    Command("bench", "", "the time and memory of a training step on this machine", "unveil bench", _bench),
    Command("doctor", "", "whether this machine is ready, and what to do if not", "unveil doctor --full", _doctor),
)
COMMANDS = {command.name: command for command in _ALL}
