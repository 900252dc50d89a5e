"""What every Relax operator becomes in the `Graph`: one table, `OPERATORS`.

An operator that only bears another name stands in `RENAMED`; any other has a function in `OPERATORS`, which makes its
nodes, or gives None for a use that we have no node for. Such a use, and every operator that is not named here, is
compiled from TVM's own definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgecsi.lower.graph import Node, Value, constant

# Relax operators that only look different from ours.
RENAMED = {
    "relax.add": "add", "relax.subtract": "sub", "relax.multiply": "mul", "relax.divide": "div",
    "relax.maximum": "max", "relax.minimum": "min", "relax.exp": "exp", "relax.sqrt": "sqrt",
    "relax.rsqrt": "rsqrt", "relax.negative": "neg", "relax.abs": "abs", "relax.sigmoid": "sigmoid",
    "relax.tanh": "tanh", "relax.nn.relu": "relu", "relax.nn.relu6": "relu6", "relax.nn.silu": "silu",
    "relax.nn.gelu": "gelu", "relax.nn.prelu": "prelu",
}  # fmt: skip

# Those with kernels of ours, which take float32.
LAYERS = {
    "relax.nn.conv2d", "relax.nn.conv1d", "relax.matmul", "relax.nn.batch_norm", "relax.nn.softmax",
    "relax.nn.layer_norm", "relax.nn.max_pool2d", "relax.nn.avg_pool2d", "relax.nn.leakyrelu", "relax.clip",
}  # fmt: skip


@dataclass(frozen=True)
class Bound:
    """A Relax call between values of the graph.

    Attributes:
        call: the ``relax.Call``. inputs, outputs: its tensors. path: the layer whose weights it uses, for people.
    """

    call: Any
    inputs: list[Value]
    outputs: list[Value]
    path: str

    @property
    def attrs(self) -> Any:
        return self.call.attrs

    @property
    def output(self) -> Value:
        return self.outputs[0]

    def node(self, op: str, **attrs: Any) -> list[Node]:
        """One node of all inputs."""
        return [Node(op, self.inputs, self.output, attrs, self.path)]

    def view(self, offset: int = 0) -> list[Node]:
        """The first input in another shape, `offset` elements behind its start."""
        return [Node("view", self.inputs[:1], self.output, {"offset": offset} if offset else {})]

    def generic(self) -> list[Node]:
        """Whatever it is: TVM's definition serves, once for each output."""
        name = str(self.call.op.name).removeprefix("relax.")
        several = len(self.outputs) > 1
        return [
            Node("relax", self.inputs, each, {"call": self.call, "name": name, "index": index if several else None},
                 self.path)
            for index, each in enumerate(self.outputs)
        ]  # fmt: skip


def nodes_of(bound: Bound) -> list[Node]:
    """The nodes of one call."""
    name = str(bound.call.op.name)
    if name in RENAMED:
        return bound.node(RENAMED[name], call=bound.call)
    if name in LAYERS and bound.output.dtype != "float32":
        return bound.generic()  # our kernels compute in float32
    convert = OPERATORS.get(name)
    return (convert(bound) if convert is not None else None) or bound.generic()


def _view(bound: Bound) -> list[Node]:
    return bound.view()


def _broadcast(bound: Bound) -> list[Node] | None:
    return bound.view() if bound.inputs[0].shape == bound.output.shape else None


def _conv2d(bound: Bound) -> list[Node]:
    attrs = bound.attrs
    top, left, bottom, right = (int(p) for p in attrs.padding)
    return bound.node(
        "conv2d",
        padding=(top, bottom, left, right),
        stride=tuple(int(s) for s in attrs.strides),
        dilation=tuple(int(d) for d in attrs.dilation),
        groups=int(attrs.groups),
        call=bound.call,
    )


def _conv1d(bound: Bound) -> list[Node] | None:
    """A 1-D convolution is a 2-D one on images of height 1."""
    attrs = bound.attrs
    if bound.inputs[1].data is None:
        return None
    left, right = (int(p) for p in attrs.padding)
    [node] = bound.node(
        "conv2d",
        padding=(0, 0, left, right),
        stride=(1, int(attrs.strides[0])),
        dilation=(1, int(attrs.dilation[0])),
        groups=int(attrs.groups),
    )
    x, weight = node.inputs
    assert weight.data is not None
    output = node.output
    image = Value(f"{x.name}_image", (*x.shape[:2], 1, x.shape[2]), x.dtype)
    node.inputs = [image, constant(weight.name, weight.data[:, :, None, :])]
    node.output = Value(f"{output.name}_image", (*output.shape[:2], 1, output.shape[2]))
    return [Node("view", [x], image), node, Node("view", [node.output], output)]


def _conv1d_transpose(bound: Bound) -> list[Node] | None:
    """On length 1 it is a fully connected layer."""
    groups = int(bound.attrs.groups)
    if bound.inputs[0].shape[-1] != 1 or bound.output.shape[-1] != 1 or groups != 1:
        return None
    return bound.node("dense_transposed", groups=groups)


def _matmul(bound: Bound) -> list[Node]:
    return bound.node("matmul", call=bound.call)


def _permute(bound: Bound) -> list[Node]:
    attrs, shape = bound.attrs, bound.inputs[0].shape
    axes = tuple(int(a) for a in attrs.axes) if attrs.axes else tuple(reversed(range(len(shape))))
    moved = [a for a in axes if shape[a] != 1]
    if moved == sorted(moved):  # only axes of length 1 move
        return bound.view()
    return [Node("transpose", bound.inputs, bound.output, {"axes": axes, "call": bound.call})]


def _take(bound: Bound) -> list[Node] | None:
    """A row that is picked with a constant index along the first axis."""
    x, index = bound.inputs
    axis = int(bound.attrs.axis) if bound.attrs.axis is not None else None
    if index.data is None or index.data.size != 1 or axis is None or math.prod(x.shape[:axis]) != 1:
        return None
    row = int(index.data.reshape(-1)[0]) % x.shape[axis]
    return bound.view(row * math.prod(x.shape[axis + 1 :]))


def _strided_slice(bound: Bound) -> list[Node] | None:
    """A slice that is contiguous: one axis, in front of it only axes of length 1."""
    axes, begin, _, strides = ([int(f.value) for f in a.fields] for a in bound.call.args[1:5])
    shape = bound.inputs[0].shape
    if len(axes) != 1 or strides != [1] or math.prod(shape[: axes[0]]) != 1:
        return None
    first = begin[0] + shape[axes[0]] if begin[0] < 0 else min(begin[0], shape[axes[0]])
    return bound.view(first * math.prod(shape[axes[0] + 1 :]))


def _split(bound: Bound) -> list[Node] | None:
    """Parts that are contiguous: in front of the axis there are only axes of length 1."""
    if math.prod(bound.inputs[0].shape[: int(bound.attrs.axis)]) != 1:
        return None
    sizes = [math.prod(part.shape) for part in bound.outputs]
    return [
        Node("view", bound.inputs[:1], part, {"offset": sum(sizes[:index])})
        for index, part in enumerate(bound.outputs)
    ]


def _batch_norm(bound: Bound) -> list[Node] | None:
    if int(bound.attrs.axis) != 1:
        return None
    return bound.node("batch_norm", eps=float(bound.attrs.epsilon), call=bound.call)


def _leaky_relu(bound: Bound) -> list[Node]:
    return bound.node("leaky_relu", params=(float(bound.attrs.alpha),))


def _clip(bound: Bound) -> list[Node]:
    limits = tuple(float(getattr(a, "value", a)) for a in bound.call.args[1:3])
    return [Node("clip", bound.inputs[:1], bound.output, {"params": limits})]


def _concat(bound: Bound) -> list[Node] | None:
    """Of channels of images."""
    return bound.node("concat") if int(bound.attrs.axis) == 1 and len(bound.output.shape) == 4 else None


def _softmax(bound: Bound) -> list[Node] | None:
    last = len(bound.output.shape) - 1
    return bound.node("softmax") if int(bound.attrs.axis) in (-1, last) else None


def _layer_norm(bound: Bound) -> list[Node] | None:
    rank = len(bound.output.shape)
    if [int(a) % rank for a in bound.attrs.axes] != [rank - 1]:
        return None
    return bound.node("layer_norm", eps=float(bound.attrs.epsilon))


def _pool2d(bound: Bound) -> list[Node] | None:
    attrs = bound.attrs
    if attrs.ceil_mode or any(int(d) != 1 for d in attrs.dilation):
        return None
    top, left, bottom, right = (int(p) for p in attrs.padding)
    return bound.node(
        "pool2d",
        kind=str(bound.call.op.name).split(".")[-1][:3],
        window=tuple(int(p) for p in attrs.pool_size),
        stride=tuple(int(s) for s in attrs.strides),
        padding=(top, bottom, left, right),
        count_include_pad=bool(getattr(attrs, "count_include_pad", True)),
        call=bound.call,
    )


OPERATORS: dict[str, Callable[[Bound], list[Node] | None]] = {
    "relax.reshape": _view,
    "relax.expand_dims": _view,
    "relax.squeeze": _view,
    "relax.flatten": _view,
    "relax.nn.dropout": _view,
    "relax.broadcast_to": _broadcast,
    "relax.permute_dims": _permute,
    "relax.take": _take,
    "relax.strided_slice": _strided_slice,
    "relax.split": _split,
    "relax.concat": _concat,
    "relax.clip": _clip,
    "relax.matmul": _matmul,
    "relax.nn.conv2d": _conv2d,
    "relax.nn.conv1d": _conv1d,
    "relax.nn.conv1d_transpose": _conv1d_transpose,
    "relax.nn.batch_norm": _batch_norm,
    "relax.nn.leakyrelu": _leaky_relu,
    "relax.nn.softmax": _softmax,
    "relax.nn.layer_norm": _layer_norm,
    "relax.nn.max_pool2d": _pool2d,
    "relax.nn.avg_pool2d": _pool2d,
}
