"""Int8 convolution with vpdpbusd: four products a lane, 16 pixels (AVX-512) or 8 (AVX-VNNI) at once."""

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


class Qs8Conv2dVnni(Int8Conv2d):
    """Reads groups of four channels; of two, where there are no more, with two columns in a lane."""

    itemsize: ClassVar[int] = 4

    def lacks(self, target: Target) -> str:
        return "" if target.dot in ("avx512_vnni", "avx_vnni") else "the CPU has no VNNI"

    def vectors(self, op: Conv2d, target: Target) -> tuple[int, bool, int, int]:
        paired = pairs_columns(op, 8)
        per = 2 if paired else 1
        lanes = target.lanes_f32
        while lanes * per > op.y.shape[3] and lanes > 4:
            lanes //= 2
        return (2, True, lanes, 2) if paired else (4, False, lanes, 1)

    def knobs(self, op: Conv2d, target: Target) -> Knobs:
        most = target.vector_registers // 2
        return self.tile(op, target, 4 if pairs_columns(op, 8) else most // 2, 4, 2, most)

    def copies(self, plan: Plan) -> int:
        """One for each plane where a tile is straight code: LLVM would load weights that both planes share ahead of the
        two, and put on the stack what registers do not hold."""
        return 1 if plan.looped else plan.op.planes

    def pack(self, quads: NDArray[np.int8]) -> NDArray[Any]:
        return np.ascontiguousarray(quads).reshape(-1).view(np.int32)

    def add(self, plan: Plan, x: Any, at: Sequence[Any], w: Any, weight: Any, acc: Any, outs: int) -> None:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        lanes, per = plan.lanes, plan.per
        codes = [e.let(e.load(x, place, 4 * lanes)) for place in at]
        for o in range(outs):
            for p in range(per):
                four = e.splat(w[weight + o * per + p], lanes)
                weights = e.let(T.reinterpret(four, dtype=f"int8x{4 * lanes}"))
                for v, code in enumerate(codes):
                    vector = ((o * len(at) + v) * per + p) * lanes
                    total = e.load(acc, vector, lanes)
                    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
                    e.store(acc, vector, e.intrinsic(name, f"int32x{lanes}", total, code, weights))
