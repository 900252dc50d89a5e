"""What is to be generated: the calls of every entry, with their places in the workspace and among the weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from edgecsi.bundle import Tensor

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

ALIGN = 64


@dataclass(frozen=True)
class Place:
    """Where a pointer argument points: ``in``/``out`` (index of the tensor), ``workspace`` (byte offset) or
    ``constant`` (index among the call's constants). `stride`: bytes to the next sample, in a loop over samples."""

    kind: str
    at: int
    offset: int = 0
    stride: int = 0


@dataclass
class Call:
    """One kernel call.

    Attributes:
        layer: name for people. kernel: name of the kernel. function: its TIR. arguments: in order.
        constants: the arrays that `Place("constant", i)` refers to. report: what the manifest says of it.
        repeat: how many samples it is called for, one by one; neighbours of one `segment` share a loop.
    """

    layer: str
    kernel: str
    function: PrimFunc
    arguments: list[Place]
    constants: list[NDArray[Any]]
    report: dict[str, Any] = field(default_factory=dict)
    repeat: int = 1
    segment: int = 0


@dataclass
class PlannedEntry:
    """One function of the library that is to be."""

    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    calls: list[Call]
    workspace: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of constants, each array once."""
        arrays = {id(c): c for call in self.calls for c in call.constants}
        return sum(int(a.nbytes) for a in arrays.values())

    @property
    def macs(self) -> int:
        return sum(int(call.report.get("macs", 0)) for call in self.calls)
