"""Choose weight, codes and bias of a rounded layer by least squares, so that errors cancel in its output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgecsi.compress.least_squares import compensate, solve_rows
from edgecsi.compress.quantize.ranges import is_constant
from edgecsi.compress.quantize.rounded import Rounded
from edgecsi.compress.quantize.weights import quantize_weight
from edgecsi.compress.watch import gradients, rows_of_sequences, watching

_BATCH = 64
_FIT_POSITIONS, _FIT_SAMPLES = 1 << 16, 32  # of an image, enough to fit a layer with
_FIT_ROWS = 1 << 13  # of sequences, which hold many for every sample
_PROJECTIONS = 4  # random sums of the output whose gradients say how much an error weighs
_LEAST_IMPORTANCE = 1e-3  # that an error weighs, of the mean
_MOST_WEIGHTS_FOR_SCALES = 512  # weights of an output; with more of them no scale is lucky
_SCALES = tuple(
    1 + k / 32 for k in range(12)
)  # tried for each output of a convolution, of the least that holds it


def importance(reference: nn.Module, layers: Iterable[str], samples: Tensor) -> dict[str, Tensor]:
    """How much an error of a layer's output weighs in the network's, ``[N, P]``: of every sample and position.

    The mean square of the gradient of random sums of the output (a Gauss-Newton diagonal), which are divided by
    the output's power as the NMSE is. A peak that drives a sigmoid into saturation may err by far more than what
    lies around it.
    """
    generator = torch.Generator().manual_seed(0)

    def directions(y: Tensor) -> Iterator[Tensor]:
        flat = y.reshape(len(y), -1)
        power = (flat - flat.mean(1, keepdim=True)).square().sum(1, keepdim=True).clamp_min(1e-12)
        for _ in range(_PROJECTIONS):
            signs = torch.randint(0, 2, flat.shape, generator=generator) * 2.0 - 1
            yield (signs / power.sqrt()).reshape(y.shape)

    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    for rows in gradients(reference, found, torch.split(samples, _BATCH), directions):
        for name, row in rows.items():
            square = row.square().sum(0)
            image = square.ndim == 4 and not isinstance(reference.get_submodule(name), nn.Linear)
            found[name].append(
                square.flatten(2).mean(1) if image else square.flatten(0, -2).mean(1, keepdim=True)
            )
    weights = {name: torch.cat(parts) for name, parts in found.items()}
    return {name: (w / w.mean().clamp_min(1e-30)).clamp_min(_LEAST_IMPORTANCE) for name, w in weights.items()}


def fit(
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
    importance = importance[: len(x)]
    border = len(x) * 3 // 4
    check = _Moments(rounded, x[border:], y[border:], importance[border:])
    sums = check.sums
    if border and not is_constant(x):  # any weight gives what is wanted where all samples are one
        fit = _Moments(rounded, x[:border], y[:border], importance[:border])
        sums = [one + other for one, other in zip(fit.sums, check.sums, strict=True)]
        # rounding makes noise also where these few samples do not show it
        noise = rounded.step_of_input**2 / 12 * fit.count
        ridge = max(noise + 1e-9 * float(fit.xx.diagonal().mean()), 1e-12)  # an input may never vary
        xx = fit.xx + torch.eye(len(fit.xx), dtype=fit.xx.dtype) * ridge
        plain = layer.weight.flatten(1).double()
        _, scale = rounded.codes()
        best: _Candidate | None = None
        top = 2 ** (rounded.step.bits - 1) - 1
        thorough = isinstance(layer, nn.Linear)
        # Training rounds to nearest again, which few bits do not forgive a weight that relies on other errors.
        fitted = [] if rounded.step.epochs and rounded.step.bits < 8 else [solve_rows(plain, xx, fit.xy)]
        factors = _SCALES if not thorough and plain.shape[1] <= _MOST_WEIGHTS_FOR_SCALES else (1.0,)
        tried: list[tuple[Tensor, Tensor]] = []
        for weight in (plain, *fitted):
            least = torch.maximum(scale, quantize_weight(weight, rounded.step.bits)[1])
            if rounded.step.bits < 8:
                least = scale
            tried += [(weight, least * factor) for factor in factors]
        weights, sizes = (torch.cat(tensors) for tensors in zip(*tried, strict=True))
        together = torch.split(_compensated(weights, sizes, top, xx, thorough), len(plain))
        for (weight, size), compensated in zip(tried, together, strict=True):
            for codes in (_nearest(weight, size, top), compensated):
                errors = check.errors(codes * size.double()[:, None])
                best = _Candidate(errors, weight, codes, size).better_than(best, by_row=not thorough)
        assert best is not None
        layer.weight.copy_(best.weight.reshape(layer.weight.shape))
        rounded.chosen = best.codes.to(torch.int8).reshape(layer.weight.shape), best.size
    # the bias takes what is left of the mean error, for the weight as it is rounded
    x_sum, y_sum, total = sums
    codes, size = rounded.codes()
    bias = (y_sum / total - x_sum / total @ (codes.flatten(1).double() * size.double()[:, None]).T).T
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
    """What a rounded layer is given and what the fp32 one computes, of all samples or as many as say enough."""
    x_parts: list[Tensor] = []
    y_parts: list[Tensor] = []
    dense, enough = isinstance(rounded.layer, nn.Linear), None
    with watching((rounded, lambda x, _y: x_parts.append(x)), (original, lambda _x, y: y_parts.append(y))):
        for part in torch.split(samples, _BATCH):
            module(part)
            reference(part)
            if dense and rows_of_sequences(x_parts) >= _FIT_ROWS:
                break
            if y_parts[0].ndim == 4 and not dense and rounded.bias.ndim == 1:  # every position says the same
                enough = max(_FIT_POSITIONS // y_parts[0][0, 0].numel(), _FIT_SAMPLES)
                if sum(map(len, x_parts)) >= enough:
                    break
    x, y = torch.cat(x_parts), torch.cat(y_parts)
    return (x.flatten(0, -2), y.flatten(0, -2)) if dense else (x[:enough], y[:enough])


class _Moments:
    """Weighted sums over samples of a rounded layer's inputs, as patches, and the fp32 layer's outputs, less their
    means: of every position where the bias is a map, of all positions otherwise.

    Attributes:
        xx, xy: ``[K, K]`` and ``[K, O]``. count: sum of the weights.
        sums: of the inputs ``[P, K]``, the outputs ``[P, O]`` and the weights ``[P, 1]``.
    """

    def __init__(self, rounded: Rounded, inputs: Tensor, outputs: Tensor, weights: Tensor) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        self.xx, self.xy, x_sum, y_sum, total = zero, zero, zero, zero, zero
        parts = (torch.split(tensor, 32) for tensor in (inputs, outputs, weights))
        for part, y, w in zip(*parts, strict=True):
            x = rounded.patches(part).double().contiguous()
            y = (
                (y.flatten(2).transpose(1, 2) if y.ndim == 4 else y.flatten(0, -2)[:, None])
                .double()
                .contiguous()
            )
            w = w[:, :, None].double()
            weighted = x * w
            flat = weighted.flatten(0, 1).T
            self.xx, self.xy = self.xx + flat @ x.flatten(0, 1), self.xy + flat @ y.flatten(0, 1)
            x_sum, y_sum, total = x_sum + weighted.sum(0), y_sum + (y * w).sum(0), total + w.sum(0)
        self.count = float(total.sum())
        if rounded.bias.ndim == 1:
            x_sum, y_sum, total = (tensor.sum(0, keepdim=True) for tensor in (x_sum, y_sum, total))
        self.sums = [x_sum, y_sum, total]
        self.xx = self.xx - x_sum.T @ (x_sum / total)
        self.xy = self.xy - x_sum.T @ (y_sum / total)

    def errors(self, weight: Tensor) -> Tensor:
        """Squared error of every output ``[O]`` with this weight ``[O, K]``, up to a constant."""
        return ((weight @ self.xx) * weight).sum(1) - 2 * (weight.T * self.xy).sum(0)
