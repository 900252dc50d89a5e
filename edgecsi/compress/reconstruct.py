"""Pruning by reconstruction: which weights go, and what the others become, follows from data in closed form.

A dense layer is a least-squares problem: with the covariance H of its input, removing the input q from an
output costs w_q² / [H⁻¹]_qq, and the weights that stay can make up for it (optimal brain surgeon: Hassibi &
Stork, 1993; for whole layers: Frantar & Alistarh, arXiv 2208.11580). It takes seconds instead of epochs, and
training from there has little left to repair.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn

from edgecsi.compress.prune import codeword_layers, global_masks, mask, ramp
from edgecsi.compress.recipe import Pattern
from edgecsi.compress.watch import gradients, in_order, watching

_SWEEPS = 4  # over all weights after rounding; more change next to nothing
_ROUNDS = 6  # removals between which the other weights are fitted anew
_BATCH = 100
_WORTH_A_BASIS = 50  # finding it takes as long as so many solutions without
_GRADIENTS = 500  # samples that say how much an output weighs
_METRIC_SAMPLES = 3000  # the same for all outputs together,
_DIRECTIONS = 4  # times so many directions: more rows than a layer has outputs


@dataclass
class Moments:
    """Covariance of a layer's inputs ``[I, I]``, with the wanted outputs ``[I, O]``, and means; float64.

    ``xx`` has ``noise`` added to its diagonal.
    """

    xx: Tensor
    xy: Tensor
    x_mean: Tensor
    y_mean: Tensor
    noise: float

    @cached_property
    def basis(self) -> Tensor:
        """``[I, R]`` whose product with its own transpose is ``xx`` less the noise, up to a thousandth of the
        noise: inputs that lie on few dimensions make R much smaller than I."""
        values, vectors = torch.linalg.eigh(self.xx)
        values = values - self.noise
        used = values > 1e-3 * self.noise
        basis: Tensor = vectors[:, used] * values[used].sqrt()
        return basis


class Reference:
    """The network before pruning: what its layers see and give, measured once for any number of prunings.

    Args:
        module: copied. layers: names of those to be pruned. samples: inputs, float32 ``[N, …]``.
    """

    def __init__(self, module: nn.Module, layers: Iterable[str], samples: Tensor) -> None:
        self.module = copy.deepcopy(module).eval()
        self.samples = samples
        self.layers = list(in_order(self.module, layers, samples[:1]))
        self.importance = _importance(self.module, self.layers, samples)
        self._moments: dict[str, Moments] = {}

    def moments(self, name: str) -> Moments:
        """Of a layer whose inputs are as they were."""
        if name not in self._moments:
            self._moments[name] = moments_of(self.module, self.module, name, self.samples)
        return self._moments[name]

    def share_out(self, pattern: Pattern, share: float) -> dict[str, float]:
        """Sparsity of each layer, by name, if this share of all weights goes where blocks are worth least."""
        worth = {}
        for name in self.layers:
            weight, inverse = _solve(self.moments(name), None)
            worth[name] = self.importance[name][:, None] * weight.square() / inverse
        masks = global_masks(worth, pattern, share)
        return {name: 1 - float(kept.double().mean()) for name, kept in masks.items()}


def reconstruct(
    module: nn.Module,
    layers: Mapping[str, nn.Linear],
    pattern: Pattern,
    shares: Mapping[str, float] | float,
    samples: Tensor,
    reference: Reference | None = None,
) -> dict[str, Tensor]:
    """Prune dense layers in place, one after the other, each making up for what was lost before it.

    Args:
        layers: by name, in any order. shares: sparsity of each, or one number to be shared out over all of
            them by what their blocks are worth.
        samples: inputs of the network, float32 ``[N, …]``.
        reference: of this module, these layers and samples, if it is at hand.

    Returns:
        the masks, by name.
    """
    module.eval()
    reference = reference or Reference(module, layers, samples)
    if isinstance(shares, float):
        shares = reference.share_out(pattern, shares)
    masks = {}
    for number, name in enumerate(reference.layers):
        if number:
            moments = moments_of(module, reference.module, name, samples)
        else:
            moments = reference.moments(name)
        weight, kept = prune_layer(moments, reference.importance[name], pattern, shares[name])
        layer = layers[name]
        with torch.no_grad():
            layer.weight.copy_(weight)
            bias = moments.y_mean - weight @ moments.x_mean
            if layer.bias is not None:
                layer.bias.copy_(bias)
        masks[name] = kept
    return masks


def prune_layer(
    moments: Moments, importance: Tensor, pattern: Pattern, sparsity: float
) -> tuple[Tensor, Tensor]:
    """Weight and mask ``[O, I]`` of a layer at this sparsity; `importance` of each output, ``[O]``."""
    outputs = moments.xy.shape[1]
    rows = outputs if pattern.name == "columns" else (pattern.rows or 1)
    whole, diagonal_of_whole = _solve(moments, None)
    weight, inverse = whole, diagonal_of_whole.expand(outputs, -1).clone()
    many = outputs // rows * _ROUNDS > _WORTH_A_BASIS
    kept = torch.ones_like(weight, dtype=torch.bool)
    for number in range(1, _ROUNDS + 1):
        worth = importance[:, None] * weight.square() / inverse * kept
        kept = kept & mask(worth, pattern, ramp(number / _ROUNDS, sparsity, 1.0))
        weight = torch.zeros_like(weight)
        for start in range(0, outputs, rows):
            # outputs of a block share their inputs, so one solution serves them all
            part = slice(start, start + rows)
            used = kept[start].nonzero()[:, 0]
            if len(used) == len(diagonal_of_whole):
                weight[part], inverse[part] = whole[part], diagonal_of_whole
            elif len(used):
                few = many and moments.basis.shape[1] < len(used)
                fitted, diagonal = (_solve_by_basis if few else _solve)(moments, used, part)
                weight[part, used] = fitted
                inverse[part, used] = diagonal
    return weight, kept


@torch.no_grad()
def drop_unread(module: nn.Module, samples: Tensor) -> None:
    """Set to zero, in place, the weights and biases of outputs that the dense layer behind them multiplies by zeros
    only, and nothing else reads: once inputs are pruned (``columns``), the neurons that made them can go too.

    Args:
        samples: inputs of the network, float32 ``[N, …]``; the network's output must not depend on what goes.
    """
    dense = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    importance = _importance(module, dense, samples)
    for name, behind in pairwise(in_order(module, dense, samples[:1])):
        layer, reader = dense[name], dense[behind]
        if layer.out_features == reader.in_features:
            unread = (reader.weight == 0).all(0) & (importance[name] == 0)
            layer.weight[unread] = 0
            if layer.bias is not None:
                layer.bias[unread] = 0


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
        left = weight[rows][:, columns]
        found = torch.empty_like(left)
        for i in range(len(columns)):
            found[:, i] = nearest(left[:, i], rows)
            error = (left[:, i] - found[:, i]) / factor[i, i]
            left[:, i:] -= error[:, None] * factor[i, i:]
        result[rows[:, None], columns] = found
    if not thorough:
        return result
    every, kept = torch.arange(len(weight)), weight != 0
    error = (weight - result) @ xx
    for _ in range(_SWEEPS):
        for i in order.tolist():
            wanted = nearest(result[:, i] + error[:, i] / xx[i, i], every) * kept[:, i]
            moved = result[:, i] - wanted
            if bool(moved.any()):
                error += moved[:, None] * xx[i]
                result[:, i] = wanted
    return result


def _supports(weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows that have their zeros in the same places: (row numbers, numbers of the columns they use)."""
    patterns, which = torch.unique(weight != 0, dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        columns = pattern.nonzero()[:, 0]
        if len(columns):
            yield (which == number).nonzero()[:, 0], columns


@torch.no_grad()
def rotate_codeword(module: nn.Module, samples: Tensor) -> None:
    """Turn the codeword, in place, so that its energy gathers in few entries; the network computes the same.

    Between the encoder's last dense layer and the decoder's first everything is linear. The new codeword
    holds the principal components of what the decoder makes of it, strongest first, its mean is 0.
    """
    # every entry gets the same spread: a codeword with one step for all is then rounded best
    _turn_codeword(module, samples, lambda energy, _: torch.diag((energy + 1e-6 * energy[0]).sqrt()))


@torch.no_grad()
def group_codeword(module: nn.Module, samples: Tensor, rows: int) -> None:
    """Turn the codeword, in place, so that every ``rows`` entries of it hold one part of the image; the network
    computes the same.

    Principal components of like energy mix all angles and delays, so that few blocks of weights are small. The same
    space has a basis of local vectors: the image is cut into parts that it tells least apart, each for as many entries,
    and an entry has next to no weights elsewhere.

    Args:
        rows: outputs of a block. Image and codeword are cut into multiples of it.
    """

    def grouped(energy: Tensor, basis: Tensor) -> Tensor:
        size = len(energy)
        wanted = torch.zeros_like(basis)
        projection = basis @ basis.T
        entry = 0
        for part in _parts(projection, rows, -(-size // rows)):
            vectors = torch.linalg.eigh(projection[part][:, part])[1].flip(1)
            count = min(rows, size - entry, len(part))
            wanted[part, entry : entry + count] = vectors[:, :count]
            entry += count
        left, _, right = torch.linalg.svd(basis.T @ wanted)
        turn: Tensor = left @ right  # the rotation that comes nearest
        return turn * (turn.T.square() @ energy + 1e-6 * energy[0]).sqrt()

    _turn_codeword(module, samples, grouped)


def _parts(projection: Tensor, unit: int, count: int) -> list[Tensor]:
    """Cut ``[I, I]`` inputs into `count` parts of equal trace that depend little on each other: spectral bisection
    (Fiedler, 1973) of runs of `unit` inputs.

    Returns:
        the inputs of every part, in rising order.
    """
    unit = math.gcd(unit, len(projection))
    units = len(projection) // unit
    tiles = projection.reshape(units, unit, units, unit)
    near = tiles.square().sum((1, 3))
    share = tiles.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1).sum(1)

    def cut(members: Tensor, count: int) -> list[Tensor]:
        if count == 1 or len(members) < 2:
            return [members]
        graph = near[members][:, members]
        degree = graph.sum(1).clamp_min(1e-12)
        scaled = graph / (degree[:, None] * degree).sqrt()
        order = (torch.linalg.eigh(scaled)[1][:, -2] / degree.sqrt()).argsort()
        first = count // 2
        sums = share[members[order]].cumsum(0)
        border = int(torch.searchsorted(sums, sums[-1] * first / count)) + 1
        border = min(max(border, 1), len(members) - 1)
        return [*cut(members[order[:border]], first), *cut(members[order[border:]], count - first)]

    offsets = torch.arange(unit)
    return [
        (part.sort().values[:, None] * unit + offsets).flatten() for part in cut(torch.arange(units), count)
    ]


@torch.no_grad()
def mix_codeword(module: nn.Module, samples: Tensor) -> bool:
    """Turn the codeword, in place, so that its energy spreads over all entries; the network computes the same.

    The new codeword is a random rotation of the principal components of what the decoder makes of it, its mean is 0.
    All entries weigh the same, and hold much of each other, so errors of rounded weights cancel best: what is left of
    them goes with the geometric mean of the components' energies, not with the arithmetic one.

    Returns:
        whether there is a codeword to turn, and samples enough.
    """

    def mixed(energy: Tensor, _basis: Tensor) -> Tensor:
        return _random_rotation(len(energy)) * energy.mean().sqrt()

    return _turn_codeword(module, samples, mixed)


def mix_unless_pruned(module: nn.Module, samples: Tensor) -> bool:
    """:func:`mix_codeword`, but for a network with zeros on either side of the codeword: it would fill them."""
    pair = codeword_layers(module)
    if pair is None or any(bool((layer.weight == 0).any()) for layer in pair):
        return False
    return mix_codeword(module, samples)


def _random_rotation(size: int) -> Tensor:
    """``[size, size]``, float64, always the same."""
    generator = torch.Generator().manual_seed(0)
    rotation: Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    return rotation


def _turn_codeword(module: nn.Module, samples: Tensor, mixing: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """`mixing`: from the energy of each principal component ``[M]``, strongest first, and the components ``[O, M]`` to
    the invertible matrix ``[M, M]`` that makes the components from the new codeword. Returns whether it was done."""
    pair = codeword_layers(module)
    if pair is None or pair[0].bias is None or pair[1].bias is None:
        return False
    last, first = pair
    seen: list[Tensor] = []
    with watching((last, lambda _x, y: seen.append(y))):
        for part in torch.split(samples, _BATCH):
            module(part)
    code = torch.cat(seen).double()
    if len(code) < 2 * last.out_features:
        return False  # too few samples: directions they do not show would be lost
    mean = code.mean(0)
    code -= mean
    weight = first.weight.double()
    image = weight @ (code.T @ code / len(code)) @ weight.T
    energy, basis = torch.linalg.eigh(image)
    size = last.out_features
    basis, energy = basis[:, -size:].flip(1), energy[-size:].flip(0).clamp_min(0)
    mix = mixing(energy, basis)
    turn = torch.linalg.solve(mix, basis.T @ weight)
    # weights of both layers are of one size, so that one learning rate suits both
    balance = ((turn @ last.weight.double()).square().mean() / (basis @ mix).square().mean()).pow(0.25)
    mix, turn = mix * balance, turn / balance
    # what is constant does not belong into the codeword, and takes from the range it is rounded in
    last.weight.copy_(turn @ last.weight.double())
    last.bias.copy_(turn @ (last.bias.double() - mean))
    first.bias.add_((weight @ mean).float())
    first.weight.copy_(basis @ mix)
    return True


def _solve(moments: Moments, used: Tensor | None, outputs: slice | None = None) -> tuple[Tensor, Tensor]:
    """Best weights ``[O, len(used)]`` on some of the inputs, and the diagonal of the inverse covariance."""
    xx = moments.xx if used is None else moments.xx[used][:, used]
    factor = torch.linalg.cholesky(xx)
    inverse = torch.cholesky_inverse(factor)
    return (inverse @ _wanted(moments, used, outputs)).T, inverse.diagonal()


def _solve_by_basis(moments: Moments, used: Tensor, outputs: slice) -> tuple[Tensor, Tensor]:
    """As :func:`_solve`, through the few dimensions that the inputs lie on (Woodbury's identity)."""
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
    return Moments(xx, xy, x_mean, y_mean, noise)


@torch.no_grad()
def output_metric(module: nn.Module, name: str, samples: Tensor) -> Tensor:
    """How much errors of a layer's outputs weigh in the network's output, together: a Gauss-Newton matrix, float64
    ``[O, O]``. What its outputs do not tell apart behind it, such as one error undone by another, weighs little.

    Args:
        samples: inputs of the network, float32 ``[N, …]``.
    """
    generator = torch.Generator().manual_seed(0)

    def directions(y: Tensor) -> Iterator[Tensor]:
        return (torch.randn(y.shape, generator=generator) for _ in range(_DIRECTIONS))

    samples = samples[:_METRIC_SAMPLES]
    metric = torch.zeros((), dtype=torch.float64)
    for rows in gradients(module, [name], torch.split(samples, _BATCH), directions):
        flat = rows[name].flatten(0, -2).double()
        metric = metric + flat.T @ flat / (_DIRECTIONS * len(samples))
    return metric


def _importance(module: nn.Module, layers: Iterable[str], samples: Tensor) -> dict[str, Tensor]:
    """How much an error of each output of a layer weighs in the network's output, float64 ``[O]``."""
    generator = torch.Generator().manual_seed(0)
    samples = samples[:_GRADIENTS]
    found = dict.fromkeys(layers, torch.zeros(()))
    parts = torch.split(samples, _BATCH)
    for rows in gradients(module, found, parts, lambda y: [torch.randn(y.shape, generator=generator)]):
        for name, row in rows.items():
            found[name] = found[name] + row.square().flatten(0, -2).double().sum(0) / len(samples)
    return found
