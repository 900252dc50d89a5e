"""Two planes of codes for one fp32 image, written the way an int8 convolution reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgecsi.kernels.base import Kernel, Knobs, register
from edgecsi.kernels.ops import Cost, Quant, QuantizeWide
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


@register
class QuantizeWideKernel(Kernel):
    """Row by row; channels side by side in groups of 1, 2 or 4. The last vectors of a row may overlap.

    Knobs:
        lanes: width of a vector.
    """

    name = "quantize_wide"
    op = QuantizeWide

    def refuses(self, op: QuantizeWide, target: Target) -> str:
        if op.x.dtype != "float32" or op.x.group != 1 or len(op.x.shape) != 4:
            return "the input must be a plain fp32 image"
        if op.y.group not in (1, 2, 4):
            return f"an output in groups of {op.y.group} channels"
        return "" if op.x.shape[3] >= 4 else "rows of fewer than 4 pixels"

    def knobs(self, op: QuantizeWide, target: Target) -> Knobs:
        return {"lanes": next(v for v in (16, 8, 4) if v <= min(op.x.shape[3], target.lanes_f32))}

    def cost(self, op: QuantizeWide, target: Target, knobs: Knobs) -> Cost:
        return Cost(seconds=(op.x.nbytes + op.y.nbytes) / (target.l1_gbps * 1e9) * 2, bytes=0, macs=0)

    def emit(self, op: QuantizeWide, target: Target, knobs: Knobs) -> PrimFunc:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        quant, lanes = op.y_quant, knobs["lanes"]
        assert quant is not None
        n, channels, height, width = op.x.shape
        zero = quant.zero_point
        whole_steps = Quant(1.0, zero)  # what is stored has been divided by the step already

        with e.function(op, []) as (done, buffers):
            e.zero_halo(buffers[-1], op.y)

            def plane(sample: Any, channel: int, h: Any, w: Any) -> Any:
                """In steps, before rounding: of the tensor, or of what its codes leave over."""
                x = e.load(buffers[0], op.x.at(sample, channel % channels, h, w), lanes)
                if quant.offset:
                    x = x - e.splat(quant.offset, lanes)
                steps = e.let(e.fence(x * e.splat(float(quant.inverse), lanes)))
                if channel < channels:
                    return steps
                low, high = (e.splat(float(v), lanes) for v in (-zero, 255 - zero))
                clipped = T.min(T.max(steps, low), high)
                left = steps - e.intrinsic("llvm.rint", e.type_of(clipped), clipped)
                return left * e.splat(float(op.fine), lanes)

            # Four vectors are narrowed together: a group of them, or those of neighbouring pixels.
            starts = [*range(0, width - lanes + 1, lanes), *([width - lanes] if width % lanes else [])]
            with e.serial(n) as sample:
                for first in range(0, 2 * channels, op.y.group):
                    with e.serial(height) as h:
                        pieces: list[e.Piece] = []
                        for w in starts:
                            members = range(first, min(first + op.y.group, 2 * channels))
                            values = [plane(sample, c, h, w) for c in members]
                            values += [e.splat(0.0, lanes)] * (op.y.group - len(values))
                            follows = bool(pieces) and w == starts[len(pieces) - 1] + lanes
                            pieces.append(e.Piece(op.y.at(sample, first, h, w), values, follows))
                        e.store_codes(buffers[-1], pieces, whole_steps, target)
        return done.done()
