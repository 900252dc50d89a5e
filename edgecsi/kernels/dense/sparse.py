"""Sparse formats: where the zeros of a weight matrix are, and the arrays a kernel streams through.

Only numpy, no TVM: costs are predicted from counts, and only the chosen format is built. A weight matrix is
``[O, I]``, as in PyTorch's Linear. A *panel* is a stretch of neighbouring outputs whose sums a kernel keeps
in registers; a *block* is what all outputs of a panel do with a few neighbouring inputs.
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


def padded(weight: NDArray[Any], rows: int, columns: int, filler: int = 0) -> NDArray[Any]:
    """The matrix with `filler` below and to the right, up to multiples of `rows` and `columns`."""
    below, right = -weight.shape[0] % rows, -weight.shape[1] % columns
    if not below and not right:
        return weight
    return np.pad(weight, ((0, below), (0, right)), constant_values=filler)


def block_mask(weight: NDArray[Any], rows: int, columns: int) -> NDArray[np.bool_]:
    """Which blocks hold anything: ``[ceil(O / rows), ceil(I / columns)]``."""
    full = padded(np.asarray(weight != 0), rows, columns)
    tiles = full.reshape(full.shape[0] // rows, rows, full.shape[1] // columns, columns)
    return np.asarray(tiles.any(axis=(1, 3)))


@dataclass(frozen=True)
class Compact:
    """A matrix without the rows and columns that hold nothing.

    Attributes:
        weight: what is left. outputs, inputs: which rows and columns those are; None if all are, in order.
        widths: see `narrow_weights.sort_groups`.
    """

    weight: NDArray[Any]
    outputs: NDArray[np.int64] | None = None
    inputs: NDArray[np.int64] | None = None
    widths: Sequence[tuple[int, int]] = ()


def compact(weight: NDArray[Any], used: NDArray[np.bool_]) -> Compact:
    """Leave out rows and columns without any `used` weight, where there are enough to pay for the lists."""
    lists: list[NDArray[np.int64] | None] = []
    for axis in (1, 0):
        found = np.flatnonzero(used.any(axis=axis))
        if not found.size:
            found = np.zeros(1, np.int64)
        lists.append(found if found.size <= 0.94 * weight.shape[1 - axis] else None)
    outputs, inputs = lists
    if outputs is not None:
        weight = weight[outputs]
    if inputs is not None:
        weight = weight[:, inputs]
    return Compact(weight, outputs, inputs)


@dataclass(frozen=True)
class Blocks:
    """Blocks in the order they are read.

    Attributes:
        values: for each section ``[blocks, rows, columns]``, panel by panel.
        index: where a block's inputs start in the memory of one sample, per block; None if the blocks of a
            panel are all of them, in order.
        start: ``[panels + 1]``, number of the first group of blocks of each panel, over all sections; None
            without index.
    """

    values: list[NDArray[Any]]
    index: NDArray[Any] | None = None
    start: NDArray[np.int32] | None = None


def _tiles(part: Section, weight: NDArray[Any], columns: int, multiple: int, filler: int) -> NDArray[Any]:
    """The blocks of a section, ``[panels, blocks, rows, columns]``."""
    piece = padded(weight[part.first : part.first + part.valid], part.rows, columns * multiple, filler)
    return piece.reshape(part.panels, part.rows, -1, columns).transpose(0, 2, 1, 3)


def pack_all(
    weight: NDArray[Any], parts: Sequence[Section], columns: int, multiple: int, filler: int = 0
) -> Blocks:
    """Every block, in order, in a multiple of `multiple` blocks a panel."""
    tiles = [_tiles(part, weight, columns, multiple, filler) for part in parts]
    return Blocks([t.reshape(-1, *t.shape[2:]) for t in tiles])


def pack_blocks(
    weight: NDArray[Any],
    parts: Sequence[Section],
    columns: int,
    multiple: int,
    position: NDArray[np.int64],
    filler: int = 0,
) -> Blocks:
    """The blocks that hold anything but `filler`, each panel filled up to a multiple of `multiple`.

    A filler block reads what its panel's last block reads, so that it brings no infinity of its own.

    Args:
        position: ``[ceil(I / columns)]``, where each block of inputs starts in memory.
    """
    values, index, counts = [], [np.zeros(0, np.int64)], [0]
    for part in parts:
        kept = []
        for tile in _tiles(part, weight, columns, 1, filler):
            used = np.flatnonzero((tile != filler).any(axis=(1, 2)))
            fill = -used.size % multiple
            kept.append(tile[used])
            kept.append(np.full((fill, part.rows, columns), filler, weight.dtype))
            index.append(position[np.pad(used, (0, fill), mode="edge")] if used.size else used)
            counts.append((used.size + fill) // multiple)
        values.append(np.concatenate(kept))
    return Blocks(values, narrow(np.concatenate(index)), np.cumsum(counts).astype(np.int32))


def narrow(places: NDArray[np.int64]) -> NDArray[Any]:
    """As uint16 where they fit, else int32."""
    return places.astype(np.uint16 if not places.size or int(places.max()) < 1 << 16 else np.int32)


@dataclass(frozen=True)
class Slices:
    """Single weights in the order they are read: a slice has at most one of each output of its panel.

    Attributes:
        values: ``[slices, rows]``. lane: ``[slices, rows]``, the input of each weight, counted from the
            slice's window.
        window: ``[slices / shared]``, first input of the window of so many slices. start: as in `Blocks`,
            in groups of windows.
    """

    values: NDArray[Any]
    lane: NDArray[np.int64]
    window: NDArray[np.int64]
    start: NDArray[np.int32]


def pack_slices(
    weight: NDArray[Any], rows: int, width: int, align: int, multiple: int, shared: int = 1
) -> Slices:
    """Weights in slices whose inputs all lie in a window of `width` inputs, from a multiple of `align` on.

    Every output's weights are taken from left to right; a window begins at the leftmost that waits, and
    takes along those of the other outputs that lie in it.

    Args:
        multiple: windows of a panel, filled up to a multiple of this.
        shared: slices that have one window: as many weights of each output.
    """
    inputs = weight.shape[1]
    values, lanes, windows, counts = [], [], [], [0]
    never = np.int64(inputs)
    for panel in padded(weight, rows, 1).reshape(-1, rows, inputs):
        found = [np.flatnonzero(row) for row in panel]
        longest = max(f.size for f in found)
        columns = np.full((rows, longest + 1), never)
        for row, f in enumerate(found):
            columns[row, : f.size] = f
        every, next_ = np.arange(rows), np.zeros(rows, np.int64)
        count = 0
        while True:
            first = int(columns[every, next_].min())
            if first == never:
                break
            low = max(0, min(first // align * align, inputs - width))
            for _ in range(shared):
                waiting = columns[every, next_]
                taken = waiting < min(low + width, inputs)
                # A filler reads an input that the panel needs anyway, so it brings no infinity of its own.
                at = np.where(taken, waiting, first)
                values.append(np.where(taken, panel[every, at], 0))
                lanes.append(at - low)
                next_ += taken
            windows.append(low)
            count += 1
        for _ in range(-count % multiple):
            values += [np.zeros(rows, weight.dtype)] * shared
            lanes += lanes[-shared:]
            windows.append(windows[-1])
        counts.append(-(-count // multiple))
    shape = (len(windows) * shared, rows)
    return Slices(
        np.array(values, weight.dtype).reshape(shape),
        np.array(lanes, np.int64).reshape(shape),
        np.array(windows, np.int64),
        np.cumsum(counts).astype(np.int32),
    )


def count_windows(
    weight: NDArray[Any], rows: int, width: int, align: int, multiple: int, shared: int = 1
) -> int:
    """About how many windows `pack_slices` makes, from a few panels."""
    panels = -(-weight.shape[0] // rows)
    some = sorted({int(i) for i in np.linspace(0, panels - 1, 4)})
    sample = np.concatenate([weight[p * rows : (p + 1) * rows] for p in some])
    windows = pack_slices(sample, rows, width, align, multiple, shared).window.size
    return int(windows * panels / len(some))
