"""Operators that reduce along axes, and those that rank or accumulate along one.

Largest and smallest let NaN through, as in PyTorch. Sorting counts how many come before: quadratic, but without a
branch or a call, and the tensors that networks sort are short.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecsi.codegen.vector_math import is_nan
from edgecsi.lower.operators.elementwise import FLOATS, computed

if TYPE_CHECKING:
    from edgecsi.lower.import_torch import Call

LARGEST_SQUARE = 1 << 28
"""Steps of a quadratic algorithm, some 0.1 s; sorting 16384 numbers takes them."""


def _axes(call: Call) -> list[int]:
    dims = call.arguments.get("dim", call.arguments.get("dims"))
    rank = len(call.shapes["self"])
    if dims is None or dims == []:
        return list(range(rank))
    return [int(d) for d in (dims if isinstance(dims, list | tuple) else [dims])] if rank else []


def _keeps(call: Call) -> bool:
    return bool(call.arguments.get("keepdim") or False)


def _sum(name: str) -> Callable[[Call], Any]:
    """Integers are summed in int64; a tensor of rank 0 is its own sum."""

    def convert(call: Call) -> Any:
        from tvm import relax

        x = call.cast(call["self"], computed(call.dtype))
        axes = _axes(call)
        return call.emit(getattr(relax.op, name)(x, axes, _keeps(call))) if axes else x

    return convert


def largest_of(dtype: str, *, largest: bool = True) -> Any:
    """TVM's reducer that keeps the largest; NaN wins."""
    from tvm import te, tirx

    def better(a: Any, b: Any) -> Any:
        first = a > b if largest else a < b
        return tirx.Select(tirx.any(first, is_nan(a)) if dtype in FLOATS else first, a, b)

    def start(kind: str) -> Any:
        if kind in FLOATS:
            return tirx.const(-math.inf if largest else math.inf, kind)
        return tirx.min_value(kind) if largest else tirx.max_value(kind)

    return te.comm_reducer(better, start, name="most")


def smallest_of(dtype: str) -> Any:
    """TVM's reducer that keeps the smallest; NaN wins."""
    return largest_of(dtype, largest=False)


def reduced(call: Call, x: Any, axes: list[int], *, largest: bool, keeps: bool) -> Any:
    """Largest or smallest along axes; NaN wins."""
    from tvm import te

    if not axes:
        return x
    dtype = str(x.ty.dtype)
    shape = [int(n) for n in x.ty.shape]

    most = largest_of(dtype) if largest else smallest_of(dtype)
    out = [1 if i in axes else n for i, n in enumerate(shape) if keeps or i not in axes]

    def define(t: Any) -> Any:
        over = {a: te.reduce_axis((0, shape[a]), name=f"r{a}") for a in axes}

        def value(*indices: Any) -> Any:
            own = list(indices)
            at = [
                over[i] if i in axes else own[i if keeps else i - sum(a < i for a in axes)]
                for i in range(len(shape))
            ]
            return most(t(*at), axis=list(over.values()))

        return te.compute(out, value, name="most")

    return call.te(define, x, name="largest" if largest else "smallest")


def _most(*, largest: bool) -> Callable[[Call], Any]:
    def convert(call: Call) -> Any:
        x = call["self"]
        if str(x.ty.dtype) == "bool":
            x = call.cast(x, "int8")
        return call.cast(
            reduced(call, x, _axes(call), largest=largest, keeps=_keeps(call)), computed(call.dtype)
        )

    return convert


def _truth(*, every: bool) -> Callable[[Call], Any]:
    def convert(call: Call) -> Any:
        from tvm import relax

        x = call["self"]
        if str(x.ty.dtype) != "bool":
            x = call.emit(relax.op.not_equal(x, call.cast(0, str(x.ty.dtype))))
        axes = _axes(call)
        if not axes:
            return x
        op = relax.op.min if every else relax.op.max
        return call.cast(call.emit(op(call.cast(x, "int8"), axes, _keeps(call))), call.dtype)

    return convert


def _where_most(*, largest: bool) -> Callable[[Call], Any]:
    """Index of the first largest (or smallest): two reductions, so that no pair has to be carried along."""

    def convert(call: Call) -> Any:
        from tvm import relax, te, tirx

        x, dim = call["self"], call.arguments.get("dim")
        if str(x.ty.dtype) == "bool":
            x = call.cast(x, "int8")
        shape = [int(n) for n in x.ty.shape]
        if not shape:
            return call.constant(np.zeros((), "int64"))
        if dim is None:
            x = call.emit(relax.op.reshape(x, (math.prod(shape),)))
            shape, dim = [math.prod(shape)], 0
        best = reduced(call, x, [dim], largest=largest, keeps=True)
        floating = str(x.ty.dtype) in FLOATS

        def define(t: Any, most: Any) -> Any:
            over = te.reduce_axis((0, shape[dim]), name="r")
            out = [n for i, n in enumerate(shape) if i != dim]

            def value(*indices: Any) -> Any:
                at = [*indices[:dim], over, *indices[dim:]]
                found, wanted = t(*at), most(*indices[:dim], 0, *indices[dim:])
                same = tirx.EQ(found, wanted)
                if floating:
                    same = tirx.any(same, is_nan(found))
                last = tirx.const(shape[dim] - 1, "int64")
                return te.min(tirx.Select(same, tirx.Cast("int64", over), last), axis=over)

            return te.compute(out, value, name="where_most")

        found = call.te(define, x, best, name="where_most")
        return call.emit(relax.op.reshape(found, call.shape))

    return convert


def _accumulate(*, product: bool) -> Callable[[Call], Any]:
    """Sums (products) of all up to here."""

    def convert(call: Call) -> Any:
        from tvm import te, tirx

        dtype = computed(call.dtype)
        x, dim = call.cast(call["self"], dtype), call["dim"]
        if not call.shape:
            return x
        _refuse_long(call, call.shape[dim])
        if product:
            multiply = te.comm_reducer(lambda a, b: a * b, lambda kind: tirx.const(1, kind), name="product")

        def define(t: Any) -> Any:
            over = te.reduce_axis((0, call.shape[dim]), name="r")

            def value(*indices: Any) -> Any:
                here = t(*indices[:dim], over, *indices[dim + 1 :])
                nothing = tirx.const(1 if product else 0, dtype)
                kept = tirx.Select(over <= indices[dim], here, nothing)
                return (multiply if product else te.sum)(kept, axis=over)

            return te.compute(call.shape, value, name="accumulate")

        return call.te(define, x, name="accumulate")

    return convert


def _refuse_long(call: Call, length: int) -> None:
    """Refuse what would take a large part of a second: every element looks at every other along the axis."""
    if math.prod(call.shape) * length > LARGEST_SQUARE:
        raise ValueError(
            f"along {length} elements it takes {math.prod(call.shape) * length:.0e} steps, too many"
        )


def _sort(call: Call) -> Any:
    """Stable: how many come before each (its rank), then who has rank k. NaN is the largest.

    Gives the sorted tensor and where each element was.
    """
    from tvm import te, tirx

    x, dim = call["self"], call["dim"]
    descending = bool(call["descending"])
    if not call.shape:
        return x, call.constant(np.zeros((), "int64"))
    given = x
    if str(x.ty.dtype) == "bool":
        x = call.cast(x, "int8")
    floating = str(x.ty.dtype) in FLOATS
    n = call.shape[dim]
    _refuse_long(call, n)

    def ranks(t: Any) -> Any:
        over = te.reduce_axis((0, n), name="r")

        def value(*indices: Any) -> Any:
            mine, other = t(*indices), t(*indices[:dim], over, *indices[dim + 1 :])
            before = other > mine if descending else other < mine
            same = tirx.EQ(other, mine)
            if floating:
                lost, other_lost = is_nan(mine), is_nan(other)
                over_all = (
                    tirx.all(other_lost, tirx.Not(lost))
                    if descending
                    else tirx.all(lost, tirx.Not(other_lost))
                )
                before, same = tirx.any(before, over_all), tirx.any(same, tirx.all(lost, other_lost))
            first = tirx.any(before, tirx.all(same, over < indices[dim]))
            return te.sum(tirx.Select(first, tirx.const(1, "int32"), tirx.const(0, "int32")), axis=over)

        return te.compute(call.shape, value, name="rank")

    def places(rank: Any) -> Any:
        over = te.reduce_axis((0, n), name="r")

        def value(*indices: Any) -> Any:
            at = rank(*indices[:dim], over, *indices[dim + 1 :])
            mine = tirx.EQ(at, tirx.Cast("int32", indices[dim]))
            return te.sum(tirx.Select(mine, tirx.Cast("int64", over), tirx.const(0, "int64")), axis=over)

        return te.compute(call.shape, value, name="order")

    def take(t: Any, order: Any) -> Any:
        return te.compute(call.shape, lambda *i: t(*i[:dim], order(*i), *i[dim + 1 :]), name="sorted")

    order = call.te(places, call.te(ranks, x, name="rank"), name="order")
    return call.te(take, given, order, name="sorted"), order


TABLE: dict[str, Callable[[Call], Any]] = {
    **{f"sum.{o}": _sum("sum") for o in ("default", "dim_IntList")},
    **{f"mean.{o}": _sum("mean") for o in ("default", "dim")},
    **{f"prod.{o}": _sum("prod") for o in ("default", "dim_int")},
    "amax.default": _most(largest=True),
    "amin.default": _most(largest=False),
    **{f"any.{o}": _truth(every=False) for o in ("default", "dim", "dims")},
    **{f"all.{o}": _truth(every=True) for o in ("default", "dim", "dims")},
    "argmax.default": _where_most(largest=True),
    "argmin.default": _where_most(largest=False),
    "cumsum.default": _accumulate(product=False),
    "cumprod.default": _accumulate(product=True),
    "sort.stable": _sort,
}
