"""What a network may not do, each by the name its author knows it by, with the module and the line of the user's file."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgecsi.errors import EdgecsiError, ModelError, UnsupportedOperators

if TYPE_CHECKING:
    import torch
    from torch import fx

DROPOUTS = (
    "dropout",
    "alpha_dropout",
    "feature_dropout",
    "feature_alpha_dropout",
    "native_dropout",
    "dropout_",
)
# Operators whose result has as many elements as the data says.
BY_DATA = {
    "nonzero": "nonzero(), or indexing with a mask", "nonzero_numpy": "nonzero(), or indexing with a mask",
    "masked_select": "masked_select", "unique_dim": "unique", "_unique": "unique", "_unique2": "unique",
    "unique_consecutive": "unique_consecutive", "bincount": "bincount", "item": "item()",
    "_local_scalar_dense": "item(), or a Python number made of a tensor", "tolist": "tolist()",
}  # fmt: skip


def refuse_operators(module: torch.fx.GraphModule) -> None:
    """Refuse what draws random numbers and what has shapes that depend on data.

    Raises:
        ModelError: dropout that is left on, or random numbers in forward.
        UnsupportedOperators: results whose size depends on data.
    """
    import torch

    dropouts, random, sized = [], [], []
    for node in module.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = node.target._schema.name.removeprefix("aten::")
        given = arguments_of(node)
        if name in DROPOUTS:
            if given.get("train", given.get("training", True)) and (given.get("p") or 0) > 0:
                dropouts.append((name, node))
        elif torch.Tag.nondeterministic_seeded in node.target.tags:
            drops = next((given[n] for n in ("dropout_p", "dropout") if n in given), None)
            if drops is not None and drops > 0 and given.get("train", True):
                dropouts.append((name, node))
            elif drops is None and given.get("training", True) is not False:
                random.append((name, node))
        elif name in BY_DATA or (name == "index" and any(_is_mask(i) for i in node.args[1] or ())):
            sized.append((BY_DATA.get(name, BY_DATA["nonzero"]), node))
        elif name == "where" and len(node.args) == 1:
            sized.append(("where() of one argument, which is nonzero()", node))
    if dropouts:
        raise ModelError(
            f"dropout is left on: {_listed(dropouts)}",
            "F.dropout(x, p) drops at random even in eval mode, because training=True is its default",
            "write F.dropout(x, p, training=self.training), or use nn.Dropout",
        )
    if random:
        raise ModelError(
            f"the network draws random numbers: {_listed(random)}",
            "a compiled network gives the same answer each time",
            "draw them only while self.training, or pass them in as an input",
        )
    if sized:
        raise UnsupportedOperators(
            [(name, _place(node)) for name, node in sized],
            "how many elements these return depends on the data, and shapes are compiled in",
            "keep every element and choose with torch.where, or multiply by the mask",
        )


def refuse_state(program: torch.export.ExportedProgram) -> None:
    """Refuse modules that write to a buffer that their answer depends on. What they write to their input is left undone.

    Args:
        program: of functions only: after decomposition.

    Raises:
        ModelError: naming the buffer.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    reached: set[Any] = set()
    waiting = [
        nodes[spec.arg.name]
        for spec in program.graph_signature.output_specs
        if spec.kind.name == "USER_OUTPUT" and getattr(spec.arg, "name", None) in nodes
    ]
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += node.all_input_nodes
    held = {spec.target: spec.arg.name for spec in program.graph_signature.input_specs}
    for spec in program.graph_signature.output_specs:
        if (
            spec.kind.name not in ("USER_OUTPUT", "TOKEN", "USER_INPUT_MUTATION")
            and nodes.get(held.get(spec.target)) in reached
        ):
            raise ModelError(
                "the model changes its own state",
                f"{spec.target} is written during the forward pass, and the answer depends on it",
                "return new tensors instead of changing buffers in place",
            )


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by their names, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = {a.name: a.default_value if a.has_default_value() else None for a in schema.arguments}
    given |= {a.name: value for a, value in zip(schema.arguments, node.args, strict=False)}
    return given | dict(node.kwargs)


def path_of(node: fx.Node) -> str:
    """The module that an exported node comes from, ``encoder.fc``."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed([str(place) for place, _ in stack.values()]), "")


def line_of(node: fx.Node) -> str:
    """The line of the user's file that a node comes from, ``net.py:31``; empty if it is not known."""
    files = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [(name, line) for name, line in files if "/torch/" not in name and not name.startswith("<")]
    return f"{own[-1][0].rsplit('/', 1)[-1]}:{own[-1][1]}" if own else ""


def where_in_source(error: BaseException) -> str:
    """The last line of a user's file in a traceback, as `` (net.py:31)``."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f
        for f in frames
        if not any(part in f.filename for part in ("/torch/", "/edgecsi/", "<", "/lib/python"))
    ]
    return f" ({own[-1].filename.rsplit('/', 1)[-1]}:{own[-1].lineno})" if own else ""


def _is_mask(index: Any) -> bool:
    import torch

    held = getattr(index, "meta", {}).get("val")
    return isinstance(held, torch.Tensor) and held.dtype in (torch.bool, torch.uint8)


def _place(node: fx.Node) -> str:
    return ", ".join(part for part in (path_of(node), line_of(node)) if part)


def _listed(found: list[tuple[str, fx.Node]]) -> str:
    return ", ".join(dict.fromkeys(f"{name} (in {_place(node) or 'the top module'})" for name, node in found))


@contextmanager
def net(name: str, operator: str = "", path: str = "") -> Iterator[None]:
    """Turn an unexpected failure inside into a `ModelError`; ``--debug`` shows where it was.

    Args:
        name: the pass. operator, path: what it worked on, if that is known.
    """
    try:
        yield
    except (EdgecsiError, MemoryError, OSError):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        words = (lines[-1] if lines else "")[:200]
        about = f"{operator} (in {path or 'the top module'})" if operator else "the network"
        raise ModelError(
            f"{about} cannot be lowered: {name} does not know this form of it",
            f"{type(error).__name__}: {words}",
            "write it with other operators (docs/supported.md); --debug shows where it failed, please report that",
        ) from error


def is_effect(node: fx.Node) -> bool:
    """Assertions on values: what they guard is guarded by shapes, or by the reader of an index."""
    name = str(node.target)
    return "_assert" in name or "with_effects" in name or "sym_constrain" in name or _of_effect(node)


def _of_effect(node: fx.Node) -> bool:
    return any("with_effects" in str(s.target) for s in node.all_input_nodes)
