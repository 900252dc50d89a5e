"""Codes of an fp32 input for int8 arithmetic: by the range of each sample, or in two planes of a fixed one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgecsi.kernels import reduce
from edgecsi.kernels.dense.dot import Dot
from edgecsi.kernels.dense.walk import each_run
from edgecsi.kernels.tiling import overlap
from edgecsi.ops.dynamic import DYNAMIC_STEPS, TINY
from edgecsi.ops.operators import Dense
from edgecsi.target import Target

MAGIC = 12582912.0
"""1.5 * 2^23: adding it to a small fp32 number rounds that to an integer, half to even, in the low bits."""

_LARGEST = float(np.finfo(np.float32).max)


def write_codes(
    op: Dense,
    dot: Dot,
    target: Target,
    x: Any,
    scratch: Any,
    stride: int,
    room: Mapping[str, int],
    inputs: Any | None,
    run: int,
) -> None:
    """Emit the pass over the input that leaves codes in the workspace, and for dynamic ones the size of a
    step. Two planes are two rows.

    Args:
        stride: bytes between samples' codes. room: see `_workspace`.
        inputs: buffer with the inputs that a compacted matrix uses: their places in memory if static.
        run: how many neighbours each of these stands for.
    """
    from tvm.tirx.script import builder as T

    from edgecsi.kernels import emit as e

    lanes = 4 * target.lanes_f32

    def signed(code: Any) -> Any:
        return code if dot.unsigned else code ^ e.splat(128, e.lanes_of(code), "uint8")

    def gather(row: Any, codes: Any) -> None:
        """Codes of the inputs that are used."""
        assert inputs is not None
        with e.serial(inputs.shape[0]) as k:
            place = codes + T.cast(inputs[k], "int32")
            e.store(scratch, row + k * run, e.load(scratch, place, run))

    def ranges(first: Any, count: int) -> None:
        """Codes of so many samples by their own ranges."""
        find = _limits if count == 1 else _limits_of_four
        low, high = (e.let(limit) for limit in find(op, target, x, first))

        def every(value: float) -> Any:
            return e.splat(value, count)

        width = e.let(high - low)
        usable = T.And(width >= every(float(TINY)), width <= every(_LARGEST))
        inverse = e.let(T.Select(usable, every(DYNAMIC_STEPS) / width, every(0.0)))
        # one above the lowest code, so that no value rounds to a code that does not exist
        below = T.Select(usable, -low * inverse, every(0.0))
        zero = e.let(T.cast(below, e.vector_type("int32", count)) + e.splat(dot.zero - 127, count, "int32"))
        # Infinity and what is not a number take all outputs along.
        size = T.Select(width <= every(_LARGEST), width / every(DYNAMIC_STEPS), every(float("nan")))
        for name, value in (("steps", size), ("zeros", zero)):
            e.store(scratch, room[name] + first * 4, T.reinterpret(value, dtype=f"uint8x{4 * count}"))
        shift_up = e.let(T.cast(zero, e.vector_type("float32", count)) + every(MAGIC))
        for k in range(count):
            row = (first + k) * stride
            factor, shift = (v if count == 1 else e.let(e.part(v, k, 1)) for v in (inverse, shift_up))
            codes = row if inputs is None else room["all"]

            def quantize(
                element: Any,
                offset: Any,
                lanes: int,
                k: int = k,
                codes: Any = codes,
                by: Any = factor,
                up: Any = shift,
            ) -> None:
                value = e.load(x, (first + k) * op.x.stride + offset, lanes)
                rounded = e.fence(value * e.splat(by, lanes)) + e.splat(up, lanes)
                bits = T.reinterpret(rounded, dtype=e.vector_type("int32", lanes))
                e.store(scratch, codes + element, T.cast(bits, e.vector_type("uint8", lanes)))

            each_run(op.x, lanes, quantize)
            if inputs is not None:
                gather(row, room["all"])

    # The range of a short row takes longer than its codes; four rows find theirs together.
    plain = not any(op.x.halo) and op.x.group == 1
    fours = op.x.shape[0] // 4 if op.dynamic and plain and op.weight.shape[1] >= 4 else 0
    if fours:
        with e.serial(fours) as four:
            ranges(four * 4, 4)
    with e.serial(op.x.shape[0] - 4 * fours) as rest:
        sample = rest + 4 * fours if fours else rest
        here = sample * (op.planes * stride)
        if op.fine > 1:
            rows = [(here + k * stride, room["all"] + k * op.weight.shape[1]) for k in range(2)]

            def split(element: Any, offset: Any, count: int) -> None:
                value = e.load(x, sample * op.x.stride + offset, count)
                for (row, every), codes in zip(rows, _wide_codes(value, op, target), strict=True):
                    e.store(scratch, (row if inputs is None else every) + element, signed(codes))

            each_run(op.x, lanes, split)
            if inputs is not None:
                for row, every in rows:
                    gather(row, every)
            return
        if op.x_quant is not None and inputs is not None:
            with e.serial(inputs.shape[0]) as k:
                place = sample * op.x.stride + T.cast(inputs[k], "int32")
                e.store(scratch, here + k * run, signed(e.load(x, place, run)))
            return
        if op.x_quant is not None:

            def shift(element: Any, offset: Any, count: int) -> None:
                e.store(scratch, here + element, signed(e.load(x, sample * op.x.stride + offset, count)))

            each_run(op.x, lanes, shift)
            return
        ranges(sample, 1)


def _wide_codes(x: Any, op: Dense, target: Target) -> list[Any]:
    """Emit the codes of both planes of an fp32 vector, uint8; 0 for not-a-number."""
    from tvm.tirx.script import builder as T

    from edgecsi.kernels import emit as e

    quant, lanes = op.x_quant, e.lanes_of(x)
    assert quant is not None
    low, high = (e.splat(float(limit), lanes) for limit in (-quant.zero_point, 255 - quant.zero_point))
    if quant.offset:
        x = x - e.splat(float(np.float32(quant.offset)), lanes)
    steps = e.fence(x * e.splat(float(quant.inverse), lanes))
    found = []
    for _ in range(2):
        whole = e.let(e.round_to_int(e.within(steps, low, high, target)))
        codes = whole + e.splat(quant.zero_point, lanes, "int32")
        found.append(T.cast(codes, e.vector_type("uint8", lanes)))
        steps = e.let((steps - T.cast(whole, e.type_of(steps))) * e.splat(float(op.fine), lanes))
    return found


_ZEROS = {"uint32": 1 << 31, "int32": 0}
"""Bits of positive fp32 are ordered like signed integers; of negative ones, unsigned and upside down, above all
positive ones. Each starts from its zero."""


def _limits_of_four(op: Dense, target: Target, x: Any, first: Any) -> list[Any]:
    """:func:`_limits` of four samples that lie in memory without gaps, as vectors of four."""
    from tvm.tirx.script import builder as T

    from edgecsi.kernels import emit as e

    length = op.weight.shape[1]
    lanes = reduce.lanes_for(length, target.lanes_f32)
    best = {kind: [e.registers(lanes, kind) for _ in range(4)] for kind in _ZEROS}
    for kind, registers in best.items():
        for one in registers:
            e.store(one, 0, e.splat(_ZEROS[kind], lanes, kind))
    with e.serial(-(-length // lanes)) as block:
        at = e.let(overlap(block, lanes, length))
        for k in range(4):
            value = e.let(e.load(x, (first + k) * op.x.stride + at, lanes))
            for kind, registers in best.items():
                bits = T.reinterpret(value, dtype=e.vector_type(kind, lanes))
                e.store(registers[k], 0, T.max(e.load(registers[k], 0, lanes), bits))
    found = []
    for registers in best.values():
        four = reduce.four_across([e.let(e.load(one, 0, lanes)) for one in registers], T.max)
        found.append(T.reinterpret(four, dtype="float32x4"))
    return found


def _limits(op: Dense, target: Target, x: Any, sample: Any) -> tuple[Any, Any]:
    """Emit min(x, 0) and max(x, 0) over a sample, as fp32; not-a-number wins."""
    from tvm.tirx.script import builder as T

    from edgecsi.kernels import emit as e

    lanes = 4 * target.lanes_f32
    widths = [w for w in (lanes >> k for k in range(lanes.bit_length())) if w]
    best = {(kind, w): e.registers(w, kind) for kind in _ZEROS for w in widths}
    for (kind, w), registers in best.items():
        e.store(registers, 0, e.splat(_ZEROS[kind], w, kind))

    def widen(element: Any, offset: Any, count: int) -> None:
        value = e.load(x, sample * op.x.stride + offset, count)
        for kind in _ZEROS:
            bits = T.reinterpret(value, dtype=e.vector_type(kind, count))
            registers = best[kind, count]
            e.store(registers, 0, T.max(e.load(registers, 0, count), bits))

    each_run(op.x, lanes, widen)
    found = []
    for kind in _ZEROS:
        top = None
        for w in widths:
            value = e.load(best[kind, w], 0, w)
            while e.lanes_of(value) > 1:
                half = e.lanes_of(value) // 2
                if half > 1:
                    value = T.max(e.part(value, 0, half), e.part(value, half, half))
                else:
                    value = T.max(e.shuffle([value], [0]), e.shuffle([value], [1]))
                value = e.let(value)
            top = value if top is None else T.max(top, value)
        found.append(T.reinterpret(top, dtype="float32"))
    return found[0], found[1]
