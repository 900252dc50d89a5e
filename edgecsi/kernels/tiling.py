"""What the kernels that keep a block of results in registers share: loads, places, and the cost of a step."""

from __future__ import annotations

from typing import Any

from edgecsi.ops.layout import vector_widths
from edgecsi.target import Target


class Scalars:
    """Numbers of a row, each to be multiplied with whole vectors.

    NEON multiplies with one lane of a register, so there a register is loaded at once; x86 broadcasts from memory.

    Args:
        start: offset of the first. count: how many; nothing behind is read. stride: from one to the next.
    """

    def __init__(self, buffer: Any, start: Any, count: int, target: Target, stride: int = 1) -> None:
        from edgecsi.kernels import emit as e

        self.buffer, self.start, self.stride = buffer, start, stride
        self.lanes: dict[int, tuple[Any, int]] = {}
        if target.arch == "aarch64" and stride == 1:
            for first, width in vector_widths(count, 8 if buffer.dtype == "float16" else 4):
                if width > 1:
                    vector = e.let(e.load(buffer, start + first, width))
                    self.lanes |= {first + lane: (vector, lane) for lane in range(width)}

    def splat(self, index: int, lanes: int) -> Any:
        """Number `index` in every lane."""
        from tvm import tirx

        from edgecsi.kernels import emit as e

        if index not in self.lanes:
            return e.splat(e.load(self.buffer, self.start + index * self.stride, 1), lanes)
        vector, lane = self.lanes[index]
        # A shuffle may not have more results than operands.
        return tirx.Shuffle([vector] * -(-lanes // e.lanes_of(vector)), [lane] * lanes)


def overlap(index: Any, size: int, extent: int) -> Any:
    """Start of block `index` of `size` elements; the last ends with the extent, and may overlap."""
    from tvm import tirx

    return index * size if extent % size == 0 else tirx.min(index * size, extent - size)


def strided(buffer: Any, offset: Any, lanes: int, stride: int) -> Any:
    """Every `stride`-th element from `offset` on."""
    from tvm import tirx
    from tvm.tirx.script import builder as T

    from edgecsi.kernels import emit as e

    if stride == 1 or lanes == 1:
        return e.load(buffer, offset, lanes)
    if stride == 2:
        # Two loads that end with the last element needed, not behind it.
        pair = [e.load(buffer, offset, lanes), e.load(buffer, offset + lanes - 1, lanes)]
        return tirx.Shuffle(pair, [*range(0, lanes, 2), *range(lanes + 1, 2 * lanes, 2)])
    return buffer[T.ramp(offset, stride, lanes)]


def image_place(sample: Any, channel: Any, row: Any, column: Any) -> Any:
    """Function from a layout to the offset of a pixel, for tensors of the output's shape and for gates."""

    def at(layout: Any) -> Any:
        _, channels, height, width = layout.shape
        return layout.at(
            sample, channel if channels > 1 else 0, row if height > 1 else 0, column if width > 1 else 0
        )

    return at


def read_gbps(target: Target, nbytes: int) -> float:
    """Bandwidth of the cache level that holds so many bytes, or of memory."""
    if nbytes <= target.l1_bytes:
        return target.l1_gbps
    if nbytes <= target.l2_bytes:
        return target.l2_gbps
    return target.memory_gbps if 0 < target.l3_bytes < nbytes and target.memory_gbps else target.l3_gbps


def slots(target: Target, multiplies: float, loads: float, chain: float) -> float:
    """Time of a step, in vector multiply-adds at full speed.

    A core loads a vector for each multiply-add, issues two operations in that time, and has about eight
    multiply-adds of independent sums on their way.

    Args:
        multiplies: vector multiply-adds of the step. loads: vectors and scalars loaded. chain: how many
            of the multiply-adds wait for each other.
    """
    # The last term decides between what is equally fast; small cores hide fewer loads.
    unhidden = 0.03 if target.arch == "x86_64" else 0.2
    return max(multiplies, loads, 8.0 * chain, 0.5 * (multiplies + loads)) + unhidden * loads
