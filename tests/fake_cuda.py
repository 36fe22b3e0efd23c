"""A CUDA device without a card: tensors on it have shapes and a device and no values (`FakeTensorMode`).

Tensors on the CPU stay real. So a test sees what a card would refuse, operations on tensors of two devices, and what
makes the host wait for it: reading a value, and copies between host and device that block.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import unveil
from unveil.modeling.constants import _moved

HERE = Path(unveil.__file__).parent
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)


def why_not() -> str:
    """Why there can be no fake CUDA tensors here; empty where there can."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA; a CUDA build shows mixed devices, with or without a card"
    if torch.cuda.is_available():
        return "there is a CUDA device, for which tests/gpu is"
    return ""


class FakeCuda(TorchDispatchMode):
    """Operations on CUDA tensors compute shapes alone. `waits` lists what would make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        device = kwargs.get("device")
        to_cuda = device is not None and torch.device(device).type == "cuda"
        if not to_cuda and not any(isinstance(x, FakeTensor) for x in leaves):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        for x in leaves:
            if isinstance(x, torch.Generator) and x.device.type != "cuda":
                raise RuntimeError(f"a generator of {x.device} for numbers on cuda, in {func}")
        self._note(func, args, kwargs)
        return func(*args, **kwargs)

    def _note(self, func: Any, args: tuple, kwargs: dict) -> None:
        if func in COPIES and not kwargs.get("non_blocking", False):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            target = args[0].device if func is torch.ops.aten.copy_.default else kwargs.get("device") or source.device
            blocks = func is not torch.ops.aten.copy_.default or len(args) < 3 or not args[2]
            if blocks and source.device.type != torch.device(target).type:
                self.waits.append(f"a copy from {source.device} to {target} that blocks{_place()}")
        if func in INDEXED and any(x is not None and x.device.type == "cpu" for x in args[1]):
            self.waits.append(f"an index on the CPU{_place()}")


def _place() -> str:
    """The line of the package that called."""
    frames = [f for f in traceback.extract_stack() if HERE in Path(f.filename).parents]
    return f": {Path(frames[-1].filename).relative_to(HERE)}, line {frames[-1].lineno}" if frames else ""


def apply(self: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """What `Module._apply` does, for tensors that it cannot swap: those that are fake on one side."""
    for child in self.children() if recurse else ():
        child._apply(change)
    for name, parameter in self._parameters.items():
        if parameter is not None and (changed := change(parameter.detach())).device != parameter.device:
            self._parameters[name] = nn.Parameter(changed, parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = change(buffer)
    return self


@torch.no_grad()
def backward(loss: Tensor, *_: Any, **__: Any) -> None:
    """The backward pass, node by node: autograd's own engine asks the driver for streams."""
    assert loss.grad_fn is not None
    waiting: dict[Any, int] = {loss.grad_fn: 0}
    queue = deque([loss.grad_fn])
    while queue:
        for node, _ in queue.popleft().next_functions:
            if node is not None:
                if node not in waiting:
                    waiting[node] = 0
                    queue.append(node)
                waiting[node] += 1
    gradients: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready = deque([loss.grad_fn])
    while ready:
        node = ready.popleft()
        own = gradients.pop(node, {})
        outputs = node(*(own.get(place) for place in range(len(node._input_metadata)))) if own else None
        outputs = outputs if isinstance(outputs, tuple) else (outputs,) * len(node.next_functions)
        for (after, place), gradient in zip(node.next_functions, outputs, strict=True):
            if after is None:
                continue
            if gradient is not None:
                of, sums = after._input_metadata[place], gradients.setdefault(after, {})
                assert gradient.device == of.device, f"{node.name()}: a gradient on {gradient.device} of {of.device}"
                gradient = gradient.sum_to_size(of.shape).to(of.dtype)
                sums[place] = gradient if place not in sums else sums[place] + gradient
            waiting[after] -= 1
            if not waiting[after]:
                ready.append(after)


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """A fake CUDA device with native bf16, for as long as the context lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "_apply", apply)
        patch.setattr(Tensor, "backward", backward)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        _moved.cache_clear()  # of tensors of another fake mode
        with FakeTensorMode(allow_non_fake_inputs=True), FakeCuda() as mode:
            yield mode


def devices(module: nn.Module) -> set[str]:
    """The kinds of device of a module's parameters and buffers."""
    return set(tree_map(lambda t: t.device.type, [*module.parameters(), *module.buffers()]))
