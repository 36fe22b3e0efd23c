"""The timed models: our recipes, the ladder from MAE to CrossMAE, the stages of CMT-MAE, guided MultiMAE, and peers.

Every contender is a module that maps a batch to its loss. Those of one group do the same work: the same ViT, images,
batch and share of hidden patches, and the same optimizer (AdamW, unless ours are told another).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ...modeling.masked_model import MaskedModel, mean_loss
from ...modeling.optim import OptimizerName
from ...modeling.types import Batch
from ...recipes.attmask import recipe as attmask
from ...recipes.cmtmae import recipe as cmtmae
from ...recipes.crossmae import recipe as crossmae
from ...recipes.hpm import recipe as hpm
from ...recipes.mae import recipe as mae
from ...recipes.maskfeat import recipe as maskfeat
from ...recipes.milan import recipe as milan
from ...recipes.multimae import recipe as multimae
from ...recipes.multimae_attention import recipe as guided
from ...recipes.recipe import Recipe
from ...recipes.registry import build_recipe, defaults_of
from ...recipes.simmim import recipe as simmim
from ...recipes.unveil import recipe as unveil
from ...training.autoconfig import NARROW_DECODERS
from .peers import PEERS
from .work import Contender, TimedModel, Work


class Ours(TimedModel):
    """A recipe's model, its loss, and the optimizer of the work."""

    model: MaskedModel

    def __init__(self, model: MaskedModel, optimizer: OptimizerName = "adamw"):
        super().__init__(model)
        self.optimizer = optimizer

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        return mean_loss(self.model(batch))

    def before_step(self, step: int) -> None:
        self.model.before_step(MIDST + step, 0.5)


def _recipe(
    recipe: Callable[..., Recipe], stage: int = 0, in_proportion: bool = False, **options: Any
) -> Callable[[Work], Recipe]:
    """A stage of a recipe for a work; `in_proportion` with the decoder that pretrain gives a small encoder."""

    def make(work: Work) -> Recipe:
        shape: dict[str, Any] = {"size": work.size, "patch": work.patch, "image_size": work.image_size}
        shape["optimizer"] = work.optimizer
        if in_proportion:
            shape |= NARROW_DECODERS.get(work.size, {})
        if defaults_of(recipe).get("mask_unit"):
            shape["mask_unit"] = 2 * work.patch  # as in the papers, and as pretrain sets it
        built = build_recipe(recipe, (), {**shape, **options})
        return replace(built, stages=built.stages[stage : stage + 1])

    return make


def _ours(
    name: str, summary: str, recipe: Callable[..., Recipe], stage: int = 0, period: int = 1, **options: Any
) -> Contender:
    of_work = _recipe(recipe, stage, **options)
    return Contender(name, summary, lambda work: Ours(of_work(work).stages[0].build(), work.optimizer), period, of_work)


_LAST_MAP: dict[str, Any] = {"blend": "none", "visible": 0.25}
_CROSS: dict[str, Any] = {
    "teacher": "random",
    "decoder": "cross",
    "predicted": 0.25,
    "decoder_depth": 12,
    "blend": "linear",
}
# The rungs of CrossMAE's table 5; all three have the paper's 12 decoder blocks, MAE has its own 8.
MIDST = 1600  # the step of a run that is timed, a multiple of every period: some guides differ in the first steps
_ALL = (
    _ours("mae", "our MAE", mae),
    *PEERS,
    _ours("cross-attention", "+ cross-attention decoder", crossmae, **_LAST_MAP, predicted=0.75),
    _ours("partial", "+ partial reconstruction, 25 %", crossmae, **_LAST_MAP, predicted=0.25),
    _ours("inter-block", "+ inter-block attention: CrossMAE", crossmae, visible=0.25, predicted=0.25),
    # a teacher of the student's size; it is random, which costs what a trained one does
    _ours("cmtmae-stage1", "CMT-MAE, stage one", cmtmae, teacher="random"),
    _ours("cmtmae-stage2", "CMT-MAE, stage two", cmtmae, 1, teacher="random"),
    _ours("cmtmae-cross", "CMT-MAE, stage two, cross-attention, 25 %", cmtmae, 1, **_CROSS),
    _ours("multimae", "MultiMAE, random masks", multimae),
    _ours("multimae-guided", "guided by attention", guided),
    _ours("guided-half", "guided at half resolution", guided, guide_scale="half"),
    _ours("guided-layer4", "guided by layer 4", guided, layer=3),
    _ours("guided-every4", "guided on every 4th step", guided, period=4, guide_every=4),
    _ours("guided-fast", "guided by predicted attention", guided, period=16, guidance="fast"),
    _ours("crossmae", "CrossMAE as pretrain shapes it", crossmae, in_proportion=True),
    _ours("attmask", "AttMask", attmask),
    _ours("hpm", "HPM", hpm),
    _ours("unveil", "unveil as pretrain shapes it", unveil, in_proportion=True),
    _ours("maskfeat", "MaskFeat", maskfeat),
    _ours("milan", "MILAN", milan, teacher="random"),
    _ours("simmim", "SimMIM", simmim),
)
CONTENDERS: dict[str, Contender] = {contender.name: contender for contender in _ALL}


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError for a name that no contender has, or where there is none."""
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown or not names:
        raise ValueError(
            f"contenders are one or more of {', '.join(CONTENDERS)}; got {', '.join(unknown) or 'none of them'}"
        )


def select_contenders(names: Sequence[str], work: Work) -> tuple[list[Contender], dict[str, str]]:
    """The contenders that can run here, each once, in the given order; and why the others cannot."""
    check_names(names)
    every = [CONTENDERS[name] for name in dict.fromkeys(names)]
    absent = {contender.name: why for contender in every if (why := contender.absent(work))}
    present = [contender for contender in every if contender.name not in absent]
    if not present:
        missing = "; ".join(f"{name} is left out: {why}" for name, why in absent.items())
        raise ValueError(f"no contender is left to time; {missing}")
    return present, absent
