"""Small systems of equations, in PyTorch: elimination with pivots, Cholesky's factor, Householder's reflections.

Detectors and precoders solve as many equations as they have antennas or users. The steps are written out one after
the other, so matrices above `LARGEST` rows are left to be refused. Rows are exchanged, and signs chosen, as LAPACK does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import mul
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 16


def _eliminated(left: Tensor, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """The rows ``[..., 1, columns - k]`` that elimination leaves of ``[..., count, columns]``, from the diagonal on, and
    how far below it each pivot was found, ``[..., 1]``."""
    import torch

    rows, found = [], []
    for k in range(count):
        pivot = left.select(-1, 0).abs().argmax(-1, keepdim=True)
        places = torch.arange(count - k)
        order = torch.where(places == 0, pivot, torch.where(places == pivot, 0, places))
        left = left.gather(-2, order.unsqueeze(-1).expand(left.shape))
        top = left.narrow(-2, 0, 1)
        rows.append(top)
        found.append(pivot)
        if k + 1 < count:
            below, width = left.narrow(-2, 1, count - k - 1), left.shape[-1] - 1
            factors = below.narrow(-1, 0, 1) / top.narrow(-1, 0, 1)
            left = below.narrow(-1, 1, width) - factors * top.narrow(-1, 1, width)
    return rows, found


def _solved(a: Tensor, b: Tensor) -> Tensor:
    """x of ``a x = b``, a ``[..., n, n]``, b ``[..., n, k]``."""
    import torch

    rows, _ = _eliminated(torch.cat([a, b], -1), a.shape[-1])
    k = b.shape[-1]
    return _substituted([(r.narrow(-1, 0, r.shape[-1] - k), r.narrow(-1, r.shape[-1] - k, k)) for r in rows])


def _substituted(rows: list[tuple[Tensor, Tensor]]) -> Tensor:
    """x from the last row up; of each its coefficients from the diagonal on, and its right side."""
    import torch

    x: Any = None
    for coefficients, right in reversed(rows):
        if x is not None:
            right = right - coefficients.narrow(-1, 1, x.shape[-2]) @ x
        row = right / coefficients.narrow(-1, 0, 1)
        x = row if x is None else torch.cat([row, x], -2)
    return x  # type: ignore[no-any-return]


def _triangular(a: Tensor, b: Tensor, upper: bool, left: bool = True, unitriangular: bool = False) -> Any:
    import torch

    n = a.shape[-1]
    if n > LARGEST:
        return NotImplemented
    if not left:
        return _triangular(a.mT, b.mT, not upper, unitriangular=unitriangular).mT
    if not upper:  # from the other end it is upper
        return _triangular(a.flip(-2, -1), b.flip(-2), upper=True, unitriangular=unitriangular).flip(-2)
    shape = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    a, b = a.expand(*shape, *a.shape[-2:]), b.expand(*shape, *b.shape[-2:])
    if unitriangular:
        a = a.triu(1) + torch.eye(n)
    return _substituted([(a.narrow(-2, k, 1).narrow(-1, k, n - k), b.narrow(-2, k, 1)) for k in range(n)])


def _cholesky(a: Tensor, upper: bool = False) -> Any:
    """Column by column: what is left below the diagonal, divided by its root."""
    import torch

    n = a.shape[-1]
    if n > LARGEST:
        return NotImplemented
    left, columns = (a.mH if upper else a), []
    for k in range(n):
        root = left.narrow(-2, 0, 1).narrow(-1, 0, 1)
        root = (root.real if root.is_complex() else root).sqrt()
        column, below = root.to(left.dtype), n - k - 1
        if below:
            rest = left.narrow(-2, 1, below).narrow(-1, 0, 1) / root
            column = torch.cat([column, rest], -2)
            left = left.narrow(-2, 1, below).narrow(-1, 1, below) - rest @ rest.mH
        columns.append(torch.nn.functional.pad(column, (0, 0, k, 0)))
    factor = torch.cat(columns, -1)
    return factor.mH if upper else factor


def _reflected(a: Tensor) -> tuple[Tensor, Tensor]:
    """Q ``[..., m, k]`` and R ``[..., k, n]``, k the smaller of m and n, as LAPACK's larfg and geqr2 define them."""
    import torch

    m, n = a.shape[-2:]
    k = min(m, n)
    left, rows, reflections = a, [], []
    for at in range(k):
        x, rest = left.narrow(-1, 0, 1), left.shape[-2] - 1
        first = x.narrow(-2, 0, 1)
        real, imaginary = (first.real, first.imag) if a.is_complex() else (first, torch.zeros_like(first))
        below = x.narrow(-2, 1, rest).abs().square().sum(-2, keepdim=True) if rest else torch.zeros_like(real)
        size = (real * real + imaginary * imaginary + below).sqrt()
        stays = (below == 0) & (imaginary == 0)
        beta = torch.where(stays, real, torch.where(real < 0, size, -size))
        tau = torch.where(stays, 0.0, (beta - first) / torch.where(stays, 1.0, beta))
        v = torch.ones_like(first)
        if rest:
            v = torch.cat([v, x.narrow(-2, 1, rest) / torch.where(stays, 1.0, first - beta)], -2)
        left = left - tau.conj() * (v @ (v.mH @ left))
        rows.append(torch.nn.functional.pad(left.narrow(-2, 0, 1), (at, 0)))
        reflections.append((tau, v))
        if rest and left.shape[-1] > 1:
            left = left.narrow(-2, 1, rest).narrow(-1, 1, left.shape[-1] - 1)
    q = torch.eye(m, dtype=a.dtype).narrow(-1, 0, k).expand(*a.shape[:-2], m, k)
    for at, (tau, v) in reversed(list(enumerate(reflections))):
        moved = q.narrow(-2, at, m - at)
        moved = moved - tau * (v @ (v.mH @ moved))
        q = torch.cat([q.narrow(-2, 0, at), moved], -2) if at else moved
    return q, torch.cat(rows, -2)


def solving() -> dict[Any, Callable[..., Any]]:
    """A table for ``ExportedProgram.run_decompositions``."""
    import torch

    aten = torch.ops.aten

    def extras(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """LU, pivots and info: nobody's answers, but outputs of the operators."""
        pivots = torch.zeros(a.shape[:-1], dtype=torch.int32)
        return torch.zeros_like(a), pivots, torch.zeros(a.shape[:-2], dtype=torch.int32)

    def solve(a: Tensor, b: Tensor, *, left: bool = True, check_errors: bool = False) -> Any:
        if a.shape[-1] > LARGEST:
            return NotImplemented
        vector = b.dim() == 1 or (b.dim() == a.dim() - 1 and b.shape == a.shape[:-1])
        right = b.unsqueeze(-1) if vector else b
        shape = torch.broadcast_shapes(a.shape[:-2], right.shape[:-2])  # type: ignore[no-untyped-call]
        wide, right = a.expand(*shape, *a.shape[-2:]), right.expand(*shape, *right.shape[-2:])
        x = _solved(wide, right) if left else _solved(wide.mT, right.mT).mT
        return x.squeeze(-1) if vector else x, *extras(a)

    def inverse(a: Tensor, *, check_errors: bool = False) -> Any:
        if a.shape[-1] > LARGEST:
            return NotImplemented
        eye = torch.eye(a.shape[-1], dtype=a.dtype).expand(a.shape)
        return _solved(a, eye), extras(a)[2]

    def cholesky(a: Tensor, *, upper: bool = False, check_errors: bool = False) -> Any:
        factor = _cholesky(a, upper)
        return factor if factor is NotImplemented else (factor, extras(a)[2])

    def cholesky_solve(b: Tensor, factor: Tensor, upper: bool = False) -> Any:
        if factor.shape[-1] > LARGEST:
            return NotImplemented
        lower = factor.mH if upper else factor
        return _triangular(lower.mH, _triangular(lower, b, upper=False), upper=True)

    def diagonal(a: Tensor) -> tuple[list[Tensor], Tensor]:
        """Of the triangle that elimination leaves, and the sign of its exchanges."""
        rows, found = _eliminated(a, a.shape[-1])
        signs = [torch.where(pivot.squeeze(-1) == 0, 1.0, -1.0) for pivot in found]
        return [row[..., 0, 0] for row in rows], reduce(mul, signs)

    def determinant(a: Tensor) -> Any:
        if a.shape[-1] > LARGEST:
            return NotImplemented
        numbers, sign = diagonal(a)
        return reduce(mul, numbers) * sign, *extras(a)[:2]

    def sign_and_logarithm(a: Tensor) -> Any:
        if a.shape[-1] > LARGEST:
            return NotImplemented
        numbers, sign = diagonal(a)
        sizes = [number.abs() for number in numbers]
        turns = [number / size for number, size in zip(numbers, sizes, strict=True)]
        logarithm = reduce(torch.add, [size.log() for size in sizes])
        return reduce(mul, turns) * sign, logarithm, *extras(a)[:2]

    def orthogonal(a: Tensor, mode: str = "reduced") -> Any:
        if min(a.shape[-2:]) > LARGEST or (mode == "complete" and a.shape[-2] > a.shape[-1]):
            return NotImplemented
        return _reflected(a)

    return {
        aten._linalg_solve_ex.default: solve,
        aten.linalg_inv_ex.default: inverse,
        aten.linalg_cholesky_ex.default: cholesky,
        aten.cholesky.default: _cholesky,
        aten.cholesky_solve.default: cholesky_solve,
        aten.linalg_solve_triangular.default: lambda a, b, **options: _triangular(a, b, **options),
        aten._linalg_det.default: determinant,
        aten._linalg_slogdet.default: sign_and_logarithm,
        aten.linalg_qr.default: orthogonal,
    }
