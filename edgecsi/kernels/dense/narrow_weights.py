"""Int8 weights that need fewer than eight bits: which inputs have such, and how they lie in memory. Only numpy.

Inputs that matter little to all outputs, as pixels of late delays do, have small weights. Groups of four inputs are
sorted by the bits that their largest weight needs. Of a width of n bits, eight vectors of weights are stored in n:
each has one of them in its top bits, and the bits below make up the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WIDTHS = (4, 5, 6, 7)
TOGETHER = 8
"""Vectors that are stored together."""
_LEAST = 1 / 16
"""Share of all groups that a width of its own is worth."""


def sort_groups(weight: NDArray[np.int8]) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
    """Inputs by the bits of their weights, in groups of four that stay together.

    Args:
        weight: ``[O, I]``, I a multiple of four times `TOGETHER`.

    Returns:
        the inputs in their new order, ``[I]``, and bits and number of groups of each width below eight, in order; the
        groups behind them take eight bits.

    Raises:
        ValueError: another number of inputs.
    """
    if weight.shape[1] % (4 * TOGETHER):
        raise ValueError(f"narrow weights need a multiple of {4 * TOGETHER} inputs")
    low = weight.min(axis=0).reshape(-1, 4).min(axis=1)
    high = weight.max(axis=0).reshape(-1, 4).max(axis=1)
    waiting = np.arange(low.size)
    order, widths = [], []
    for bits in WIDTHS:
        limit = 1 << (bits - 1)
        fit = waiting[(low[waiting] >= -limit) & (high[waiting] < limit)]
        fit = fit[: fit.size // TOGETHER * TOGETHER]
        if fit.size and fit.size >= _LEAST * low.size:
            order.append(fit)
            widths.append((bits, fit.size))
            waiting = np.setdiff1d(waiting, fit)
    groups = np.concatenate([*order, waiting])
    return (groups[:, None] * 4 + np.arange(4)).reshape(-1), widths


def share_stored(widths: Sequence[tuple[int, int]], groups: int) -> float:
    """Bytes that so many groups take in these widths, as a share of what they take in eight bits."""
    return 1 - sum(count * (8 - bits) for bits, count in widths) / (8 * groups)


def pieces(bits: int) -> list[list[tuple[int, int, int]]]:
    """How the vectors behind the first `bits` of eight come together: for each the stored vectors it has bits in,
    how far these are shifted to the left, and the bits they fill then, as a mask.
    """
    below = [(vector, bit) for vector in range(bits) for bit in reversed(range(8 - bits))]
    result = []
    for first in range(0, len(below), bits):
        masks: dict[tuple[int, int], int] = {}
        for place, (vector, bit) in zip(range(7, 7 - bits, -1), below[first : first + bits], strict=True):
            masks[vector, place - bit] = masks.get((vector, place - bit), 0) | 1 << place
        result.append([(vector, shift, mask) for (vector, shift), mask in masks.items()])
    return result


def pack_bits(vectors: NDArray[np.int8], bits: int) -> NDArray[np.int8]:
    """Eight vectors ``[..., 8, lanes]`` of weights that fit in `bits` as ``[..., bits, lanes]``."""
    top = vectors.view(np.uint8) << (8 - bits)
    stored = top[..., :bits, :].copy()
    for further, parts in enumerate(pieces(bits), bits):
        for vector, shift, mask in parts:
            stored[..., vector, :] |= (top[..., further, :] & mask) >> shift
    return stored.view(np.int8)
