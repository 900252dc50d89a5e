"""fp32 3x3 convolution by Winograd's F(2x2, 3x3): 16 multiplications for four outputs instead of 36.

A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015 (arXiv 1509.09308), section 4.1. A tile of
4x4 inputs is transformed (additions only), multiplied point by point with transformed weights and summed over the input
channels, and what comes out is transformed to 2x2 outputs. Neighbouring tiles of a row are the lanes of a vector, so all
three steps are vector arithmetic: the first takes even and odd columns apart, the last puts them together again.

Not built: F(4x4, 3x3), which needs 36 multiplications for sixteen outputs, 0.56 of these, and a filter of 9x1 as three of
3x1, F(2, 3), whose products are added before they are transformed back, with 0.67 of the direct form's.

Sums of transformed values round much like direct ones (2e-7 of the largest output). An input that is not finite makes
all outputs of its tile NaN, also those that the filter would not reach it from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Cost, Kernel, Knobs
from edgecsi.kernels.conv.arithmetic import Fp32
from edgecsi.kernels.conv.f32_conv2d_direct import refuses_f32_conv2d
from edgecsi.kernels.tiling import Scalars, image_place, overlap, read_gbps, slots
from edgecsi.ops.half import WINOGRAD
from edgecsi.ops.operators import Conv2d
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

POINTS = 16
# Of a vector of tiles and a channel: loads, shuffles, additions and stores of a transform, two a slot.
INPUT_SLOTS, OUTPUT_SLOTS = 40.0, 36.0


class F32Conv2dWinograd(Kernel):
    """Stride and dilation 1, one group, images of at least 2x4 pixels.

    Knobs:
        lanes: tiles in a vector. co_tile: output channels, rows, columns: rows and vectors of tiles of a block.
        ci_unroll: input channels per iteration.
    """

    op = Conv2d

    def refuses(self, op: Conv2d, target: Target) -> str:
        return self.refuses_shape(op) or refuses_f32_conv2d(op)

    def refuses_shape(self, op: Conv2d) -> str:
        """Why the form is not for a filter or an image."""
        if op.weight.shape[2:] != (3, 3) or op.stride != (1, 1) or op.dilation != (1, 1) or op.groups != 1:
            return "Winograd's form is for 3x3 filters with stride 1"
        if op.y.shape[2] < 2 or op.y.shape[3] < 4:
            return "the image is too small for a vector of tiles"
        return ""

    def knobs(self, op: Conv2d, target: Target) -> Knobs:
        return min(self._sensible(op, target), key=lambda knobs: self.cost(op, target, knobs).seconds)

    def space(self, op: Conv2d, target: Target) -> dict[str, Sequence[int]]:
        values = list(self._sensible(op, target))
        return {key: sorted({v[key] for v in values}) for key in values[0]} | {"ci_unroll": (1, 2, 4)}

    def _sensible(self, op: Conv2d, target: Target) -> Iterator[dict[str, int]]:
        """Blocks that fit the registers and the image."""
        outs, ins = op.weight.shape[:2]
        _, _, height, width = op.y.shape
        lanes = min(target.lanes_f32, 1 << ((width // 2).bit_length() - 1))
        for co_tile, rows, columns in itertools.product((1, 2, 3, 4, 6, 8, 12, 16, 24), (1, 2, 4), (1, 2)):
            sums = co_tile * rows * columns
            if co_tile > outs or 2 * rows > height or 2 * columns * lanes > width:
                continue
            weights = -(-co_tile // 4) if target.arch == "aarch64" else 1
            if sums > 1 and sums + rows * columns + weights > target.vector_registers:
                continue
            unroll = max(u for u in (1, 2, 4) if ins % u == 0 and (u == 1 or u * sums <= 96))
            yield {"lanes": lanes, "co_tile": co_tile, "rows": rows, "columns": columns, "ci_unroll": unroll}

    def cost(self, op: Conv2d, target: Target, knobs: Knobs) -> Cost:
        outs, ins = op.weight.shape[:2]
        lanes, co, rows, columns = (knobs[k] for k in ("lanes", "co_tile", "rows", "columns"))
        n, _, height, width = op.y.shape
        vectors = rows * columns
        places = n * -(-height // (2 * rows)) * -(-width // (2 * lanes * columns))
        co_blocks = -(-outs // co)
        # Weights come four to a load on ARM, as an operand of the multiplication on AVX-512.
        scalars = -(-co // 4) if target.arch == "aarch64" else co
        step = slots(target, co * vectors, scalars + vectors, 1)
        multiply = POINTS * (ins * step + co * vectors + 8 + 4 * ins / knobs["ci_unroll"])
        give = vectors * co * (OUTPUT_SLOTS + 4 * len(op.epilogue))
        take = vectors * ins * INPUT_SLOTS
        operations = places * (take + co_blocks * (multiply + give) + 16)
        second = target.peak_gmacs_f32 * 1e9 / target.lanes_f32
        weights = POINTS * outs * ins * 4
        seconds = operations / second
        given, products = (POINTS * 4 * lanes * vectors * channels for channels in (ins, co))
        if given + products + weights > target.l1_bytes:
            moved = given * (1 + co_blocks) + 2 * products * co_blocks + weights
            # Half of that is hidden behind arithmetic.
            seconds += 0.5 * places * moved / (read_gbps(target, given + products + weights) * 1e9)
        seconds += weights / (read_gbps(target, weights + op.x.nbytes) * 1e9)
        return Cost(seconds=seconds, bytes=weights + 4 * outs, macs=op.macs)

    def constants(self, op: Conv2d, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        """Transformed weights, [block of channels][point][ci][co_tile], filled up to vectors; then the biases."""
        from edgecsi.kernels.emit import epilogue_constants

        outs = op.weight.shape[0]
        bias = op.bias if op.bias is not None else np.zeros(outs, np.float32)
        points = np.einsum("ai,ocij,bj->aboc", WINOGRAD, op.weight.astype(np.float64), WINOGRAD)
        packed = blocks_of_points(points, knobs).astype(np.float32)
        return [packed, bias.astype(np.float32), *epilogue_constants(op)]

    def seen(self, op: Conv2d) -> Conv2d:
        """The convolution as the loops see it."""
        return op

    def arithmetic(self, op: Conv2d, target: Target, buffers: Sequence[Any], knobs: Knobs) -> Fp32:
        """What a product is, and where the input lies."""
        return Fp32(op, target, buffers, 2, buffers[len(op.inputs) + 1])

    def scratch(self, op: Conv2d, target: Target, knobs: Knobs) -> int:
        vectors = knobs["rows"] * knobs["columns"]
        channels: int = op.weight.shape[1] + knobs["co_tile"]
        return 4 * knobs["lanes"] * POINTS * vectors * channels

    def codes(self, op: Conv2d) -> int:
        """Bytes of the scratch in front of the transformed inputs."""
        return 0

    def emit(self, op: Conv2d, target: Target, knobs: Knobs) -> PrimFunc:
        from edgecsi.kernels import emit as e

        constants, room = self.constants(op, target, knobs), self.scratch(op, target, knobs)
        whole, op = op, self.seen(op)
        n, _, height, width = op.y.shape
        outs, ins = op.weight.shape[:2]
        lanes, co_tile, rows, columns, unroll = (
            knobs[k] for k in ("lanes", "co_tile", "rows", "columns", "ci_unroll")
        )
        vectors = rows * columns
        fits = co_tile <= outs and 2 * rows <= height and 2 * lanes * columns <= width and lanes > 1
        if not fits or ins % unroll or co_tile * vectors > target.vector_registers:
            raise ValueError(f"{dict(knobs)} do not fit {op.weight.shape} on {op.y.shape}")
        co_blocks, per_block = -(-outs // co_tile), POINTS * ins * _width(knobs)

        with e.function(whole, constants, room) as (done, buffers):
            w = buffers[len(whole.inputs)]
            arithmetic = self.arithmetic(whole, target, buffers, knobs)
            load, size = arithmetic.load, arithmetic.size * lanes  # bytes of a vector
            e.zero_halo(buffers[-2], op.y)
            # Where the transformed inputs begin in the scratch, and behind them the products.
            inputs = self.codes(whole)
            products = inputs + POINTS * ins * vectors * size

            def take(corner: Any, ci: Any, vector: int) -> None:
                """Transform the inputs of one vector of tiles and one channel."""
                row, column = divmod(vector, columns)
                first = corner + 2 * row * op.x.pitch + 2 * lanes * column
                tile = []
                for i in range(4):
                    at = first + i * op.x.pitch
                    left = [e.let(load(at + shift, lanes, 1)) for shift in (0, lanes)]
                    right = [e.let(load(at + shift, lanes, 1)) for shift in (2, lanes + 2)]
                    tile.append(
                        [
                            e.let(arithmetic.transformed(e.shuffle(pair, range(odd, 2 * lanes, 2))))
                            for pair in (left, right)
                            for odd in (0, 1)
                        ]
                    )
                half = _apart([[tile[i][j] for j in range(4)] for i in range(4)])
                for i in range(4):
                    for j, value in enumerate(_apart_row([e.let(v) for v in half[i]])):
                        place = ((4 * i + j) * ins + ci) * vectors + vector
                        arithmetic.put(inputs + place * size, value)

            def multiply(block: Any, point: Any) -> None:
                """Sum over the input channels for one point of the tiles and one block of channels."""
                sums = [[e.registers(lanes, arithmetic.sums) for _ in range(vectors)] for _ in range(co_tile)]
                for acc in itertools.chain(*sums):
                    e.store(acc, 0, e.splat(0.0, lanes, arithmetic.sums))
                with e.serial(ins // unroll) as outer:
                    for u in range(unroll):
                        ci = outer * unroll + u
                        start = block * per_block + (point * ins + ci) * _width(knobs)
                        weights = Scalars(w, start, _width(knobs), target)
                        at = inputs + (point * ins + ci) * (vectors * size)
                        loaded = [e.let(arithmetic.get(at + v * size, lanes)) for v in range(vectors)]
                        for o in range(co_tile):
                            weight = weights.splat(o, lanes)
                            for v in range(vectors):
                                acc = sums[o][v]
                                e.store(acc, 0, arithmetic.add(e.load(acc, 0, lanes), loaded[v], weight))
                for o in range(co_tile):
                    for v in range(vectors):
                        place = products + ((o * vectors + v) * POINTS + point) * size
                        arithmetic.put(place, e.load(sums[o][v], 0, lanes))

            def give(sample: Any, channel: Any, o: Any, vector: int, top: Any, left: Any) -> None:
                """Transform back, finish and store the outputs of one vector of tiles and one channel."""
                row, column = divmod(vector, columns)
                start = products + (o * vectors + vector) * (POINTS * size)
                point = [
                    [
                        e.let(arithmetic.widened(arithmetic.get(start + (4 * i + j) * size, lanes)))
                        for j in range(4)
                    ]
                    for i in range(4)
                ]
                half = [
                    [e.let(point[0][j] + point[1][j] + point[2][j]) for j in range(4)],
                    [e.let(point[1][j] - point[2][j] - point[3][j]) for j in range(4)],
                ]
                result = arithmetic.values(channel, lanes)
                for i, line in enumerate(half):
                    pair = [
                        e.let(result(line[0] + line[1] + line[2])),
                        e.let(result(line[1] - line[2] - line[3])),
                    ]
                    for part in range(2):
                        first = part * (lanes // 2)
                        order = [k for lane in range(first, first + lanes // 2) for k in (lane, lanes + lane)]
                        at = image_place(
                            sample, channel, top + 2 * row + i, left + 2 * lanes * column + part * lanes
                        )
                        value = e.shuffle(pair, order)
                        arithmetic.finished(value, at, channel)

            down, across = -(-height // (2 * rows)), -(-width // (2 * lanes * columns))
            with e.serial(n) as sample:
                arithmetic.open(sample)
                with e.serial(down) as block_row, e.serial(across) as block_column:
                    top = e.let(overlap(block_row, 2 * rows, height))
                    left = e.let(overlap(block_column, 2 * lanes * columns, width))
                    corner = op.x.at(arithmetic.sample(sample), 0, top - op.padding[0], left - op.padding[2])
                    corner = e.let(corner)
                    with e.serial(ins) as ci:
                        for vector in range(vectors):
                            take(corner + ci * (op.x.rows * op.x.pitch), ci, vector)
                    with e.serial(co_blocks) as block:
                        with e.serial(POINTS) as point:
                            multiply(block, point)
                        with e.serial(co_tile) as o:
                            channel = e.let(overlap(block, co_tile, outs) + o)
                            for vector in range(vectors):
                                give(sample, channel, o, vector, top, left)
            arithmetic.close()
        return done.done()


def blocks_of_points(points: NDArray[Any], knobs: Knobs) -> NDArray[Any]:
    """Transformed weights ``[4, 4, O, C]`` block of channels by block, as one stream."""
    outs, co = points.shape[2], knobs["co_tile"]
    starts = [min(b * co, outs - co) for b in range(-(-outs // co))]
    blocks = [points[:, :, s : s + co].reshape(POINTS, co, -1).transpose(0, 2, 1) for s in starts]
    return np.pad(np.stack(blocks), ((0, 0), (0, 0), (0, 0), (0, _width(knobs) - co))).reshape(-1)


def _apart(tile: list[list[Any]]) -> list[list[Any]]:
    """B^T of the paper from the left: combinations of rows."""
    return [
        [tile[0][j] - tile[2][j] for j in range(4)],
        [tile[1][j] + tile[2][j] for j in range(4)],
        [tile[2][j] - tile[1][j] for j in range(4)],
        [tile[1][j] - tile[3][j] for j in range(4)],
    ]


def _apart_row(row: list[Any]) -> list[Any]:
    """B of the paper from the right: combinations of columns."""
    return [row[0] - row[2], row[1] + row[2], row[2] - row[1], row[1] - row[3]]


def _width(knobs: Knobs) -> int:
    """Weights of one input channel and point, filled up to a multiple of 4 for vector loads."""
    return -(-knobs["co_tile"] // 4) * 4
