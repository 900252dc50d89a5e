"""What the dense kernels with fp32 activations share. A kernel name adds the format of the weights."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Kernel, Knobs
from edgecsi.kernels.dense import loop as dense_loop
from edgecsi.kernels.dense.float_units import (
    ByteTableUnit,
    ByteUnit,
    FloatUnit,
    GatherUnit,
    PlaneUnit,
    TableUnit,
    WindowUnit,
)
from edgecsi.kernels.dense.loop import Loop, dense_vectors, shared_samples
from edgecsi.kernels.dense.sparse import (
    Blocks,
    Compact,
    Section,
    Slices,
    block_mask,
    compact,
    count_windows,
    narrow,
    pack_all,
    pack_blocks,
    pack_slices,
    padded,
    sections,
)
from edgecsi.ops.operators import Cost, Dense
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


class FloatDense(Kernel):
    """Fp32 inputs and sums, weights in any format."""

    op = Dense

    def refuses(self, op: Dense, target: Target) -> str:
        if op.dynamic or op.x_quant is not None:
            return "the input is to be quantised"
        return ""

    @abstractmethod
    def unit(self, op: Dense, target: Target, knobs: Knobs) -> FloatUnit:
        """How weights are multiplied."""

    @abstractmethod
    def pack(self, op: Dense, target: Target, knobs: Knobs) -> dict[str, NDArray[Any]]:
        """``weights``, and ``index``, ``start``, ``lane``, ``table`` where the format has them."""

    @abstractmethod
    def parts(self, op: Dense, target: Target, knobs: Knobs) -> list[Section]:
        """The panels."""

    def copies_input(self, op: Dense, knobs: Knobs) -> bool:
        """Whether the input is copied to the workspace, because all of it is read in order and it is not
        so.
        """
        return False

    def compact(self, op: Dense) -> Compact:
        """The weights, without rows and columns of zeros if all are stored."""
        return Compact(op.weight)

    def spills(self, op: Dense, target: Target) -> bool:
        """Whether sums go through the workspace."""
        return dense_loop.spills(op, self.compact(op).outputs is not None, target.lanes_f32)

    def _all(self, op: Dense, target: Target, knobs: Knobs) -> dict[str, NDArray[Any]]:
        packed = self.pack(op, target, knobs)
        if op.scale is not None:
            packed["scale"] = op.scale.astype(np.float32)
        if op.bias is not None:
            packed["bias"] = op.bias.astype(np.float32)
        return packed

    def constants(self, op: Dense, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        from edgecsi.kernels.emit import epilogue_constants

        return [*self._all(op, target, knobs).values(), *epilogue_constants(op)]

    def _copy_stride(self, op: Dense, knobs: Knobs) -> int:
        return int(-(-self.compact(op).weight.shape[1] // knobs["unroll"]) * knobs["unroll"])

    def _copy_bytes(self, op: Dense, knobs: Knobs) -> int:
        return 4 * op.x.shape[0] * self._copy_stride(op, knobs) if self.copies_input(op, knobs) else 0

    def scratch(self, op: Dense, target: Target, knobs: Knobs) -> int:
        spilled = self.spills(op, target)
        return self._copy_bytes(op, knobs) + (dense_loop.spill_bytes(op) if spilled else 0)

    def emit(self, op: Dense, target: Target, knobs: Knobs) -> PrimFunc:
        from edgecsi.kernels import emit as e

        unit = self.unit(op, target, knobs)
        batch = op.x.shape[0]
        packed = self._all(op, target, knobs)
        constants = [*packed.values(), *e.epilogue_constants(op)]
        stride = self._copy_stride(op, knobs)
        loop = Loop(
            parts=self.parts(op, target, knobs),
            unroll=knobs["unroll"],
            sets=knobs["sets"],
            samples=knobs["samples"],
            blocks=stride,
            ahead=knobs.get("ahead", 0),
            indices=dense_loop.indices_per_load(target),
        )
        if loop.unroll % unit.together:
            raise ValueError(f"this format takes {unit.together} inputs at once")
        with e.function(op, constants, self.scratch(op, target, knobs)) as (done, buffers):
            e.zero_halo(buffers[len(op.inputs) + len(constants)], op.y)
            named = dict(zip(packed, buffers[len(op.inputs) :], strict=False))
            finish = e.Finish(op, buffers, 1, len(op.inputs) + len(packed), target)
            x, between, scratch = buffers[0], op.x.stride, buffers[-1]
            if isinstance(unit, PlaneUnit):
                unit.split(op.x, x, scratch, stride)
                x, between = scratch, 4 * stride
            elif self.copies_input(op, knobs):
                _copy(op, target, x, scratch, stride, named.get("inputs"))
                x, between = scratch, stride
            if isinstance(unit, TableUnit | ByteTableUnit):
                unit.prepare(named["table"])
            elif isinstance(unit, WindowUnit | GatherUnit | PlaneUnit):
                unit.lane = named["lane"]

            def value(total: Any, output: Any, sample: Any) -> Any:
                lanes = e.lanes_of(total)
                if "scale" in named:
                    total = total * e.load(named["scale"], output, lanes)
                if "bias" in named:
                    total = total + e.load(named["bias"], output, lanes)
                return total

            spilled = self.spills(op, target)
            spill = (scratch, self._copy_bytes(op, knobs)) if spilled else None
            results = dense_loop.Results(op, finish, target.lanes_f32, value, spill, named.get("outputs"))
            results.open()
            dense_loop.multiply(
                unit, loop, batch, named["weights"], x, between, named.get("index"), named.get("start"),
                results
            )  # fmt: skip
            results.close()
        return done.done()


class BlockDense(FloatDense):
    """Fp32 or int8 weights, or 4-bit or 8-bit indices of a table, in blocks of some outputs x 1 input.

    Attributes:
        rows: outputs of a stored block; 0 stores all.
        weights: ``f32``, ``qs8w``, ``lut16`` or ``lut256``.
    """

    rows: ClassVar[int] = 0
    weights: ClassVar[str]

    def refuses(self, op: Dense, target: Target) -> str:
        if reason := super().refuses(op, target):
            return reason
        if self.weights.startswith("lut"):
            least, most = (1, 16) if self.weights == "lut16" else (17, 256)
            if op.table is None or not least <= op.table.size <= most:
                return f"the weights are not indices of a table of {least} to {most}"
            if self.rows and not (op.table == 0).any():
                return "the table has no 0"
            if self.rows and self.rows % (16 if target.arch == "aarch64" else target.lanes_f32):
                return f"blocks of {self.rows} outputs do not fill a vector"
            return ""
        if reason := _refuses_weights(op, self.weights):
            return reason
        if self.weights == "f32" and not self.rows:
            small = self.compact(op)
            if small.inputs is None and small.outputs is None and op.table is None:
                return "no input and no output is left out by the weights"
        return ""

    def compact(self, op: Dense) -> Compact:
        stored = _stored(op, self.weights)
        return Compact(stored) if self.rows else compact(stored, op.dense_weight() != 0)

    def unit(self, op: Dense, target: Target, knobs: Knobs) -> FloatUnit:
        raw = self.copies_input(op, knobs)
        if self.weights == "lut16":
            return TableUnit(target, raw)
        if self.weights == "lut256":
            assert op.table is not None
            return ByteTableUnit(target, op.table.size, raw)
        lanes = min(target.lanes_f32, self.rows or 16)
        arm = target.arch == "aarch64"
        if self.weights == "qs8w" and not arm:
            # Samples of a batch have sums of their own, enough to hide how long an addition takes.
            return ByteUnit(lanes, 4 if op.x.shape[0] == 1 else 1, raw)
        # Int8 is loaded 16 at a time where registers are narrow, then widened step by step.
        outputs = min(self.rows or 16, 16) if self.weights == "qs8w" and arm else lanes
        return FloatUnit(lanes, outputs, str(_stored(op, self.weights).dtype), raw)

    def knobs(self, op: Dense, target: Target) -> Knobs:
        plain = {"rows": self.rows or 16, "unroll": 1}
        outputs, inputs = self.compact(op).weight.shape
        unit = self.unit(op, target, plain)
        batch = op.x.shape[0]
        per = unit.accumulators
        samples = shared_samples(batch, target, per)
        arm = target.arch == "aarch64"
        # On ARM tables take up registers, 4 or 16 of them; what more iterations need at once spills.
        tables = arm and self.weights.startswith("lut")
        crowded = arm and self.weights == "lut256"
        if self.rows:
            vectors = self.rows // unit.outputs
            mean = float(self._mask(op, self.rows).sum(1).mean())
            if isinstance(unit, ByteUnit):
                longer = vectors * per * samples <= 4  # there is room for a second set of sums
            else:
                longer = arm and self.weights == "f32"
            unroll = 2 if mean < 8 or crowded else 8 if longer and mean >= 32 else 4
        else:
            most = 2 if isinstance(unit, ByteUnit) and per > 1 else dense_vectors(samples, target, per)
            vectors = min(most, -(-outputs // unit.outputs))
            vectors = 1 if crowded else vectors
            unroll = 2 if tables else 4
        if not self.rows and inputs % unroll:
            unroll = 1 if inputs % 2 else 2
        unroll = max(unroll, unit.together)
        sets = 1 if crowded else max(1, min(unroll // unit.together, 8 // (vectors * per * samples)))
        rows = self.rows or vectors * unit.outputs
        return {"rows": rows, "unroll": unroll, "sets": sets, "samples": samples}

    def space(self, op: Dense, target: Target) -> dict[str, Any]:
        unit = self.unit(op, target, {"rows": self.rows or 16, "unroll": 1})
        batch = op.x.shape[0]
        return {
            "rows": (self.rows,) if self.rows else tuple(unit.outputs * v for v in (1, 2, 4, 8)),
            "unroll": tuple(u for u in (1, 2, 4, 8) if u % unit.together == 0),
            "sets": (1, 2, 4),
            "samples": tuple(s for s in (1, 2, 4, 8, 16) if s <= batch),
        }

    def _mask(self, op: Dense, rows: int) -> NDArray[np.bool_]:
        return block_mask(op.dense_weight(), rows, 1)

    def cost(self, op: Dense, target: Target, knobs: Knobs) -> Cost:
        small = self.compact(op)
        outputs, inputs = small.weight.shape
        unit = self.unit(op, target, knobs)
        rows, unroll = knobs["rows"], knobs["unroll"]
        panels = -(-outputs // rows)
        if self.rows:
            counts = self._mask(op, rows).sum(1)
            blocks = int((-(-counts // unroll) * unroll).sum())
        else:
            blocks = panels * inputs
        per = {"f32": 4.0, "qs8w": 1.0, "lut16": 0.5, "lut256": 1.0}[self.weights]
        return dense_loop.cost(
            target,
            batch=op.x.shape[0],
            blocks=blocks,
            panels=panels,
            vectors=-(-rows // unit.lanes),
            vector_bytes=int(unit.lanes * per) if per >= 1 else unit.lanes // 2,
            instructions=unit.steps,
            index_bytes=2 if self.rows else 0,
            samples=knobs["samples"],
            prepared=(inputs * (8 if small.inputs is None else 32) if self.copies_input(op, knobs) else 0)
            + (op.weight.shape[0] * 8 if self.spills(op, target) else 0)
            + (outputs * 32 if small.outputs is not None else 0),
            macs=blocks * rows,
            together=unit.together if unit.packed else 1,
        )

    def parts(self, op: Dense, target: Target, knobs: Knobs) -> list[Section]:
        outputs = self.compact(op).weight.shape[0]
        return sections(outputs, knobs["rows"], self.unit(op, target, knobs).outputs)

    def copies_input(self, op: Dense, knobs: Knobs) -> bool:
        if self.rows:
            return False
        if self.compact(op).inputs is not None:
            return True
        places = dense_loop.positions(op.x, 1)
        assert places is not None
        return bool(places.size % knobs["unroll"] or (np.diff(places) != 1).any())

    def pack(self, op: Dense, target: Target, knobs: Knobs) -> dict[str, NDArray[Any]]:
        unit = self.unit(op, target, knobs)
        parts = self.parts(op, target, knobs)
        filler = 0
        indices = op.table is not None and self.weights != "f32"
        if op.table is not None and indices:
            zeros = np.flatnonzero(op.table == 0)
            filler = int(zeros[0]) if zeros.size else 0
        small = self.compact(op)
        weight = small.weight
        if op.table is not None and indices and self.rows:
            # Several entries may be 0; the blocks are found by one.
            weight = np.where(op.table[weight] == 0, np.uint8(filler), weight)
        places = dense_loop.positions(op.x, 1)
        assert places is not None
        blocks: Blocks = (
            pack_blocks(weight, parts, 1, knobs["unroll"], places, filler)
            if self.rows
            else pack_all(weight, parts, 1, knobs["unroll"], filler)
        )
        if isinstance(unit, TableUnit | ByteUnit):
            values = [unit.pack(v[:, :, 0]) for v in blocks.values]
        else:
            values = [v.reshape(-1) for v in blocks.values]
        packed: dict[str, NDArray[Any]] = {"weights": np.concatenate(values)}
        if blocks.index is not None and blocks.start is not None:
            packed |= {"index": blocks.index, "start": blocks.start}
        if small.inputs is not None:
            packed["inputs"] = narrow(places[small.inputs])
        if small.outputs is not None:
            packed["outputs"] = narrow(small.outputs)
        if isinstance(unit, TableUnit | ByteTableUnit):
            assert op.table is not None
            packed["table"] = unit.constant(op.table)
        return packed


class SliceDense(FloatDense):
    """Single weights, without any pattern, in slices of one weight for each output of a panel.

    Attributes:
        rows: outputs of a panel, a register of fp32.
        weights: ``f32`` or ``qs8w``.
    """

    rows: ClassVar[int]
    weights: ClassVar[str]

    def refuses(self, op: Dense, target: Target) -> str:
        if reason := super().refuses(op, target):
            return reason
        if reason := _refuses_weights(op, self.weights):
            return reason
        if target.lanes_f32 != self.rows:
            return f"{target.id} has {target.lanes_f32} lanes, not {self.rows}"
        if self.rows > 4 and op.x.size < 2 * self.rows:
            return "there are fewer inputs than a window has"
        if (_stored(op, self.weights) != 0).mean() > 0.6:
            return "too few weights are 0"
        return ""

    def unit(self, op: Dense, target: Target, knobs: Knobs) -> WindowUnit | GatherUnit | PlaneUnit:
        kind = str(_stored(op, self.weights).dtype)
        return GatherUnit(self.rows, kind) if self.rows == 4 else WindowUnit(self.rows, kind)

    def knobs(self, op: Dense, target: Target) -> Knobs:
        samples = shared_samples(op.x.shape[0], target, 1)
        # Windows that begin at a line of the cache are read faster, but more of them are needed.
        align = {16: 16, 8: 4, 4: 1}[self.rows]
        return {"unroll": 4, "sets": 4 if samples == 1 else 1, "samples": samples, "align": align}

    def space(self, op: Dense, target: Target) -> dict[str, Any]:
        return {
            "unroll": (2, 4, 8),
            "sets": (1, 2, 4),
            "samples": tuple(s for s in (1, 2, 4, 8) if s <= op.x.shape[0]),
            "align": (1, self.rows // 2, self.rows) if self.rows > 4 else (1,),
        }

    def _width(self, op: Dense, target: Target, knobs: Knobs) -> int:
        return min(self.unit(op, target, knobs).width, op.x.sample)

    def _slices(self, op: Dense, target: Target, knobs: Knobs) -> Slices:
        places = dense_loop.positions(op.x, 1)
        assert places is not None
        # As it lies in memory, gaps included: a window is what one load brings.
        stored = _stored(op, self.weights)
        spread = np.zeros((stored.shape[0], op.x.sample), stored.dtype)
        spread[:, places] = stored
        width = self._width(op, target, knobs)
        return pack_slices(spread, self.rows, width, knobs["align"], knobs["unroll"])

    def cost(self, op: Dense, target: Target, knobs: Knobs) -> Cost:
        unit, stored = self.unit(op, target, knobs), _stored(op, self.weights)
        width = self._width(op, target, knobs)
        slices = count_windows(stored, self.rows, width, knobs["align"], knobs["unroll"])
        window = isinstance(unit, WindowUnit)
        return dense_loop.cost(
            target,
            batch=op.x.shape[0],
            blocks=slices,
            panels=-(-op.weight.shape[0] // self.rows),
            vectors=1,
            vector_bytes=self.rows * (stored.itemsize + (1 if window else 2)),
            instructions=unit.steps,
            index_bytes=2 if window else 0,
            samples=knobs["samples"],
            prepared=0,
            macs=slices * self.rows,
        )

    def parts(self, op: Dense, target: Target, knobs: Knobs) -> list[Section]:
        outputs = op.weight.shape[0]
        return sections(outputs, self.rows, self.rows)

    def pack(self, op: Dense, target: Target, knobs: Knobs) -> dict[str, NDArray[Any]]:
        unit, slices = self.unit(op, target, knobs), self._slices(op, target, knobs)
        packed = {"weights": slices.values.reshape(-1), "start": slices.start}
        if isinstance(unit, GatherUnit):
            packed["lane"] = narrow((slices.window[:, None] + slices.lane).reshape(-1))
        else:
            packed |= {"lane": unit.code(slices.lane).reshape(-1), "index": narrow(slices.window)}
        return packed


class PlaneDense(SliceDense):
    """Single weights, without any pattern, in slices that share a wide window of the input's byte planes."""

    rows = 16

    def refuses(self, op: Dense, target: Target) -> str:
        if "avx512vbmi" not in target.features:
            return f"{target.id} has no avx512vbmi"
        return super().refuses(op, target)

    def unit(self, op: Dense, target: Target, knobs: Knobs) -> PlaneUnit:
        return PlaneUnit(str(_stored(op, self.weights).dtype), knobs["slices"])

    def knobs(self, op: Dense, target: Target) -> Knobs:
        base = {"unroll": 1, "sets": 1, "samples": shared_samples(op.x.shape[0], target, 4), "align": 64}
        # Int8 is bound by the work of widening it, not by its bytes.
        base["ahead"] = 2048 if self.weights == "f32" else 0
        # A window costs as much as four of its slices, but more slices have more fillers.
        forms = [base | {"slices": slices} for slices in (4, 8)]
        return min(forms, key=lambda form: self._windows(op, form) * (4 + form["slices"]))

    def space(self, op: Dense, target: Target) -> dict[str, Any]:
        return {
            "unroll": (1,),
            "sets": (1,),
            "samples": tuple(s for s in (1, 2) if s <= op.x.shape[0]),
            "align": (16, 32, 64),
            "ahead": (0, 2048),
            "slices": (4, 8, 16),
        }

    def _padded(self, op: Dense) -> NDArray[Any]:
        """The weights, with columns of zeros up to whole registers of input bytes, two at least."""
        stored = _stored(op, self.weights)
        return padded(stored, 1, PlaneUnit.width if stored.shape[1] < PlaneUnit.width else 64)

    def _windows(self, op: Dense, knobs: Knobs) -> int:
        return count_windows(self._padded(op), 16, PlaneUnit.width, knobs["align"], 1, knobs["slices"])

    def _slices(self, op: Dense, target: Target, knobs: Knobs) -> Slices:
        return pack_slices(self._padded(op), 16, PlaneUnit.width, knobs["align"], 1, knobs["slices"])

    def copies_input(self, op: Dense, knobs: Knobs) -> bool:
        return True

    def _copy_stride(self, op: Dense, knobs: Knobs) -> int:
        return int(self._padded(op).shape[1])

    def cost(self, op: Dense, target: Target, knobs: Knobs) -> Cost:
        unit, windows = self.unit(op, target, knobs), self._windows(op, knobs)
        return dense_loop.cost(
            target,
            batch=op.x.shape[0],
            blocks=windows,
            panels=-(-op.weight.shape[0] // 16),
            vectors=unit.slices,
            vector_bytes=16 * (_stored(op, self.weights).itemsize + 1),
            instructions=unit.steps,
            index_bytes=2,
            input_loads=8,
            samples=knobs["samples"],
            prepared=20 * op.weight.shape[1],
            macs=windows * unit.elements,
        )


def _stored(op: Dense, weights: str) -> NDArray[Any]:
    """The weights as a kernel of this kind stores them; fp32 ones are taken out of their table here."""
    return op.dense_weight() if weights == "f32" else op.weight


def _refuses_weights(op: Dense, weights: str) -> str:
    """Why fp32 or int8 weights cannot be stored, if so."""
    kind = np.int8 if weights == "qs8w" else np.float32
    if op.table is not None and (weights != "f32" or op.table.size <= 16):
        return "the weights are indices of a table"
    return "" if _stored(op, weights).dtype == kind else f"the weights are not {np.dtype(kind)}"


def _copy(op: Dense, target: Target, x: Any, scratch: Any, stride: int, inputs: Any | None) -> None:
    """Emit a copy of the input, in order, with zeros behind it.

    Args:
        stride: inputs between samples in the copy. inputs: buffer with the places of those that are used.
    """
    from tvm.tirx.script import builder as T

    from edgecsi.kernels import emit as e

    count = op.weight.shape[1] if inputs is None else int(inputs.shape[0])
    with e.serial(op.x.shape[0]) as sample:

        def copy(element: Any, offset: Any, lanes: int) -> None:
            value = e.load(x, sample * op.x.stride + offset, lanes)
            e.store(
                scratch, (sample * stride + element) * 4, T.reinterpret(value, dtype=f"uint8x{4 * lanes}")
            )

        if inputs is None:
            dense_loop.each_run(op.x, target.lanes_f32, copy)
        else:
            with e.serial(count) as k:
                copy(k, T.cast(inputs[k], "int32"), 1)
        for k in range(count, stride):
            e.store(scratch, (sample * stride + k) * 4, e.splat(0, 4, "uint8"))
