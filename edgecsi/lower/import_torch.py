"""PyTorch to Relax, through torch.export; every operator that cannot be lowered is named at once."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.errors import ModelError, UnsupportedOperators

if TYPE_CHECKING:
    import torch
    import tvm

# Custom operators of compressed layers (edgecsi.models.compressed.ops): passed through Relax under their own names.
CUSTOM = (
    "quantize",
    "quantize_wide",
    "qs8_conv2d",
    "qs8_linear",
    "qs8_wide_linear",
    "qd8_linear",
    "qs8w_linear",
    "lut_linear",
)


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


def import_torch(module: torch.nn.Module, example: Sequence[torch.Tensor]) -> Imported:
    """Export `module` at the shapes of `example` and translate it to Relax.

    Raises:
        ModelError: torch.export refuses the module, a shape is dynamic, or a tensor holds NaN.
        UnsupportedOperators: operators TVM cannot import, all of them, with module paths.
    """
    import torch
    from tvm.relax.frontend import detach_params
    from tvm.relax.frontend.torch import from_exported_program
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module, tuple(example)).run_decompositions()
        except Exception as error:
            raise ModelError(
                "the model cannot be exported",
                f"torch.export: {_first_line(error)}",
                "see https://docs.pytorch.org/docs/stable/export.html for what a module may do",
            ) from error
        for spec in program.graph_signature.output_specs:
            if spec.kind.name != "USER_OUTPUT":
                raise ModelError(
                    "the model changes its own state",
                    f"{spec.target} is written during the forward pass",
                    "return new tensors instead of changing buffers in place",
                )
        _no_nan(program.constants)
        known = ExportedProgramImporter().create_convert_map()
        missing = []
        for node in program.graph.nodes:
            if node.op != "call_function":
                continue
            name = getattr(node.target, "__name__", str(node.target))
            custom = str(node.target).startswith("edgecsi.")
            if name not in known and name not in OPERATORS and not custom:
                missing.append((name.removesuffix(".default"), _path(node)))
        if missing:
            raise UnsupportedOperators(list(dict.fromkeys(missing)))
        # The translator spells custom operators without their name space.
        convert = {f"{name}.default": _pass_through for name in CUSTOM} | OPERATORS
        try:
            relax = from_exported_program(
                program, keep_params_as_input=True, custom_convert_map=convert, run_ep_decomposition=False
            )
        except Exception as error:
            raise ModelError(
                "the model cannot be translated to Relax", _first_line(error), "report this with the model"
            ) from error
    relax, bound = detach_params(relax)
    names = [p.name for p in relax["main"].params]
    arrays = [tensor.numpy() for tensor in bound.get("main", [])]
    inputs = len(names) - len(arrays)
    sources = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.target}
    parameters = {
        name: (array, sources.get(name, name)) for name, array in zip(names[inputs:], arrays, strict=True)
    }
    return Imported(relax, parameters, inputs)


def _no_nan(constants: Mapping[str, Any]) -> None:
    """Refuse tensors that are neither parameters nor buffers and hold NaN; infinity may be a mask's."""
    import torch

    bad = [name for name, held in constants.items() if isinstance(held, torch.Tensor) and held.isnan().any()]
    if bad:
        raise ModelError(
            f"tensors of the model hold NaN: {', '.join(bad[:20])}",
            "everything computed from them is NaN",
            "initialise them",
        )


def _pass_through(node: Any, importer: Any) -> Any:
    """Keep one of our own operators as an opaque Relax call; `from_relax` knows what it means.

    Relax calls carry tensors only, so everything else travels in the name:
    ``edgecsi.quantize [[null, 0.5, 3], "encoder.fc"]``: the arguments, with a null for every tensor and "none" for
    one left out, and the path of the module.
    """
    from tvm import relax

    tensors: list[Any] = []
    rest: list[Any] = []
    for argument in node.args:
        if hasattr(argument, "op"):
            tensors.append(importer.env[argument])
            rest.append(None)
        else:
            rest.append(
                "none" if argument is None else list(argument) if isinstance(argument, tuple) else argument
            )
    meta = node.meta["val"]
    result = relax.TensorType(tuple(int(n) for n in meta.shape), str(meta.dtype).removeprefix("torch."))
    name = f"{str(node.target).removesuffix('.default')} {json.dumps([rest, _path(node)])}"
    return importer.block_builder.emit(relax.op.call_pure_packed(name, *tensors, ty_args=[result]))


def _path(node: Any) -> str:
    """The module that an exported node comes from, ``encoder.fc``."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed([str(place) for place, _ in stack.values()]), "")


def _reduce(name: str) -> Any:
    """Converter of a reduction over the dimensions ``(x, dims, keepdim)``."""

    def convert(node: Any, importer: Any) -> Any:
        from tvm import relax

        dims = node.args[1] if len(node.args) > 1 else []
        axes = [int(d) for d in (dims if isinstance(dims, list | tuple) else [dims])] or None
        keep = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
        return importer.block_builder.emit(getattr(relax.op, name)(importer.env[node.args[0]], axes, keep))

    return convert


# Operators that TVM's importer does not know.
OPERATORS = {"amax.default": _reduce("max"), "amin.default": _reduce("min")}


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def finite(parameters: dict[str, tuple[NDArray[Any], str]]) -> None:
    """Refuse weights that are not numbers.

    Raises:
        ModelError: naming every parameter with NaN or infinite values.
    """
    bad = [
        name
        for array, name in parameters.values()
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all()
    ]
    if bad:
        raise ModelError(
            f"weights are not finite: {', '.join(bad[:20])}",
            "they hold NaN or infinity",
            "load a checkpoint from before the training diverged",
        )
