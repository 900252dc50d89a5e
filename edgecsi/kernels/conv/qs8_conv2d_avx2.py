"""Int8 convolution with vpmaddwd: codes and weights as int16, two products a lane, 8 pixels an instruction.

For two channels or so, and for more weights than the kernel with vpmaddubsw writes into its code. That instruction
takes four products at once, but half of them would be with channels that are not there.
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


class Qs8Conv2dAvx2(Int8Conv2d):
    """Reads groups of two channels."""

    unroll: ClassVar[int] = 16  # see the NEON kernel: sixteen registers are few
    itemsize: ClassVar[int] = 4

    def lacks(self, target: Target) -> str:
        return "" if target.arch == "x86_64" else "the CPU has no AVX2"

    def vectors(self, op: Conv2d, target: Target) -> tuple[int, bool, int, int]:
        return 2, False, 8 if op.y.shape[3] >= 8 else 4, 1

    def knobs(self, op: Conv2d, target: Target) -> Knobs:
        return self.tile(op, target, 4, 2, 2, 8)

    def work(self, plan: Plan, vectors: int, outs: int) -> tuple[float, float]:
        return outs * vectors, outs * vectors + 2 * vectors + outs

    def pack(self, quads: NDArray[np.int8]) -> NDArray[Any]:
        return np.ascontiguousarray(quads.astype(np.int16)).reshape(-1).view(np.int32)

    def add(self, plan: Plan, x: Any, at: Sequence[Any], w: Any, weight: Any, acc: Any, outs: int) -> None:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        lanes = plan.lanes
        codes = [e.let(T.cast(e.load(x, place, 2 * lanes), f"int16x{2 * lanes}")) for place in at]
        name = "llvm.x86.avx2.pmadd.wd" if lanes == 8 else "llvm.x86.sse2.pmadd.wd"
        for o in range(outs):
            weights = e.let(T.reinterpret(e.splat(w[weight + o], lanes), dtype=f"int16x{2 * lanes}"))
            for v, code in enumerate(codes):
                vector = (o * len(at) + v) * lanes
                products = e.intrinsic(name, f"int32x{lanes}", code, weights)
                e.store(acc, vector, e.load(acc, vector, lanes) + products)
