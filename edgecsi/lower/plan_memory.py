"""Place every intermediate tensor in one workspace at fixed offsets, reusing the room of those that are finished."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgecsi.codegen.program import ALIGN, Place
from edgecsi.lower.graph import Graph, Value


@dataclass
class Use:
    """Somebody needs workspace from step `first` to step `last`."""

    size: int
    first: int
    last: int
    offset: int = -1


def root_of(value: Value) -> tuple[Value, int]:
    """The value whose memory this one lies in, and the byte offset there."""
    offset = 0
    while value.parent is not None:
        offset += value.offset * _itemsize(value)
        value = value.parent
    return value, offset


def plan(uses: list[Use]) -> int:
    """Set the offsets; returns the size of the workspace in bytes. Large and long-lived ones are placed first."""
    placed: list[Use] = []
    for use in sorted(uses, key=lambda u: (-u.size, u.first)):
        size = -(-use.size // ALIGN) * ALIGN
        at = 0
        for other in sorted(placed, key=lambda u: u.offset):
            if other.last < use.first or use.last < other.first:
                continue
            if at + size <= other.offset:
                break
            at = max(at, other.offset + -(-other.size // ALIGN) * ALIGN)
        use.offset = at
        placed.append(use)
    return max((u.offset + -(-u.size // ALIGN) * ALIGN for u in placed), default=0)


def plan_memory(
    graph: Graph, steps: list[tuple[list[Value], Value, int]]
) -> tuple[dict[int, Place], list[Place | None], int]:
    """Places of all values.

    Args:
        steps: what each step reads, what it writes, and how many bytes of scratch it needs.

    Returns:
        place by ``id(value)`` (constants excepted), place of each step's scratch, workspace bytes.
    """
    outside = {id(v): Place("in", i) for i, v in enumerate(graph.inputs)}
    outside |= {id(v): Place("out", i) for i, v in enumerate(graph.outputs)}
    uses: dict[int, Use] = {}
    scratch: list[Use | None] = []
    touched: dict[int, Value] = {}
    for index, (reads, writes, need) in enumerate(steps):
        for value in (*reads, writes):
            if value.data is not None:
                continue
            touched[id(value)] = value
            root, _ = root_of(value)
            if id(root) in outside:
                continue
            size = root.layout.nbytes if root.layout else _plain_bytes(root)
            use = uses.setdefault(id(root), Use(size, index, index))
            use.last = index
        scratch.append(Use(need, index, index) if need else None)
    total = plan([*uses.values(), *(s for s in scratch if s)])
    places = {}
    for key, value in touched.items():
        root, offset = root_of(value)
        if id(root) in outside:
            base = outside[id(root)]
            places[key] = Place(base.kind, base.at, offset)
        else:
            places[key] = Place("workspace", 0, uses[id(root)].offset + offset)
    return places, [Place("workspace", 0, s.offset) if s else None for s in scratch], total


def _plain_bytes(value: Value) -> int:
    return math.prod(value.shape) * _itemsize(value)


def _itemsize(value: Value) -> int:
    return {"float32": 4, "int32": 4, "float64": 8, "int64": 8}.get(value.dtype, 1)
