"""unveil: masked image modelling on your own images."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .recipes import old_paths

_MODULES = {  # public name -> its module, imported when used, so that `import unveil` is quick
    "Run": "recipes.run",
    "analyze_attention": "commands.analyze",
    "analyze_blocks": "commands.analyze",
    "analyze_features": "commands.analyze",
    "analyze_masks": "commands.analyze",
    "bench": "experiments.bench",
    "demo": "experiments.demo",
    "embed": "commands.embed",
    "evaluate": "commands.evaluate",
    "export": "commands.export",
    "inspect": "commands.inspect",
    "load": "commands.load",
    "look": "commands.look",
    "pack": "commands.pack",
    "pretrain": "commands.pretrain",
    "replay": "commands.replay",
    "report": "reporting.page",
    "scenes": "experiments.scenes.command",
}
_NAMES = {"report": "write_report"}

if TYPE_CHECKING:
    from .commands.analyze import analyze_attention, analyze_blocks, analyze_features, analyze_masks
    from .commands.embed import embed
    from .commands.evaluate import evaluate
    from .commands.export import export
    from .commands.inspect import inspect
    from .commands.load import load
    from .commands.look import look
    from .commands.pack import pack
    from .commands.pretrain import pretrain
    from .commands.replay import replay
    from .experiments.bench import bench
    from .experiments.demo import demo
    from .experiments.scenes.command import scenes
    from .recipes.run import Run
    from .reporting.page import write_report as report

__all__ = [
    "Run", "__version__", "analyze_attention", "analyze_blocks", "analyze_features", "analyze_masks", "bench", "demo",
    "embed", "evaluate", "export", "inspect", "load", "look", "pack", "pretrain",
    "replay", "report", "scenes",
]  # fmt: skip

old_paths.install()


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are {', '.join(sorted(_MODULES))}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), _NAMES.get(name, name))
