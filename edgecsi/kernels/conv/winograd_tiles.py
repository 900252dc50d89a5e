"""How Winograd's form takes tiles of pixels apart, and puts tiles of results together: additions, and few products.

A form F(m, r) makes m neighbouring results of a filter of r taps by m + r - 1 products. It is multiplication of
polynomials by their values at points (S. Winograd, "Arithmetic Complexity of Computations", 1980, chapter IV): values of
the filter at a point p are sums with its powers, and so are the results.

F(4, 3) has the points 0, ±a, ±2a and infinity. With a = 1 numbers are whole, and rounding is amplified most: the last
result holds 8 times what is rounded at ±2, so that 48 units of the largest pixel add up in a row, 2304 in a tile. By
a = 3/4 they are 27 and 750, and all constants are still exact. The powers of a that results are to be multiplied with
are left to the end, where a product and the addition of the bias are one instruction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Expr
from edgecsi.ops.half import WINOGRAD
from edgecsi.target import Target

Load = Callable[[int, int], Expr]  # pixels of a row, from a column on
Number = Callable[[int], Expr]  # a vector by its number
Change = Callable[[Expr], Expr]

A = 0.75
MOST_TERMS = 128
"""What F(4x4, 3x3) rounds grows with the root of the number of terms, from 0.7e-6 of the largest result for 8 to 2e-6 for
128 (and 2.8e-6 for 256) with pixels around 0, fewer where they have an offset. Some twenty such layers in a row, whose
errors are independent, are then within the 1e-5 that a build accepts."""
_FINITE = (0.0, A, -A, 2 * A, -2 * A)
FOUR = np.array(
    [
        *(np.power(p, range(3)) / np.prod([p - q for q in _FINITE if q != p]) for p in _FINITE),
        [0, 0, A**-3],
    ]
)
"""G of F(4, 3): rows are values of a filter at the points, by what a tile's values there are too large."""

_NUMBERS = (
    *(A**2, 4 * A**2, A, 4 * A**3, 2 * A, 2 * A**3, 0.0, 0.0),  # of pixels
    *(2.0, 4.0, 8.0, A, A**2, A**3, A**4, A**5, A**6, 0.0, 0.0, 0.0),  # of results
)
_A2, _FOUR_A2, _A, _FOUR_A3, _TWO_A, _TWO_A3 = range(6)
_TWO, _POWERS = 8, 10  # where 2, 4 and 8 are, and a^0 would be


class Tiles(ABC):
    """A form.

    Attributes:
        rows, columns: of results in a tile.
        points: products of a tile, and of one of the pieces of a filter.
        filter: rows and columns of the filter it is for.
        pieces: first row and column of what a filter is split into; products of all pieces are added, then transformed.
        numbers: what pixels and results are multiplied with; lie behind the weights, where they cost no registers.
        most_terms: products that may be added to a sum, so that a network keeps what fp32 is allowed.
        least_lanes: tiles of the smallest vector.
        co_tiles: output channels that a block may have. unrolls: terms that may be added by an iteration.
        written_out: whether vectors of a block are taken apart and put together by code of their own. If not they take
            turns in a loop, where their numbers would not fit the registers.
    """

    rows: int
    columns: int
    points: int
    filter: tuple[int, int]
    pieces: Sequence[tuple[int, int]]
    numbers: tuple[float, ...]
    most_terms: int
    least_lanes: int
    co_tiles: tuple[int, ...]
    unrolls: tuple[int, ...]
    written_out: bool

    @abstractmethod
    def slots(self, lanes: int, target: Target) -> tuple[float, float]:
        """Loads, shuffles, additions and stores that take a vector of tiles and a channel apart, and that put one
        together; two a slot."""

    @abstractmethod
    def span(self, lanes: int, vectors: int, target: Target) -> int:
        """Tiles in a vector of sums, of `vectors` of so many lanes that lie side by side."""

    @abstractmethod
    def weights(self, weight: NDArray[Any]) -> NDArray[np.float64]:
        """Transformed filters ``[points, O, pieces * C]`` of ``[O, C, KH, KW]``."""

    @abstractmethod
    def apart(self, load: Load, lanes: int, factor: Number, narrowed: Change) -> Iterator[Expr]:
        """Vectors of a channel's transformed pixels, point by point.

        Args:
            load: `lanes` pixels of a row from a column on, both counted from the first tile's first. factor: one of the
                numbers. narrowed: pixels as they are added.
        """

    @abstractmethod
    def together(
        self, point: Number, results: Callable[[], Change], lanes: int, factor: Number
    ) -> Iterator[list[Expr]]:
        """Row by row, vectors of results side by side.

        Args:
            point: the sums of a point. results: asked once, what is made of sums that are transformed back.
        """


class Two(Tiles):
    """F(2x2, 3x3). Lanes are tiles of a row: even and odd columns are taken apart, and put together again."""

    rows, columns, points = 2, 2, 16
    filter, pieces = (3, 3), ((0, 0),)
    numbers, most_terms = (), 1 << 30
    least_lanes, co_tiles, unrolls = 2, (1, 2, 3, 4, 6, 8, 12, 16, 24), (1, 2, 4)
    written_out = True

    def slots(self, lanes: int, target: Target) -> tuple[float, float]:
        return 40.0, 36.0

    def span(self, lanes: int, vectors: int, target: Target) -> int:
        return lanes

    def weights(self, weight: NDArray[Any]) -> NDArray[np.float64]:
        return _values(weight, WINOGRAD, WINOGRAD)

    def apart(self, load: Load, lanes: int, factor: Number, narrowed: Change) -> Iterator[Expr]:
        from edgecsi.kernels import emit as e

        tile = []
        for i in range(4):
            left = [e.let(load(i, shift)) for shift in (0, lanes)]
            right = [e.let(load(i, shift)) for shift in (2, lanes + 2)]
            tile.append(
                [
                    e.let(narrowed(e.shuffle(pair, range(odd, 2 * lanes, 2))))
                    for pair in (left, right)
                    for odd in (0, 1)
                ]
            )
        columns = [_apart(column) for column in zip(*tile, strict=True)]
        for i in range(4):
            yield from _apart([e.let(column[i]) for column in columns])

    def together(
        self, point: Number, results: Callable[[], Change], lanes: int, factor: Number
    ) -> Iterator[list[Expr]]:
        from edgecsi.kernels import emit as e

        sums = [[e.let(point(4 * i + j)) for j in range(4)] for i in range(4)]
        columns = [_together(column) for column in zip(*sums, strict=True)]
        lines = [[e.let(column[i]) for column in columns] for i in range(2)]
        result = results()
        for line in lines:
            pair = [e.let(result(value)) for value in _together(line)]
            half = lanes // 2
            yield [
                e.shuffle(pair, [k for lane in range(first, first + half) for k in (lane, lanes + lane)])
                for first in (0, half)
            ]


TWO = Two()


class Four(Tiles):
    """F(4x4, 3x3), and F(4, 3) of one direction; larger filters are split into pieces of three taps.

    Rows are transformed as they lie in memory. Then squares of 4x4 pixels are transposed within 128 bits, which every CPU
    does by single instructions: afterwards neighbouring lanes are `lanes` pixels apart, and so many tiles / 4.
    """

    numbers, most_terms = _NUMBERS, MOST_TERMS
    least_lanes, co_tiles, unrolls = 4, (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24), (1, 2, 3, 4)
    written_out = False

    def __init__(self, filter: tuple[int, int], on_x86: tuple[float, float]) -> None:
        """`filter`: rows and columns; a direction of one tap is left as it is. `on_x86`: slots there."""
        height, width = self.filter = filter
        self.tall, self.wide, self.on_x86 = height > 1, width > 1, on_x86
        self.rows, self.columns = (4 if self.tall else 1), (4 if self.wide else 1)
        self.points = (6 if self.tall else 1) * (6 if self.wide else 1)
        self.pieces = [(i, j) for i, _ in _thirds(height) for j, _ in _thirds(width)]

    def slots(self, lanes: int, target: Target) -> tuple[float, float]:
        # ARM shuffles where it multiplies. Two halves of a vector of AVX-512 take less than twice the time of a whole.
        part = 1.5 if target.arch == "aarch64" else 1.0 if 2 * lanes > target.lanes_f32 else 0.7
        return part * self.on_x86[0], part * self.on_x86[1]

    def span(self, lanes: int, vectors: int, target: Target) -> int:
        return min(lanes * vectors, max(lanes, target.lanes_f32))

    def weights(self, weight: NDArray[Any]) -> NDArray[np.float64]:
        one = np.ones((1, 1))
        left, right = (FOUR if self.tall else one), (FOUR if self.wide else one)
        found = []
        for i, above in _thirds(weight.shape[2]):
            for j, before in _thirds(weight.shape[3]):
                piece = weight[:, :, i : i + 3, j : j + 3].astype(np.float64)
                piece[:, :, :above] = 0  # taps of the piece before this one
                piece[:, :, :, :before] = 0
                found.append(_values(piece, left, right))
        return np.concatenate(found, axis=2)

    def apart(self, load: Load, lanes: int, factor: Number, narrowed: Change) -> Iterator[Expr]:
        from edgecsi.kernels import emit as e

        # The last two pixels are the end of a vector, not the beginning of one: nothing behind them is read.
        starts = [*range(0, 4 * lanes, lanes), 3 * lanes + 2] if self.wide else [0]

        def pixels(start: int) -> Callable[[int], Expr]:
            return lambda row: e.let(narrowed(load(row, start)))

        down = [
            _values_at_points(pixels(start), factor) if self.tall else [pixels(start)(0)] for start in starts
        ]
        for line in zip(*down, strict=True):
            if self.wide:
                yield from _values_at_points(self._columns(line, lanes).__getitem__, factor)
            else:
                yield line[0]

    def _columns(self, line: Sequence[Expr], lanes: int) -> list[Expr]:
        """Six columns of the tiles of a row."""
        from edgecsi.kernels import emit as e

        *chunks, end = line
        columns = transposed(chunks, lanes)
        per_chunk = lanes // 4
        for j in range(2):
            # The first columns of the tile on the right: in which chunk it is, and where there.
            order = []
            for lane in range(lanes):
                chunk, place = divmod(lane % 4 * per_chunk + lane // 4 + 1, per_chunk)
                order.append(4 * place + chunk if chunk < 4 else lanes + lanes - 2 + j)
            columns.append(e.let(e.shuffle([columns[j], end], order)))
        return columns

    def together(
        self, point: Number, results: Callable[[], Change], lanes: int, factor: Number
    ) -> Iterator[list[Expr]]:
        from edgecsi.kernels import emit as e

        width = 6 if self.wide else 1
        result = results()

        def finished(value: Expr, power: int) -> Expr:
            return e.let(result(value * factor(_POWERS + power) if power else value))

        if self.tall:
            columns = [
                _results([e.let(point(width * i + j)) for i in range(6)], factor) for j in range(width)
            ]
            lines = [[column[i] for column in columns] for i in range(4)]
        else:
            lines = [[e.let(point(j)) for j in range(width)]]
        for i, line in enumerate(lines):
            if not self.wide:
                yield [finished(line[0], i)]
                continue
            yield transposed(
                [finished(value, i + j) for j, value in enumerate(_results(line, factor))], lanes
            )


def transposed(vectors: Sequence[Expr], lanes: int) -> list[Expr]:
    """Squares of 4x4 numbers, one in every 128 bits of four vectors, transposed."""
    from edgecsi.kernels import emit as e

    def picked(a: Expr, b: Expr, order: Sequence[int]) -> Expr:
        """Numbers of every 128 bits of two vectors, the second's counted from 4 on."""
        return e.let(
            e.shuffle([a, b], [q + k % 4 + k // 4 * lanes for q in range(0, lanes, 4) for k in order])
        )

    low, high = (0, 4, 1, 5), (2, 6, 3, 7)
    first, second = ([picked(vectors[k], vectors[k + 1], order) for order in (low, high)] for k in (0, 2))
    return [
        picked(first[half], second[half], order) for half in (0, 1) for order in ((0, 1, 4, 5), (2, 3, 6, 7))
    ]


def _thirds(size: int) -> list[tuple[int, int]]:
    """Pieces of three taps: where each begins, and how many taps the piece before it has of these. The last ends with the
    filter, so that no pixel is read that the filter does not reach."""
    return [
        (min(start, max(size - 3, 0)), max(start + 3 - size, 0) if size > 1 else 0)
        for start in range(0, size, 3)
    ]


def _values(weight: NDArray[Any], left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Filters at all pairs of points, ``[points, O, C]``."""
    found: NDArray[np.float64] = np.einsum("ai,ocij,bj->aboc", left, weight.astype(np.float64), right)
    return found.reshape(-1, *weight.shape[:2])


def _apart(tile: Sequence[Expr]) -> list[Expr]:
    """B^T of F(2, 3)."""
    a, b, c, d = tile
    return [a - c, b + c, c - b, b - d]


def _together(sums: Sequence[Expr]) -> list[Expr]:
    """A^T of F(2, 3)."""
    a, b, c, d = sums
    return [a + b + c, b - c - d]


def _values_at_points(d: Callable[[int], Expr], factor: Number) -> list[Expr]:
    """B^T of F(4, 3): for every point the coefficients of the product of x - q for all other points q.

    Few sums are needed again after something was added to them, for which ARM would copy them.
    """
    from edgecsi.kernels import emit as e

    d0, d1, d2, d3, d4, d5 = (d(i) for i in range(6))
    # x^2 - 4a^2 times a power of x, and for odd powers times a; then x^2 - a^2 and 2a.
    near, near_odd = e.let(d4 - d2 * factor(_FOUR_A2)), e.let(d3 * factor(_A) - d1 * factor(_FOUR_A3))
    far, far_odd = e.let(d4 - d2 * factor(_A2)), e.let(d3 * factor(_TWO_A) - d1 * factor(_TWO_A3))
    pairs = [e.let(near + near_odd), e.let(near - near_odd), e.let(far + far_odd), e.let(far - far_odd)]
    first = e.let(near - e.let(d2 - d0 * factor(_FOUR_A2)) * factor(_A2))
    last = e.let(e.let(d5 - d3 * factor(_A2)) - far_odd * factor(_TWO_A))
    return [first, *pairs, last]


def _results(sums: Sequence[Expr], factor: Number) -> list[Expr]:
    """A^T of F(4, 3) with a = 1: result k is still to be multiplied with a^k."""
    from edgecsi.kernels import emit as e

    near, far = e.let(sums[1] + sums[2]), e.let(sums[3] + sums[4])
    near_odd, far_odd = e.let(sums[1] - sums[2]), e.let(sums[3] - sums[4])
    return [
        e.let(sums[0] + near + far),
        e.let(near_odd + far_odd * factor(_TWO)),
        e.let(near + far * factor(_TWO + 1)),
        e.let(sums[5] + near_odd + far_odd * factor(_TWO + 2)),
    ]
