"""Optimizers beside torch's: Muon for many small matrices, and several optimizers as one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..runs.dtensors import local_part, sharded_like, whole_tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, steep at 0 (Jordan, kellerjordan.github.io/posts/muon)
STEPS = 5
EPS = 1e-7
RMS = 0.2  # of an update at rate 1, about that of AdamW's (Liu et al., arXiv 2502.16982, section 2.2)


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with its rate matched to AdamW's, for many small matrices and for steps that may be skipped.

    The update of a matrix is its momentum (0.95, Nesterov) made orthogonal by five Newton-Schulz steps, times 0.2 times
    the root of its longer side: its root mean square is then about that of AdamW's update, so rate and weight decay
    are those of AdamW.

    A group's `stacked` says how many matrices each of its weights holds, one below another. They are made orthogonal
    apart: q, k and v do different work, and made orthogonal as one they would share one spectrum, in which those with
    small gradients (q and k) are drowned. Matrices of one shape are multiplied as one batch: torch's loop over them
    waits for a launch of each on a GPU, and leaves cores idle on a processor. Products are in bf16 where the step is
    made under autocast, else in float32.

    Where `found_inf` is set, as for torch's fused optimisers, weights and momentum keep their values. Of parameters
    that are sharded (FSDP2's `DTensor`) every process updates its shard, momentum too; the update needs the whole
    matrix, so the momentum is gathered and every process computes all of it.
    """

    found_inf: Float[Tensor, ""] | None = None

    def __init__(self, params: Iterable[dict[str, Any]], lr: float = 0.0, weight_decay: float = 0.0):
        super().__init__(params, lr, weight_decay, ns_coefficients=COEFFICIENTS, eps=EPS, ns_steps=STEPS)
        for group in self.param_groups:
            group.setdefault("stacked", 1)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            alike = defaultdict[torch.Size, list[Tensor]](list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for parameters in alike.values():
                self._step(parameters, group)

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """The step of weights of one shape."""
        lr, momentum = group["lr"], group["momentum"]
        gradients = [local_part(p.grad) for p in parameters if p.grad is not None]
        averages = [local_part(self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))) for p in parameters]
        kept: Tensor | float = 1.0
        if self.found_inf is not None:  # a gradient that is its own average changes nothing
            gradients = [torch.where(self.found_inf > 0, m, g) for m, g in zip(averages, gradients, strict=True)]
            kept = 1 - self.found_inf
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, averages, momentum) if group["nesterov"] else averages
        whole = [whole_tensor(t, like) for t, like in zip(ahead, parameters, strict=True)]
        matrices = torch.stack(whole).unflatten(1, (group["stacked"], -1)).flatten(0, 1)
        updates = orthogonal(matrices, group["ns_coefficients"], group["ns_steps"], group["eps"])
        size = lr * RMS * math.sqrt(max(matrices.shape[1:]))
        updates = (updates.float() * (-size * kept)).reshape(len(parameters), *parameters[0].shape)
        weights = [local_part(p) for p in parameters]
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"] * kept)
        torch._foreach_add_(
            weights, [local_part(sharded_like(t, like)) for t, like in zip(updates, parameters, strict=True)]
        )


def orthogonal(
    matrices: Float[Tensor, "B m n"],
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    steps: int = STEPS,
    eps: float = EPS,
) -> Float[Tensor, "B m n"]:
    """Each matrix with all its singular values brought near 1 (0.7 to 1.2), by Newton-Schulz steps.

    In the type of an autocast, if any: the iteration bears the rounding of bf16.
    """
    a, b, c = coefficients
    device = matrices.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else matrices.dtype
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class Joined(torch.optim.Optimizer):
    """Optimizers of different parameters as one, with the groups of all and one state."""

    found_inf: Tensor | None = None

    def __init__(self, *parts: torch.optim.Optimizer):
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for part in self.parts:
            part.found_inf = self.found_inf  # type: ignore[attr-defined]
            part.step()
