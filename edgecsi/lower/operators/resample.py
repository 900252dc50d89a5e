"""Interpolation, in PyTorch: the nearest pixels as constant indices, and scales that change nothing.

Where sizes and scale factors disagree (3 pixels times 1.3 are 3 pixels), PyTorch takes other pixels for one layout of
memory and number of channels than for another. So its own operator is asked which pixels it takes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def _taken(op: Any, x: Tensor, given: tuple[Any, ...]) -> list[list[int]]:
    """Of every spatial axis, the pixels that the operator takes."""
    import torch
    from torch._dispatch.python import no_python_dispatcher
    from torch.utils._python_dispatch import _disable_current_modes

    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape, stride = [int(n) for n in x.shape], [int(n) for n in x.stride()]
    found = []
    with _disable_current_modes(), no_python_dispatcher(), torch.no_grad():
        for axis in range(2, len(shape)):
            image = torch.empty_strided(shape, stride, dtype=dtype)
            image.copy_(torch.arange(shape[axis]).reshape([-1] + [1] * (len(shape) - axis - 1)))
            table = op(image, *given)[0, 0]
            for _ in range(len(shape) - axis - 1):
                table = table.select(-1, 0)
            for _ in range(axis - 2):
                table = table.select(0, 0)
            found.append([int(n) for n in table.tolist()])
    return found


def _nearest(op: Any) -> Callable[..., Any]:
    """The decomposition of an operator that takes the nearest pixels."""

    def decomposed(x: Tensor, *given: Any) -> Any:
        import torch

        tables = _taken(op, x, given)
        sizes = [int(n) for n in x.shape[2:]]
        factors = [len(table) // n for table, n in zip(tables, sizes, strict=True)]
        if all(
            table == [i // factor if factor else 0 for i in range(n * factor)]
            for table, n, factor in zip(tables, sizes, factors, strict=True)
        ):
            for axis, factor in enumerate(factors):  # by whole factors: every pixel repeated
                if factor > 1:
                    shape = [*x.shape[: axis + 3], factor, *x.shape[axis + 3 :]]
                    x = x.unsqueeze(axis + 3).expand(shape).flatten(axis + 2, axis + 3)
            return x
        places = []
        for axis, table in enumerate(tables):  # torch.tensor(table) cannot be traced here
            runs = [torch.full((len(list(same)),), at) for at, same in itertools.groupby(table)]
            places.append(torch.cat(runs).reshape([-1] + [1] * (len(tables) - axis - 1)))
        return torch.ops.aten._unsafe_index(x, [None, None, *places])

    return decomposed


def _linear(x: Tensor, size: Any, aligned: bool, scales: Any) -> Any:
    """Pixels weighted along every axis; one whose size stays is copied, whatever its scale."""
    from torch._decomp import decompositions as of_torch

    given: list[Any] = list(scales) if scales else [None] * (x.dim() - 2)
    wanted = list(size) if size else [math.floor(n * s) for n, s in zip(x.shape[2:], given, strict=True)]
    kept = [None if n == m else s for n, m, s in zip(x.shape[2:], wanted, given, strict=True)]
    return of_torch._upsample_linear(x, wanted, aligned, kept)


def resampling() -> dict[Any, Callable[..., Any]]:
    """A table for ``ExportedProgram.run_decompositions``."""
    import torch

    aten = torch.ops.aten
    kinds = (
        aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d,
        aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d, aten._upsample_nearest_exact3d,
    )  # fmt: skip
    weighted = (aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d)
    return {kind.vec: _nearest(kind.vec) for kind in kinds} | {kind.vec: _linear for kind in weighted}
