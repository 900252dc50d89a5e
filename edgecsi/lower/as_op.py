"""The operator that a node of the graph means, as kernels take it: `edgecsi.ops.operators`, with layouts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgecsi.lower.graph import Node, Value
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import (
    Conv2d,
    Dense,
    Elementwise,
    LayerNorm,
    MatMul,
    Op,
    Pool2d,
    QuantizeWide,
    Softmax,
)

# Attributes of a node that its operator takes as they are.
CONV2D = ("weight", "bias", "padding", "stride", "dilation", "groups", "scale", "x_quant", "fine", "steps")
POOL2D = ("kind", "window", "stride", "padding", "count_include_pad")
DENSE = ("weight", "bias", "scale", "x_quant", "fine", "dynamic", "steps", "table")


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
            return Pool2d(x=_own(node.inputs[0]), y=y, **common, **{k: a[k] for k in POOL2D})
        case "elementwise":
            x = _own(node.inputs[0])
            if any(s.constants for s in epilogue) and len(y.shape) != 4:
                x, y = _rows(node.inputs[0], y.shape[-1]), _rows(node.output, y.shape[-1])
            return Elementwise(x=x, y=y, **common)
        case "quantize_wide":
            return QuantizeWide(x=_own(node.inputs[0]), y=y, **common, **a)
    return None


def in_rows(node: Node) -> bool:
    """Whether a node sees all its tensors as rows, whatever their shape: a dense layer that writes no image."""
    return node.op == "dense" and not node.attrs.get("image")


def _own(value: Value) -> Layout:
    """Where a value lies; a single number is a row of one."""
    return value.layout if value.layout and value.layout.shape else Layout(value.shape or (1,), value.dtype)


def _rows(value: Value, width: int) -> Layout:
    """A plain tensor seen as rows of `width`."""
    rows = int(np.prod(value.shape, dtype=np.int64)) // width
    return Layout((rows, width), value.dtype)


def _layout(operand: Value, node: Node) -> Layout:
    """How the node sees the other tensor of a binary step: a plain one in the shape of its own output."""
    own = _own(operand)
    if len(own.shape) == 4 and len(node.output.shape) == 4 and not in_rows(node):
        return own
    rows = node.op == "dense" or any(f.step.constants for f in node.epilogue)
    return _rows(operand, node.output.shape[-1]) if rows else Layout(node.output.shape or (1,), operand.dtype)
