"""Layers: convolutions, products, normalisations, pooling, softmax. Those that a kernel of ours takes are emitted in the
form that `edgecsi.lower.operators.of_relax` knows."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecsi.codegen.vector_math import is_nan
from edgecsi.lower.operators.elementwise import FLOATS, computed

if TYPE_CHECKING:
    from edgecsi.lower.import_torch import Call


def _convolution(call: Call) -> Any:
    from tvm import relax

    if call["transposed"]:
        raise ValueError("a transposed convolution that was not taken apart")
    spatial = len(call.shape) - 2
    op = {1: relax.op.nn.conv1d, 2: relax.op.nn.conv2d, 3: relax.op.nn.conv3d}[spatial]
    stride, padding, dilation = (_each(call[n], spatial) for n in ("stride", "padding", "dilation"))
    y = call.emit(
        op(
            call["input"],
            call["weight"],
            strides=stride,
            padding=padding,
            dilation=dilation,
            groups=call["groups"],
        )
    )
    if call["bias"] is None:
        return y
    bias = call.emit(relax.op.reshape(call["bias"], [1, -1, *[1] * spatial]))
    return call.emit(relax.op.add(y, bias))


def _each(value: list[int], count: int) -> list[int]:
    return [int(v) for v in value] * (count if len(value) == 1 else 1)


def _product(call: Call) -> Any:
    from tvm import relax

    other = "mat2" if "mat2" in call.arguments else "other"
    return call.emit(relax.op.matmul(call["self"], call[other], out_dtype=computed(call.dtype)))


def _vector_product(call: Call) -> Any:
    """Matrix times vector, or two vectors."""
    from tvm import relax

    other = next(n for n in ("vec", "tensor") if n in call.arguments)
    column = call.emit(relax.op.reshape(call[other], (-1, 1)))
    rows = (
        call["self"] if len(call.shapes["self"]) == 2 else call.emit(relax.op.reshape(call["self"], (1, -1)))
    )
    return call.emit(relax.op.reshape(call.emit(relax.op.matmul(rows, column)), call.shape))


def _add_product(call: Call) -> Any:
    from tvm import relax

    product = call.emit(relax.op.matmul(call["mat1"], call["mat2"], out_dtype=computed(call.dtype)))
    return call.emit(relax.op.add(product, call["self"]))


def _layer_norm(call: Call) -> Any:
    from tvm import relax

    length = call["normalized_shape"][-1]
    gamma = call["weight"] if call["weight"] is not None else call.constant(np.ones(length, np.float32))
    beta = call["bias"] if call["bias"] is not None else call.constant(np.zeros(length, np.float32))
    y = call.emit(relax.op.nn.layer_norm(call["input"], gamma, beta, axes=[-1], epsilon=call["eps"]))
    return (y, None, None)


def _batch_norm(call: Call) -> Any:
    from tvm import relax

    channels = call.shape[1]
    gamma = call["weight"] if call["weight"] is not None else call.constant(np.ones(channels, np.float32))
    beta = call["bias"] if call["bias"] is not None else call.constant(np.zeros(channels, np.float32))
    found = relax.op.nn.batch_norm(
        call["input"], gamma, beta, call["running_mean"], call["running_var"], axis=1, epsilon=call["eps"],
        training=False,
    )  # fmt: skip
    return (call.emit(call.emit(found)[0]), None, None)


def _softmax(call: Call) -> Any:
    from tvm import relax

    return call.emit(relax.op.nn.softmax(call.cast(call["self"], computed(call.dtype)), call["dim"]))


def _log_softmax(call: Call) -> Any:
    from tvm import relax

    return call.emit(relax.op.nn.log_softmax(call.cast(call["self"], computed(call.dtype)), call["dim"]))


def _prelu(call: Call) -> Any:
    """Slope per channel; a slope that is computed is selected."""
    from tvm import relax

    slope = call["weight"]
    sizes = [int(n) for n in slope.ty.shape]
    if call.known(call.node.args[1]) is not None and (math.prod(sizes) == 1 or len(call.shape) == 4):
        flat = call.emit(relax.op.reshape(slope, (math.prod(sizes),)))
        axis = 1 if len(call.shape) > 1 else 0
        return call.emit(relax.op.nn.prelu(call["self"], _wide(call, flat, axis), axis))
    scaled = call.emit(relax.op.multiply(call["self"], slope))
    test = call.emit(relax.op.greater(call["self"], call.cast(0.0, computed(call.dtype))))
    return call.emit(relax.op.where(test, call["self"], scaled))


def _wide(call: Call, slope: Any, axis: int) -> Any:
    from tvm import relax

    wanted = call.shape[axis] if call.shape else 1
    if int(slope.ty.shape[0]) == wanted:
        return slope
    return call.emit(relax.op.broadcast_to(slope, (wanted,)))


def _pool(kind: str, spatial: int) -> Callable[[Call], Any]:
    """Pooling with every option. The plain cases go to our kernel; the rest is a sum or maximum over the window with
    the places outside left out, divided by what PyTorch divides by."""

    def convert(call: Call) -> Any:
        from tvm import relax

        x = call["self"]
        window = _each(call["kernel_size"], spatial)
        stride = _each(call["stride"], spatial) if call["stride"] else window
        padding = _each(call["padding"], spatial)
        dilation = _each(call.arguments.get("dilation") or [1], spatial)
        counts_pads = bool(call.arguments.get("count_include_pad", True))
        override = call.arguments.get("divisor_override")
        shape = call.shapes["self"][-spatial:]
        floor = [
            (n + 2 * p - d * (w - 1) - 1) // s + 1
            for n, p, d, w, s in zip(shape, padding, dilation, window, stride, strict=True)
        ]
        out = list(call.shape[-spatial:])
        rank4 = len(call.shapes["self"]) == 4 and computed(call.dtype) == "float32"
        if spatial == 2 and rank4 and floor == out and set(dilation) == {1} and override is None:
            op = relax.op.nn.max_pool2d if kind == "max" else relax.op.nn.avg_pool2d
            extra = {} if kind == "max" else {"count_include_pad": counts_pads}
            return call.emit(op(x, window, stride, padding, **extra))
        divisors = (
            _divisors(shape, out, window, stride, padding, counts_pads, override) if kind == "avg" else None
        )
        return windows(call, x, kind, window, stride, padding, dilation, divisors)

    def both(call: Call) -> Any:
        y = convert(call)
        if not _wants_places(call):
            return (y, None)
        window = _each(call["kernel_size"], spatial)
        stride = _each(call["stride"], spatial) if call["stride"] else window
        padding, dilation = (_each(call[n], spatial) for n in ("padding", "dilation"))
        firsts = [
            np.arange(m) * s - p for m, s, p in zip(call.shape[-spatial:], stride, padding, strict=True)
        ]
        lasts = [first + w * d for first, w, d in zip(firsts, window, dilation, strict=True)]
        return (y, _where_largest(call, y, firsts, lasts, dilation))

    return both if kind == "max" else convert


def _wants_places(call: Call) -> bool:
    """Whether somebody takes the second answer of a maximum."""
    return any(user.target is operator.getitem and user.args[1] == 1 for user in call.node.users)


def _where_largest(call: Call, y: Any, firsts: list[Any], lasts: list[Any], dilation: list[int]) -> Any:
    """Where in the image the largest of every window stands, int64: the first of several, but the last NaN.

    Args:
        firsts, lasts: along each axis, where every window begins, and the first place behind it.
    """
    from tvm import te, tirx

    spatial, size = len(dilation), call.shapes["self"][-len(dilation) :]
    window = [int(-(-(b - a).max() // d)) for a, b, d in zip(firsts, lasts, dilation, strict=True)]
    last = tirx.const(math.prod(size) - 1, "int64")
    lead = len(call.shape) - spatial

    def define(t: Any, largest: Any, *edges: Any) -> Any:
        over = [te.reduce_axis((0, w), name=f"r{i}") for i, w in enumerate(window)]

        def value(*i: Any) -> Any:
            places = [edges[k](i[lead + k]) + over[k] * dilation[k] for k in range(spatial)]
            kept = [te.max(te.min(at, n - 1), 0) for at, n in zip(places, size, strict=True)]
            number: Any = 0
            for at, n in zip(kept, size, strict=True):
                number = number * n + at
            here, best = t(*i[:lead], *kept), largest(*i)
            inside = [tirx.EQ(a, b) for a, b in zip(places, kept, strict=True)]
            inside += [at < edges[spatial + k](i[lead + k]) for k, at in enumerate(places)]
            place, nobody = tirx.Cast("int64", number), tirx.const(-1, "int64")
            found = tirx.Select(tirx.all(tirx.EQ(here, best), *inside), last - place, nobody)
            if computed(call.dtype) in FLOATS:
                found = tirx.Select(tirx.all(is_nan(here), *inside), last + 1 + place, found)
            return te.max(found, axis=over)

        found = te.compute(call.shape, value, name="where_largest")
        return te.compute(
            call.shape,
            lambda *i: tirx.Select(found(*i) > last, found(*i) - last - 1, last - found(*i)),
            name="place",
        )

    edges = [call.constant(edge.astype(np.int64)) for edge in (*firsts, *lasts)]
    return call.te(define, call["self"], y, *edges, name="where_largest")


def _antialiased(call: Call) -> Any:
    """Interpolation with antialiasing: one constant matrix an axis, which PyTorch gives for the unit images."""
    import torch
    from tvm import relax

    *lead, height, width = call.shapes["self"]
    x = call.emit(relax.op.reshape(call["self"], (math.prod(lead), height, width)))
    scales = call.arguments.get("scales_h"), call.arguments.get("scales_w")
    for size, wanted, scale in zip((width, height), reversed(call.shape[-2:]), reversed(scales), strict=True):
        units = torch.eye(size).reshape(
            1, size, 1, size
        )  # of columns of one pixel PyTorch makes something else
        matrix = call.node.target(units, [1, wanted], call["align_corners"], None, scale)[0, :, 0]  # type: ignore[operator]
        x = call.emit(relax.op.matmul(x, call.constant(matrix.numpy())))
        x = call.emit(relax.op.permute_dims(x, [0, 2, 1]))
    return call.emit(relax.op.reshape(x, call.shape))


def _divisors(
    shape: tuple[int, ...], out: list[int], window: list[int], stride: list[int], padding: list[int],
    counts_pads: bool, override: int | None,
) -> np.ndarray[Any, Any]:  # fmt: skip
    """What every output is divided by: the size of its window, cut at the padded edge, or at the image's own."""
    if override is not None:
        return np.full(out, override, np.float32)
    lengths = []
    for n, m, w, s, p in zip(shape, out, window, stride, padding, strict=True):
        first = np.arange(m) * s - p
        last = np.minimum(first + w, n + p)
        if not counts_pads:
            first, last = np.maximum(first, 0), np.minimum(last, n)
        lengths.append(last - first)
    total = np.ones(out, np.float32)
    for axis, length in enumerate(lengths):
        total *= length.reshape([-1 if i == axis else 1 for i in range(len(out))])
    return total


def windows(
    call: Call, x: Any, kind: str, window: list[int], stride: list[int], padding: list[int], dilation: list[int],
    divisors: Any,
) -> Any:  # fmt: skip
    """Sum or maximum over windows of the last axes."""
    from tvm import te, tirx

    from edgecsi.lower.operators.reductions import largest_of

    spatial = len(window)
    dtype = computed(call.dtype)
    shape = call.shapes["self"]
    nothing = tirx.const(-math.inf if kind == "max" and dtype in FLOATS else 0, dtype)
    if kind == "max" and dtype not in FLOATS:
        nothing = tirx.min_value(dtype)

    def define(t: Any, *rest: Any) -> Any:
        over = [te.reduce_axis((0, w), name=f"r{i}") for i, w in enumerate(window)]

        def value(*i: Any) -> Any:
            places, inside = [], []
            for axis in range(spatial):
                n = shape[len(shape) - spatial + axis]
                at = (
                    i[len(shape) - spatial + axis] * stride[axis]
                    + over[axis] * dilation[axis]
                    - padding[axis]
                )
                reach = (call.shape[len(shape) - spatial + axis] - 1) * stride[axis]
                reach += dilation[axis] * (window[axis] - 1) - padding[axis]
                if padding[axis]:
                    inside.append(at >= 0)
                if reach >= n:
                    inside.append(at < n)
                places.append(te.max(te.min(at, n - 1), 0) if padding[axis] or reach >= n else at)
            here = t(*i[: len(shape) - spatial], *places)
            kept = tirx.Select(tirx.all(*inside), here, nothing) if inside else here
            return largest_of(dtype)(kept, axis=over) if kind == "max" else te.sum(kept, axis=over)

        found = te.compute(call.shape, value, name="window")
        if not rest:
            return found
        return te.compute(
            call.shape, lambda *i: found(*i) / rest[0](*i[len(shape) - spatial :]), name="average"
        )

    return call.te(
        define, x, *([] if divisors is None else [call.constant(divisors.astype(dtype))]), name=f"{kind}_pool"
    )


def _adaptive(kind: str, spatial: int) -> Callable[[Call], Any]:
    """Windows from floor(i n / m) to ceil((i + 1) n / m)."""

    def convert(call: Call) -> Any:
        from tvm import te, tirx

        from edgecsi.lower.operators.reductions import largest_of

        shape, out = call.shapes["self"][-spatial:], call.shape[-spatial:]
        firsts = [np.arange(m) * n // m for n, m in zip(shape, out, strict=True)]
        lasts = [-(-(np.arange(m) + 1) * n // m) for n, m in zip(shape, out, strict=True)]
        sizes = [int((b - a).max()) for a, b in zip(firsts, lasts, strict=True)]
        dtype = computed(call.dtype)
        lead = len(call.shape) - spatial
        nothing = tirx.const(-math.inf if kind == "max" else 0, dtype)

        def define(t: Any, *edges: Any) -> Any:
            over = [te.reduce_axis((0, w), name=f"r{i}") for i, w in enumerate(sizes)]

            def value(*i: Any) -> Any:
                places, inside = [], []
                for axis in range(spatial):
                    at = edges[2 * axis](i[lead + axis]) + over[axis]
                    inside.append(at < edges[2 * axis + 1](i[lead + axis]))
                    places.append(te.min(at, tirx.const(shape[axis] - 1, "int64")))
                kept = tirx.Select(tirx.all(*inside), t(*i[:lead], *places), nothing)
                return largest_of(dtype)(kept, axis=over) if kind == "max" else te.sum(kept, axis=over)

            found = te.compute(call.shape, value, name="window")
            if kind == "max":
                return found

            def mean(*i: Any) -> Any:
                count: Any = tirx.const(1, "int64")
                for axis in range(spatial):
                    count = count * (edges[2 * axis + 1](i[lead + axis]) - edges[2 * axis](i[lead + axis]))
                return found(*i) / tirx.Cast(dtype, count)

            return te.compute(call.shape, mean, name="average")

        edges = [call.constant(e.astype(np.int64)) for pair in zip(firsts, lasts, strict=True) for e in pair]
        y = call.te(define, call["self"], *edges, name=f"adaptive_{kind}_pool")
        if kind == "avg":
            return y
        return (y, _where_largest(call, y, firsts, lasts, [1] * spatial) if _wants_places(call) else None)

    return convert


TABLE: dict[str, Callable[[Call], Any]] = {
    "convolution.default": _convolution,
    **{f"{n}.default": _product for n in ("mm", "bmm", "matmul")},
    **{f"{n}.default": _vector_product for n in ("mv", "dot")},
    "addmm.default": _add_product,
    "native_layer_norm.default": _layer_norm,
    "_native_batch_norm_legit_no_training.default": _batch_norm,
    "_softmax.default": _softmax,
    "_log_softmax.default": _log_softmax,
    "_prelu_kernel.default": _prelu,
    **{f"avg_pool{n}d.default": _pool("avg", n) for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices.default": _pool("max", n) for n in (2, 3)},
    **{f"_upsample_{n}2d_aa.default": _antialiased for n in ("bilinear", "bicubic")},
    **{f"_adaptive_avg_pool{n}d.default": _adaptive("avg", n) for n in (2, 3)},
    **{f"adaptive_max_pool{n}d.default": _adaptive("max", n) for n in (2, 3)},
}
