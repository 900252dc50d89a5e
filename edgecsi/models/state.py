"""A user's network as PyTorch means one: its modes, its values, and a `state_dict` of tensors; or it is refused."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from edgecsi.errors import ModelError

_EXTRA = "_extra_state"
"""The key of what `get_extra_state` returns: settings, counters; nothing that forward computes with is only there."""


def as_pytorch_means_it(module: nn.Module, examples: Sequence[torch.Tensor], name: str) -> None:
    """Put a network into eval mode, and give it values for all its tensors and the `eval`, `train` and `state_dict` of
    ``nn.Module`` where its own cannot be called as these; in place. Lazy layers learn their sizes from the examples.

    Raises:
        ModelError: it is TorchScript, or weights have no values.
    """
    if isinstance(module, torch.jit.ScriptModule):  # as a part of a network, some can be looked into
        raise ModelError(
            f"{name} is TorchScript",
            "torch.export cannot look into it",
            "take the Python module that it was made of, with the same weights",
        )
    try:
        plain = module.eval() is module
    except Exception:  # a network of the user's, or of torch.export's, whose modes are none
        plain = False
    if not plain:
        for part in module.modules():
            for of_all in (nn.Module.train, nn.Module.eval):
                setattr(part, of_all.__name__, MethodType(of_all, part))
        module.eval()
    if any(map(is_lazy, (*module.parameters(), *module.buffers()))) and examples:
        try:
            with torch.no_grad():
                module(*(x.clone() for x in examples))
        except Exception as error:  # in the network's own words
            raise ModelError(
                f"{name} has lazy layers, and does not run on its example input",
                " ".join(f"{type(error).__name__}: {error}".split())[:300],
                "call the network once before the factory returns it",
            ) from error
    tensors = (*module.named_parameters(), *module.named_buffers())
    if empty := [path for path, value in tensors if is_lazy(value) or value.is_meta]:
        raise ModelError(
            f"{name} has {len(empty)} tensors without values: {', '.join(empty[:5])}",
            "they are on the device 'meta', or of lazy layers that were never called",
            "return the network with its weights, on the CPU, and an example input",
        )
    try:
        plain = isinstance(module.state_dict(), Mapping) and not any(
            isinstance(value, Mapping) for value in module.state_dict().values()
        )
    except Exception:  # it says itself how it is saved
        plain = False
    for part in () if plain else module.modules():
        if type(part).state_dict is not nn.Module.state_dict:
            part.state_dict = MethodType(nn.Module.state_dict, part)  # type: ignore[method-assign]


def copy_of(module: nn.Module) -> nn.Module:
    """A copy of a network.

    Raises:
        ModelError: it cannot be copied.
    """
    try:
        return copy.deepcopy(module)
    except Exception as error:  # what it holds may be anything of the user's
        raise ModelError(
            "the network cannot be copied, which weights and recipes are put into",
            f"copy.deepcopy: {type(error).__name__}: {error}"[:300],
            "keep locks, files and generators outside of it; without --recipe and --weights it builds as it is",
        ) from error


def keep_tensors_only(module: nn.Module, name: str) -> None:
    """Have `state_dict` of a network and of its parts give tensors only, and loading ask for no more.

    Raises:
        ModelError: layers hold their weights in another way, as those that PyTorch quantized do.
    """
    quantized = [
        path.partition("._packed_params")[0]
        for path, part in module.named_modules()
        if type(part).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized"))
        and not all(isinstance(value, torch.Tensor) for value in part.state_dict().values())
    ]
    if quantized:
        raise ModelError(
            f"{name} has layers that PyTorch quantized",
            f"their weights are packed for its own kernels: {', '.join(sorted({*quantized})[:5])}",
            "give the network before quantize_dynamic or convert, and --recipe int8-dynamic or int8-static",
        )
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):  # which takes no hooks
            continue
        part.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
        part.register_load_state_dict_post_hook(_miss_nothing)  # type: ignore[no-untyped-call]


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    state.pop(prefix + _EXTRA, None)
    for key in [key for key, value in state.items() if not isinstance(value, torch.Tensor)]:
        del state[key]


def _miss_nothing(module: nn.Module, keys: Any) -> None:
    for named in (keys.missing_keys, keys.unexpected_keys):
        named[:] = [key for key in named if key.rpartition(".")[2] != _EXTRA]
