"""Operators without a kernel of ours: TVM's own definition, fused and vectorised, never a naive scalar loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecsi.codegen.vector_math import is_nan
from edgecsi.errors import UnsupportedOperators
from edgecsi.lower.graph import Graph, Node, Value

if TYPE_CHECKING:
    import tvm


def merge_generic(graph: Graph) -> None:
    """Join generic nodes that feed only each other, so that TVM can fuse them into one loop nest."""
    for node in graph.nodes:
        if node.op in ("relax", "transpose"):
            call = node.attrs.pop("call")
            index = node.attrs.pop("index", None)
            name = node.attrs.pop("name", node.op)
            node.op = "generic"
            function = node.attrs.pop("function", None)
            node.attrs = {"name": name, "calls": [(call, list(node.inputs), node.output, index, function)]}
    changed = True
    while changed:
        changed = False
        for node in list(graph.nodes):
            if node.op != "generic":
                continue
            for value in node.inputs:
                producer = graph.producer(value)
                if producer is None or producer.op != "generic" or graph.is_output(value):
                    continue
                if any(reader is not node for reader in graph.readers(value)):
                    continue
                node.attrs["calls"] = producer.attrs["calls"] + node.attrs["calls"]
                node.attrs["name"] = f"{producer.attrs['name']}+{node.attrs['name']}"
                merged = [v for v in node.inputs if v is not value]
                node.inputs = [*merged, *(v for v in producer.inputs if all(v is not m for m in merged))]
                graph.drop(producer)
                changed = True
                break


class Piece:
    """One function of a generic node: its TIR, the values it reads and the value it writes."""

    def __init__(self, function: tvm.tirx.PrimFunc, reads: list[Value], writes: Value) -> None:
        self.function, self.reads, self.writes = function, reads, writes


def legalise(node: Node, target: Any, lanes: int) -> list[Piece]:
    """Compile a generic node to one or more fused, vectorised TIR functions.

    Raises:
        UnsupportedOperators: TVM has no definition for an operator of it.
    """
    import tvm
    from tvm import relax

    builder = relax.BlockBuilder()
    known: dict[int, Any] = {}
    parameters = []
    for i, value in enumerate(node.inputs):
        if value.data is None and id(value) not in known:
            parameters.append(relax.Var(f"x{i}", relax.TensorType(value.shape, value.dtype)))
            known[id(value)] = parameters[-1]
    with builder.function("main", parameters):
        with builder.dataflow():
            result = None
            for call, inputs, output, index, function in node.attrs["calls"]:
                queue = list(inputs)
                arguments = [_rebuild(a, queue, known) for a in call.args]
                if function is not None:
                    arguments[0] = builder.add_func(function, node.attrs["name"][:40].replace(".", "_"))
                again = relax.Call(call.op, arguments, call.attrs, call.ty_args)
                result = builder.emit(again)
                if index is not None:
                    result = builder.emit(relax.TupleGetItem(result, index))
                known[id(output)] = result
            out = builder.emit_output(result)
        builder.emit_func_output(out)
    module = builder.get()
    # A constant that is an output has to be written by something.
    folding = [relax.transform.FoldConstant()] if parameters else []
    passes = [
        relax.transform.LegalizeOps(), relax.transform.AnnotateTIROpPattern(), *folding,
        relax.transform.FuseOps(), relax.transform.FuseTIR(), relax.transform.DeadCodeElimination(),
    ]  # fmt: skip
    with target:
        module = tvm.transform.Sequential(passes)(module)
    values: dict[Any, Value] = {
        p: next(v for v in node.inputs if known.get(id(v)) is q)
        for p, q in zip(module["main"].params, parameters, strict=True)
    }
    pieces: list[Piece] = []
    last = None
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            if not isinstance(call, relax.Call):
                if call in values:
                    values[binding.var] = values[call]
                continue
            if getattr(call.op, "name", "") != "relax.call_tir":
                name = str(getattr(call.op, "name", call.op)).removeprefix("relax.")
                raise UnsupportedOperators([(name, node.path)])
            function = module[call.args[0]]
            reads = [values[a] if a in values else _constant_value(a) for a in call.args[1].fields]
            shape = tuple(int(n) for n in binding.var.ty.shape)
            last = Value(f"{node.output.name}_{len(pieces)}", shape, str(binding.var.ty.dtype))
            values[binding.var] = last
            pieces.append(Piece(vectorise(function, lanes), reads, last))
    assert pieces, node
    pieces[-1].writes = node.output
    return pieces


def _rebuild(argument: Any, queue: list[Value], known: dict[int, Any]) -> Any:
    """The argument of a Relax call with our values in the place of its variables."""
    from tvm import relax
    from tvm.ir.expr import GenericConst

    if isinstance(argument, relax.Tuple):
        return relax.Tuple([_rebuild(field, queue, known) for field in argument.fields])
    if isinstance(argument, relax.Var | GenericConst) or type(argument).__name__ in ("Var", "DataflowVar"):
        value = queue.pop(0)
        if id(value) in known:
            return known[id(value)]
        assert value.data is not None
        return relax.const(value.data, value.dtype)
    return argument


def _constant_value(expression: Any) -> Value:
    data = np.asarray(expression.value.numpy())
    return Value("constant", tuple(data.shape), str(data.dtype), data)


def vectorise(function: tvm.tirx.PrimFunc, lanes: int) -> tvm.tirx.PrimFunc:
    """A schedule for any function: inline what can be, then vectorise along the innermost spatial loop.

    Reductions run outside of the vectors where the spatial loop is long enough, else inside of the scalar loop.
    """
    import tvm
    from tvm import s_tir

    schedule = s_tir.Schedule(tvm.IRModule({"main": function}))
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        try:
            schedule.compute_inline(block)
        except s_tir.ScheduleError:
            continue
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        loops = schedule.get_loops(block)
        kinds = [str(v.iter_type) for v in schedule.get(block).iter_vars]
        if not loops or len(loops) != len(kinds):
            continue
        spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == "0"]
        reduce = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == "2"]
        if not spatial:
            continue
        extent = int(schedule.get(spatial[-1]).extent)
        if extent == 1:
            if reduce:
                _reduce_in_lanes(schedule, reduce, lanes)
            continue
        width = min(lanes, extent)
        inner = spatial[-1]
        if extent > width:
            _, inner = schedule.split(inner, [None, width])
        if reduce:
            schedule.reorder(*spatial[:-1], *reduce, inner)
        try:
            schedule.vectorize(inner)
            if reduce:
                schedule.decompose_reduction(block, reduce[0])
        except s_tir.ScheduleError:
            continue
    extents = {
        v.var: int(v.dom.extent)
        for block in schedule.get_child_blocks(schedule.get_sblock("root"))
        for v in schedule.get(block).iter_vars
    }
    return _keep_nan(_read_what_is_chosen(schedule.mod["main"], extents))


def _read_what_is_chosen(function: tvm.tirx.PrimFunc, extents: Mapping[Any, int]) -> tvm.tirx.PrimFunc:
    """The function with a branch for every choice one side of which might read beyond its buffer.

    Both sides of a `Select` are computed, and TVM drops a bound of an index (``min(i, n - 1)``) that the condition
    implies. A read is safe where the condition makes the same one, or its indices are loops no longer than the buffer.

    Args:
        extents: of every loop, by its variable.
    """
    import tvm_ffi
    from tvm import tirx
    from tvm.ir.expr import TensorLoad

    def within(index: Any, size: Any) -> bool:
        if isinstance(index, tirx.IntImm):
            return 0 <= int(index) < int(size)
        return index in extents and extents[index] <= int(size)

    def reads(*parts: Any) -> list[Any]:
        found: list[Any] = []
        for part in parts:
            tvm_ffi.structural_walk(part, [(TensorLoad, lambda read: found.append(read))])
        return found

    def chosen(one: Any) -> Any:
        known = reads(one.condition)
        for read in reads(one.true_value, one.false_value):
            if not all(map(within, read.indices, read.source.shape)) and not any(
                tvm_ffi.structural_equal(read, other) for other in known
            ):
                return tirx.if_then_else(one.condition, one.true_value, one.false_value)
        return one

    return function.with_body(tvm_ffi.structural_map(function.body, [(tirx.Select, chosen)]))


def _keep_nan(function: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    """The function with fp32 maxima and minima that are not a number where either operand is none, as in PyTorch; TVM's
    are the second operand then. After scheduling, which knows reductions by their form."""
    import tvm_ffi
    from tvm import tirx

    def kept(one: Any) -> Any:
        return tirx.Select(is_nan(one.a), one.a, one) if "float" in str(one.ty) else one

    body = tvm_ffi.structural_map(function.body, [(tirx.Max, kept), (tirx.Min, kept)])
    return function.with_body(body)


def _reduce_in_lanes(schedule: Any, reduce: list[Any], lanes: int) -> None:
    """A reduction to single numbers (a mean over images): as many partial results side by side as divide the innermost
    loop, and these reduced at the end."""
    from tvm import s_tir

    extent = int(schedule.get(reduce[-1]).extent)
    width = max(n for n in range(1, lanes + 1) if extent % n == 0)
    if width == 1:
        return
    try:
        _, inner = schedule.split(reduce[-1], [None, width])
        partial = schedule.rfactor(inner, -1)
        outermost = schedule.get_loops(partial)[-len(reduce) - 1]
        schedule.vectorize(schedule.get_loops(partial)[-1])
        schedule.decompose_reduction(partial, outermost)
    except s_tir.ScheduleError:
        return
