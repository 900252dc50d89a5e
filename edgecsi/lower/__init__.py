"""From a PyTorch module to a list of kernel calls.

    export ─▶ import_torch ─▶ from_relax ─▶ PASSES ─▶ integers_in_fp32 ─▶ leave_to_tvm ─▶ choose_layouts
        ─▶ select_kernels ─▶ plan_calls

``lower(...)`` runs it all; `dump` is called with the name and the text of the IR after every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgecsi.codegen.program import PlannedEntry
from edgecsi.kernels.records import Records
from edgecsi.lower.as_elementwise import as_elementwise
from edgecsi.lower.choose_layouts import choose_layouts
from edgecsi.lower.drop_softmax_guard import drop_softmax_guard
from edgecsi.lower.fallback import merge_generic
from edgecsi.lower.fold_constants import fold_constants
from edgecsi.lower.from_relax import from_relax
from edgecsi.lower.fuse_elementwise import fuse_elementwise
from edgecsi.lower.graph import Graph, Node
from edgecsi.lower.import_torch import import_torch
from edgecsi.lower.integers_in_fp32 import integers_in_fp32
from edgecsi.lower.leave_to_tvm import leave_to_tvm
from edgecsi.lower.merge_views import merge_views
from edgecsi.lower.plan_calls import Planner, describe
from edgecsi.lower.recognise_activations import recognise_activations
from edgecsi.lower.recognise_layers import recognise_layers
from edgecsi.lower.refuse import net
from edgecsi.lower.select_kernels import Choice, select_kernels
from edgecsi.lower.use_records import use_records
from edgecsi.names import batch_entry
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
    merge_views,
    merge_generic,
]


def lower(
    module: torch.nn.Module,
    example: Sequence[torch.Tensor],
    entry: str,
    target: Target,
    dump: Dump = lambda name, text: None,
    batches: Sequence[int] = (),
    records: Records | None = None,
) -> list[PlannedEntry]:
    """Lower one entry of a model for a target.

    Args:
        module: in eval mode. example: its inputs; the shapes are compiled in.
        batches: also make entries ``<entry>_b<N>`` that take N inputs at once.
        records: what tuning measured; without them every choice is the predicted one.

    Raises:
        ModelError: the module cannot be exported or holds weights that are not finite.
        UnsupportedOperators: operators without a lowering, all of them.
    """
    graph, chosen = choose(module, example, entry, target, dump)
    if records is not None:
        use_records(chosen, target, records)
    with net("plan_calls"):
        planner = Planner(graph, chosen, target)
        entries = [planner.entry(entry, 1)]
        for count in batches:
            wide = planner.batched(count)
            if records is not None:
                use_records([c for c in wide if not any(c is plain for plain in chosen)], target, records)
            entries.append(planner.entry(batch_entry(entry, count), count, wide))
    for planned in entries:
        dump(f"plan-{planned.name}", describe(planned))
    return entries


def choose(
    module: torch.nn.Module,
    example: Sequence[torch.Tensor],
    entry: str,
    target: Target,
    dump: Dump = lambda name, text: None,
) -> tuple[Graph, list[Choice | Node]]:
    """The graph of one entry with its tensors laid out, and a kernel for every node; arguments and errors as for
    :func:`lower`."""
    with net("import_torch"):
        imported = import_torch(module, example)
    dump("relax", imported.relax.script())
    with net("from_relax"):
        graph = from_relax(imported, entry)
    dump("graph", str(graph))
    for one_pass in PASSES:
        with net(one_pass.__name__):
            one_pass(graph)
        dump(one_pass.__name__, str(graph))
    for value in [*graph.inputs, *graph.outputs]:
        assert value.dtype in ("float32", "int32"), value
    with net("integers_in_fp32"):
        integers_in_fp32(graph, target)
    dump("integers_in_fp32", str(graph))
    with net("leave_to_tvm"):
        leave_to_tvm(graph, target)
    dump("leave_to_tvm", str(graph))
    with net("choose_layouts"):
        choose_layouts(graph, target)
    dump("choose_layouts", str(graph))
    with net("select_kernels"):
        return graph, select_kernels(graph, target)
