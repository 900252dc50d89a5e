"""How far fp32 rounding can move the answers of a network: of a quantised one (`allowed`), of any other (`moved`).

Sums in another order differ in their last bits. Behind a quantiser such a difference vanishes, or becomes a whole code
where a number lay at the border of two. How much one code is worth in the answer depends on the network, so it is
tried: PyTorch's simulation runs again with everything that fp32 sums feed into a quantiser moved a little.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from edgecsi import verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

_TRIALS = 2
_CALLS_TRIED = 8
_MARGIN = 4.0
"""The trials meet some of the borders; others may be worth more."""
_QUANTISERS = {
    "quantize", "quantize_wide", "to_half", "qd8_linear", "qd16_conv2d", "qd16_linear", "qs8_wide_linear",
}  # fmt: skip
# Its range is computed while it runs, in fp32, and so are its results: a border is met even with exact inputs.
_DYNAMIC = {"qd8_linear", "qd16_conv2d", "qd16_linear"}
# Defined bit for bit, whatever computes them: integer sums, and operators that round at most once an element.
_EXACT = {
    "quantize", "quantize_wide", "to_half", "qs8_conv2d", "qs8_linear", "qs8_wide_linear", "f16_conv2d", "f16_linear",
    "_to_copy", "_unsafe_view", "abs", "add", "alias", "cat", "clamp", "clone", "constant_pad_nd", "contiguous",
    "copy_", "detach", "expand", "flatten", "ge", "gt", "hardtanh", "leaky_relu", "max_pool2d_with_indices", "maximum",
    "minimum", "mul", "neg", "permute", "relu", "relu_", "reshape", "select", "slice", "split", "squeeze", "sub", "t",
    "transpose", "unsqueeze", "view", "where",
}  # fmt: skip


def allowed(module: nn.Module, calls: Sequence[Sequence[Tensor]]) -> float:
    """The largest relative difference to PyTorch with which a compiled quantised network is still right.

    Args:
        module: in eval mode, with layers of `edgecsi.models.compressed`. calls: inputs of each, as it takes them.

    Returns:
        `verdict.NARROW` where no quantiser reads fp32 sums; at most `verdict.QUANTISED`.
    """
    with torch.no_grad():
        plain = _stacked(_answers(module, inputs) for inputs in calls)
        most = 0.0
        for seed in range(_TRIALS):
            used, noisy = False, []
            for number, inputs in enumerate(calls):
                with _Noise(_TRIALS * number + seed) as noise:
                    noisy.append(_answers(module, inputs))
                used |= noise.used
            if not used:
                break
            apart = [
                verdict.difference_but_ties(y, wanted).max_rel_diff
                for y, wanted in zip(_stacked(noisy), plain, strict=True)
            ]
            most = max(most, *apart)
    return float(np.clip(verdict.NARROW + _MARGIN * most, verdict.NARROW, verdict.QUANTISED))


def moved(module: nn.Module, inputs: Sequence[Tensor]) -> list[NDArray[np.float64]]:
    """How far rounding alone moves every number that a network answers: the most of eight trials, in each of which
    every result of an operator moves by up to a unit in its last place, or, of a network with quantisers, what they
    read moves as for `allowed`.

    Args:
        inputs: of one call, as `module` takes them.

    Returns:
        an array for every output, of its shape; infinite where a number stops being one.
    """
    with torch.no_grad():
        wanted = _answers(module, inputs)
        most = [np.zeros(t.shape) for t in wanted]
        quantisers = True
        for seed in range(_CALLS_TRIED):
            if quantisers:
                with _Noise(seed) as noise:
                    found = _answers(module, inputs)
                quantisers = noise.used
            if not quantisers:
                with _LastPlaces(seed) as mode:
                    found = _answers(module, [mode.moved(x.clone()) for x in inputs])
            for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
                apart = (one.double() - other.double()).abs()
                apart = torch.where(one.isfinite(), apart.nan_to_num(torch.inf), 0.0)
                most[number] = np.maximum(most[number], apart.numpy())
    return most


def coarseness(module: nn.Module, inputs: Sequence[Tensor]) -> float:
    """How far the bounds of `verdict.within_rounding` are to be moved for what a network computes with: two units in
    the last place of half precision are two thousandths of a number, of bfloat16 sixteen; 1 for fp32."""
    with torch.no_grad(), _Types() as types:
        _answers(module, [types.seen(x.clone()) for x in inputs])
    return max(_COARSENESS.get(dtype, 1.0) for dtype in types.met)


def _answers(module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(module(*inputs)) if isinstance(t, torch.Tensor)]


def _stacked(answers: Iterable[list[Tensor]]) -> list[NDArray[Any]]:
    """Every output of all calls."""
    return [np.stack([t.double().numpy() for t in outputs]) for outputs in zip(*answers, strict=True)]


class _LastPlaces(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Moves every result by up to a unit in the last place of its type, each element for itself."""

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = torch.Generator().manual_seed(seed)

    def moved(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype not in _PLACES or value.is_nested:
            return value
        noise = torch.rand(value.shape, generator=self._generator) * 2 - 1
        return (value.float() * (1 + noise * _PLACES[value.dtype])).to(value.dtype)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view or func._schema.is_mutable:
            return result
        return torch.utils._pytree.tree_map(self.moved, result)


class _Types(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which types of numbers a network computes with."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.met: set[torch.dtype] = set()

    def seen(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            self.met.add(value.dtype)
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return torch.utils._pytree.tree_map(self.seen, func(*args, **(kwargs or {})))


_COARSENESS = {torch.float16: 2.0, torch.bfloat16: 16.0}
_PLACES = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


class _Noise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up to `verdict.FP32` of the largest number to what quantisers read, if fp32 sums made it."""

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used = False
        self._generator = torch.Generator().manual_seed(seed)
        self._rounded: dict[int, Any] = {}  # kept alive, so that their ids stay theirs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        tensors = [a for a in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
        rounded = any(id(t) in self._rounded for t in tensors)
        if name in _DYNAMIC or (rounded and name in _QUANTISERS):
            x = args[0]
            noise = torch.rand(x.shape, generator=self._generator) * 2 - 1
            args, self.used = (x + noise * (verdict.FP32 * x.abs().max()), *args[1:]), True
            rounded = False  # codes it made are integers again
        result = func(*args, **(kwargs or {}))
        if rounded or name not in _EXACT:
            for tensor in torch.utils._pytree.tree_leaves(result):
                self._rounded[id(tensor)] = tensor
        return result
