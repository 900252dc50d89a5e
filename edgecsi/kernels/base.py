"""What a kernel is, and the list of all of them.

To add a kernel, add one file to this folder that defines a subclass of `Kernel` and decorates it with
``@register``; nothing else has to know its name. The tests find it through the same list.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgecsi.ops.operators import Cost, Op
from edgecsi.target import Target

if TYPE_CHECKING:
    import tvm

K = TypeVar("K", bound="Kernel")
Knobs = Mapping[str, int]
_REGISTRY: dict[str, Kernel] = {}


class Kernel(ABC):
    """One way to compute one operator.

    Attributes:
        name: says everything: input type, weight type and format, operator, instruction.
        op: the operator it computes.
    """

    name: ClassVar[str]
    op: ClassVar[type[Op]]

    @abstractmethod
    def refuses(self, op: Any, target: Target) -> str:
        """Why this operator on this target is not for this kernel; empty if it is."""

    @abstractmethod
    def knobs(self, op: Any, target: Target) -> Knobs:
        """Knobs that are good without tuning."""

    def space(self, op: Any, target: Target) -> dict[str, Sequence[int]]:
        """Values worth trying for every knob; combinations that do not fit are skipped by `emit` raising ValueError."""
        return {k: (v,) for k, v in self.knobs(op, target).items()}

    @abstractmethod
    def cost(self, op: Any, target: Target, knobs: Knobs) -> Cost:
        """Predicted cost of a call, from bytes, lanes and operations."""

    def constants(self, op: Any, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        """Weights as the kernel reads them, 1-D, in the order of its parameters; one forward stream each."""
        return []

    def x_group(self, op: Any, target: Target) -> int:
        """How many channels of the input this kernel wants side by side (`Layout.group`); 1 is plain NCHW.

        Asked before the input's layout is settled; `refuses` says no to any other group.
        """
        return 1

    def scratch(self, op: Any, target: Target, knobs: Knobs) -> int:
        """Bytes of workspace needed during the call (its last parameter, uint8); 0 for none."""
        return 0

    @abstractmethod
    def emit(self, op: Any, target: Target, knobs: Knobs) -> tvm.tirx.PrimFunc:
        """The TIR function. All parameters are 1-D buffers, in this order: the inputs of the operator
        (`op.inputs`, `Layout.size` elements each), the constants, the output (with its halo written), the scratch."""


def register(kernel: type[K]) -> type[K]:
    """Class decorator: put a kernel into the list."""
    if kernel.name in _REGISTRY:
        raise ValueError(f"two kernels are called {kernel.name}")
    _REGISTRY[kernel.name] = kernel()
    return kernel


@cache
def all_kernels() -> dict[str, Kernel]:
    """Every kernel by name."""
    import edgecsi.kernels as package

    for module in sorted(m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")):
        importlib.import_module(module)
    return dict(sorted(_REGISTRY.items()))


def candidates(op: Op, target: Target) -> tuple[list[tuple[Kernel, Knobs, Cost]], dict[str, str]]:
    """Kernels that can compute `op` on `target`, fastest predicted first, and why the others cannot."""
    found, refused = [], {}
    for kernel in all_kernels().values():
        if kernel.op is not type(op):
            continue
        reason = kernel.refuses(op, target)
        if reason:
            refused[kernel.name] = reason
            continue
        knobs = kernel.knobs(op, target)
        found.append((kernel, knobs, kernel.cost(op, target, knobs)))
    found.sort(key=lambda item: item[2].seconds)
    return found, refused


def constant_bytes(arrays: Sequence[NDArray[Any]]) -> int:
    """Bytes that a kernel's constants take in the library."""
    return int(sum(np.asarray(a).nbytes for a in arrays))
