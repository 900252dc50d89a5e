"""Relax to `Graph`: one node per call, under the names the passes and kernels use."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from edgecsi.lower.graph import Graph, Node, Value, constant
from edgecsi.lower.import_torch import Imported
from edgecsi.lower.operators.of_relax import Bound, nodes_of


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
            nodes += _nodes(call, arguments, outputs, imported)
    result = value_of(main.body.body)
    outputs = list(result) if isinstance(result, tuple) else [result]
    graph = Graph(name, inputs, outputs, nodes)
    graph.remove_dead()
    return graph


def _nodes(call: Any, inputs: list[Value], outputs: list[Value], imported: Imported) -> list[Node]:
    name = getattr(call.op, "name", "")
    if name == "relax.call_tir":  # a definition of our own
        function = imported.relax[call.args[0]]
        attrs = {"call": call, "name": call.args[0].name_hint, "index": None, "function": function}
        return [Node("relax", inputs, outputs[0], attrs)]
    if name == "relax.call_pure_packed":  # one of ours: `import_torch` packed its arguments into its name
        op, _, rest = str(call.args[0].global_symbol).partition(" ")
        arguments, path = json.loads(rest)
        return [Node(op.removeprefix("edgecsi."), inputs, outputs[0], {"arguments": arguments}, path)]
    weight = next((v.name for v in inputs if v.data is not None and v.name != "constant"), "")
    path = weight.rsplit(".", 1)[0] if "." in weight else weight
    return nodes_of(Bound(call, inputs, outputs, path))


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
