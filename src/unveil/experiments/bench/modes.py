"""How a step is computed: its precision, compiled or not; given for all contenders, or for one, as `mae:bf16`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch

Precision = Literal["float32", "bf16"]
AUTO = "auto"  # what `unveil pretrain` chooses on this machine
MODES = ("float32", "bf16", "float32+compile", "bf16+compile", AUTO)


@dataclass(frozen=True)
class How:
    """The precision of a step, and whether it is compiled."""

    precision: Precision
    compile: bool = False

    @classmethod
    def of(cls, mode: str) -> How:
        """The reading of a mode's name, such as `bf16+compile`; `auto` has to be resolved first."""
        precision, _, compiled = mode.partition("+")
        return cls(cast("Precision", precision), bool(compiled))

    @property
    def mode(self) -> str:
        return self.precision + "+compile" * self.compile

    @property
    def dtype(self) -> torch.dtype:
        """The type in which matrices are multiplied."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def split_names(words: Sequence[str], modes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The modes of each contender: those written behind its name, or else those of all.

    Raises ValueError for a mode that there is not.
    """
    of_name: dict[str, list[str]] = {}
    for word in words:
        name, colon, mode = word.partition(":")
        if colon and mode not in MODES:
            raise ValueError(f"{word}: behind the colon one of {', '.join(MODES)} is needed")
        known = of_name.setdefault(name, [])
        known += [m for m in ((mode,) if colon else modes) if m not in known]
    return {name: tuple(of) for name, of in of_name.items()}
