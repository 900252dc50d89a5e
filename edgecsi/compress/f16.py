"""Convolutions and dense layers in half precision: which, what is subtracted from their inputs first, and how weights are
rounded.

Half precision has eleven digits. They are too few for images that lie around a value that is large against what differs
between them, which costs CsiNet 1/4 0.05 dB; so every channel's mean is subtracted first, and what the filter makes of it
is in the bias, in fp32. The same is done for every input of a dense layer, where means are most of what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgecsi.compress.choose import called
from edgecsi.compress.quantize.rounded import four_sides
from edgecsi.compress.size import density
from edgecsi.compress.watch import Look, watching
from edgecsi.models.compressed.layers import HalfConv2d, HalfLinear
from edgecsi.ops.half import INPUTS

_SEEN, _BATCH = 512, 64
_LONGEST_FILTER = 128
"""Products of a channel, which are all added in half precision."""
_LEAST_WORK = 64
"""Products a pixel: with fewer, most of a convolution's time is not theirs, and half precision has nothing to give."""
_FEW_CHANNELS = 16
"""With more, Winograd's form in fp32 is faster than sums that are widened after every channel."""
_LEAST_OUTPUTS, _LEAST_WEIGHTS = 16, 1024
"""Of a dense layer; with fewer, most of its time is not that of its products."""
DENSE = 0.5
"""Share of a dense layer's weights from which on all are stored and computed with in 16 bits; with fewer, zeros are left
out, and arithmetic stays fp32."""
_LEAST_NORM, _MOST_NORM = 2.0**-4, 2.0**5
"""Of what is summed in half precision, the sum of the weights' magnitudes; others are scaled to between 1 and 2."""
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


def f16_linears(module: nn.Module, example: Tensor) -> dict[str, nn.Linear]:
    """Those that half precision makes faster."""

    def gains(layer: nn.Linear) -> bool:
        large = len(layer.weight) >= _LEAST_OUTPUTS and layer.weight.numel() >= _LEAST_WEIGHTS
        return large and density(layer.weight) >= DENSE

    return {name: part for name, part in called(module, (nn.Linear,), example).items() if gains(part)}


@dataclass
class Given:
    """What a layer was given in every channel, ``[C]``: the sum of all numbers and of their squares, how many, the least
    and the largest."""

    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    count: int = 0
    low: Tensor = field(default_factory=lambda: torch.tensor(float("inf")))
    high: Tensor = field(default_factory=lambda: torch.tensor(-float("inf")))

    def see(self, x: Tensor) -> None:
        """Images ``[N, C, H, W]``, or rows ``[..., C]``."""
        rows = x.movedim(1, -1) if x.ndim == 4 else x
        rows = rows.reshape(-1, rows.shape[-1])
        self.total = self.total + rows.double().sum(0)
        self.squares = self.squares + rows.double().square().sum(0)
        self.count += len(rows)
        self.low, self.high = self.low.minimum(rows.amin(0)), self.high.maximum(rows.amax(0))

    @property
    def off_centre(self) -> bool:
        """Whether means are most of the power."""
        return bool(2 * (self.total / self.count).square().sum() > self.squares.sum() / self.count)

    def rounded(self, norm: float, shifted: bool = True) -> tuple[list[float], float]:
        """Offset and gain for filters whose weights' magnitudes add up to at most `norm`.

        Args:
            shifted: whether means are to be subtracted.
        """
        mean = self.total / self.count if shifted else torch.zeros_like(self.total)
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
        return ((mean * gain).half().double() / gain).tolist() if shifted else [], gain


def inputs_of(
    module: nn.Module, layers: Mapping[str, nn.Conv2d | nn.Linear], samples: Tensor
) -> dict[str, Given]:
    """What layers are given as the network runs."""
    given = {name: Given() for name in layers}

    def look(name: str) -> Look:
        return lambda x, _y: given[name].see(x)

    with watching(*((layer, look(name)) for name, layer in layers.items())):
        for part in torch.split(samples[:_SEEN], _BATCH):
            module.eval()(part)
    return given


def f16_layer(layer: nn.Conv2d | nn.Linear, given: Given | None = None) -> HalfConv2d | HalfLinear:
    """A layer in half precision."""
    return _linear(layer, given) if isinstance(layer, nn.Linear) else _convolution(layer, given)


def _convolution(conv: nn.Conv2d, given: Given | None) -> HalfConv2d:
    weight = conv.weight.detach().double()
    norm = weight.abs().sum((1, 2, 3))
    scale = _scale(norm)
    offset, gain = given.rounded(float((norm / scale).max())) if given is not None else ([], 1.0)
    left, right, top, bottom = four_sides(conv)
    bias = None if conv.bias is None else conv.bias.detach().clone()
    if offset:
        each = torch.tensor(offset, dtype=torch.float64).reshape(conv.groups, 1, -1)
        response = (weight.sum((2, 3)).reshape(conv.groups, -1, each.shape[2]) * each).sum(2).flatten()
        bias = _added(bias, response)
    codes = (weight / scale[:, None, None, None]).half()
    return HalfConv2d(
        codes, (scale / gain).float(), bias, offset=offset, gain=gain, stride=list(conv.stride),
        padding=[top, bottom, left, right], dilation=list(conv.dilation), groups=conv.groups,
    )  # fmt: skip


def _linear(layer: nn.Linear, given: Given | None) -> HalfLinear:
    weight = layer.weight.detach().double()
    stretches = nn.functional.pad(weight.abs(), (0, -weight.shape[1] % INPUTS)).reshape(
        len(weight), -1, INPUTS
    )
    norm = stretches.sum(-1).amax(1)
    scale = _scale(norm)
    most = float((norm / scale).max())
    offset, gain = given.rounded(most, given.off_centre) if given is not None else ([], 1.0)
    bias, centre = None if layer.bias is None else layer.bias.detach().clone(), None
    if offset:
        centre = torch.tensor(offset)
        bias = _added(bias, weight @ centre.double())
    codes = (weight / scale[:, None]).half()
    return HalfLinear(codes, (scale / gain).float(), bias, centre, gain=gain)


def _scale(norm: Tensor) -> Tensor:
    """What the weights of every output are divided by, powers of two."""
    scale = torch.ones_like(norm)
    if float(norm.max()) > _MOST_NORM or float(norm.min()) < _LEAST_NORM:
        scale = torch.where(norm > 0, norm, scale).log2().floor().clamp(-120, 120).exp2()
    return scale


def _added(bias: Tensor | None, response: Tensor) -> Tensor:
    """A bias with what a layer makes of what is subtracted from its input."""
    return (response if bias is None else bias.double() + response).float()
