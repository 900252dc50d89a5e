"""Quantisation: batch normalisation folded, ranges calibrated, layers replaced by their integer form.

Inputs of a CSI network lie around 0.5 with a deviation of a few hundredths. The error of an int8 weight times
0.5 would drown the signal, so such a constant is subtracted before quantising and its exact response goes
into the bias: for a padded convolution as a map, because the response differs at the border.

Further in, images are mostly background: large values that hardly differ from sample to sample. Rounding them
makes an error that hardly differs either, so it is measured and taken back through the bias (Nagel et al.,
arXiv 1906.04721), position by position where an image has so few channels that a map of it costs next to
nothing. And a trained dense layer has large weights on inputs that never vary, which rounding makes vary. So
each layer is fitted anew, by least squares, to give the fp32 network's output from the rounded input, and its
weights are rounded so that their errors cancel.

Three things make a step finer. The inputs of a dense layer behind an image differ in size by orders of magnitude, few
delay taps hold the energy: from each its mean is subtracted, they are multiplied with a gain each, and the weights
divided by it (Xiao et al., arXiv 2211.10438). The channels between two convolutions are brought to one range
(:func:`equalise`). And a layer may take its input in two planes of codes, `wide` in a recipe.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgecsi.compress.recipe import Quantize, matches
from edgecsi.compress.reconstruct import compensate, solve_rows
from edgecsi.compress.watch import Look, gradients, in_order, watching
from edgecsi.errors import DataError, ModelError, RecipeError
from edgecsi.models.compressed.layers import (
    CompressedLayer,
    DynamicLinear,
    StaticConv2d,
    StaticLinear,
    WeightOnlyLinear,
    evened,
)
from edgecsi.models.compressed.ops import dynamic_codes

_BATCH = 64
_KEPT_VALUES = 1 << 19  # of a layer's inputs, enough for a range
_PERCENTILE = 0.9999
_SHRINKS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3)  # of the full range
_TRIED_SAMPLES = 128
_MAP_BYTES = 8192  # a bias may be a map of [O, H, W] if it takes no more: two channels of a CSI image
_FIT_POSITIONS, _FIT_SAMPLES = 1 << 16, 32  # of an image, enough to fit a layer with
_PROJECTIONS = 4  # random sums of the output whose gradients say how much an error weighs
_LEAST = 1e-3  # that an error weighs, of the mean
_FINE = (64, 32, 16, 8)  # steps of the second plane to one of the first
_LONGEST_SUM = 1 << 30  # of an integer layer
_GAIN_POWERS = (0.25, 0.5, 0.75, 0.9)
_WORTH = 0.9  # of the error must be left at most for a centre or gain to be worth its bytes
_LEFT = 0.3  # of what a rounded weight errs, once the errors of all inputs cancel
_PACE = 6.0  # how much faster than a weight the step of an input trains
_FEW = 512  # weights of an output; with more of them no scale is lucky
_SCALES = tuple(
    1 + k / 32 for k in range(12)
)  # tried for each output of a convolution, of the least that holds it
_BIAS_UNITS = 1 << 24  # a bias keeps at least float32's precision, and stays far from int32's end


@dataclass(frozen=True)
class Range:
    """How a layer's input is quantised, with the names of :class:`edgecsi.ops.operators.Quant` and `QuantizeWide`."""

    scale: float
    zero_point: int
    offset: float
    fine: int = 1

    def rounded(self, x: Tensor) -> Tensor:
        """What is left of an input after quantisation."""
        steps = ((x - self.offset) / self.scale * self.fine).round_().div_(self.fine)
        return steps.clamp_(-self.zero_point, 255 - self.zero_point) * self.scale + self.offset


@dataclass(frozen=True)
class Input:
    """What is subtracted from a layer's input first and what it is multiplied with then, float32 ``[I]``, and how it is
    quantised, if static."""

    centre: Tensor | None = None
    gain: Tensor | None = None
    range: Range | None = None

    def evened(self, x: Tensor) -> Tensor:
        """The input as it is quantised."""
        return evened(x, self.centre, self.gain)

    def restored(self, x: Tensor) -> Tensor:
        """What :func:`evened` was given."""
        x = x if self.gain is None else x / self.gain
        return x if self.centre is None else x + self.centre


def layers_of(module: nn.Module, step: Quantize) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers a step quantises, by name: static takes convolutions too, the others dense layers only."""
    kinds = (nn.Conv2d, nn.Linear) if step.mode == "static" else (nn.Linear,)
    found = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, kinds) and not matches(name, step.keep_fp32)
    }
    if not found:
        raise RecipeError(
            "there is no layer to quantise",
            f"keep-fp32 = {list(step.keep_fp32)} leaves none, or the network has none",
            "keep fewer layers",
        )
    return found


def fold_batch_norm(module: nn.Module, example: Tensor) -> None:
    """Multiply every batch normalisation behind a convolution into it, in place; an Identity is left.

    Which follows which is seen by running the network once. A network that this would change is left as it
    is.

    Raises:
        ModelError: the folded network computes something else (a convolution used twice, for instance).
    """
    made_by: dict[int, nn.Conv2d] = {}
    kept: list[Tensor] = []  # alive, so that ids are not used again
    pairs: dict[str, nn.Conv2d] = {}

    def after_convolution(conv: nn.Module, _inputs: Any, output: Tensor) -> None:
        kept.append(output)
        made_by[id(output)] = conv  # type: ignore[assignment]

    def before_norm(name: str) -> Callable[..., None]:
        def look(_norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if id(inputs[0]) in made_by:
                pairs[name] = made_by[id(inputs[0])]

        return look

    hooks = [
        part.register_forward_hook(after_convolution)
        for part in module.modules()
        if isinstance(part, nn.Conv2d)
    ] + [
        part.register_forward_pre_hook(before_norm(name))
        for name, part in module.named_modules()
        if isinstance(part, nn.BatchNorm2d) and part.running_var is not None
    ]
    module.eval()
    try:
        with torch.no_grad():
            before = module(example)
    finally:
        for hook in hooks:
            hook.remove()
    for name, conv in pairs.items():
        _fold(conv, module.get_submodule(name))  # type: ignore[arg-type]
        module.set_submodule(name, nn.Identity())
    with torch.no_grad():
        after = module(example)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-4 * max(1.0, float(before.abs().max()))):
        raise ModelError(
            "batch normalisation cannot be folded",
            f"the network's output would change by {float((before - after).abs().max()):.2g}",
            "let every convolution feed its normalisation alone, and use it once",
        )


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        factor = torch.rsqrt(norm.running_var.double() + norm.eps)
        shift = -norm.running_mean.double() * factor
        if conv.bias is not None:
            shift += conv.bias.double() * factor
        if norm.affine:
            factor, shift = factor * norm.weight, shift * norm.weight + norm.bias
        conv.weight.copy_(conv.weight * factor[:, None, None, None])
        conv.bias = nn.Parameter(shift.float())


@torch.no_grad()
def equalise(module: nn.Module, layers: Mapping[str, nn.Module], samples: Tensor) -> None:
    """Bring the channels between two convolutions to one range, in place; the network computes the same.

    A step is as fine as the widest channel allows. What a channel is divided by behind one convolution, the next one
    multiplies it with; a (leaky) ReLU between them does not mind (Nagel et al., arXiv 1906.04721).

    Args:
        layers: those that are quantised, by name. samples: inputs, float32 ``[N, …]``.
    """
    kept: list[Tensor] = []  # alive, so that ids are not used again
    made_by: dict[int, str] = {}
    pairs: dict[str, list[str]] = {}
    peaks: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def look(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            kept.append(output)
            source = made_by.get(id(inputs[0]))
            if isinstance(part, nn.Conv2d):
                made_by[id(output)] = name
                if source is not None:
                    pairs.setdefault(source, []).append(name)
                    peaks[source] = inputs[0].abs().amax((0, 2, 3))
            elif source is not None:
                made_by[id(output)] = source

        return look

    hooks = [
        part.register_forward_hook(note(name))
        for name, part in module.named_modules()
        if isinstance(part, nn.ReLU | nn.LeakyReLU | nn.Conv2d)
    ]
    try:
        before = module(samples)
    finally:
        for hook in hooks:
            hook.remove()
    for name, readers in pairs.items():
        first, second = layers.get(name), layers.get(readers[0])
        if not isinstance(first, nn.Conv2d) or not isinstance(second, nn.Conv2d) or len(readers) > 1:
            continue
        if second.groups > 1:
            continue
        peak = peaks[name].clamp_min(1e-6 * float(peaks[name].max()) + 1e-30)
        gain = peak.log().mean().exp() / peak
        _scale_channels(first, second, gain)
        after = module(samples)
        if not torch.allclose(before, after, rtol=1e-3, atol=1e-4 * max(1.0, float(before.abs().max()))):
            _scale_channels(first, second, 1 / gain)  # something else reads them too


def _scale_channels(first: nn.Conv2d, second: nn.Conv2d, gain: Tensor) -> None:
    first.weight.mul_(gain[:, None, None, None])
    if first.bias is not None:
        first.bias.mul_(gain)
    second.weight.div_(gain[:, None, None])


@torch.no_grad()
def calibrate(module: nn.Module, samples: Tensor, step: Quantize) -> dict[str, Input]:
    """Run samples ``[N, …]`` through the network and choose how every layer's input is quantised."""
    watched = layers_of(module, step)
    seen: dict[str, list[Tensor]] = {name: [] for name in watched}

    def note(name: str) -> Look:
        return lambda x, _y: seen[name].append(x)

    module.eval()
    with watching(*((layer, note(name)) for name, layer in watched.items())):
        for part in torch.split(samples[: step.samples], _BATCH):
            module(part)
    found = {}
    for name, layer in watched.items():
        if not seen[name]:
            raise ModelError(f"{name} is never used", "so its range is not known", "add it to keep-fp32")
        x = torch.cat(seen.pop(name))
        if not bool(x.isfinite().all()):
            raise DataError(
                f"the input of {name} is NaN or infinite", "it cannot be quantised", "check the data"
            )
        own_range = step.mode != "static" or (isinstance(layer, nn.Linear) and matches(name, step.dynamic))
        method = None if own_range else step.calibration
        fine = _fine(layer) if matches(name, step.wide) else 1
        given = Input()
        if isinstance(layer, nn.Linear):
            used = (layer.weight != 0).any(0)
            x = x[..., used].flatten(0, -2)  # inputs that are pruned away have no say
            given = _evening(x, layer.weight[:, used], method, fine)
            x = given.evened(x)
            given = Input(_spread(given.centre, used, 0.0), _spread(given.gain, used, 1.0))
        found[name] = dataclasses.replace(given, range=_measured(x, method, fine) if method else None)
    if step.calibration == "output" and step.mode == "static":
        _shrink(module, watched, found, samples[:_TRIED_SAMPLES])
    return found


def _fine(layer: nn.Conv2d | nn.Linear) -> int:
    """Steps of a second plane to one of the first: as many as sums have room for; 1 if they have none."""
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return 1
    largest = 255 * 127 * layer.weight[0].numel()
    return next((fine for fine in _FINE if largest * (fine + 1) <= _LONGEST_SUM), 1)


def _measured(x: Tensor, method: str, fine: int) -> Range:
    """The range of an input, in two planes if `fine` is above 1."""
    offset = _offset(x)
    low, high = _limits(x - offset, method, fine)
    found = _range(low, high, offset, fine)
    if fine == 1:
        return found
    # what the first plane leaves over may be of either sign, also where the input is not
    zero = min(max(found.zero_point, fine // 2), 255 - fine // 2)
    scale = max(found.zero_point / zero, (255 - found.zero_point) / (255 - zero)) * found.scale
    return dataclasses.replace(found, scale=scale, zero_point=zero)


def _evening(x: Tensor, weight: Tensor, method: str | None, fine: int) -> Input:
    """The centre and gain that make inputs ``[N, I]`` more alike, each only if it is worth it.

    Found from three quarters of the samples and judged by the others, which may lie outside a range.

    Args:
        weight: ``[O, I]``. method: of calibration; None if every sample has its own range. fine: see :class:`Range`.
    """
    border = len(x) * 3 // 4
    if weight.shape[1] == 0 or border == 0:
        return Input()
    x, unseen = x[:border], x[border:]
    wanted = unseen @ weight.T
    wanted -= wanted.mean(0)

    def error(given: Input) -> float:
        even = given.evened(unseen)
        if method is None:
            codes, zero, unit = dynamic_codes(even)
            even = (codes - zero) * unit
        else:
            even = _measured(given.evened(x), method, fine).rounded(even)
        exact = weight if given.gain is None else weight / given.gain
        codes, scale = quantize_weight(exact)
        made = even @ torch.lerp(exact, codes * scale[:, None], _LEFT).T
        # what does not differ from sample to sample is taken back through the bias
        return float((made - made.mean(0) - wanted).square().sum())

    def gains(centre: Tensor | None) -> list[Input]:
        sizes = Input(centre).evened(x).square().mean(0).sqrt()
        sizes = sizes.clamp_min(1e-3 * float(sizes.max()) + 1e-30) / sizes.max().clamp_min(1e-30)
        return [Input(centre, sizes**-power) for power in _GAIN_POWERS]

    mean = x.mean(0)
    best, least = Input(), error(Input())
    for tried in ([Input(mean)], gains(None), gains(mean)):
        errors = [error(given) for given in tried]
        if min(errors) < _WORTH * least:
            least = min(errors)
            best = tried[errors.index(least)]
    return best


def _spread(values: Tensor | None, used: Tensor, other: float) -> Tensor | None:
    """Values of the used inputs, and another for the rest."""
    if values is None:
        return None
    every = torch.full(used.shape, other)
    every[used] = values
    return every


def _range(low: float, high: float, offset: float, fine: int = 1) -> Range:
    """255 steps from low to high; zero is a code, padding and pruned inputs rely on it."""
    scale = max(high - low, 1e-8) / 255
    return Range(scale, min(max(round(-low / scale), 0), 255), offset, fine)


def _shrink(
    module: nn.Module, layers: Mapping[str, nn.Module], found: dict[str, Input], samples: Tensor
) -> None:
    """Narrow every range, with the one layer's input rounded, to where the network's output errs least.

    A few strong inputs may be clipped to round all others finer; how much only the output can tell.
    """
    wanted = module(samples)
    for name, layer in layers.items():
        given, best = found[name], float("inf")
        full = given.range
        if full is None:
            continue
        for share in _SHRINKS:
            tried = dataclasses.replace(full, scale=full.scale * share)
            hook = layer.register_forward_pre_hook(
                lambda _l, x, tried=tried, given=given: (given.restored(tried.rounded(given.evened(x[0]))),)
            )
            try:
                error = float((module(samples) - wanted).square().mean())
            finally:
                hook.remove()
            if error < best:
                best, found[name] = error, dataclasses.replace(given, range=tried)


def _offset(x: Tensor) -> float:
    """The constant that the values lie around, or 0 if they are spread wider than they are far from it."""
    if x.numel() == 0:
        return 0.0
    mean, deviation = float(x.mean()), float(x.std()) if x.numel() > 1 else 0.0
    return round(mean, 2) if abs(mean) > 3 * deviation else 0.0


def _limits(x: Tensor, method: str, fine: int) -> tuple[float, float]:
    if x.numel() == 0:
        return 0.0, 1.0
    values = x.flatten()
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if len(values) > _KEPT_VALUES:
        chosen = torch.randint(len(values), (_KEPT_VALUES,), generator=torch.Generator().manual_seed(0))
        values = values[chosen]
    if method in ("minmax", "output"):
        return low, high
    if method == "percentile":
        ordered = values.sort().values
        last = len(ordered) - 1
        return (
            min(float(ordered[round((1 - _PERCENTILE) * last)]), 0.0),
            max(float(ordered[round(_PERCENTILE * last)]), 0.0),
        )
    best, chosen_limits = float("inf"), (low, high)
    for shrink in torch.linspace(1.0, 0.3, 29).tolist():
        error = float(
            (_range(low * shrink, high * shrink, 0.0, fine).rounded(values) - values).square().mean()
        )
        if error < best:
            best, chosen_limits = error, (low * shrink, high * shrink)
    return chosen_limits


def quantize_weight(weight: Tensor, bits: int = 8, floor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Symmetric codes per output: int8 ``[O, …]`` in ±(2^(bits-1) - 1), and their scale, float32 ``[O]``.

    Below 8 bits the scale is the one, of 20 shrunk ones, with the least squared error. Zeros stay zeros. A
    scale is at least `floor`, ``[O]``.
    """
    top = 2 ** (bits - 1) - 1
    flat = weight.detach().flatten(1).float()
    scale = flat.abs().amax(1) / top
    if bits < 8:
        scales = [scale * shrink for shrink in torch.linspace(1.0, 0.4, 20).tolist()]
        errors = [
            ((flat / _column(s)).round_().clamp_(-top, top) * _column(s) - flat).square().sum(1)
            for s in scales
        ]
        scale = torch.stack(scales)[torch.stack(errors).argmin(0), torch.arange(len(scale))]
    if floor is not None:
        scale = torch.maximum(scale, floor.float())
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = (flat / _column(scale)).round_().clamp_(-top, top)
    return codes.to(torch.int8).reshape(weight.shape), scale


def _column(scale: Tensor) -> Tensor:
    return scale.clamp_min(1e-30)[:, None]


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
                functional.pad(constant, _four_sides(layer)), layer.weight.detach().double(), None,
                layer.stride, 0, layer.dilation, layer.groups
            )  # fmt: skip
            if 4 * shapes[1][1:].numel() <= _MAP_BYTES:
                bias = response[0] + bias[:, None, None]
            else:
                self.border = response[0].float()
        layer.bias = None
        self.bias = nn.Parameter(bias.float())
        self.log_scale = nn.Parameter(
            torch.tensor(0.0 if measured is None else math.log(measured.scale) / _PACE)
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
            functional.pad(x, _four_sides(layer)), weight, None, layer.stride, 0, layer.dilation, layer.groups
        )
        return y + self._whole_bias()

    def patches(self, x: Tensor) -> Tensor:
        """What the integer layer multiplies with its weights, less the offset: ``[N, P, K]``, P positions."""
        x = self._seen(x)
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return x.flatten(0, -2)[:, None]
        padded = functional.pad(x, _four_sides(layer))
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
        left, right, top, bottom = _four_sides(layer)
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
        return (self.log_scale * _PACE).exp()

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


def _four_sides(conv: nn.Conv2d) -> tuple[int, int, int, int]:
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


@torch.no_grad()
def start_rounding(module: nn.Module, step: Quantize, samples: Tensor | None, example: Tensor) -> None:
    """Make the network compute with rounded weights and inputs, in place, as accurately as data allows.

    Args:
        samples: float32 ``[N, …]`` to find ranges and mean errors with; may be missing unless static.
        example: one input, to see the network's structure with.

    Raises:
        RecipeError: nothing to quantise. DataError: static without samples, or with bad ones.
    """
    fold_batch_norm(module, example)
    if samples is None or len(samples) == 0:
        if step.mode == "static":
            raise DataError(
                "static quantisation needs calibration data",
                "the range of every layer's input is measured on it",
                "give --calib DATA, or use int8-dynamic",
            )
        for name, dense in layers_of(module, step).items():
            module.set_submodule(name, Rounded(dense, step, Input()))
        return
    samples = samples[: step.samples]
    if step.mode == "static":
        equalise(module, layers_of(module, step), samples[:_TRIED_SAMPLES])
    found = {} if step.mode == "weights" else calibrate(module, samples, step)
    reference = copy.deepcopy(module)
    layers = layers_of(module, step)
    # in the order of the network, so that a layer also makes up for what is left of the errors before it
    order = in_order(module, layers, samples[:1])
    importance = _importance(reference, order, samples)
    for name, size in order.items():
        rounded = Rounded(layers[name], step, found.get(name, Input()), size)
        module.set_submodule(name, rounded)
        _fit(rounded, reference.get_submodule(name), module, reference, samples, importance[name])
        if isinstance(rounded.layer, nn.Linear):
            rounded.chosen = None if step.epochs else rounded.chosen  # the weight is going to move
        else:
            # A convolution has so few weights that moving one by a step is felt: the codes that were chosen
            # together stay, and training fits the biases, the steps and the dense layers to them.
            rounded.layer.weight.requires_grad_(False)


def _importance(reference: nn.Module, layers: Iterable[str], samples: Tensor) -> dict[str, Tensor]:
    """How much an error of a layer's output weighs in the network's, ``[N, P]``: of every sample and position.

    The mean square of the gradient of random sums of the output (a Gauss-Newton diagonal), which are divided by
    the output's power as the NMSE is. A peak that drives a sigmoid into saturation may err by far more than what
    lies around it.
    """
    generator = torch.Generator().manual_seed(0)

    def directions(y: Tensor) -> Iterator[Tensor]:
        flat = y.flatten(1)
        power = (flat - flat.mean(1, keepdim=True)).square().sum(1, keepdim=True).clamp_min(1e-12)
        for _ in range(_PROJECTIONS):
            signs = torch.randint(0, 2, flat.shape, generator=generator) * 2.0 - 1
            yield (signs / power.sqrt()).reshape(y.shape)

    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    for rows in gradients(reference, found, torch.split(samples, _BATCH), directions):
        for name, row in rows.items():
            square = row.square().sum(0)
            image = square.ndim == 4
            found[name].append(
                square.flatten(2).mean(1) if image else square.flatten(0, -2).mean(1, keepdim=True)
            )
    weights = {name: torch.cat(parts) for name, parts in found.items()}
    return {name: (w / w.mean().clamp_min(1e-30)).clamp_min(_LEAST) for name, w in weights.items()}


def _fit(
    rounded: Rounded,
    original: nn.Module,
    module: nn.Module,
    reference: nn.Module,
    samples: Tensor,
    importance: Tensor,
) -> None:
    """Choose weight, codes and bias so that the layer's output is the reference network's, in the least squares,
    every sample and position with its importance ``[N, P]``.

    What is chosen from three quarters of the samples can be worse for all others, so the last quarter decides
    between the weight as it is and the fitted one, each rounded to nearest and with compensation. Zeros stay.
    """
    layer = rounded.layer
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return
    x, y = _inputs_and_outputs(rounded, original, module, reference, samples)
    if rounded.border is not None:
        y = y - rounded.border
    if rounded.bias.ndim == 1 and y.ndim == 4:  # every position says the same
        enough = max(_FIT_POSITIONS // y[0, 0].numel(), _FIT_SAMPLES)
        x, y, importance = x[:enough], y[:enough], importance[:enough]
    border = len(x) * 3 // 4
    if border:
        fit = _Moments(rounded, x[:border], y[:border], importance[:border])
        check = _Moments(rounded, x[border:], y[border:], importance[border:])
        # rounding makes noise also where these few samples do not show it
        noise = rounded.step_of_input**2 / 12 * fit.count
        xx = fit.xx + torch.eye(len(fit.xx), dtype=fit.xx.dtype) * (
            noise + 1e-9 * float(fit.xx.diagonal().mean())
        )
        plain = layer.weight.flatten(1).double()
        _, scale = rounded.codes()
        best: _Candidate | None = None
        top = 2 ** (rounded.step.bits - 1) - 1
        thorough = isinstance(layer, nn.Linear)
        # Training rounds to nearest again, which few bits do not forgive a weight that relies on other errors.
        fitted = [] if rounded.step.epochs and rounded.step.bits < 8 else [solve_rows(plain, xx, fit.xy)]
        for weight in (plain, *fitted):
            least = torch.maximum(scale, quantize_weight(weight, rounded.step.bits)[1])
            if rounded.step.bits < 8:
                least = scale
            for factor in _SCALES if not thorough and weight.shape[1] <= _FEW else (1.0,):
                size = least * factor
                for codes in (_nearest(weight, size, top), _compensated(weight, size, top, xx, thorough)):
                    errors = check.errors(codes * size.double()[:, None])
                    best = _Candidate(errors, weight, codes, size).better_than(best, by_row=not thorough)
        assert best is not None
        layer.weight.copy_(best.weight.reshape(layer.weight.shape))
        rounded.chosen = best.codes.to(torch.int8).reshape(layer.weight.shape), best.size
    # the bias takes what is left of the mean error, for the weight as it is rounded
    whole = _Moments(rounded, x, y, importance)
    codes, size = rounded.codes()
    bias = (whole.y_mean - whole.x_mean @ (codes.flatten(1).double() * size.double()[:, None]).T).T
    rounded.bias.copy_(bias.reshape(rounded.bias.shape))


@dataclass(frozen=True)
class _Candidate:
    """A way to round a weight ``[O, K]``: squared error of each output, the weight, its codes and their scale ``[O]``."""

    errors: Tensor
    weight: Tensor
    codes: Tensor
    size: Tensor

    def better_than(self, other: _Candidate | None, by_row: bool) -> _Candidate:
        """The better one, for every output or for all together."""
        if other is None:
            return self
        if not by_row:
            return self if float(self.errors.sum()) < float(other.errors.sum()) else other
        better = self.errors < other.errors
        column = better[:, None]
        return _Candidate(
            torch.where(better, self.errors, other.errors),
            torch.where(column, self.weight, other.weight),
            torch.where(column, self.codes, other.codes),
            torch.where(better, self.size, other.size),
        )


def _nearest(weight: Tensor, scale: Tensor, top: int) -> Tensor:
    return (weight / scale.double()[:, None]).round().clamp(-top, top)


def _compensated(weight: Tensor, scale: Tensor, top: int, xx: Tensor, thorough: bool) -> Tensor:
    """Codes ``[O, K]`` whose errors cancel."""
    unit = scale.double()

    def nearest(values: Tensor, rows: Tensor) -> Tensor:
        return (values / unit[rows]).round().clamp(-top, top) * unit[rows]

    return (compensate(weight, xx, nearest, thorough) / unit[:, None]).round()


def _inputs_and_outputs(
    rounded: Rounded, original: nn.Module, module: nn.Module, reference: nn.Module, samples: Tensor
) -> tuple[Tensor, Tensor]:
    """What a rounded layer is given and what the fp32 one computes, of all samples."""
    x_parts: list[Tensor] = []
    y_parts: list[Tensor] = []
    with watching((rounded, lambda x, _y: x_parts.append(x)), (original, lambda _x, y: y_parts.append(y))):
        for part in torch.split(samples, _BATCH):
            module(part)
            reference(part)
    return torch.cat(x_parts), torch.cat(y_parts)


class _Moments:
    """Weighted sums over samples of a rounded layer's inputs, as patches, and the fp32 layer's outputs, less their
    means: of every position where the bias is a map, of all positions otherwise.

    Attributes:
        xx, xy: ``[K, K]`` and ``[K, O]``. x_mean, y_mean: ``[P, K]`` and ``[P, O]``. count: sum of the weights.
    """

    def __init__(self, rounded: Rounded, inputs: Tensor, outputs: Tensor, weights: Tensor) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        self.xx, self.xy, x_sum, y_sum, total = zero, zero, zero, zero, zero
        parts = (torch.split(tensor, 32) for tensor in (inputs, outputs, weights))
        for part, y, w in zip(*parts, strict=True):
            x = rounded.patches(part).double()
            y = (y.flatten(2).transpose(1, 2) if y.ndim == 4 else y.flatten(0, -2)[:, None]).double()
            w = w[:, :, None].double()
            weighted = (x * w).flatten(0, 1)
            self.xx, self.xy = self.xx + weighted.T @ x.flatten(0, 1), self.xy + weighted.T @ y.flatten(0, 1)
            x_sum, y_sum, total = x_sum + (x * w).sum(0), y_sum + (y * w).sum(0), total + w.sum(0)
        self.count = float(total.sum())
        if rounded.bias.ndim == 1:
            x_sum, y_sum, total = (tensor.sum(0, keepdim=True) for tensor in (x_sum, y_sum, total))
        self.x_mean, self.y_mean = x_sum / total, y_sum / total
        self.xx = self.xx - x_sum.T @ self.x_mean
        self.xy = self.xy - x_sum.T @ self.y_mean

    def errors(self, weight: Tensor) -> Tensor:
        """Squared error of every output ``[O]`` with this weight ``[O, K]``, up to a constant."""
        return ((weight @ self.xx) * weight).sum(1) - 2 * (weight.T * self.xy).sum(0)


@torch.no_grad()
def finish_rounding(module: nn.Module) -> None:
    """Replace what :func:`start_rounding` put in by integer layers, in place."""
    for name, part in list(module.named_modules()):
        if isinstance(part, Rounded):
            module.set_submodule(name, part.integer())


def quantize(module: nn.Module, step: Quantize, samples: Tensor | None, example: Tensor) -> nn.Module:
    """Replace the layers of a trained network by their integer form, in place, without training.

    Arguments and errors are those of :func:`start_rounding`.
    """
    start_rounding(module, step, samples, example)
    finish_rounding(module)
    return module.eval()
