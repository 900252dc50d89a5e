"""Drop PyTorch's guard around attention: ``where(every score of a row is -inf, 0, softmax(scores))``.

Scores that are products of activations are finite, so the guard never acts, and it costs more than the softmax.
"""

from __future__ import annotations

import numpy as np

from edgecsi.lower.graph import Graph, Node, Value


def drop_softmax_guard(graph: Graph) -> None:
    """Read the softmax where the guarded softmax was read, if no mask with -inf was added to the scores."""
    for node in list(graph.nodes):
        if node.op != "relax" or node.attrs["name"] != "where":
            continue
        softmax = graph.producer(node.inputs[-1])
        if softmax is None or softmax.op != "softmax" or not _tests_for_infinity(graph, node.inputs[0]):
            continue
        if _finite(graph, softmax.inputs[0]):
            graph.forward(node.output, softmax.output)
            graph.drop(node)
    graph.remove_dead()


def _tests_for_infinity(graph: Graph, condition: Value) -> bool:
    """not(any(not(scores == -inf)))"""
    value = condition
    constants: list[Value] = []
    for expected in ("logical_not", "astype", "max", "astype", "logical_not", "equal"):
        node = graph.producer(value)
        if node is None or node.op != "relax" or node.attrs["name"] != expected:
            return False
        value, constants = node.inputs[0], node.inputs[1:]
    limit = constants[0].data
    return limit is not None and bool(np.isneginf(limit).all())


def _finite(graph: Graph, value: Value) -> bool:
    """True for a product of activations, also scaled, shifted by finite constants, or viewed."""
    node: Node | None = graph.producer(value)
    while node is not None and node.op in ("view", "mul", "add"):
        constants = [v.data for v in node.inputs[1:] if v.data is not None]
        if len(constants) != len(node.inputs) - 1 or not all(np.isfinite(c).all() for c in constants):
            return False
        node = graph.producer(node.inputs[0])
    return node is not None and node.op == "matmul"
