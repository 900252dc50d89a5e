"""Direct fp32 convolution on NCHW images, vectors along the width.

A block of `co_tile` channels x `rows` rows x `columns` vectors of outputs stays in registers while the kernel
walks over input channels and taps; a vector of input pixels is loaded once for all rows and channels that
use it. Borders come from the input's halo. Blocks at the edges overlap their neighbours instead of being
smaller, so every shape needs one piece of code and no scalar remainder.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Blocked, Cost, Knobs
from edgecsi.kernels.conv.arithmetic import Fp32
from edgecsi.kernels.tiling import Scalars, image_place, overlap, read_gbps, slots
from edgecsi.ops.operators import Conv2d
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

MAX_BODY = 320  # multiply-adds written out in the innermost loop; more only costs instruction cache


class F32Conv2dDirect(Blocked):
    """Any stride, dilation and number of groups.

    Knobs:
        lanes: width of a vector. co_tile, rows, columns: output channels, rows and vectors of a block.
        taps: 1 to write all columns of the filter out, 0 to loop over them. ci_unroll: input channels per
        iteration. co_outer: 1 if blocks of channels are the outer loop (weights read once), else rows are.
    """

    op = Conv2d

    def refuses(self, op: Conv2d, target: Target) -> str:
        return refuses_f32_conv2d(op)

    def space(self, op: Conv2d, target: Target) -> dict[str, Sequence[int]]:
        return super().space(op, target) | {"co_outer": (0, 1), "ci_unroll": (1, 2, 4)}

    def _sensible(self, op: Conv2d, target: Target) -> Iterator[dict[str, int]]:
        """Blocks that fit the registers and the image."""
        _, _, height, width = op.y.shape
        per_group, kh, kw = op.weight.shape[1:]
        outs = op.weight.shape[0] // op.groups
        spare = 4 if target.vector_registers == 16 else 6
        co_outer = int(op.weight.nbytes > op.x.nbytes)
        widest = min(target.lanes_f32, 1 << (width.bit_length() - 1))
        for lanes in {widest, max(widest // 2, 1), max(widest // 4, 1)}:
            for co_tile, rows, columns in itertools.product(
                (1, 2, 3, 4, 5, 6, 7, 8, 16), (1, 2, 3, 4, 5, 6, 8), (1, 2, 3, 4, 8)
            ):
                sums = co_tile * rows * columns
                if co_tile > outs or rows > height or columns * lanes > width:
                    continue
                if sums + columns > target.vector_registers - spare + 2 and sums > 1:
                    continue
                taps = int(sums * kh * kw <= MAX_BODY)
                body = sums * kh * (kw if taps else 1)
                unroll = 1
                if taps:
                    unroll = max(
                        u
                        for u in (1, 2, 4, 8)
                        if u == 1 or (per_group % u == 0 and u * body <= MAX_BODY // 2)
                    )
                yield {
                    "lanes": lanes,
                    "co_tile": co_tile,
                    "rows": rows,
                    "columns": columns,
                    "taps": taps,
                    "ci_unroll": unroll,
                    "co_outer": co_outer,
                }

    def cost(self, op: Conv2d, target: Target, knobs: Knobs) -> Cost:
        n, _, height, width = op.y.shape
        outs, per_group, kh, kw = op.weight.shape
        lanes, co, rows, columns = (knobs[k] for k in ("lanes", "co_tile", "rows", "columns"))
        sums = co * rows * columns
        blocks = (
            n * op.groups * -(-outs // op.groups // co) * -(-height // rows) * -(-width // (columns * lanes))
        )
        # Vector operations per input channel and column of the filter.
        x_loads = len(input_rows(op, rows)) * columns * (1 if op.stride[1] == 1 else 4)
        if lanes == 16:
            x_loads *= 2  # vectors of 64 bytes nearly always straddle two cache lines
        if target.arch == "aarch64":
            w_loads = -(-kh * co // 8)  # an instruction loads eight
        else:
            w_loads = (
                kh * co * (1 if kh == 1 or sums + kh * co + columns <= target.vector_registers else rows)
            )
        second = target.peak_gmacs_f32 * 1e9 / target.lanes_f32  # vector multiply-adds a second
        step = slots(target, sums * kh, x_loads + w_loads, kh)
        loops = per_group * (1 if knobs["taps"] else kw) / knobs["ci_unroll"]
        operations = blocks * (step * per_group * kw + 4 * loops + sums * (3 + 2 * len(op.epilogue)) + 24)
        weights = outs * per_group * kh * kw * 4
        seconds = operations / second + weights / (read_gbps(target, weights + op.x.nbytes) * 1e9)
        return Cost(seconds=seconds, bytes=weights, macs=op.macs)

    def constants(self, op: Conv2d, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        """One stream: per block of channels the biases, then [ci][kw][kh][co_tile], filled up to vectors."""
        from edgecsi.kernels.emit import epilogue_constants

        outs = op.weight.shape[0]
        bias = op.bias if op.bias is not None else np.zeros(outs, np.float32)
        blocks = []
        for start in block_starts(op, knobs["co_tile"]):
            channels = slice(start, start + knobs["co_tile"])
            taps = op.weight[channels].transpose(1, 3, 2, 0)  # ci, kw, kh, co
            steps = taps.reshape(taps.shape[0] * taps.shape[1], -1)
            fill = [(0, 0), (0, _step(op, knobs) - steps.shape[1])]
            head = np.pad(bias[channels], (0, filled(knobs) - knobs["co_tile"]))
            blocks += [head, np.pad(steps, fill).reshape(-1)]
        return [np.concatenate(blocks).astype(op.weight.dtype), *epilogue_constants(op)]

    def seen(self, op: Conv2d) -> Conv2d:
        """The convolution as the loops see it."""
        return op

    def arithmetic(self, op: Conv2d, target: Target, buffers: Sequence[Any], knobs: Knobs) -> Fp32:
        """What a product is, and where the input lies."""
        return Fp32(op, target, buffers)

    def emit(self, op: Conv2d, target: Target, knobs: Knobs) -> PrimFunc:
        from edgecsi.kernels import emit as e

        constants, scratch = self.constants(op, target, knobs), self.scratch(op, target, knobs)
        whole, op = op, self.seen(op)
        n, _, height, width = op.y.shape
        outs, per_group, _, kw = op.weight.shape
        lanes, co_tile, rows, columns = (knobs[k] for k in ("lanes", "co_tile", "rows", "columns"))
        per_block = filled(knobs) + per_group * kw * _step(op, knobs)
        outs_per_group = outs // op.groups
        co_blocks = -(-outs_per_group // co_tile)
        fits = co_tile <= outs_per_group and rows <= height and columns * lanes <= width
        if not fits or per_group % knobs["ci_unroll"] or co_tile * rows * columns > target.vector_registers:
            raise ValueError(f"{dict(knobs)} do not fit {op.weight.shape} on {op.y.shape}")
        row_offset = op.padding[0]
        column_offset = op.padding[2]
        block_of_sums = list(itertools.product(range(co_tile), range(rows), range(columns)))

        with e.function(whole, constants, scratch) as (done, buffers):
            w = buffers[len(whole.inputs)]
            arithmetic = self.arithmetic(whole, target, buffers, knobs)
            stretch = arithmetic.stretch(op)
            if stretch % knobs["ci_unroll"]:
                raise ValueError(f"sums are widened every {stretch} channels, not every {knobs['ci_unroll']}")
            e.zero_halo(arithmetic.finish.y, op.y)

            def block(sample: Any, group: Any, co: Any, row: Any, column: Any) -> None:
                """All outputs of one block; `co`: number of the block of channels in its group."""
                start = e.let((group * co_blocks + co) * per_block)
                channel = group * outs_per_group + overlap(co, co_tile, outs_per_group)
                top = e.let(overlap(row, rows, height))
                left = e.let(overlap(column, columns * lanes, width))
                corner = e.let(
                    op.x.at(
                        arithmetic.sample(sample),
                        group * per_group,
                        top * op.stride[0] - row_offset,
                        left * op.stride[1] - column_offset,
                    )
                )
                sums = {orv: e.registers(lanes, arithmetic.sums) for orv in block_of_sums}
                biases = Scalars(w, start, filled(knobs), target)
                for (o, _, _), acc in sums.items():
                    e.store(acc, 0, biases.splat(o, lanes))

                def tap(pixels: Any, weights: Any) -> None:
                    """Everything that one input channel and one column of the filter contribute."""
                    values = Scalars(w, weights, _step(op, knobs), target)
                    for y, uses in input_rows(op, rows):
                        loaded = [
                            e.let(
                                arithmetic.load(
                                    pixels + y * op.x.pitch + v * lanes * op.stride[1], lanes, op.stride[1]
                                )
                            )
                            for v in range(columns)
                        ]
                        for r, k in uses:
                            for o in range(co_tile):
                                weight = values.splat(k * co_tile + o, lanes)
                                for v in range(columns):
                                    acc = sums[o, r, v]
                                    e.store(acc, 0, arithmetic.add(e.load(acc, 0, lanes), loaded[v], weight))

                step, plane = _step(op, knobs), op.x.rows * op.x.pitch
                unroll = knobs["ci_unroll"]

                def walk(channels: int, first: Any = None) -> None:
                    """Everything that some input channels contribute."""
                    with e.serial(channels // unroll) as outer:
                        for u in range(unroll):
                            ci = outer * unroll + u if first is None else first + outer * unroll + u
                            pixels = corner + ci * plane
                            weights = start + filled(knobs) + ci * kw * step
                            if knobs["taps"]:
                                for k in range(kw):
                                    tap(pixels + k * op.dilation[1], weights + k * step)
                            else:
                                with e.serial(kw) as k:
                                    tap(pixels + k * op.dilation[1], weights + k * step)

                totals = sums
                if stretch == per_group:
                    walk(per_group)
                else:
                    totals = {orv: e.registers(lanes) for orv in block_of_sums}
                    for total in totals.values():
                        e.store(total, 0, e.splat(0.0, lanes))
                    with e.serial(per_group // stretch) as part:
                        walk(stretch, part * stretch)
                        for orv, acc in sums.items():
                            more = arithmetic.widened(e.load(acc, 0, lanes))
                            e.store(totals[orv], 0, e.load(totals[orv], 0, lanes) + more)
                            e.store(acc, 0, e.splat(0.0, lanes, arithmetic.sums))
                for (o, r, v), acc in totals.items():
                    if (r, v) == (0, 0):
                        arithmetic.channel(channel + o)
                    at = image_place(sample, channel + o, top + r, left + v * lanes)
                    arithmetic.finished(arithmetic.value(e.load(acc, 0, lanes), channel + o), at, channel + o)

            row_blocks, column_blocks = -(-height // rows), -(-width // (columns * lanes))
            with e.serial(n) as sample:
                arithmetic.open(sample)
                with e.serial(op.groups) as group:
                    if knobs["co_outer"]:
                        with (
                            e.serial(co_blocks) as co,
                            e.serial(row_blocks) as row,
                            e.serial(column_blocks) as column,
                        ):
                            block(sample, group, co, row, column)
                    else:
                        with (
                            e.serial(row_blocks) as row,
                            e.serial(column_blocks) as column,
                            e.serial(co_blocks) as co,
                        ):
                            block(sample, group, co, row, column)
            arithmetic.close()
        return done.done()


def refuses_f32_conv2d(op: Conv2d) -> str:
    """Why an fp32 kernel that reads NCHW images in their halo cannot compute a convolution."""
    if op.x.dtype != "float32" or op.weight.dtype != np.float32 or op.scale is not None:
        return "input and weights must be float32"
    return refuses_images(op)


def refuses_images(op: Conv2d) -> str:
    """Why a kernel that reads NCHW images in their halo cannot read those of a convolution."""
    if op.x.group != 1 or op.y.group != 1 or len(op.x.shape) != 4 or len(op.y.shape) != 4:
        return "needs plain NCHW images"
    top, bottom, left, right = op.x.halo
    rows, columns = reach(op)
    if op.padding[0] > top or rows > bottom or op.padding[2] > max(left, right) or columns > max(left, right):
        return "the input has no halo as wide as the padding"
    return ""


def reach(op: Conv2d) -> tuple[int, int]:
    """Rows and columns that the convolution reads below and right of the input."""
    below = (op.y.shape[2] - 1) * op.stride[0] + (op.weight.shape[2] - 1) * op.dilation[0] - op.padding[0]
    behind = (op.y.shape[3] - 1) * op.stride[1] + (op.weight.shape[3] - 1) * op.dilation[1] - op.padding[2]
    return max(below - op.x.shape[2] + 1, 0), max(behind - op.x.shape[3] + 1, 0)


def input_rows(op: Conv2d, rows: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """Input rows that `rows` output rows need, each with the (output row, filter row) that use it."""
    uses: dict[int, list[tuple[int, int]]] = {}
    for r, k in itertools.product(range(rows), range(op.weight.shape[2])):
        uses.setdefault(r * op.stride[0] + k * op.dilation[0], []).append((r, k))
    return sorted(uses.items())


def block_starts(op: Conv2d, co_tile: int) -> list[int]:
    """First channel of each block of `co_tile` output channels; blocks stay inside their group."""
    share = op.weight.shape[0] // op.groups
    return [
        g * share + min(b * co_tile, share - co_tile)
        for g in range(op.groups)
        for b in range(-(-share // co_tile))
    ]


def _step(op: Conv2d, knobs: Knobs) -> int:
    """Weights of one input channel and filter column, filled up to a multiple of 4 for vector loads."""
    taps: int = op.weight.shape[2]
    return -(-knobs["co_tile"] * taps // 4) * 4


def filled(knobs: Knobs) -> int:
    """Numbers of a block, one an output channel, filled up to a multiple of 4 for vector loads."""
    return -(-knobs["co_tile"] // 4) * 4
