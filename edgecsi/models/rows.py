"""Networks of several inputs or outputs, or of integers, as networks of one float32 tensor: what calibrates and trains
then handles them like all others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from edgecsi import verdict
from edgecsi.channels import files
from edgecsi.channels.named import has_samples, load_named, samples_of
from edgecsi.errors import DataError, ModelError
from edgecsi.models.compressed.taken_apart import in_parent
from edgecsi.models.entries import tensors_only

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecsi.models.load import LoadedModel

Read = Callable[[str, Callable[[int, int], None] | None], "NDArray[Any]"]
"""From what a user calls data, and a function to be told of progress, to samples: float32 ``[N, …]``."""


@dataclass
class _Rows:
    """Hooks around ``forward``: before it the network's own inputs are taken from rows ``[N, K]``, in which they lie one
    after the other, or from its only input as float32; behind it all outputs become one.

    Attributes:
        inputs: examples; of one that is the same for all samples its value. sampled: which are not.
        calls: a row is all that a call takes, for a network that takes no other batch, or mixes the samples of one.
    """

    inputs: list[Tensor]
    sampled: list[bool]
    calls: bool = False
    _left: list[tuple[Tensor, ...]] | None = None

    def before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Hook before ``forward``, which does the first call."""
        self._left = None
        if len(inputs) != 1:
            return inputs
        rows = inputs[0].clone()  # a network may write on its inputs, and the rows are used again
        if not self.calls:
            return self._apart(rows)
        first, *self._left = (self._apart(row) for row in torch.split(rows, 1))
        return first

    def behind(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Tensor:
        """Hook behind ``forward``, which does the calls that are left."""
        left, self._left = self._left, None
        if left is None:
            return one_tensor(output)
        return torch.cat([_one_row(answer) for answer in (output, *(module.forward(*call) for call in left))])

    def _apart(self, rows: Tensor) -> tuple[Tensor, ...]:
        found, at = [], 0
        for example, sampled in zip(self.inputs, self.sampled, strict=True):
            if not sampled:
                found.append(example.clone())
                continue
            shape = example.shape if self.calls else (-1, *example.shape[1:])
            size = math.prod(shape if self.calls else shape[1:])
            part = rows if len(self.inputs) == 1 else rows[:, at : at + size]
            found.append(part.reshape(shape).to(example.dtype))
            at += size
        return tuple(found)

    def together(self, arrays: Sequence[Tensor], samples: int) -> Tensor:
        """The rows of inputs that hold so many samples; those that are left over by whole calls are left out."""
        rows = []
        for x, example, sampled in zip(arrays, self.inputs, self.sampled, strict=True):
            batch = len(example) if self.calls and example.ndim else 1
            if sampled and batch > 1:
                rows.append(x[: samples // batch * batch].reshape(-1, *example.shape).float())
            elif sampled:
                rows.append(x.reshape(samples, *example.shape[1:]).float())
        return rows[0] if len(self.inputs) == 1 else torch.cat([x.reshape(len(x), -1) for x in rows], 1)


def _one_row(output: Any) -> Tensor:
    """The answer of a call as a row ``[1, …]``."""
    leaves = _real(output)
    if len(leaves) > 1:
        return torch.cat([leaf.flatten() for leaf in leaves])[None]
    return leaves[0] if leaves[0].shape[:1] == (1,) else leaves[0][None]


def one_tensor(output: Any) -> Tensor:
    """A network's answer as one real tensor: that of its floating-point outputs, or of its integers if it has no
    others; several of them as rows ``[N, K]``."""
    real = _real(output)
    return real[0] if len(real) == 1 else torch.cat([part.reshape(len(real[0]), -1) for part in real], 1)


def _real(output: Any) -> list[Tensor]:
    leaves = [leaf for leaf in _pytree.tree_leaves(tensors_only(output)[0]) if leaf is not None]
    return [leaf.float() for leaf in leaves if leaf.is_floating_point()] or [leaf.float() for leaf in leaves]


def in_rows(model: LoadedModel) -> tuple[LoadedModel, Read]:
    """A network that takes one float32 tensor and gives one, and what reads data for it: as
    :func:`edgecsi.channels.files.load` does, for several inputs from a file that has them by name.

    The network is hooked, no copy (one layer alone has a parent then, in which it can be replaced);
    :func:`as_it_was` undoes the hooks. One that is so already is left alone. Of a network that answers a sample otherwise
    if others are beside it a row is all that a call takes, and it is called for each. Reading raises DataError if the
    data do not fit.

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
    given = [x.clone() for x in inputs]
    with torch.no_grad():
        output = module.eval()(*given)
    writes = not all(map(torch.equal, given, inputs))
    names = model.entries["full"].input_names
    shapes = {name: tuple(x.shape) for name, x in zip(names, inputs, strict=True)}
    sampled = [has_samples(shape, shapes) for shape in shapes.values()]
    rows, batch = _Rows([*inputs], sampled), samples_of(shapes)
    if len(inputs) > 1 or not inputs[0].is_floating_point() or writes:
        module.register_forward_pre_hook(rows.before)
    if not (isinstance(output, Tensor) and output.dtype == torch.float32):
        module.register_forward_hook(rows.behind)
    if not _takes_any_batch(module, rows, batch):
        as_it_was(module)
        rows.calls = True
        module.register_forward_pre_hook(rows.before)
        module.register_forward_hook(rows.behind)

    def read(data: str, progress: Callable[[int, int], None] | None) -> NDArray[Any]:
        if len(inputs) == 1:
            arrays = [files.load(data, shape=inputs[0].shape[1:], progress=progress)]
        else:
            arrays = load_named(data, shapes)
        for k, array in enumerate(arrays):
            if not sampled[k]:
                rows.inputs[k] = torch.from_numpy(array).to(inputs[k].dtype)
        count = len(arrays[sampled.index(True)])
        if count < batch:
            raise DataError(
                f"{data} holds {count} sample(s)",
                f"a call of {model.name} takes {batch}",
                "give as many at least",
            )
        return rows.together([torch.from_numpy(array) for array in arrays], count).numpy()

    return replace(model, module=module, example_input=rows.together(inputs, batch), more_inputs=()), read


def _takes_any_batch(module: nn.Module, rows: _Rows, batch: int) -> bool:
    """Whether two calls' samples at once are answered as call by call."""
    others = [
        x if not x.ndim else 1 - 2 * x.flip(-1) if x.is_floating_point() else x.flip(-1) for x in rows.inputs
    ]
    calls = [rows.together(x, batch) for x in (rows.inputs, others)]
    try:
        with torch.no_grad():
            together = module(torch.cat(calls))
            apart = torch.cat([module(call.clone()) for call in calls])
    except Exception:  # the network may be the user's, and says in its own way that it takes one batch
        return False
    near = verdict.OTHER_ENGINE
    same = together.shape == apart.shape
    return same and verdict.difference(together.numpy(), apart.numpy()).max_rel_diff <= near


def as_it_was(module: nn.Module) -> nn.Module:
    """A network, or a copy that was changed, without the hooks of :func:`in_rows`; in place."""
    for part in module.modules():
        for hooks in (part._forward_pre_hooks, part._forward_hooks):
            for key in [k for k, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), _Rows)]:
                del hooks[key]
    return module
