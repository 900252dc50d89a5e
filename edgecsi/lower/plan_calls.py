"""Chosen kernels become calls with places in memory, for one input or for a batch of them.

A batch runs in segments: fully connected layers take all samples at once, so that every weight is read once; what lies
between them runs sample by sample, so that its activations stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.bundle import Tensor
from edgecsi.codegen.compile import tvm_target
from edgecsi.codegen.program import Call, Place, PlannedEntry
from edgecsi.kernels.base import constant_bytes
from edgecsi.kernels.variants import candidates
from edgecsi.lower.fallback import legalise
from edgecsi.lower.graph import Graph, Node, Value
from edgecsi.lower.plan_memory import Need, plan_memory, sample_stride
from edgecsi.lower.refuse import net
from edgecsi.lower.select_kernels import Choice, used_density
from edgecsi.names import batch_shape
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense, Op
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


@dataclass
class Unplaced:
    """A kernel call before its memory is planned."""

    function: PrimFunc
    reads: list[Value]
    writes: Value
    constants: list[NDArray[Any]]
    scratch: int
    report: dict[str, Any]


class Planner:
    """Makes the entries of one graph; kernels are emitted once and shared by all batch sizes."""

    def __init__(self, graph: Graph, chosen: list[Choice | Node], target: Target) -> None:
        self.graph, self.chosen, self.target = graph, chosen, target
        self.single = [self._steps(choice) for choice in chosen]

    def batched(self, batch: int) -> list[Choice | Node]:
        """The choices for `batch` inputs at once: those of fully connected layers are of all of them."""
        return [
            self._whole(choice, batch) if batch > 1 and _takes_batches(choice) else choice
            for choice in self.chosen
        ]

    def entry(self, name: str, batch: int, chosen: Sequence[Choice | Node] | None = None) -> PlannedEntry:
        """The entry that takes `batch` inputs at once, by default with what :meth:`batched` chooses."""
        steps: list[Unplaced] = []
        needs: list[Need] = []
        segment, was_looped = 0, True
        for choice, plain, single in zip(
            chosen or self.batched(batch), self.chosen, self.single, strict=True
        ):
            whole = batch > 1 and _takes_batches(plain)
            if whole or not was_looped:
                segment += 1
            was_looped = not whole
            made = single if choice is plain else self._steps(choice)
            steps += made
            needs += [Need(s.reads, s.writes, s.scratch, segment, not whole) for s in made]
        memory = plan_memory(self.graph, needs, batch)
        calls = []
        for step, need, room in zip(steps, needs, memory.scratch, strict=True):
            constants = list(step.constants)
            arguments = []
            for value in step.reads:
                if value.data is None:
                    arguments.append(memory.places[id(value)])
                else:
                    constants.append(np.ascontiguousarray(value.data))
                    arguments.append(Place("constant", len(constants) - 1))
            arguments += [Place("constant", i) for i in range(len(step.constants))]
            arguments += [memory.places[id(step.writes)], *([room] if room else [])]
            repeat = batch if need.looped else 1
            report = step.report | {"macs": step.report["macs"] * repeat}
            if step.report["predicted_us"] is not None:
                report["predicted_us"] = round(step.report["predicted_us"] * repeat, 3)
            calls.append(
                Call(
                    report["name"],
                    report["kernel"],
                    step.function,
                    arguments,
                    constants,
                    report,
                    repeat,
                    need.segment,
                )
            )
        inputs, outputs = (
            [
                Tensor(
                    v.name,
                    batch_shape(v.shape, batch) if batch > 1 else v.shape,
                    "int32" if v.dtype == "int32" else "float32",
                )
                for v in values
            ]
            for values in (self.graph.inputs, self.graph.outputs)
        )
        return PlannedEntry(name, inputs, outputs, calls, memory.workspace)

    def _steps(self, choice: Choice | Node) -> list[Unplaced]:
        if isinstance(choice, Choice):
            return [self._step(choice)]
        steps = []
        with net("legalise", choice.attrs["name"], choice.path):
            pieces = legalise(choice, tvm_target(self.target), self.target.lanes_f32)
        for piece in pieces:
            report = {
                "name": choice.path or choice.output.name, "op": choice.attrs["name"], "kernel": "tvm",
                "why": "no kernel of ours", "knobs": {}, "macs": 0, "density": 1.0, "bits": 32, "predicted_us": None,
                "bytes": sum(v.data.nbytes for v in piece.reads if v.data is not None),
            }  # fmt: skip
            steps.append(Unplaced(piece.function, piece.reads, piece.writes, [], 0, report))
        return steps

    def _step(self, choice: Choice) -> Unplaced:
        op, kernel, knobs = choice.op, choice.kernel, choice.knobs
        constants = kernel.constants(op, self.target, knobs)
        weight = getattr(op, "weight", None)
        report = {
            "name": op.name, "op": type(op).__name__.lower(), "kernel": kernel.name, "why": choice.why,
            "knobs": dict(knobs), "bytes": constant_bytes(constants), "macs": op.macs,
            "density": 1.0 if weight is None else round(used_density(weight, getattr(op, "table", None)), 6),
            "bits": _bits(weight, constants),
            "predicted_us": round(choice.cost.seconds * 1e6, 3),
        }  # fmt: skip
        function = kernel.emit(op, self.target, knobs)
        scratch = kernel.scratch(op, self.target, knobs)
        return Unplaced(function, choice.reads, choice.node.output, constants, scratch, report)

    def _whole(self, choice: Choice | Node, batch: int) -> Choice:
        """A fully connected layer for the whole batch, with the kernel that is best for that."""
        assert isinstance(choice, Choice)
        op = choice.op
        operands = [v for f in choice.node.epilogue if (v := f.operand) is not None]
        layouts = iter(
            [self._batched(v, s.operand, batch) for v, s in zip(operands, _binary(op), strict=True)]
        )
        epilogue = tuple(
            replace(s, operand=next(layouts)) if s.operand is not None else s for s in op.epilogue
        )
        x, y = self._batched(choice.reads[0], op.x, batch), self._batched(choice.node.output, op.y, batch)
        wide = replace(op, x=x, y=y, epilogue=epilogue)
        found, _ = candidates(wide, self.target)
        kernel, knobs, cost = found[0]
        return Choice(choice.node, wide, kernel, knobs, cost, f"for {batch} at once", choice.reads)

    def _batched(self, value: Value, layout: Layout | None, batch: int) -> Layout:
        assert layout is not None
        size = np.dtype(layout.dtype).itemsize
        stride = sample_stride(self.graph, value) // size if value.data is None else 0
        return replace(layout, shape=(batch, *layout.shape[1:]), batch_stride=stride)


def _bits(weight: NDArray[Any] | None, constants: list[NDArray[Any]]) -> int:
    """Of a weight as it is stored."""
    if weight is None:
        return 32
    return 16 if any(array.dtype == np.float16 for array in constants) else 8 * weight.dtype.itemsize


def _binary(op: Op) -> list[Any]:
    return [s for s in op.epilogue if s.operand is not None]


def _takes_batches(choice: Choice | Node) -> bool:
    return isinstance(choice, Choice) and isinstance(choice.op, Dense) and choice.op.x.shape[0] == 1


def describe(entry: PlannedEntry) -> str:
    """The plan of an entry as text: one line per call."""
    lines = [f"{entry.name}: {len(entry.calls)} calls, {entry.workspace} bytes of workspace"]
    for call in entry.calls:
        where = ", ".join(f"{p.kind}[{p.at}]+{p.offset}" for p in call.arguments)
        times = f" x {call.repeat}" if call.repeat > 1 else ""
        lines.append(f"  {call.kernel}({where}){times}  # {call.layer}")
    return "\n".join(lines) + "\n"
