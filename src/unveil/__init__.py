"""unveil: masked image modelling on your own images.

pretrain    train a ViT on images without labels; returns a Run
Run         a stored run: reconstruct, guidance, neighbours, curves, model, encoder, held_out
load        the encoder of a run or of public weights, an nn.Module from images to features
evaluate    measure frozen features, fine-tuning, segmentation, ... on labelled data, beside baselines
predict     classes, masks, depth or boxes of any images, by a head that `evaluate(keep=True)` has kept
embed       the features of images, as a file
inspect     what images hold, before training on them
report      a page on runs; look: a picture of masks and predictions; analyze_*: measures of attention and blocks
export      the encoder for timm, transformers, ONNX; import_checkpoint: public weights as a run
pack        images as shards; replay: a step that went wrong
Callback    what `pretrain(callbacks=[...])` calls; bench, demo, scenes: this machine, the
            whole way in minutes, rendered images as files

unveil.data.open reads any data as a torch Dataset, unveil.sklearn.Encoder is a scikit-learn transformer, unveil.parts
are the parts of recipes. Each of these names has its options and an example in its help, `help(unveil.pretrain)`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .recipes import old_paths

_MODULES = {  # public name -> its module, imported when used, so that `import unveil` is quick
    "Callback": "training.callbacks",
    "Run": "commands.run",
    "analyze_attention": "commands.analyze",
    "analyze_blocks": "commands.analyze",
    "analyze_features": "commands.analyze",
    "analyze_masks": "commands.analyze",
    "bench": "experiments.bench",
    "demo": "experiments.demo",
    "embed": "commands.embed",
    "evaluate": "commands.evaluate",
    "export": "commands.export",
    "import_checkpoint": "commands.import_checkpoint",
    "inspect": "commands.inspect",
    "load": "commands.load",
    "look": "commands.look",
    "pack": "commands.pack",
    "predict": "commands.predict",
    "pretrain": "commands.pretrain",
    "replay": "commands.replay",
    "report": "reporting.page",
    "scenes": "experiments.scenes.command",
}
_NAMES = {"report": "write_report"}
_PACKAGES = ("data", "parts", "sklearn")  # that have public names of their own

if TYPE_CHECKING:
    from .commands.analyze import analyze_attention, analyze_blocks, analyze_features, analyze_masks
    from .commands.embed import embed
    from .commands.evaluate import evaluate
    from .commands.export import export
    from .commands.import_checkpoint import import_checkpoint
    from .commands.inspect import inspect
    from .commands.load import load
    from .commands.look import look
    from .commands.pack import pack
    from .commands.predict import predict
    from .commands.pretrain import pretrain
    from .commands.replay import replay
    from .commands.run import Run
    from .experiments.bench import bench
    from .experiments.demo import demo
    from .experiments.scenes.command import scenes
    from .reporting.page import write_report as report
    from .training.callbacks import Callback

__all__ = [
    "Callback", "Run", "__version__", "analyze_attention", "analyze_blocks", "analyze_features", "analyze_masks",
    "bench", "demo", "embed", "evaluate", "export", "import_checkpoint", "inspect", "load", "look", "pack", "predict",
    "pretrain", "replay", "report", "scenes",
]  # fmt: skip

old_paths.install()


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are {', '.join(sorted(_MODULES))}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), _NAMES.get(name, name))
