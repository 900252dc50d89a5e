"""fp32 convolution in Winograd's form: fewer multiplications, and more additions.

A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015 (arXiv 1509.09308), sections 4.1 and 4.3.
A tile of pixels is transformed (additions, and few products), multiplied point by point with transformed weights and
summed over the input channels, and what comes out is transformed to results. Tiles of a row are the lanes of a vector,
so all three steps are vector arithmetic. `winograd_tiles` has the forms:

- F(2x2, 3x3): 16 multiplications for four results instead of 36. It rounds much like direct sums (2e-7 of the largest).
- F(4x4, 3x3): 36 for sixteen instead of 144.
- F(4, 3) along one direction, for filters of one row or column: 6 for four results and three taps instead of 12. What
  more taps make is added before it is transformed back.

An input that is not finite makes all results of its tile NaN, also those that the filter would not reach it from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Blocked, Cost, Knobs
from edgecsi.kernels.conv.arithmetic import Fp32
from edgecsi.kernels.conv.f32_conv2d_direct import filled, refuses_f32_conv2d
from edgecsi.kernels.conv.winograd_tiles import TWO, Tiles
from edgecsi.kernels.tiling import Scalars, image_place, overlap, read_gbps, slots
from edgecsi.ops.operators import Conv2d
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


@dataclass(frozen=True)
class F32Conv2dWinograd(Blocked):
    """Stride and dilation 1, one group, images of at least one vector of tiles.

    Attributes:
        tiles: which form.

    Knobs:
        lanes: tiles in a vector. co_tile: output channels, rows, columns: rows and vectors of tiles of a block.
        ci_unroll: input channels per iteration.
    """

    op = Conv2d
    tiles: Tiles = TWO

    @property
    def products(self) -> float:
        (height, width), results = self.tiles.filter, self.tiles.rows * self.tiles.columns
        return self.tiles.points * len(self.tiles.pieces) / (results * height * width)

    def refuses(self, op: Conv2d, target: Target) -> str:
        return self.refuses_shape(op) or refuses_f32_conv2d(op)

    def refuses_shape(self, op: Conv2d) -> str:
        """Why the form is not for a filter or an image."""
        height, width = self.tiles.filter
        if op.weight.shape[2:] != (height, width) or {*op.stride, *op.dilation, op.groups} != {1}:
            return f"this form of Winograd's is for {height}x{width} filters with stride 1"
        if op.y.shape[2] < self.tiles.rows or op.y.shape[3] < self.tiles.least_lanes * self.tiles.columns:
            return "the image is too small for a vector of tiles"
        if self._terms(op) > self.tiles.most_terms:
            return f"sums of this form are less exact, so that they may have {self.tiles.most_terms} terms at most"
        return ""

    def space(self, op: Conv2d, target: Target) -> dict[str, Sequence[int]]:
        return super().space(op, target) | {"ci_unroll": self.tiles.unrolls}

    def _terms(self, op: Conv2d) -> int:
        """Products that are added to a sum: of every input channel, and every piece of its filter."""
        channels: int = op.weight.shape[1]
        return channels * len(self.tiles.pieces)

    def _sensible(self, op: Conv2d, target: Target) -> Iterator[dict[str, int]]:
        """Blocks that fit the registers and the image."""
        outs, terms = op.weight.shape[0], self._terms(op)
        _, _, height, width = op.y.shape
        lanes = min(target.lanes_f32, 1 << ((width // self.tiles.columns).bit_length() - 1))
        for co_tile, rows, columns in itertools.product(self.tiles.co_tiles, (1, 2, 4), (1, 2)):
            spans = rows * columns * lanes // self.tiles.span(lanes, rows * columns, target)
            sums = co_tile * spans
            block = self.tiles.rows * rows, self.tiles.columns * columns * lanes
            if co_tile > outs or block[0] > height or block[1] > width:
                continue
            weights = -(-co_tile // 4) if target.arch == "aarch64" else 1
            if sums > 1 and sums + spans + weights > target.vector_registers:
                continue
            unroll = max(u for u in self.tiles.unrolls if terms % u == 0 and (u == 1 or u * sums <= 96))
            yield {"lanes": lanes, "co_tile": co_tile, "rows": rows, "columns": columns, "ci_unroll": unroll}

    def cost(self, op: Conv2d, target: Target, knobs: Knobs) -> Cost:
        outs, terms, tiles = op.weight.shape[0], self._terms(op), self.tiles
        lanes, co, rows, columns = (knobs[k] for k in ("lanes", "co_tile", "rows", "columns"))
        n, _, height, width = op.y.shape
        vectors = rows * columns
        spans = vectors * lanes // tiles.span(lanes, vectors, target)
        places = n * -(-height // (tiles.rows * rows)) * -(-width // (tiles.columns * lanes * columns))
        co_blocks = -(-outs // co)
        # Weights come four to a load on ARM, as an operand of the multiplication on AVX-512.
        scalars = -(-co // 4) if target.arch == "aarch64" else co
        step = slots(target, co * spans, scalars + spans, 1)
        multiply = tiles.points * (terms * step + co * spans + 8 + 4 * terms / knobs["ci_unroll"])
        taking, giving = tiles.slots(lanes, target)
        give = vectors * co * (giving + tiles.rows * tiles.columns * len(op.epilogue))
        take = vectors * terms * taking
        operations = places * (take + co_blocks * (multiply + give) + 16)
        second = target.peak_gmacs_f32 * 1e9 / target.lanes_f32
        weights = tiles.points * outs * terms * 4
        seconds = operations / second
        given, products = (tiles.points * 4 * lanes * vectors * channels for channels in (terms, co))
        if given + products + weights > target.l1_bytes:
            moved = given * (1 + co_blocks) + 2 * products * co_blocks + weights
            # Half of that is hidden behind arithmetic.
            seconds += 0.5 * places * moved / (read_gbps(target, given + products + weights) * 1e9)
        seconds += weights / (read_gbps(target, weights + op.x.nbytes) * 1e9)
        return Cost(seconds=seconds, bytes=weights + 4 * outs, macs=op.macs)

    def constants(self, op: Conv2d, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        """Transformed weights, [block of channels][point][ci][co_tile], filled up to vectors, and behind them the form's
        numbers; then the biases."""
        from edgecsi.kernels.emit import epilogue_constants

        outs = op.weight.shape[0]
        bias = op.bias if op.bias is not None else np.zeros(outs, np.float32)
        packed = blocks_of_points(self.tiles.weights(op.weight), knobs)
        packed = np.concatenate([packed, self.tiles.numbers]).astype(np.float32)
        return [packed, bias.astype(np.float32), *epilogue_constants(op)]

    def seen(self, op: Conv2d) -> Conv2d:
        """The convolution as the loops see it."""
        return op

    def arithmetic(self, op: Conv2d, target: Target, buffers: Sequence[Any], knobs: Knobs) -> Fp32:
        """What a product is, and where the input lies."""
        return Fp32(op, target, buffers, 2, buffers[len(op.inputs) + 1])

    def scratch(self, op: Conv2d, target: Target, knobs: Knobs) -> int:
        vectors = knobs["rows"] * knobs["columns"]
        channels = self._terms(op) + knobs["co_tile"]
        return 4 * knobs["lanes"] * self.tiles.points * vectors * channels

    def codes(self, op: Conv2d) -> int:
        """Bytes of the scratch in front of the transformed inputs."""
        return 0

    def emit(self, op: Conv2d, target: Target, knobs: Knobs) -> PrimFunc:
        from edgecsi.kernels import emit as e

        constants, room = self.constants(op, target, knobs), self.scratch(op, target, knobs)
        whole, op, tiles = op, self.seen(op), self.tiles
        n, _, height, width = op.y.shape
        outs, ins = op.weight.shape[:2]
        lanes, co_tile, rows, columns, unroll = (
            knobs[k] for k in ("lanes", "co_tile", "rows", "columns", "ci_unroll")
        )
        vectors, terms = rows * columns, self._terms(op)
        # Sums may be in wider vectors than tiles are.
        wide = tiles.span(lanes, vectors, target)
        spans = vectors * lanes // wide
        fits = co_tile <= outs and tiles.rows * rows <= height and tiles.columns * lanes * columns <= width
        if (
            not fits
            or lanes < tiles.least_lanes
            or terms % unroll
            or co_tile * spans > target.vector_registers
        ):
            raise ValueError(f"{dict(knobs)} do not fit {op.weight.shape} on {op.y.shape}")
        co_blocks, per_block = -(-outs // co_tile), tiles.points * terms * filled(knobs)

        with e.function(whole, constants, room) as (done, buffers):
            w = buffers[len(whole.inputs)]
            arithmetic = self.arithmetic(whole, target, buffers, knobs)
            size = arithmetic.size * lanes  # bytes of a vector of tiles
            span = arithmetic.size * wide
            e.zero_halo(buffers[-2], op.y)
            # Where the transformed inputs begin in the scratch, and behind them the products.
            inputs = self.codes(whole)
            products = inputs + tiles.points * terms * vectors * size

            def factors() -> Callable[[int], Any]:
                """The form's numbers in all lanes of a vector."""
                numbers = Scalars(w, co_blocks * per_block, len(tiles.numbers), target)
                return lambda number: numbers.splat(number, lanes)

            def each_vector(work: Callable[[Any, Any], None]) -> None:
                """Do something to every vector of tiles of a block, by its row and column there."""
                if tiles.written_out:
                    for row, column in itertools.product(range(rows), range(columns)):
                        work(row, column)
                else:
                    with e.serial(rows) as row, e.serial(columns) as column:
                        work(row, column)

            def take(corner: Any, term: Any, row: Any, column: Any) -> None:
                """Transform the inputs of one vector of tiles and one term."""
                first = corner + tiles.rows * row * op.x.pitch + tiles.columns * lanes * column

                factor = factors()

                def load(i: int, j: int) -> Any:
                    return arithmetic.load(first + i * op.x.pitch + j, lanes, 1)

                for point, value in enumerate(tiles.apart(load, lanes, factor, arithmetic.transformed)):
                    place = (point * terms + term) * vectors + (row * columns + column)
                    arithmetic.put(inputs + place * size, value)

            def multiply(block: Any, point: Any) -> None:
                """Sum over the terms for one point of the tiles and one block of channels."""
                sums = [[e.registers(wide, arithmetic.sums) for _ in range(spans)] for _ in range(co_tile)]
                for acc in itertools.chain(*sums):
                    e.store(acc, 0, e.splat(0.0, wide, arithmetic.sums))
                with e.serial(terms // unroll) as outer:
                    for u in range(unroll):
                        term = outer * unroll + u
                        start = block * per_block + (point * terms + term) * filled(knobs)
                        weights = Scalars(w, start, filled(knobs), target)
                        at = inputs + (point * terms + term) * (vectors * size)
                        loaded = [e.let(arithmetic.get(at + v * span, wide)) for v in range(spans)]
                        for o in range(co_tile):
                            weight = weights.splat(o, wide)
                            for v in range(spans):
                                acc = sums[o][v]
                                e.store(acc, 0, arithmetic.add(e.load(acc, 0, wide), loaded[v], weight))
                for o in range(co_tile):
                    for v in range(spans):
                        place = products + ((o * spans + v) * tiles.points + point) * span
                        arithmetic.put(place, e.load(sums[o][v], 0, wide))

            def give(sample: Any, channel: Any, o: Any, row: Any, column: Any, top: Any, left: Any) -> None:
                """Transform back, finish and store the outputs of one vector of tiles and one channel."""
                vector, shared = row * columns + column, wide // lanes
                v, part = vector // shared, vector % shared * lanes
                start = products + (o * spans + v) * (tiles.points * span)

                def point(number: int) -> Any:
                    at = start + (number * span + part * arithmetic.size)
                    return arithmetic.widened(arithmetic.get(at, lanes))

                def results() -> Callable[[Any], Any]:
                    return arithmetic.values(channel, lanes)

                for i, line in enumerate(tiles.together(point, results, lanes, factors())):
                    for k, value in enumerate(line):
                        at = image_place(
                            sample,
                            channel,
                            top + tiles.rows * row + i,
                            left + tiles.columns * lanes * column + k * lanes,
                        )
                        arithmetic.finished(value, at, channel)

            down, across = -(-height // (tiles.rows * rows)), -(-width // (tiles.columns * lanes * columns))
            with e.serial(n) as sample:
                arithmetic.open(sample)
                with e.serial(down) as block_row, e.serial(across) as block_column:
                    top = e.let(overlap(block_row, tiles.rows * rows, height))
                    left = e.let(overlap(block_column, tiles.columns * lanes * columns, width))
                    corner = op.x.at(arithmetic.sample(sample), 0, top - op.padding[0], left - op.padding[2])
                    corner = e.let(corner)
                    with e.serial(ins) as ci:
                        for number, (i, j) in enumerate(tiles.pieces):
                            at = corner + ci * (op.x.rows * op.x.pitch) + (i * op.x.pitch + j)
                            each_vector(partial(take, at, number * ins + ci))
                    with e.serial(co_blocks) as block:
                        with e.serial(tiles.points) as point:
                            multiply(block, point)
                        with e.serial(co_tile) as o:
                            channel = e.let(overlap(block, co_tile, outs) + o)
                            each_vector(lambda row, column: give(sample, channel, o, row, column, top, left))
            arithmetic.close()
        return done.done()


def blocks_of_points(points: NDArray[Any], knobs: Knobs) -> NDArray[Any]:
    """Transformed weights ``[..., O, C]``, point by point, block of channels by block, as one stream."""
    points, co = points.reshape(-1, *points.shape[-2:]), knobs["co_tile"]
    outs = points.shape[1]
    starts = [min(b * co, outs - co) for b in range(-(-outs // co))]
    blocks = [points[:, s : s + co].transpose(0, 2, 1) for s in starts]
    return np.pad(np.stack(blocks), ((0, 0), (0, 0), (0, 0), (0, filled(knobs) - co))).reshape(-1)
