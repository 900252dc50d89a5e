"""Give every node the kernel that is predicted to be fastest for its weights, zeros and target."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.errors import ToolchainError
from edgecsi.kernels.base import Kernel, Knobs, candidates
from edgecsi.lower.graph import Graph, Node, Value
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import (
    Conv2d,
    Cost,
    Dense,
    Elementwise,
    LayerNorm,
    MatMul,
    Op,
    Pool2d,
    QuantizeWide,
    Softmax,
    Step,
)
from edgecsi.target import Target

# Attributes of a node that its operator takes as they are.
CONV2D = ("weight", "bias", "padding", "stride", "dilation", "groups", "scale", "x_quant", "fine")
DENSE = ("weight", "bias", "scale", "x_quant", "fine", "dynamic", "table")


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
        if op is None:
            chosen.append(node)
            continue
        found, refused = candidates(op, target)
        if not found:
            reasons = "; ".join(f"{k}: {r}" for k, r in refused.items()) or "there is none for this operator"
            raise ToolchainError(
                f"no kernel takes {node.path or node.op} on {target.id}",
                reasons,
                "change the layer, or write a kernel: docs/how-to/add-a-kernel.md",
            )
        kernel, knobs, cost = found[0]
        why = "the only one" if len(found) == 1 else _why(found)
        chosen.append(Choice(node, op, kernel, knobs, cost, why, list(node.reads)))
    _share_caches([c for c in chosen if isinstance(c, Choice)], target)
    return chosen


def _share_caches(chosen: list[Choice], target: Target) -> None:
    """Tell the fully connected layers how many bytes are read beside theirs: their knobs depend on the cache that all
    of them live in."""
    among = sum(choice.cost.bytes for choice in chosen)
    for choice in chosen:
        if isinstance(choice.op, Dense):
            choice.op = replace(choice.op, among=among)
            choice.knobs = choice.kernel.knobs(choice.op, target)


def _why(found: list[tuple[Kernel, Knobs, Cost]]) -> str:
    best, second = found[0], found[1]
    return f"{best[2].seconds * 1e6:.1f} µs predicted, {second[0].name} {second[2].seconds * 1e6:.1f}"


def as_op(node: Node) -> Op | None:
    """The operator of a node, with layouts; None if no kernel of ours could be meant."""
    epilogue = tuple(
        replace(f.step, operand=_layout(f.operand, node)) if f.operand is not None else f.step
        for f in node.epilogue
    )
    common: dict[str, Any] = {
        "name": node.path or node.output.name, "epilogue": epilogue, "y_quant": node.y_quant,
    }  # fmt: skip
    a = node.attrs
    y = _own(node.output)
    match node.op:
        case "conv2d":
            return Conv2d(x=_own(node.inputs[0]), y=y, **common, **{k: a[k] for k in CONV2D if k in a})
        case "dense":
            x = _rows(node.inputs[0], a["weight"].shape[1])
            if not a.get("image"):
                y = _rows(node.output, a["weight"].shape[0])
            return Dense(x=x, y=y, **common, **{k: a[k] for k in DENSE if k in a})
        case "matmul":
            b = _own(node.inputs[1])
            return MatMul(x=_own(node.inputs[0]), b=b, y=y, **common)
        case "softmax":
            return Softmax(x=_own(node.inputs[0]), y=y, **common)
        case "layer_norm":
            return LayerNorm(x=_own(node.inputs[0]), y=y, **common, **a)
        case "pool2d":
            return Pool2d(x=_own(node.inputs[0]), y=y, **common, **a)
        case "elementwise":
            x = _own(node.inputs[0])
            if any(s.constants for s in epilogue) and len(y.shape) != 4:
                x, y = _rows(node.inputs[0], y.shape[-1]), _rows(node.output, y.shape[-1])
            return Elementwise(x=x, y=y, **common)
        case "quantize_wide":
            return QuantizeWide(x=_own(node.inputs[0]), y=y, **common, **a)
    return None


def _own(value: Value) -> Layout:
    return value.layout or Layout(value.shape, value.dtype)


def _rows(value: Value, width: int) -> Layout:
    """A plain tensor seen as rows of `width`."""
    rows = int(np.prod(value.shape, dtype=np.int64)) // width
    return Layout((rows, width), value.dtype)


def _layout(operand: Value, node: Node) -> Layout:
    """How the node sees the other tensor of a binary step: a plain one in the shape of its own output."""
    own = _own(operand)
    if len(own.shape) == 4 and len(node.output.shape) == 4:
        return own
    rows = node.op == "dense" or any(f.step.constants for f in node.epilogue)
    return _rows(operand, node.output.shape[-1]) if rows else Layout(node.output.shape, operand.dtype)


def used_density(weight: NDArray[Any], table: NDArray[Any] | None = None) -> float:
    """Share of weights that are not zero."""
    numbers = table[weight] if table is not None else weight
    return float(np.count_nonzero(numbers)) / max(numbers.size, 1)


__all__ = ["Choice", "Step", "as_op", "select_kernels", "used_density"]
