"""How the input of every layer is quantised: its range, what is subtracted from it and multiplied with it first."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgecsi.compress.choose import with_outputs
from edgecsi.compress.quantize.weights import quantize_weight
from edgecsi.compress.recipe import Quantize, matches
from edgecsi.compress.watch import Look, rows_of_sequences, watching
from edgecsi.errors import DataError, NoLayer, Notice
from edgecsi.models.compressed.layers import evened
from edgecsi.models.compressed.ops import dynamic_codes
from edgecsi.ops.integers import EXACT, refuses_integers

_BATCH = 64
_KEPT_VALUES = 1 << 19  # of a layer's inputs, enough for a range
_KEPT_ROWS = 1 << 14  # of the sequences a dense layer is given, enough to see how its inputs differ
_PERCENTILE = 0.9999
_SHRINKS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3)  # of the full range
_TRIED_SAMPLES = 128
_FINE = (64, 32, 16, 8)  # steps of the second plane to one of the first
_LARGEST_PRODUCT = 255 * 127  # of a code and a weight
_LONGEST_SUM = 1 << 30  # of an integer layer
_GAIN_POWERS = (0.25, 0.5, 0.75, 0.9)
_WORTHWHILE_ERROR = 0.9  # of the error must be left at most for a centre or gain to be worth its bytes
_SAME = 2.0**-16  # of the largest input: what differs by less from sample to sample does not differ
_LEFT_BY_COMPENSATION = 0.3  # of what a rounded weight errs, once the errors of all inputs cancel


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


def kinds_of(step: Quantize) -> tuple[type[nn.Conv2d | nn.Linear], ...]:
    """What a step quantises: static takes convolutions too, the others dense layers only."""
    return (nn.Conv2d, nn.Linear) if step.mode == "static" else (nn.Linear,)


def layers_of(module: nn.Module, step: Quantize, example: Tensor) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers a step quantises, by name: those of its kinds that the network calls.

    Raises:
        RecipeError: there is none.
    """
    found = {
        name: part
        for name, (part, output) in with_outputs(module, kinds_of(step), example).items()
        if not matches(name, step.keep_fp32)
        and not (isinstance(part, nn.Conv2d) and not _is_computable(part, output))
    }
    if not found:
        raise NoLayer(
            "there is no layer to quantise",
            f"keep-fp32 = {list(step.keep_fp32)} leaves none that the network calls as a layer and reads nowhere else",
            "keep fewer layers, or take int8-static, which computes convolutions in int8 too",
        )
    return found


@torch.no_grad()
def calibrate(module: nn.Module, samples: Tensor, step: Quantize) -> dict[str, Input]:
    """Run samples ``[N, …]`` through the network and choose how every layer's input is quantised."""
    watched = layers_of(module, step, samples[:1])
    seen: dict[str, list[Tensor]] = {name: [] for name in watched}
    outputs: dict[str, torch.Size] = {}

    def note(name: str) -> Look:
        def look(x: Tensor, y: Tensor) -> None:
            outputs[name] = y.shape[1:]
            if isinstance(watched[name], nn.Conv2d) or rows_of_sequences(seen[name]) < _KEPT_ROWS:
                seen[name].append(x)

        return look

    module.eval()
    with watching(*((layer, note(name)) for name, layer in watched.items())):
        for part in torch.split(samples[: step.samples], _BATCH):
            module(part)
    found, constant = {}, []
    for name, layer in watched.items():
        x = torch.cat(seen.pop(name))
        if not bool(x.isfinite().all()):
            raise DataError(
                f"the input of {name} is NaN or infinite", "it cannot be quantised", "check the data"
            )
        own_range = step.mode != "static" or (isinstance(layer, nn.Linear) and matches(name, step.dynamic))
        method = None if own_range else step.calibration
        fine = _fine(layer, outputs[name]) if matches(name, step.wide) else 1
        given = Input()
        if method and len(x) > 1 and is_constant(x) and bool(x.any()):
            constant.append(name)
        if isinstance(layer, nn.Linear):
            used = (layer.weight != 0).any(0)
            x = x[..., used].flatten(0, -2)  # inputs that are pruned away have no say
            given = _evening(x, layer.weight[:, used], method, fine)
            x = given.evened(x)
            given = Input(_spread(given.centre, used, 0.0), _spread(given.gain, used, 1.0))
        found[name] = dataclasses.replace(given, range=_measured(x, method, fine) if method else None)
    if constant:
        warnings.warn(
            Notice(
                f"the input of {', '.join(constant)} is the same in all samples, so its range is a guess: give a network "
                "that is trained, and data that differ"
            ),
            stacklevel=2,
        )
    if step.calibration == "output" and step.mode == "static":
        _shrink(module, watched, found, samples[:_TRIED_SAMPLES])
    return found


def _is_computable(layer: nn.Conv2d, output: torch.Size) -> bool:
    """Whether there is a kernel for it in int8: they pad with zeros, and sums have to fit."""
    fits = _LARGEST_PRODUCT * layer.weight[0].numel() <= _longest_sum(layer, output)
    return layer.padding_mode == "zeros" and fits


def _fine(layer: nn.Conv2d | nn.Linear, output: torch.Size) -> int:
    """Steps of a second plane to one of the first: as many as sums have room for; 1 if they have none."""
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return 1
    largest, longest = _LARGEST_PRODUCT * layer.weight[0].numel(), _longest_sum(layer, output)
    return next((fine for fine in _FINE if largest * (fine + 1) <= longest), 1)


def _longest_sum(layer: nn.Conv2d | nn.Linear, output: torch.Size) -> int:
    """Of an integer layer, however it is computed: convolutions with strides, groups or few pixels by fp32 kernels."""
    if isinstance(layer, nn.Linear):
        return _LONGEST_SUM
    return EXACT if refuses_integers(layer.groups, layer.stride, output[-1]) else _LONGEST_SUM


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
    if weight.shape[1] == 0 or border == 0 or is_constant(x):
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
        made = even @ torch.lerp(exact, codes * scale[:, None], _LEFT_BY_COMPENSATION).T
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
        if min(errors) < _WORTHWHILE_ERROR * least:
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
    return round(mean, 2) if abs(mean) > 3 * deviation > 3 * _SAME * abs(mean) else 0.0


def is_constant(x: Tensor) -> bool:
    """Whether inputs ``[N, …]`` do not differ: what lies around them says nothing about the range of others."""
    return bool((x - x[0]).abs().max() <= _SAME * x.abs().max())


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
