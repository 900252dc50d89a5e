"""What the dense kernels with fp32 activations share: their frame around the loop."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Kernel, Knobs
from edgecsi.kernels.dense.estimate import (
    indices_per_load,
)
from edgecsi.kernels.dense.f32_dense import refuses_half
from edgecsi.kernels.dense.loop import LoopShape, multiply
from edgecsi.kernels.dense.results import Results, spill_bytes, spills
from edgecsi.kernels.dense.sparse import (
    Compact,
    Section,
)
from edgecsi.kernels.dense.units import FloatUnit
from edgecsi.kernels.dense.walk import each_run
from edgecsi.ops.operators import Dense
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


@dataclass(frozen=True)
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
        """Emit the copy of the input, if there is one: the buffer that is read, and elements between samples there."""
        if not self.copies_input(op, knobs):
            return x, op.x.stride
        stride = self._copy_stride(op, knobs)
        _copy(op, target, x, scratch, stride, inputs)
        return scratch, stride

    def compact(self, op: Dense) -> Compact:
        """The weights, without rows and columns of zeros if all are stored."""
        return Compact(op.weight)

    def spills(self, op: Dense, target: Target) -> bool:
        """Whether sums go through the workspace."""
        return spills(op, self.compact(op).outputs is not None, target.lanes_f32)

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
        return self._copy_bytes(op, knobs) + (spill_bytes(op) if spilled else 0)

    def emit(self, op: Dense, target: Target, knobs: Knobs) -> PrimFunc:
        from edgecsi.kernels import emit as e

        unit = self.unit(op, target, knobs)
        batch = op.x.shape[0]
        packed = self._all(op, target, knobs)
        constants = [*packed.values(), *e.epilogue_constants(op)]
        loop = LoopShape(
            parts=self.parts(op, target, knobs),
            unroll=knobs["unroll"],
            sets=knobs["sets"],
            samples=knobs["samples"],
            blocks=self._copy_stride(op, knobs),
            ahead=knobs.get("ahead", 0),
            indices=indices_per_load(target),
        )
        if loop.unroll % unit.together:
            raise ValueError(f"this format takes {unit.together} inputs at once")
        with e.function(op, constants, self.scratch(op, target, knobs)) as (done, buffers):
            e.zero_halo(buffers[len(op.inputs) + len(constants)], op.y)
            named = dict(zip(packed, buffers[len(op.inputs) :], strict=False))
            finish = e.Finish(op, buffers, 1, len(op.inputs) + len(packed), target)
            scratch = buffers[-1]
            x, between = self.bring_input(op, target, knobs, unit, buffers[0], scratch, named.get("inputs"))
            unit.prepare(named)

            def value(total: Any, output: Any, sample: Any) -> Any:
                lanes = e.lanes_of(total)
                if "scale" in named:
                    total = total * e.load(named["scale"], output, lanes)
                if "bias" in named:
                    total = total + e.load(named["bias"], output, lanes)
                return total

            spilled = self.spills(op, target)
            spill = (scratch, self._copy_bytes(op, knobs)) if spilled else None
            results = Results(op, finish, target.lanes_f32, value, spill, named.get("outputs"))
            results.open()
            multiply(
                unit, loop, batch, named["weights"], x, between, named.get("index"), named.get("start"),
                results
            )  # fmt: skip
            results.close()
        return done.done()


_KINDS: dict[str, type[np.generic]] = {"f32": np.float32, "qs8w": np.int8}


def stored_weights(op: Dense, weights: str) -> NDArray[Any]:
    """The weights as a kernel of this kind stores them; fp32 ones are taken out of their table here."""
    if weights == "f16w":
        with np.errstate(over="ignore"):
            return op.weight.astype(np.float16)
    return op.dense_weight() if weights == "f32" else op.weight


def refuses_weights(op: Dense, weights: str, target: Target) -> str:
    """Why fp32, half-precision or int8 weights cannot be stored, if so."""
    if op.table is not None and (weights != "f32" or op.table.size <= 16):
        return "the weights are indices of a table"
    if weights == "f16w":
        if op.weight.dtype != np.float32:
            return "the weights are not float32"
        return refuses_half(op.weight, target)
    kind = np.dtype(_KINDS[weights])
    return "" if stored_weights(op, weights).dtype == kind else f"the weights are not {kind}"


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
            each_run(op.x, target.lanes_f32, copy)
        else:
            with e.serial(count) as k:
                copy(k, T.cast(inputs[k], "int32"), 1)
        for k in range(count, stride):
            e.store(scratch, (sample * stride + k) * 4, e.splat(0, 4, "uint8"))
