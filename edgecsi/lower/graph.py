"""The network as the passes see it: nodes in execution order, values between them.

A `Graph` is made from Relax and printed with ``str(graph)``; every pass is a function ``(graph) -> None`` that
changes it in place, one file each, listed in `edgecsi.lower.PASSES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Half, Quant
from edgecsi.ops.steps import Step


@dataclass(eq=False)
class Value:
    """A tensor: an input, a constant, or the output of a node.

    Attributes:
        data: the numbers of a constant. layout: set when layouts are chosen.
        parent: the value in whose memory this one lies (it is a view of it, or a part of a concatenation written in
        place), `offset` elements behind its start.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    data: NDArray[Any] | None = None
    layout: Layout | None = None
    parent: Value | None = None
    offset: int = 0

    def __str__(self) -> str:
        kind = "const " if self.data is not None else ""
        place = f" in {self.parent.name}[{self.offset}:]" if self.parent else ""
        halo = f" halo {self.layout.halo}" if self.layout and any(self.layout.halo) else ""
        return f"{kind}{self.name}: {self.dtype}{list(self.shape)}{halo}{place}"


@dataclass(eq=False)
class Fused:
    """One epilogue step of a node; `operand` is the other tensor of a binary step."""

    step: Step
    operand: Value | None = None


@dataclass(eq=False)
class Node:
    """One operation.

    Attributes:
        op: ``conv2d``, ``dense``, ``add``, … as named by `edgecsi.lower.from_relax`.
        path: where it comes from in the PyTorch module, for people.
        epilogue: elementwise steps fused behind it. y_quant: the result is stored as codes.
    """

    op: str
    inputs: list[Value]
    output: Value
    attrs: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    epilogue: list[Fused] = field(default_factory=list)
    y_quant: Quant | Half | None = None

    @property
    def reads(self) -> Iterator[Value]:
        """Everything it reads: inputs, then operands of the epilogue."""
        yield from self.inputs
        for fused in self.epilogue:
            if fused.operand is not None:
                yield fused.operand

    def replace(self, old: Value, new: Value) -> None:
        """Read `new` wherever it read `old`."""
        self.inputs = [new if v is old else v for v in self.inputs]
        for fused in self.epilogue:
            if fused.operand is old:
                fused.operand = new

    def __str__(self) -> str:
        small = {
            k: v for k, v in self.attrs.items() if isinstance(v, int | float | str | tuple | list | bool)
        }
        steps = "".join(
            f" | {f.step.op}{list(f.step.params) if f.step.params else ''}{' ' + f.operand.name if f.operand else ''}"
            for f in self.epilogue
        )
        steps += f" | quantize {self.y_quant}" if self.y_quant else ""
        return (
            f"{self.output} = {self.op}({', '.join(v.name for v in self.inputs)})"
            f"{' ' + str(small) if small else ''}{steps}{'   # ' + self.path if self.path else ''}"
        )


@dataclass(eq=False)
class Graph:
    """Nodes in execution order. `inputs` and `outputs` are fp32 tensors of the caller."""

    name: str
    inputs: list[Value]
    outputs: list[Value]
    nodes: list[Node]

    def __str__(self) -> str:
        constants = {id(v): v for n in self.nodes for v in n.reads if v.data is not None}
        lines = [f"graph {self.name}({', '.join(map(str, self.inputs))})"]
        lines += [f"  {v}" for v in constants.values()]
        lines += [f"  {node}" for node in self.nodes]
        return "\n".join([*lines, f"  return {', '.join(v.name for v in self.outputs)}", ""])

    def producer(self, value: Value) -> Node | None:
        """The node that writes `value`; None for inputs and constants."""
        return next((n for n in self.nodes if n.output is value), None)

    def readers(self, value: Value) -> list[Node]:
        """The nodes that read `value`."""
        return [n for n in self.nodes if any(v is value for v in n.reads)]

    def only_reader(self, value: Value) -> Node | None:
        """The one node that reads `value`, if there is just one and it is no output of the graph."""
        readers = self.readers(value)
        if len(readers) != 1 or self.is_output(value):
            return None
        return readers[0] if sum(v is value for v in readers[0].reads) == 1 else None

    def is_output(self, value: Value) -> bool:
        return any(v is value for v in self.outputs)

    def forward(self, old: Value, new: Value) -> None:
        """Let every reader of `old` read `new`."""
        for node in self.nodes:
            node.replace(old, new)
        self.outputs = [new if v is old else v for v in self.outputs]

    def drop(self, node: Node) -> None:
        self.nodes = [n for n in self.nodes if n is not node]

    def insert_before(self, node: Node, new: Node) -> None:
        at = next(i for i, n in enumerate(self.nodes) if n is node)
        self.nodes.insert(at, new)

    def insert_after(self, node: Node, new: Node) -> None:
        at = next(i for i, n in enumerate(self.nodes) if n is node)
        self.nodes.insert(at + 1, new)

    def insert_early(self, new: Node) -> None:
        """Insert a node as soon as its inputs are there."""
        places = [i for i, n in enumerate(self.nodes) if any(v is n.output for v in new.inputs)]
        self.nodes.insert(max(places, default=-1) + 1, new)

    def remove_dead(self) -> None:
        """Drop nodes whose result nobody reads."""
        live = {id(v) for v in self.outputs}
        kept = []
        for node in reversed(self.nodes):
            if id(node.output) in live:
                kept.append(node)
                live.update(id(v) for v in node.reads)
        self.nodes = kept[::-1]


def constant(name: str, data: NDArray[Any]) -> Value:
    """A constant value."""
    array = np.ascontiguousarray(data).reshape(np.shape(data))
    return Value(name, tuple(array.shape), str(array.dtype), array)
