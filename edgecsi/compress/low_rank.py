"""Low-rank factorisation: one dense layer becomes two thin ones, which pass on what its outputs on data hold.

What an output never does costs nothing to leave out: the best layer of rank R is the old one, projected on the R
principal components of its outputs (reduced-rank regression: Izenman, 1975). Weights say less: a layer's largest
singular value may belong to an input that never varies.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecsi.compress.choose import dense_layers, say_left
from edgecsi.compress.least_squares import moments_of
from edgecsi.compress.recipe import LowRank
from edgecsi.errors import NoLayer
from edgecsi.models.compressed.store import factored


@torch.no_grad()
def factor(layer: nn.Linear, axes: Tensor, mean: Tensor) -> nn.Sequential:
    """Two layers ``reduce`` and ``expand`` in place of one.

    Args:
        axes: principal components of the outputs to keep, float64 ``[O, R]``. mean: of the inputs, float64 ``[I]``.
    """
    weight = layer.weight.double()
    pair = factored(layer.in_features, axes.shape[1], layer.out_features, bias=True)
    reduce, expand = pair
    assert isinstance(reduce, nn.Linear)
    assert isinstance(expand, nn.Linear)
    reduced = axes.T @ weight
    size = (
        reduced.norm(dim=1).clamp_min(1e-12).sqrt()
    )  # weights of both of one size, so that one learning rate suits
    reduce.weight.copy_(reduced / size[:, None])
    expand.weight.copy_(axes * size)
    lost = (weight - axes @ reduced) @ mean  # what is left out is on average this
    expand.bias.copy_(lost if layer.bias is None else layer.bias + lost)
    return pair


def rank_by_energy(falling: Tensor, energy: float) -> int:
    """Fewest principal components (their energies, falling, ``[R]``) that hold this share of the sum."""
    share = falling.double().cumsum(0) / falling.double().sum().clamp_min(1e-300)
    return min(int((share < energy).sum()) + 1, len(falling))


@torch.no_grad()
def factor_layers(module: nn.Module, step: LowRank, samples: Tensor) -> dict[str, int]:
    """Factor the chosen dense layers in place, those that get smaller by it; the others are named.

    Args:
        samples: inputs of the network, float32 ``[N, …]``.

    Returns:
        the ranks, by layer.

    Raises:
        RecipeError: no layer is chosen, or none would get smaller.
    """
    module.eval()
    found = dense_layers(module, samples[:1], step.layers, step.exclude, "factor")
    chosen: dict[str, tuple[Tensor, Tensor]] = {}
    needed = {}
    for name, layer in found.items():
        moments = moments_of(module, module, name, samples)
        weight = layer.weight.double()
        moments.xx.diagonal().sub_(moments.noise)
        energies, axes = torch.linalg.eigh(weight @ moments.xx @ weight.T)
        size = layer.in_features + layer.out_features
        if step.budget:
            rank = max(1, int(step.budget * layer.weight.numel() / size))
        else:
            rank = rank_by_energy(energies.flip(0).clamp_min(0), step.energy)
        needed[name] = rank
        if moments.count < 2 * min(layer.weight.shape):
            continue  # so few samples do not show all that the outputs hold
        if rank * size < layer.weight.numel():
            chosen[name] = axes.flip(1)[:, :rank], moments.x_mean
    if not chosen:
        ranks = ", ".join(
            f"{name}: {rank} of {min(found[name].weight.shape)}" for name, rank in needed.items()
        )
        raise NoLayer(
            "no layer gets smaller by factoring",
            f"their outputs are full already, or the samples too few; ranks that keep so much of them: {ranks}",
            "use int8, clusters or pruning instead, or lower energy and watch the loss",
        )
    say_left(
        "not factored, as their outputs are full or the samples few",
        {n: part for n, part in found.items() if n not in chosen},
    )
    for name, (axes, mean) in chosen.items():
        module.set_submodule(name, factor(found[name], axes, mean))
    return {name: needed[name] for name in chosen}
