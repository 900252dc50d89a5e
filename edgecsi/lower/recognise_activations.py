"""Activations that PyTorch's exporter spells out become one step again: ``where(x > 0, x, x * slope)`` is a PReLU."""

from __future__ import annotations

import math

import numpy as np

from edgecsi.lower.graph import Graph, Value


def recognise_activations(graph: Graph) -> None:
    """Replace spelled-out PReLU and leaky ReLU."""
    for node in graph.nodes:
        if node.op != "relax" or node.attrs["name"] != "where" or len(node.inputs) != 3:
            continue
        condition, x, scaled = node.inputs
        test, product = graph.producer(condition), graph.producer(scaled)
        if test is None or test.op != "relax" or test.attrs["name"] not in ("greater", "greater_equal"):
            continue
        limit = test.inputs[1].data
        if test.inputs[0] is not x or limit is None or np.any(limit != 0):
            continue
        if product is None or product.op != "mul" or not any(v is x for v in product.inputs):
            continue
        slope = next((v for v in product.inputs if v is not x), None)
        if slope is not None and slope.data is not None and _per_channel(slope, x):
            node.op, node.inputs = "prelu", [x, slope]
    graph.remove_dead()


def _per_channel(slope: Value, x: Value) -> bool:
    """One slope, or one for each channel: axis 1 of images, the last axis of rows."""
    if math.prod(slope.shape) == 1:
        return True
    axis = 1 if len(x.shape) == 4 else len(x.shape) - 1
    padded = (1,) * (len(x.shape) - len(slope.shape)) + slope.shape
    return all(n == (x.shape[axis] if i == axis else 1) for i, n in enumerate(padded))
