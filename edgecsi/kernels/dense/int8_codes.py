"""Codes of an fp32 input for int8 arithmetic: by the range of each sample, or in two planes of a fixed one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecsi.kernels.dense.dot import Dot
from edgecsi.kernels.dense.walk import each_run
from edgecsi.ops.dynamic import DYNAMIC_STEPS, TINY
from edgecsi.ops.operators import Dense
from edgecsi.target import Target

if TYPE_CHECKING:
    pass


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

    with e.serial(op.x.shape[0]) as sample:
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
        low, high = (e.let(limit) for limit in _limits(op, lanes, x, sample))
        width = e.let(high - low)
        usable = T.And(width >= T.float32(float(TINY)), width <= T.float32(_LARGEST))
        inverse = e.let(T.Select(usable, T.float32(DYNAMIC_STEPS) / width, T.float32(0)))
        # one above the lowest code, so that no value rounds to a code that does not exist
        below = T.Select(usable, -low * inverse, T.float32(0))
        zero = e.let(T.cast(below, "int32") + T.int32(dot.zero - 127))
        # Infinity and what is not a number take all outputs along.
        size = T.Select(
            width <= T.float32(_LARGEST), width / T.float32(DYNAMIC_STEPS), T.float32(float("nan"))
        )
        e.store(scratch, room["steps"] + sample * 4, T.reinterpret(size, dtype="uint8x4"))
        e.store(scratch, room["zeros"] + sample * 4, T.reinterpret(zero, dtype="uint8x4"))
        shift_up = e.let(T.cast(zero, "float32") + T.float32(MAGIC))
        target_of_codes = here if inputs is None else room["all"]

        def quantize(element: Any, offset: Any, count: int) -> None:
            value = e.load(x, sample * op.x.stride + offset, count)
            rounded = e.fence(value * e.splat(inverse, count)) + e.splat(shift_up, count)
            bits = T.reinterpret(rounded, dtype=e.vector_type("int32", count))
            e.store(scratch, target_of_codes + element, T.cast(bits, e.vector_type("uint8", count)))

        each_run(op.x, lanes, quantize)
        if inputs is not None:
            gather(here, room["all"])


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


def _limits(op: Dense, lanes: int, x: Any, sample: Any) -> tuple[Any, Any]:
    """Emit min(x, 0) and max(x, 0) over a sample, as fp32; not-a-number wins."""
    from tvm.tirx.script import builder as T

    from edgecsi.kernels import emit as e

    widths = [w for w in (lanes >> k for k in range(lanes.bit_length())) if w]
    # Bits of positive fp32 are ordered like signed integers; of negative ones, unsigned and upside down, above all
    # positive ones. Each starts from its zero.
    kinds = {"uint32": 1 << 31, "int32": 0}
    best = {(kind, w): e.registers(w, kind) for kind in kinds for w in widths}
    for (kind, w), registers in best.items():
        e.store(registers, 0, e.splat(kinds[kind], w, kind))

    def widen(element: Any, offset: Any, count: int) -> None:
        value = e.load(x, sample * op.x.stride + offset, count)
        for kind in kinds:
            bits = T.reinterpret(value, dtype=e.vector_type(kind, count))
            registers = best[kind, count]
            e.store(registers, 0, T.max(e.load(registers, 0, count), bits))

    each_run(op.x, lanes, widen)
    found = []
    for kind in kinds:
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
