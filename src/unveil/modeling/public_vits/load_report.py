"""Weights into a model, with a table of what became of every key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class KeyReport:
    """What became of every key when weights were loaded."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]

    def __str__(self) -> str:
        rows = [f"{len(self.loaded)} tensors loaded"]
        for title, keys in (
            ("missing (start fresh)", self.missing),
            ("unexpected (left out)", self.unexpected),
            ("of another shape (start fresh)", self.reshaped),
        ):
            if keys:
                rows.append(f"{len(keys)} {title}: {', '.join(keys[:6])}{', ...' if len(keys) > 6 else ''}")
        return "\n".join(rows)


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> KeyReport:
    """Copy what fits by name and shape into a model; say what did not."""
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    reshaped = tuple(k for k in state if k in own and k not in fits)
    model.load_state_dict(fits, strict=False)
    return KeyReport(
        loaded=tuple(fits),
        missing=tuple(k for k in own if k not in state),
        unexpected=tuple(k for k in state if k not in own),
        reshaped=reshaped,
    )
