"""Convolution in half precision, of images that lie in memory as such: direct, and in Winograd's form.

A vector holds twice the pixels of fp32, so half as many multiplications are needed. What is rounded, and which form a
convolution has, `edgecsi.ops.half` says: bit for bit what PyTorch's simulation does, whatever the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Cost, Kernel, Knobs
from edgecsi.kernels.conv.arithmetic import F16, scale_and_bias
from edgecsi.kernels.conv.f32_conv2d_direct import F32Conv2dDirect, reach, refuses_images
from edgecsi.kernels.conv.f32_conv2d_winograd import F32Conv2dWinograd, blocks_of_points
from edgecsi.kernels.half import doubled, refuses_cpu
from edgecsi.ops.half import channels_together, points
from edgecsi.ops.operators import Conv2d
from edgecsi.target import Target

_LEAST_LANES = 4
"""Of tiles: no instruction takes fewer."""
_FINISH, _WIDEN = 8, 5
"""Instructions for narrowing a vector of results, and for widening a sum on its way."""


def _refuses(op: Conv2d, target: Target, tiled: bool) -> str:
    if op.x.dtype != "float16" or op.weight.dtype != np.float16 or op.scale is None:
        return "it needs input and weights in half precision"
    if reason := refuses_cpu(target):
        return reason
    if op.tiled != tiled:
        return f"its sums are {'those' if op.tiled else 'not those'} of Winograd's form"
    if reason := refuses_images(op):
        return reason
    if isinstance(op.x.fill, tuple) and op.x.lead and reach(op)[0] >= op.x.halo[1]:
        return "the halo below has no row for what is right of the last"
    return ""


def _plain(op: Conv2d) -> Conv2d:
    """Without what is left to the end of a sum."""
    return replace(op, bias=None)


def _cost(op: Conv2d, target: Target, found: Cost, sums: int) -> Cost:
    vectors = op.y.size / target.lanes_f32 / 2
    second = target.peak_gmacs_f32 * 1e9 / target.lanes_f32
    weights = op.weight.nbytes * found.bytes // max(4 * op.weight.size, 1)
    return Cost(
        found.seconds + vectors * (_FINISH + _WIDEN * sums) / second, weights + 8 * len(op.weight), op.macs
    )


class F16Conv2dDirect(F32Conv2dDirect):
    """Any stride, dilation and number of groups. Knobs are those of :class:`F32Conv2dDirect`."""

    def refuses(self, op: Conv2d, target: Target) -> str:
        return _refuses(op, target, tiled=False)

    def _sensible(self, op: Conv2d, target: Target) -> Iterator[dict[str, int]]:
        stretch = channels_together(op.weight)
        for knobs in super()._sensible(op, doubled(target)):
            unroll = max(u for u in (1, 2, 4, 8) if stretch % u == 0 and u <= knobs["ci_unroll"])
            # A wide sum takes two registers beside that in half precision.
            sums = knobs["co_tile"] * knobs["rows"] * knobs["columns"]
            if stretch == op.weight.shape[1] or 3 * sums < target.vector_registers:
                yield knobs | {"ci_unroll": unroll}

    def cost(self, op: Conv2d, target: Target, knobs: Knobs) -> Cost:
        parts = op.weight.shape[1] // channels_together(op.weight)
        return _cost(op, target, super().cost(op, doubled(target), knobs), parts)

    def constants(self, op: Conv2d, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        stream, *epilogue = super().constants(_plain(op), target, knobs)
        return [stream, *scale_and_bias(op), *epilogue]

    def seen(self, op: Conv2d) -> Conv2d:
        return _plain(op)

    def arithmetic(self, op: Conv2d, target: Target, buffers: Sequence[Any], knobs: Knobs) -> F16:
        first = len(op.inputs)
        return F16(op, target, buffers, buffers[first + 1], buffers[first + 2])


class F16Conv2dWinograd(F32Conv2dWinograd):
    """Convolutions whose sums are those of Winograd's form (`Conv2d.tiled`). Knobs are those of
    :class:`F32Conv2dWinograd`."""

    def refuses(self, op: Conv2d, target: Target) -> str:
        return _refuses(op, target, tiled=True)

    def _sensible(self, op: Conv2d, target: Target) -> Iterator[dict[str, int]]:
        found = super()._sensible(op, doubled(target))
        return (knobs for knobs in found if knobs["lanes"] >= _LEAST_LANES)

    def cost(self, op: Conv2d, target: Target, knobs: Knobs) -> Cost:
        return _cost(op, target, super().cost(op, doubled(target), knobs), 4)

    def constants(self, op: Conv2d, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        from edgecsi.kernels.emit import epilogue_constants

        packed = blocks_of_points(points(op.weight), knobs)
        return [packed, *scale_and_bias(op), *epilogue_constants(op)]

    def seen(self, op: Conv2d) -> Conv2d:
        return _plain(op)

    def scratch(self, op: Conv2d, target: Target, knobs: Knobs) -> int:
        return super().scratch(op, target, knobs) // 2

    def arithmetic(self, op: Conv2d, target: Target, buffers: Sequence[Any], knobs: Knobs) -> F16:
        first = len(op.inputs)
        return F16(op, target, buffers, buffers[first + 1], buffers[first + 2])


KERNELS: tuple[Kernel, ...] = (
    F16Conv2dDirect("f16_conv2d_direct"),
    F16Conv2dWinograd("f16_conv2d_winograd"),
)
