"""Direct fp32 convolution on NCHW images, vectors of output channels, for small images.

A block of `rows` x `columns` pixels x `vectors` vectors of channels stays in registers; each input pixel is
multiplied with the weights of all channels of the block. Images narrower than a vector thus use all
lanes. Behind the reduction a block is transposed, once, to the channel-by-channel order of the output.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels import reduce
from edgecsi.kernels.base import Blocked, Cost, Knobs
from edgecsi.kernels.conv.f32_conv2d_direct import (
    MAX_BODY,
    block_starts,
    refuses_f32_conv2d,
)
from edgecsi.kernels.tiling import Scalars, image_place, overlap, read_gbps, slots
from edgecsi.ops.operators import Conv2d
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


class F32Conv2dDirectCo(Blocked):
    """Any stride, dilation and number of groups.

    Knobs:
        lanes: width of a vector. vectors: vectors of channels in a block. rows, columns: pixels of a block.
        taps: 1 to write all taps of the filter out, 0 to loop over its rows.
    """

    op = Conv2d

    def refuses(self, op: Conv2d, target: Target) -> str:
        return refuses_f32_conv2d(op)

    def _sensible(self, op: Conv2d, target: Target) -> Iterator[dict[str, int]]:
        _, _, height, width = op.y.shape
        outs = op.weight.shape[0] // op.groups
        lanes = reduce.lanes_for(outs, target.lanes_f32)
        for vectors, rows, columns in itertools.product((1, 2, 3, 4), (1, 2, 3, 4, 6), (1, 2, 4, 8, 16)):
            pixels = rows * columns
            if vectors * lanes > outs or rows > height or columns > width:
                continue
            inputs = -(-pixels // 4) if target.arch == "aarch64" else int(vectors > 1)
            if vectors * pixels + vectors + inputs + 1 <= target.vector_registers or vectors * pixels == 1:
                taps = int(vectors * pixels * op.weight[0, 0].size <= MAX_BODY)
                yield {"lanes": lanes, "vectors": vectors, "rows": rows, "columns": columns, "taps": taps}

    def cost(self, op: Conv2d, target: Target, knobs: Knobs) -> Cost:
        n, _, height, width = op.y.shape
        outs, per_group, kh, kw = op.weight.shape
        lanes, vectors, rows, columns = (knobs[k] for k in ("lanes", "vectors", "rows", "columns"))
        pixels = rows * columns
        tiles = n * -(-height // rows) * -(-width // columns)
        co_blocks = op.groups * -(-outs // op.groups // (vectors * lanes))
        by_lane = target.arch == "aarch64" and op.stride[1] == 1
        loads = vectors + (rows * -(-columns // 4) if by_lane else pixels)
        step = slots(target, pixels * vectors, loads, 1)
        reduction = per_group * kh * kw
        # Transposing takes shuffles for each element, then every channel is finished row by row.
        turn = 0.25 if target.arch == "x86_64" else 1.0
        finish = vectors * lanes * rows * -(-columns // target.lanes_f32) * (2 + len(op.epilogue))
        overhead = turn * pixels * vectors * lanes + finish + 40
        loops = per_group * (1 if knobs["taps"] else kh)
        second = target.peak_gmacs_f32 * 1e9 / target.lanes_f32
        compute = tiles * co_blocks * (step * reduction + 4 * loops + overhead) / second
        nbytes = co_blocks * vectors * lanes * (reduction + 1) * 4
        once = nbytes / (read_gbps(target, nbytes) * 1e9)
        again = (tiles - 1) * nbytes / (read_gbps(target, nbytes // co_blocks) * 1e9)
        slow, fast = max(compute, once + again), min(compute, once + again)
        return Cost(seconds=slow + 0.1 * fast, bytes=nbytes, macs=op.macs)

    def constants(self, op: Conv2d, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        """One stream: per block of channels the biases, then [ci][kh][kw][channels of the block]."""
        from edgecsi.kernels.emit import epilogue_constants

        width = knobs["vectors"] * knobs["lanes"]
        bias = op.bias if op.bias is not None else np.zeros(op.weight.shape[0], np.float32)
        blocks = []
        for start in block_starts(op, width):
            channels = slice(start, start + width)
            blocks += [bias[channels], op.weight[channels].transpose(1, 2, 3, 0).reshape(-1)]
        return [np.concatenate(blocks).astype(np.float32), *epilogue_constants(op)]

    def emit(self, op: Conv2d, target: Target, knobs: Knobs) -> PrimFunc:
        from edgecsi.kernels import emit as e

        n, _, height, width = op.y.shape
        outs, per_group, kh, kw = op.weight.shape
        lanes, vectors, rows, columns = (knobs[k] for k in ("lanes", "vectors", "rows", "columns"))
        outs_per_group, together = outs // op.groups, vectors * lanes
        fits = together <= outs_per_group and rows <= height and columns <= width
        if not fits or vectors * rows * columns > target.vector_registers:
            raise ValueError(f"{dict(knobs)} do not fit {op.weight.shape} on {op.y.shape}")
        co_blocks = -(-outs_per_group // together)
        per_block = together * (1 + per_group * kh * kw)
        pixels = list(itertools.product(range(rows), range(columns)))
        constants = self.constants(op, target, knobs)

        with e.function(op, constants) as (done, buffers):
            x, w = buffers[0], buffers[len(op.inputs)]
            e.zero_halo(buffers[-1], op.y)
            finish = e.Finish(op, buffers, 1, len(op.inputs) + 1, target)

            def block(sample: Any, group: Any, co: Any, row: Any, column: Any) -> None:
                start = e.let((group * co_blocks + co) * per_block)
                channel = e.let(group * outs_per_group + overlap(co, together, outs_per_group))
                top, left = e.let(overlap(row, rows, height)), e.let(overlap(column, columns, width))
                corner = e.let(
                    op.x.at(
                        sample,
                        group * per_group,
                        top * op.stride[0] - op.padding[0],
                        left * op.stride[1] - op.padding[2],
                    )
                )
                sums = {(p, v): e.registers(lanes) for p in pixels for v in range(vectors)}
                for (_, v), acc in sums.items():
                    e.store(acc, 0, e.load(w, start + v * lanes, lanes))

                def tap(first: Any, weights: Any) -> None:
                    """What a tap contributes; `first`: the input pixel of the block's first output."""
                    values = [e.let(e.load(w, weights + v * lanes, lanes)) for v in range(vectors)]
                    for r in range(rows):
                        line = first + r * (op.stride[0] * op.x.pitch)
                        scalars = Scalars(x, line, columns, target, op.stride[1])
                        for c, v in itertools.product(range(columns), range(vectors)):
                            acc = sums[(r, c), v]
                            e.store(acc, 0, e.load(acc, 0, lanes) + scalars.splat(c, lanes) * values[v])

                plane, line = op.x.rows * op.x.pitch, op.dilation[0] * op.x.pitch
                with e.serial(per_group) as ci:
                    pixel, weights = corner + ci * plane, start + together + ci * (kh * kw * together)
                    if knobs["taps"]:
                        for i, j in itertools.product(range(kh), range(kw)):
                            tap(pixel + i * line + j * op.dilation[1], weights + (i * kw + j) * together)
                    else:
                        with e.serial(kh) as i:
                            for j in range(kw):
                                tap(pixel + i * line + j * op.dilation[1], weights + (i * kw + j) * together)

                ahead, turned = e.registers(len(pixels) * together), e.registers(len(pixels) * together)
                for ((r, c), v), acc in sums.items():
                    e.store(ahead, (r * columns + c) * together + v * lanes, e.load(acc, 0, lanes))
                _transpose(ahead, 0, turned, len(pixels), together, 8 if target.arch == "x86_64" else 4)
                with e.serial(together) as o:
                    for r in range(rows):
                        at = image_place(sample, channel + o, top + r, left)
                        value = e.load(turned, o * len(pixels) + r * columns, columns)
                        finish.store(at(op.y), finish.value(value, at, channel + o, 1))

            row_blocks, column_blocks = -(-height // rows), -(-width // columns)
            with (
                e.serial(n) as sample,
                e.serial(op.groups) as group,
                e.serial(co_blocks) as co,
                e.serial(row_blocks) as row,
                e.serial(column_blocks) as column,
            ):
                block(sample, group, co, row, column)
        return done.done()


def _transpose(source: Any, start: Any, result: Any, height: int, width: int, lanes: int) -> None:
    """Write the transpose of the matrix [height, width] at `start` to `result`, square by square."""
    from tvm import tirx

    from edgecsi.kernels import emit as e

    side = reduce.lanes_for(min(height, width), lanes)
    with e.serial(-(-height // side)) as i, e.serial(-(-width // side)) as j:
        top, left = e.let(overlap(i, side, height)), e.let(overlap(j, side, width))
        rows = [e.let(e.load(source, start + (top + r) * width + left, side)) for r in range(side)]
        half = side // 2
        while half and side > 1:
            # Swap the off-diagonal quarters of squares of 2 * half, for all of them at once.
            for r in range(side):
                if r & half == 0:
                    low, high = rows[r], rows[r + half]
                    keep = [c if c & half == 0 else side + c - half for c in range(side)]
                    move = [c + half if c & half == 0 else side + c for c in range(side)]
                    rows[r] = e.let(tirx.Shuffle([low, high], keep))
                    rows[r + half] = e.let(tirx.Shuffle([low, high], move))
            half //= 2
        for r in range(side):
            e.store(result, (left + r) * height + top, rows[r])
