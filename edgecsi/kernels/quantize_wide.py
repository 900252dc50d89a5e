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

            def planes(sample: Any, channel: int, h: Any, w: Any) -> tuple[Any, Any]:
                """In steps, before rounding: the tensor, and what its codes leave over."""
                x = e.load(buffers[0], op.x.at(sample, channel, h, w), lanes)
                if quant.offset:
                    x = x - e.splat(quant.offset, lanes)
                steps = e.let(e.fence(x * e.splat(float(quant.inverse), lanes)))
                low, high = (e.splat(float(v), lanes) for v in (-zero, 255 - zero))
                clipped = T.min(T.max(steps, low), high)
                left = steps - e.intrinsic("llvm.rint", e.type_of(clipped), clipped)
                return steps, e.let(left * e.splat(float(op.fine), lanes))

            # Four vectors are narrowed together: a group of them, or those of neighbouring pixels.
            starts = [*range(0, width - lanes + 1, lanes), *([width - lanes] if width % lanes else [])]
            for members in channels_at_once(channels, op.y.group):
                stored: dict[int, list[e.Piece]] = {}
                with e.serial(n) as sample, e.serial(height) as h:
                    for i, w in enumerate(starts):
                        both = [planes(sample, c, h, w) for c in members]
                        codes = dict(zip(members, (first for first, _ in both), strict=True))
                        codes |= {channels + c: second for c, (_, second) in zip(members, both, strict=True)}
                        for first in sorted({c // op.y.group * op.y.group for c in codes}):
                            group = range(first, first + op.y.group)
                            values = [codes.get(c, e.splat(0.0, lanes)) for c in group]
                            follows = i > 0 and w == starts[i - 1] + lanes
                            piece = e.Piece(op.y.at(sample, first, h, w), values, follows)
                            stored.setdefault(first, []).append(piece)
                    for pieces in stored.values():
                        e.store_codes(buffers[-1], pieces, whole_steps, target)
        return done.done()


def channels_at_once(channels: int, group: int) -> list[range]:
    """Channels whose two planes fill whole groups: group by group, or all if a group holds codes of both planes."""
    if channels % group:
        return [range(channels)]
    return [range(first, first + group) for first in range(0, channels, group)]
