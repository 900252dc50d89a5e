"""Batched product of two fp32 activations, as in attention; rows x vectors of columns in registers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels import reduce
from edgecsi.kernels.base import Blocked, Cost, Knobs
from edgecsi.kernels.tiling import Scalars, overlap, slots
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import MatMul
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


class F32MatMul(Blocked):
    """Any sizes; the batches of both are the same.

    Knobs:
        lanes: width of a vector. rows, vectors: rows and vectors of a block. unroll: steps of the reduction
        per iteration.
    """

    op = MatMul

    def refuses(self, op: MatMul, target: Target) -> str:
        tensors = [op.x, op.b, op.y, *(s.operand for s in op.epilogue if s.operand is not None)]
        if any(t.dtype != "float32" for t in (op.x, op.b, op.y)):
            return "all tensors must be float32"
        if any(any(t.halo) or t.group != 1 for t in tensors):
            return "all tensors must lie without gaps"
        if not op.x.shape[:-2] == op.b.shape[:-2] == op.y.shape[:-2]:
            return "the batches differ"
        if any(s.constants or (s.operand and s.operand.shape != op.y.shape) for s in op.epilogue):
            return "per-channel constants and gates are not supported"
        return ""

    def _sensible(self, op: MatMul, target: Target) -> Iterator[dict[str, int]]:
        height, width = op.y.shape[-2:]
        lanes = reduce.lanes_for(width, target.lanes_f32)
        for rows, vectors in itertools.product((1, 2, 3, 4, 6, 8, 12), (1, 2, 3, 4)):
            busy = rows * vectors + vectors + (rows if target.arch == "aarch64" else 1)
            if (
                rows <= height
                and (vectors - 1) * lanes < width
                and (busy <= target.vector_registers or rows == 1)
            ):
                yield {"lanes": lanes, "rows": rows, "vectors": vectors, "unroll": 4}

    def cost(self, op: MatMul, target: Target, knobs: Knobs) -> Cost:
        batch, height, width, inner = _sizes(op)
        lanes, rows, vectors = knobs["lanes"], knobs["rows"], knobs["vectors"]
        blocks = batch * -(-height // rows) * -(-width // (lanes * vectors))
        fma, loads = rows * vectors, vectors + rows * (0.25 if target.arch == "aarch64" else 1)
        step = slots(target, fma, loads, 1)
        operations = blocks * (inner * step + fma * (3 + 2 * len(op.epilogue)) + 24)
        second = target.peak_gmacs_f32 * 1e9 / target.lanes_f32
        return Cost(seconds=operations / second, bytes=0, macs=op.macs)

    def constants(self, op: MatMul, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        return []

    def emit(self, op: MatMul, target: Target, knobs: Knobs) -> PrimFunc:
        from edgecsi.kernels import emit as e

        batch, height, width, inner = _sizes(op)
        lanes, rows, vectors, unroll = (knobs[k] for k in ("lanes", "rows", "vectors", "unroll"))
        if rows > height or (vectors - 1) * lanes >= width or lanes > width:
            raise ValueError(f"{dict(knobs)} do not fit {op.y.shape}")
        grid = list(itertools.product(range(rows), range(vectors)))
        columns = -(-width // lanes)

        with e.function(op) as (done, buffers):
            a, b = buffers[:2]
            finish = e.Finish(op, buffers, 2, len(op.inputs), target)

            def steps(
                first: Any, count: int, sums: dict[Any, Any], row: Any, right: Any, at: list[Any]
            ) -> None:
                """Add `count` terms of the sums."""
                scalars = [Scalars(a, row + r * inner + first, count, target) for r in range(rows)]
                for u in range(count):
                    values = [e.let(e.load(b, right + (first + u) * width + c, lanes)) for c in at]
                    for r, v in grid:
                        e.store(
                            sums[r, v],
                            0,
                            e.load(sums[r, v], 0, lanes) + scalars[r].splat(u, lanes) * values[v],
                        )

            with e.serial(batch) as index:
                right = e.let(matrix_start(op.b, index))
                with e.serial(-(-height // rows)) as block, e.serial(-(-columns // vectors)) as column:
                    top = e.let(overlap(block, rows, height))
                    first = overlap(column, vectors, columns)
                    at = [e.let(overlap(first + v, lanes, width)) for v in range(vectors)]
                    row = e.let(matrix_start(op.x, index) + top * inner)
                    sums = {rv: e.registers(lanes) for rv in grid}
                    for acc in sums.values():
                        e.store(acc, 0, e.splat(0.0, lanes))
                    with e.serial(inner // unroll) as k:
                        steps(k * unroll, unroll, sums, row, right, at)
                    if inner % unroll:
                        steps(inner - inner % unroll, inner % unroll, sums, row, right, at)
                    for (r, v), acc in sums.items():

                        def place(lay: Layout, r: int = r, v: int = v) -> Any:
                            return matrix_start(lay, index) + (top + r) * width + at[v]

                        finish.store(place(op.y), finish.value(e.load(acc, 0, lanes), place, 0, 1))
        return done.done()


def _sizes(op: MatMul) -> tuple[int, int, int, int]:
    """Matrices, rows and columns of each product, length of the sums."""
    *batch, height, width = op.y.shape
    return int(np.prod(batch, dtype=np.int64)), height, width, op.x.shape[-1]


def matrix_start(layout: Layout, index: Any) -> Any:
    """Offset of matrix `index` of a batch."""
    size = layout.shape[-2] * layout.shape[-1]
    if len(layout.shape) < 3 or layout.is_plain:
        return index * size
    per_sample = int(np.prod(layout.shape[1:-2], dtype=np.int64))
    return index // per_sample * layout.stride + index % per_sample * size
