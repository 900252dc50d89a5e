"""Softmax over the last axis, fp32: three passes over a row that stays in the first-level cache."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from edgecsi.kernels import reduce
from edgecsi.kernels.base import Cost, Kernel, Knobs
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Softmax
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


class F32Softmax(Kernel):
    """Rows of any length.

    Knobs:
        lanes: width of a vector. unroll: vectors per iteration, with sums of their own.
    """

    op = Softmax

    def refuses(self, op: Softmax, target: Target) -> str:
        return reduce.refuses_rows(op)

    def knobs(self, op: Softmax, target: Target) -> Knobs:
        return reduce.row_knobs(op, target)

    def cost(self, op: Softmax, target: Target, knobs: Knobs) -> Cost:
        # Most of it is the exponential, about 20 operations a vector.
        return reduce.row_cost(op, target, knobs, operations=26, per_row=8)

    def constants(self, op: Softmax, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        from edgecsi.kernels.emit import epilogue_constants

        return list(epilogue_constants(op))

    def emit(self, op: Softmax, target: Target, knobs: Knobs) -> PrimFunc:
        from tvm import tirx

        from edgecsi.codegen import vector_math
        from edgecsi.kernels import emit as e

        lanes, unroll = knobs["lanes"], knobs["unroll"]
        rows, extent = reduce.row_shape(op.y)
        with e.function(op, self.constants(op, target, knobs)) as (done, buffers):
            x, y = buffers[0], buffers[-1]
            e.zero_halo(y, op.y)
            finish = e.Finish(op, buffers, 1, len(op.inputs), target)
            with e.serial(rows) as row:
                source, start = (e.let(reduce.row_start(lay, row)) for lay in (op.x, op.y))
                peaks = [e.registers(lanes) for _ in range(unroll)]
                sums = [e.registers(lanes) for _ in range(unroll)]
                for u in range(unroll):
                    e.store(peaks[u], 0, e.load(x, source, lanes))
                    e.store(sums[u], 0, e.splat(0.0, lanes))

                def find_peak(at: Any, fresh: int, u: int) -> None:
                    e.store(peaks[u], 0, tirx.max(e.load(peaks[u], 0, lanes), e.load(x, source + at, lanes)))

                reduce.along(extent, lanes, unroll, find_peak)
                peak = e.splat(
                    reduce.across(reduce.tree([e.load(p, 0, lanes) for p in peaks], tirx.max), tirx.max),
                    lanes,
                )

                def exponential(at: Any, fresh: int, u: int) -> None:
                    value = e.let(vector_math.exp(e.load(x, source + at, lanes) - peak))
                    e.store(y, start + at, value)
                    e.store(sums[u], 0, e.load(sums[u], 0, lanes) + reduce.only_fresh(value, fresh, 0.0))

                reduce.along(extent, lanes, unroll, exponential)
                total = reduce.across(
                    reduce.tree([e.load(s, 0, lanes) for s in sums], operator.add), operator.add
                )
                factor = e.let(e.splat(e.let(tirx.const(1.0, "float32") / total), lanes))

                def finished(at: Any, value: Any) -> None:
                    def place(lay: Layout) -> Any:
                        return reduce.row_start(lay, row) + at

                    finish.store(start + at, finish.value(value * factor, place, 0, 1))

                # The last vector is read before its neighbour, which it overlaps, is written.
                last = extent - lanes
                tail = e.let(e.load(y, start + last, lanes))
                reduce.along(
                    extent // lanes * lanes,
                    lanes,
                    unroll,
                    lambda at, *_: finished(at, e.load(y, start + at, lanes)),
                )
                if extent % lanes:
                    finished(last, tail)
        return done.done()
