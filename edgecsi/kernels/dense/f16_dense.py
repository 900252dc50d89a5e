"""Fully connected layer in half precision: a vector holds twice the outputs of fp32.

Weights lie as those of `f32_dense`: blocks of vectors of outputs, and in a block input by input. What is rounded,
`edgecsi.ops.half` says: a stretch of inputs is summed in half precision, and the stretches in fp32, in this order
whatever the blocks, so that every setting gives the same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Blocked, Cost, Knobs
from edgecsi.kernels.dense.f32_dense import Runs
from edgecsi.kernels.half import refuses_cpu, store_results, widened
from edgecsi.kernels.tiling import Scalars, overlap, read_gbps, slots
from edgecsi.ops.half import INPUTS
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

_LOADED = 8
"""Inputs that a register holds."""
_REACH = 1024
"""Bytes from an address from which vectors are loaded in pairs: what lies further away is loaded by a loop."""
_WIDEN, _FINISH = 4, 8
"""Instructions for adding a vector of sums to the others, and for making results of one."""


class F16Dense(Blocked):
    """Any sizes and batch; the output may be an image in its halo.

    Knobs:
        lanes: width of a vector. vectors: vectors of outputs in a block. samples: samples that share a weight.
    """

    op = Dense

    def refuses(self, op: Dense, target: Target) -> str:
        if op.x.dtype != "float16" or op.weight.dtype != np.float16 or op.scale is None:
            return "it needs input and weights in half precision"
        if reason := refuses_cpu(target):
            return reason
        if any(op.x.halo) or op.x.group != 1:
            return "the numbers of a row do not lie side by side"
        return "" if op.y.group == 1 else "the output's channels must not be grouped"

    def _sensible(self, op: Dense, target: Target) -> Iterator[dict[str, int]]:
        """Blocks whose sums fit the registers, the wide ones too."""
        lanes = 2 * target.lanes_f32
        while lanes > Runs.of(op, 1).whole:
            lanes //= 2
        available = Runs.of(op, lanes).vectors
        for vectors, samples in itertools.product(range(1, 9), (1, 2, 3, 4, 5, 6, 8)):
            if vectors > available or samples > op.x.shape[0]:
                continue
            busy = 3 * vectors * samples + samples + (vectors if samples > 1 else 2)
            if busy <= target.vector_registers or vectors * samples == 1:
                yield {"lanes": lanes, "vectors": vectors, "samples": samples}

    def cost(self, op: Dense, target: Target, knobs: Knobs) -> Cost:
        n, inputs = op.x.shape[0], op.weight.shape[1]
        lanes, vectors, samples = (knobs[k] for k in ("lanes", "vectors", "samples"))
        blocks, tiles = Runs.of(op, lanes).blocks(vectors), -(-n // samples)
        fma = vectors * samples
        step = slots(target, fma, vectors + samples / _LOADED, 1)
        second = target.peak_gmacs_f32 * 1e9 / target.lanes_f32
        ends = _WIDEN * -(-inputs // INPUTS) + _FINISH + 4 * len(op.epilogue)
        operations = blocks * tiles * (step * inputs + fma * ends + 24)
        nbytes = blocks * vectors * lanes * (2 * inputs + 8)
        reads = nbytes / (read_gbps(target, nbytes) * 1e9)
        again = (tiles - 1) * nbytes / (read_gbps(target, nbytes // blocks) * 1e9)
        slow, fast = max(operations / second, reads + again), min(operations / second, reads + again)
        return Cost(seconds=slow + 0.1 * fast, bytes=nbytes, macs=op.macs)

    def constants(self, op: Dense, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        """Per block of outputs, input by input, the weights of all of them; and as a stream of their own, per block, the
        outputs' biases, behind their scales if there are any."""
        from edgecsi.kernels.emit import epilogue_constants

        runs = Runs.of(op, knobs["lanes"])
        outputs = [runs.outputs(b, knobs["vectors"]) for b in range(runs.blocks(knobs["vectors"]))]
        bias = np.zeros(len(op.weight), np.float32) if op.bias is None else op.bias
        own = [op.scale, bias] if op.scale is not None and _scales(op) else [bias]
        return [
            np.concatenate([op.weight[o].T.reshape(-1) for o in outputs]),
            np.concatenate([numbers[o] for o in outputs for numbers in own]).astype(np.float32),
            *epilogue_constants(op),
        ]

    def emit(self, op: Dense, target: Target, knobs: Knobs) -> PrimFunc:
        from edgecsi.kernels import emit as e

        n, inputs = op.x.shape[0], op.weight.shape[1]
        lanes, vectors, samples = (knobs[k] for k in ("lanes", "vectors", "samples"))
        runs, width = Runs.of(op, lanes), vectors * lanes
        if vectors > runs.vectors or samples > n:
            raise ValueError(f"{dict(knobs)} do not fit {op.weight.shape}")
        constants = self.constants(op, target, knobs)
        grid = list(itertools.product(range(samples), range(vectors)))
        scaled = _scales(op)

        with e.function(op, constants) as (done, buffers):
            x, w, own = buffers[0], *buffers[len(op.inputs) : len(op.inputs) + 2]
            e.zero_halo(buffers[-1], op.y)
            finish = e.Finish(op, buffers, 1, len(op.inputs) + 2, target)

            with e.serial(runs.blocks(vectors)) as block, e.serial(-(-n // samples)) as tile:
                start = e.let(block * (width * inputs))
                sample = e.let(overlap(tile, samples, n))
                sums = {sv: e.registers(lanes, "float16") for sv in grid}
                totals = {sv: e.registers(lanes) for sv in grid}
                for total in totals.values():
                    e.store(total, 0, e.splat(0.0, lanes))

                def some(first: Any, count: int, fresh: bool) -> None:
                    """Add what `count` inputs contribute; `fresh`: nothing was added before."""
                    numbers = [
                        Scalars(x, (sample + s) * op.x.stride + first, count, target) for s in range(samples)
                    ]
                    for u in range(count):
                        at = start + (first + u) * width
                        weights = [e.let(e.load(w, at + v * lanes, lanes)) for v in range(vectors)]
                        for s, v in grid:
                            acc, product = sums[s, v], numbers[s].splat(u, lanes) * weights[v]
                            begins = fresh and u == 0
                            e.store(acc, 0, e.fence(product) if begins else e.load(acc, 0, lanes) + product)

                def stretch(first: Any, count: int) -> None:
                    """Add the sums of `count` inputs to the totals."""
                    whole, rest = divmod(count, _LOADED)
                    straight = 2 * count * width <= _REACH
                    if straight:
                        for i in range(whole):
                            some(first + i * _LOADED, _LOADED, fresh=i == 0)
                    else:
                        for acc in sums.values():
                            e.store(acc, 0, e.splat(0.0, lanes, "float16"))
                        with e.serial(whole) as i:
                            some(first + i * _LOADED, _LOADED, fresh=False)
                    if rest:
                        some(first + count - rest, rest, fresh=straight and not whole)
                    for sv, acc in sums.items():
                        e.store(totals[sv], 0, e.load(totals[sv], 0, lanes) + widened(e.load(acc, 0, lanes)))

                if whole := inputs // INPUTS:
                    with e.serial(whole) as number:
                        stretch(number * INPUTS, INPUTS)
                if rest := inputs % INPUTS:
                    stretch(inputs - rest, rest)

                numbers = e.let(block * (width * (1 + scaled)))
                for s, v in grid:
                    run, column = runs.start(overlap(block, vectors, runs.vectors) + v)
                    run, column = e.let(run), e.let(column)

                    def value(part: Any, first: int, v: int = v) -> Any:
                        at, some_lanes = numbers + v * lanes + first, e.lanes_of(part)
                        if scaled:
                            part = part * e.load(own, at, some_lanes)
                        return part + e.load(own, at + scaled * width, some_lanes)

                    def at(
                        layout: Layout, first: int, s: int = s, run: Any = run, column: Any = column
                    ) -> Any:
                        return runs.place(sample + s, run, column + first)(layout)

                    def channel(first: int, run: Any = run, column: Any = column) -> tuple[Any, int]:
                        which, of = runs.channel(run, column + first)
                        return which, min(of, target.lanes_f32)

                    store_results(finish, e.let(e.load(totals[s, v], 0, lanes)), value, at, channel)
        return done.done()


def _scales(op: Dense) -> bool:
    """Whether sums are scaled."""
    return op.scale is not None and bool((op.scale != 1).any())
