"""Rounding the two dense layers around the codeword together.

For the network only their product counts: with any invertible T, ``T E`` and ``D T⁻¹`` do the same as the encoder's
layer E and the decoder's D. These M² free numbers can put as many weights exactly on the values they may take as there
are numbers, so rounding goes by turns: the rows that weigh most, on one side and then on the other, and after every
turn all that is not rounded yet, on both sides, makes up for it (as incremental quantisation does by training: Zhou et
al., arXiv 1702.03044; here it is least squares). What is rounded last, with nothing left to make up for it, weighs
next to nothing.

Every row is rounded in units of its own root mean square: a scale for every input of the encoder's layer and for every
output of the decoder's. Rows of a channel's faint angles and delays are a hundredth of the others, and a table for all
of them has no values to tell theirs apart.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_WORTH_LEFT_BY_TURN = 0.6  # of the weight of all rows not rounded yet is still so after a turn
_TURNS = 9
_FITS = 3  # of either side, after every turn
_ABSORBED = 0.1  # what an error weighs where the other side can still make up for it
_BEGINNINGS = 8  # of a row, followed side by side
_RIDGE = 1e-2  # of the mean weight of an error, so that none is for nothing


@dataclass
class Side:
    """One of the two layers, with a row for every input of the encoder's, or output of the decoder's.

    Attributes:
        weight: ``[N, M]`` float64, M the length of the codeword. metric: ``[N, N]``, positive definite: what an error
            of the rows weighs. table: values that a weight may take, rising, in units of its row's scale.
        scale: of each row, ``[N, 1]``. worth: of each row, ``[N]``. order: of the rows, heaviest first.
        done: how many of them are rounded.
    """

    weight: Tensor
    metric: Tensor
    table: Tensor
    scale: Tensor = field(init=False)
    worth: Tensor = field(init=False)
    order: Tensor = field(init=False)
    done: int = field(init=False)
    _lean: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.scale = scales(self.weight)
        self.worth = self.metric.diagonal() * self.weight.square().sum(1)
        self.order = self.worth.argsort(descending=True)
        self.advance(0)

    def advance(self, done: int) -> None:
        """Say how many rows are rounded by now."""
        self.done = done
        fixed, free = self.fixed, self.free
        self._lean = torch.linalg.solve(self.metric[free][:, free], self.metric[free][:, fixed])

    @property
    def fixed(self) -> Tensor:
        return self.order[: self.done]

    @property
    def free(self) -> Tensor:
        return self.order[self.done :]

    def fit(self, wanted: Tensor) -> None:
        """Rows not rounded yet: what fits best, given the others. wanted ``[N, M]``, if none were rounded."""
        fixed, free = self.fixed, self.free
        self.weight[free] = wanted[free] + self._lean @ (wanted[fixed] - self.weight[fixed])

    def gram(self, rows: Tensor) -> Tensor:
        """``[M, M]``: what an error of an entry of the codeword weighs behind, or before, these rows."""
        part = self.weight[rows]
        return part.T @ self.metric[rows][:, rows] @ part


def scales(weight: Tensor) -> Tensor:
    """Root mean square of every row ``[N, M]``, ``[N, 1]``; never 0."""
    rms = weight.square().mean(1, keepdim=True).sqrt()
    return rms.clamp_min(1e-6 * float(rms.mean()) + 1e-12)


def round_pair(encoder: Side, decoder: Side) -> None:
    """Put the weights of both on their tables, in place; their product stays as near as it can.

    Args:
        encoder: its layer, transposed; the metric is the covariance of its inputs. decoder: the metric is
            :func:`edgecsi.compress.watch.output_metric`.
    """
    product = decoder.weight @ encoder.weight.T
    turns = ((encoder, decoder, product.T), (decoder, encoder, product))
    for turn in range(1, _TURNS + 2):
        for side, other, _ in turns:
            left = side.worth.sum() - side.worth[side.order].cumsum(0)
            until = (
                int((left > side.worth.sum() * _WORTH_LEFT_BY_TURN**turn).sum()) + 1
                if turn <= _TURNS
                else len(left)
            )
            if until > side.done:
                _round_rows(side, other, until)
            for _ in range(_FITS):
                for one, against, wanted in turns:
                    one.fit(_best(against, wanted))


def _best(other: Side, wanted: Tensor) -> Tensor:
    """``[N, M]``: rows that make ``wanted [N, N']`` with the other side, in the least squares."""
    gram = _padded(other.gram(other.order), 1e-6)
    best: Tensor = torch.linalg.solve(gram, other.weight.T @ other.metric @ wanted.T).T
    return best


def _padded(metric: Tensor, ridge: float = _RIDGE) -> Tensor:
    return metric + ridge * metric.diagonal().mean() * torch.eye(len(metric), dtype=metric.dtype)


def _round_rows(side: Side, other: Side, until: int) -> None:
    rows, free = side.order[side.done : until], side.order[until:]
    below = side.metric[free]
    # the rows that follow will make up for what they can
    outer = side.metric[rows][:, rows] - below[:, rows].T @ torch.linalg.solve(below[:, free], below[:, rows])
    inner = _padded(_ABSORBED * other.gram(other.order) + (1 - _ABSORBED) * other.gram(other.fixed))
    scale = side.scale[rows] = scales(side.weight[rows])
    wanted, outer = side.weight[rows] / scale, outer * scale * scale.T
    rounded = _rounded(wanted, outer, inner, side.table)
    side.weight[rows] = scale * _swept(wanted, rounded, outer, inner, side.table)
    side.advance(until)


def _feedback(metric: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Upper triangular, unit diagonal: row i is what an error at i asks of itself and all that follow. And what it
    costs when they have made up for it, ``[N]``."""
    inverse = np.linalg.inv(metric)
    factor: Any = np.linalg.cholesky((inverse + inverse.T) / 2).T  # numpy's stubs lose float64
    return factor / factor.diagonal()[:, None], factor.diagonal() ** -2.0


def _rounded(weight: Tensor, outer: Tensor, inner: Tensor, table: Tensor) -> Tensor:
    """Values of the table for a weight ``[N, M]``, one by one, what follows in both directions making up for each
    error (Babai, 1986); the cost is tr(outer E inner Eᵀ).

    Within a row, the few cheapest beginnings go on side by side, each with the two nearest values (the M-algorithm of
    sequence decoding: Anderson & Mohan, 1984).
    """
    order = inner.diagonal().argsort(descending=True)
    (along, costs), (across, _) = _feedback(inner[order][:, order].numpy()), _feedback(outer.numpy())
    reaching = np.ascontiguousarray(along.T)
    left = weight[:, order].numpy().copy()
    for row in range(len(left)):
        target = left[row].copy()
        left[row] = _cheapest(target, reaching, costs, table.numpy())
        left[row + 1 :] -= np.outer(across[row, row + 1 :], target - left[row])
    result = torch.empty_like(weight)
    result[:, order] = torch.from_numpy(left)
    return result


def _cheapest(
    target: NDArray[np.float64],
    reaching: NDArray[np.float64],
    costs: NDArray[np.float64],
    values: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Values for a row ``[M]``; `reaching` is what each entry is asked by errors before it, lower triangular."""
    middles = (values[1:] + values[:-1]) / 2
    last = len(values) - 1
    errors, chosen = np.zeros((2, _BEGINNINGS, len(target)))
    cost = np.zeros(1)
    for column, wanted in enumerate(target):
        count = len(cost)
        now = wanted - errors[:count, :column] @ reaching[column, :column]
        near = middles.searchsorted(now)
        second = np.where(now > values[near], near + 1, near - 1).clip(0, last)
        taken = values[np.concatenate((near, second))]
        missed = np.concatenate((now, now)) - taken
        total = np.concatenate((cost, np.where(second == near, np.inf, cost))) + missed**2 * costs[column]
        kept = total.argsort()[: min(_BEGINNINGS, int(np.isfinite(total).sum()))]
        before = kept % count
        errors[: len(kept), :column] = errors[before, :column]
        chosen[: len(kept), :column] = chosen[before, :column]
        errors[: len(kept), column], chosen[: len(kept), column] = missed[kept], taken[kept]
        cost = total[kept]
    best: NDArray[np.float64] = chosen[0]
    return best


def _swept(wanted: Tensor, start: Tensor, outer: Tensor, inner: Tensor, table: Tensor) -> Tensor:
    """Every weight taken anew once, given all others; cost as in :func:`_rounded`."""
    values, middles = table.tolist(), ((table[1:] + table[:-1]) / 2).tolist()
    result = start.numpy().copy()
    metric, across = inner.numpy(), outer.numpy()
    pull = across @ (wanted.numpy() - result) @ metric
    diagonal = metric.diagonal()
    for row in range(len(result)):
        own, moved = across[row, row], np.zeros(len(diagonal))
        now, towards = result[row], pull[row].copy()
        for column in range(len(diagonal)):
            value = values[bisect(middles, now[column] + towards[column] / (own * diagonal[column]))]
            if value != now[column]:
                moved[column] = value - now[column]
                towards -= own * moved[column] * metric[column]
        if moved.any():
            result[row] = now + moved
            pull -= np.outer(across[:, row], metric @ moved)
    return torch.from_numpy(result)
