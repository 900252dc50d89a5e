"""Sums in half precision, addition by addition as kernels carry them out.

A product and its addition are rounded once, by one instruction. Every addition rounds by at most 2^-11 of the sum so far
(N. Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1), so only short sums are made so; they are
added to each other in fp32. Which products come together, and in what order, is defined here, once: a network that is
simulated in PyTorch answers bit for bit what its library does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = np.float32
LONGEST_SUM = 9
"""Products of a convolution that are added in half precision, or those of one channel if they are more. CsiNet 1/4 loses
0.003 dB so, and 0.01 to 0.05 dB by sums of 72."""
INPUTS = 32
"""Products of a dense layer that are added in half precision."""
WINOGRAD = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
"""G of A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015 (arXiv 1509.09308), section 4.1:
transformed weights are ``G w G^T``."""
_TILED_CHANNELS = range(4, 9)
"""Fewer do not pay for transforms, and of more the sums would be too long: all channels are added in half precision."""
_TILED_OUTPUTS, _TILED_COLUMNS = 8, 8
_AT_ONCE = 1 << 15  # numbers that a cache holds
_LEAST_BITS, _END_BITS = (int(F32(x).view(np.int32)) for x in (2.0**-14, 65520.0))

Floats = NDArray[np.float32]


def channels_together(weight: NDArray[Any]) -> int:
    """Input channels of a filter ``[O, C/groups, KH, KW]`` that are summed in half precision; they divide all."""
    per_group, *window = weight.shape[1:]
    most = max(LONGEST_SUM // int(np.prod(window)), 1)
    return max(n for n in range(1, per_group + 1) if per_group % n == 0 and n <= most)


def in_tiles(
    weight: NDArray[Any], height: int, width: int, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> bool:
    """Whether a convolution is summed in Winograd's form, F(2x2, 3x3), for results of ``height x width``: its tiles lie
    at even places, whatever blocks a kernel works in."""
    outs, channels, *window = weight.shape
    plain = window == [3, 3] and {*stride, *dilation, groups} == {1}
    whole = height % 2 == width % 2 == 0 and width >= _TILED_COLUMNS
    return plain and whole and channels in _TILED_CHANNELS and outs >= _TILED_OUTPUTS


def conv2d(
    x: NDArray[Any],
    weight: NDArray[Any],
    scale: NDArray[Any],
    bias: NDArray[Any] | None,
    fill: NDArray[Any],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Floats:
    """Convolution in half precision.

    Args:
        x: float16 ``[N, C, H, W]``. weight: float16 ``[O, C/groups, KH, KW]``. scale, bias: float32 ``[O]``.
        fill: what padding holds, one number or one for every channel. padding: top, bottom, left, right.

    Returns:
        float32 ``[N, O, H', W']``.
    """
    top, bottom, left, right = padding
    n, channels, height, width = x.shape
    wide = np.empty((n, channels, height + top + bottom, width + left + right), F32)
    wide[:] = fill.reshape(-1, 1, 1)
    wide[:, :, top : top + height, left : left + width] = x
    height, width = (
        (size - step * (taps - 1) - 1) // jump + 1
        for size, step, taps, jump in zip(wide.shape[2:], dilation, weight.shape[2:], stride, strict=True)
    )
    y = np.empty((n, len(weight), height, width), F32)
    tiled = in_tiles(weight, height, width, stride, dilation, groups)
    some = max(1, _AT_ONCE // max(y[:1].size, 1))
    for first in range(0, n, some):
        part, result = wide[first : first + some], y[first : first + some]
        if tiled:
            _tiles(part, weight, result)
        else:
            _direct(part, weight, stride, dilation, groups, result)
    return _scaled(y, scale, bias)


def dense(x: NDArray[Any], weight: NDArray[Any], scale: NDArray[Any], bias: NDArray[Any] | None) -> Floats:
    """Dense layer in half precision: float16 ``[N, I]`` and ``[O, I]``, float32 ``[O]`` scale and bias; returns float32
    ``[N, O]``."""
    rest = -x.shape[1] % INPUTS
    # Products of zeros change no sum.
    rows, columns = (
        np.pad(a.astype(F32), ((0, 0), (0, rest))).reshape(len(a), -1, INPUTS) for a in (x, weight)
    )
    columns = np.ascontiguousarray(columns.transpose(2, 1, 0))  # [INPUTS, stretches, O]
    y = np.zeros((len(x), len(weight)), F32)
    some = max(1, _AT_ONCE // columns[0].size)
    for first in range(0, len(x), some):
        part = np.ascontiguousarray(
            rows[first : first + some].transpose(2, 1, 0)
        )  # [INPUTS, stretches, rows]
        sums = np.zeros((part.shape[1], part.shape[2], len(weight)), F32)
        for number, by in zip(part, columns, strict=True):
            sums = fused(sums, number[:, :, None], by[:, None])
        for stretch in sums:
            y[first : first + some] += stretch
    return _scaled(y, scale, bias)


def fused(total: Floats, x: Floats, weight: Floats) -> Floats:
    """``float16(total + x * weight)``, rounded once, of numbers that are ones of half precision."""
    with np.errstate(over="ignore", invalid="ignore"):
        product = x * weight  # has 22 digits at most
        added = total + product
        # Rounding fp32 once more is wrong where fp32 lies between two numbers of half precision and the sum did not.
        between = (added.view(np.int32) & 0x1FFF) == 0x1000
        if between.any():
            sums = added[between]
            off = total[between].astype(np.float64) + product[between] - sums
            beyond = np.where(off > 0, F32(np.inf), F32(-np.inf))
            added[between] = np.where(off == 0, sums, np.nextafter(sums, beyond))
        return _rounded(added)


def points(weight: NDArray[Any]) -> NDArray[np.float16]:
    """Filters as Winograd's form multiplies with them, float16 ``[4, 4, O, C]``."""
    found = np.einsum("ai,ocij,bj->aboc", WINOGRAD, weight.astype(np.float64), WINOGRAD)
    with np.errstate(over="ignore"):
        halves: NDArray[np.float16] = found.astype(np.float16)
    return halves


def _rounded(x: Floats) -> Floats:
    """As numbers of half precision; several times as fast as numpy's own conversion."""
    bits = x.view(np.int32)
    # Half to even: the last digit that stays makes up the half that is cut off.
    kept = bits >> 13
    kept &= 1
    kept += bits
    kept += 0xFFF
    kept &= -0x2000
    result: Floats = kept.view(F32)
    # Whether it has more or fewer digits, or none: magnitudes as unsigned numbers, from the least with eleven digits on.
    kept = bits & 0x7FFFFFFF
    kept -= _LEAST_BITS
    strange = kept.view(np.uint32) >= _END_BITS - _LEAST_BITS
    if strange.any():
        with np.errstate(over="ignore"):
            result[strange] = x[strange].astype(np.float16)
    return result


def _scaled(y: Floats, scale: NDArray[Any], bias: NDArray[Any] | None) -> Floats:
    channel = (-1, *[1] * (y.ndim - 2))
    with np.errstate(invalid="ignore"):
        y *= scale.astype(F32).reshape(channel)
        return y if bias is None else y + bias.astype(F32).reshape(channel)


def _direct(
    wide: Floats, weight: NDArray[Any], stride: Sequence[int], dilation: Sequence[int], groups: int, y: Floats
) -> None:
    """Sums of a convolution, column by column of the filter, into `y`."""
    outs, per_group, kh, kw = weight.shape
    n, _, height, width = y.shape
    planes = wide.reshape(n, groups, per_group, *wide.shape[2:])
    weights = weight.astype(F32).reshape(groups, outs // groups, per_group, kh, kw, 1, 1)
    total = np.zeros((n, groups, outs // groups, height, width), F32)
    together = channels_together(weight)
    for first in range(0, per_group, together):
        sums = np.zeros_like(total)
        for c in range(first, first + together):
            for j in range(kw):
                for i in range(kh):
                    rows, columns = (
                        slice(tap * step, tap * step + (size - 1) * jump + 1, jump)
                        for tap, step, size, jump in zip(
                            (i, j), dilation, (height, width), stride, strict=True
                        )
                    )
                    sums = fused(sums, planes[:, :, c : c + 1, rows, columns], weights[:, :, c, i, j])
        with np.errstate(invalid="ignore"):
            total += sums
    y[:] = total.reshape(y.shape)


def _tiles(wide: Floats, weight: NDArray[Any], y: Floats) -> None:
    """Sums of a convolution in Winograd's form, into `y`: pixels and their sums over the channels are those of half
    precision, what is made of these sums is fp32."""
    height, width = y.shape[2:]
    rows = _apart([wide[:, :, i : i + height - 1 : 2] for i in range(4)])
    pixels = [_apart([row[..., j : j + width - 1 : 2] for j in range(4)]) for row in rows]
    tiles = np.stack([point for line in pixels for point in line])  # [16, N, C, H/2, W/2]
    weights = points(weight).astype(F32).reshape(16, 1, *weight.shape[:2], 1, 1)
    sums = np.zeros((16, len(y), len(weight), height // 2, width // 2), F32)
    for c in range(weight.shape[1]):
        sums = fused(sums, tiles[:, :, c, None], weights[:, :, :, c])
    with np.errstate(invalid="ignore"):
        lines = _together(sums.reshape(4, 4, *sums.shape[1:]))
        for i, line in enumerate(lines):
            for j, pixel in enumerate(_together(line)):
                y[:, :, i::2, j::2] = pixel


def _apart(tile: Sequence[Floats]) -> list[Floats]:
    """What four neighbours are transformed to."""
    a, b, c, d = tile
    with np.errstate(over="ignore", invalid="ignore"):
        return [_rounded(pair) for pair in (a - c, b + c, c - b, b - d)]


def _together(sums: Floats) -> tuple[Floats, Floats]:
    """Two results of four sums."""
    a, b, c, d = sums
    return a + b + c, b - c - d
