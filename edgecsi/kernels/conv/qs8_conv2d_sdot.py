"""Int8 convolution with sdot: four products a lane, four pixels an instruction, weights taken by element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Knobs
from edgecsi.kernels.conv.int8 import Int8Conv2d
from edgecsi.kernels.conv.plan import Plan, pairs_columns
from edgecsi.ops.operators import Conv2d
from edgecsi.target import Target


class Qs8Conv2dSdot(Int8Conv2d):
    """Reads groups of four channels; of two, where there are no more, with two columns in a lane."""

    shift: ClassVar[int] = 128

    def lacks(self, target: Target) -> str:
        return "" if target.dot == "sdot" else "the CPU has no sdot"

    def vectors(self, op: Conv2d, target: Target) -> tuple[int, bool, int, int]:
        return (2, True, 4, 2) if pairs_columns(op, 8) else (4, False, 4, 1)

    def knobs(self, op: Conv2d, target: Target) -> Knobs:
        return self.tile(op, target, 4, 2, 2, 16)

    def work(self, plan: Plan, vectors: int, outs: int) -> tuple[float, float]:
        return outs * vectors * plan.per, vectors + outs * plan.per / 8

    def pack(self, quads: NDArray[np.int8]) -> NDArray[Any]:
        """Quads one after the other, filled up to whole registers."""
        flat = np.ascontiguousarray(quads).reshape(-1)
        return np.concatenate([flat, np.zeros(-len(flat) % 16, np.int8)])

    def add(self, plan: Plan, x: Any, at: Sequence[Any], w: Any, weight: Any, acc: Any, outs: int) -> None:
        from edgecsi.kernels import emit as e

        per = plan.per
        codes = [e.signed(x, place, 16) for place in at]
        quads = [e.let(e.load(w, weight + i, 16)) for i in range(0, outs * per * 4, 16)]
        for o in range(outs):
            for p in range(per):
                element = o * per + p
                lane = [element % 4 * 4 + i % 4 for i in range(16)]
                weights = e.shuffle([quads[element // 4]], lane)
                for v, code in enumerate(codes):
                    vector = ((o * len(at) + v) * per + p) * 4
                    total = e.load(acc, vector, 4)
                    name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
                    e.store(acc, vector, e.intrinsic(name, "int32x4", total, code, weights))
