"""Sparse formats: where the zeros of a weight matrix are, and the arrays a kernel streams through.

Only numpy, no TVM: costs are predicted from counts, and only the chosen format is built. A weight matrix is
``[O, I]``, as in PyTorch's Linear. A *panel* is a stretch of neighbouring outputs whose sums a kernel keeps in
registers; a *block* is what all outputs of a panel do with a few neighbouring inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Section:
    """Panels of equal width: outputs ``first … first + panels * rows - 1``, of which `valid` exist."""

    first: int
    rows: int
    panels: int
    valid: int


def sections(outputs: int, rows: int, lanes: int) -> list[Section]:
    """Cover the outputs with panels of `rows`, and what remains with one narrower panel of whole vectors."""
    full = outputs // rows
    result = [Section(0, rows, full, full * rows)] if full else []
    rest = outputs - full * rows
    if rest:
        result.append(Section(full * rows, -(-rest // lanes) * lanes, 1, rest))
    return result


def padded(weight: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """The matrix with zeros below and to the right, up to multiples of `rows` and `columns`."""
    below, right = -weight.shape[0] % rows, -weight.shape[1] % columns
    return np.pad(weight, ((0, below), (0, right))) if below or right else weight


def block_mask(weight: NDArray[Any], rows: int, columns: int) -> NDArray[np.bool_]:
    """Which blocks hold anything: ``[ceil(O / rows), ceil(I / columns)]``."""
    full = padded(weight != 0, rows, columns)
    tiles = full.reshape(full.shape[0] // rows, rows, full.shape[1] // columns, columns)
    mask: NDArray[np.bool_] = tiles.any(axis=(1, 3))
    return mask


def used_inputs(weight: NDArray[Any]) -> NDArray[np.int64]:
    """Inputs that any output depends on, ascending."""
    return np.flatnonzero((weight != 0).any(axis=0))


def stored_blocks(mask: NDArray[np.bool_], multiple: int) -> int:
    """Blocks stored when each panel holds a multiple of `multiple`."""
    return int((-(-mask.sum(axis=1) // multiple) * multiple).sum())


@dataclass(frozen=True)
class Blocks:
    """Blocks in the order they are read.

    Attributes:
        values: 1-D; panel by panel, block by block.
        index: where a block's inputs start in the memory of one sample, per block; None if the blocks of a
            panel are all of them, in order.
        start: ``[panels + 1]``, number of the first group of blocks of each panel, over all sections; None without index.
    """

    values: NDArray[Any]
    index: NDArray[Any] | None
    start: NDArray[np.int32] | None


def pack_all(weight: NDArray[Any], parts: Sequence[Section], columns: int, multiple: int) -> Blocks:
    """Every block, in order, in a multiple of `multiple` blocks; a block is ``[rows, columns]``."""
    wide = padded(weight, 1, columns * multiple)
    values = []
    for part in parts:
        piece = padded(wide[part.first : part.first + part.valid], part.rows, 1)
        tiles = piece.reshape(part.panels, part.rows, -1, columns).transpose(0, 2, 1, 3)
        values.append(tiles.reshape(-1))
    return Blocks(np.concatenate(values), None, None)


def pack_blocks(
    weight: NDArray[Any], parts: Sequence[Section], columns: int, multiple: int, position: NDArray[np.int64]
) -> Blocks:
    """The blocks that hold anything, each panel filled up to a multiple of `multiple`.

    A filler holds zeros and reads what its panel's last block reads, so that it brings no infinity of its own.

    Args:
        position: ``[ceil(I / columns)]``, where each block of inputs starts in memory.
    """
    values, index, counts = [], [], [0]
    wide = padded(weight, 1, columns)
    for part in parts:
        piece = padded(wide[part.first : part.first + part.valid], part.rows, 1)
        tiles = piece.reshape(part.panels, part.rows, -1, columns).transpose(0, 2, 1, 3)
        for tile in tiles:
            used = np.flatnonzero((tile != 0).any(axis=(1, 2)))
            fill = -used.size % multiple
            values.append(tile[used].reshape(-1))
            values.append(np.zeros(fill * part.rows * columns, weight.dtype))
            index.append(position[np.pad(used, (0, fill), mode="edge")] if used.size else used)
            counts.append((used.size + fill) // multiple)
    places = np.concatenate(index)
    small = not places.size or int(places.max()) < 1 << 16
    return Blocks(
        np.concatenate(values), places.astype(np.uint16 if small else np.int32), np.cumsum(counts).astype(np.int32)
    )
