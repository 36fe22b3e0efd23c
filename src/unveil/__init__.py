"""unveil: masked image modelling on your own images."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_ROOMS = {  # public name -> its room (of another name), opened when used, so that `import unveil` is quick
    "analyze_attention": "looking",
    "analyze_blocks": "looking",
    "analyze_features": "looking",
    "analyze_masks": "looking",
    "bench": "benchmark",
    "demo": "demonstration",
    "embed": "embedding",
    "evaluate": "evaluation",
    "inspect": "embedding",
    "load": "loading",
    "look": "looking",
    "pretrain": "pretraining",
    "report": "reporting",
}
_NAMES = {"report": "write_report"}

if TYPE_CHECKING:
    from .benchmark import bench
    from .demonstration import demo
    from .embedding import embed, inspect
    from .evaluation import evaluate
    from .loading import load
    from .looking import analyze_attention, analyze_blocks, analyze_features, analyze_masks, look
    from .pretraining import pretrain
    from .reporting import write_report as report

__all__ = [
    "__version__",
    "analyze_attention",
    "analyze_blocks",
    "analyze_features",
    "analyze_masks",
    "bench",
    "demo",
    "embed",
    "evaluate",
    "inspect",
    "load",
    "look",
    "pretrain",
    "report",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are {', '.join(sorted(_ROOMS))}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), _NAMES.get(name, name))
