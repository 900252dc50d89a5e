"""What every ATen operator becomes in Relax: one table, `OPERATORS`, made of six.

`elementwise` and `arithmetic` compute number by number, `reductions` along axes, `moves` and `writes` only move,
`layers` are those with kernels.
A converter is a function of a `Call`. What Relax has is taken from there; the rest is defined in tensor expressions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgecsi.lower.operators import arithmetic, elementwise, layers, moves, reductions, writes

MOVES = frozenset(moves.TABLE | writes.TABLE)
OPERATORS: dict[str, Callable[..., Any]] = (
    elementwise.TABLE | arithmetic.TABLE | reductions.TABLE | moves.TABLE | writes.TABLE | layers.TABLE
)
