"""Give every node the kernel that is predicted to be fastest for its weights, zeros and target."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.errors import ToolchainError
from edgecsi.kernels.base import Cost, Kernel, Knobs
from edgecsi.kernels.variants import candidates
from edgecsi.lower.as_op import as_op
from edgecsi.lower.graph import Graph, Node, Value
from edgecsi.ops.integers import sums_fit
from edgecsi.ops.operators import Conv2d, Dense, Op
from edgecsi.target import Target


@dataclass
class Choice:
    """A node with its kernel.

    Attributes:
        why: why this kernel, in a few words. reads: the values behind the kernel's inputs, in order.
    """

    node: Node
    op: Op
    kernel: Kernel
    knobs: Knobs
    cost: Cost
    why: str
    reads: list[Value] = field(default_factory=list)


def select_kernels(graph: Graph, target: Target) -> list[Choice | Node]:
    """One choice per node; nodes without a kernel of ours (``relax``, ``transpose``) stay as they are.

    Raises:
        ToolchainError: no kernel takes a layer on this target; says why each refused.
    """
    chosen: list[Choice | Node] = []
    for node in graph.nodes:
        op = as_op(node)
        chosen.append(node if op is None else _choose(node, op, target))
    # What a fully connected layer's kernel costs depends on the caches, in which all constants live. How many bytes those
    # are is known now: such layers choose again, so that knobs, time and reason are of one choice.
    among = sum(choice.cost.bytes for choice in chosen if isinstance(choice, Choice))
    return [
        _choose(choice.node, replace(choice.op, among=among), target)
        if isinstance(choice, Choice) and isinstance(choice.op, Dense)
        else choice
        for choice in chosen
    ]


def _choose(node: Node, op: Op, target: Target) -> Choice:
    found, refused = candidates(op, target)
    if not found:
        # Those that have all but the instructions say what is missing; the others were written for other layers.
        lacking = {name: reason for name, reason in refused.items() if reason.startswith("the CPU has no ")}
        fix = "change the layer, or write a kernel: docs/how-to/add-a-kernel.md"
        if isinstance(op, Dense | Conv2d) and op.weight.dtype.kind == "i" and not sums_fit(op):
            refused = {
                f"{math.prod(op.weight.shape[1:]):,} inputs": "its sums of integers may exceed 32 bits"
            }
            fix = "keep this layer in fp32 (keep-fp32 in the recipe), or use the recipe int8-weights or f16-weights"
        elif lacking:
            fix = "build for another target, or by another recipe: f16-weights and int8-dynamic go everywhere"
        raise ToolchainError(
            f"no kernel takes {node.path or node.op} on {target.id}",
            "; ".join(f"{name}: {reason}" for name, reason in (lacking or refused).items())
            or "there is none for this operator",
            fix,
        )
    kernel, knobs, cost = found[0]
    why = "the only one" if len(found) == 1 else _why(found)
    return Choice(node, op, kernel, knobs, cost, why, list(node.reads))


def _why(found: list[tuple[Kernel, Knobs, Cost]]) -> str:
    best, second = found[0], found[1]
    return f"{best[2].seconds * 1e6:.1f} µs predicted, {second[0].name} {second[2].seconds * 1e6:.1f}"


def used_density(weight: NDArray[Any], table: NDArray[Any] | None = None) -> float:
    """Share of weights that are not zero."""
    numbers = table[weight] if table is not None else weight
    return float(np.count_nonzero(numbers)) / max(numbers.size, 1)
