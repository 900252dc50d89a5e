"""Convolution of int16 codes that it makes itself, sample by sample, with int16 weights: direct, and in Winograd's form.

One instruction multiplies two channels of a pixel and adds both products to a 32-bit number: twice the products of
fp32 in the same time. Sums are exact, so that both forms and every CPU give the same bits.

Winograd's form makes whole numbers of its weights by a factor of four, and of sums of four codes. What overflows on its
way is nothing to the result, as long as four times that fits: additions and products are those of integers modulo 2^32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Cost, Kernel, Knobs
from edgecsi.kernels.conv.arithmetic import Int16, codes_layout, scale_and_bias
from edgecsi.kernels.conv.f32_conv2d_direct import F32Conv2dDirect, refuses_images
from edgecsi.kernels.conv.f32_conv2d_winograd import F32Conv2dWinograd, blocks_of_points
from edgecsi.kernels.tiling import read_gbps
from edgecsi.ops.half import WINOGRAD
from edgecsi.ops.integers import refuses_integers, sums_fit
from edgecsi.ops.operators import Conv2d
from edgecsi.target import Target

_LEAST_LANES = 4
"""No instruction takes fewer pairs."""
_PASSES = 6.0
"""Vector operations that a pixel costs before it is multiplied: for the range, and for the code."""


def _refuses(kernel: Qd16Conv2dDirect | Qd16Conv2dWinograd, op: Conv2d, target: Target) -> str:
    if not op.steps or op.x.dtype != "float32" or op.weight.dtype != np.int16 or op.scale is None:
        return "it needs an fp32 input and int16 weights"
    if target.dot not in kernel.dots:
        return f"the CPU has no int16 products by {' or '.join(kernel.dots)}"
    if not sums_fit(op):
        return "its sums may exceed 32 bits: there are too many or too large weights"
    if reason := refuses_images(op) or refuses_integers(op.groups, op.stride, op.y.shape[3]):
        return reason
    if (op.x.peak or op.y.peak) and (op.y.shape[0] > 1 or op.y_quant is not None):
        return "only one fp32 image at a time has its largest magnitude beside it"
    return ""


@cache
def _seen(op: Conv2d) -> Conv2d:
    """The convolution of pairs of codes, as 32-bit pixels and weights."""
    outs, channels, *window = op.weight.shape
    pairs = np.zeros((outs, -(-channels // 2) * 2, *window), np.int16)
    pairs[:, :channels] = op.weight
    pairs = pairs.reshape(outs, -1, 2, *window).transpose(0, 1, 3, 4, 2)
    weight = np.ascontiguousarray(pairs).view(np.int32)[..., 0]
    return replace(
        op, x=codes_layout(op), y=replace(op.y, peak=False), weight=weight, bias=None, scale=None, steps=0
    )


def _code_bytes(op: Conv2d) -> int:
    """Of the codes of a sample, filled up to the line of a cache."""
    codes = codes_layout(op)
    return -(-codes.nbytes // 64) * 64


def _cost(op: Conv2d, target: Target, of_pairs: Cost) -> Cost:
    second = target.peak_gmacs_f32 * 1e9
    passes = (_PASSES - 2 * op.x.peak) * op.x.shape[0] * op.x.sample / second
    passes += (0.75 if op.x.peak else 1.5) * op.x.nbytes / (read_gbps(target, 2 * op.x.nbytes) * 1e9)
    # vpmaddwd does not add to a sum, and its result takes a register.
    slower = 1.4 if target.dot == "avx2" else 1.0
    return Cost(passes + slower * of_pairs.seconds + 5e-8, of_pairs.bytes + 4 * len(op.weight), op.macs)


@dataclass(frozen=True)
class Qd16Conv2dDirect(F32Conv2dDirect):
    """Stride 1, one group, any dilation. Knobs are those of :class:`F32Conv2dDirect`, with pairs of channels."""

    dots: tuple[str, ...] = ()

    def refuses(self, op: Conv2d, target: Target) -> str:
        return _refuses(self, op, target)

    def _sensible(self, op: Conv2d, target: Target) -> Iterator[dict[str, int]]:
        for knobs in super()._sensible(_seen(op), target):
            # Weights want registers too, or they are loaded for every product.
            sums = knobs["co_tile"] * knobs["rows"] * knobs["columns"]
            if knobs["lanes"] >= _LEAST_LANES and sums <= target.vector_registers // 2:
                yield knobs

    def cost(self, op: Conv2d, target: Target, knobs: Knobs) -> Cost:
        return _cost(op, target, super().cost(_seen(op), target, knobs))

    def scratch(self, op: Conv2d, target: Target, knobs: Knobs) -> int:
        return _code_bytes(op)

    def constants(self, op: Conv2d, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        stream, *epilogue = super().constants(_seen(op), target, knobs)
        return [stream, *scale_and_bias(op), *epilogue]

    def seen(self, op: Conv2d) -> Conv2d:
        return _seen(op)

    def arithmetic(self, op: Conv2d, target: Target, buffers: Sequence[Any], knobs: Knobs) -> Int16:
        first = len(op.inputs)
        return Int16(
            op, target, buffers, buffers[first + 1], buffers[first + 2], knobs["lanes"], quarters=False
        )


@dataclass(frozen=True)
class Qd16Conv2dWinograd(F32Conv2dWinograd):
    """3x3, stride 1, one group. Knobs are those of :class:`F32Conv2dWinograd`, with pairs of channels."""

    dots: tuple[str, ...] = ()

    def refuses(self, op: Conv2d, target: Target) -> str:
        if reason := _refuses(self, op, target) or self.refuses_shape(op):
            return reason
        if op.y.shape[3] < 2 * _LEAST_LANES:
            return "the image is too small for a vector of tiles"
        most = np.abs(op.weight.astype(np.int64)).sum((1, 2, 3)).max(initial=0) * op.steps
        if 4 * op.steps > 0x7FFF or 4 * most >= 2**31 or np.abs(_whole(op)).max(initial=0) > 0x7FFF:
            return "codes or weights are too large to be added up in 16 bits"
        return ""

    def _sensible(self, op: Conv2d, target: Target) -> Iterator[dict[str, int]]:
        return (knobs for knobs in super()._sensible(_seen(op), target) if knobs["lanes"] >= _LEAST_LANES)

    def cost(self, op: Conv2d, target: Target, knobs: Knobs) -> Cost:
        return _cost(op, target, super().cost(_seen(op), target, knobs))

    def codes(self, op: Conv2d) -> int:
        return _code_bytes(op)

    def scratch(self, op: Conv2d, target: Target, knobs: Knobs) -> int:
        return _code_bytes(op) + super().scratch(_seen(op), target, knobs)

    def constants(self, op: Conv2d, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        from edgecsi.kernels.emit import epilogue_constants

        points = _whole(op).astype(np.int16)
        odd = [(0, 0)] * 3 + [(0, points.shape[3] % 2)]
        pairs = np.ascontiguousarray(np.pad(points, odd)).view(np.int32)
        return [blocks_of_points(pairs, knobs), *scale_and_bias(op), *epilogue_constants(op)]

    def seen(self, op: Conv2d) -> Conv2d:
        return _seen(op)

    def arithmetic(self, op: Conv2d, target: Target, buffers: Sequence[Any], knobs: Knobs) -> Int16:
        first = len(op.inputs)
        return Int16(
            op, target, buffers, buffers[first + 1], buffers[first + 2], knobs["lanes"], quarters=True
        )


def _whole(op: Conv2d) -> NDArray[np.int64]:
    """Four times the transformed weights, ``[4, 4, O, C]``."""
    twice = (2 * WINOGRAD).astype(np.int64)
    points: NDArray[np.int64] = np.einsum("ai,ocij,bj->aboc", twice, op.weight.astype(np.int64), twice)
    return points


KERNELS: tuple[Kernel, ...] = (
    Qd16Conv2dDirect("qd16_qs16w_conv2d_avx2", dots=("avx2",)),
    Qd16Conv2dDirect("qd16_qs16w_conv2d_vnni", dots=("avx512_vnni", "avx_vnni")),
    Qd16Conv2dWinograd("qd16_qs16w_conv2d_winograd_avx2", dots=("avx2",)),
    Qd16Conv2dWinograd("qd16_qs16w_conv2d_winograd_vnni", dots=("avx512_vnni", "avx_vnni")),
)
