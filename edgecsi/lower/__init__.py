"""From a PyTorch module to a list of kernel calls.

    import_torch ─▶ from_relax ─▶ PASSES ─▶ choose_layouts ─▶ select_kernels ─▶ plan_memory ─▶ Entry

``lower(...)`` runs it all; `dump` is called with the name and the text of the IR after every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecsi.codegen.compile import tvm_target
from edgecsi.codegen.program import Call, Entry, Place, Tensor
from edgecsi.errors import ModelError
from edgecsi.kernels.base import constant_bytes
from edgecsi.lower.choose_layouts import choose_layouts
from edgecsi.lower.drop_softmax_guard import drop_softmax_guard
from edgecsi.lower.fallback import legalise, merge_generic
from edgecsi.lower.fold_constants import fold_constants
from edgecsi.lower.from_relax import from_relax
from edgecsi.lower.fuse_elementwise import as_elementwise, fuse_elementwise, merge_views
from edgecsi.lower.graph import Graph, Node, Value
from edgecsi.lower.import_torch import finite, import_torch
from edgecsi.lower.plan_memory import plan_memory
from edgecsi.lower.recognise_activations import recognise_activations
from edgecsi.lower.recognise_layers import recognise_layers
from edgecsi.lower.select_kernels import Choice, select_kernels, used_density
from edgecsi.target import Target

if TYPE_CHECKING:
    import torch

Dump = Callable[[str, str], None]

PASSES: list[Callable[[Graph], None]] = [
    fold_constants,
    drop_softmax_guard,
    recognise_activations,
    recognise_layers,
    merge_views,
    as_elementwise,
    fuse_elementwise,
    merge_views,
    fuse_elementwise,
    merge_generic,
]


def lower(
    module: torch.nn.Module,
    example: Sequence[torch.Tensor],
    entry: str,
    target: Target,
    dump: Dump = lambda name, text: None,
) -> Entry:
    """Lower one entry of a model for a target.

    Args:
        module: in eval mode. example: its inputs; the shapes are compiled in.

    Raises:
        ModelError: the module cannot be exported or holds weights that are not finite.
        UnsupportedOperators: operators without a lowering, all of them.
    """
    imported = import_torch(module, example)
    finite(imported.parameters)
    dump("relax", imported.relax.script())
    graph = from_relax(imported, entry)
    dump("graph", str(graph))
    for one_pass in PASSES:
        one_pass(graph)
        dump(one_pass.__name__, str(graph))
    for value in [*graph.inputs, *graph.outputs]:
        if value.dtype != "float32":
            raise ModelError(
                f"{entry}: {value.name} is {value.dtype}", "inputs and outputs of a library are float32",
                "convert inside of the module",
            )  # fmt: skip
    choose_layouts(graph, target)
    dump("choose_layouts", str(graph))
    steps = [s for chosen in select_kernels(graph, target) for s in _steps(chosen, target)]
    places, scratch, workspace = plan_memory(graph, [(s.reads, s.writes, s.scratch) for s in steps])
    calls = []
    for step, room in zip(steps, scratch, strict=True):
        constants = list(step.constants)
        arguments = []
        for value in step.reads:
            if value.data is None:
                arguments.append(places[id(value)])
            else:
                constants.append(np.ascontiguousarray(value.data))
                arguments.append(Place("constant", len(constants) - 1))
        arguments += [Place("constant", i) for i in range(len(step.constants))]
        arguments += [places[id(step.writes)], *([room] if room else [])]
        calls.append(Call(step.report["name"], step.kernel, step.function, arguments, constants, step.report))
    result = Entry(
        entry,
        [Tensor(v.name, v.shape) for v in graph.inputs],
        [Tensor(v.name, v.shape) for v in graph.outputs],
        calls,
        workspace,
    )
    dump("plan", describe(result))
    return result


class _Step:
    """A kernel call before its memory is planned."""

    def __init__(
        self, kernel: str, function: Any, reads: list[Value], constants: list[Any], writes: Value,
        scratch: int, report: dict[str, Any],
    ) -> None:  # fmt: skip
        self.kernel, self.function, self.reads, self.constants = kernel, function, reads, constants
        self.writes, self.scratch, self.report = writes, scratch, report


def _steps(chosen: Choice | Node, target: Target) -> list[_Step]:
    if isinstance(chosen, Choice):
        op, kernel, knobs = chosen.op, chosen.kernel, chosen.knobs
        constants = kernel.constants(op, target, knobs)
        weight = getattr(op, "weight", None)
        report = {
            "name": op.name, "op": type(op).__name__.lower(), "kernel": kernel.name, "why": chosen.why,
            "knobs": dict(knobs), "bytes": constant_bytes(constants), "macs": op.macs,
            "density": 1.0 if weight is None else round(used_density(weight, getattr(op, "table", None)), 6),
            "bits": 32 if weight is None else 8 * weight.dtype.itemsize,
            "predicted_us": round(chosen.cost.seconds * 1e6, 3),
        }  # fmt: skip
        function = kernel.emit(op, target, knobs)
        scratch = kernel.scratch(op, target, knobs)
        return [_Step(kernel.name, function, chosen.reads, constants, chosen.node.output, scratch, report)]
    steps = []
    for piece in legalise(chosen, tvm_target(target), target.lanes_f32):
        report = {
            "name": chosen.path or chosen.output.name, "op": chosen.attrs["name"], "kernel": "tvm", "why": "no kernel of ours",
            "knobs": {}, "bytes": sum(v.data.nbytes for v in piece.reads if v.data is not None), "macs": 0,
            "density": 1.0, "bits": 32, "predicted_us": 0.0,
        }  # fmt: skip
        steps.append(_Step("tvm", piece.function, piece.reads, [], piece.writes, 0, report))
    return steps


def describe(entry: Entry) -> str:
    """The plan of an entry as text: one line per call."""
    lines = [f"{entry.name}: {len(entry.calls)} calls, {entry.workspace} bytes of workspace"]
    for call in entry.calls:
        where = ", ".join(f"{p.kind}[{p.at}]+{p.offset}" for p in call.arguments)
        lines.append(f"  {call.kernel}({where})  # {call.layer}")
    return "\n".join(lines) + "\n"
