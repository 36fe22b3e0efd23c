"""The timed models: transformers' ViTMAE, our MAE, the ladder from MAE to CrossMAE, CMT-MAE's stages, guided MultiMAE.

Every contender is a module that maps a batch to its loss. Those of one group do the same work: the same ViT, images,
batch and share of hidden patches, and the same AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...modeling.encoder import SIZES, token_grid
from ...modeling.masked_model import MaskedModel, mean_loss
from ...modeling.rng import sample_keys
from ...modeling.types import DEPTH, RGB, SEMSEG, Batch
from ...recipes.cmtmae import recipe as cmtmae
from ...recipes.crossmae import recipe as crossmae
from ...recipes.mae import recipe as mae
from ...recipes.multimae import recipe as multimae
from ...recipes.multimae_attention import recipe as guided
from ...recipes.recipe import Recipe
from ...recipes.registry import build_recipe

Name = Literal[
    "mae", "transformers", "cross-attention", "partial", "inter-block",
    "cmtmae-stage1", "cmtmae-stage2", "cmtmae-cross",
    "multimae", "multimae-guided", "guided-half", "guided-layer4", "guided-every4",
]  # fmt: skip


@dataclass(frozen=True)
class Work:
    """The work of every contender: a step of a ViT of this size on `batch_size` images of this size."""

    size: str
    patch: int
    image_size: tuple[int, ...]
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}; got {self.size!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is a number of images, at least 1; got {self.batch_size}")
        token_grid(self.image_size, self.patch)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return self.image_size[0], self.image_size[-1]

    def batch(self, device: torch.device | str) -> Batch:
        """The maps that all contenders read: random numbers, the same for the same seed."""
        torch.manual_seed(self.seed)
        height, width = self.sides
        coarse = (self.batch_size, 1, height // SEMSEG.stride, width // SEMSEG.stride)
        maps = {
            RGB.name: torch.rand(self.batch_size, RGB.channels, height, width),
            DEPTH.name: torch.rand(self.batch_size, 1, height, width),
            SEMSEG.name: torch.randint(SEMSEG.num_classes, coarse),
        }
        return Batch(maps, sample_keys(self.seed, 0, range(self.batch_size)), torch.zeros(())).on(device)


@dataclass(frozen=True)
class Contender:
    """A way to train the ViT, with a description of one line."""

    name: Name
    summary: str
    make: Callable[[Work], TimedModel]
    period: int = 1  # steps of which one differs, so that a time is the mean over all of them

    def build(self, work: Work) -> TimedModel:
        """The module `Batch -> loss`, initialised from the seed."""
        torch.manual_seed(work.seed)
        return self.make(work)


class TimedModel(nn.Module):
    """A module `Batch -> loss`, with hooks around a step as the training loop calls them."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def before_step(self, step: int) -> None:
        """Sets the number of the step, for modules that do not run in every one."""

    def after_step(self) -> None:
        """Updates EMAs of the student, which is counted as part of the step."""


class Ours(TimedModel):
    """A recipe's model and its loss."""

    model: MaskedModel

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        return mean_loss(self.model(batch))

    def before_step(self, step: int) -> None:
        self.model.before_step(step, 0.5)

    def after_step(self) -> None:
        self.model.after_step({}, torch.ones((), dtype=torch.bool, device=self.model.encoder.prefix.device))


class Theirs(TimedModel):
    """ViTMAE of transformers. It reads images without normalisation, which costs only ours."""

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        loss: Tensor = self.model(batch.maps[RGB.name]).loss
        return loss


def _ours(recipe: Callable[..., Recipe], stage: int = 0, **options: Any) -> Callable[[Work], TimedModel]:
    def make(work: Work) -> TimedModel:
        shape = {"size": work.size, "patch": work.patch, "image_size": work.image_size}
        built = build_recipe(recipe, (), {**shape, **options})
        return Ours(built.stages[stage].build())

    return make


def _vit_mae(work: Work) -> TimedModel:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    dim, depth, heads = SIZES[work.size]
    config = ViTMAEConfig(  # its decoder's defaults are the paper's, as ours are
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * dim,
        image_size=work.sides[0],
        patch_size=work.patch,
        mask_ratio=0.75,
        norm_pix_loss=True,
        layer_norm_eps=1e-6,
    )
    return Theirs(ViTMAEForPreTraining(config))


_LAST_MAP: dict[str, Any] = {"blend": "none", "visible": 0.25}
_CROSS: dict[str, Any] = {
    "teacher": "random",
    "decoder": "cross",
    "predicted": 0.25,
    "decoder_depth": 12,
    "blend": "linear",
}
# The rungs of CrossMAE's table 5; all three have the paper's 12 decoder blocks, MAE has its own 8.
_ALL = (
    Contender("mae", "our MAE", _ours(mae)),
    Contender("transformers", "transformers' ViTMAE", _vit_mae),
    Contender("cross-attention", "+ cross-attention decoder", _ours(crossmae, **_LAST_MAP, predicted=0.75)),
    Contender("partial", "+ partial reconstruction, 25 %", _ours(crossmae, **_LAST_MAP, predicted=0.25)),
    Contender("inter-block", "+ inter-block attention: CrossMAE", _ours(crossmae, visible=0.25, predicted=0.25)),
    # a teacher of the student's size; it is random, which costs what a trained one does
    Contender("cmtmae-stage1", "CMT-MAE, stage one", _ours(cmtmae, teacher="random")),
    Contender("cmtmae-stage2", "CMT-MAE, stage two", _ours(cmtmae, 1, teacher="random")),
    Contender("cmtmae-cross", "CMT-MAE, stage two, cross-attention, 25 %", _ours(cmtmae, 1, **_CROSS)),
    Contender("multimae", "MultiMAE, random masks", _ours(multimae)),
    Contender("multimae-guided", "guided by attention", _ours(guided)),
    Contender("guided-half", "guided at half resolution", _ours(guided, guide_scale="half")),
    Contender("guided-layer4", "guided by layer 4", _ours(guided, layer=3)),
    Contender("guided-every4", "guided on every 4th step", _ours(guided, guide_every=4), period=4),
)
CONTENDERS: dict[str, Contender] = {contender.name: contender for contender in _ALL}


def select_contenders(names: Sequence[str], work: Work) -> tuple[list[Contender], dict[str, str]]:
    """The contenders that can run here, each once, in the given order; and why the others cannot."""
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown or not names:
        raise ValueError(
            f"contenders are one or more of {', '.join(CONTENDERS)}; got {', '.join(unknown) or 'none of them'}"
        )
    why = _why_no_vit_mae(work) if "transformers" in names else ""
    absent = {"transformers": why} if why else {}
    present = [CONTENDERS[name] for name in dict.fromkeys(names) if name not in absent]
    if not present:
        raise ValueError(f"no contender is left to time; transformers is left out: {why}")
    return present, absent


def _why_no_vit_mae(work: Work) -> str:
    try:
        from transformers import ViTMAEForPreTraining  # noqa: F401
    except (ImportError, RuntimeError) as error:  # RuntimeError: it is there but does not fit this torch
        return f"it cannot be imported ({str(error).splitlines()[0]}); pip install 'transformers>=5'"
    if work.sides[0] != work.sides[1]:
        return f"its ViTMAE reads square images only; these are {work.sides[0]} x {work.sides[1]}"
    return ""
