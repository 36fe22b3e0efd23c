"""What a command is: its words, its help, the table of all of them, and the line that says what to do next."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..recipes.options import Option, UsageError
from ..runs.console import is_rank_zero
from .flags import flags_of, help_text, parse, with_current_names
from .foreign_flags import refuse_foreign

Function = Callable[..., Any]
Code = Callable[["Command", list[str]], str | int]
# Of several processes that `torchrun` has started each takes part in these; rank zero alone runs the others.
_OF_SEVERAL_PROCESSES = {"demo", "pretrain", "evaluate", "study", "embed", "pack"}


class HelpAsked(Exception):  # noqa: N818  it is no error
    """`--help` was given; the message is the text to print."""


@dataclass(frozen=True)
class Command:
    """A command: its arguments by place, a summary, an example, and its code, which returns the next useful command.

    Code that says the next command itself returns the exit code.
    """

    name: str
    places: str
    summary: str
    example: str
    code: Code

    def run(self, words: list[str]) -> int:
        """Run the command and return its exit code."""
        if self.name not in _OF_SEVERAL_PROCESSES and not is_rank_zero():
            return 0
        done = self.code(self, words)
        if isinstance(done, int):
            return done
        say_next(done)
        return 0

    def help(self, groups: Mapping[str, Sequence[Option]]) -> str:
        """The text of `--help`: usage, summary, flags by group and an example."""
        head = " ".join(filter(None, ["unveil", self.name, self.places, "[--flag X ...]"]))
        return help_text(head, self.summary, groups, self.example)

    def read(
        self, words: list[str], groups: Mapping[str, Sequence[Option]], many: bool = False, needs: bool = True
    ) -> tuple[list[str], dict[str, Any]]:
        """The arguments by place, of which it `needs` one and may take `many`, and those given by flags."""
        if asks_help(words):
            raise HelpAsked(self.help(groups))
        known = [flag for group in groups.values() for flag in group]
        words = with_current_names(words, known)
        refuse_foreign(self.name, words, known)
        plain, given = parse(words, known)
        if not plain and self.places and needs:
            raise UsageError(f"{self.name} needs {self.places}", f"for example {self.example}")
        if len(plain) > bool(self.places) and not many:
            extra = plain[bool(self.places)]
            raise UsageError(f"unexpected argument {extra!r}", f"for example {self.example}")
        return plain, given


def say_next(step: str) -> None:
    """Print the next useful command, the last line of every command."""
    if is_rank_zero():
        print(f"next: {step}", flush=True)


def asks_help(words: Collection[str]) -> bool:
    """Whether `--help` is among the words."""
    return not {"-h", "--help"}.isdisjoint(words)


def flags(function: Function, *skip: str) -> dict[str, list[Option]]:
    """The flags of a function as a group of the help, without the arguments that come by place."""
    return {"flags": flags_of(function, skip)}


COMMANDS: dict[str, Command] = {}


def command(places: str, example: str) -> Callable[[Code], Code]:
    """Make a function a command of its name; its docstring is the summary."""

    def register(code: Code) -> Code:
        name = code.__name__.strip("_")
        COMMANDS[name] = Command(name, places, str(code.__doc__), example, code)
        return code

    return register
