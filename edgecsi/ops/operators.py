"""What a kernel computes: the operators, their shapes, weights and epilogues, with a plain numpy reference.

Quantised arithmetic is defined here once; the PyTorch simulation and every kernel follow it bit for bit:

* a code is ``clip(rne((x - offset) * (1 / scale)) + zero_point, 0, 255)``, `rne` rounds half to even;
* sums are exact in int32, bias included (in units of ``x.scale * weight.scale``);
* back to fp32: ``float32(sum) * float32(x.scale * weight.scale[o])``, one rounding each;
* an input may have two planes of codes for one tensor, see `QuantizeWide` and `Dense.fine`;
* int16 codes of a sample are ``rne(x * (steps / peak))``, `peak` its largest magnitude (0 where that is below 1e-33),
  and a result is ``float32(sum) * (peak / steps * weight.scale[o]) + bias[o]``, each operation rounded;
* half precision is ``float16(x * gain)``, see `Half`; how its products are added, `edgecsi.ops.half` says;
* not-a-number has the code 0, on every CPU; a dynamically quantised sample that holds one, or an infinity, gives
  not-a-number in every output;
* fp32 steps behind it (activation, residual) are separate fp32 operations, never contracted to an FMA.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.ops import half
from edgecsi.ops.dynamic import int8_codes, int16_codes, rescaled
from edgecsi.ops.layout import Layout
from edgecsi.ops.steps import Epilogue, apply_step

F32 = np.float32


@dataclass(frozen=True)
class Quant:
    """Static uint8 quantisation of a tensor (per tensor).

    Attributes:
        scale: size of one step. zero_point: the code of `offset`. offset: subtracted first (CSI lies around 0.5).
    """

    scale: float
    zero_point: int = 0
    offset: float = 0.0

    @property
    def inverse(self) -> np.float32:
        return F32(1.0) / F32(self.scale)

    def codes(self, x: NDArray[np.float32]) -> NDArray[np.uint8]:
        shifted = (x.astype(F32) - F32(self.offset)) * self.inverse
        codes = np.clip(np.rint(shifted) + F32(self.zero_point), 0, 255)
        return np.where(np.isnan(codes), F32(0), codes).astype(np.uint8)


@dataclass(frozen=True)
class Half:
    """Half precision of a tensor.

    Attributes:
        gain: a power of two that numbers are multiplied with, so that sums of their products stay within the range of
            half precision.
    """

    gain: float = 1.0

    def codes(self, x: NDArray[np.float32]) -> NDArray[np.float16]:
        with np.errstate(over="ignore"):
            return (x.astype(F32) * F32(self.gain)).astype(np.float16)


@dataclass(frozen=True, kw_only=True, eq=False)
class Op:
    """An operator with everything that is known when it is compiled.

    Attributes:
        name: where it comes from, e.g. ``encoder.fc``.
        x: layout of the (first) input. y: layout of the output.
        epilogue: elementwise steps on the result; the layouts of their operands are further inputs, in order.
        y_quant: when set, the result is stored as uint8 codes of this quantisation, or in half precision.
    """

    name: str = ""
    x: Layout
    y: Layout
    epilogue: Epilogue = ()
    y_quant: Quant | Half | None = None

    @property
    def inputs(self) -> list[Layout]:
        """Layouts of all inputs, in the order of the kernel's parameters."""
        return [self.x, *(s.operand for s in self.epilogue if s.operand is not None)]

    @property
    def macs(self) -> int:
        return 0

    def compute(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        """The operator without its epilogue, fp32."""
        raise ValueError(f"{type(self).__name__} has no reference")

    def reference(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        """What the kernel must store, logical arrays in and out (fp32, or codes)."""
        extra = list(inputs[len(self.inputs) - sum(s.operand is not None for s in self.epilogue) :])
        y = self.compute(*inputs).reshape(self.y.shape)
        for step in self.epilogue:
            operand = extra.pop(0) if step.operand is not None else None
            y = np.asarray(apply_step(step, y, operand), F32)
        return self.y_quant.codes(y) if self.y_quant else y


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv2d(Op):
    """2-D cross-correlation, PyTorch's conv2d.

    Attributes:
        weight: ``[O, C/groups, KH, KW]`` float32, or int8 with `scale`, or float16 with `scale` for an input in half
            precision.
        bias: float32 ``[O]``; for int8 weights int32 ``[O]`` or ``[O, H, W]`` (a map that differs at the border
            only), or None.
        padding: top, bottom, left, right. If the input's halo is at least that wide, kernels read the halo.
        scale: float32 ``[O]`` of int8 weights. x_quant: quantisation of a uint8 input, with int8 weights.
        fine: above 1, the input has two planes of codes, see :class:`QuantizeWide`, so 2C channels for C of the
            weight: the sum over the first plane is multiplied with `fine`, and that over the second is added. The
            scale of `x_quant`, and so the bias, is in steps of the second. There is one group then.
        steps: above 0, weights are int16 and a float32 input is rounded sample by sample to int16 codes of at most this
            magnitude. A sample that holds something not finite gives not-a-number everywhere.
    """

    weight: NDArray[Any]
    bias: NDArray[Any] | None = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    scale: NDArray[np.float32] | None = None
    x_quant: Quant | None = None
    fine: int = 1
    steps: int = 0

    @property
    def planes(self) -> int:
        """Planes of codes of the input."""
        return 2 if self.fine > 1 else 1

    @property
    def tiled(self) -> bool:
        """Whether its sums in half precision are those of Winograd's form."""
        height, width = self.y.shape[2:]
        return half.in_tiles(self.weight, height, width, self.stride, self.dilation, self.groups)

    @property
    def macs(self) -> int:
        out = int(np.prod(self.y.shape[:1] + self.y.shape[2:]))
        return out * int(np.prod(self.weight.shape)) * self.planes

    def compute(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        x = inputs[0]
        if self.weight.dtype == np.float16:
            assert self.scale is not None
            window = self.stride, self.padding, self.dilation, self.groups
            return half.conv2d(x, self.weight, self.scale, self.bias, np.asarray(self.x.fill), *window)
        top, bottom, left, right = self.padding
        integer = self.x_quant is not None
        wide: NDArray[Any] = x.astype(np.float64)
        unit = np.ones((len(x), 1, 1, 1), F32)
        if self.steps:
            wide, unit = int16_codes(x, self.steps)
        if self.x_quant:
            wide = x.astype(np.int64) - self.x_quant.zero_point
        fill = np.reshape(self.x.fill, (-1, 1, 1)).astype(wide.dtype)
        fill -= self.x_quant.zero_point if self.x_quant else 0
        wide = np.pad(wide - fill, ((0, 0), (0, 0), (top, bottom), (left, right))) + fill
        outs, per, kh, kw = self.weight.shape
        n, _, height, width = self.y.shape
        if self.fine > 1:
            wide = wide[:, :per] * self.fine + wide[:, per:]
        acc = np.zeros((n, outs, height, width), wide.dtype)
        share = outs // self.groups
        for g in range(self.groups):
            w = self.weight[g * share : (g + 1) * share].astype(wide.dtype)
            for i in range(kh):
                for j in range(kw):
                    h0, w0 = i * self.dilation[0], j * self.dilation[1]
                    patch = wide[
                        :,
                        g * per : (g + 1) * per,
                        h0 : h0 + (height - 1) * self.stride[0] + 1 : self.stride[0],
                        w0 : w0 + (width - 1) * self.stride[1] + 1 : self.stride[1],
                    ]
                    acc[:, g * share : (g + 1) * share] += np.einsum("nchw,oc->nohw", patch, w[:, :, i, j])
        if self.steps:
            return rescaled(acc, unit, self.scale, self.bias)
        return _finish(acc, self.bias, self.scale, self.x_quant, integer)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense(Op):
    """Fully connected layer: ``y[n, o] = sum_i x[n, i] * weight[o, i] + bias[o]``, x and y flattened per sample.

    Attributes:
        weight: ``[O, I]`` float32, or int8 with `scale`, or float16 with `scale` for an input in half precision, or uint8
            indices into `table`.
        bias: ``[O]`` float32; int32 in accumulator units when the input is static uint8.
        scale: float32 ``[O]``, per-channel scale of int8 weights.
        x_quant: input is uint8 codes of this quantisation.
        fine: above 1, the input is float32 and is rounded to two planes of codes, as `QuantizeWide` says; `x_quant` is
            that of the first, `bias` counts steps of the second.
        dynamic: quantise a float32 input per sample: with ``width = max(x, 0) - min(x, 0)``,
            ``scale = width / 254``, ``zero = floor(-min(x, 0) * (254 / width)) + 1`` and
            ``code = rne(x * (254 / width) + zero)`` in uint8 (254 / width is 0 when width < 1e-36). A width that is
            no finite number gives not-a-number everywhere.
        steps: as in :class:`Conv2d`.
        table: float32 ``[entries]``, centroids of clustered weights.
        among: bytes of all constants that are read in a call of the library, these included; they share the caches.
            0 if nothing else is read.
    """

    weight: NDArray[Any]
    bias: NDArray[Any] | None = None
    scale: NDArray[np.float32] | None = None
    x_quant: Quant | None = None
    fine: int = 1
    dynamic: bool = False
    steps: int = 0
    table: NDArray[np.float32] | None = None
    among: int = 0

    @property
    def planes(self) -> int:
        """Planes of codes that a sample has."""
        return 2 if self.fine > 1 else 1

    @property
    def macs(self) -> int:
        return self.x.shape[0] * self.planes * int(self.weight.size)

    def dense_weight(self) -> NDArray[Any]:
        """The weights as numbers to multiply with: float32, or int8 codes."""
        return self.table[self.weight] if self.table is not None else self.weight

    def compute(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        x = inputs[0].reshape(self.x.shape[0], -1)
        w = self.dense_weight()
        if w.dtype == np.float16:
            assert self.scale is not None
            return half.dense(x, w, self.scale, self.bias)
        if self.steps:
            codes, unit = int16_codes(x, self.steps)
            return rescaled(codes @ w.astype(np.int64).T, unit, self.scale, self.bias)
        if self.dynamic:
            codes, unit = int8_codes(x)
            return rescaled(codes @ w.astype(np.int64).T, unit, self.scale, self.bias)
        if self.x_quant is not None:
            quant = self.x_quant
            if self.fine > 1:
                first, second = wide_steps(x, quant, self.fine)
                whole = first.astype(np.int64) * self.fine + second.astype(np.int64)
                quant = replace(quant, scale=quant.scale / self.fine)
            else:
                whole = x.astype(np.int64) - quant.zero_point
            return _finish(whole @ w.astype(np.int64).T, self.bias, self.scale, quant, True)
        acc = x.astype(np.float64) @ w.astype(np.float64).T
        return _finish(acc, self.bias, self.scale, None, False)


def _finish(
    acc: NDArray[Any],
    bias: NDArray[Any] | None,
    scale: NDArray[np.float32] | None,
    x_quant: Quant | None,
    integer: bool,
) -> NDArray[np.float32]:
    channel = (1, -1, *[1] * (acc.ndim - 2))
    if integer:
        assert scale is not None
        assert x_quant is not None
        if bias is not None:
            acc = acc + (bias[None] if bias.ndim > 1 else bias.reshape(channel)).astype(np.int64)
        factor = (F32(x_quant.scale) * scale.astype(F32)).reshape(channel)
        return acc.astype(F32) * factor
    if scale is not None:
        acc = acc * scale.reshape(channel).astype(np.float64)
    if bias is not None:
        acc = acc + bias.reshape(channel).astype(np.float64)
    return acc.astype(F32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Elementwise(Op):
    """Nothing but an epilogue: a copy from one layout to another, an activation, a sum, a quantisation."""

    def __post_init__(self) -> None:
        if self.y.dtype == "uint8" and self.y_quant is None and not self.moves_codes:
            raise ValueError("codes need a quantisation, or to be copied from codes")

    @property
    def moves_codes(self) -> bool:
        """Whether codes are copied as they are into another layout."""
        return self.x.dtype == self.y.dtype == "uint8" and not self.epilogue and self.y_quant is None

    def compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        return inputs[0].astype(self.y.dtype if self.moves_codes else F32).reshape(self.y.shape)


def wide_steps(x: NDArray[Any], quant: Quant, fine: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Whole steps of both planes of a tensor, around 0: `quant`'s, and those, `fine` times smaller, of what is left;
    the lowest in both for not-a-number."""
    zero = F32(quant.zero_point)
    steps = (x.astype(F32) - F32(quant.offset)) * quant.inverse

    def whole(steps: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.where(np.isnan(steps), -zero, np.clip(np.rint(steps), -zero, 255 - zero))

    high = whole(steps)
    return high, whole((steps - high) * F32(fine))


def plane_channels(channels: int) -> int:
    """Channels of a plane of codes: kernels read them in twos or fours, and no group may hold codes of both planes."""
    return 2 if channels <= 2 else -(-channels // 4) * 4


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizeWide(Op):
    """Two planes of codes, fp32 ``[N, C, H, W]`` to uint8 ``[N, 2P, H, W]``: some 13 bits for int8 arithmetic.

    The first C of P channels are the codes of `y_quant`; those of the second plane hold what is left over, in steps of
    ``1 / fine``, around the same zero point. P is :func:`plane_channels`; channels that a plane only has for that
    hold the zero point. A convolution reads both, with the same weights (`Conv2d.fine`).

    Attributes:
        fine: a power of two, so that nothing but the first product is rounded.
    """

    fine: int

    def reference(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        assert isinstance(self.y_quant, Quant)
        zero = F32(self.y_quant.zero_point)
        high, low = wide_steps(inputs[0], self.y_quant, self.fine)
        nothing = ((0, 0), (0, self.y.shape[1] // 2 - high.shape[1]), (0, 0), (0, 0))
        return (np.concatenate([np.pad(high, nothing), np.pad(low, nothing)], 1) + zero).astype(np.uint8)


@dataclass(frozen=True, kw_only=True, eq=False)
class MatMul(Op):
    """Batched product of two activations: ``[..., M, K] x [..., K, N]``."""

    b: Layout

    @property
    def inputs(self) -> list[Layout]:
        return [self.x, self.b, *(s.operand for s in self.epilogue if s.operand is not None)]

    @property
    def macs(self) -> int:
        return int(np.prod(self.x.shape)) * self.y.shape[-1]

    def compute(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        a, b = inputs[0].astype(np.float64), inputs[1].astype(np.float64)
        return (a @ b).astype(F32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Softmax(Op):
    """Softmax over the last axis."""

    def compute(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        x = inputs[0].astype(np.float64)
        e = np.exp(x - x.max(-1, keepdims=True))
        return np.asarray(e / e.sum(-1, keepdims=True), F32)


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerNorm(Op):
    """Layer normalisation over the last axis; gamma, beta float32 ``[K]`` or None."""

    gamma: NDArray[np.float32] | None = None
    beta: NDArray[np.float32] | None = None
    eps: float = 1e-5

    def compute(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        x = inputs[0].astype(np.float64)
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + self.eps)
        y = y * self.gamma if self.gamma is not None else y
        return np.asarray(y + self.beta if self.beta is not None else y, F32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool2d(Op):
    """Max or average pooling; `count_include_pad` as in PyTorch."""

    kind: str
    window: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    count_include_pad: bool = True

    def compute(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        x = inputs[0].astype(np.float64)
        top, bottom, left, right = self.padding
        is_max = self.kind == "max"
        spec = ((0, 0), (0, 0), (top, bottom), (left, right))
        data = np.pad(x, spec, constant_values=-np.inf if is_max else 0)
        ones = np.pad(np.ones_like(x), spec, constant_values=1.0 if self.count_include_pad else 0.0)
        _, _, height, width = self.y.shape
        picks = [
            (
                slice(i, i + (height - 1) * self.stride[0] + 1, self.stride[0]),
                slice(j, j + (width - 1) * self.stride[1] + 1, self.stride[1]),
            )
            for i in range(self.window[0])
            for j in range(self.window[1])
        ]
        stack = np.stack([data[:, :, r, c] for r, c in picks])
        if is_max:
            return np.asarray(stack.max(0), F32)
        count = np.stack([ones[:, :, r, c] for r, c in picks]).sum(0)
        return np.asarray(stack.sum(0) / count, F32)
