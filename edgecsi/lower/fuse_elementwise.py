"""Elementwise operations become the epilogue of the layer before them; what is left becomes one pass over the data.

Batch normalisation, scaling and shifting go into the weights themselves.
"""

from __future__ import annotations

import math

import numpy as np

from edgecsi.lower.as_op import in_rows
from edgecsi.lower.graph import Fused, Graph, Node, Value
from edgecsi.ops.operators import Half
from edgecsi.ops.steps import Step

# Layers that take an epilogue.
HOSTS = {"conv2d", "dense", "matmul", "layer_norm", "elementwise"}
# And those that can store what it quantises; a layer normalisation stores half precision too.
_QUANTISE = {"conv2d", "dense", "elementwise"}


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
        halved = producer.op == "layer_norm" and isinstance(node.y_quant, Half)
        if node.y_quant is not None and producer.op not in _QUANTISE and not halved:
            continue
        if not _counts_channels(producer) and any(f.step.constants for f in node.epilogue):
            continue
        gates = [f.operand for f in node.epilogue if f.operand is not None and not (swapped and f is first)]
        if in_rows(producer) and any(v.shape != node.output.shape for v in gates):
            continue  # a gate over an image is none over rows
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
        for fused in node.epilogue:
            _show_early(graph, fused.operand)
        return True
    return False


def _counts_channels(node: Node) -> bool:
    """Whether the axis that constants per channel run over is the one that the node computes side by side.

    That is axis 1 of images and the last axis of all else; a dense layer or a layer normalisation on images has its
    outputs along the last axis too.
    """
    if node.op in ("dense", "layer_norm"):
        return len(node.output.shape) != 4 or (node.op == "dense" and bool(node.attrs.get("image")))
    return node.op != "matmul"


def _viewed(graph: Graph, value: Value) -> Value:
    """What `value` is a view of: views take no time, only what they show has to be there."""
    producer = graph.producer(value)
    while producer is not None and producer.op == "view":
        value = producer.inputs[0]
        producer = graph.producer(value)
    return value


def _show_early(graph: Graph, value: Value | None) -> None:
    """Move the views that `value` is made of to where what they show is there: its reader moved up."""
    view = None if value is None else graph.producer(value)
    if view is not None and view.op == "view":
        _show_early(graph, view.inputs[0])
        graph.drop(view)
        graph.insert_early(view)


def _into_weights(layer: Node, fused: Fused) -> bool:
    """Fold a scale and shift directly behind a layer with fp32 weights into the weights and the bias."""
    if layer.op not in ("conv2d", "dense") or layer.epilogue or layer.attrs.get("table") is not None:
        return False
    weight, bias = layer.attrs["weight"], layer.attrs["bias"]
    outputs = weight.shape[0]
    if fused.step.op == "affine":
        scale, shift = (np.full(outputs, v, np.float64) for v in fused.step.params)
    elif fused.step.op in ("scale_channels", "shift_channels"):
        # a dense layer that writes an image has one output for every pixel of a channel
        numbers = np.repeat(
            fused.step.constants[0].astype(np.float64), outputs // len(fused.step.constants[0])
        )
        scales = fused.step.op == "scale_channels"
        scale, shift = (numbers, np.zeros(outputs)) if scales else (np.ones(outputs), numbers)
    else:
        return False
    plain = layer.attrs.get("scale") is None
    if not plain and (layer.attrs.get("x_quant") is not None or not np.all(scale == 1)):
        return False  # quantised layers: sums are integers, the shift would have to be rounded
    twice = layer.attrs.get("dynamic") or layer.attrs.get("steps") or weight.dtype == np.float16
    if not plain and twice and bias is not None:
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
        order = {id(n.output): i for i, n in enumerate(graph.nodes)}
        if order[id(view.inputs[0])] < order.get(id(_viewed(graph, node.inputs[0])), -1):
            return False  # the later of the two takes it; without this rule they would pass it to and fro
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
