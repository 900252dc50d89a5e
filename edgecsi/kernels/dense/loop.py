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
from numpy.typing import NDArray

from edgecsi.kernels.dense.sparse import Section
from edgecsi.kernels.tiling import read_gbps
from edgecsi.ops.layout import Layout, vector_widths
from edgecsi.ops.operators import Cost, Dense
from edgecsi.target import Target

Expr = Any


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
class Loop:
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
    loop: Loop,
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
    loop: Loop,
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


def _listed(loop: Loop, index: Any, first: Expr) -> list[Expr]:
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


def _prefetch(unit: Unit, loop: Loop, weights: Any, offset: Expr, elements: int) -> None:
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


def indices_per_load(target: Target) -> int:
    """How many indices are read at once: x86 has few loads a cycle, and instructions to spare."""
    return 4 if target.arch == "x86_64" else 1


def prefetch_ahead(op: Dense, target: Target) -> int:
    """Bytes by which the weights of one sample should be prefetched: 0, unless they come from beyond the second-level
    cache of an x86.

    Of weights read in turn that are more than it holds, that cache soon keeps nothing. Measured on Zen 5: prefetching
    gains 13 % where a call reads twice as much, and costs as much where some is still found there, up to 1.4 times.
    """
    far = max(op.among, op.weight.nbytes) >= 1.5 * target.l2_bytes
    return 2048 if far and target.arch == "x86_64" else 0


def shared_samples(batch: int, target: Target, accumulators: int) -> int:
    """How many samples should share a loaded block: a power of two.

    x86 reads an input as part of an instruction; ARM loads it, and so should load as many weights as inputs.
    """
    most = 8 if target.vector_registers == 32 and target.arch == "x86_64" and accumulators == 1 else 4
    if accumulators > 2:
        most = 2
    return min(1 << (batch.bit_length() - 1), most)


def dense_vectors(samples: int, target: Target, accumulators: int) -> int:
    """How many vectors of weights a panel should have where all blocks are stored."""
    room = 16 if target.vector_registers == 32 else 8
    if samples == 1:
        room //= 2
    return max(1, room // (samples * accumulators))


def run_lanes(y: Layout, operands: Sequence[Layout], lanes: int) -> int:
    """The widest vector of at most `lanes` outputs that lie side by side in the output and all operands."""
    if len(y.shape) < 3:
        return lanes
    if any(layout.group > 1 for layout in (y, *operands)):
        return 1
    row = y.shape[3] if len(y.shape) == 4 else int(np.prod(y.shape[2:]))
    while row % lanes:
        lanes //= 2
    return lanes


def place_of(like: Layout, sample: Expr, output: Expr) -> Callable[[Layout], Expr]:
    """Where output `output` (row-major over the shape of `like`) of a sample lies in a tensor.

    Gates of shape (N, C, 1, 1) or (N, 1, H, W) are indexed with what they have.
    """

    def place(layout: Layout) -> Expr:
        if len(like.shape) != 4:
            return sample * layout.stride + output
        _, _, height, width = like.shape
        c, h, w = output // (height * width), output // width % height, output % width
        _, channels, rows, columns = layout.shape
        return layout.at(sample, c if channels > 1 else 0, h if rows > 1 else 0, w if columns > 1 else 0)

    return place


class Results:
    """Stores the finished outputs of a panel, whatever the layout.

    Where a vector of sums does not belong to neighbours in memory (grouped channels, short rows of an image,
    rows left out of a compacted matrix), sums first go to the workspace, where `close` collects them.

    Args:
        value: from a vector of sums, the first of its outputs and the sample to fp32 results (scales, bias).
        spill: buffer of the workspace and the byte where `spill_bytes` are free, if `spills`.
        outputs: buffer with the outputs that the rows of a compacted matrix belong to.
    """

    def __init__(
        self,
        op: Dense,
        finish: Any,
        lanes: int,
        value: Callable[[Expr, Expr, Expr], Expr],
        spill: tuple[Any, int] | None = None,
        outputs: Any | None = None,
    ) -> None:
        self.op, self.finish, self.value, self.spill, self.outputs = op, finish, value, spill, outputs
        operands = [s.operand for s in op.epilogue if s.operand is not None]
        self.all = int(np.prod(op.y.shape[1:]))
        self.inner = int(np.prod(op.y.shape[2:]))
        self.operands = operands
        self.lanes = lanes
        self.dtype = "float32"

    def __call__(self, part: Section, panel: Expr, sample: Expr, sums: list[Expr]) -> None:
        from edgecsi.kernels import emit as e

        lanes = e.lanes_of(sums[0])
        self.dtype = e.type_of(sums[0]).split("x")[0]
        first = part.first + panel * part.rows
        for v, total in enumerate(sums):
            room = part.valid - v * lanes if part.panels == 1 else lanes
            most = self.lanes if self.outputs is None else 1
            pieces = vector_widths(min(room, lanes), most) if room > 0 else []
            if len(pieces) == 1 and pieces[0][1] == lanes:
                self._put(sample, first + v * lanes, total)
                continue
            for at, width in pieces:
                piece = e.part(total, at, width) if width > 1 else e.shuffle([total], [at])
                self._put(sample, first + v * lanes + at, piece)

    def _put(self, sample: Expr, output: Expr, total: Expr) -> None:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        if self.spill is None:
            place = place_of(self.op.y, sample, output)
            self.finish.store(place(self.op.y), self._finished(sample, output, total))
            return
        if self.outputs is not None:
            output = T.cast(self.outputs[output], "int32")
        memory, at = self.spill
        lanes = e.lanes_of(total)
        e.store(
            memory, at + (sample * self.all + output) * 4, T.reinterpret(total, dtype=f"uint8x{4 * lanes}")
        )

    def _finished(self, sample: Expr, output: Expr, total: Expr) -> Expr:
        from edgecsi.kernels import emit as e

        lanes = e.lanes_of(total)
        channel, of_channel = (output, lanes) if self.inner == 1 else (output // self.inner, 1)
        value = self.value(total, output, sample)
        return self.finish.value(value, place_of(self.op.y, sample, output), channel, of_channel)

    def open(self) -> None:
        """Emit zeros for the outputs that no row of a compacted matrix belongs to."""
        from edgecsi.kernels import emit as e

        if self.spill is None or self.outputs is None:
            return
        memory, at = self.spill
        bytes_ = self.op.x.shape[0] * self.all * 4
        lanes = 4 * self.lanes
        if bytes_ // lanes:
            with e.serial(bytes_ // lanes) as k:
                e.store(memory, at + k * lanes, e.splat(0, lanes, "uint8"))
        for k, width in vector_widths(bytes_ % lanes, lanes):
            e.store(memory, at + bytes_ // lanes * lanes + k, e.splat(0, width, "uint8"))

    def close(self) -> None:
        """Emit the pass over the collected sums."""
        from edgecsi.kernels import emit as e

        if self.spill is None:
            return
        op = self.op
        with e.serial(op.y.shape[0]) as sample:
            if op.y.group == 4 and op.y_quant is not None:
                self._grouped(sample, 1 if any(o.group > 1 for o in self.operands) else self.lanes)
                return

            def store(element: Expr, offset: Expr, count: int) -> None:
                total = self._collected(sample, element, count)
                self.finish.store(sample * op.y.stride + offset, self._finished(sample, element, total))

            grouped = any(layout.group > 1 for layout in self.operands)
            by_rows = run_lanes(op.y, self.operands, self.lanes) < self.lanes
            each_run(op.y, 1 if grouped else self.lanes, store, by_rows)

    def _collected(self, sample: Expr, output: Expr, lanes: int) -> Expr:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        assert self.spill is not None
        memory, at = self.spill
        raw = e.load(memory, at + (sample * self.all + output) * 4, 4 * lanes)
        return T.reinterpret(raw, dtype=e.vector_type(self.dtype, lanes))

    def _grouped(self, sample: Expr, lanes: int) -> None:
        """Four channels a pixel: their codes make up one 32-bit word."""
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        y, quant = self.op.y, self.op.y_quant
        assert quant is not None
        _, channels, height, width = y.shape
        for first in range(0, channels, 4):
            with e.serial(height) as h:
                for w, count in vector_widths(width, lanes):
                    word = None
                    for c in range(first, min(first + 4, channels)):
                        output = (c * height + h) * width + w
                        total = self._collected(sample, output, count)
                        codes = e.quantize(self._finished(sample, output, total), quant)
                        if c > first:
                            codes = word | T.shift_left(codes, e.splat(8 * (c - first), count, "int32"))
                        word = e.let(codes)
                    e.store(
                        self.finish.y,
                        y.at(sample, first, h, w),
                        T.reinterpret(word, dtype=f"uint8x{4 * count}"),
                    )


def spills(op: Dense, compacted: bool, lanes: int) -> bool:
    """Whether sums go through the workspace, for results in vectors of `lanes`."""
    operands = [s.operand for s in op.epilogue if s.operand is not None]
    return compacted or run_lanes(op.y, operands, lanes) < lanes


def spill_bytes(op: Dense) -> int:
    return 4 * int(np.prod(op.y.shape))


def positions(layout: Layout, columns: int) -> NDArray[np.int64] | None:
    """Where every `columns` consecutive inputs start in the memory of a sample; None if they are apart
    somewhere.
    """
    total = int(np.prod(layout.shape[1:], dtype=np.int64))
    if total % columns:
        return None
    if len(layout.shape) != 4:
        return np.arange(0, total, columns)
    one = Layout((1, *layout.shape[1:]), layout.dtype, layout.halo, layout.group)
    place = one._index().reshape(-1, columns)
    if (np.diff(place, axis=1) != 1).any():
        return None
    result: NDArray[np.int64] = place[:, 0]
    return result


def each_run(
    layout: Layout, lanes: int, body: Callable[[Expr, Expr, int], None], by_rows: bool = False
) -> None:
    """Emit loops over all elements of one sample: `body` gets the first element, its offset in memory, and
    the count.

    Args:
        by_rows: no run crosses the end of a row (of the last axis), even where rows follow each other.
    """
    from edgecsi.kernels import emit as e

    total = int(np.prod(layout.shape[1:], dtype=np.int64))
    whole_rows = len(layout.shape) < 3 or not by_rows
    if (len(layout.shape) != 4 or (not any(layout.halo) and layout.group == 1)) and whole_rows:
        whole = total // lanes
        if whole:
            with e.serial(whole) as k:
                body(k * lanes, k * lanes, lanes)
        for at, width in vector_widths(total - whole * lanes, lanes):
            body(whole * lanes + at, whole * lanes + at, width)
        return
    if len(layout.shape) != 4:
        rows = int(np.prod(layout.shape[1:-1]))
        layout = Layout(
            (layout.shape[0], 1, rows, layout.shape[-1]), layout.dtype, batch_stride=layout.stride
        )
    _, channels, height, width = layout.shape
    if layout.group > 1:
        for c in range(channels):
            with e.serial(height) as h, e.serial(width) as w:
                body((c * height + h) * width + w, layout.at(0, c, h, w), 1)
        return
    with e.serial(channels) as c, e.serial(height) as h:
        for at, count in vector_widths(width, lanes):
            body((c * height + h) * width + at, layout.at(0, c, h, at), count)


def cost(
    target: Target,
    *,
    batch: int,
    blocks: int,
    panels: int,
    vectors: int,
    vector_bytes: float,
    instructions: float,
    index_bytes: int,
    samples: int,
    prepared: int,
    macs: int,
    input_loads: int = 1,
    together: int = 1,
) -> Cost:
    """Predicted cost of a product.

    Args:
        blocks: stored blocks, each of `vectors` vectors of weights of `vector_bytes`.
        instructions: arithmetic per vector and sample. index_bytes: of a block.
        samples: that share a loaded block. prepared: bytes moved to prepare one sample's input.
        macs: multiply-adds of one sample, zeros within blocks included. input_loads: of a block and sample.
        together: blocks whose weights are loaded at once.
    """
    stored = round(blocks * (vectors * vector_bytes + index_bytes)) + 8 * panels
    # The first-level cache delivers this many vectors a second, and about as many are computed.
    rate = target.l1_gbps * 1e9 / (4 * target.lanes_f32)
    tiles = -(-batch // samples)
    index_loads = 1 / indices_per_load(target) if index_bytes else 0
    loads = blocks * (tiles * (vectors / together + index_loads) + batch * input_loads)
    work = blocks * vectors * batch * instructions
    overhead = 12 * panels * batch
    # Loads and arithmetic overlap, but not wholly.
    compute = (max(loads, work) + 0.25 * min(loads, work) + overhead) / rate
    product = max(compute, stored / (read_gbps(target, stored) * 1e9))
    if index_bytes:
        # Inputs are loaded later and one by one. Measured with every block stored: 0 to 40 % slower.
        product *= 1.15
    prepare = batch * prepared / (target.l1_gbps * 1e9)
    return Cost(seconds=product + prepare, bytes=stored, macs=macs * batch)
