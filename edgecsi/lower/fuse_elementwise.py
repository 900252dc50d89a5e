"""Elementwise operations become the epilogue of the layer before them; what is left becomes one pass over the data.

Batch normalisation, scaling and shifting go into the weights themselves.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.lower.graph import Fused, Graph, Node, Value
from edgecsi.ops.operators import Step

UNARY = {
    "leaky_relu", "relu", "relu6", "sigmoid", "tanh", "gelu", "silu", "exp", "sqrt", "rsqrt", "abs", "neg", "clip",
}  # fmt: skip
BINARY = {"add", "sub", "mul", "div", "max", "min"}
HOSTS = {"conv2d", "dense", "matmul", "layer_norm", "elementwise"}


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
        return node.inputs[0], []
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
        big = float(np.finfo(np.float32).max)
        return [Fused(Step("clip", (limit, big) if op == "max" else (-big, limit)))]
    if op == "div" and swapped:
        return None
    if op == "div":
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
        return [
            Fused(Step("mul"), _full(Value(c.name, c.shape, c.dtype, (1 / data).astype(np.float32)), shape))
        ]
    return [Fused(Step("rsub" if op == "sub" and swapped else op), _full(c, shape))]


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


def fuse_elementwise(graph: Graph) -> None:
    """Fuse until nothing changes: into weights, into epilogues, through views and concatenations."""
    changed = True
    while changed:
        changed = False
        for node in list(graph.nodes):
            if node.op != "elementwise" or not any(n is node for n in graph.nodes):
                continue
            if _through_view(graph, node) or _over_concat(graph, node) or _into_producer(graph, node):
                changed = True
    graph.remove_dead()


def _into_producer(graph: Graph, node: Node) -> bool:
    """Append `node` to the epilogue of the node that computes its (latest) input."""
    order = {id(n.output): i for i, n in enumerate(graph.nodes)}
    choices = [(node.inputs[0], False)]
    first = node.epilogue[0] if node.epilogue else None
    commutes = (
        first is not None and first.operand is not None and first.step.op in ("add", "mul", "max", "min")
    )
    if (
        commutes
        and first is not None
        and first.operand is not None
        and first.operand.shape == node.inputs[0].shape
    ):
        choices.append((first.operand, True))
    choices.sort(key=lambda c: order.get(id(c[0]), -1), reverse=True)
    for value, swapped in choices:
        producer = graph.producer(value)
        if producer is None or producer.op not in HOSTS or producer.y_quant is not None:
            continue
        if graph.only_reader(value) is not node or value.shape != node.output.shape:
            continue
        if swapped:
            assert first is not None
            first.operand, node.inputs[0] = node.inputs[0], value
        late = [_viewed(graph, f.operand) for f in node.epilogue if f.operand is not None]
        if any(order.get(id(v), -1) > order[id(value)] for v in late):
            continue
        for fused in node.epilogue:
            if not _into_weights(producer, fused):
                producer.epilogue.append(fused)
        producer.y_quant = node.y_quant
        producer.output = node.output
        graph.drop(node)
        return True
    return False


def _viewed(graph: Graph, value: Value) -> Value:
    """What `value` is a view of: views take no time, only what they show has to be there."""
    producer = graph.producer(value)
    while producer is not None and producer.op == "view":
        value = producer.inputs[0]
        producer = graph.producer(value)
    return value


def _into_weights(layer: Node, fused: Fused) -> bool:
    """Fold a scale and shift directly behind a layer with fp32 weights into the weights and the bias."""
    if layer.op not in ("conv2d", "dense") or layer.epilogue or layer.attrs.get("table") is not None:
        return False
    weight, bias = layer.attrs["weight"], layer.attrs["bias"]
    outputs = weight.shape[0]
    if fused.step.op == "affine":
        scale, shift = (np.full(outputs, v, np.float64) for v in fused.step.params)
    elif fused.step.op == "scale_channels":
        scale, shift = np.asarray(fused.step.constants[0], np.float64), np.zeros(outputs)
    elif fused.step.op == "shift_channels":
        scale, shift = np.ones(outputs), np.asarray(fused.step.constants[0], np.float64)
    else:
        return False
    plain = layer.attrs.get("scale") is None
    if not plain and (layer.attrs.get("x_quant") is not None or not np.all(scale == 1)):
        return False  # quantised layers: sums are integers, the shift would have to be rounded
    if not plain and layer.attrs.get("dynamic") and bias is not None:
        return False  # the simulation adds twice, so must we
    if plain:
        layer.attrs["weight"] = (weight * scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
    old = np.zeros(outputs) if bias is None else bias.astype(np.float64)
    layer.attrs["bias"] = (old * scale + shift).astype(np.float32)
    return True


def _through_view(graph: Graph, node: Node) -> bool:
    """elementwise(view(x)) becomes view(elementwise(x)), so that it reaches the layer that computes x."""
    view = graph.producer(node.inputs[0])
    if view is None or view.op != "view" or graph.only_reader(view.output) is not node:
        first = node.epilogue[0] if node.epilogue else None
        if first is None or first.operand is None or first.step.op not in ("add", "mul", "max", "min"):
            return False
        view = graph.producer(first.operand)
        if view is None or view.op != "view" or graph.only_reader(view.output) is not node:
            return False
        if first.operand.shape != node.inputs[0].shape or not _hosted(graph, view.inputs[0]):
            return False
        node.inputs[0], first.operand = first.operand, node.inputs[0]
    inner = view.inputs[0]
    if inner.data is not None or graph.producer(inner) is None or node.output.shape != view.output.shape:
        return False
    if math.prod(inner.shape) != math.prod(view.output.shape):
        return False
    outer = node.output.shape
    rows = len(inner.shape) != 4 and len(outer) != 4 and inner.shape[-1] == outer[-1]
    for fused in node.epilogue:
        if fused.step.constants and not rows:
            return False
        if fused.operand is not None and fused.operand.shape != outer:
            return False
    for fused in node.epilogue:
        if fused.operand is not None:
            old = fused.operand
            seen = Value(
                f"{old.name}_view",
                inner.shape,
                old.dtype,
                None if old.data is None else old.data.reshape(inner.shape),
            )
            if old.data is None:
                graph.insert_early(Node("view", [old], seen))
            fused.operand = seen
    result = node.output
    node.inputs[0], node.output = inner, Value(f"{result.name}_flat", inner.shape, result.dtype)
    graph.drop(view)
    graph.insert_after(node, Node("view", [node.output], result))
    return True


def _hosted(graph: Graph, value: Value) -> bool:
    """True if the node that computes `value` can take an epilogue and nobody else reads it."""
    producer = graph.producer(value)
    return producer is not None and producer.op in HOSTS and graph.only_reader(value) is not None


def _over_concat(graph: Graph, node: Node) -> bool:
    """f(concat(a, b)) becomes concat(f(a), f(b)): each part is written once, finished, in its place."""
    concat = graph.producer(node.inputs[0])
    if concat is None or concat.op != "concat" or graph.only_reader(concat.output) is not node:
        return False
    if any(f.operand is not None for f in node.epilogue):
        return False
    first, parts = 0, []
    for index, part in enumerate(concat.inputs):
        count = part.shape[1]
        steps = [
            Fused(
                Step(
                    f.step.op, f.step.params, None, tuple(c[first : first + count] for c in f.step.constants)
                )
            )
            for f in node.epilogue
        ]
        output = Value(f"{node.output.name}_{index}", part.shape, node.output.dtype)
        graph.insert_before(concat, Node("elementwise", [part], output, epilogue=steps, y_quant=node.y_quant))
        parts.append(output)
        first += count
    concat.inputs, concat.output = parts, node.output
    graph.drop(node)
    return True


def merge_views(graph: Graph) -> None:
    """Views of views become one; views that change nothing go; a layer writes the viewed shape itself."""
    changed = True
    while changed:
        changed = False
        for view in [n for n in graph.nodes if n.op == "view"]:
            if not any(n is view for n in graph.nodes):
                continue
            source = view.inputs[0]
            producer = graph.producer(source)
            if producer is not None and producer.op == "view":
                view.inputs[0] = producer.inputs[0]
                view.attrs["offset"] = view.attrs.get("offset", 0) + producer.attrs.get("offset", 0)
                changed = True
            elif source.shape == view.output.shape and not graph.is_output(view.output):
                graph.forward(view.output, source)
                graph.drop(view)
                changed = True
            elif (
                producer is not None
                and producer.op == "dense"
                and len(view.output.shape) == 4
                and len(source.shape) == 2
                and view.output.shape[0] == source.shape[0]
                and graph.only_reader(source) is view
                and all(f.operand is None for f in producer.epilogue)
                and not any(f.step.constants for f in producer.epilogue)
            ):
                producer.output = view.output
                producer.attrs["image"] = True  # its outputs are written as an image, whatever their number
                graph.drop(view)
                changed = True
        graph.remove_dead()
