"""The matrix products of a step, recorded on shapes, and the rate at which this machine computes them by themselves.

Two peaks: of square matrices of side 2048, which is what a machine can do at best, and of the step's own shapes, each
timed alone, which is what a step could reach if it were nothing but its products.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .work import Contender, Work

SIDE = 2048  # of the square matrices
_LEAST_SECONDS, _MOST_CALLS = 2e-3, 20  # of a timed group of calls, so that the clock and the launch do not count


@dataclass(frozen=True)
class Operand:
    """Shape and strides of a matrix, or of a batch of them."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def extent(self) -> int:
        """The elements of memory from its first to its last."""
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True)) if prod(self.shape) else 0


@dataclass(frozen=True)
class Product:
    """One product of a step: a (batched) matrix multiplication or a convolution, with its operands and operations."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]  # an `Operand` in place of each tensor
    flops: int

    @property
    def operands(self) -> list[Operand]:
        return [a for a in self.arguments if isinstance(a, Operand)]


class ProductRecorder(TorchDispatchMode):
    """Collects the matrix products that are computed while it is entered, with their number."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            with self:  # what is made of other operations, as a linear layer without gradient
                out = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if out is NotImplemented else out
        out = func(*args, **kwargs)
        flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        self.products[Product(func, tuple(map(_frozen, args)), flops)] += 1
        return out


def _frozen(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return Operand(tuple(argument.shape), tuple(argument.stride()))
    return tuple(argument) if isinstance(argument, list) else argument


def record_products(contender: Contender, work: Work) -> Counter[Product]:
    """The products of a forward and a backward pass of the whole batch, of all steps of a contender's period.

    On the meta device, where nothing is computed and attention is two matrix products.
    """
    with torch.device("meta"):
        model = contender.build(work)
    batch = work.batch("meta")
    recorder = ProductRecorder()
    with recorder:
        for step in range(contender.period):
            model.before_step(step)
            model(batch).backward()
    return recorder.products


class Rates:
    """Times products on a device in one type, with operands of normal random numbers."""

    def __init__(self, products: Iterable[Product], device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        self.products = dict.fromkeys(products)
        square = (SIDE, SIDE)
        operand = Operand(square, (SIDE, 1))
        self.square = Product(torch.ops.aten.mm.default, (operand, operand), 2 * SIDE**3)
        everything = [*self.products, self.square]
        most = max(operand.extent for product in everything for operand in product.operands)
        number = max(len(product.operands) for product in everything)
        self.buffers = [torch.randn(most, device=device, dtype=dtype) for _ in range(number)]
        self.calls: dict[Product, int] = {}

    def measure(self) -> tuple[float, dict[Product, float]]:
        """The seconds of the square product and of each other one, timed once more."""
        return self.seconds(self.square), {product: self.seconds(product) for product in self.products}

    @torch.no_grad()
    def seconds(self, product: Product) -> float:
        """The mean seconds of a few calls."""
        arguments = self.arguments(product)

        def run(calls: int) -> float:
            self._wait()
            began = time.perf_counter()
            for _ in range(calls):
                product.function(*arguments)
            self._wait()
            return time.perf_counter() - began

        if product not in self.calls:
            run(1)  # chooses kernels
            self.calls[product] = min(_MOST_CALLS, 1 + int(_LEAST_SECONDS / max(run(1), 1e-9)))
        return run(self.calls[product]) / self.calls[product]

    def arguments(self, product: Product) -> list[Any]:
        """The arguments of a product, in the buffers."""
        given = iter(self.buffers)
        return [
            next(given)[: a.extent].as_strided(a.shape, a.stride) if isinstance(a, Operand) else a
            for a in product.arguments
        ]

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def seconds_alone(products: Mapping[Product, int], each: Mapping[Product, float]) -> float:
    """The seconds of all products of a step, if each took what it takes alone."""
    return sum(count * each[product] for product, count in products.items())
