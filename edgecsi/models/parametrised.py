"""Weights that are computed from others (weight_norm, spectral_norm, pruning masks) become plain weights, and tensors in
sparse layouts plain tensors."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


@torch.no_grad()
def make_plain(module: nn.Module) -> None:
    """Replace every such weight by its value, in place; the network computes the same. It must be in eval mode.

    What the network's own ``forward`` computes from its weights is not touched.
    """
    for part in module.modules():
        for path, parameter in part._parameters.items():
            if parameter is not None and parameter.is_inference():  # which cannot be exported
                part._parameters[path] = nn.Parameter(parameter.clone(), requires_grad=False)
        for held in (part._buffers, part.__dict__):
            for name, value in held.items():
                if isinstance(value, torch.Tensor) and value.layout != torch.strided:
                    held[name] = value.to_dense()
                elif isinstance(value, torch.Tensor) and value.is_inference():
                    held[name] = value.clone()
                elif isinstance(value, torch.Tensor) and not value.is_leaf:  # which cannot be copied
                    held[name] = value.detach()
        if parametrize.is_parametrized(part):
            _own_class(part)
            for name in list(part.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)
        for key, hook in list(part._forward_pre_hooks.items()):
            if isinstance(hook, SpectralNorm | WeightNorm):
                hook.remove(part)
                del part._forward_pre_hooks[key]
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(part, hook._tensor_name)  # type: ignore[no-untyped-call]


def _own_class(part: nn.Module) -> None:
    """PyTorch makes a class for a module with parametrizations, whose copies share it; taking them off deletes from that
    class what the copies still need."""
    shared = type(part)
    own = {key: value for key, value in vars(shared).items() if key not in ("__dict__", "__weakref__")}
    part.__class__ = type(shared.__name__, shared.__bases__, own)
