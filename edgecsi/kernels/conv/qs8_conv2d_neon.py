"""Int8 convolution for ARM without dot products: smull and smlal into 16 bits, sadalp into 32.

A 16-bit sum holds the products of 128 with weights that add up to 255 in magnitude. How many taps that are
is seen in the weights: two always, usually three or four. They are chained with smlal, and one sadalp, which
also adds the two channels of a pair, moves them to 32 bits: for three taps 8 instructions do 48 products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Knobs
from edgecsi.kernels.conv.int8 import Int8Conv2d
from edgecsi.kernels.conv.plan import Plan
from edgecsi.ops.operators import Conv2d
from edgecsi.target import Target

LONGEST = 4
"""Taps in a chain at most: the input vectors of all of them stay in registers."""
TRIES = 30
"""Orders in which the taps are packed into chains."""


class Qs8Conv2dNeon(Int8Conv2d):
    """Reads groups of two channels."""

    shift: ClassVar[int] = 128
    unroll: ClassVar[int] = 16  # in longer code LLVM keeps more in flight than there are registers

    def lacks(self, target: Target) -> str:
        return "" if target.arch == "aarch64" else "the CPU has no NEON"

    def vectors(self, op: Conv2d, target: Target) -> tuple[int, bool, int, int]:
        return 2, False, 4, 2 if op.y.shape[3] >= 8 else 1

    def knobs(self, op: Conv2d, target: Target) -> Knobs:
        return self.tile(op, target, 4, 2, 1, 16)

    def work(self, plan: Plan, vectors: int, outs: int) -> tuple[float, float]:
        multiplies = outs * vectors * plan.per
        chained = len(chains(plan)) / len(plan.steps)
        return multiplies, multiplies * chained + vectors + outs / 2

    def pack(self, quads: NDArray[np.int8]) -> NDArray[Any]:
        """Every pair eight times, a register for each output channel: two loads in one instruction."""
        return np.ascontiguousarray(np.tile(quads.reshape(-1, 1, 2), (1, 8, 1))).reshape(-1)

    def add(self, plan: Plan, x: Any, at: Sequence[Any], w: Any, weight: Any, acc: Any, outs: int) -> None:
        raise AssertionError("steps are added in chains")

    def sums(
        self, plan: Plan, x: Any, at: Sequence[Any], w: Any, weight: Any, acc: Any, first: Any, outs: int
    ) -> None:
        from edgecsi.kernels import emit as e

        bytes_read = 8 * plan.per
        size = self.step_size(plan, outs)
        for chain in chains(plan):
            offsets = [plan.steps[step] for step in chain]
            codes = [[e.signed(x, place + offset, bytes_read) for place in at] for offset in offsets]
            for o in range(outs):
                weights = [e.let(e.load(w, weight + step * size + o * 16, 16)) for step in chain]
                for v in range(len(at)):
                    for p in range(plan.per):
                        half = range(p * 8, p * 8 + 8)
                        total = None
                        for taps, weight_vector in zip(codes, weights, strict=True):
                            code = e.shuffle([taps[v]], half) if plan.per > 1 else taps[v]
                            both = code, e.shuffle([weight_vector], half)
                            product = e.intrinsic("llvm.aarch64.neon.smull.v8i16", "int16x8", *both)
                            total = product if total is None else total + product
                        vector = ((o * len(at) + v) * plan.per + p) * 4
                        wide = e.intrinsic("llvm.aarch64.neon.saddlp.v4i32.v8i16", "int32x4", total)
                        e.store(acc, vector, e.load(acc, vector, 4) + wide)


def chains(plan: Plan) -> list[list[int]]:
    """Steps in as few runs as are found, whose weights add up to at most 255 in magnitude for every output
    channel (and every channel group, if `plan.looped`)."""
    quads = np.abs(plan.step_quads(0, int(plan.op.weight.shape[0])).astype(np.int64))
    sizes = quads.reshape(-1, len(plan.steps), quads[0].size)
    rng = np.random.default_rng(0)
    found = [_first_fit(sizes, range(len(plan.steps)))]
    found += [_first_fit(sizes, rng.permutation(len(plan.steps)).tolist()) for _ in range(TRIES)]
    return min(found, key=len)


def _first_fit(sizes: NDArray[np.int64], order: Sequence[int]) -> list[list[int]]:
    """Put every step into the first run that has room for it; `sizes` is ``[any, steps, any]``."""
    runs: list[list[int]] = []
    totals: list[NDArray[np.int64]] = []
    for step in order:
        for run, total in zip(runs, totals, strict=True):
            if len(run) < LONGEST and (total + sizes[:, step]).max() <= 255:
                run.append(step)
                total += sizes[:, step]
                break
        else:
            runs.append([step])
            totals.append(sizes[:, step].copy())
    return sorted(sorted(run) for run in runs)
