"""What every ATen operator becomes in Relax: one table, `OPERATORS`, made of four.

`elementwise` computes number by number, `reductions` along axes, `moves` only moves, `layers` are those with kernels.
A converter is a function of a `Call`. What Relax has is taken from there; the rest is defined in tensor expressions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgecsi.lower.operators import elementwise, layers, moves, reductions

MOVES = frozenset(moves.TABLE)
OPERATORS: dict[str, Callable[..., Any]] = elementwise.TABLE | reductions.TABLE | moves.TABLE | layers.TABLE
