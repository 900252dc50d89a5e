"""Dense layers as least-squares problems: what their weights should be on some of the inputs, and how to round them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from edgecsi.compress.watch import watching

_SWEEPS = 4  # over all weights after rounding; more change next to nothing
_BATCH = 100
_BLOCK = 64  # inputs


@dataclass
class Moments:
    """Covariance of a layer's inputs ``[I, I]``, with the wanted outputs ``[I, O]``, and means; float64.

    ``xx`` has ``noise`` added to its diagonal; ``count`` inputs were seen.
    """

    xx: Tensor
    xy: Tensor
    x_mean: Tensor
    y_mean: Tensor
    noise: float
    count: int = 0

    @cached_property
    def basis(self) -> Tensor:
        """``[I, R]`` whose product with its own transpose is ``xx`` less the noise, up to a thousandth of the
        noise: inputs that lie on few dimensions make R much smaller than I."""
        values, vectors = torch.linalg.eigh(self.xx)
        values = values - self.noise
        used = values > 1e-3 * self.noise
        basis: Tensor = vectors[:, used] * values[used].sqrt()
        return basis


@torch.no_grad()
def moments_of(module: nn.Module, reference: nn.Module, name: str, samples: Tensor) -> Moments:
    """Of the inputs as they are in `module` and the outputs as they were in `reference`."""
    layer, original = module.get_submodule(name), reference.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    assert isinstance(original, nn.Linear)
    x_parts: list[Tensor] = []
    y_parts: list[Tensor] = []
    with watching((layer, lambda x, _y: x_parts.append(x)), (original, lambda _x, y: y_parts.append(y))):
        for part in torch.split(samples, _BATCH):
            module(part)
            if reference is not module:
                reference(part)
    x = torch.cat(x_parts).flatten(0, -2).double()
    y = torch.cat(y_parts).flatten(0, -2).double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    xx, xy = x.T @ x / len(x), x.T @ y / len(x)
    # as much noise as rounding to 8 bits makes: what survives that is also ready to be quantised
    step = float(x.max() - x.min()) / 255
    noise = step**2 / 12 + 1e-12
    xx.diagonal().add_(noise)
    return Moments(xx, xy, x_mean, y_mean, noise, len(x))


def solve(moments: Moments, used: Tensor | None, outputs: slice | None = None) -> tuple[Tensor, Tensor]:
    """Best weights ``[O, len(used)]`` on some of the inputs, and the diagonal of the inverse covariance."""
    xx = moments.xx if used is None else moments.xx[used][:, used]
    factor = torch.linalg.cholesky(xx)
    inverse = torch.cholesky_inverse(factor)
    return (inverse @ _wanted(moments, used, outputs)).T, inverse.diagonal()


def solve_by_basis(moments: Moments, used: Tensor, outputs: slice) -> tuple[Tensor, Tensor]:
    """As :func:`solve`, through the few dimensions that the inputs lie on (Woodbury's identity)."""
    basis = moments.basis[used]
    small = basis.T @ basis
    small.diagonal().add_(moments.noise)
    factor = torch.linalg.cholesky(small)
    turned = torch.linalg.solve_triangular(factor, basis.T, upper=False)
    wanted = _wanted(moments, used, outputs)
    weight = (wanted - turned.T @ (turned @ wanted)) / moments.noise
    return weight.T, (1 - turned.square().sum(0)) / moments.noise


def _wanted(moments: Moments, used: Tensor | None, outputs: slice | None) -> Tensor:
    xy = moments.xy if used is None else moments.xy[used]
    return xy if outputs is None else xy[:, outputs]


def solve_rows(weight: Tensor, xx: Tensor, xy: Tensor) -> Tensor:
    """Least-squares weight ``[O, K]`` with the zeros of `weight`, from ``xx [K, K]`` and ``xy [K, O]``."""
    fitted = torch.zeros_like(weight)
    for rows, columns in _supports(weight):
        solution = torch.linalg.solve(xx[columns][:, columns], xy[columns][:, rows])
        fitted[rows[:, None], columns] = solution.T
    return fitted


def compensate(
    weight: Tensor, xx: Tensor, nearest: Callable[[Tensor, Tensor], Tensor], thorough: bool = True
) -> Tensor:
    """Round a weight ``[O, K]`` so that the errors cancel in the output. Zeros stay.

    Input by input, the inputs that follow make up for each error (Frantar et al., arXiv 2210.17323).

    Args:
        xx: covariance of the inputs ``[K, K]``. nearest: (values, numbers of their rows) -> rounded values.
        thorough: take the strongest inputs first, and then every weight anew, given all others, a few times over.
            What that gains on the few weights of a convolution is the noise of the samples.
    """
    result = torch.zeros_like(weight)
    order = xx.diagonal().argsort(descending=True) if thorough else torch.arange(len(xx))
    for rows, used in _supports(weight[:, order]):
        columns = order[used]
        inverse = torch.linalg.inv(xx[columns][:, columns])
        factor = torch.linalg.cholesky((inverse + inverse.T) / 2, upper=True)
        left = weight[rows][:, columns].T.contiguous()
        found = torch.empty_like(left)
        for part in _blocks(len(columns)):
            near, errors = left[part], torch.empty_like(left[part])
            for i, row in enumerate(factor[part, part]):
                value = nearest(near[i], rows)
                errors[i] = (near[i] - value) / row[i]
                near[i:].addr_(row[i:], errors[i], alpha=-1)
                found[part.start + i] = value
            left[part.stop :] -= factor[part, part.stop :].T @ errors
        result[rows[:, None], columns] = found.T
    if not thorough:
        return result
    every, kept = torch.arange(len(weight)), (weight != 0).T[order]
    again, xx = result.T[order], xx[order][:, order]
    error = xx.T @ (weight.T[order] - again)
    for _ in range(_SWEEPS):
        before = again.clone()
        for part in _blocks(len(order)):
            near = error[part].clone()
            for i, row in enumerate(xx[part, part]):
                value = again[part.start + i]
                wanted = nearest(value + near[i] / row[i], every) * kept[part.start + i]
                near.addr_(row, value - wanted)
                again[part.start + i] = wanted
            error += xx[part].T @ (before[part] - again[part])
        if torch.equal(before, again):
            break
    result[:, order] = again.T
    return result


def _blocks(count: int) -> Iterator[slice]:
    """Inputs, some at a time: what their errors mean to all others is a product of matrices."""
    for start in range(0, count, _BLOCK):
        yield slice(start, min(start + _BLOCK, count))


def _supports(weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows that have their zeros in the same places: (row numbers, numbers of the columns they use)."""
    patterns, which = torch.unique(weight != 0, dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        columns = pattern.nonzero()[:, 0]
        if len(columns):
            yield (which == number).nonzero()[:, 0], columns
