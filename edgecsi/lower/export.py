"""PyTorch module to a graph of core ATen operators whose weights are computed: the front of the compiler.

    torch.export ─▶ decompose ─▶ fold_parameters ─▶ complex_as_pairs ─▶ the same answer?

What depends on parameters alone is computed here, by PyTorch itself: weight normalisation, masks, index tables. At the
end the graph is run beside the untouched module: nothing done on the way may change an answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgecsi.errors import EdgecsiError, ModelError
from edgecsi.lower.complex_as_pairs import complex_as_pairs, is_complex
from edgecsi.lower.decompose import decompositions
from edgecsi.lower.refuse import is_effect, line_of, refuse_operators, refuse_state, where_in_source

if TYPE_CHECKING:
    import torch
    from torch import fx

# Of the largest output. Exporting reorders a few fp32 operations; beyond it, rounding has to explain the difference.
CLOSE = 1e-4
ORDERS = ("topk", "sort", "median", "kthvalue")
# Operators that look at the shape and the type of their input only.
ONLY_SHAPE = ("full_like", "zeros_like", "ones_like", "new_full", "new_zeros", "new_ones")
EMPTY = ("empty", "empty_like", "new_empty", "empty_permuted", "empty_strided", "new_empty_strided")


@dataclass
class Exported:
    """A graph of ATen operators on real tensors.

    Attributes:
        graph: its nodes. inputs: the placeholders of the caller's tensors, in order.
        outputs: nodes of the tensors returned, in the order of the module's own.
        constants: value of every node that depends on no input. names: of these, the parameter each comes from.
    """

    graph: fx.Graph
    inputs: list[fx.Node]
    outputs: list[fx.Node]
    constants: dict[fx.Node, Any] = field(default_factory=dict)
    names: dict[fx.Node, str] = field(default_factory=dict)

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What the graph answers, in PyTorch."""
        values: dict[fx.Node, Any] = dict(zip(self.inputs, inputs, strict=True)) | self.constants
        for node in self.graph.nodes:
            if node.op == "call_function" and node not in values and not is_effect(node):
                values[node] = _call(node, values)
        return [values[node] for node in self.outputs]


def export(module: torch.nn.Module, example: Sequence[torch.Tensor]) -> Exported:
    """Export `module` at the shapes of `example`.

    Raises:
        ModelError: torch.export refuses the module, it is random or changes its own state, its shapes depend on
            data, a tensor holds NaN, or it is random.
    """
    import torch

    from edgecsi.lower.known_values import known_values, padded_encoders

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            with padded_encoders(module), known_values(module):
                # copies: one tensor given for two inputs is taken for one input
                program = torch.export.export(module, tuple(x.clone() for x in example))
        except EdgecsiError:
            raise
        except Exception as error:
            if "TensorWrapper" in str(error) or "forward mode AD" in str(error):
                raise ModelError(
                    f"the network takes gradients of itself{where_in_source(error)}",
                    "a compiled network has a forward pass only: torch.func.grad and its like cannot be exported",
                    "write the gradient as a formula",
                ) from error
            if "data-dependent" in str(error) or type(error).__name__ == "DataDependentOutputException":
                raise ModelError(
                    f"the network decides by the values it computes{where_in_source(error)}",
                    f"an if, a loop or a shape depends on data: {first_line(error)}",
                    "choose with torch.where instead; shapes and the order of operations are compiled in",
                ) from error
            scripted = [n for n, m in module.named_modules() if isinstance(m, torch.jit.ScriptModule)]
            if scripted:
                raise ModelError(
                    f"parts of the model are TorchScript: {', '.join(scripted)[:300]}",
                    f"torch.export cannot look into them: {first_line(error)}",
                    "take the Python modules they were made of, with the same weights",
                ) from error
            raise ModelError(
                "the model cannot be exported",
                f"torch.export: {first_line(error)}{where_in_source(error)}",
                "see https://docs.pytorch.org/docs/stable/export.html for what a module may do",
            ) from error
        refuse_operators(program.graph_module)
        try:
            program = program.run_decompositions(decompositions())
        except Exception as error:
            raise ModelError(
                "the model cannot be taken apart into operators",
                f"torch.export: {first_line(error)}",
                "write the layer it names with simpler operators",
            ) from error
        refuse_state(program)
        exported = _of_program(program)
        fold_parameters(exported)
        if any(is_complex(node) and node not in exported.constants for node in exported.graph.nodes):
            exported = complex_as_pairs(exported)
            fold_parameters(exported)
        _refuse_random(exported)
        _refuse_nan(exported)
    return exported


def _of_program(program: torch.export.ExportedProgram) -> Exported:
    from torch.export.graph_signature import TensorArgument

    nodes = {node.name: node for node in program.graph.nodes}
    inputs, constants, names = [], {}, {}
    for spec in program.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind.name == "USER_INPUT":
            inputs.append(node)
        elif spec.kind.name == "PARAMETER":
            constants[node], names[node] = program.state_dict[spec.target].detach(), str(spec.target)
        elif spec.kind.name in ("BUFFER", "CONSTANT_TENSOR"):
            held = program.constants.get(spec.target)
            constants[node] = (program.state_dict[spec.target] if held is None else held).detach()
            names[node] = str(spec.target)
    outputs = [
        nodes[spec.arg.name]
        for spec in program.graph_signature.output_specs
        if spec.kind.name == "USER_OUTPUT" and isinstance(spec.arg, TensorArgument)
    ]
    return Exported(program.graph, inputs, outputs, constants, names)


def fold_parameters(exported: Exported) -> None:
    """Compute every node whose inputs are all constant."""
    import torch

    for node in exported.graph.nodes:
        if node.op != "call_function" or node in exported.constants or is_effect(node):
            continue
        sources = node.all_input_nodes
        if _is_random(node):
            continue
        name = getattr(node.target, "_opname", "")
        if name in EMPTY:  # what lies in it is overwritten, but the library's bytes should not depend on it
            value = torch.zeros_like(_imagined(node))
        elif name in ONLY_SHAPE:
            value = _call(node, exported.constants | {s: _imagined(s) for s in sources})
        elif all(source in exported.constants for source in sources):
            value = _call(node, exported.constants)
        else:
            continue
        if isinstance(value, torch.Tensor) and value.layout is not torch.strided:
            raise ModelError(
                f"the network computes with sparse tensors{f' ({line_of(node)})' * bool(line_of(node))}",
                "PyTorch's sparse layouts have no form here; zeros are found in dense weights",
                "leave to_sparse() away: kernels for zeros are chosen where they pay",
            )
        exported.constants[node] = value.contiguous() if isinstance(value, torch.Tensor) else value
        named = [exported.names[s] for s in sources if s in exported.names]
        if named:
            exported.names[node] = next((n for n in named if "weight" in n), named[0])


def _imagined(node: fx.Node) -> Any:
    """A tensor of a node's shape and type."""
    import torch

    return torch.empty(node.meta["val"].shape, dtype=node.meta["val"].dtype)


def _call(node: fx.Node, values: dict[Any, Any]) -> Any:
    from torch.fx.node import map_arg

    arguments = map_arg((node.args, node.kwargs), lambda n: values[n])
    return node.target(*arguments[0], **arguments[1])  # type: ignore[operator]


def _is_random(node: fx.Node) -> bool:
    import torch

    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _refuse_random(exported: Exported) -> None:
    """Of a network that draws random numbers no answer is right, so none can be checked."""
    random = [
        str(node.target).split(".")[1] for node in exported.graph.nodes if node.users and _is_random(node)
    ]
    if random:
        raise ModelError(
            f"the model draws random numbers: {', '.join(dict.fromkeys(random))}",
            "its answers differ from call to call, so that none can be checked",
            "put noise and dropout aside in eval mode, or pass random tensors in as inputs",
        )


def _refuse_nan(exported: Exported) -> None:
    """Infinity may be a mask's; NaN is nobody's."""
    import torch

    bad = [
        exported.names[node]
        for node, held in exported.constants.items()
        if node.op != "call_function"
        and node in exported.names  # others are numbers that forward writes down
        and isinstance(held, torch.Tensor)
        and held.is_floating_point()
        and bool(held.isnan().any())
    ]
    if bad:
        raise ModelError(
            f"tensors of the model hold NaN: {', '.join(list(dict.fromkeys(bad))[:20])}",
            "everything computed from them is NaN",
            "load a checkpoint from before the training diverged, or initialise them",
        )


def refuse_other_answers(
    module: torch.nn.Module, exported: Exported, example: Sequence[torch.Tensor]
) -> None:
    """Compare the graph with the untouched module on the example and on random inputs.

    Raises:
        ModelError: they differ, or the module itself answers differently each time.
    """
    for number, inputs in enumerate([list(example), *random_inputs(example, 2)]):
        try:
            first, second = (tensors_of(module(*(x.clone() for x in inputs))) for _ in range(2))
        except Exception:  # the example runs; of other values a module may complain
            if number == 0:
                raise
            continue
        found = exported.run([x.clone() for x in inputs])
        for output, (one, other, ours) in enumerate(zip(first, second, found, strict=True)):
            if _apart(one, other) > CLOSE:
                raise ModelError(
                    "the model answers differently each time it is called",
                    "there is noise, dropout or state in forward",
                    "make forward deterministic in eval mode; pass random tensors in as inputs",
                )
            apart = _apart(ours, one)
            if not apart <= CLOSE and not _rounding_explains(module, inputs, output, ours, one):
                if any(getattr(part, "mask_check", True) is False for part in module.modules()):
                    raise ModelError(
                        "nn.TransformerEncoder(mask_check=False) moves tokens where padding stands among them",
                        f"so it answers {apart:.1e} of the largest output otherwise than its definition",
                        "leave mask_check away: then such padding is only masked",
                    )
                refuse_ties(module, [inputs], [found])
                raise ModelError(
                    "exporting the model changes its answer",
                    f"torch.export's graph differs from the module by {apart:.1e} of the largest output: forward "
                    "depends on something that is no tensor operation (a branch on values, state, numpy)",
                    "compute with torch operators on the inputs only",
                )


def refuse_ties(
    module: torch.nn.Module,
    calls: Sequence[Sequence[torch.Tensor]],
    found: Sequence[Sequence[torch.Tensor]],
) -> None:
    """Refuse a module that answers what was found, otherwise than it does by itself, once everything that orders values
    keeps the order of equal ones, as the graph and a library do.

    Args:
        calls: inputs of each. found: of each call, an answer other than the module's.

    Raises:
        ModelError: that is so.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    stable = {
        op: to for op, to in decompositions().items() if op.name().split("::")[1].split(".")[0] in ORDERS
    }

    class Stable(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return stable.get(func, func)(*args, **(kwargs or {}))

    decides = False
    for inputs, answers in zip(calls, found, strict=True):
        plain = tensors_of(module(*(x.clone() for x in inputs)))
        with Stable():  # type: ignore[no-untyped-call]
            in_order = tensors_of(module(*(x.clone() for x in inputs)))
        if not all(_apart(y.to(one.dtype), one) <= CLOSE for y, one in zip(answers, in_order, strict=True)):
            return
        decides |= any(_apart(y, one) > CLOSE for y, one in zip(plain, in_order, strict=True))
    if not decides:
        return
    raise ModelError(
        "the model's answer depends on which of equal values is named first",
        "topk, sort, median or kthvalue met several equal values, and PyTorch leaves the order of their places open",
        "take the places from torch.sort(x, stable=True), or use the values only",
    )


def random_inputs(example: Sequence[torch.Tensor], count: int) -> list[list[torch.Tensor]]:
    """Seeded inputs of the example's shapes and types; integers are the example's own, shuffled."""
    import torch

    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        inputs = []
        for x in example:
            if x.is_floating_point():
                inputs.append(
                    (torch.randn if number else torch.rand)(x.shape, generator=generator).to(x.dtype)
                )
            else:
                inputs.append(x.flatten()[torch.randperm(x.numel(), generator=generator)].reshape(x.shape))
        made.append(inputs)
    return made


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors in what a module returns, in the order of torch.export's outputs."""
    import torch
    from torch.utils import _pytree

    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _apart(y: torch.Tensor, expected: torch.Tensor) -> float:
    import torch

    if y.shape != expected.shape or y.dtype != expected.dtype:
        return float("inf")
    a, b = y.detach().double().flatten(), expected.detach().double().flatten()
    if not torch.equal(a.isnan(), b.isnan()):
        return float("inf")
    finite = b.isfinite() & a.isfinite()
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return float("inf")
    a, b = a[finite], b[finite]
    largest = float(b.abs().max()) if b.numel() else 0.0
    return float((a - b).abs().max()) / (largest or 1.0) if b.numel() else 0.0


def _rounding_explains(
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    output: int,
    ours: torch.Tensor,
    one: torch.Tensor,
) -> bool:
    """Whether rounding moves this output of the module by as much, within the bounds of the check of a build."""
    from edgecsi import rounding, verdict
    from edgecsi.models.compressed.layers import CompressedLayer

    if ours.shape != one.shape or ours.dtype != one.dtype:
        return False
    given = [x.clone() for x in inputs]
    y, expected = (t.detach().double().numpy() for t in (ours, one))
    if any(isinstance(part, CompressedLayer) for part in module.modules()):
        # A number on the border of two codes, or of two of half precision, may become the other.
        return verdict.difference(y, expected).max_rel_diff <= rounding.allowed(module, [given])
    moved = rounding.moved(module, given)[output]
    coarse = rounding.coarseness(module, given)
    return verdict.within_rounding(y, expected, moved, CLOSE, coarse) is not None


def first_line(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
