"""Place every intermediate tensor in one workspace at fixed offsets, reusing the room of those that are finished."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgecsi.codegen.program import ALIGN, Place
from edgecsi.lower.graph import Graph, Value


@dataclass
class Use:
    """Somebody needs workspace from step `first` to step `last`."""

    size: int
    first: int
    last: int
    offset: int = -1


@dataclass
class Need:
    """What a step reads and writes, its scratch in bytes, and the segment it belongs to; the steps of a looped segment
    run sample by sample, any other step takes the whole batch at once."""

    reads: list[Value]
    writes: Value
    scratch: int = 0
    segment: int = 0
    looped: bool = True


@dataclass
class Memory:
    """Place by ``id(value)`` (constants excepted), place of every step's scratch, workspace bytes."""

    places: dict[int, Place]
    scratch: list[Place | None]
    workspace: int


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


def plan_memory(graph: Graph, steps: list[Need], batch: int = 1) -> Memory:
    """Places of all values.

    With a batch, the steps of a looped segment run for one sample after the other. What passes from one segment to
    another is stored for every sample; what stays inside of a segment is stored once and used again.
    """
    outside = {id(v): Place("in", i, stride=_plain_bytes(v)) for i, v in enumerate(graph.inputs)}
    outside |= {id(v): Place("out", i, stride=_plain_bytes(v)) for i, v in enumerate(graph.outputs)}
    touched: dict[int, Value] = {}
    segments: dict[int, list[int]] = {}
    roots: dict[int, Value] = {}
    scratch = []
    for index, step in enumerate(steps):
        for value in (*step.reads, step.writes):
            if value.data is None:
                touched[id(value)] = value
                root, _ = root_of(value)
                roots[id(root)] = root
                segments.setdefault(id(root), []).append(index)
        scratch.append(Use(step.scratch, index, index) if step.scratch else None)
    given = {id(v) for v in graph.inputs}
    written: set[int] = set()
    for step in steps:
        for value in step.reads:
            if value.data is None and id(root_of(value)[0]) not in given | written:
                raise ValueError(f"{value.name} is read before anything writes it")
        written.add(id(root_of(step.writes)[0]))
    if missing := [v.name for v in graph.outputs if id(v) not in written]:
        raise ValueError(f"nothing writes the outputs {', '.join(missing)}")
    uses: dict[int, Use] = {}
    strides: dict[int, int] = {}
    for key, indices in segments.items():
        if key in outside:
            continue
        one = -(-_bytes(roots[key]) // ALIGN) * ALIGN
        first, last = indices[0], indices[-1]
        crossing = batch > 1 and (len({steps[i].segment for i in indices}) > 1 or not steps[first].looped)
        if crossing:  # alive for all samples, so for the whole of the loops that touch it
            inside = [
                i for i, s in enumerate(steps) if s.segment in (steps[first].segment, steps[last].segment)
            ]
            first, last = min(inside), max(inside)
            strides[key] = one
        uses[key] = Use(one * (batch if crossing else 1), first, last)
    total = plan([*uses.values(), *(s for s in scratch if s)])
    places = {}
    for key, value in touched.items():
        root, offset = root_of(value)
        if id(root) in outside:
            base = outside[id(root)]
            places[key] = Place(base.kind, base.at, offset, base.stride)
        else:
            places[key] = Place("workspace", 0, uses[id(root)].offset + offset, strides.get(id(root), 0))
    return Memory(places, [Place("workspace", 0, s.offset) if s else None for s in scratch], total)


def sample_stride(graph: Graph, value: Value) -> int:
    """Bytes from one sample of a value to the next when it is stored for a whole batch."""
    root, _ = root_of(value)
    if any(root is v for v in (*graph.inputs, *graph.outputs)):
        return _plain_bytes(root)
    return -(-_bytes(root) // ALIGN) * ALIGN


def _bytes(value: Value) -> int:
    return value.layout.nbytes if value.layout else _plain_bytes(value)


def _plain_bytes(value: Value) -> int:
    return math.prod(value.shape) * _itemsize(value)


def _itemsize(value: Value) -> int:
    return np.dtype(value.dtype).itemsize
