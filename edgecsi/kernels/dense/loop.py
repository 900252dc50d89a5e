"""The loop that all matrix-vector kernels share: panels of outputs, blocks of weights, samples in registers.

A kernel says how a vector of weights meets its inputs (a `Unit`), in which order the blocks lie (`Section`,
with or without an index) and what is done with the sums of a panel. Weights are read once, front to back: a
panel's blocks stay in the first-level cache while all samples of a batch pass over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Protocol

import numpy as np

from edgecsi.kernels.base import Expr
from edgecsi.kernels.dense.sparse import (
    Section,
)
from edgecsi.ops.layout import vector_widths


class Unit(Protocol):
    """How a vector of weights is multiplied.

    Attributes:
        outputs: outputs of a vector of weights. inputs: inputs of a block.
        elements: elements of the weight buffer that a block has for these outputs.
        accumulators, lanes, acc_dtype: registers that a vector of weights is summed into.
        together: blocks that one step takes; `packed`: from one vector, else from one each.
        lane: buffer that is read along with the weights, an element for each of theirs; or None.
    """

    lane: Any

    @property
    def outputs(self) -> int: ...
    @property
    def inputs(self) -> int: ...
    @property
    def elements(self) -> int: ...
    @property
    def accumulators(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    @property
    def acc_dtype(self) -> str: ...
    @property
    def together(self) -> int: ...
    @property
    def packed(self) -> bool: ...

    def load_weights(self, buffer: Any, offset: Expr) -> Any: ...

    def load_input(self, buffer: Any, offset: Expr) -> Any: ...

    def step(self, sums: Sequence[Expr], weights: Sequence[Any], inputs: Sequence[Any]) -> list[Expr]: ...

    def total(self, sums: Sequence[Expr]) -> Expr: ...


@dataclass(frozen=True)
class LoopShape:
    """The shape of the loop.

    Attributes:
        parts: the panels. blocks: blocks of each panel where all are stored, in a multiple of `unroll`.
        unroll: blocks per iteration. sets: independent sums for neighbouring blocks of a panel (hides
            latency).
        samples: samples of the batch that share a loaded block.
        first: units that multiply a panel's first blocks where all are stored, and how many blocks each.
        ahead: bytes of the weights by which they are prefetched, 0 if they are not.
        indices: 16-bit indices that are read with one load: 1, 2 or 4.
    """

    parts: Sequence[Section]
    unroll: int
    sets: int
    samples: int
    blocks: int = 0
    first: Sequence[tuple[Unit, int]] = ()
    ahead: int = 0
    indices: int = 1

    def unroll_of(self, unit: Unit) -> int:
        """Blocks per iteration of one of the units."""
        return max(self.unroll, unit.together)


@dataclass(frozen=True)
class Run:
    """Neighbouring blocks of a panel that a unit multiplies.

    Attributes:
        count: iterations. element: where the weights begin. skipped: inputs in front of these blocks'.
    """

    unit: Unit
    count: Expr
    element: Expr
    skipped: int = 0


def multiply(
    unit: Unit,
    loop: LoopShape,
    batch: int,
    weights: Any,
    x: Any,
    stride: int,
    index: Any | None,
    start: Any | None,
    finish: Callable[[Section, Expr, Expr, list[Expr]], None],
) -> None:
    """Emit the product.

    Args:
        x: buffer of the inputs, `stride` elements between samples.
        index, start: buffers of `sparse.Blocks`, or None. With `start` alone, the unit finds its inputs
            itself.
        finish: called with section, panel, sample and the sums of a panel, one vector for each of weights.
    """
    from edgecsi.kernels import emit as e

    widest = loop.parts[0].rows // unit.outputs * unit.elements
    before, panels_before = 0, 0
    for part in loop.parts:
        size = part.rows // unit.outputs * unit.elements

        def panel(p: Expr, first: Expr, runs: Sequence[Run], part: Section = part) -> None:
            def tile(sample: Expr, samples: int) -> None:
                sums = [
                    _block_sums(
                        run, loop, samples, part.rows // unit.outputs, weights, x,
                        [(sample + s) * stride + run.skipped for s in range(samples)], index, start, first,
                    )
                    for run in runs
                ]  # fmt: skip
                for s in range(samples):
                    together = zip(*(of_run[s] for of_run in sums), strict=True)
                    finish(part, p, sample + s, [reduce(add, of_vector) for of_vector in together])

            whole = batch // loop.samples
            if whole:
                with e.serial(whole) as t:
                    tile(t * loop.samples, loop.samples)
            for sample, samples in vector_widths(batch - whole * loop.samples, loop.samples):
                tile(whole * loop.samples + sample, samples)

        if start is None:
            narrow = [(one, blocks, part.rows // one.outputs * one.elements) for one, blocks in loop.first]
            rest = loop.blocks - sum(blocks for _, blocks in loop.first)
            stretches = [*narrow, *([(unit, rest, size)] if rest else [])]
            length = sum(blocks * of_block for _, blocks, of_block in stretches)
            with e.serial(part.panels) as p:
                runs, element, skipped = [], before + p * length, 0
                for one, blocks, of_block in stretches:
                    runs.append(Run(one, blocks // loop.unroll_of(one), element, skipped))
                    element, skipped = element + blocks * of_block, skipped + blocks * one.inputs
                panel(p, 0, runs)
            before += part.panels * length
        else:
            # Sections share the arrays; where panels are narrower, all weights move up by a constant.
            moved = start[panels_before] * (loop.unroll * (widest - size)) if panels_before else 0
            with e.serial(part.panels) as p:
                here = e.let(start[panels_before + p])
                count = e.let(start[panels_before + p + 1] - here)
                panel(p, here, [Run(unit, count, here * (loop.unroll * size) + moved)])
        panels_before += part.panels


def _block_sums(
    run: Run,
    loop: LoopShape,
    samples: int,
    vectors: int,
    weights: Any,
    x: Any,
    at: Sequence[Expr],
    index: Any | None,
    start: Any | None,
    first: Expr,
) -> list[list[Expr]]:
    """Sums of a run of blocks for some samples, whose inputs begin at `at`: ``[sample][vector]``."""
    from edgecsi.kernels import emit as e

    unit, unroll = run.unit, loop.unroll_of(run.unit)
    lanes, per, size = unit.lanes, unit.accumulators, vectors * unit.elements
    sets = max(1, min(loop.sets, unroll // unit.together))
    registers = e.registers(samples * sets * vectors * per * lanes, unit.acc_dtype)

    def place(s: int, k: int, v: int, a: int) -> int:
        return (((s * sets + k) * vectors + v) * per + a) * lanes

    for r in range(samples * sets * vectors * per):
        e.store(registers, r * lanes, e.splat(0, lanes, unit.acc_dtype))
    base = e.let(run.element)
    with e.serial(run.count) as q:
        if loop.ahead:
            _prefetch(unit, loop, weights, base + q * (unroll * size), unroll * size)
        listed = _listed(loop, index, (first + q) * unroll) if index is not None else []
        for step in range(0, unroll, unit.together):
            blocks = range(step, step + unit.together)
            if index is not None:
                places = listed[step : step + unit.together]
            elif start is None:
                places = [(q * unroll + u) * unit.inputs for u in blocks]
            else:
                places = [0 for u in blocks]
            inputs = [[unit.load_input(x, at[s] + p) for p in places] for s in range(samples)]
            k = step // unit.together % sets
            for v in range(vectors):
                here = base + (q * unroll + step) * size
                if unit.packed:
                    loaded = [unit.load_weights(weights, here + v * (unit.elements * unit.together))]
                else:
                    loaded = [
                        unit.load_weights(weights, here + (u - step) * size + v * unit.elements)
                        for u in blocks
                    ]
                for s in range(samples):
                    old = [e.load(registers, place(s, k, v, a), lanes) for a in range(per)]
                    for a, value in enumerate(unit.step(old, loaded, inputs[s])):
                        e.store(registers, place(s, k, v, a), value)

    result = []
    for s in range(samples):
        totals = []
        for v in range(vectors):
            sums = []
            for a in range(per):
                values = [e.load(registers, place(s, k, v, a), lanes) for k in range(sets)]
                while len(values) > 1:
                    values = [sum(values[i : i + 2][1:], values[i]) for i in range(0, len(values), 2)]
                sums.append(values[0])
            totals.append(e.let(unit.total(sums)))
        result.append(totals)
    return result


def _listed(loop: LoopShape, index: Any, first: Expr) -> list[Expr]:
    """Where the inputs of an iteration's blocks begin."""
    from tvm import tirx
    from tvm.tirx.script import builder as T

    from edgecsi.kernels import emit as e

    count = min(loop.indices, loop.unroll)
    if count == 1 or str(index.dtype) != "uint16":
        return [e.let(T.cast(index[first + u], "int32")) for u in range(loop.unroll)]
    places, kind = [], f"uint{16 * count}"
    for u in range(0, loop.unroll, count):
        word = e.let(T.reinterpret(e.load(index, first + u, count), dtype=kind))
        for k in range(count):
            place = T.shift_right(word, tirx.const(16 * k, kind)) if k else word
            places.append(e.let(T.cast(T.cast(place, "uint16"), "int32")))
    return places


def _prefetch(unit: Unit, loop: LoopShape, weights: Any, offset: Expr, elements: int) -> None:
    """Ask for what a later iteration reads, `elements` elements of the weights and of what is beside them."""
    from edgecsi.kernels import emit as e

    iteration = elements * np.dtype(weights.dtype).itemsize
    later = max(1, loop.ahead // iteration) * elements
    for buffer in (weights, unit.lane):
        if buffer is not None:
            for at in range(0, elements, 64 // np.dtype(buffer.dtype).itemsize):
                e.prefetch(buffer, offset + later + at)


def prefetch_start(weights: Any) -> None:
    """Ask for the first 16 KiB of the weights, which come while the codes of the input are written."""
    from edgecsi.kernels import emit as e

    line = 64 // np.dtype(weights.dtype).itemsize
    with e.serial(16384 // 64) as k:
        e.prefetch(weights, k * line)
