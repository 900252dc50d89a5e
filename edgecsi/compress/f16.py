"""Convolutions in half precision: which, what is subtracted from their inputs first, and how weights are rounded.

Half precision has eleven digits. They are too few for images that lie around a value that is large against what differs
between them, which costs CsiNet 1/4 0.05 dB; so every channel's mean is subtracted first, and what the filter makes of it
is in the bias, in fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgecsi.compress.choose import called
from edgecsi.compress.quantize.rounded import four_sides
from edgecsi.compress.watch import Look, watching
from edgecsi.models.compressed.layers import HalfConv2d

_SEEN, _BATCH = 512, 64
_LONGEST_FILTER = 128
"""Products of a channel, which are all added in half precision."""
_LEAST_WORK = 64
"""Products a pixel: with fewer, most of a convolution's time is not theirs, and half precision has nothing to give."""
_FEW_CHANNELS = 16
"""With more, Winograd's form in fp32 is faster than sums that are widened after every channel."""
_LEAST_NORM, _MOST_NORM = 2.0**-4, 2.0**5
"""Of a filter in half precision, the sum of its weights' magnitudes; others are scaled to between 1 and 2."""
_MOST_POWER = 60
"""Of two, that a gain may be."""
_LEAST_PEAK, _MOST_SUM = 2.0**-4, 2.0**10
"""Of an input in half precision, and of what a filter may make of it: 65504 is where numbers end, other samples may be
larger, and Winograd's form adds 16 pixels."""


def f16_convolutions(module: nn.Module, example: Tensor) -> dict[str, nn.Conv2d]:
    """Those that half precision makes faster."""

    def gains(conv: nn.Conv2d) -> bool:
        outs, ins, *window = conv.weight.shape
        plain = window == [3, 3] and {*conv.stride, *conv.dilation, conv.groups} == {1}
        if math.prod(window) > _LONGEST_FILTER or (plain and outs >= 8 and ins > _FEW_CHANNELS):
            return False
        return conv.weight.numel() // math.prod(conv.stride) >= _LEAST_WORK and conv.padding_mode == "zeros"

    return {name: conv for name, conv in called(module, (nn.Conv2d,), example).items() if gains(conv)}


@dataclass
class Given:
    """What a layer was given in every channel, ``[C]``: the sum of all numbers, how many, the least and the largest."""

    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    count: int = 0
    low: Tensor = field(default_factory=lambda: torch.tensor(float("inf")))
    high: Tensor = field(default_factory=lambda: torch.tensor(-float("inf")))

    def see(self, x: Tensor) -> None:
        self.total = self.total + x.double().sum((0, 2, 3))
        self.count += x.numel() // x.shape[1]
        self.low, self.high = self.low.minimum(x.amin((0, 2, 3))), self.high.maximum(x.amax((0, 2, 3)))

    def rounded(self, norm: float) -> tuple[list[float], float]:
        """Offset and gain for filters whose weights' magnitudes add up to at most `norm`."""
        mean = self.total / self.count
        # Zeros around an image are its numbers too.
        peak = float(torch.stack([self.high - mean, mean - self.low, mean.abs()]).max())
        if not 0 < peak < float("inf"):
            return [], 1.0
        most, power = _MOST_SUM / max(norm, 1.0), 0
        if peak > most:
            power = math.floor(math.log2(most / peak))
        elif peak < _LEAST_PEAK:
            power = -math.floor(math.log2(peak))
        gain = 2.0 ** max(min(power, _MOST_POWER), -_MOST_POWER)
        return ((mean * gain).half().double() / gain).tolist(), gain


def inputs_of(module: nn.Module, layers: dict[str, nn.Conv2d], samples: Tensor) -> dict[str, Given]:
    """What layers are given as the network runs."""
    given = {name: Given() for name in layers}

    def look(name: str) -> Look:
        return lambda x, _y: given[name].see(x)

    with watching(*((layer, look(name)) for name, layer in layers.items())):
        for part in torch.split(samples[:_SEEN], _BATCH):
            module.eval()(part)
    return given


def f16_layer(conv: nn.Conv2d, given: Given | None = None) -> HalfConv2d:
    """A convolution in half precision."""
    weight = conv.weight.detach().double()
    norm = weight.abs().sum((1, 2, 3))
    scale = torch.ones_like(norm)
    if float(norm.max()) > _MOST_NORM or float(norm.min()) < _LEAST_NORM:
        scale = torch.where(norm > 0, norm, scale).log2().floor().clamp(-120, 120).exp2()
    offset, gain = given.rounded(float((norm / scale).max())) if given is not None else ([], 1.0)
    left, right, top, bottom = four_sides(conv)
    bias = None if conv.bias is None else conv.bias.detach().clone()
    if offset:
        each = torch.tensor(offset, dtype=torch.float64).reshape(conv.groups, 1, -1)
        response = (weight.sum((2, 3)).reshape(conv.groups, -1, each.shape[2]) * each).sum(2).flatten()
        bias = (response if bias is None else bias.double() + response).float()
    codes = (weight / scale[:, None, None, None]).half()
    return HalfConv2d(
        codes, (scale / gain).float(), bias, offset=offset, gain=gain, stride=list(conv.stride),
        padding=[top, bottom, left, right], dilation=list(conv.dilation), groups=conv.groups,
    )  # fmt: skip
