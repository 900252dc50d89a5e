"""From the sums of a panel to the output, whatever its layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgecsi.kernels.base import Expr
from edgecsi.kernels.dense.sparse import (
    Section,
)
from edgecsi.kernels.dense.walk import each_run, run_lanes
from edgecsi.ops.layout import Layout, vector_widths
from edgecsi.ops.operators import Dense, Quant


class Results:
    """Stores the finished outputs of a panel, whatever the layout.

    Where a vector of sums does not belong to neighbours in memory (grouped channels, short rows of an image,
    rows left out of a compacted matrix), sums first go to the workspace, where `close` collects them.

    Args:
        value: from a vector of sums, the first of its outputs and the sample to fp32 results (scales, bias).
        spill: buffer of the workspace and the byte where `spill_bytes` are free, if `spills`.
        outputs: buffer with the outputs that the rows of a compacted matrix belong to.
    """

    def __init__(
        self,
        op: Dense,
        finish: Any,
        lanes: int,
        value: Callable[[Expr, Expr, Expr], Expr],
        spill: tuple[Any, int] | None = None,
        outputs: Any | None = None,
    ) -> None:
        self.op, self.finish, self.value, self.spill, self.outputs = op, finish, value, spill, outputs
        operands = [s.operand for s in op.epilogue if s.operand is not None]
        self.all = int(np.prod(op.y.shape[1:]))
        self.inner = int(np.prod(op.y.shape[2:]))
        self.operands = operands
        self.lanes = lanes
        self.dtype = "float32"

    def __call__(self, part: Section, panel: Expr, sample: Expr, sums: list[Expr]) -> None:
        from edgecsi.kernels import emit as e

        lanes = e.lanes_of(sums[0])
        self.dtype = e.type_of(sums[0]).split("x")[0]
        first = part.first + panel * part.rows
        for v, total in enumerate(sums):
            room = part.valid - v * lanes if part.panels == 1 else lanes
            most = self.lanes if self.outputs is None else 1
            pieces = vector_widths(min(room, lanes), most) if room > 0 else []
            if len(pieces) == 1 and pieces[0][1] == lanes:
                self._put(sample, first + v * lanes, total)
                continue
            for at, width in pieces:
                piece = e.part(total, at, width) if width > 1 else e.shuffle([total], [at])
                self._put(sample, first + v * lanes + at, piece)

    def _put(self, sample: Expr, output: Expr, total: Expr) -> None:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        if self.spill is None:
            place = place_of(self.op.y, sample, output)
            self.finish.store(place(self.op.y), self._finished(sample, output, total))
            return
        if self.outputs is not None:
            output = T.cast(self.outputs[output], "int32")
        memory, at = self.spill
        lanes = e.lanes_of(total)
        e.store(
            memory, at + (sample * self.all + output) * 4, T.reinterpret(total, dtype=f"uint8x{4 * lanes}")
        )

    def _finished(self, sample: Expr, output: Expr, total: Expr) -> Expr:
        from edgecsi.kernels import emit as e

        lanes = e.lanes_of(total)
        channel, of_channel = (output, lanes) if self.inner == 1 else (output // self.inner, 1)
        value = self.value(total, output, sample)
        return self.finish.value(value, place_of(self.op.y, sample, output), channel, of_channel)

    def open(self) -> None:
        """Emit zeros for the outputs that no row of a compacted matrix belongs to."""
        from edgecsi.kernels import emit as e

        if self.spill is None or self.outputs is None:
            return
        memory, at = self.spill
        bytes_ = self.op.x.shape[0] * self.all * 4
        lanes = 4 * self.lanes
        if bytes_ // lanes:
            with e.serial(bytes_ // lanes) as k:
                e.store(memory, at + k * lanes, e.splat(0, lanes, "uint8"))
        for k, width in vector_widths(bytes_ % lanes, lanes):
            e.store(memory, at + bytes_ // lanes * lanes + k, e.splat(0, width, "uint8"))

    def close(self) -> None:
        """Emit the pass over the collected sums."""
        from edgecsi.kernels import emit as e

        if self.spill is None:
            return
        op = self.op
        with e.serial(op.y.shape[0]) as sample:
            if op.y.group == 4 and op.y_quant is not None:
                self._grouped(sample, 1 if any(o.group > 1 for o in self.operands) else self.lanes)
                return

            def store(element: Expr, offset: Expr, count: int) -> None:
                total = self._collected(sample, element, count)
                self.finish.store(sample * op.y.stride + offset, self._finished(sample, element, total))

            grouped = any(layout.group > 1 for layout in self.operands)
            by_rows = run_lanes(op.y, self.operands, self.lanes) < self.lanes
            each_run(op.y, 1 if grouped else self.lanes, store, by_rows)

    def _collected(self, sample: Expr, output: Expr, lanes: int) -> Expr:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        assert self.spill is not None
        memory, at = self.spill
        raw = e.load(memory, at + (sample * self.all + output) * 4, 4 * lanes)
        return T.reinterpret(raw, dtype=e.vector_type(self.dtype, lanes))

    def _grouped(self, sample: Expr, lanes: int) -> None:
        """Four channels a pixel: their codes make up one 32-bit word."""
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        y, quant = self.op.y, self.op.y_quant
        assert isinstance(quant, Quant)
        _, channels, height, width = y.shape
        for first in range(0, channels, 4):
            with e.serial(height) as h:
                for w, count in vector_widths(width, lanes):
                    word = None
                    for c in range(first, min(first + 4, channels)):
                        output = (c * height + h) * width + w
                        total = self._collected(sample, output, count)
                        codes = e.quantize(self._finished(sample, output, total), quant, self.finish.target)
                        if c > first:
                            codes = word | T.shift_left(codes, e.splat(8 * (c - first), count, "int32"))
                        word = e.let(codes)
                    e.store(
                        self.finish.y,
                        y.at(sample, first, h, w),
                        T.reinterpret(word, dtype=f"uint8x{4 * count}"),
                    )


def place_of(like: Layout, sample: Expr, output: Expr) -> Callable[[Layout], Expr]:
    """Where output `output` (row-major over the shape of `like`) of a sample lies in a tensor.

    Gates of shape (N, C, 1, 1) or (N, 1, H, W) are indexed with what they have.
    """

    def place(layout: Layout) -> Expr:
        if len(like.shape) != 4:
            return sample * layout.stride + output
        _, _, height, width = like.shape
        c, h, w = output // (height * width), output // width % height, output % width
        _, channels, rows, columns = layout.shape
        return layout.at(sample, c if channels > 1 else 0, h if rows > 1 else 0, w if columns > 1 else 0)

    return place


def spills(op: Dense, compacted: bool, lanes: int) -> bool:
    """Whether sums go through the workspace, for results in vectors of `lanes`."""
    operands = [s.operand for s in op.epilogue if s.operand is not None]
    return compacted or run_lanes(op.y, operands, lanes) < lanes


def spill_bytes(op: Dense) -> int:
    return 4 * int(np.prod(op.y.shape))
