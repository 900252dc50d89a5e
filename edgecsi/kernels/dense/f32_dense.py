"""Fully connected layer in fp32, bound by the bandwidth of its weights.

Weights are stored so that a call reads them once, forward: blocks of `vectors` vectors of outputs, and in
a block input by input. Each input is multiplied with the whole block; the sums stay in registers. Small
batches use a weight for several samples while it is in a register. A long sum is one of shorter ones: its rounding
errors grow with the terms of one and the number of them, not with their product (Higham, 1993).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Blocked, Cost, Knobs
from edgecsi.kernels.int16 import as_bits
from edgecsi.kernels.tiling import Scalars, overlap, read_gbps, slots
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense, Op
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


def refuses_half(weight: NDArray[Any], target: Target) -> str:
    """Why weights cannot be stored in half precision and widened, if so: each must be a half-precision number."""
    if target.arch == "x86_64" and "f16c" not in target.features:
        return "the CPU cannot widen half-precision numbers"
    with np.errstate(over="ignore"):
        same = np.array_equal(weight.astype(np.float16).astype(np.float32), weight)
    return "" if same else "the weights are not all half-precision numbers"


_STRETCH = 256  # inputs that are summed before the sum is added to the others
_MOST_WIDENED = 1 << 18  # bytes of widened weights that are kept


@dataclass(frozen=True)
class F32Dense(Blocked):
    """Any sizes and batch; the output may be an image in its halo.

    Attributes:
        weights: ``f32``; or ``f16w``, half-precision ones, that are widened as they are loaded: half the bytes for
        weights that are half-precision numbers anyway, and so the same answer. Where many rows share a block of them,
        the first rows leave them widened in the workspace.

    Knobs:
        lanes: width of a vector. vectors: vectors of outputs in a block. samples: samples that share a
        weight. splits: independent sums per output, since a sum waits for the one before. unroll: inputs per
        iteration. ahead: bytes by which weights are prefetched, 0 for not at all.
    """

    op = Dense
    weights: str = "f32"

    def refuses(self, op: Dense, target: Target) -> str:
        if op.x.dtype != "float32" or op.weight.dtype != np.float32 or op.scale is not None or op.dynamic:
            return "input and weights must be float32"
        if any(op.x.halo) or op.x.group != 1:
            return "the input must lie without gaps"
        if self.weights == "f16w" and (reason := refuses_half(op.weight, target)):
            return reason
        return "" if op.y.group == 1 else "the output's channels must not be grouped"

    def space(self, op: Dense, target: Target) -> dict[str, Sequence[int]]:
        return super().space(op, target) | {"unroll": (4, 8), "ahead": (0, 1024, 2048, 4096)}

    def _sensible(self, op: Dense, target: Target) -> Iterator[dict[str, int]]:
        n, inputs = op.x.shape[0], op.weight.shape[1]
        lanes = target.lanes_f32
        while lanes > Runs.of(op, 1).whole:
            lanes //= 2
        available = Runs.of(op, lanes).vectors
        x86 = target.arch == "x86_64"
        # The core's own prefetcher stops at each page; that costs a tenth where the weights come from afar.
        ahead = 1024 if x86 and n == 1 and op.weight.size * self._bytes > target.l2_bytes else 0
        for vectors, samples, splits in itertools.product(range(1, 25), (1, 2, 3, 4, 5, 6, 8), (1, 2, 4, 8)):
            sums = vectors * samples * splits
            if vectors > available or samples > n or splits > inputs:
                continue
            # For one sample 8 sums hide the latency, and narrow blocks are read faster; NEON wants wide ones
            # for its loads in pairs. Else there must be room for weights and inputs on their way.
            busy = sums + (vectors if samples > 1 else 4) + (1 if x86 else samples)
            fits = sums <= 8 if x86 and samples == 1 else busy <= target.vector_registers
            if fits or sums == 1:
                yield {
                    "lanes": lanes, "vectors": vectors, "samples": samples, "splits": splits,
                    "unroll": max(4, splits), "ahead": ahead,
                }  # fmt: skip

    def cost(self, op: Dense, target: Target, knobs: Knobs) -> Cost:
        n, inputs = op.x.shape[0], op.weight.shape[1]
        vectors, samples, splits = knobs["vectors"], knobs["samples"], knobs["splits"]
        runs = Runs.of(op, knobs["lanes"])
        blocks = -(-runs.vectors // vectors)
        tiles = -(-n // samples)
        fma = vectors * samples
        widen = 0.4 * vectors if self.weights == "f16w" else 0.0
        if self.scratch(op, target, knobs):
            widen = 1.4 * vectors / tiles
        loads = vectors + widen + samples * (0.25 if target.arch == "aarch64" else 1)
        step = slots(target, fma, loads, 1 / splits)
        second = target.peak_gmacs_f32 * 1e9 / target.lanes_f32
        operations = blocks * tiles * (step * inputs + fma * (splits + 2 + 2 * len(op.epilogue)) + 24)
        nbytes = blocks * vectors * knobs["lanes"] * (inputs * self._bytes + 4)
        reads = nbytes / (read_gbps(target, nbytes) * 1e9)
        again = (tiles - 1) * nbytes / (read_gbps(target, nbytes // blocks) * 1e9)
        # What the caches deliver and what the core computes overlap, nearly.
        slow, fast = max(operations / second, reads + again), min(operations / second, reads + again)
        return Cost(seconds=slow + 0.1 * fast, bytes=nbytes, macs=op.macs)

    def constants(self, op: Dense, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        """One stream: per block of outputs, input by input, the weights of all of them; then their biases, which make a
        stream of their own beside half-precision weights."""
        from edgecsi.kernels.emit import epilogue_constants

        outs = op.weight.shape[0]
        runs = Runs.of(op, knobs["lanes"])
        bias = op.bias if op.bias is not None else np.zeros(outs, np.float32)
        outputs = [runs.outputs(b, knobs["vectors"]) for b in range(runs.blocks(knobs["vectors"]))]
        if self.weights == "f16w":
            halves = [op.weight[o].T.reshape(-1).astype(np.float16) for o in outputs]
            biases = [bias[o].astype(np.float32) for o in outputs]
            return [np.concatenate(halves), np.concatenate(biases), *epilogue_constants(op)]
        rows = np.concatenate([op.weight, bias[:, None]], 1).astype(np.float32)
        return [np.concatenate([rows[o].T.reshape(-1) for o in outputs]), *epilogue_constants(op)]

    def scratch(self, op: Dense, target: Target, knobs: Knobs) -> int:
        widened = 4 * knobs["vectors"] * knobs["lanes"] * int(op.weight.shape[1])
        again = self.weights == "f16w" and op.x.shape[0] > knobs["samples"]
        return widened if again and widened <= _MOST_WIDENED else 0

    @property
    def _bytes(self) -> int:
        """Of a weight."""
        return 2 if self.weights == "f16w" else 4

    def emit(self, op: Dense, target: Target, knobs: Knobs) -> PrimFunc:
        from tvm import tirx
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        n, inputs = op.x.shape[0], op.weight.shape[1]
        lanes, vectors, samples, splits = (knobs[k] for k in ("lanes", "vectors", "samples", "splits"))
        unroll, ahead = knobs["unroll"], knobs["ahead"]
        runs = Runs.of(op, lanes)
        fits = vectors <= runs.vectors and samples <= n and unroll % splits == 0
        if not fits or vectors * samples * splits > target.vector_registers:
            raise ValueError(f"{dict(knobs)} do not fit {op.weight.shape}")
        width = vectors * lanes
        constants, room = self.constants(op, target, knobs), self.scratch(op, target, knobs)
        grid = list(itertools.product(range(samples), range(vectors)))

        with e.function(op, constants, room) as (done, buffers):
            x, w = buffers[0], buffers[len(op.inputs)]
            half = self.weights == "f16w"
            finish = e.Finish(op, buffers, 1, len(op.inputs) + (2 if half else 1), target)
            e.zero_halo(finish.y, op.y)
            per_block = width * (inputs if half else inputs + 1)

            def weights_at(offset: Any, place: Any, lanes: int, fresh: bool) -> Any:
                """A vector of weights; `place`: in its block, `fresh`: not widened before."""
                if room and not fresh:
                    return as_bits(e.load(buffers[-1], place * 4, 4 * lanes), "float32")
                value = e.load(w, offset, lanes)
                if half:
                    value = T.cast(value, e.vector_type("float32", lanes))
                if room:
                    value = e.let(value)
                    e.store(buffers[-1], place * 4, as_bits(value, "uint8"))
                return value

            def biases_at(block: Any, start: Any, vector: int) -> Any:
                if half:
                    return e.load(buffers[len(op.inputs) + 1], block * width + vector * lanes, lanes)
                return e.load(w, start + inputs * width + vector * lanes, lanes)

            def inputs_from(
                first: Any, count: int, sums: dict[Any, Any], start: Any, sample: Any, fresh: bool
            ) -> None:
                """Add what `count` inputs contribute; `start`: weights of the first."""
                scalars = [
                    Scalars(x, (sample + s) * op.x.stride + first, count, target) for s in range(samples)
                ]
                for u in range(count):
                    if ahead:
                        for line in range(0, width * self._bytes, 64):
                            where = T.address_of(w[start + u * width + (line + ahead) // self._bytes])
                            T.evaluate(
                                T.call_llvm_intrin(
                                    T.llvm_lookup_intrinsic_id("llvm.prefetch"), where, 0, 3, 1, dtype="void"
                                )
                            )
                    # An ARM core loads 128 bits as easily as 64, of which it widens either half.
                    pairs = half and not room and lanes == 4 and target.arch == "aarch64" and vectors % 2 == 0
                    together = 2 if pairs else 1
                    weights = []
                    for v in range(0, vectors, together):
                        place = v * lanes
                        loaded = weights_at(
                            start + u * width + place, (first + u) * width + place, together * lanes, fresh
                        )
                        weights += [e.part(loaded, i * lanes, lanes) for i in range(2)] if pairs else [loaded]
                    if samples > 1 or half:
                        weights = [e.let(weight) for weight in weights]
                    for s, v in grid:
                        acc = sums[s, v, u % splits]
                        e.store(acc, 0, e.load(acc, 0, lanes) + scalars[s].splat(u, lanes) * weights[v])

            def block_of(block: Any, tile: Any, fresh: bool) -> None:
                """All outputs of one block, of one tile of samples."""
                start = e.let(block * per_block)
                sample = e.let(overlap(tile, samples, n))
                sums = {(s, v, p): e.registers(lanes) for s, v in grid for p in range(splits)}
                totals = {(s, v): e.registers(lanes) for s, v in grid}

                def sum_up(first: Any, count: int) -> None:
                    """Add what `count` inputs contribute to the totals."""
                    for acc in sums.values():
                        e.store(acc, 0, e.splat(0.0, lanes))
                    with e.serial(count // unroll) as i:
                        at = first + i * unroll
                        inputs_from(at, unroll, sums, start + at * width, sample, fresh)
                    if rest := count % unroll:
                        at = first + count - rest
                        inputs_from(at, rest, sums, start + at * width, sample, fresh)
                    for s, v in grid:
                        total = e.load(totals[s, v], 0, lanes)
                        for p in range(splits):
                            total = total + e.load(sums[s, v, p], 0, lanes)
                        e.store(totals[s, v], 0, total)

                for s, v in grid:
                    e.store(totals[s, v], 0, biases_at(block, start, v))
                if whole := inputs // _STRETCH:
                    with e.serial(whole) as stretch:
                        sum_up(stretch * _STRETCH, _STRETCH)
                if rest := inputs % _STRETCH:
                    sum_up(inputs - rest, rest)
                for s, v in grid:
                    total = e.load(totals[s, v], 0, lanes)
                    row, column = runs.start(overlap(block, vectors, runs.vectors) + v)
                    place = runs.place(sample + s, e.let(row), e.let(column))
                    channel, each = runs.channel(row, column)
                    finish.store(place(op.y), finish.value(total, place, channel, each))

            tiles = -(-n // samples)
            with e.serial(runs.blocks(vectors)) as block:
                if room:
                    block_of(block, tirx.const(0, "int32"), fresh=True)
                    with e.serial(tiles - 1) as tile:
                        block_of(block, tile + 1, fresh=False)
                else:
                    with e.serial(tiles) as tile:
                        block_of(block, tile, fresh=True)
        return done.done()


@dataclass(frozen=True)
class Runs:
    """Outputs of a sample as vectors that each lie contiguously in memory.

    Attributes:
        shape: of one sample. whole: outputs that follow each other in every tensor concerned: a row of an
            image if one of them has a halo, else all. lanes: width of a vector; the last vector of a run
            overlaps its neighbour.
    """

    shape: tuple[int, ...]
    whole: int
    lanes: int

    @classmethod
    def of(cls, op: Op, lanes: int) -> Runs:
        shape = op.y.shape[1:]
        tensors = [op.y, *(s.operand for s in op.epilogue if s.operand is not None)]
        by_row = any(any(t.halo) or t.shape != op.y.shape for t in tensors)
        by_channel = any(len(s.constants) for s in op.epilogue) and len(shape) > 1
        total = int(np.prod(shape, dtype=np.int64))
        return cls(shape, shape[-1] if by_row or by_channel else total, lanes)

    @property
    def per_run(self) -> int:
        return -(-self.whole // self.lanes)

    @property
    def vectors(self) -> int:
        """Vectors of a sample."""
        return int(np.prod(self.shape, dtype=np.int64)) // self.whole * self.per_run

    def blocks(self, vectors: int) -> int:
        return -(-self.vectors // vectors)

    def start(self, vector: Any) -> tuple[Any, Any]:
        """Run and position in the run of a vector's first element."""
        if self.per_run == 1:
            return vector, vector * 0
        return vector // self.per_run, overlap(vector % self.per_run, self.lanes, self.whole)

    def outputs(self, block: int, vectors: int) -> NDArray[np.int64]:
        """Indices of all outputs of a block."""
        first = min(block * vectors, self.vectors - vectors)
        numbers = np.arange(first, first + vectors)
        columns = np.minimum(numbers % self.per_run * self.lanes, self.whole - self.lanes)
        starts = numbers // self.per_run * self.whole + columns
        result: NDArray[np.int64] = (starts[:, None] + np.arange(self.lanes)).reshape(-1)
        return result

    def place(self, sample: Any, row: Any, column: Any) -> Any:
        """Function from a layout to the offset of a vector."""

        def at(layout: Layout) -> Any:
            if len(layout.shape) != 4 or self.whole != self.shape[-1] or len(self.shape) != 3:
                return sample * layout.stride + row * self.whole + column
            _, channels, height, width = layout.shape
            rows = self.shape[1]
            return layout.at(
                sample,
                row // rows if channels > 1 else 0,
                row % rows if height > 1 else 0,
                column if width > 1 else 0,
            )

        return at

    def channel(self, row: Any, column: Any) -> tuple[Any, int]:
        """First channel of a vector, and 1 if all its lanes are of that channel."""
        if len(self.shape) == 1:
            return column, self.lanes
        return row // int(np.prod(self.shape[1:-1], dtype=np.int64)), 1
