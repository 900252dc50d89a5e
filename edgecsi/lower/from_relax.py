"""Relax to `Graph`: one node per call, under the names the passes and kernels use."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from edgecsi.lower.graph import Graph, Node, Value, constant
from edgecsi.lower.import_torch import Imported

# Relax operators that only look different from ours, and the attributes they keep.
RENAMED = {
    "relax.add": "add", "relax.subtract": "sub", "relax.multiply": "mul", "relax.divide": "div",
    "relax.maximum": "max", "relax.minimum": "min", "relax.exp": "exp", "relax.sqrt": "sqrt",
    "relax.rsqrt": "rsqrt", "relax.negative": "neg", "relax.abs": "abs", "relax.sigmoid": "sigmoid",
    "relax.tanh": "tanh", "relax.nn.relu": "relu", "relax.nn.relu6": "relu6", "relax.nn.silu": "silu",
    "relax.nn.gelu": "gelu", "relax.nn.prelu": "prelu",
}  # fmt: skip
VIEWS = {"relax.reshape", "relax.expand_dims", "relax.squeeze", "relax.flatten"}


def from_relax(imported: Imported, name: str) -> Graph:
    """The graph of ``main``.

    What has no name here becomes a ``relax`` node, which is compiled from TVM's own definition of the operator.
    """
    from tvm import relax
    from tvm.ir.expr import GenericConst

    main = imported.relax["main"]
    values: dict[Any, Value | tuple[Value, ...]] = {}
    inputs = []
    for position, parameter in enumerate(main.params):
        if position < imported.inputs:
            value = Value(parameter.name, _shape(parameter), _dtype(parameter))
            inputs.append(value)
        else:
            array, source = imported.parameters[parameter.name]
            value = constant(source, array)
        values[parameter] = value

    def value_of(expression: Any) -> Any:
        if isinstance(expression, relax.Tuple):
            return tuple(value_of(field) for field in expression.fields)
        if expression in values:
            return values[expression]
        if isinstance(expression, GenericConst):
            held = expression.value
            return constant(
                "constant", held.numpy() if hasattr(held, "numpy") else np.asarray(held, _dtype(expression))
            )
        return None  # a shape or a number: part of the call

    nodes: list[Node] = []
    for block in main.body.blocks:
        for binding in block.bindings:
            call, variable = binding.value, binding.var
            if isinstance(call, relax.TupleGetItem):
                values[variable] = value_of(call.tuple_value)[call.index]
                continue
            if not isinstance(call, relax.Call):
                values[variable] = value_of(call)
                continue
            arguments: list[Value] = []
            for argument in call.args:
                found = value_of(argument)
                arguments += [v for v in (found if isinstance(found, tuple) else (found,)) if v is not None]
            outputs = _outputs(variable)
            values[variable] = outputs[0] if not _is_tuple(variable) else tuple(outputs)
            nodes += _nodes(call, arguments, outputs)
    result = value_of(main.body.body)
    outputs = list(result) if isinstance(result, tuple) else [result]
    graph = Graph(name, inputs, outputs, nodes)
    graph.remove_dead()
    return graph


def _nodes(call: Any, arguments: list[Value], outputs: list[Value]) -> list[Node]:
    output = outputs[0]
    if call.op.name == "relax.call_pure_packed" if hasattr(call.op, "name") else False:
        symbol = str(call.args[0].global_symbol)
        op, _, rest = symbol.partition(" ")
        positions, path = json.loads(rest)
        return [Node(op.removeprefix("edgecsi."), arguments, output, {"arguments": positions}, path)]
    name = call.op.name if hasattr(call.op, "name") else str(call.op)
    attrs = call.attrs
    weight = next((v.name for v in arguments if v.data is not None and v.name != "constant"), "")
    path = weight.rsplit(".", 1)[0] if "." in weight else weight
    if name in RENAMED:
        node = Node(RENAMED[name], arguments, output, {"call": call}, path)
    elif name in VIEWS or (name == "relax.broadcast_to" and arguments[0].shape == output.shape):
        node = Node("view", arguments[:1], output)
    elif name in ("relax.nn.conv2d", "relax.nn.conv1d"):
        two = name.endswith("2d")
        padding = [int(p) for p in attrs.padding]
        strides, dilation = [int(s) for s in attrs.strides], [int(d) for d in attrs.dilation]
        node = Node(
            "conv2d",
            arguments,
            output,
            {
                # a 1-D convolution is a 2-D one on images of height 1
                "padding": (padding[0], padding[2], padding[1], padding[3])
                if two
                else (0, 0, padding[0], padding[1]),
                "stride": tuple(strides) if two else (1, strides[0]),
                "dilation": tuple(dilation) if two else (1, dilation[0]),
                "groups": int(attrs.groups),
            },
            path,
        )
        if not two:
            return _conv1d(node)
    elif name == "relax.nn.conv1d_transpose" and arguments[0].shape[-1] == 1 and output.shape[-1] == 1:
        node = Node("dense_transposed", arguments, output, {"groups": int(attrs.groups)}, path)
        if int(attrs.groups) != 1:
            node = _generic(call, arguments, output, path)
    elif name == "relax.matmul":
        node = Node("matmul", arguments, output, path=path)
    elif name == "relax.permute_dims":
        axes = tuple(int(a) for a in attrs.axes) if attrs.axes else tuple(reversed(range(len(output.shape))))
        moved = [a for a in axes if arguments[0].shape[a] != 1]
        if moved == sorted(moved):  # only axes of length 1 move
            node = Node("view", arguments, output)
        else:
            node = Node("transpose", arguments, output, {"axes": axes, "call": call})
    elif name == "relax.take" and _row(call, arguments) is not None:
        node = Node("view", arguments[:1], output, {"offset": _row(call, arguments)})
    elif name == "relax.strided_slice" and _slice(call, arguments) is not None:
        node = Node("view", arguments, output, {"offset": _slice(call, arguments)})
    elif name == "relax.split" and math.prod(arguments[0].shape[: int(attrs.axis)]) == 1:
        # the leading axes are 1, so every part is contiguous
        sizes = [math.prod(part.shape) for part in outputs]
        return [
            Node("view", arguments[:1], part, {"offset": sum(sizes[:index])})
            for index, part in enumerate(outputs)
        ]
    elif name == "relax.nn.batch_norm" and int(attrs.axis) == 1:
        node = Node("batch_norm", arguments, output, {"eps": float(attrs.epsilon), "call": call}, path)
    elif name == "relax.nn.leakyrelu":
        node = Node("leaky_relu", arguments, output, {"params": (float(attrs.alpha),)})
    elif name == "relax.clip":
        node = Node("clip", arguments[:1], output, {"params": tuple(_number(a) for a in call.args[1:3])})
    elif name == "relax.concat" and int(attrs.axis) == 1 and len(output.shape) == 4:
        node = Node("concat", arguments, output)
    elif name == "relax.nn.softmax" and int(attrs.axis) in (-1, len(output.shape) - 1):
        node = Node("softmax", arguments, output)
    elif name == "relax.nn.layer_norm" and [int(a) % len(output.shape) for a in attrs.axes] == [
        len(output.shape) - 1
    ]:
        node = Node("layer_norm", arguments, output, {"eps": float(attrs.epsilon)}, path)
    elif name in ("relax.nn.max_pool2d", "relax.nn.avg_pool2d") and not attrs.ceil_mode:
        padding = [int(p) for p in attrs.padding]
        node = Node("pool2d", arguments, output, {
            "kind": name.split(".")[-1][:3], "window": tuple(int(p) for p in attrs.pool_size),
            "stride": tuple(int(p) for p in attrs.strides),
            "padding": (padding[0], padding[2], padding[1], padding[3]),
            "count_include_pad": bool(getattr(attrs, "count_include_pad", True)),
        })  # fmt: skip
        if any(int(d) != 1 for d in attrs.dilation):
            node = _generic(call, arguments, output, path)
    elif name == "relax.nn.dropout":
        node = Node("view", arguments[:1], output)
    else:
        if len(outputs) > 1:
            return [_generic(call, arguments, each, path, index) for index, each in enumerate(outputs)]
        node = _generic(call, arguments, output, path)
    return [node]


def _row(call: Any, arguments: list[Value]) -> int | None:
    """Offset of the row that ``take`` picks with a constant index along the first axis; None for any other use."""
    x, index = arguments
    axis = int(call.attrs.axis) if call.attrs.axis is not None else None
    if index.data is None or index.data.size != 1 or axis is None or math.prod(x.shape[:axis]) != 1:
        return None
    row = int(index.data.reshape(-1)[0]) % x.shape[axis]
    return row * math.prod(x.shape[axis + 1 :])


def _slice(call: Any, arguments: list[Value]) -> int | None:
    """Offset of a slice that is contiguous (one axis, in front of it only axes of length 1); None for any other."""
    axes, begin, _, strides = ([int(f.value) for f in a.fields] for a in (*call.args[1:4], call.args[4]))
    shape = arguments[0].shape
    if len(axes) != 1 or strides != [1] or math.prod(shape[: axes[0]]) != 1:
        return None
    first = begin[0] + shape[axes[0]] if begin[0] < 0 else min(begin[0], shape[axes[0]])
    return first * math.prod(shape[axes[0] + 1 :])


def _generic(call: Any, arguments: list[Value], output: Value, path: str, index: int | None = None) -> Node:
    name = str(call.op.name).removeprefix("relax.")
    return Node("relax", arguments, output, {"call": call, "name": name, "index": index}, path)


def _conv1d(node: Node) -> list[Node]:
    """Images of height 1 around a 1-D convolution."""
    x, weight = node.inputs
    if weight.data is None:
        return [node]
    wide = Value(f"{x.name}_image", (*x.shape[:2], 1, x.shape[2]), x.dtype)
    result = Value(f"{node.output.name}_image", (*node.output.shape[:2], 1, node.output.shape[2]))
    node.inputs[0] = wide
    node.inputs[1] = constant(weight.name, weight.data[:, :, None, :])
    output, node.output = node.output, result
    return [Node("view", [x], wide), node, Node("view", [result], output)]


def _outputs(variable: Any) -> list[Value]:
    if _is_tuple(variable):
        return [
            Value(f"{variable.name}_{i}", _shape_of(t), _dtype_of(t))
            for i, t in enumerate(variable.ty.fields)
        ]
    return [Value(variable.name, _shape(variable), _dtype(variable))]


def _is_tuple(variable: Any) -> bool:
    return hasattr(variable.ty, "fields")


def _shape(variable: Any) -> tuple[int, ...]:
    return _shape_of(variable.ty)


def _shape_of(ty: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in ty.shape)


def _dtype(variable: Any) -> str:
    return _dtype_of(variable.ty)


def _dtype_of(ty: Any) -> str:
    return str(ty.dtype)


def _number(expression: Any) -> float:
    value = float(getattr(expression, "value", expression))
    return value if math.isfinite(value) else math.copysign(float(np.finfo(np.float32).max), value)
