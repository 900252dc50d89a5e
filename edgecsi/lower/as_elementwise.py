"""Activations, batch normalisation and arithmetic get one form: ``elementwise`` with an epilogue of one step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.lower.graph import Fused, Graph, Node, Value
from edgecsi.ops.steps import Step

UNARY = {
    "leaky_relu", "relu", "relu6", "sigmoid", "tanh", "gelu", "silu", "exp", "sqrt", "rsqrt", "abs", "neg", "clip",
}  # fmt: skip
BINARY = {"add", "sub", "mul", "div", "max", "min"}


def as_elementwise(graph: Graph) -> None:
    """Give every elementwise node one form: ``elementwise`` with a single epilogue step."""
    for node in graph.nodes:
        fused = _as_step(node)
        if fused is None:
            continue
        source, step = fused
        node.op, node.inputs, node.epilogue = "elementwise", [source], step
        node.y_quant = node.attrs.get("quant")
        node.attrs = {}
    for node in graph.nodes:
        if node.op in BINARY | UNARY | {
            "prelu",
            "batch_norm",
        }:  # an unusual broadcast: TVM's definition serves
            node.attrs |= {"name": node.op, "index": 0 if node.op == "batch_norm" else None}
            node.op = "relax"


def _as_step(node: Node) -> tuple[Value, list[Fused]] | None:
    shape = node.output.shape
    if node.op == "quantize":
        shift = node.attrs.get("shift", np.zeros(0, np.float32))
        return node.inputs[0], [Fused(Step("shift_channels", constants=(shift,)))] if shift.size else []
    if node.output.dtype != "float32":
        return None
    if node.op in UNARY:
        return node.inputs[0], [Fused(Step(node.op, node.attrs.get("params", ())))]
    if node.op == "prelu":
        slope = node.inputs[1].data
        if slope is None:
            return None
        slope = (
            np.broadcast_to(slope.reshape(-1), (_channels(shape),)) if slope.size == 1 else slope.reshape(-1)
        )
        return node.inputs[0], [Fused(Step("prelu", constants=(np.ascontiguousarray(slope, np.float32),)))]
    if node.op == "batch_norm":
        x, gamma, beta, mean, variance = node.inputs
        arrays = [v.data for v in (gamma, beta, mean, variance)]
        if any(a is None for a in arrays):
            return None
        weight, bias, average, spread = (np.asarray(a, np.float64) for a in arrays)
        scale = weight / np.sqrt(spread + node.attrs["eps"])
        return x, _per_channel_steps(scale, bias - average * scale)
    if node.op not in BINARY:
        return None
    a, b = node.inputs
    if a.data is not None and b.data is not None:
        return None
    if b.data is not None:
        found = _with_constant(node.op, a, b, shape, swapped=False)
        return (a, found) if found else None
    if a.data is not None:
        found = _with_constant(node.op, b, a, shape, swapped=True)
        return (b, found) if found else None
    if node.op == "div":
        return None
    if a.shape == shape and (b.shape == shape or _is_gate(b.shape, shape)):
        return a, [Fused(Step(node.op), b)]
    if b.shape == shape and _is_gate(a.shape, shape):
        return b, [Fused(Step("rsub" if node.op == "sub" else node.op), a)]
    return None


def _with_constant(op: str, x: Value, c: Value, shape: tuple[int, ...], swapped: bool) -> list[Fused] | None:
    assert c.data is not None
    data = c.data.astype(np.float64)
    if x.shape != shape:
        return None
    if op in ("max", "min"):
        if data.size != 1:
            return [Fused(Step(op), _full(c, shape))]
        limit = float(data.reshape(-1)[0])
        return [Fused(Step("clip", (limit, math.inf) if op == "max" else (-math.inf, limit)))]
    if op == "div" and swapped:
        return None
    if op == "div":
        with np.errstate(divide="ignore"):
            data = 1 / data
    scale = data if op in ("mul", "div") else np.asarray(-1.0 if op == "sub" and swapped else 1.0)
    shift = {"add": data, "sub": data if swapped else -data}.get(op, np.asarray(0.0))
    if data.size == 1:
        return [Fused(Step("affine", (float(scale.reshape(-1)[0]), float(shift.reshape(-1)[0]))))]
    channels = _channels(shape)
    if _per_channel(data.shape, shape):
        return _per_channel_steps(
            np.broadcast_to(scale.reshape(-1), channels), np.broadcast_to(shift.reshape(-1), channels)
        )
    if op == "div":
        return [Fused(Step("mul"), _full(Value(c.name, c.shape, c.dtype, _single(data)), shape))]
    return [Fused(Step("rsub" if op == "sub" and swapped else op), _full(c, shape))]


def _single(data: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.asarray(data, np.float32)


def _full(c: Value, shape: tuple[int, ...]) -> Value:
    assert c.data is not None
    data = np.ascontiguousarray(np.broadcast_to(c.data, shape), np.float32)
    return Value(c.name, shape, "float32", data)


def _per_channel_steps(scale: NDArray[Any], shift: NDArray[Any]) -> list[Fused]:
    """A scale and a shift, or one of them if the other changes nothing."""
    scaled = Fused(Step("scale_channels", constants=(np.ascontiguousarray(scale, np.float32),)))
    shifted = Fused(Step("shift_channels", constants=(np.ascontiguousarray(shift, np.float32),)))
    if not np.any(shift):
        return [scaled]
    return [scaled, shifted] if np.any(scale != 1) else [shifted]


def _channels(shape: tuple[int, ...]) -> int:
    """Length of the axis that per-channel constants run over: 1 for images, the last one otherwise."""
    return shape[1] if len(shape) == 4 else shape[-1]


def _per_channel(constant: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    padded = (1,) * (len(shape) - len(constant)) + constant
    axis = 1 if len(shape) == 4 else len(shape) - 1
    return all(n == (shape[axis] if i == axis else 1) for i, n in enumerate(padded))


def _is_gate(gate: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if len(shape) != 4 or len(gate) != 4:
        return False
    return gate in ((shape[0], shape[1], 1, 1), (shape[0], 1, *shape[2:]))
