"""A layer in fp32 that computes with rounded weights and inputs, so that it can be fitted and trained."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgecsi.compress.quantize.ranges import Input
from edgecsi.compress.quantize.weights import quantize_weight
from edgecsi.compress.recipe import Quantize
from edgecsi.errors import ModelError
from edgecsi.models.compressed.layers import (
    CompressedLayer,
    DynamicLinear,
    StaticConv2d,
    StaticLinear,
    WeightOnlyLinear,
)
from edgecsi.models.compressed.ops import dynamic_codes

_MAP_BYTES = 8192  # a bias may be a map of [O, H, W] if it takes no more: two channels of a CSI image
_STEP_LR_FACTOR = 6.0  # how much faster than a weight the step of an input trains
_BIAS_UNITS = 1 << 24  # a bias keeps at least float32's precision, and stays far from int32's end


class Rounded(nn.Module):
    """A layer that computes in fp32 what its integer form will compute: weight and input are rounded.

    Gradients pass the rounding unchanged (Bengio et al., arXiv 1308.3432), so it can be trained.

    Args:
        layer: what it stands for; its weight goes on training.
        given: of its input; if static, ``bias`` holds the response to its offset too.
        shapes: of input and output; convolutions need them.
    """

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        step: Quantize,
        given: Input,
        shapes: tuple[torch.Size, torch.Size] | None = None,
    ) -> None:
        super().__init__()
        measured = given.range
        self.layer, self.step, self.measured, self.given = layer, step, measured, given
        self.fine = 1 if measured is None else measured.fine
        self.chosen: tuple[Tensor, Tensor] | None = None  # codes and scale other than the nearest
        self.step_of_input = 0.0  # size of a rounding step, as last seen
        self.border: Tensor | None = None  # what the bias alone does not say of the response to the offset
        outputs = len(layer.weight)
        bias = torch.zeros(outputs).double() if layer.bias is None else layer.bias.detach().double()
        if given.centre is not None:
            bias = bias + layer.weight.detach().double() @ given.centre.double()
        if given.gain is not None:
            with torch.no_grad():
                layer.weight.div_(given.gain)
        offset = 0.0 if measured is None else measured.offset
        if isinstance(layer, nn.Linear):
            bias = bias + layer.weight.detach().double().sum(1) * offset
        elif shapes is not None and (offset or 4 * shapes[1][1:].numel() <= _MAP_BYTES):
            constant = torch.full((1, *shapes[0][1:]), offset, dtype=torch.float64)
            response = functional.conv2d(
                functional.pad(constant, four_sides(layer)), layer.weight.detach().double(), None,
                layer.stride, 0, layer.dilation, layer.groups
            )  # fmt: skip
            if 4 * shapes[1][1:].numel() <= _MAP_BYTES:
                bias = response[0] + bias[:, None, None]
            else:
                self.border = response[0].float()
        layer.bias = None
        self.bias = nn.Parameter(bias.float())
        self.log_scale = nn.Parameter(
            torch.tensor(0.0 if measured is None else math.log(measured.scale) / _STEP_LR_FACTOR)
        )

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        with torch.no_grad():
            codes, scale = self.codes()
            unit = scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
        weight = layer.weight + (codes * unit - layer.weight).detach()
        x = self._seen(x)
        if isinstance(layer, nn.Linear):
            return functional.linear(x, weight, self.bias)
        # `x` is what differs from the offset now, so padding with 0 is padding with the offset
        y = functional.conv2d(
            functional.pad(x, four_sides(layer)), weight, None, layer.stride, 0, layer.dilation, layer.groups
        )
        return y + self._whole_bias()

    def patches(self, x: Tensor) -> Tensor:
        """What the integer layer multiplies with its weights, less the offset: ``[N, P, K]``, P positions."""
        x = self._seen(x)
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return x.flatten(0, -2)[:, None]
        padded = functional.pad(x, four_sides(layer))
        unfolded = functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
        return unfolded.transpose(1, 2)

    def integer(self) -> CompressedLayer:
        """The integer form."""
        layer, step, measured = self.layer, self.step, self.measured
        codes, scale = self.codes()
        bias = self._whole_bias().detach()
        if measured is None:
            if step.mode != "weights":
                return DynamicLinear(codes, scale, bias, self.given.centre, self.given.gain, bits=step.bits)
            return WeightOnlyLinear(codes, scale, bias, bits=step.bits)
        measured = dataclasses.replace(measured, scale=float(self._scale().detach()))
        if bias.ndim == 3 and bias[0].numel() == 1:
            bias = bias.flatten()
        unit = (measured.scale / measured.fine * scale.double()).reshape(-1, *[1] * (bias.ndim - 1))
        units = (bias.double() / unit).round().to(torch.int32)
        numbers: dict[str, Any] = {**asdict(measured), "bits": step.bits}
        if isinstance(layer, nn.Linear):
            return StaticLinear(codes, scale, units, self.given.centre, self.given.gain, **numbers)
        left, right, top, bottom = four_sides(layer)
        window: dict[str, Any] = {"stride": list(layer.stride), "padding": [top, bottom, left, right]}
        return StaticConv2d(
            codes, scale, units, **numbers, **window, dilation=list(layer.dilation), groups=layer.groups
        )

    def codes(self) -> tuple[Tensor, Tensor]:
        """The weight's int8 codes and their scale."""
        if self.chosen is not None:
            return self.chosen
        floor = None
        if self.measured is not None:
            floor = self._whole_bias().detach().abs().reshape(len(self.bias), -1)
            floor = floor.amax(1) / (float(self._scale().detach()) / self.fine * _BIAS_UNITS)
        return quantize_weight(self.layer.weight, self.step.bits, floor)

    def _whole_bias(self) -> Tensor:
        """``[O]`` for a dense layer, ``[O, H, W]`` for a convolution, ``[O, 1, 1]`` where all positions share it."""
        if isinstance(self.layer, nn.Linear) or self.bias.ndim == 3:
            return self.bias
        bias = self.bias[:, None, None]
        return bias if self.border is None else bias + self.border

    def _scale(self) -> Tensor:
        """Size of a step of the input, which trains too (Esser et al., arXiv 1902.08153)."""
        return (self.log_scale * _STEP_LR_FACTOR).exp()

    def _seen(self, x: Tensor) -> Tensor:
        """What the integer layer sees of its input, less the offset."""
        x = self.given.evened(x)
        if self.measured is not None:
            scale, zero = self._scale(), self.measured.zero_point
            self.step_of_input = float(scale.detach()) / self.fine
            steps = ((x - self.measured.offset) / scale).clamp(-zero, 255 - zero)
            with torch.no_grad():
                rounded = steps.round()
                if self.fine > 1:
                    left = ((steps - rounded) * self.fine).round_().clamp_(-zero, 255 - zero)
                    rounded += left / self.fine
            return (steps + (rounded - steps).detach()) * scale
        if self.step.mode != "weights":
            codes, zero_code, unit = dynamic_codes(x.detach())
            self.step_of_input = float(unit.mean())
            return x + ((codes - zero_code) * unit - x.detach())
        return x


def four_sides(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Padding as left, right, top, bottom."""
    if conv.padding_mode != "zeros":
        raise ModelError(
            f"a convolution pads with {conv.padding_mode!r}",
            "int8 convolutions pad with zeros",
            "add it to keep-fp32",
        )
    if conv.padding == "valid":
        return (0, 0, 0, 0)
    if conv.padding == "same":
        height, width = (d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
        return (width // 2, width - width // 2, height // 2, height - height // 2)
    assert not isinstance(conv.padding, str)
    rows, columns = conv.padding
    return (columns, columns, rows, rows)
