"""Convolution in half precision, of images that lie in memory as such: direct, and in Winograd's form.

A vector holds twice the pixels of fp32, so half as many multiplications are needed. What is rounded: the weights and
the input (`edgecsi.ops.operators.Half`), as PyTorch's simulation does, and every addition, which it does not. With the
unit roundoff u = 2^-11 a sum of L products is off by at most L u times the sum of their magnitudes (N. Higham,
"Accuracy and Stability of Numerical Algorithms", 2002, section 3.1); `f16_stretch` keeps L small, and what comes behind
the sum is fp32. In Winograd's form transformed weights are rounded too, and so are two additions before a sum over C
channels: (C + 3) u times the magnitudes of all that is added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Cost, Kernel, Knobs
from edgecsi.kernels.conv.arithmetic import F16, f16_stretch
from edgecsi.kernels.conv.f32_conv2d_direct import F32Conv2dDirect, reach
from edgecsi.kernels.conv.f32_conv2d_winograd import WEIGHTS, F32Conv2dWinograd, blocks_of_points
from edgecsi.ops.operators import Conv2d
from edgecsi.target import Target

_LEAST_LANES = 4
"""Of tiles: no instruction takes fewer."""
_FINISH, _WIDEN = 8, 5
"""Instructions for narrowing a vector of results, and for widening a sum on its way."""
_MOST_CHANNELS = 8
"""Of Winograd's form, which adds products of all channels in half precision; so it rounds about as much as the other."""


def _refuses(op: Conv2d, target: Target) -> str:
    if op.x.dtype != "float16" or op.weight.dtype != np.float16 or op.scale is None:
        return "it needs input and weights in half precision"
    if target.half != "f16" or "asimdhp" not in target.features:
        return f'the CPU has no half-precision arithmetic (half = "{target.half}" in {target.id})'
    if op.x.group != 1 or op.y.group != 1 or len(op.x.shape) != 4:
        return "needs plain NCHW images"
    top, bottom, left, right = op.x.halo
    rows, columns = reach(op)
    if isinstance(op.x.fill, tuple) and op.x.lead and rows >= bottom:
        return "the halo below has no row for what is right of the last"
    if op.padding[0] > top or rows > bottom or op.padding[2] > max(left, right) or columns > max(left, right):
        return "the input has no halo as wide as the padding"
    return ""


def _doubled(target: Target) -> Target:
    """The target as half precision sees it."""
    return replace(target, lanes_f32=2 * target.lanes_f32, peak_gmacs_f32=2 * target.peak_gmacs_f32)


def _plain(op: Conv2d) -> Conv2d:
    """Without what is left to the end of a sum."""
    return replace(op, bias=None)


def _own(op: Conv2d) -> list[NDArray[Any]]:
    """Scale and bias of every output channel."""
    assert op.scale is not None
    bias = np.zeros(len(op.weight), np.float32) if op.bias is None else op.bias
    return [op.scale.astype(np.float32), bias.astype(np.float32)]


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
        return _refuses(op, target)

    def _sensible(self, op: Conv2d, target: Target) -> Iterator[dict[str, int]]:
        stretch = f16_stretch(op)
        for knobs in super()._sensible(op, target):
            unroll = max(u for u in (1, 2, 4, 8) if stretch % u == 0 and u <= knobs["ci_unroll"])
            # A wide sum takes two registers beside that in half precision.
            sums = knobs["co_tile"] * knobs["rows"] * knobs["columns"]
            if stretch == op.weight.shape[1] or 3 * sums < target.vector_registers:
                yield knobs | {"ci_unroll": unroll}

    def knobs(self, op: Conv2d, target: Target) -> Knobs:
        return min(
            self._sensible(op, _doubled(target)), key=lambda knobs: self.cost(op, target, knobs).seconds
        )

    def space(self, op: Conv2d, target: Target) -> dict[str, Sequence[int]]:
        return super().space(op, _doubled(target))

    def cost(self, op: Conv2d, target: Target, knobs: Knobs) -> Cost:
        parts = op.weight.shape[1] // f16_stretch(op)
        return _cost(op, target, super().cost(op, _doubled(target), knobs), parts)

    def constants(self, op: Conv2d, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        stream, *epilogue = super().constants(_plain(op), target, knobs)
        return [stream, *_own(op), *epilogue]

    def seen(self, op: Conv2d) -> Conv2d:
        return _plain(op)

    def arithmetic(self, op: Conv2d, target: Target, buffers: Sequence[Any], knobs: Knobs) -> F16:
        first = len(op.inputs)
        return F16(op, target, buffers, buffers[first + 1], buffers[first + 2])


class F16Conv2dWinograd(F32Conv2dWinograd):
    """3x3, stride 1, one group. Knobs are those of :class:`F32Conv2dWinograd`."""

    def refuses(self, op: Conv2d, target: Target) -> str:
        if reason := _refuses(op, target) or self.refuses_shape(op):
            return reason
        if op.y.shape[3] < 2 * _LEAST_LANES:
            return "the image is too small for a vector of tiles"
        if op.weight.shape[1] > _MOST_CHANNELS:
            return f"sums over more than {_MOST_CHANNELS} channels are to be widened on their way"
        return ""

    def _sensible(self, op: Conv2d, target: Target) -> Iterator[dict[str, int]]:
        return (knobs for knobs in super()._sensible(op, target) if knobs["lanes"] >= _LEAST_LANES)

    def knobs(self, op: Conv2d, target: Target) -> Knobs:
        return min(
            self._sensible(op, _doubled(target)), key=lambda knobs: self.cost(op, target, knobs).seconds
        )

    def space(self, op: Conv2d, target: Target) -> dict[str, Sequence[int]]:
        return super().space(op, _doubled(target))

    def cost(self, op: Conv2d, target: Target, knobs: Knobs) -> Cost:
        return _cost(op, target, super().cost(op, _doubled(target), knobs), 4)

    def constants(self, op: Conv2d, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        from edgecsi.kernels.emit import epilogue_constants

        packed = blocks_of_points(_points(op.weight), knobs).astype(np.float16)
        return [packed, *_own(op), *epilogue_constants(op)]

    def seen(self, op: Conv2d) -> Conv2d:
        return _plain(op)

    def scratch(self, op: Conv2d, target: Target, knobs: Knobs) -> int:
        return super().scratch(op, target, knobs) // 2

    def arithmetic(self, op: Conv2d, target: Target, buffers: Sequence[Any], knobs: Knobs) -> F16:
        first = len(op.inputs)
        return F16(op, target, buffers, buffers[first + 1], buffers[first + 2])


def _points(weight: NDArray[Any]) -> NDArray[np.float64]:
    """Transformed weights, ``[4, 4, O, C]``."""
    points: NDArray[np.float64] = np.einsum("ai,ocij,bj->aboc", WEIGHTS, weight.astype(np.float64), WEIGHTS)
    return points


KERNELS: tuple[Kernel, ...] = (
    F16Conv2dDirect("f16_conv2d_direct"),
    F16Conv2dWinograd("f16_conv2d_winograd"),
)
