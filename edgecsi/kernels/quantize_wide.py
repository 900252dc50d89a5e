"""Two planes of codes for one fp32 image, written the way an int8 convolution reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgecsi.kernels.base import Cost, Kernel, Knobs
from edgecsi.ops.operators import Quant, QuantizeWide
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


_FAR = 2.0**20
"""Steps from 0 that are cut off: far outside of both planes, and near enough for int32, to which
ARM converts with saturation."""


class QuantizeWideKernel(Kernel):
    """Row by row; channels side by side in groups of 1, 2 or 4. The last vectors of a row may overlap.

    Knobs:
        lanes: width of a vector.
    """

    op = QuantizeWide

    def refuses(self, op: QuantizeWide, target: Target) -> str:
        if op.x.dtype != "float32" or op.x.group != 1 or len(op.x.shape) != 4:
            return "the input must be a plain fp32 image"
        if op.y.group not in (1, 2, 4):
            return f"an output in groups of {op.y.group} channels"
        if op.y.channels // 2 % op.y.group:
            return "a group of channels would hold codes of both planes"
        return "" if op.x.shape[3] >= 4 else "rows of fewer than 4 pixels"

    def knobs(self, op: QuantizeWide, target: Target) -> Knobs:
        return {"lanes": next(v for v in (16, 8, 4) if v <= min(op.x.shape[3], target.lanes_f32))}

    def cost(self, op: QuantizeWide, target: Target, knobs: Knobs) -> Cost:
        moved = (op.x.nbytes + op.y.nbytes) / (target.l1_gbps * 1e9) * 2
        vectors = float(np.prod(op.x.shape)) / knobs["lanes"]
        second = target.peak_gmacs_f32 * 1e9 / target.lanes_f32  # vector multiply-adds a second
        return Cost(
            seconds=moved + vectors * (16 if target.arch == "aarch64" else 7) / second, bytes=0, macs=0
        )

    def emit(self, op: QuantizeWide, target: Target, knobs: Knobs) -> PrimFunc:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        quant, lanes = op.y_quant, knobs["lanes"]
        assert isinstance(quant, Quant)
        n, channels, height, width = op.x.shape
        zero, arm = quant.zero_point, target.arch == "aarch64"
        with e.function(op, []) as (done, buffers):
            e.zero_halo(buffers[-1], op.y)

            def planes(sample: Any, channel: int, h: Any, w: Any) -> tuple[Any, Any]:
                """Codes around 0 in int32: of the tensor, and of what these leave over."""
                x = e.load(buffers[0], op.x.at(sample, channel, h, w), lanes)
                if quant.offset:
                    x = x - e.splat(quant.offset, lanes)
                steps = e.fence(x * e.splat(float(quant.inverse), lanes))
                if arm:
                    # Not-a-number becomes the lowest code of both planes.
                    steps = e.let(e.neon("fmaxnm", steps, e.splat(-_FAR, lanes)))
                    low, high = (e.splat(float(v), lanes) for v in (-zero, 255 - zero))
                    clipped = e.let(e.within(steps, low, high, target))
                    codes = e.to_int(clipped, target, bounded=True)
                    whole = e.intrinsic("llvm.rint", e.type_of(steps), clipped)
                else:
                    steps = e.let(e.at_most(steps, e.splat(_FAR, lanes), target))
                    low, high = (e.splat(v, lanes, "int32") for v in (-zero, 255 - zero))
                    codes = e.let(T.min(T.max(e.to_int(steps, target, bounded=True), low), high))
                    whole = T.cast(codes, e.type_of(steps))
                left = e.let((steps - whole) * e.splat(float(op.fine), lanes))
                return codes, e.to_int(left, target, bounded=True)

            # Four vectors are narrowed together: a group of them, or those of neighbouring pixels.
            starts = [*range(0, width - lanes + 1, lanes), *([width - lanes] if width % lanes else [])]
            plane, group = op.y.channels // 2, op.y.group
            nothing = e.splat(0, lanes, "int32")
            for first in range(0, plane, group):
                stored: tuple[list[e.Piece], list[e.Piece]] = ([], [])
                with e.serial(n) as sample, e.serial(height) as h:
                    for i, w in enumerate(starts):
                        both = [
                            planes(sample, c, h, w) if c < channels else (nothing, nothing)
                            for c in range(first, first + group)
                        ]
                        follows = i > 0 and w == starts[i - 1] + lanes
                        for k, values in enumerate(zip(*both, strict=True)):
                            at = op.y.at(sample, k * plane + first, h, w)
                            stored[k].append(e.Piece(at, list(values), follows))
                    for pieces in stored:
                        e.store_codes(buffers[-1], pieces, quant, target)
        return done.done()
