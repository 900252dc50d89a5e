"""Dense layers with fp32 activations, weights stored all, or in blocks of some outputs x 1 input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Cost, Knobs
from edgecsi.kernels.dense.estimate import (
    cost,
    dense_vectors,
    shared_samples,
)
from edgecsi.kernels.dense.float import FloatDense, refuses_weights, stored_weights
from edgecsi.kernels.dense.lut import ByteTableUnit, TableUnit
from edgecsi.kernels.dense.sparse import (
    Blocks,
    Compact,
    Section,
    block_mask,
    compact,
    narrow,
    pack_all,
    pack_blocks,
    sections,
)
from edgecsi.kernels.dense.units import ByteUnit, FloatUnit
from edgecsi.kernels.dense.walk import positions
from edgecsi.ops.operators import Dense
from edgecsi.target import Target


@dataclass(frozen=True)
class BlockDense(FloatDense):
    """Fp32, half-precision or int8 weights, or 4-bit or 8-bit indices of a table, in blocks of some outputs x 1 input.

    Attributes:
        rows: outputs of a stored block; 0 stores all.
        weights: ``f32``, ``f16w``, ``qs8w``, ``lut16`` or ``lut256``.
    """

    weights: str
    rows: int = 0

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
        if reason := refuses_weights(op, self.weights, target):
            return reason
        if self.weights in ("f32", "f16w") and not self.rows:
            small = self.compact(op)
            if small.inputs is None and small.outputs is None and op.table is None:
                return "no input and no output is left out by the weights"
        return ""

    def compact(self, op: Dense) -> Compact:
        stored = stored_weights(op, self.weights)
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
        return FloatUnit(lanes, outputs, str(stored_weights(op, self.weights).dtype), raw)

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
        per = {"f32": 4.0, "f16w": 2.0, "qs8w": 1.0, "lut16": 0.5, "lut256": 1.0}[self.weights]
        return cost(
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
        places = positions(op.x, 1)
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
        places = positions(op.x, 1)
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
