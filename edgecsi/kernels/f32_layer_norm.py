"""Layer normalisation over the last axis, fp32: mean, then variance, then the result, in three passes."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels import reduce
from edgecsi.kernels.base import Cost, Kernel, Knobs, constant_bytes
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import LayerNorm
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


class F32LayerNorm(Kernel):
    """Rows of any length.

    Knobs:
        lanes: width of a vector. unroll: vectors per iteration, with sums of their own.
    """

    op = LayerNorm

    def refuses(self, op: LayerNorm, target: Target) -> str:
        return reduce.refuses_rows(op)

    def knobs(self, op: LayerNorm, target: Target) -> Knobs:
        return reduce.row_knobs(op, target)

    def cost(self, op: LayerNorm, target: Target, knobs: Knobs) -> Cost:
        cost = reduce.row_cost(op, target, knobs, operations=7, per_row=20)
        return Cost(cost.seconds, constant_bytes(self.constants(op, target, knobs)), 0)

    def constants(self, op: LayerNorm, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        given = [a for a in (op.gamma, op.beta) if a is not None]
        return [np.ascontiguousarray(a, np.float32).reshape(-1) for a in given]

    def emit(self, op: LayerNorm, target: Target, knobs: Knobs) -> PrimFunc:
        from tvm import tirx

        from edgecsi.kernels import emit as e

        lanes, unroll = knobs["lanes"], knobs["unroll"]
        rows, extent = reduce.row_shape(op.y)
        with e.function(op, self.constants(op, target, knobs)) as (done, buffers):
            x, constants = buffers[0], buffers[len(op.inputs) : -1]
            gamma = constants[0] if op.gamma is not None else None
            beta = constants[-1] if op.beta is not None else None
            e.zero_halo(buffers[-1], op.y)
            finish = e.Finish(op, buffers, 1, len(op.inputs), target)

            def mean(of: Any) -> Any:
                """Mean over the row of a function of a vector's offset, in all lanes."""
                sums = [e.registers(lanes) for _ in range(unroll)]
                for s in sums:
                    e.store(s, 0, e.splat(0.0, lanes))

                def accumulate(at: Any, fresh: int, u: int) -> None:
                    value = reduce.only_fresh(of(at), fresh, 0.0)
                    e.store(sums[u % unroll], 0, e.load(sums[u % unroll], 0, lanes) + value)

                reduce.along(extent, lanes, unroll, accumulate)
                total = reduce.tree([e.load(s, 0, lanes) for s in sums], operator.add)
                return e.let(reduce.across(total, operator.add) * tirx.const(1.0 / extent, "float32"))

            with e.serial(rows) as row:
                source, start = (e.let(reduce.row_start(lay, row)) for lay in (op.x, op.y))
                centre = e.let(e.splat(mean(lambda at: e.load(x, source + at, lanes)), lanes))

                def squared(at: Any, source: Any = source, centre: Any = centre) -> Any:
                    off = e.let(e.load(x, source + at, lanes) - centre)
                    return off * off

                spread = e.intrinsic("llvm.sqrt", "float32", mean(squared) + tirx.const(op.eps, "float32"))
                factor = e.let(e.splat(e.let(tirx.const(1.0, "float32") / spread), lanes))

                def normalise(at: Any, fresh: int, u: int) -> None:
                    value = (e.load(x, source + at, lanes) - centre) * factor
                    if gamma is not None:
                        value = value * e.load(gamma, at, lanes)
                    if beta is not None:
                        value = value + e.load(beta, at, lanes)

                    def place(lay: Layout) -> Any:
                        return reduce.row_start(lay, row) + at

                    finish.store(start + at, finish.value(value, place, 0, 1))

                reduce.along(extent, lanes, unroll, normalise)
        return done.done()
