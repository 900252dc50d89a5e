"""Networks of several inputs or outputs, or of integers, as networks of one float32 tensor: what calibrates and trains
then handles them like all others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from edgecsi.channels import files
from edgecsi.channels.named import has_samples, load_named
from edgecsi.errors import ModelError
from edgecsi.models.compressed.taken_apart import in_parent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecsi.models.load import LoadedModel

Read = Callable[[str, Callable[[int, int], None] | None], "NDArray[Any]"]
"""From what a user calls data, and a function to be told of progress, to samples: float32 ``[N, …]``."""


@dataclass
class _Apart:
    """Hook before ``forward``: the network's own inputs from rows ``[N, K]``, in which they lie one after the other, or
    from its only input as float32.

    Attributes:
        shapes: of a sample of every input; None if it is the same for all samples. held: that one's value, of others an
            example.
    """

    shapes: list[tuple[int, ...] | None]
    held: list[Tensor]

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if len(inputs) != 1:
            return inputs
        (rows,), found, at = inputs, [], 0
        for shape, held in zip(self.shapes, self.held, strict=True):
            if shape is None:
                found.append(held)
                continue
            size = math.prod(shape)
            part = rows if len(self.shapes) == 1 else rows[:, at : at + size].reshape(-1, *shape)
            found.append(part.to(held.dtype))
            at += size
        return tuple(found)


def _together(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Tensor:
    """Hook behind ``forward``."""
    return one_tensor(output)


def one_tensor(output: Any) -> Tensor:
    """A network's answer as one real tensor: that of its floating-point outputs, or of its integers if it has no
    others; several of them as rows ``[N, K]``."""
    leaves = [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    real = [leaf for leaf in leaves if leaf.is_floating_point()] or [leaf.float() for leaf in leaves]
    return real[0] if len(real) == 1 else torch.cat([part.reshape(len(real[0]), -1) for part in real], 1)


def in_rows(model: LoadedModel) -> tuple[LoadedModel, Read]:
    """A network that takes one float32 tensor and gives one, and what reads data for it: as
    :func:`edgecsi.channels.files.load` does, for several inputs from a file that has them by name.

    The network is hooked, no copy (one layer alone has a parent then, in which it can be replaced);
    :func:`as_it_was` undoes the hooks. One that is so already is left alone. Reading raises DataError if the data do
    not fit.

    Raises:
        ModelError: the network computes in another precision, which no recipe is made for.
    """
    inputs, module = model.inputs, in_parent(model.module)
    numbers = (("its input", model.example_input), *module.named_parameters())
    others = [(n, t.dtype) for n, t in numbers if t.is_floating_point() and t.dtype != torch.float32]
    if others:
        name, dtype = others[0]
        raise ModelError(
            f"{model.name} computes in {str(dtype).removeprefix('torch.')}: {name} is of that type",
            "recipes start from float32, and rounding is judged against it",
            "return net.float() and a float32 example from the factory; without a recipe it builds as it is",
        )
    with torch.no_grad():
        output = module.eval()(*(x.clone() for x in inputs))
    if not (isinstance(output, Tensor) and output.is_floating_point()):
        module.register_forward_hook(_together)
    names = model.entries["full"].input_names
    shapes = {name: tuple(x.shape) for name, x in zip(names, inputs, strict=True)}
    sampled = [has_samples(shape, shapes) or len(inputs) == 1 for shape in shapes.values()]
    apart = _Apart(
        [tuple(x.shape[1:]) if s else None for x, s in zip(inputs, sampled, strict=True)], [*inputs]
    )
    if len(inputs) > 1 or not inputs[0].is_floating_point():
        module.register_forward_pre_hook(apart)

    def read(data: str, progress: Callable[[int, int], None] | None) -> NDArray[Any]:
        if len(inputs) == 1:
            return files.load(data, shape=inputs[0].shape[1:], progress=progress)
        arrays = load_named(data, shapes)
        for k, array in enumerate(arrays):
            if not sampled[k]:
                apart.held[k] = torch.from_numpy(array).to(inputs[k].dtype)
        return np.concatenate([a.reshape(len(a), -1) for a, s in zip(arrays, sampled, strict=True) if s], 1)

    example = inputs[0].float()
    if len(inputs) > 1:
        rows = [x.reshape(len(example), -1).float() for x, s in zip(inputs, sampled, strict=True) if s]
        example = torch.cat(rows, 1)
    return replace(model, module=module, example_input=example, more_inputs=()), read


def as_it_was(module: nn.Module) -> nn.Module:
    """A network, or a copy that was changed, without the hooks of :func:`in_rows`; in place."""
    for part in module.modules():
        for hooks in (part._forward_pre_hooks, part._forward_hooks):
            for key in [k for k, hook in hooks.items() if isinstance(hook, _Apart) or hook is _together]:
                del hooks[key]
    return module
