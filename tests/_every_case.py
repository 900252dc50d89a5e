"""How much is tried: all of it in continuous integration, elsewhere a share that still meets every part once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
EVERY_CASE = "EDGECSI_EVERY_CASE" in os.environ


def in_turns(cases: Sequence[T], turn: int) -> Sequence[T]:
    """Every second one, beginning with the first or the second; in continuous integration, all."""
    return cases if EVERY_CASE else cases[turn % 2 :: 2]
