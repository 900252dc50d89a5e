"""Which layers a step can change: those that the network calls as layers, and what it must leave alone.

Attention and recurrent layers of PyTorch take the weights of their parts without calling them, so these parts cannot
be replaced by others; what quantises takes these layers apart first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgecsi.compress.recipe import matches
from edgecsi.errors import NoLayer, Notice
from edgecsi.models.compressed.layers import CompressedLayer

_MOST_NAMED = 5
_ASKS = (Tensor.dtype.__get__, Tensor.device.__get__)  # type: ignore[attr-defined]
Layer = TypeVar("Layer", bound=nn.Module)


def called(module: nn.Module, kinds: tuple[type[Layer], ...], example: Tensor) -> dict[str, Layer]:
    """Layers of these kinds that can be replaced by others: of float32, called with floating-point numbers, always of one
    size, and nobody else reads their weights."""
    return {name: layer for name, (layer, _) in with_outputs(module, kinds, example).items()}


@torch.no_grad()
def with_outputs(
    module: nn.Module, kinds: tuple[type[Layer], ...], example: Tensor
) -> dict[str, tuple[Layer, torch.Size]]:
    """As :func:`called`, each with the shape of what it gives, without the batch."""
    found: dict[str, Layer] = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, kinds) and part.weight.dtype == torch.float32
    }
    sizes: dict[str, set[torch.Size]] = {name: set() for name in found}
    given: dict[str, torch.Size] = {}
    reads = _Reads(found)

    def note(name: str) -> Callable[..., None]:
        def look(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0]
            usable = x.is_floating_point() and not (isinstance(part, nn.Conv2d) and x.ndim != 4)
            sizes[name].add(x.shape[1:] if usable else torch.Size())
            given[name] = output.shape[1:]

        return look

    hooks = [part.register_forward_hook(note(name)) for name, part in found.items()]
    hooks += [part.register_forward_pre_hook(lambda part, _: reads.begin(part)) for part in found.values()]
    hooks += [part.register_forward_hook(lambda *_: reads.end()) for part in found.values()]
    try:
        with reads, _Asks(reads):
            module.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: (part, given[name])
        for name, part in found.items()
        if len(sizes[name]) == 1 and all(sizes[name]) and name not in reads.elsewhere
    }


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which layers' weights are read outside of them: a decoder that uses the encoder's weight, transposed, say."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elsewhere: set[str] = set()
        self._owners: dict[int, list[str]] = {}
        for name, layer in layers.items():
            if isinstance(weight := layer.weight, Tensor):
                self._owners.setdefault(weight.data_ptr(), []).append(name)
        self._inside: list[nn.Module] = []

    def begin(self, layer: nn.Module) -> None:
        """A layer is being called."""
        self._inside.append(layer)

    def end(self) -> None:
        """The last one is done."""
        self._inside.pop()

    def read(self, tensors: Iterable[Any]) -> None:
        """These are read now, by the layer that is being called or by others."""
        if not self._inside:
            for given in tensors:
                if isinstance(given, Tensor) and given.dtype.is_floating_point:
                    self.elsewhere.update(self._owners.get(given.data_ptr(), ()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.read(tree_leaves((args, kwargs)))
        return func(*args, **(kwargs or {}))


class _Asks(TorchFunctionMode):
    """Has a weight read whose type or device is asked for: ``x.to(self.fc.weight.dtype)``, or
    ``next(self.parameters()).device``, would ask that of codes."""

    def __init__(self, reads: _Reads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ASKS:
            self._reads.read(args)
        return func(*args, **(kwargs or {}))


def dense_layers(
    module: nn.Module, example: Tensor, layers: tuple[str, ...], exclude: tuple[str, ...], purpose: str
) -> dict[str, nn.Linear]:
    """The dense layers of a recipe's step, by name; which of them cannot take part is said.

    Args:
        layers, exclude: glob patterns. purpose: what is done to them, "factor".

    Raises:
        RecipeError: there is none.
    """
    possible = called(module, (nn.Linear,), example)
    wanted = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and matches(name, layers, exclude)
    ]
    found = {name: possible[name] for name in wanted if name in possible}
    if not found:
        raise NoLayer(
            f"there is no layer to {purpose}",
            f"no dense layer that the network calls, and reads nowhere else, is named like {list(layers)} and not like "
            f"{list(exclude)}",
            "change layers or exclude",
        )
    others = {name: module.get_submodule(name) for name in wanted if name not in found}
    say_left(f"cannot {purpose}, left as they are", others)
    return found


def thaw(module: nn.Module) -> None:
    """Let everything train that is still fp32, in place: a network is often frozen for use, and recipes name what is to
    stay."""
    for part in module.modules():
        if not isinstance(part, CompressedLayer):
            for parameter in part.parameters(recurse=False):
                parameter.requires_grad_(parameter.is_floating_point())


def left_in_fp32(
    module: nn.Module, kinds: tuple[type[nn.Module], ...], kept: tuple[str, ...]
) -> dict[str, nn.Module]:
    """Layers with weights that are still fp32 although nobody asked for that.

    Args:
        kinds: what a step quantises. kept: layers that are to stay fp32 (glob patterns).
    """
    also: tuple[type[nn.Module], ...] = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
    if nn.Conv2d in kinds:
        also += (nn.modules.conv._ConvNd,)
    wanted: tuple[type[nn.Module], ...] = (*kinds, *also)
    found: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        if any(name.startswith(f"{outer}.") for outer in found) or isinstance(part, CompressedLayer):
            continue
        if isinstance(part, wanted) and not matches(name, kept):
            found[name] = part
    return found


def say_left(what: str, layers: dict[str, nn.Module]) -> None:
    """Name layers that a step leaves alone, kind by kind."""
    if not layers:
        return
    kinds: dict[str, list[str]] = {}
    for name, part in layers.items():
        kinds.setdefault(type(part).__name__, []).append(name)
    listed = "; ".join(f"{len(names)} {kind} ({_few(names)})" for kind, names in kinds.items())
    warnings.warn(Notice(f"{what}: {listed}"), stacklevel=3)


def _few(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
