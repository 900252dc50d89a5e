"""Int8 convolution with vpmaddubsw: four products a lane, 8 pixels an instruction, for CPUs without VNNI.

The instruction adds the products of two codes to 16 bits, and saturates. Codes reach 255, so weights that add up to
at most 128 of either sign cannot: most pairs do. The few others are split in two. Sums of several taps stay in
16 bits as long as their weights' sum allows, and vpmaddwd with ones moves them to 32. Which taps that are is
different for every output channel, and is written into the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Knobs
from edgecsi.kernels.conv.int8 import Int8Conv2d
from edgecsi.kernels.conv.plan import Plan
from edgecsi.ops.operators import Conv2d
from edgecsi.target import Target

MOST = 128
"""Weights of one sign that an int16 has room for: 128 * 255 < 2^15."""
LONGEST = 1000
"""Products at most, for all output channels: each is some 50 bytes of code."""
TOGETHER = 2
"""Output channels that are summed up together: their sums of 16 and of 32 bits stay in registers."""


@dataclass(frozen=True)
class Product:
    """One vpmaddubsw: a quad of weights of a step. `fresh`: the sum of 16 bits begins anew."""

    step: int
    quad: tuple[int, ...]
    fresh: bool


class Qs8Conv2dMaddubs(Int8Conv2d):
    """Reads groups of four channels."""

    unroll: ClassVar[int] = LONGEST
    itemsize: ClassVar[int] = 4
    own_code: ClassVar[bool] = True

    def lacks(self, target: Target) -> str:
        return "" if target.arch == "x86_64" else "the CPU has no AVX2"

    def refuses(self, op: Conv2d, target: Target) -> str:
        if reason := super().refuses(op, target):
            return reason
        plan = self.plan(op, target, self.knobs(op, target))
        steps = plan.groups * len(plan.taps)
        return "it has too many weights to be written out" if steps * len(op.weight) > LONGEST else ""

    def vectors(self, op: Conv2d, target: Target) -> tuple[int, bool, int, int]:
        return 4, False, 8 if op.y.shape[3] >= 8 else 4, 1

    def knobs(self, op: Conv2d, target: Target) -> Knobs:
        return self.tile(op, target, 8, 2, 1, 16)

    def work(self, plan: Plan, vectors: int, outs: int) -> tuple[float, float]:
        listed = [product for out in products(plan) for product in out]
        share = outs / len(plan.op.weight) / len(plan.steps)
        count, fresh = len(listed) * share, sum(product.fresh for product in listed) * share
        return vectors * (count + fresh), vectors * (count + outs / TOGETHER) + count

    def pack(self, quads: NDArray[np.int8]) -> NDArray[Any]:
        return np.ascontiguousarray(quads).reshape(-1).view(np.int32)

    def packed(self, plan: Plan) -> NDArray[Any]:
        """In the order in which `sums` reads them."""
        quads = [
            products(plan)[out][i].quad
            for first, outs in plan.tiles
            for out, i in reading_order(plan, first, outs)
        ]
        return self.pack(np.array(quads, np.int8))

    def add(self, plan: Plan, x: Any, at: Sequence[Any], w: Any, weight: Any, acc: Any, outs: int) -> None:
        raise AssertionError("steps are added in an order of their own")

    def sums(
        self, plan: Plan, x: Any, at: Sequence[Any], w: Any, weight: Any, acc: Any, first: Any, outs: int
    ) -> None:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        lanes = plan.lanes
        wide = 2 * lanes
        family = "avx2" if lanes == 8 else "sse2"
        bytes_by = "llvm.x86.avx2.pmadd.ub.sw" if lanes == 8 else "llvm.x86.ssse3.pmadd.ub.sw.128"
        listed = products(plan)
        place = sum(len(listed[out]) for out in range(first))
        sums: dict[tuple[int, int], Any] = {}
        codes: tuple[int, list[Any]] = -1, []

        def widen(out: int) -> None:
            for v in range(len(at)):
                vector = ((out - first) * len(at) + v) * lanes
                ones = e.splat(1, wide, "int16")
                fours = e.intrinsic(f"llvm.x86.{family}.pmadd.wd", f"int32x{lanes}", sums[out, v], ones)
                e.store(acc, vector, e.in_order(e.load(acc, vector, lanes) + fours))

        for number, (out, i) in enumerate(reading_order(plan, first, outs)):
            product = listed[out][i]
            if product.step != codes[0]:
                offsets = [p + plan.steps[product.step] for p in at]
                codes = product.step, [e.let(e.load(x, offset, 4 * lanes)) for offset in offsets]
            if product.fresh and i:
                widen(out)
            four = e.splat(w[place + number], lanes)
            quad = e.let(T.reinterpret(four, dtype=f"int8x{4 * lanes}"))
            for v, code in enumerate(codes[1]):
                pairs = e.intrinsic(bytes_by, f"int16x{wide}", code, quad)
                sums[out, v] = e.let(pairs if product.fresh else e.in_order(sums[out, v] + pairs))
            if i == len(listed[out]) - 1:
                widen(out)


def reading_order(plan: Plan, first: int, outs: int) -> list[tuple[int, int]]:
    """Products of a tile as (output channel, number) in the order in which they are added up: a few channels
    at a time, step by step."""
    listed = products(plan)
    result: list[tuple[int, int]] = []
    for start in range(first, first + outs, TOGETHER):
        channels = range(start, min(start + TOGETHER, first + outs))
        rank = {step: i for i, step in enumerate(dict.fromkeys(p.step for p in listed[start]))}
        some = [(out, i) for out in channels for i in range(len(listed[out]))]
        result += sorted(some, key=lambda item: rank[listed[item[0]][item[1]].step])
    return result


@cache
def products(plan: Plan) -> list[list[Product]]:
    """For every output channel its products in the order of adding up; steps come in the same order for all.

    The next step is the one for which the fewest sums of 16 bits have to begin anew, then the one that fills
    them most.
    """
    quads = plan.step_quads(0, len(plan.op.weight))[:, :, 0].astype(np.int64)
    result: list[list[Product]] = [[] for _ in plan.op.weight]
    excess = _excess(quads)
    main = quads - excess
    held = np.full((len(result), 2, 2), MOST + 1)  # of each sign in each 16 bits; too much, to begin anew
    left = list(range(len(quads)))
    while left:
        fullest = (held + _sizes(main[left])).max((2, 3))
        anew = fullest > MOST
        filled = np.where(anew, 0, fullest).sum(1) / (MOST * len(result) + 1)
        step = left.pop(int(np.argmin(anew.sum(1) - filled)))
        every, some = np.arange(len(result)), np.flatnonzero(excess[step].any(1))
        for part, outs in (main[step], every), (excess[step], some):
            size = _sizes(part)[outs]
            fresh = np.max(held[outs] + size, axis=(1, 2)) > MOST
            held[outs] = size + np.where(fresh[:, None, None], 0, held[outs])
            for out, new in zip(outs.tolist(), fresh.tolist(), strict=True):
                result[out].append(Product(step, tuple(part[out].tolist()), new))
    return result


def _sizes(quads: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums of a quad's weights in each 16 bits, ``[..., 2, sign]``."""
    pairs = quads.reshape(*quads.shape[:-1], 2, 2)
    return np.stack([np.maximum(pairs, 0).sum(-1), np.maximum(-pairs, 0).sum(-1)], -1)


def _excess(quads: NDArray[np.int64]) -> NDArray[np.int64]:
    """What is too much for 16 bits, to be taken off the first weight of a pair."""
    over = np.maximum(_sizes(quads) - MOST, 0)
    result = np.zeros((*over.shape[:-1], 2), np.int64)
    result[..., 0] = over[..., 0] - over[..., 1]
    return result.reshape(quads.shape)
