"""The arithmetic of compressed layers as PyTorch operators, namespace ``edgecsi``.

Every operator is bit for bit what :mod:`edgecsi.ops.operators` defines, so that a figure measured in PyTorch is
the figure of the compiled library. Importing this module registers them; ``torch.export`` keeps them whole,
and the compiler gives each its kernel.

Integer sums are computed in floating point: float32 is exact below 2²⁴, float64 far beyond every int32 sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.library import custom_op

from edgecsi.ops import half
from edgecsi.ops.dynamic import DYNAMIC_STEPS, TINY, TINY16
from edgecsi.ops.operators import plane_channels

_EXACT_IN_FLOAT32 = (1 << 24) // (255 * 127)  # longest sum of products of a code and an int8 weight


@custom_op(
    "edgecsi::quantize",
    mutates_args=(),
    schema="(Tensor x, float scale, int zero_point, float offset) -> Tensor",
)
def quantize(x: Tensor, scale: float, zero_point: int, offset: float) -> Tensor:
    """``clip(rne((x - offset) * (1 / scale)) + zero_point, 0, 255)``, float32 of any shape to uint8.

    Not-a-number becomes 0.
    """
    inverse = float(np.float32(1) / np.float32(scale))
    codes = torch.round((x - offset) * inverse).add_(zero_point).clamp_(0, 255)
    return codes.nan_to_num_(0).to(torch.uint8)


@quantize.register_fake
def _(x: Tensor, scale: float, zero_point: int, offset: float) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.uint8)


@custom_op(
    "edgecsi::quantize_wide",
    mutates_args=(),
    schema="(Tensor x, float scale, int zero_point, float offset, int fine) -> Tensor",
)
def quantize_wide(x: Tensor, scale: float, zero_point: int, offset: float, fine: int) -> Tensor:
    """Two planes of codes, float32 ``[N, C, H, W]`` to uint8 ``[N, 2P, H, W]``.

    The first C of P channels are those of :func:`quantize`; those of the second plane hold what these leave over, in
    steps `fine` times smaller, around the same zero point. `fine` is a power of two. P is
    :func:`edgecsi.ops.operators.plane_channels`, the rest of a plane is the zero point.
    """
    high, low = _wide_steps(x, scale, zero_point, offset, fine)
    rest = (0, 0, 0, 0, 0, plane_channels(x.shape[1]) - x.shape[1])
    planes = [torch.nn.functional.pad(plane, rest) for plane in (high, low)]
    return torch.cat(planes, 1).add_(zero_point).to(torch.uint8)


def _wide_steps(x: Tensor, scale: float, zero_point: int, offset: float, fine: int) -> tuple[Tensor, Tensor]:
    """Whole steps of both planes, around 0, float32."""
    inverse = float(np.float32(1) / np.float32(scale))
    steps = (x - offset) * inverse

    def whole(steps: Tensor) -> Tensor:
        return torch.round(steps).clamp_(-zero_point, 255 - zero_point).nan_to_num_(-zero_point)

    high = whole(steps)
    return high, whole((steps - high) * fine)


@quantize_wide.register_fake
def _(x: Tensor, scale: float, zero_point: int, offset: float, fine: int) -> Tensor:
    return x.new_empty((x.shape[0], 2 * plane_channels(x.shape[1]), *x.shape[2:]), dtype=torch.uint8)


@custom_op(
    "edgecsi::qs8_conv2d",
    mutates_args=(),
    schema="(Tensor codes, Tensor weight, Tensor weight_scale, Tensor? bias, float x_scale, int x_zero_point,"
    " int fill, int[] stride, int[] padding, int[] dilation, int groups, int fine) -> Tensor",
)
def qs8_conv2d(
    codes: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    x_scale: float,
    x_zero_point: int,
    fill: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    fine: int,
) -> Tensor:
    """Convolution of uint8 codes ``[N, C, H, W]`` with an int8 weight ``[O, C/groups, KH, KW]``.

    Args:
        weight_scale: float32 ``[O]``. bias: int32 ``[O]`` or ``[O, H', W']`` in units of
            x_scale·weight_scale.
        fill: code of the padding cells. padding: top, bottom, left, right.
        fine: above 1, the codes are the two planes of :func:`quantize_wide`, ``[N, 2C, H, W]``, and `x_scale` is a
            step of the second.

    Returns:
        float32 ``[N, O, H', W']``.
    """
    wide = torch.float32 if weight[0].numel() <= _EXACT_IN_FLOAT32 else torch.float64
    top, bottom, left, right = padding
    x = torch.nn.functional.pad(codes.to(wide), (left, right, top, bottom), value=float(fill)) - x_zero_point
    planes = [x] if fine == 1 else x.chunk(2, 1)
    sums = [
        torch.nn.functional.conv2d(plane, weight.to(wide), None, list(stride), 0, list(dilation), groups)
        for plane in planes
    ]
    acc = sums[0] if fine == 1 else sums[0].double() * fine + sums[1]
    if bias is not None:
        acc = acc.double() + (bias if bias.ndim == 3 else bias[:, None, None])
    return acc.float() * (weight_scale * float(np.float32(x_scale)))[:, None, None]


@custom_op(
    "edgecsi::qd16_conv2d",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, int steps, int[] padding, int[] dilation)"
    " -> Tensor",
)
def qd16_conv2d(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    steps: int,
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convolution of a float32 input ``[N, C, H, W]``, rounded sample by sample to codes of at most `steps`, with an
    int16 weight ``[O, C, KH, KW]``; float32 ``[O]`` scale and bias. Returns float32 ``[N, O, H', W']``."""
    codes, unit = _int16_codes(x, steps, (1, 2, 3))
    top, bottom, left, right = padding
    codes = torch.nn.functional.pad(codes, (left, right, top, bottom))
    acc = torch.nn.functional.conv2d(codes, weight.double(), None, 1, 0, list(dilation))
    y = acc.float() * (unit * weight_scale[:, None, None])
    return y if bias is None else y + bias[:, None, None]


@custom_op("edgecsi::to_half", mutates_args=(), schema="(Tensor x, float[] offset, float gain) -> Tensor")
def to_half(x: Tensor, offset: Sequence[float], gain: float) -> Tensor:
    """``(x - offset) * gain``, float32 ``[N, C, H, W]`` to float16; `offset` of every channel, or none."""
    rest = x - x.new_tensor(offset)[:, None, None] if offset else x
    return (rest * gain).half()


@to_half.register_fake
def _(x: Tensor, offset: Sequence[float], gain: float) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float16)


@custom_op(
    "edgecsi::f16_conv2d",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, float[] fill, int[] stride, int[] padding,"
    " int[] dilation, int groups) -> Tensor",
)
def f16_conv2d(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    fill: Sequence[float],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolution of a float16 input ``[N, C, H, W]`` with a float16 weight ``[O, C/groups, KH, KW]``, added up as
    :mod:`edgecsi.ops.half` says; float32 ``[O]`` scale and bias.

    Args:
        fill: what padding holds in every channel, if not 0. padding: top, bottom, left, right.

    Returns:
        float32 ``[N, O, H', W']``.
    """
    around = np.array(fill or [0.0], np.float32)
    window = stride, padding, dilation, groups
    return torch.from_numpy(half.conv2d(*_arrays(x, weight, weight_scale, bias), around, *window))


@custom_op(
    "edgecsi::f16_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias) -> Tensor",
)
def f16_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Dense layer of a float16 input ``[..., I]`` with a float16 weight ``[O, I]``, added up as :mod:`edgecsi.ops.half`
    says; float32 ``[O]`` scale and bias. Returns float32 ``[..., O]``."""
    rows = x.reshape(-1, x.shape[-1])
    y = torch.from_numpy(half.dense(*_arrays(rows, weight, weight_scale, bias)))
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _arrays(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    given = x.numpy(), weight.numpy(), scale.numpy()
    return *given, None if bias is None else bias.numpy()


@custom_op(
    "edgecsi::qs8_linear",
    mutates_args=(),
    schema="(Tensor codes, Tensor weight, Tensor weight_scale, Tensor? bias, float x_scale, int x_zero_point)"
    " -> Tensor",
)
def qs8_linear(
    codes: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    x_scale: float,
    x_zero_point: int,
) -> Tensor:
    """Dense layer on uint8 codes ``[..., I]`` with an int8 weight ``[O, I]``: float32 ``[..., O]``."""
    acc = (codes.double() - x_zero_point) @ weight.double().T
    if bias is not None:
        acc = acc + bias
    return acc.float() * (weight_scale * float(np.float32(x_scale)))


@custom_op(
    "edgecsi::qs8_wide_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, float scale, int zero_point, float offset,"
    " int fine) -> Tensor",
)
def qs8_wide_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale: float,
    zero_point: int,
    offset: float,
    fine: int,
) -> Tensor:
    """Dense layer that rounds its float32 input ``[..., I]`` to two planes of codes, as :func:`quantize_wide` does.

    Args:
        weight: int8 ``[O, I]``. weight_scale: float32 ``[O]``. bias: int32 ``[O]`` in units of scale/fine·weight_scale.

    Returns:
        float32 ``[..., O]``.
    """
    high, low = _wide_steps(x, scale, zero_point, offset, fine)
    acc = (high.double() * fine + low) @ weight.double().T
    if bias is not None:
        acc = acc + bias
    return acc.float() * (weight_scale * float(np.float32(scale / fine)))


def dynamic_codes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of a float32 input ``[..., I]`` in 254 steps from each sample's lowest to its highest value, 0 among them.

    Returns:
        codes 0 … 255 of the input's shape, the code of 0 and the size of a step, both ``[..., 1]``; all float32.
    """
    low, high = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True).clamp_min(0)
    width = high - low
    inverse = torch.where(width >= float(TINY), DYNAMIC_STEPS / width, torch.zeros_like(width))
    zero = (-low * inverse).floor() + 1
    codes = ((x * inverse).double() + zero).round()
    return codes.float(), zero, width / DYNAMIC_STEPS


@custom_op(
    "edgecsi::qd8_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias) -> Tensor",
)
def qd8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Dense layer that quantises its float32 input ``[..., I]`` per sample when it runs, as
    :func:`dynamic_codes` says; the weight is int8 ``[O, I]``. Returns float32 ``[..., O]``."""
    codes, zero, scale = dynamic_codes(x)
    acc = (codes - zero).double() @ weight.double().T
    y = acc.float() * (scale * weight_scale)
    return y if bias is None else y + bias


@custom_op(
    "edgecsi::qd16_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, int steps) -> Tensor",
)
def qd16_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, steps: int) -> Tensor:
    """Dense layer that rounds every row of its float32 input ``[..., I]`` to codes of at most `steps`, with an int16
    weight ``[O, I]``; float32 ``[O]`` scale and bias. Returns float32 ``[..., O]``."""
    codes, unit = _int16_codes(x, steps, (-1,))
    y = (codes @ weight.double().T).float() * (unit * weight_scale)
    return y if bias is None else y + bias


def _int16_codes(x: Tensor, steps: int, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Codes, float64, and the size of a step, of all numbers along some axes."""
    peak = x.abs().amax(axes, keepdim=True)
    inverse = torch.where(peak >= float(TINY16), steps / peak, torch.zeros_like(peak))
    return torch.round(x * inverse).double(), peak / steps


@custom_op(
    "edgecsi::qs8w_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias) -> Tensor",
)
def qs8w_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Dense layer with int8 weights ``[O, I]`` and float32 activations ``[..., I]``: float32 ``[..., O]``."""
    acc = (x.double() @ weight.double().T) * weight_scale.double()
    return (acc if bias is None else acc + bias.double()).float()


@custom_op(
    "edgecsi::lut_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor index, Tensor table, Tensor? bias) -> Tensor",
)
def lut_linear(x: Tensor, index: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
    """Dense layer whose weight is ``table[index]``: index uint8 ``[O, I]``, table float32 ``[≤ 256]``."""
    acc = x.double() @ table.double()[index.long()].T
    return (acc if bias is None else acc + bias.double()).float()


def _convolved(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Like what a convolution gives."""
    top, bottom, left, right = padding
    height, width = (
        (size + pad - step * (kernel - 1) - 1) // jump + 1
        for size, pad, step, kernel, jump in zip(
            x.shape[2:], (top + bottom, left + right), dilation, weight.shape[2:], stride, strict=True
        )
    )
    return x.new_empty((x.shape[0], weight.shape[0], height, width), dtype=torch.float32)


def _rows(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    """The shape that a dense layer answers in."""
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=torch.float32)


# Stride, padding and dilation follow each other in all of them.
qs8_conv2d.register_fake(lambda x, weight, *rest: _convolved(x, weight, *rest[5:8]))
f16_conv2d.register_fake(lambda x, weight, *rest: _convolved(x, weight, *rest[3:6]))
qd16_conv2d.register_fake(lambda x, weight, *rest: _convolved(x, weight, (1, 1), *rest[3:5]))
for dense in (f16_linear, qs8_linear, qs8_wide_linear, qd8_linear, qd16_linear, qs8w_linear, lut_linear):
    dense.register_fake(_rows)
