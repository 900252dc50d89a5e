"""Dense layers with fp32 activations and zeros anywhere: slices of one weight for each output (SELL)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Cost, Expr, Knobs
from edgecsi.kernels.dense.estimate import (
    cost,
    shared_samples,
)
from edgecsi.kernels.dense.float import FloatDense, refuses_weights, stored_weights
from edgecsi.kernels.dense.sparse import (
    Section,
    Slices,
    count_windows,
    narrow,
    pack_slices,
    padded,
    sections,
)
from edgecsi.kernels.dense.units import FloatUnit, floats_of
from edgecsi.kernels.dense.walk import each_run, positions
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense
from edgecsi.target import Target


@dataclass(frozen=True)
class SliceDense(FloatDense):
    """Single weights, without any pattern, in slices of one weight for each output of a panel.

    Attributes:
        rows: outputs of a panel, a register of fp32.
        weights: ``f32`` or ``qs8w``.
    """

    weights: str
    rows: int

    def refuses(self, op: Dense, target: Target) -> str:
        if reason := super().refuses(op, target):
            return reason
        if reason := refuses_weights(op, self.weights, target):
            return reason
        if target.lanes_f32 != self.rows:
            return f"{target.id} has {target.lanes_f32} lanes, not {self.rows}"
        if self.rows > 4 and op.x.sample < 2 * self.rows:
            return "there are fewer inputs than a window has"
        if (stored_weights(op, self.weights) != 0).mean() > 0.6:
            return "too few weights are 0"
        return ""

    def unit(self, op: Dense, target: Target, knobs: Knobs) -> WindowUnit | GatherUnit | PlaneUnit:
        kind = str(stored_weights(op, self.weights).dtype)
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
        places = positions(op.x, 1)
        assert places is not None
        # As it lies in memory, gaps included: a window is what one load brings.
        stored = stored_weights(op, self.weights)
        spread = np.zeros((stored.shape[0], op.x.sample), stored.dtype)
        spread[:, places] = stored
        width = self._width(op, target, knobs)
        return pack_slices(spread, self.rows, width, knobs["align"], knobs["unroll"])

    def cost(self, op: Dense, target: Target, knobs: Knobs) -> Cost:
        unit, stored = self.unit(op, target, knobs), stored_weights(op, self.weights)
        width = self._width(op, target, knobs)
        slices = count_windows(stored, self.rows, width, knobs["align"], knobs["unroll"])
        window = isinstance(unit, WindowUnit)
        return cost(
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


@dataclass(frozen=True)
class PlaneDense(SliceDense):
    """Single weights, without any pattern, in slices that share a wide window of the input's byte planes."""

    rows: int = 16

    def refuses(self, op: Dense, target: Target) -> str:
        if "avx512vbmi" not in target.features:
            return f"{target.id} has no avx512vbmi"
        return super().refuses(op, target)

    def unit(self, op: Dense, target: Target, knobs: Knobs) -> PlaneUnit:
        return PlaneUnit(str(stored_weights(op, self.weights).dtype), knobs["slices"])

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
        stored = stored_weights(op, self.weights)
        return padded(stored, 1, PlaneUnit.width if stored.shape[1] < PlaneUnit.width else 64)

    def _windows(self, op: Dense, knobs: Knobs) -> int:
        return count_windows(self._padded(op), 16, PlaneUnit.width, knobs["align"], 1, knobs["slices"])

    def _slices(self, op: Dense, target: Target, knobs: Knobs) -> Slices:
        return pack_slices(self._padded(op), 16, PlaneUnit.width, knobs["align"], 1, knobs["slices"])

    def copies_input(self, op: Dense, knobs: Knobs) -> bool:
        return True

    def bring_input(
        self,
        op: Dense,
        target: Target,
        knobs: Knobs,
        unit: FloatUnit,
        x: Any,
        scratch: Any,
        inputs: Any | None,
    ) -> tuple[Any, int]:
        assert isinstance(unit, PlaneUnit)
        stride = self._copy_stride(op, knobs)
        unit.split(op.x, x, scratch, stride)
        return scratch, 4 * stride

    def _copy_stride(self, op: Dense, knobs: Knobs) -> int:
        return int(self._padded(op).shape[1])

    def cost(self, op: Dense, target: Target, knobs: Knobs) -> Cost:
        unit, windows = self.unit(op, target, knobs), self._windows(op, knobs)
        return cost(
            target,
            batch=op.x.shape[0],
            blocks=windows,
            panels=-(-op.weight.shape[0] // 16),
            vectors=unit.slices,
            vector_bytes=16 * (stored_weights(op, self.weights).itemsize + 1),
            instructions=unit.steps,
            index_bytes=2,
            input_loads=8,
            samples=knobs["samples"],
            prepared=20 * op.weight.shape[1],
            macs=windows * unit.elements,
        )


class WindowUnit(FloatUnit):
    """Single weights, one of each output, whose inputs lie in a window of two registers: a permutation
    fetches them.

    `lane` is the buffer of `Slices.lane`, a byte for each weight, as `code` writes them.
    """

    def __init__(self, lanes: int, dtype: str) -> None:
        super().__init__(lanes, lanes, dtype)
        self.width = 2 * lanes
        self.steps = 5.0 if lanes == 16 else 6.0

    def code(self, lane: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Lanes of the window as bytes; on 8 lanes the sign picks the second register."""
        if self.lanes == 16:
            return lane.astype(np.uint8)
        return ((lane & 7) | ((lane >> 3) << 7)).astype(np.uint8)

    def prepare(self, named: Mapping[str, Any]) -> None:
        self.lane = named["lane"]

    def load_weights(self, buffer: Any, offset: Expr) -> Any:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        weights = super().load_weights(buffer, offset)
        code = e.load(self.lane, offset, self.lanes)
        if self.lanes == 8:
            code = T.reinterpret(code, dtype="int8x8")
        return [weights[0], e.let(T.cast(code, f"int32x{self.lanes}"))]

    def load_input(self, buffer: Any, offset: Expr) -> Any:
        from edgecsi.kernels import emit as e

        return [e.let(e.load(buffer, offset + half, self.lanes)) for half in (0, self.lanes)]

    def step(self, sums: Sequence[Expr], weights: Sequence[Any], inputs: Sequence[Any]) -> list[Expr]:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        (w, lane), (a, b) = weights[0], inputs[0]
        kind = f"float32x{self.lanes}"
        if self.lanes == 16:
            x = e.intrinsic("llvm.x86.avx512.vpermi2var.ps.512", kind, a, lane, b)
        else:
            low, high = (e.intrinsic("llvm.x86.avx2.permps", kind, v, lane) for v in (a, b))
            x = e.intrinsic("llvm.x86.avx.blendv.ps.256", kind, low, high, T.reinterpret(lane, dtype=kind))
        return [sums[0] + w * x]


class PlaneUnit(FloatUnit):
    """Single weights whose inputs lie in a window of 128, on CPUs that permute bytes (AVX-512 VBMI).

    The input lies in four planes in the workspace, as `split` leaves it there: the first bytes of all fp32
    numbers, then the second, and so on. A window of a plane is two registers, out of which one instruction
    fetches 64 bytes; four planes' are zipped back into 64 numbers. A block is `slices` slices of 16 outputs,
    4 at a time.

    `lane` is the buffer of `Slices.lane`, a byte for each weight, as `code` writes them.
    """

    width = 128

    def __init__(self, dtype: str, slices: int) -> None:
        super().__init__(16, 16, dtype)
        self.slices = slices
        # A permutation, two zips and the multiply-add: four of them start in the time of two loads.
        self.steps = 2.0 if dtype == "float32" else 3.0
        self.plane = 0

    @property
    def elements(self) -> int:
        return 16 * self.slices

    @property
    def accumulators(self) -> int:
        return 4

    def code(self, lane: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Lanes as bytes, in the order in which zipping puts them into their slices."""
        groups = lane.reshape(-1, 4, 4, 4).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(groups).reshape(-1).astype(np.uint8)

    def split(self, layout: Layout, x: Any, scratch: Any, plane: int) -> None:
        """Emit the pass that writes the planes, `plane` bytes each, 4 a sample."""
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        self.plane = plane
        with e.serial(layout.shape[0]) as sample:

            def write(element: Any, offset: Any, count: int) -> None:
                value = e.load(x, sample * layout.stride + offset, count)
                value = e.let(T.reinterpret(value, dtype=f"uint8x{4 * count}"))
                for k in range(4):
                    e.store(
                        scratch,
                        (sample * 4 + k) * plane + element,
                        e.shuffle([value], range(k, 4 * count, 4)),
                    )

            each_run(layout, 64, write)

    def prepare(self, named: Mapping[str, Any]) -> None:
        self.lane = named["lane"]

    def load_weights(self, buffer: Any, offset: Expr) -> Any:
        from edgecsi.kernels import emit as e

        groups = []
        for first in range(0, self.elements, 64):
            here = offset + first
            vectors = [FloatUnit.load_weights(self, buffer, here + k)[0] for k in range(0, 64, 16)]
            groups.append((vectors, e.let(e.load(self.lane, here, 64))))
        return groups

    def load_input(self, buffer: Any, offset: Expr) -> Any:
        from edgecsi.kernels import emit as e

        return [
            [e.let(e.load(buffer, offset + k * self.plane + half, 64)) for half in (0, 64)] for k in range(4)
        ]

    def step(self, sums: Sequence[Expr], weights: Sequence[Any], inputs: Sequence[Any]) -> list[Expr]:
        from edgecsi.kernels import emit as e

        result = list(sums)
        for vectors, lane in weights[0]:
            planes = [
                e.intrinsic("llvm.x86.avx512.vpermi2var.qi.512", "uint8x64", low, lane, high)
                for low, high in inputs[0]
            ]
            for k, (w, x) in enumerate(zip(vectors, floats_of(planes), strict=True)):
                result[k] = e.let(result[k] + w * x)
        return result

    def total(self, sums: Sequence[Expr]) -> Expr:
        return (sums[0] + sums[1]) + (sums[2] + sums[3])


class GatherUnit(FloatUnit):
    """Single weights, one of each output, whose inputs are loaded one by one; each output has its own sum.

    `lane` is the buffer of where they lie in a sample's memory.
    """

    width = 1 << 30

    def __init__(self, outputs: int, dtype: str) -> None:
        super().__init__(1, outputs, dtype)
        # Bound by its loads: place and input of each weight, and the weights.
        self.steps = 2.0 * outputs + 1.0

    def prepare(self, named: Mapping[str, Any]) -> None:
        self.lane = named["lane"]

    def load_weights(self, buffer: Any, offset: Expr) -> Any:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        places = [e.let(T.cast(self.lane[offset + k], "int32")) for k in range(self.outputs)]
        return list(zip(super().load_weights(buffer, offset), places, strict=True))

    def load_input(self, buffer: Any, offset: Expr) -> Any:
        return buffer, offset

    def step(self, sums: Sequence[Expr], weights: Sequence[Any], inputs: Sequence[Any]) -> list[Expr]:
        from edgecsi.kernels import emit as e

        buffer, offset = inputs[0]
        # The fences keep LLVM from collecting the sums in a vector, which takes more instructions.
        return [
            e.fence(total) + w * e.fence(buffer[offset + place])
            for total, (w, place) in zip(sums, weights[0], strict=True)
        ]
