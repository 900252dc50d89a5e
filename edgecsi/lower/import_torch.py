"""ATen operators to Relax; every operator that cannot be lowered is named at once.

`edgecsi.lower.export` has made the graph and computed the weights; here each node becomes Relax calls by the table of
`edgecsi.lower.operators`. TVM has an importer of its own, which is not used: of the operators that it knows it gets
some wrong (SELU, indices, pooling, interpolation, integer types), and it cannot be told what a weight is called.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.errors import ModelError, UnsupportedOperators
from edgecsi.lower.export import Exported, export, refuse_other_answers
from edgecsi.lower.refuse import arguments_of, is_effect, line_of, path_of

if TYPE_CHECKING:
    import torch
    import tvm
    from torch import fx

# Types that are computed in float32 and rounded after every operation, which is what PyTorch does on a CPU.
ROUNDED = ("float16", "bfloat16")
# Arguments that name an axis.
AXES = ("dim", "dims", "dim0", "dim1", "dim2", "axis")
# Operators whose axes count the one they add.
ADDS_AXIS = ("unsqueeze", "stack")


@dataclass
class Imported:
    """A Relax module and what it lost on the way.

    Attributes:
        relax: module with one function ``main``; the weights are parameters behind the inputs.
        parameters: by Relax parameter name: the weight, and its name in the PyTorch module.
        inputs: how many parameters of ``main`` are inputs.
    """

    relax: tvm.IRModule
    parameters: dict[str, tuple[NDArray[Any], str]]
    inputs: int


@dataclass
class Call:
    """A node with its arguments by name, as converters see it.

    Attributes:
        arguments: tensors are Relax expressions, axes are counted from the front, defaults are filled in.
        shapes, dtypes: of the tensors among the arguments (of the first in a list), by name.
        shape, dtype: of the (first) result. node: where it came from.
    """

    importer: Importer
    node: fx.Node
    arguments: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    shape: tuple[int, ...]
    dtype: str

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def emit(self, expression: Any) -> Any:
        return self.importer.builder.emit(expression)

    def te(self, function: Callable[..., Any], *arguments: Any, name: str) -> Any:
        """Emit a definition of our own, in TVM's tensor expressions."""
        return self.importer.builder.emit_te(function, *arguments, primfunc_name_hint=name)

    def cast(self, value: Any, dtype: str) -> Any:
        """A tensor or number as a tensor of this type."""
        from tvm import relax

        if not isinstance(value, relax.Expr):
            return relax.const(_fit(value, dtype), dtype)
        if str(value.ty.dtype) == dtype:
            return value
        return self.emit(relax.op.astype(value, dtype))

    def constant(self, array: NDArray[Any]) -> Any:
        from tvm import relax

        return relax.const(np.ascontiguousarray(array).reshape(array.shape), str(array.dtype))

    def meta(self, name: str) -> Any:
        """What PyTorch knows of an argument: a number, or a tensor whose type and rank count."""
        from torch import fx

        given = arguments_of(self.node).get(name)
        return self.importer.held(given) if isinstance(given, fx.Node) else given

    def known(self, value: Any) -> Any:
        """The torch tensor behind an argument of the node, if it depends on no input."""
        return self.importer.exported.constants.get(value)


def import_torch(module: torch.nn.Module, example: Sequence[torch.Tensor]) -> Imported:
    """Export `module` at the shapes of `example` and translate it to Relax.

    Raises:
        ModelError: torch.export refuses the module, a shape is dynamic, or a tensor holds NaN.
        UnsupportedOperators: operators that cannot be lowered, all of them, with module paths and lines.
    """
    import torch

    exported = export(module, example)
    importer = Importer(exported)
    importer.refuse()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        refuse_other_answers(module, exported, example)
    return importer.run()


@dataclass
class Importer:
    """Translates one graph."""

    exported: Exported
    builder: Any = None
    values: dict[Any, Any] = field(default_factory=dict)

    def run(self) -> Imported:
        from tvm import relax

        nodes = self._nodes()
        inputs = [self._input(node) for node in self.exported.inputs]
        parameters, weights = self._parameters(nodes)
        self.builder = relax.BlockBuilder()
        with self.builder.function("main", [*inputs, *parameters]):
            with self.builder.dataflow():
                for node, variable in zip(self.exported.inputs, inputs, strict=True):
                    self.values[node] = self._convert(variable, held_as(node.meta["val"]))
                for node in nodes:
                    self.values[node] = self._translate(node)
                results = [self._output(node) for node in self.exported.outputs]
                out = self.builder.emit_output(results[0] if len(results) == 1 else relax.Tuple(results))
            self.builder.emit_func_output(out)
        return Imported(self.builder.get(), weights, len(inputs))

    def _nodes(self) -> list[fx.Node]:
        """The calls that depend on an input and are used."""
        return [n for n in self.exported.graph.nodes if n not in self.exported.constants and self._is_live(n)]

    def _is_live(self, node: fx.Node) -> bool:
        return node.op == "call_function" and bool(node.users) and not is_effect(node)

    def refuse(self) -> None:
        """Refuse what stands in no table.

        Raises:
            UnsupportedOperators: all of it.
        """
        from edgecsi.lower.operators import OPERATORS

        missing = []
        for node in self._nodes():
            name = name_of(node)
            if name not in OPERATORS and not name.startswith("edgecsi.") and name != "getitem":
                place = ", ".join(part for part in (path_of(node), line_of(node)) if part)
                missing.append((name.removesuffix(".default"), place))
        if missing:
            raise UnsupportedOperators(list(dict.fromkeys(missing)))

    def _parameters(self, nodes: list[fx.Node]) -> tuple[list[Any], dict[str, tuple[NDArray[Any], str]]]:
        """A Relax parameter for every constant that a node or the caller reads."""
        import torch

        variables: list[Any] = []
        weights: dict[str, tuple[NDArray[Any], str]] = {}
        read = [s for node in nodes for s in node.all_input_nodes] + self.exported.outputs
        for node in dict.fromkeys(read):
            held = self.exported.constants.get(node)
            if node in self.exported.constants and isinstance(held, torch.Tensor):
                variable = self._variable(node)
                variables.append(variable)
                kept = held.float() if dtype_of(held) in ROUNDED else held
                weights[node.name] = (kept.contiguous().numpy(), self.exported.names.get(node, node.name))
        return variables, weights

    def _variable(self, node: fx.Node) -> Any:
        from tvm import relax

        held: Any = self.exported.constants.get(node, node.meta.get("val"))
        kind = relax.TensorType(tuple(int(n) for n in held.shape), held_as(held))
        self.values[node] = relax.Var(node.name, kind)
        return self.values[node]

    def _input(self, node: fx.Node) -> Any:
        """An input as the caller gives it: float32, or int32 for integers and booleans."""
        from tvm import relax

        held = node.meta["val"]
        return relax.Var(node.name, relax.TensorType(tuple(int(n) for n in held.shape), given_as(held)))

    def _output(self, node: fx.Node) -> Any:
        """An output as the caller takes it: float32, or int32 for integers and booleans."""
        from tvm import te, tirx

        held, value = self.held(node), self.values[node]
        wanted = given_as(held)
        if wanted == "float32":
            return self._convert(value, wanted)
        # by a computation of its own, even if nothing changes: only float32 can be written in place
        shape = [int(n) for n in value.ty.shape]
        return self.builder.emit_te(
            lambda t: te.compute(shape, lambda *i: tirx.Cast(wanted, t(*i)), name="output"), value,
            primfunc_name_hint="output",
        )  # fmt: skip

    def _convert(self, value: Any, dtype: str) -> Any:
        from tvm import relax

        return value if str(value.ty.dtype) == dtype else self.builder.emit(relax.op.astype(value, dtype))

    def _translate(self, node: fx.Node) -> Any:
        from torch import fx

        from edgecsi.lower.operators import MOVES, OPERATORS

        name = name_of(node)
        if name.startswith("edgecsi."):
            return self._pass_through(node)
        if name == "getitem":
            source, index = node.args[0], node.args[1]
            if self.values[source][index] is None:
                assert isinstance(source, fx.Node)
                place = ", ".join(part for part in (path_of(source), line_of(source)) if part)
                raise UnsupportedOperators([(f"output {index} of {name_of(source)}", place)])
            return self.values[source][index]
        call = self._call(node)
        try:
            result = OPERATORS[name](call)
        except Exception as error:
            raise ModelError(
                f"{name} cannot be lowered (in {path_of(node) or 'the top module'}{', ' * bool(line_of(node))}"
                f"{line_of(node)})",
                f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
                "write it with simpler operators; --debug shows where it failed",
            ) from error
        wanted = node.meta["val"]
        if isinstance(result, tuple):
            return tuple(r if r is None else self._finish(r, w) for r, w in zip(result, wanted, strict=False))
        return self._finish(result, wanted, rounds=name not in MOVES)

    def _finish(self, result: Any, wanted: Any, rounds: bool = True) -> Any:
        """Round what PyTorch rounds; the result must have the shape and type that PyTorch says it has."""
        dtype = dtype_of(wanted)
        if dtype in ROUNDED:
            if rounds:
                result = self._rounded(result, dtype)
            dtype = "float32"
        shape = tuple(int(n) for n in result.ty.shape)
        if shape != tuple(wanted.shape) or str(result.ty.dtype) != dtype:
            raise ModelError(
                "an operator was translated wrongly",
                f"it gives {result.ty.dtype} {shape}, PyTorch {dtype} {tuple(wanted.shape)}",
                "please report this with the model",
            )
        return result

    def _rounded(self, x: Any, dtype: str) -> Any:
        """To half precision and back. LLVM's own bfloat16 crashes on some CPUs, so its bits are cut here."""
        from tvm import relax, te, tirx

        if dtype == "float16":
            narrow = self.builder.emit(relax.op.astype(x, dtype))
            return self.builder.emit(relax.op.astype(narrow, "float32"))

        def cut(number: Any) -> Any:
            bits = tirx.reinterpret("uint32", number)
            even = bits + tirx.const(0x7FFF, "uint32") + ((bits >> 16) & tirx.const(1, "uint32"))
            near = tirx.reinterpret("float32", even & tirx.const(0xFFFF0000, "uint32"))
            return tirx.Select(tirx.isnan(number), number, near)

        shape = [int(n) for n in x.ty.shape]
        return self.builder.emit_te(
            lambda t: te.compute(shape, lambda *i: cut(t(*i)), name="bfloat16"),
            x,
            primfunc_name_hint="bfloat16",
        )

    def _call(self, node: fx.Node) -> Call:
        from torch import fx

        given = arguments_of(node)
        shapes, dtypes = {}, {}
        for name, value in given.items():
            first = (
                next((v for v in value if isinstance(v, fx.Node)), None)
                if isinstance(value, list | tuple)
                else value
            )
            held = self.held(first)
            if held is not None:
                shapes[name], dtypes[name] = tuple(int(n) for n in held.shape), dtype_of(held)
        rank = len(shapes[next(iter(shapes))]) if shapes else 0
        rank += name_of(node).split(".")[0] in ADDS_AXIS
        arguments = {n: self._argument(_from_front(v, rank) if n in AXES else v) for n, v in given.items()}
        result = node.meta["val"]
        first_result = result[0] if isinstance(result, list | tuple) else result
        return Call(
            self,
            node,
            arguments,
            shapes,
            dtypes,
            tuple(int(n) for n in first_result.shape),
            dtype_of(first_result),
        )

    def held(self, node: Any) -> Any:
        """The tensor, real or imagined, that a node stands for."""
        import torch
        from torch import fx

        if not isinstance(node, fx.Node):
            return None
        value = self.exported.constants.get(node, node.meta.get("val"))
        return value if isinstance(value, torch.Tensor) else None

    def _argument(self, value: Any) -> Any:
        from torch import fx

        if isinstance(value, fx.Node):
            return self.values[value] if value in self.values else self.exported.constants[value]
        if isinstance(value, list | tuple):
            return [self._argument(v) for v in value]
        return value

    def _pass_through(self, node: fx.Node) -> Any:
        """Keep one of our own operators as an opaque Relax call; `from_relax` knows what it means.

        Relax calls carry tensors only, so everything else travels in the name:
        ``edgecsi.quantize [[null, 0.5, 3], "encoder.fc"]``: the arguments, with a null for every tensor and "none"
        for one left out, and the path of the module.
        """
        from torch import fx
        from tvm import relax

        tensors: list[Any] = []
        rest: list[Any] = []
        for argument in node.args:
            if isinstance(argument, fx.Node):
                tensors.append(self.values[argument])
                rest.append(None)
            else:
                rest.append(
                    "none"
                    if argument is None
                    else list(argument)
                    if isinstance(argument, list | tuple)
                    else argument
                )
        meta = node.meta["val"]
        result = relax.TensorType(tuple(int(n) for n in meta.shape), dtype_of(meta))
        name = f"{name_of(node).removesuffix('.default')} {json.dumps([rest, path_of(node)])}"
        return self.builder.emit(relax.op.call_pure_packed(name, *tensors, ty_args=[result]))


def name_of(node: fx.Node) -> str:
    """``add.Tensor``; of an operator that is not PyTorch's own also its name space, ``edgecsi.quantize.default``."""
    return str(node.target).removeprefix("aten.") if hasattr(node.target, "_schema") else node.target.__name__  # type: ignore[union-attr]


def dtype_of(tensor: Any) -> str:
    """The type of a tensor as numpy spells it."""
    return str(tensor.dtype).removeprefix("torch.")


def held_as(tensor: Any) -> str:
    """The type a tensor is held in while the network runs."""
    dtype = dtype_of(tensor)
    return "float32" if dtype in ROUNDED else dtype


def given_as(tensor: Any) -> str:
    """The type of a tensor as an input or output of the library."""
    return "float32" if tensor.is_floating_point() else "int32"


def _from_front(axes: Any, rank: int) -> Any:
    if isinstance(axes, list | tuple):
        return [_from_front(a, rank) for a in axes]
    return axes + max(rank, 1) if isinstance(axes, int) and not isinstance(axes, bool) and axes < 0 else axes


def _fit(value: Any, dtype: str) -> Any:
    if dtype.startswith(("int", "uint")):
        return int(value)
    return bool(value) if dtype == "bool" else float(value)
