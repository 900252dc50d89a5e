"""Quantised convolutions that no int8 kernel takes (strides, groups, tiny images) run on the fp32 kernels, exactly.

Codes and int8 weights are small integers, so an fp32 sum of their products has no rounding as long as it stays below
2^24: the fp32 convolution of the integers is the int32 one.
"""

from __future__ import annotations

import numpy as np

from edgecsi.errors import ToolchainError
from edgecsi.lower.as_op import as_op
from edgecsi.lower.graph import Fused, Graph, Node, Value, constant
from edgecsi.lower.leave_to_tvm import has_kernel
from edgecsi.ops.integers import EXACT
from edgecsi.ops.operators import Conv2d
from edgecsi.ops.steps import Step
from edgecsi.target import Target


def integers_in_fp32(graph: Graph, target: Target) -> None:
    """Rewrite the quantised convolutions that every int8 kernel of the target refuses.

    Raises:
        ToolchainError: the sums of such a convolution may leave the range of exact fp32 integers.
    """
    for node in [n for n in graph.nodes if n.op == "conv2d" and n.attrs.get("x_quant") is not None]:
        op = as_op(node)
        if isinstance(op, Conv2d) and not has_kernel(op, target):
            _rewrite(graph, node)


def _rewrite(graph: Graph, node: Node) -> None:
    quant, weight, bias = node.attrs["x_quant"], node.attrs["weight"], node.attrs["bias"]
    if (fine := node.attrs.pop("fine", 1)) > 1:
        weight = np.concatenate([weight.astype(np.int64) * fine, weight], 1)
    largest = 255 * int(np.abs(weight.astype(np.int64)).sum((1, 2, 3)).max())
    largest += 0 if bias is None else int(np.abs(bias.astype(np.int64)).max())
    if largest >= EXACT:
        raise ToolchainError(
            f"no kernel takes the quantised convolution {node.path}",
            f"no int8 kernel has its stride, groups or size, and its sums (up to {largest}) do not fit fp32",
            "keep this layer in fp32 (keep-fp32 in the recipe)",
        )
    codes = node.inputs[0]
    integers = Value(f"{codes.name}_integers", codes.shape)
    shift = Fused(Step("affine", (1.0, float(-quant.zero_point))))
    graph.insert_before(node, Node("elementwise", [codes], integers, path=node.path, epilogue=[shift]))
    scale = np.float32(quant.scale) * node.attrs["scale"].astype(np.float32)
    steps = [Fused(Step("scale_channels", constants=(scale,)))]
    if bias is not None and bias.ndim == 3:
        full = np.broadcast_to(bias, node.output.shape).astype(np.float32)
        steps.insert(0, Fused(Step("add"), constant(f"{node.path}.bias", full)))
        bias = None
    node.inputs[0] = integers
    node.epilogue = steps + node.epilogue
    node.attrs |= {
        "weight": weight.astype(np.float32), "bias": None if bias is None else bias.astype(np.float32),
        "fill": node.attrs["fill"] - quant.zero_point,
    }  # fmt: skip
    del node.attrs["scale"], node.attrs["x_quant"]
