"""What products and sums are in a convolution whose lanes are pixels: fp32, half precision, or pairs of int16 with sums
in int32.

The loops around them are the same. In int16 a pixel is a pair of channels: one instruction multiplies both and adds
both products, so that half as many are needed. In half precision a vector has twice the pixels. See
`edgecsi.ops.operators` for what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Expr
from edgecsi.kernels.half import store_results, widened
from edgecsi.kernels.int16 import Largest, add_products, as_bits, steps_of
from edgecsi.kernels.tiling import overlap, strided
from edgecsi.ops.half import channels_together
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Conv2d
from edgecsi.target import Target


class Fp32:
    """One product a lane; the input is read where it lies.

    Args:
        buffers: of the function. own: how many constants are the convolution's. bias: of Winograd's form, which adds
            it last.

    Attributes:
        sums: type of a sum. size: its bytes. finish: what comes behind it.
    """

    sums: ClassVar[str] = "float32"
    size: ClassVar[int] = 4

    def __init__(
        self, op: Conv2d, target: Target, buffers: Sequence[Any], own: int = 1, bias: Any = None
    ) -> None:
        from edgecsi.kernels import emit as e

        self.op, self.target, self.bias = op, target, bias
        self.x, self.scratch = buffers[0], buffers[-1]
        self.finish = e.Finish(op, buffers, 1, len(op.inputs) + own, target)

    def open(self, sample: Expr) -> None:
        """What a sample begins with."""

    def sample(self, sample: Expr) -> Expr:
        """The number of the sample where it is read."""
        return sample

    def load(self, offset: Expr, lanes: int, stride: int) -> Expr:
        """Pixels, `stride` apart."""
        return strided(self.x, offset, lanes, stride)

    def add(self, total: Expr, x: Expr, weight: Expr) -> Expr:
        """A sum with one more product of every lane."""
        return total + x * weight

    def value(self, total: Expr, channel: Expr) -> Expr:
        """A sum of products as the convolution's result."""
        return total

    def store(self, offset: Expr, value: Expr) -> None:
        """Write results, finished."""
        self.finish.store(offset, value)

    def stretch(self, op: Conv2d) -> int:
        """How many input channels are summed before the sum is widened: all, where it never is."""
        return int(op.weight.shape[1])

    def channel(self, channel: Expr) -> None:
        """What a channel of results begins with."""

    def widened(self, total: Expr) -> Expr:
        """A sum as it is added to others."""
        return total

    def finished(self, value: Expr, at: Callable[[Layout], Expr], channel: Expr) -> None:
        """What comes behind results, and their way to memory; `at`: where they lie in a tensor of a given layout."""
        self.store(at(self.op.y), self.finish.value(value, at, channel, 1))

    def close(self) -> None:
        """What all samples end with."""

    # Of Winograd's form:

    def transformed(self, x: Expr) -> Expr:
        """Pixels as the transform adds them."""
        return x

    def put(self, offset: Expr, value: Expr) -> None:
        """Keep a vector in the scratch, at so many bytes."""
        from edgecsi.kernels import emit as e

        e.store(self.scratch, offset, as_bits(value, "uint8"))

    def get(self, offset: Expr, lanes: int) -> Expr:
        """What `put` has kept."""
        from edgecsi.kernels import emit as e

        return as_bits(e.load(self.scratch, offset, self.size * lanes), self.sums)

    def values(self, channel: Expr, lanes: int) -> Callable[[Expr], Expr]:
        """From sums that are transformed back to results."""
        from edgecsi.kernels import emit as e

        bias = e.let(e.splat(e.load(self.bias, channel, 1), lanes))
        return lambda total: total + bias


class F16(Fp32):
    """Products and sums in half precision; from a sum on, everything in fp32.

    Args:
        scale, bias: constants, float32 ``[O]``.
    """

    sums: ClassVar[str] = "float16"
    size: ClassVar[int] = 2

    def __init__(self, op: Conv2d, target: Target, buffers: Sequence[Any], scale: Any, bias: Any) -> None:
        super().__init__(op, target, buffers, 3, bias)
        self.scale = scale if op.scale is not None and (op.scale != 1).any() else None
        self.own: tuple[Expr, Expr] = (None, None)

    def stretch(self, op: Conv2d) -> int:
        return channels_together(op.weight)

    def channel(self, channel: Expr) -> None:
        from edgecsi.kernels import emit as e

        scale = None if self.scale is None else e.let(e.load(self.scale, channel, 1))
        self.own = scale, e.let(e.load(self.bias, channel, 1))

    def widened(self, total: Expr) -> Expr:
        return widened(total)

    def values(self, channel: Expr, lanes: int) -> Callable[[Expr], Expr]:
        self.channel(channel)
        return lambda total: total

    def finished(self, value: Expr, at: Callable[[Layout], Expr], channel: Expr) -> None:
        from edgecsi.kernels import emit as e

        scale, bias = self.own

        def scaled(part: Expr, _first: int) -> Expr:
            width = e.lanes_of(part)
            part = part * e.splat(scale, width) if scale is not None else part
            return part + e.splat(bias, width)

        def place(layout: Layout, first: int) -> Expr:
            return at(layout) + first if layout.shape[3] > 1 else at(layout)

        store_results(self.finish, e.let(widened(value)), scaled, place, lambda _first: (channel, 1))


class Int16(Fp32):
    """Two products a lane, of codes in the scratch: every sample is rounded first, and its range is its own.

    Args:
        factor, bias: constants, float32 ``[O]``. lanes: of a vector of results.
        quarters: sums are four times too large, as Winograd's are whose weights
            are to be whole numbers.
    """

    sums: ClassVar[str] = "uint32"
    """What Winograd's additions may overflow on their way, LLVM leaves undefined for signed numbers."""

    def __init__(
        self, op: Conv2d, target: Target, buffers: Sequence[Any], factor: Any, bias: Any, lanes: int, quarters: bool
    ) -> None:  # fmt: skip
        super().__init__(op, target, buffers, 3, bias)
        self.factor, self.quarters = factor, quarters
        self.unit: Expr = None
        self.largest = Largest(lanes) if op.y.peak else None

    def store(self, offset: Expr, value: Expr) -> None:
        super().store(offset, value)
        if self.largest is not None:
            self.largest.see(value)

    def close(self) -> None:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        if self.largest is not None:
            largest = T.reinterpret(self.largest.bits(), dtype="float32")
            e.store(self.finish.y, self.op.y.size - 1, largest)

    def sample(self, sample: Expr) -> Expr:
        return 0

    def open(self, sample: Expr) -> None:
        """Find the largest magnitude, and write the codes."""
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        op, x = self.op, self.op.x
        plane = x.rows * x.pitch
        length = plane + x.tail
        lanes = min(self.target.lanes_f32, 1 << (length.bit_length() - 1))
        start = e.let(sample * x.stride)
        if op.x.peak:
            bits = e.let(T.reinterpret(e.load(self.x, x.size - 1, 1), dtype="int32"))
        else:
            bits = self._largest(start, lanes)
        inverse, self.unit = steps_of(bits, op.steps)

        def codes(offset: Expr) -> Expr:
            return e.to_int(
                e.load(self.x, offset, lanes) * e.splat(inverse, lanes), self.target, bounded=True
            )

        def write(pair: Expr, both: bool) -> None:
            # Behind the last plane lies the halo of its last row, behind the others the next plane.
            with e.serial(-(-length // lanes)) as block:
                offset = e.let(overlap(block, lanes, length))
                first = start + pair * (2 * plane) + offset
                code = codes(first) & e.splat(0xFFFF, lanes, "int32")
                if both:
                    code = code | T.shift_left(codes(first + plane), e.splat(16, lanes, "int32"))
                self.put((pair * plane + offset) * 4, code)

        pairs, odd = divmod(x.shape[1], 2)
        with e.serial(pairs) as pair:
            write(pair, True)
        if odd:
            write(pairs, False)

    def _largest(self, start: Expr, lanes: int) -> Expr:
        """The largest magnitude of a sample."""
        from edgecsi.kernels import emit as e

        largest = Largest(lanes)
        with e.serial(-(-self.op.x.sample // lanes)) as block:
            largest.see(e.load(self.x, start + overlap(block, lanes, self.op.x.sample), lanes))
        return largest.bits()

    def load(self, offset: Expr, lanes: int, stride: int) -> Expr:
        return self.get(offset * 4, lanes)

    def add(self, total: Expr, x: Expr, weight: Expr) -> Expr:
        return add_products(total, x, weight, self.target)

    def value(self, total: Expr, channel: Expr) -> Expr:
        from edgecsi.kernels import emit as e

        return self.values(channel, e.lanes_of(total))(total)

    def transformed(self, x: Expr) -> Expr:
        return as_bits(x, "int16")

    def values(self, channel: Expr, lanes: int) -> Callable[[Expr], Expr]:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        factor = e.let(e.splat(self.unit * e.load(self.factor, channel, 1), lanes))
        bias = e.let(e.splat(e.load(self.bias, channel, 1), lanes))

        def whole(total: Expr) -> Expr:
            total = as_bits(total, "int32")
            if self.quarters:
                total = T.shift_right(total, e.splat(2, lanes, "int32"))
            return e.fence(T.cast(total, e.vector_type("float32", lanes)) * factor) + bias

        return whole


def codes_layout(op: Conv2d) -> Layout:
    """Pairs of codes of one sample, as 32-bit pixels."""
    x = op.x
    return Layout((1, -(-x.shape[1] // 2), *x.shape[2:]), "int32", x.halo)


def scale_and_bias(op: Conv2d) -> list[NDArray[np.float32]]:
    """Of every output channel, of a convolution whose sums are scaled."""
    assert op.scale is not None
    bias = np.zeros(len(op.weight), np.float32) if op.bias is None else op.bias
    return [op.scale.astype(np.float32), bias.astype(np.float32)]
