"""Compute at build time what depends on constants only: transposed weights, scaled tables, expanded masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.lower.graph import Graph, constant

_BINARY: dict[str, Callable[..., NDArray[Any]]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum,
}  # fmt: skip
_UNARY: dict[str, Callable[..., NDArray[Any]]] = {
    "exp": np.exp, "sqrt": np.sqrt, "neg": np.negative, "abs": np.abs, "tanh": np.tanh,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}  # fmt: skip


def fold_constants(graph: Graph) -> None:
    """Replace nodes whose inputs are all constant by constants."""
    for node in list(graph.nodes):
        if node.op == "relax" and node.attrs["name"] == "full_like":
            node.inputs, node.attrs["name"] = node.inputs[1:], "full"
        if not node.inputs or any(v.data is None for v in node.inputs):
            continue
        arrays = [v.data for v in node.inputs]
        x = arrays[0]
        assert x is not None
        if node.op == "view":
            first = node.attrs.get("offset", 0)
            result = x.reshape(-1)[first : first + math.prod(node.output.shape)].reshape(node.output.shape)
        elif node.op == "transpose":
            result = x.transpose(node.attrs["axes"])
        elif node.op in _UNARY:
            result = _UNARY[node.op](x)
        elif node.op in _BINARY and len(arrays) == 2:
            result = _BINARY[node.op](x, arrays[1])
        elif node.op == "relax" and node.attrs["name"] in ("broadcast_to", "full"):
            result = np.broadcast_to(x, node.output.shape)
        elif node.op == "relax" and node.attrs["name"] == "astype":
            result = x.astype(node.output.dtype)
        else:
            continue
        folded = constant(node.inputs[0].name, np.asarray(result, node.output.dtype))
        graph.forward(node.output, folded)
        graph.drop(node)
    graph.remove_dead()
