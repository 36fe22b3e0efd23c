"""The results of a bench of steps: every raw time and what follows from it, as numbers and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...runs import console
from ...runs.console import plural
from .machine import headline
from .modes import How
from .profile import StepProfile, format_profile
from .timing import Quartiles, Seconds, quartiles, speed
from .work import Work

COLUMNS = ("step", "best", "forward", "backward", "update", "images/s", "times as fast", "FLOPs", "fewer", "share")


@dataclass(frozen=True)
class Peak:
    """What this machine's matrix products reach in a round: FLOP/s of square ones, seconds of the step's own alone."""

    square: float
    alone: float


@dataclass(frozen=True)
class Entry:
    """The measurements of one contender by mode (`modes.MODES`): seconds and peaks of each round, megabytes.

    `chosen` is what `auto` stands for.
    """

    name: str
    summary: str
    parameters: int
    flops: int
    megabytes: Mapping[str, float | None]
    seconds: Mapping[str, Sequence[Seconds]]
    peaks: Mapping[str, Sequence[Peak]] = field(default_factory=dict)
    chosen: str | None = None
    profiles: Mapping[str, StepProfile] = field(default_factory=dict)

    def how(self, mode: str) -> How:
        """The precision of a mode, and whether it is compiled."""
        return How.of(self.chosen or mode) if mode == "auto" else How.of(mode)

    def gflops(self, mode: str) -> float:
        """The median rate of a step: its counted operations per second, in 1e9."""
        return self.flops / quartiles([s.step for s in self.seconds[mode]]).median / 1e9

    def of_square(self, mode: str) -> Quartiles:
        """The share of the peak of square matrices that a step reaches, round by round."""
        pairs = zip(self.seconds[mode], self.peaks[mode], strict=True)
        return quartiles([self.flops / seconds.step / peak.square for seconds, peak in pairs])

    def of_shapes(self, mode: str) -> Quartiles:
        """The share of a step's time that its products would take alone, which is that of the peak of its shapes."""
        pairs = zip(self.seconds[mode], self.peaks[mode], strict=True)
        return quartiles([peak.alone / seconds.step for seconds, peak in pairs])


@dataclass(frozen=True)
class Results:
    """One run of the bench; the first entry is the base of all ratios, in the same mode where it was timed in it."""

    work: Work
    modes: tuple[str, ...]
    entries: tuple[Entry, ...]
    facts: Mapping[str, Any]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Entry:
        return next(entry for entry in self.entries if entry.name == name)

    def __contains__(self, name: str) -> bool:
        return any(entry.name == name for entry in self.entries)

    def has(self, name: str, mode: str) -> bool:
        """Whether a contender was timed in a mode."""
        return name in self and mode in self[name].seconds

    def of_mode(self, mode: str) -> list[Entry]:
        """The contenders that were timed in a mode."""
        return [entry for entry in self.entries if mode in entry.seconds]

    def base_mode(self, mode: str) -> str:
        """The mode of the base that others in this mode are held against."""
        return mode if mode in self.entries[0].seconds else next(iter(self.entries[0].seconds))

    def speed(self, base: str, other: str, mode: str) -> Quartiles:
        """How many times as fast as `base` another contender is, round by round."""
        return speed(self[base].seconds[self.base_mode(mode)], self[other].seconds[mode])

    def saving(self, base: str, other: str) -> float:
        """How many times the counted operations of another contender `base` needs."""
        return self[base].flops / self[other].flops

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.facts,
            "work": asdict(self.work),
            "base": self.entries[0].name,
            "skipped": dict(self.skipped),
            "contenders": {entry.name: asdict(entry) for entry in self.entries},
            "ratios": {
                mode: {entry.name: self._ratios(entry, mode) for entry in self.of_mode(mode)} for mode in self.modes
            },
        }

    def _ratios(self, entry: Entry, mode: str) -> dict[str, Any]:
        base = self.entries[0].name
        ratios = {"speed": asdict(self.speed(base, entry.name, mode)), "flops": self.saving(base, entry.name)}
        if mode in entry.peaks:
            ratios |= {"gflops": entry.gflops(mode), "of_square": asdict(entry.of_square(mode))}
            ratios |= {"of_shapes": asdict(entry.of_shapes(mode))}
        return ratios


def spelled(ratio: Quartiles) -> str:
    """A median with the middle half in brackets."""
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def mode_table(results: Results, mode: str) -> str:
    """One mode as plain text, a row for each contender."""
    base = results.entries[0].name
    entries = results.of_mode(mode)
    has_peaks = any(mode in entry.peaks for entry in entries)
    has_both = mode != "float32" and all("float32" in entry.seconds for entry in entries)
    rows = [["", *COLUMNS, *(("GFLOP/s", "of peak", "of shapes") if has_peaks else ()), "memory"]]
    rows[0] += ["than float32"] if has_both else []
    for entry in entries:
        times = entry.seconds[mode]
        phases = ([getattr(t, phase) for t in times] for phase in ("step", "forward", "backward", "update"))
        medians = [quartiles(values).median for values in phases]
        medians.insert(1, min(t.step for t in times))
        ratio, saving = results.speed(base, entry.name, mode), results.saving(base, entry.name)
        megabytes = entry.megabytes.get(mode)
        row = [
            entry.summary + (f" ({entry.chosen})" if mode == "auto" else ""),
            *(f"{1000 * median:.0f} ms" if median >= 0.1 else f"{1000 * median:.1f} ms" for median in medians),
            f"{results.work.batch_size / medians[0]:.4g}",
            spelled(ratio),
            f"{entry.flops / 1e9:.3g} G",
            f"{saving:.2f}",
            f"{ratio.median / saving:.2f}",
        ]
        if has_peaks:
            shares = (entry.of_square(mode), entry.of_shapes(mode))
            row += [f"{entry.gflops(mode):.0f}", *(f"{share.median:.0%}" for share in shares)]
        row += ["-" if megabytes is None else f"{megabytes / 1024:.2f} GB"]
        row += [spelled(speed(entry.seconds["float32"], times))] if has_both else []
        rows.append(row)
    return console.table(rows)


def format_results(results: Results) -> str:
    """The results as text for the terminal, without the goals."""
    work, facts = results.work, results.facts
    height, width = work.sides
    lines = [
        headline(facts),
        f"  ViT-{work.size}/{work.patch}, {work.batch_size} images of {height} x {width} a step,"
        f" {facts['rounds']} {plural('round', facts['rounds'])}, seed {work.seed}"
        f"{'' if work.optimizer == 'adamw' else f', {work.optimizer}'}",
        f"  times as fast, fewer FLOPs: than {results.entries[0].summary}; medians, the middle half in brackets",
        "  share: how much of the ratio of FLOPs is gained in time",
        "  of peak, of shapes: the step's FLOP/s as a share of those of matrix products alone, of 2048 x 2048 and of"
        " the step's own shapes",
        f"  memory: {facts['memory_is']}",
    ]
    for mode in results.modes:
        base = results.base_mode(mode)
        lines += ["", mode + (f", beside {results.entries[0].summary} in {base}" if base != mode else "")]
        lines += [mode_table(results, mode)]
    for mode in results.modes:
        for entry in results.of_mode(mode):
            if mode in entry.profiles:
                lines += ["", format_profile(f"{entry.name}, {mode}", entry.profiles[mode])]
    lines += ["", *(f"not timed: {name}: {why}" for name, why in results.skipped.items())]
    return "\n".join(lines)
