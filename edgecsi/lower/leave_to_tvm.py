"""What no kernel takes in the form the passes gave it: first without its epilogue, then by TVM's own definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgecsi.kernels.variants import all_kernels
from edgecsi.lower.as_op import as_op
from edgecsi.lower.fallback import merge_generic
from edgecsi.lower.graph import Graph, Node, Value
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Conv2d, Op
from edgecsi.ops.steps import Step
from edgecsi.target import Target

# Steps with a constant per channel that are also steps with a second tensor.
WITH_TENSOR = {"scale_channels": "mul", "shift_channels": "add"}


def leave_to_tvm(graph: Graph, target: Target) -> None:
    """Rewrite the nodes that every kernel of the target refuses."""
    for node in list(graph.nodes):
        if has_kernel(as_op(node), target):
            continue
        if node.op == "elementwise":
            _constants_as_tensors(node)
        elif node.epilogue or node.y_quant is not None:
            _split_epilogue(graph, node)
        if not has_kernel(as_op(node), target) and "call" in node.attrs:
            name = str(node.attrs["call"].op.name).removeprefix("relax.")
            node.op, node.attrs = "relax", {"call": node.attrs["call"], "name": name, "index": None}
    merge_generic(graph)


def has_kernel(op: Op | None, target: Target) -> bool:
    """Whether a kernel takes the operator, convolutions in the layout they ask for; true if none could be meant."""
    if op is None:
        return True
    for kernel in all_kernels().values():
        if kernel.op is not type(op):
            continue
        shaped = op
        if isinstance(op, Conv2d):
            top, bottom, left, right = op.padding
            group = kernel.x_group(op, target)
            x = Layout(op.x.shape, op.x.dtype, (top, bottom, left, right), group, fill=op.x.fill)
            shaped = replace(op, x=x)
        if not kernel.refuses(shaped, target):
            return True
    return False


def _split_epilogue(graph: Graph, node: Node) -> None:
    plain = Value(f"{node.output.name}_plain", node.output.shape)
    behind = Node(
        "elementwise", [plain], node.output, path=node.path, epilogue=node.epilogue, y_quant=node.y_quant
    )
    node.output, node.epilogue, node.y_quant = plain, [], None
    graph.insert_after(node, behind)
    # operands that are computed between the two are there now: the order of nodes is the order of their outputs
    late = [i for i, n in enumerate(graph.nodes) if any(n.output is v for v in behind.reads)]
    graph.drop(behind)
    graph.nodes.insert(max(late, default=len(graph.nodes) - 1) + 1, behind)
    _constants_as_tensors(behind)


def _constants_as_tensors(node: Node) -> None:
    shape = node.output.shape
    if len(shape) == 4 or not shape:
        return
    for fused in node.epilogue:
        if fused.step.op in WITH_TENSOR and len(fused.step.constants[0]) == shape[-1]:
            data = np.ascontiguousarray(np.broadcast_to(fused.step.constants[0], shape), np.float32)
            value = Value(f"{node.output.name}_{fused.step.op}", shape, "float32", data)
            fused.step, fused.operand = Step(WITH_TENSOR[fused.step.op]), value
