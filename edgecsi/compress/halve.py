"""Half-precision weights: dense weights are rounded to numbers that half the bytes hold; arithmetic stays fp32.

Nothing else changes, so the network stays an ordinary one. The kernels find such weights by themselves, as they find
zeros, and store them in two bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecsi.compress.recipe import Halve, matches
from edgecsi.errors import RecipeError

_LARGEST = torch.finfo(torch.float16).max


@torch.no_grad()
def halve(module: nn.Module, step: Halve) -> nn.Module:
    """Round the chosen layers' weights in place: of dense layers, and of the products within attention and
    recurrent layers.

    Raises:
        RecipeError: no layer is chosen, or a weight is larger than half precision goes.
    """
    found: dict[str, Tensor] = {}
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            found[name] = part.weight
        elif isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None:
            found[name] = part.in_proj_weight
        elif isinstance(part, nn.RNNBase):
            weights = dict(part.named_parameters())
            found |= {f"{name}.{key}": weight for key, weight in weights.items() if weight.ndim == 2}
    chosen = {n: w for n, w in found.items() if matches(n, step.layers, step.exclude)}
    if not chosen:
        raise RecipeError(
            "no dense layer is chosen",
            f"the network has {', '.join(found) or 'none'}",
            "correct layers and exclude in the recipe",
        )
    for name, weight in chosen.items():
        if float(weight.abs().max()) > _LARGEST:
            raise RecipeError(
                f"{name} has a weight of {float(weight.abs().max()):.3g}",
                f"half precision goes to {_LARGEST:.0f}",
                "exclude the layer, or use int8-weights, which scales every output",
            )
        weight.copy_(weight.half().float())
    return module
