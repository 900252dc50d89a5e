"""Low-rank factorisation: one dense layer becomes two thin ones, by singular value decomposition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecsi.compress.recipe import LowRank, matches
from edgecsi.errors import RecipeError
from edgecsi.models.compressed.store import factored


@torch.no_grad()
def factor(layer: nn.Linear, rank: int) -> nn.Sequential:
    """The best approximation of this rank in the least squares (Eckart & Young): ``reduce``, ``expand``."""
    u, s, v = torch.linalg.svd(layer.weight.double(), full_matrices=False)
    root = s[:rank].sqrt()
    pair = factored(layer.in_features, rank, layer.out_features, layer.bias is not None)
    pair.reduce.weight.copy_(root[:, None] * v[:rank])  # type: ignore[union-attr, operator]
    pair.expand.weight.copy_(u[:, :rank] * root)  # type: ignore[union-attr, operator]
    if layer.bias is not None:
        pair.expand.bias.copy_(layer.bias)  # type: ignore[union-attr, operator]
    return pair


def rank_by_energy(singular: Tensor, energy: float) -> int:
    """Fewest singular values (falling, ``[R]``) whose squares hold this share of the sum."""
    share = singular.double().square().cumsum(0) / singular.double().square().sum()
    return min(int((share < energy).sum()) + 1, len(singular))


def factor_layers(module: nn.Module, step: LowRank) -> dict[str, int]:
    """Factor the chosen dense layers in place, those that get smaller by it.

    Returns:
        the ranks, by layer.

    Raises:
        RecipeError: no layer is chosen, or none would get smaller.
    """
    ranks: dict[str, int] = {}
    for name, layer in list(module.named_modules()):
        if not isinstance(layer, nn.Linear) or not matches(name, step.layers, step.exclude):
            continue
        size = layer.in_features + layer.out_features
        if step.budget:
            rank = max(1, int(step.budget * layer.weight.numel() / size))
        else:
            rank = rank_by_energy(torch.linalg.svdvals(layer.weight.detach()), step.energy)
        if rank * size < layer.weight.numel():
            module.set_submodule(name, factor(layer, rank))
            ranks[name] = rank
    if not ranks:
        raise RecipeError(
            "no layer gets smaller by factoring",
            "none is chosen, or the ranks that keep so much energy are too high",
            "lower energy, or give a budget such as 0.5",
        )
    return ranks
