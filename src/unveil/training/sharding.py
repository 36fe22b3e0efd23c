"""Fully sharded data parallelism (FSDP2): each process holds a part of weights, gradients, moments and averages.

The model that a recipe has built stays whole, on the processor, and takes part in nothing; a copy of it is sharded and
trained. So what needs a whole model (the next stage, validation, a checkpoint of one file) finds one, once the weights
of the copy have been gathered into it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..modeling.layers import Block, CrossBlock
from ..modeling.masked_model import MaskedModel
from ..modeling.teachers import frozen_teachers
from ..modeling.teachers.ema import ModelEma
from ..runs.dtensors import gathered, local_part


def sharded(model: MaskedModel, device: torch.device, precision: str) -> MaskedModel:
    """A copy of a model, sharded over all processes.

    A block of encoder or decoder is gathered when it is run, forwards and backwards, the rest of the model for the
    whole step. An average of weights is gathered as one while it observes. With bf16 the weights of blocks are sent in
    bf16, in which autocast multiplies them anyway; sums of gradients are in float32. Frozen teachers stay whole in each
    process, as they have neither gradients nor moments. Parameters of no dimension are too small to shard.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    shared: dict[int, Any] = {id(teacher): teacher for teacher in frozen_teachers(model).values()}
    own = copy.deepcopy(model, shared).to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    dtype = torch.bfloat16 if precision == "bf16" and device.type == "cuda" else None
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    for block in _blocks(own):
        fully_shard(block, mesh=mesh, mp_policy=policy)
        if isinstance(block, Block):
            register_fsdp_forward_method(block, "attention_to_patches")
    for average in _averages(own):
        fully_shard(average.copy, mesh=mesh)
        for method in ("embed", "observe"):
            if hasattr(average.copy, method):
                register_fsdp_forward_method(average.copy, method)
    fully_shard(own, mesh=mesh, ignored_params=set(scalars(own)))
    register_fsdp_forward_method(own, "count_samples")
    return own


def checkpoint_activations(model: nn.Module) -> None:
    """Keep no activations inside of blocks: they are computed again in the backward pass (Chen et al., 2016)."""
    for block in _blocks(model):
        block.forward = _Recomputed(block.forward)


class _Recomputed:
    """A forward that keeps its inputs alone where a gradient is needed."""

    def __init__(self, forward: Callable[..., Any]):
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def scalars(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of no dimension, which every process holds."""
    return [p for p in model.parameters() if p.ndim == 0]


def average_scalars(model: nn.Module) -> None:
    """Average the gradients of parameters of no dimension over the processes, as those of the others are."""
    for parameter in scalars(model):
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def total_norm(gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    """The norm of gradients of which some are sharded."""
    squares = [local_part(g).float().square().sum() for g in gradients if hasattr(g, "placements")]
    whole = [g.float().square().sum() for g in gradients if not hasattr(g, "placements")]
    total = torch.stack(squares).sum()
    dist.all_reduce(total)
    return (total + torch.stack(whole).sum() if whole else total).sqrt()


def clip(gradients: Sequence[Tensor], most: float, norm: Float[Tensor, ""]) -> None:
    """Scale gradients to a norm of at most `most`, as `torch.nn.utils.clip_grad_norm_` does."""
    torch._foreach_mul_([local_part(g) for g in gradients], (most / (norm + 1e-6)).clamp(max=1.0))


@torch.no_grad()
def gather_into(whole: MaskedModel, own: MaskedModel) -> None:
    """Copy the weights and buffers of a sharded copy into the whole model, one by one. All processes call it."""
    targets = whole.state_dict()
    for name, value in own.state_dict().items():
        targets[name].copy_(gathered(value))


def reshard(own: nn.Module) -> None:
    """Free what is gathered, after which parameters are those that the optimizer has."""
    from torch.distributed.fsdp import FSDPModule

    for module in own.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The transformer blocks that are trained."""
    inside = {id(m) for average in _averages(model) for m in average.modules()}
    inside |= {id(m) for teacher in frozen_teachers(model).values() for m in teacher.modules()}
    yield from (m for m in model.modules() if isinstance(m, (Block, CrossBlock)) and id(m) not in inside)


def _averages(model: nn.Module) -> list[ModelEma]:
    return [module for module in model.modules() if isinstance(module, ModelEma)]
