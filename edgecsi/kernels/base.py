"""What a kernel is, and what it costs. All there are: `edgecsi.kernels.variants`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgecsi.ops.operators import Op
from edgecsi.target import Target

if TYPE_CHECKING:
    import tvm

Knobs = Mapping[str, int]
Expr = Any
"""A TIR expression; tvm has no type stubs."""


@dataclass(frozen=True)
class Cost:
    """Predicted cost of one call.

    Attributes:
        seconds: predicted time on the target. bytes: weights (and indices) read. macs: multiply-adds carried out.
    """

    seconds: float
    bytes: int
    macs: int


@dataclass(frozen=True)
class Kernel(ABC):
    """One way to compute one operator. An algorithm is a subclass; its variants are instances, rows of a table.

    Attributes:
        name: says everything: input type, weight type and format, operator, instruction.
        op: the operator it computes.
    """

    op: ClassVar[type[Op]]
    name: str

    @property
    def products(self) -> float:
        """Multiplications for each of the operator's; fewer than one in Winograd's form."""
        return 1.0

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


@dataclass(frozen=True)
class Blocked(Kernel):
    """A kernel that takes, of the blocks which fit the registers, the one that is predicted to be fastest."""

    @abstractmethod
    def _sensible(self, op: Any, target: Target) -> Iterator[dict[str, int]]:
        """Knobs of the blocks that fit."""

    def knobs(self, op: Any, target: Target) -> Knobs:
        return min(self._sensible(op, target), key=lambda knobs: self.cost(op, target, knobs).seconds)

    def space(self, op: Any, target: Target) -> dict[str, Sequence[int]]:
        found = list(self._sensible(op, target))
        return {knob: sorted({knobs[knob] for knobs in found}) for knob in found[0]}


def constant_bytes(arrays: Sequence[NDArray[Any]]) -> int:
    """Bytes that a kernel's constants take in the library."""
    return int(sum(np.asarray(a).nbytes for a in arrays))
