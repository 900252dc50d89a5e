"""Decide how every tensor lies in memory: halos for convolutions, grouped channels for int8, slices for concatenations.

Whoever needs a special form asks for it; a copy is inserted only where two readers cannot agree or where the tensor
belongs to the caller.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from edgecsi.kernels.variants import all_kernels
from edgecsi.lower.as_op import as_op, in_rows
from edgecsi.lower.graph import Graph, Node, Value
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Conv2d
from edgecsi.target import Target

# Who can write an image into any layout, and who can read one from any.
WRITES_ANY = {"conv2d", "dense", "elementwise", "pool2d", "quantize_wide"}
READS_ANY = {"elementwise", "conv2d", "concat", "quantize_wide"}


def choose_layouts(graph: Graph, target: Target) -> None:
    """Set `layout` and `parent` of every value."""
    _own_outputs(graph)
    _write_concats_in_place(graph)
    for value in _values(graph):
        _place(graph, value, target)
    for node in graph.nodes:
        if node.op == "concat":
            _slice(graph, node)
    _tell_peaks(graph)
    for node in graph.nodes:
        if node.op == "view":
            source = node.inputs[0]
            if graph.is_output(node.output):
                source.parent = node.output
            else:
                node.output.parent, node.output.offset = source, node.attrs.get("offset", 0)
    graph.nodes = [n for n in graph.nodes if n.op not in ("view", "concat")]


def _tell_peaks(graph: Graph) -> None:
    """Where int16 convolutions follow each other, the first knows the largest magnitude that the second needs."""
    for node in graph.nodes:
        value = node.output
        readers = graph.readers(value)
        rounds = any(n.op == "conv2d" and n.inputs[0] is value and n.attrs.get("steps") for n in readers)
        finds = node.op == "conv2d" and node.attrs.get("steps") and node.y_quant is None
        alone = value.parent is None and not graph.is_output(value) and value.shape[:1] == (1,)
        if rounds and finds and alone and all(n.op in READS_ANY for n in readers):
            assert value.layout is not None
            value.layout = replace(value.layout, peak=True)


def _values(graph: Graph) -> list[Value]:
    return [*graph.inputs, *(n.output for n in graph.nodes)]


def _own_outputs(graph: Graph) -> None:
    """An output that is also an input, a constant, or another output is copied."""
    seen: list[Value] = []
    for index, value in enumerate(list(graph.outputs)):
        producer = graph.producer(value)
        root = value
        while producer is not None and producer.op == "view" and root.shape != () and _same_size(producer):
            root = producer.inputs[0]
            producer = graph.producer(root)
        shared = any(root is v for v in seen) or any(n.op == "concat" for n in graph.readers(value))
        if (
            producer is None
            or producer.op == "view"
            or shared
            or (root is not value and len(graph.readers(root)) > 1)
        ):
            copy = Value(f"{value.name}_out", value.shape, value.dtype)
            graph.nodes.append(Node("elementwise", [value], copy))
            graph.outputs[index] = copy
        seen.append(root)


def _same_size(view: Node) -> bool:
    return math.prod(view.inputs[0].shape) == math.prod(view.output.shape)


def _write_concats_in_place(graph: Graph) -> None:
    """Give every part of a concatenation a writer that can write into the whole."""
    for concat in [n for n in graph.nodes if n.op == "concat"]:
        for index, part in enumerate(concat.inputs):
            producer = graph.producer(part)
            uses = sum(v is part for n in graph.nodes if n.op == "concat" for v in n.inputs)
            plain = any(n.op not in READS_ANY for n in graph.readers(part))
            if (
                producer is None
                or producer.op not in WRITES_ANY
                or uses > 1
                or plain
                or graph.is_output(part)
            ):
                copy = Value(f"{part.name}_part", part.shape, part.dtype)
                graph.insert_before(concat, Node("elementwise", [part], copy))
                concat.inputs[index] = copy


def _place(graph: Graph, value: Value, target: Target) -> None:
    if any(n.op == "concat" and any(v is value for v in n.inputs) for n in graph.nodes):
        return  # placed with the whole
    readers = graph.readers(value)
    producer = graph.producer(value)
    parts = producer.inputs if producer is not None and producer.op == "concat" else []
    halo, group, fill = _wanted(graph, [value, *parts], target)
    if group > 1 and producer is not None and not _writes_groups(producer):
        producer = _quantize_apart(graph, producer)
    free = (
        len(value.shape) == 4
        and producer is not None
        and producer.op in WRITES_ANY | {"concat"}
        and not graph.is_output(value)
        and all(n.op in READS_ANY or _is_operand_only(n, value) for n in readers)
    )
    special = any(halo) or group > 1
    if not special or free:
        value.layout = (
            Layout(value.shape, value.dtype, halo, group, fill=fill)
            if special
            else Layout(value.shape or (1,), value.dtype)
        )
        return
    value.layout = Layout(value.shape or (1,), value.dtype)
    for source in (value, *parts):  # a convolution may read a part of a concatenation alone
        convs = [n for n in graph.readers(source) if n.op == "conv2d" and n.inputs[0] is source]
        if convs:
            copy = Value(f"{source.name}_halo", source.shape, source.dtype)
            copy.layout = Layout(source.shape, source.dtype, halo, group, fill=fill)
            graph.insert_before(convs[0], Node("elementwise", [source], copy, path=convs[0].path))
            for conv in convs:
                conv.inputs[0] = copy


def _writes_groups(node: Node) -> bool:
    """fp32 layers store one channel after the other; int8 convolutions and copies also store channels side by side."""
    return node.op in ("elementwise", "quantize_wide", "concat") or (
        node.op == "conv2d" and node.attrs.get("x_quant") is not None
    )


def _quantize_apart(graph: Graph, node: Node) -> Node:
    """Let `node` store fp32, or a view its codes as they lie, and a copy behind it the codes in groups; returns the
    copy."""
    value = node.output
    plain = Value(f"{value.name}_plain", value.shape, "float32" if node.y_quant is not None else value.dtype)
    plain.layout = Layout(plain.shape, plain.dtype)
    copy = Node("elementwise", [plain], value, path=node.path, y_quant=node.y_quant)
    node.output, node.y_quant = plain, None
    graph.insert_after(node, copy)
    return copy


def _is_operand_only(node: Node, value: Value) -> bool:
    return all(v is not value for v in node.inputs) and not in_rows(node)


def _wanted(
    graph: Graph, values: list[Value], target: Target
) -> tuple[tuple[int, int, int, int], int, float | tuple[float, ...]]:
    """Halo, group and fill that the convolutions among the readers ask for."""
    halo = np.zeros(4, int)
    fill: float | tuple[float, ...] = 0
    quantised = []
    for value in values:
        for node in graph.readers(value):
            if node.op != "conv2d" or node.inputs[0] is not value:
                continue
            halo = np.maximum(halo, node.attrs["padding"])
            fill = node.attrs.get("fill", 0)
            if value.dtype == "uint8":
                quantised.append(as_op(node))
    top, bottom, left, right = (int(h) for h in halo)
    # With a number for every channel a row's right halo, which is in the row below, is not the next channel's.
    wide = (top, bottom + (isinstance(fill, tuple) and left + right > 0), left, right)
    return wide, _group([op for op in quantised if isinstance(op, Conv2d)], wide, target), fill


def _group(convolutions: list[Conv2d], halo: tuple[int, int, int, int], target: Target) -> int:
    """The channel grouping with which all these convolutions together are predicted to be fastest."""
    if not convolutions:
        return 1
    kernels = [k for k in all_kernels().values() if k.op is Conv2d]
    totals = {}
    for group in sorted({k.x_group(op, target) for k in kernels for op in convolutions}):
        total = 0.0
        for op in convolutions:
            shaped = replace(op, x=Layout(op.x.shape, op.x.dtype, halo, group, fill=op.x.fill))
            costs = [
                k.cost(shaped, target, k.knobs(shaped, target)).seconds
                for k in kernels
                if not k.refuses(shaped, target)
            ]
            total += min(costs, default=float("inf"))
        totals[group] = total
    return min(totals, key=lambda g: totals[g])


def _slice(graph: Graph, concat: Node) -> None:
    """Make the parts of a concatenation slices of the whole.

    Grouped channels cannot straddle two parts, so a part is filled up to whole groups, and the weights of those who
    read the whole get zeros for the channels that nobody wrote.
    """
    whole = concat.output
    layout = whole.layout
    assert layout is not None
    group = layout.group
    counts = [part.shape[1] for part in concat.inputs]
    stored = [-(-count // group) * group for count in counts]
    if stored != counts:
        shape = (whole.shape[0], sum(stored), *whole.shape[2:])
        for node in graph.readers(whole):
            weight = node.attrs["weight"]
            wide = np.zeros((weight.shape[0], sum(stored), *weight.shape[2:]), weight.dtype)
            at = first = 0
            for count, room in zip(counts, stored, strict=True):
                wide[:, at : at + count] = weight[:, first : first + count]
                at, first = at + room, first + count
            node.attrs["weight"] = wide
        layout = Layout(shape, layout.dtype, layout.halo, group, fill=layout.fill)
        whole.shape, whole.layout = shape, layout
    first = 0
    for part, room in zip(concat.inputs, stored, strict=True):
        part.parent, part.offset = whole, first * layout.rows * layout.pitch
        fill = layout.fill[first : first + room] if isinstance(layout.fill, tuple) else layout.fill
        part.layout = Layout(part.shape, part.dtype, layout.halo, group, layout.stride, fill)
        first += room
