"""Operators that write elements of one tensor into another: scatter, index_put, assignment to a part."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.lower.operators.moves import carried_out, inside

if TYPE_CHECKING:
    from edgecsi.lower.import_torch import Call


def _written(call: Call) -> Any:
    """Elements of `self` replaced by elements of the source, at constant places: the operator is carried out on
    indices, those behind the end are the source's."""
    import torch

    name = next(n for n in ("src", "values", "value", "source") if n in call.arguments)
    size, shape = math.prod(call.shapes["self"]), call.shapes.get(name)
    source = size if shape is None else (torch.arange(math.prod(shape)) + size).reshape(shape)
    places = torch.arange(size).reshape(call.shapes["self"])
    table = carried_out(call, {"self": places, name: source}).numpy()
    return _merged(call, call["self"], call[name], table, shape)


def _merged(call: Call, x: Any, source: Any, table: NDArray[np.int64], source_shape: Any) -> Any:
    from tvm import relax, te, tirx

    from edgecsi.lower.operators.elementwise import computed

    dtype = computed(call.dtype)
    size = math.prod(int(n) for n in x.ty.shape)
    flat = call.emit(relax.op.reshape(x, (size,)))
    other = call.cast(source, dtype)
    count = 1 if source_shape is None else math.prod(source_shape)
    other = call.emit(relax.op.reshape(other, (count,)))

    def define(t: Any, s: Any, places: Any) -> Any:
        def value(*i: Any) -> Any:
            place = places(*i)
            zero = tirx.const(0, "int32")
            mine = t(te.min(place, tirx.const(size - 1, "int32")))
            theirs = s(te.max(place - size, zero) if count > 1 else zero)
            return tirx.Select(place < size, mine, theirs)

        return te.compute(call.shape, value, name="write")

    return call.te(define, flat, other, call.constant(table.astype(np.int32)), name="write")


def _scatter(*, adds: bool) -> Callable[[Call], Any]:
    """Along one axis. With constant places a table; else every element looks for those that go to it."""

    def convert(call: Call) -> Any:
        from tvm import te, tirx

        from edgecsi.lower.operators.elementwise import computed

        if not adds and call.known(call.node.args[2]) is not None:
            return _written(call)
        dtype, dim = computed(call.dtype), call["dim"]
        x, index = call.cast(call["self"], dtype), call["index"]
        name = "src" if "src" in call.arguments else "source" if "source" in call.arguments else "value"
        whole = name in call.shapes
        source = call.cast(call[name], dtype)
        along = (
            len(call.shapes["index"]) == 1 and len(call.shape) > 1
        )  # index_add, index_copy: one index for all
        count = call.shapes["index"][0 if along else dim]
        bounds = call.shape if along else call.shapes["index"]

        def define(t: Any, places: Any, s: Any) -> Any:
            over = te.reduce_axis((0, count), name="r")

            def found(i: Any) -> tuple[Any, Any]:
                inner = [te.min(j, tirx.const(n - 1, "int64")) if k != dim else j
                         for k, (j, n) in enumerate(zip(i, bounds, strict=True))]  # fmt: skip
                at = places(over) if along else places(*inner[:dim], over, *inner[dim + 1 :])
                here = tirx.EQ(inside(at, call.shape[dim]), tirx.Cast("int64", i[dim]))
                for k, (j, n) in enumerate(zip(i, bounds, strict=True)):
                    if k != dim and n < call.shape[k]:
                        here = tirx.all(here, j < n)
                return here, s(*inner[:dim], over, *inner[dim + 1 :]) if whole and s.shape else s()

            if adds:

                def total(*i: Any) -> Any:
                    here, value = found(i)
                    return te.sum(tirx.Select(here, value, tirx.const(0, dtype)), axis=over)

                added = te.compute(call.shape, total, name="scattered")
                return te.compute(call.shape, lambda *i: t(*i) + added(*i), name="scatter_add")

            def last(*i: Any) -> Any:
                here, _ = found(i)
                return te.max(tirx.Select(here, tirx.Cast("int32", over), tirx.const(-1, "int32")), axis=over)

            latest = te.compute(call.shape, last, name="latest")

            def value(*i: Any) -> Any:
                at = latest(*i)
                place = te.max(at, tirx.const(0, "int32"))
                inner = [te.min(j, tirx.const(n - 1, "int64")) for j, n in zip(i, bounds, strict=True)]
                theirs = s(*inner[:dim], place, *inner[dim + 1 :]) if whole and s.shape else s()
                return tirx.Select(at >= 0, theirs, t(*i))

            return te.compute(call.shape, value, name="scatter")

        return call.te(define, x, index, source, name="scatter")

    return convert


def _index_put(call: Call) -> Any:
    """At constant places; or along the first axis, at places that depend on the input."""
    if not call["accumulate"]:
        return _written(call)
    import torch

    from edgecsi.lower.operators.elementwise import computed

    # Additions at constant places: every element adds up those that go to it. The table lists them, at most `most`.
    size, count = math.prod(call.shapes["self"]), math.prod(call.shapes["values"])
    nodes: Any = call.node.args[1]
    indices = [None if i is None else call.known(i) for i in nodes]
    if any(known is None and i is not None for known, i in zip(indices, nodes, strict=True)):
        raise ValueError("additions at places that depend on the input; use scatter_add along one axis")
    places = torch.arange(size).reshape(call.shapes["self"])[
        tuple(slice(None) if i is None else i for i in indices)
    ]
    numbers = torch.arange(count).reshape(call.shapes["values"]).expand(places.shape)
    into, source = places.flatten().numpy(), numbers.flatten().numpy()
    most = int(np.bincount(into, minlength=size).max())
    table = np.full((size, most), -1, np.int64)
    filled = np.zeros(size, np.int64)
    for place, number in zip(into, source, strict=True):
        table[place, filled[place]] = number
        filled[place] += 1
    return _summed(call, table, computed(call.dtype))


def _summed(call: Call, table: NDArray[np.int64], dtype: str) -> Any:
    from tvm import relax, te, tirx

    size, most = table.shape
    count = math.prod(call.shapes["values"])
    x = call.emit(relax.op.reshape(call.cast(call["self"], dtype), (size,)))
    values = call.emit(relax.op.reshape(call.cast(call["values"], dtype), (count,)))

    def define(t: Any, s: Any, places: Any) -> Any:
        over = te.reduce_axis((0, most), name="r")

        def total(i: Any) -> Any:
            place = places(i, over)
            return te.sum(
                tirx.Select(place >= 0, s(te.max(place, tirx.const(0, "int32"))), tirx.const(0, dtype)),
                axis=over,
            )

        added = te.compute((size,), total, name="added")
        return te.compute((size,), lambda i: t(i) + added(i), name="accumulated")

    found = call.te(define, x, values, call.constant(table.astype(np.int32)), name="accumulate")
    return call.emit(relax.op.reshape(found, call.shape))


TABLE: dict[str, Callable[[Call], Any]] = {
    **{f"{n}_scatter.{o}": _written for n, o in (
        ("slice", "default"), ("select", "default"), ("diagonal", "default"), ("as_strided", "default"),
    )},
    **{f"scatter.{o}": _scatter(adds=False) for o in ("src", "value")},
    "scatter_add.default": _scatter(adds=True),
    "index_add.default": _scatter(adds=True),
    "index_copy.default": _scatter(adds=False),
    "index_put.default": _index_put,
    "_unsafe_index_put.default": _index_put,
}  # fmt: skip
