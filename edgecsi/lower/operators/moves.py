"""Operators that only move numbers.

Most of them need no converter of their own: PyTorch carries the operator out on the numbers 0, 1, 2, …, and the result
says where each element comes from. A regular pattern becomes index arithmetic, any other a constant table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgecsi.lower.import_torch import Call


def _view(call: Call) -> Any:
    from tvm import relax

    return call.emit(relax.op.reshape(call["self"], call.shape))


def _same(call: Call) -> Any:
    return call["self"]


def _copy(call: Call) -> Any:
    """``copy(self, src)``: the source in the shape and type of the destination."""
    from tvm import relax

    from edgecsi.lower.operators.elementwise import computed

    value = call.cast(call["src"], computed(call.dtype))
    return value if call.shapes["src"] == call.shape else call.emit(relax.op.broadcast_to(value, call.shape))


def _permute(call: Call) -> Any:
    from tvm import relax

    return call.emit(relax.op.permute_dims(call["self"], call["dims"]))


def _expand(call: Call) -> Any:
    from tvm import relax

    return (
        call["self"]
        if call.shapes["self"] == call.shape
        else call.emit(relax.op.broadcast_to(call["self"], call.shape))
    )


def _slice(call: Call) -> Any:
    from tvm import relax

    dim, step = call["dim"], call["step"]
    length = call.shapes["self"][dim]
    first, last, step = slice(call["start"], call["end"], step).indices(length)
    if (first, last, step) == (0, length, 1):
        return call["self"]
    return call.emit(relax.op.strided_slice(call["self"], [dim], [first], [max(first, last)], [step]))


def _select(call: Call) -> Any:
    from tvm import relax

    dim = call["dim"]
    at = call["index"] % call.shapes["self"][dim]
    row = call.emit(relax.op.strided_slice(call["self"], [dim], [at], [at + 1], [1]))
    return call.emit(relax.op.reshape(row, call.shape))


def _cat(call: Call) -> Any:
    from tvm import relax

    from edgecsi.lower.operators.elementwise import computed

    parts = [p for p in call["tensors"] if [int(n) for n in p.ty.shape] != [0]]
    parts = [call.cast(p, computed(call.dtype)) for p in parts]
    return parts[0] if len(parts) == 1 else call.emit(relax.op.concat(parts, call["dim"]))


def _split(call: Call) -> Any:
    """Parts along an axis."""
    from tvm import relax

    dim = call["dim"]
    parts, first = [], 0
    for held in call.node.meta["val"]:
        last = first + int(held.shape[dim])
        parts.append(call.emit(relax.op.strided_slice(call["self"], [dim], [first], [last], [1])))
        first = last
    return tuple(parts)


def moved(call: Call) -> Any:
    """Where every element comes from, found out by moving numbers that count from 1; 0 is what fills gaps."""
    import torch

    shape = call.shapes["self"]
    places = torch.arange(1, math.prod(shape) + 1).reshape(shape)
    replaced = {"self": places} | ({"value": 0} if "value" in call.arguments else {})
    table = carried_out(call, replaced).contiguous().numpy() - 1
    return picked(call, call["self"], table, call.arguments.get("value") or 0)


def carried_out(call: Call, replaced: dict[str, Any]) -> Any:
    """The node's operator on other tensors.

    Raises:
        ValueError: one of the arguments that stay depends on the input.
    """
    from torch.fx.node import map_arg

    from edgecsi.lower.refuse import arguments_of

    def known(node: Any) -> Any:
        if call.known(node) is None:
            raise ValueError(f"{node} depends on the input")
        return call.known(node)

    given = {
        n: replaced[n] if n in replaced else map_arg(v, known) for n, v in arguments_of(call.node).items()
    }
    keywords = {a.name for a in call.node.target._schema.arguments if a.kwarg_only}  # type: ignore[union-attr]
    return call.node.target(  # type: ignore[operator]
        *(v for n, v in given.items() if n not in keywords),
        **{n: v for n, v in given.items() if n in keywords},
    )


def picked(call: Call, x: Any, table: NDArray[np.int64], filler: float = 0) -> Any:
    """``x.flat[table]``, with `filler` where the table has -1."""
    from tvm import relax, te, tirx

    shape = tuple(int(n) for n in table.shape)
    size = math.prod(int(n) for n in x.ty.shape)
    dtype = str(x.ty.dtype)
    flat = call.emit(relax.op.reshape(x, (size,)))
    pattern = _regular(table)
    if pattern is not None:
        base, strides = pattern

        def arithmetic(t: Any) -> Any:
            def value(*indices: Any) -> Any:
                place: Any = base
                for i, stride in zip(indices, strides, strict=True):
                    place = place + i * stride if stride else place
                return t(place if not isinstance(place, int) else tirx.const(place, "int64"))

            return te.compute(shape, value, name="move")

        return call.te(arithmetic, flat, name="move")
    gaps = bool((table < 0).any())

    def look_up(t: Any, places: Any) -> Any:
        def value(*indices: Any) -> Any:
            place = places(*indices)
            if not gaps:
                return t(place)
            return tirx.Select(
                place >= 0, t(te.max(place, tirx.const(0, "int32"))), tirx.const(filler, dtype)
            )

        return te.compute(shape, value, name="move")

    return call.te(look_up, flat, call.constant(table.astype(np.int32)), name="move")


def _regular(table: NDArray[np.int64]) -> tuple[int, list[int]] | None:
    """Offset and strides, if the table is an affine function of its indices."""
    if table.size == 0 or table.ndim == 0:
        return (int(table), []) if table.ndim == 0 and int(table) >= 0 else None
    base = int(table.flat[0])
    strides = [
        int(table[tuple(1 if i == axis else 0 for i in range(table.ndim))]) - base if n > 1 else 0
        for axis, n in enumerate(table.shape)
    ]
    grid = np.full(table.shape, base, np.int64)
    for axis, stride in enumerate(strides):
        grid += (np.arange(table.shape[axis]) * stride).reshape(
            [-1 if i == axis else 1 for i in range(table.ndim)]
        )
    return (base, strides) if base >= 0 and np.array_equal(grid, table) else None


def inside(index: Any, length: int) -> Any:
    """An index as PyTorch counts (negative from the end), and never outside: the library trusts no index."""
    from tvm import te, tirx

    wide = tirx.Cast("int64", index)
    wrapped = tirx.Select(wide < 0, wide + length, wide)
    return te.max(te.min(wrapped, tirx.const(length - 1, "int64")), tirx.const(0, "int64"))


def _gather(call: Call) -> Any:
    return _taken(call, "gather", lambda index, i, _dim: index(*i))


def _index_select(call: Call) -> Any:
    return _taken(call, "index_select", lambda index, i, dim: index(i[dim]) if index.shape else index())


def _taken(call: Call, name: str, place: Callable[[Any, tuple[Any, ...], int], Any]) -> Any:
    """Elements whose place along an axis an index tells; `place` reads it, for an element of the result."""
    from tvm import te

    if call.known(call.node.args[2]) is not None:
        return moved(call)
    dim = call["dim"]
    length = call.shapes["self"][dim]

    def define(x: Any, index: Any) -> Any:
        def value(*i: Any) -> Any:
            return x(*i[:dim], inside(place(index, i, dim), length), *i[dim + 1 :])

        return te.compute(call.shape, value, name=name)

    return call.te(define, call["self"], call["index"], name=name)


def _embedding(call: Call) -> Any:
    from tvm import te

    rank = len(call.shapes["indices"])
    length = call.shapes["weight"][0]

    def define(weight: Any, index: Any) -> Any:
        return te.compute(
            call.shape, lambda *i: weight(inside(index(*i[:rank]), length), i[rank]), name="embedding"
        )

    return call.te(define, call["weight"], call["indices"], name="embedding")


def _index(call: Call) -> Any:
    """Several index tensors at once, broadcast against each other; None takes the whole axis."""
    from tvm import te

    nodes: Any = call.node.args[1]
    if all(n is None or call.known(n) is not None for n in nodes):
        return moved(call)
    indices = list(call["indices"])
    if any(i is not None and str(i.ty.dtype) in ("bool", "uint8") for i in indices):
        raise ValueError(
            "indexing with a mask that depends on the input returns as many elements as the data says"
        )
    used = [axis for axis, i in enumerate(indices) if i is not None]
    shapes = [tuple(int(n) for n in indices[a].ty.shape) for a in used]
    wide = np.broadcast_shapes(*shapes)
    together = used == list(range(used[0], used[-1] + 1))
    at = used[0] if together else 0
    lengths = call.shapes["self"]

    def define(x: Any, *given: Any) -> Any:
        def value(*i: Any) -> Any:
            chosen = i[at : at + len(wide)]
            kept = iter((*i[:at], *i[at + len(wide) :]))
            place = []
            for axis in range(len(lengths)):
                if axis not in used:
                    place.append(next(kept))
                    continue
                tensor = given[used.index(axis)]
                last = chosen[len(wide) - len(tensor.shape) :]
                own = [0 if int(n) == 1 else j for j, n in zip(last, tensor.shape, strict=True)]
                place.append(inside(tensor(*own), lengths[axis]))
            return x(*place)

        return te.compute(call.shape, value, name="index")

    return call.te(define, call["self"], *(indices[a] for a in used), name="index")


def _unbind(call: Call) -> Any:
    from tvm import relax

    dim = call["dim"]
    parts = []
    for at, held in enumerate(call.node.meta["val"]):
        row = call.emit(relax.op.strided_slice(call["self"], [dim], [at], [at + 1], [1]))
        parts.append(call.emit(relax.op.reshape(row, tuple(int(n) for n in held.shape))))
    return tuple(parts)


# PyTorch itself says where each element comes from.
BY_INDEX = (
    "flip.default", "roll.default", "repeat.default", "diagonal.default", "unfold.default", "as_strided.default",
    "constant_pad_nd.default", "transpose.int", "tril.default", "triu.default", "pixel_shuffle.default",
    "pixel_unshuffle.default", "reflection_pad1d.default", "reflection_pad2d.default", "reflection_pad3d.default",
    "replication_pad1d.default", "replication_pad2d.default", "replication_pad3d.default",
)  # fmt: skip
TABLE: dict[str, Callable[[Call], Any]] = {
    **{f"{n}.{o}": _view for n, o in (
        ("view", "default"), ("reshape", "default"), ("_unsafe_view", "default"), ("unsqueeze", "default"),
        ("squeeze", "default"), ("squeeze", "dim"), ("squeeze", "dims"), ("flatten", "using_ints"),
        ("_reshape_copy", "default"),
    )},
    **{f"{n}.default": _same for n in (
        "alias", "clone", "detach", "contiguous", "lift_fresh_copy", "_conj", "resolve_conj", "resolve_neg",
    )},
    "copy.default": _copy,
    "permute.default": _permute,
    "expand.default": _expand,
    "slice.Tensor": _slice,
    "select.int": _select,
    "cat.default": _cat,
    "split_with_sizes.default": _split,
    "split.Tensor": _split,
    "unbind.int": _unbind,
    **dict.fromkeys(BY_INDEX, moved),
    "gather.default": _gather,
    "index_select.default": _index_select,
    "embedding.default": _embedding,
    "index.Tensor": _index,
    "_unsafe_index.Tensor": _index,
}  # fmt: skip
