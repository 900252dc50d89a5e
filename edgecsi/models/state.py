"""What a network's `state_dict` holds beside tensors: it is left out, or the network is refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgecsi.errors import ModelError

_EXTRA = "_extra_state"
"""The key of what `get_extra_state` returns: settings, counters; nothing that forward computes with is only there."""


def keep_tensors_only(module: nn.Module, name: str) -> None:
    """Have `state_dict` of a network and of its parts give tensors only, and loading ask for no more.

    Raises:
        ModelError: layers hold their weights in another way, as those that PyTorch quantized do.
    """
    for part in module.modules():
        part.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
        part.register_load_state_dict_post_hook(_miss_nothing)  # type: ignore[no-untyped-call]
    others = {path for path, value in module.state_dict().items() if not isinstance(value, torch.Tensor)}
    if others:
        layers = sorted({path.partition("._packed_params")[0].removesuffix(".scale") for path in others})
        raise ModelError(
            f"{name} has layers that PyTorch quantized",
            f"their weights are packed for its own kernels: {', '.join(layers[:5])}",
            "give the network before quantize_dynamic or convert, and --recipe int8-dynamic or int8-static",
        )


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    state.pop(prefix + _EXTRA, None)


def _miss_nothing(module: nn.Module, keys: Any) -> None:
    for named in (keys.missing_keys, keys.unexpected_keys):
        named[:] = [key for key in named if key.rpartition(".")[2] != _EXTRA]
