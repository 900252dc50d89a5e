"""Compressed layers as PyTorch modules, each a thin shell around operators of :mod:`edgecsi.models.compressed.ops`.

A layer is made from tensors and a few plain numbers and nothing else: ``type(layer)(**layer.attributes(),
**layer.tensors())`` is the same layer. So a file with the numbers as JSON and the tensors rebuilds it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgecsi.models.compressed import ops
from edgecsi.ops.operators import Half, plane_channels


class CompressedLayer(nn.Module):
    """Base: tensors are buffers, ``attributes`` are numbers that JSON can hold."""

    def __init__(self, tensors: dict[str, Tensor | None], attributes: dict[str, Any]) -> None:
        super().__init__()
        # PyTorch's shortcut for transformers takes weights past their layers, which are compressed ones from now on
        torch.backends.mha.set_fastpath_enabled(False)
        self._attributes = attributes
        self._tensors = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def attributes(self) -> dict[str, Any]:
        return dict(self._attributes)

    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name in self._tensors if (value := getattr(self, name)) is not None}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self._attributes.items())


class StaticConv2d(CompressedLayer):
    """``quantize``, then ``qs8_conv2d``: float32 ``[N, C, H, W]`` in, ``[N, O, H', W']`` out, int8 between.

    Args:
        weight: int8 ``[O, C/groups, KH, KW]``, of `bits` bits. weight_scale: float32 ``[O]``.
        bias: int32 ``[O]``, or ``[O, H', W']`` if the input has an `offset`: the response to that constant
            differs at the border.
        scale, zero_point, offset: quantisation of the input. padding: top, bottom, left, right.
        fine: above 1, the input has two planes of codes (:func:`edgecsi.models.compressed.ops.quantize_wide`).
    """

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        *,
        scale: float,
        zero_point: int,
        offset: float,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
        bits: int = 8,
        fine: int = 1,
    ) -> None:
        numbers = {
            "scale": scale, "zero_point": zero_point, "offset": offset, "bits": bits, "fine": fine,
        }  # fmt: skip
        window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        super().__init__({"weight": weight, "weight_scale": weight_scale, "bias": bias}, numbers | window)
        self.scale, self.zero_point, self.offset = scale, zero_point, offset
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.fine = fine
        if fine > 1:  # no weight for the channels that fill a plane
            rest = (0, 0, 0, 0, 0, plane_channels(weight.shape[1]) - weight.shape[1])
            self.register_buffer("filled", functional.pad(weight, rest), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # Padding cells hold the code of `offset`, which adds nothing; what true zeros add is in the bias map.
        if self.fine == 1:
            codes, weight = ops.quantize(x, self.scale, self.zero_point, self.offset), self.weight
        else:
            weight = self.filled
            codes = ops.quantize_wide(x, self.scale, self.zero_point, self.offset, self.fine)
        y: Tensor = ops.qs8_conv2d(
            codes, weight, self.weight_scale, self.bias, self.scale / self.fine, self.zero_point, self.zero_point,
            self.stride, self.padding, self.dilation, self.groups, self.fine,
        )  # fmt: skip
        return y


class DynamicConv2d(CompressedLayer):
    """``qd16_conv2d``: every sample is rounded to int16 codes of its own range; float32 ``[N, C, H, W]`` in,
    ``[N, O, H', W']`` out.

    Args:
        weight: int16 ``[O, C, KH, KW]``. weight_scale, bias: float32 ``[O]``. steps: the largest code.
        padding: top, bottom, left, right.
    """

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        *,
        steps: int,
        padding: list[int],
        dilation: list[int],
        bits: int = 16,
    ) -> None:
        numbers = {"steps": steps, "padding": padding, "dilation": dilation, "bits": bits}
        super().__init__({"weight": weight, "weight_scale": weight_scale, "bias": bias}, numbers)
        self.steps, self.padding, self.dilation = steps, padding, dilation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = ops.qd16_conv2d(
            x, self.weight, self.weight_scale, self.bias, self.steps, self.padding, self.dilation
        )
        return y


class HalfConv2d(CompressedLayer):
    """``to_half``, then ``f16_conv2d``: float32 ``[N, C, H, W]`` in, ``[N, O, H', W']`` out, half precision between.

    Args:
        weight: float16 ``[O, C/groups, KH, KW]``. weight_scale, bias: float32 ``[O]``, for what is left of the input.
        offset: what is subtracted from every channel of the input, or none. gain: what the rest is multiplied with, a
            power of two.
        padding: top, bottom, left, right.
    """

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        *,
        offset: list[float],
        gain: float,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
        bits: int = 16,
    ) -> None:
        window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        numbers = {"offset": offset, "gain": gain, "bits": bits} | window
        super().__init__({"weight": weight, "weight_scale": weight_scale, "bias": bias}, numbers)
        self.offset, self.gain = offset, gain
        # What padding with zeros becomes.
        self.fill = [float(code) for code in Half(gain).codes(-np.array(offset, np.float32))]
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def forward(self, x: Tensor) -> Tensor:
        half = ops.to_half(x, self.offset, self.gain)
        y: Tensor = ops.f16_conv2d(
            half, self.weight, self.weight_scale, self.bias, self.fill, self.stride, self.padding,
            self.dilation, self.groups,
        )  # fmt: skip
        return y


def evened(x: Tensor, centre: Tensor | None, gain: Tensor | None) -> Tensor:
    """Inputs ``[..., I]`` less their centre ``[I]``, times their gain ``[I]``, each if there is one."""
    x = x if centre is None else x - centre
    return x if gain is None else x * gain


class _RoundedInput(CompressedLayer):
    """Base of dense layers that round their input, evened out first."""

    centre: Tensor | None
    gain: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None,
        centre: Tensor | None,
        gain: Tensor | None,
        attributes: dict[str, Any],
    ) -> None:
        tensors = {"weight": weight, "weight_scale": weight_scale, "bias": bias}
        super().__init__(tensors | {"centre": centre, "gain": gain}, attributes)


class StaticLinear(_RoundedInput):
    """``quantize``, then ``qs8_linear``: float32 ``[..., I] -> [..., O]``, int8 between.

    Args:
        weight: int8 ``[O, I]``, of `bits` bits. weight_scale: float32 ``[O]``. bias: int32 ``[O]``.
        centre, gain: of the input, see :func:`evened`.
        scale, zero_point, offset: quantisation of the input.
        fine: above 1, the input has two planes of codes (:func:`edgecsi.models.compressed.ops.qs8_wide_linear`).
    """

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        centre: Tensor | None = None,
        gain: Tensor | None = None,
        *,
        scale: float,
        zero_point: int,
        offset: float,
        bits: int = 8,
        fine: int = 1,
    ) -> None:
        numbers = {"scale": scale, "zero_point": zero_point, "offset": offset, "bits": bits, "fine": fine}
        super().__init__(weight, weight_scale, bias, centre, gain, numbers)
        self.scale, self.zero_point, self.offset, self.fine = scale, zero_point, offset, fine

    def forward(self, x: Tensor) -> Tensor:
        even, weights = evened(x, self.centre, self.gain), (self.weight, self.weight_scale, self.bias)
        range_ = (self.scale, self.zero_point, self.offset)
        y: Tensor
        if self.fine > 1:
            y = ops.qs8_wide_linear(even, *weights, *range_, self.fine)
        else:
            y = ops.qs8_linear(ops.quantize(even, *range_), *weights, self.scale, self.zero_point)
        return y


class DynamicLinear(_RoundedInput):
    """``qd8_linear``: the input is quantised sample by sample. weight int8 ``[O, I]`` of `bits` bits,
    weight_scale and bias float32 ``[O]``, centre and gain as in :class:`StaticLinear`."""

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        centre: Tensor | None = None,
        gain: Tensor | None = None,
        *,
        bits: int = 8,
    ) -> None:
        super().__init__(weight, weight_scale, bias, centre, gain, {"bits": bits})

    def forward(self, x: Tensor) -> Tensor:
        even = evened(x, self.centre, self.gain)
        y: Tensor = ops.qd8_linear(even, self.weight, self.weight_scale, self.bias)
        return y


class Int16Linear(CompressedLayer):
    """``qd16_linear``: every row is rounded to int16 codes of its own range; float32 ``[..., I] -> [..., O]``.

    Args:
        weight: int16 ``[O, I]``. weight_scale, bias: float32 ``[O]``. steps: the largest code.
    """

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        *,
        steps: int,
        bits: int = 16,
    ) -> None:
        tensors = {"weight": weight, "weight_scale": weight_scale, "bias": bias}
        super().__init__(tensors, {"steps": steps, "bits": bits})
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = ops.qd16_linear(x, self.weight, self.weight_scale, self.bias, self.steps)
        return y


class HalfLinear(CompressedLayer):
    """``to_half``, then ``f16_linear``: float32 ``[..., I] -> [..., O]``, half precision between.

    Args:
        weight: float16 ``[O, I]``. weight_scale, bias: float32 ``[O]``. centre: of the input, see :func:`evened`.
        gain: what the input is multiplied with, a power of two.
    """

    centre: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        centre: Tensor | None = None,
        *,
        gain: float,
        bits: int = 16,
    ) -> None:
        tensors = {"weight": weight, "weight_scale": weight_scale, "bias": bias, "centre": centre}
        super().__init__(tensors, {"gain": gain, "bits": bits})
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        half = ops.to_half(evened(x, self.centre, None), [], self.gain)
        y: Tensor = ops.f16_linear(half, self.weight, self.weight_scale, self.bias)
        return y


class WeightOnlyLinear(CompressedLayer):
    """``qs8w_linear``: the input stays float32. Tensors as in :class:`DynamicLinear`, without centre and gain."""

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None, *, bits: int = 8
    ) -> None:
        super().__init__({"weight": weight, "weight_scale": weight_scale, "bias": bias}, {"bits": bits})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = ops.qs8w_linear(x, self.weight, self.weight_scale, self.bias)
        return y


class ClusteredLinear(CompressedLayer):
    """``lut_linear``: the weight is ``table[index]``; index uint8 ``[O, I]``, table float32 ``[K]``. scale float32
    ``[O]``: of an output's weights; gain ``[I]``: of an input, as in :func:`evened`."""

    bias: Tensor | None
    scale: Tensor | None
    gain: Tensor | None

    def __init__(
        self,
        index: Tensor,
        table: Tensor,
        bias: Tensor | None = None,
        scale: Tensor | None = None,
        gain: Tensor | None = None,
    ) -> None:
        tensors = {"index": index, "table": table, "bias": bias, "scale": scale, "gain": gain}
        super().__init__(tensors, {})

    def forward(self, x: Tensor) -> Tensor:
        even, scale = evened(x, None, self.gain), self.scale
        y: Tensor = ops.lut_linear(even, self.index, self.table, self.bias if scale is None else None)
        if scale is not None:
            y = y * scale if self.bias is None else y * scale + self.bias
        return y
