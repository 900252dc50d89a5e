"""Pruning by reconstruction: which weights go, and what the others become, follows from data in closed form.

A dense layer is a least-squares problem: with the covariance H of its input, removing the input q from an
output costs w_q² / [H⁻¹]_qq, and the weights that stay can make up for it (optimal brain surgeon: Hassibi &
Stork, 1993; for whole layers: Frantar & Alistarh, arXiv 2208.11580). It takes seconds instead of epochs, and
training from there has little left to repair.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from edgecsi.compress.choose import called
from edgecsi.compress.least_squares import Moments, moments_of, solve, solve_by_basis
from edgecsi.compress.prune import global_masks, mask, ramp
from edgecsi.compress.recipe import Pattern
from edgecsi.compress.watch import Tell, in_order, output_importance, say_nothing

FIT_SAMPLES = 10_000
"""To prune by reconstruction with; of a long codeword, fewer tell too little."""
_ROUNDS = 6  # removals between which the other weights are fitted anew
_WORTH_A_BASIS = 50  # finding it takes as long as so many solutions without


class Reference:
    """The network before pruning: what its layers see and give, measured once for any number of prunings.

    Args:
        module: copied. layers: names of those to be pruned. samples: inputs, float32 ``[N, …]``.
    """

    def __init__(self, module: nn.Module, layers: Iterable[str], samples: Tensor) -> None:
        self.module = copy.deepcopy(module).eval()
        self.samples = samples
        self.layers = list(in_order(self.module, layers, samples[:1]))
        self.importance = output_importance(self.module, self.layers, samples)
        self._moments: dict[str, Moments] = {}

    def moments(self, name: str) -> Moments:
        """Of a layer whose inputs are as they were."""
        if name not in self._moments:
            self._moments[name] = moments_of(self.module, self.module, name, self.samples)
        return self._moments[name]

    def share_out(self, pattern: Pattern, share: float) -> dict[str, float]:
        """Sparsity of each layer, by name, if this share of all weights goes where blocks are worth least."""
        worth = {}
        for name in self.layers:
            weight, inverse = solve(self.moments(name), None)
            worth[name] = self.importance[name][:, None] * weight.square() / inverse
        masks = global_masks(worth, pattern, share)
        return {name: 1 - float(kept.double().mean()) for name, kept in masks.items()}


def reconstruct(
    module: nn.Module,
    layers: Mapping[str, nn.Linear],
    pattern: Pattern,
    shares: Mapping[str, float] | float,
    samples: Tensor,
    reference: Reference | None = None,
    tell: Tell = say_nothing,
) -> dict[str, Tensor]:
    """Prune dense layers in place, one after the other, each making up for what was lost before it.

    Args:
        layers: by name, in any order. shares: sparsity of each, or one number to be shared out over all of
            them by what their blocks are worth.
        samples: inputs of the network, float32 ``[N, …]``.
        reference: of this module, these layers and samples, if it is at hand.
        tell: told of every layer.

    Returns:
        the masks, by name.
    """
    module.eval()
    tell("measuring what layers see", 0, 0)
    reference = reference or Reference(module, layers, samples)
    if isinstance(shares, float):
        shares = reference.share_out(pattern, shares)
    masks = {}
    for number, name in enumerate(reference.layers):
        tell(f"solving {name}", number, len(reference.layers))
        if number:
            moments = moments_of(module, reference.module, name, samples)
        else:
            moments = reference.moments(name)
        weight, kept = prune_layer(moments, reference.importance[name], pattern, shares[name])
        layer = layers[name]
        with torch.no_grad():
            layer.weight.copy_(weight)
            bias = moments.y_mean - weight @ moments.x_mean
            if layer.bias is not None:
                layer.bias.copy_(bias)
        masks[name] = kept
    return masks


def prune_layer(
    moments: Moments, importance: Tensor, pattern: Pattern, sparsity: float
) -> tuple[Tensor, Tensor]:
    """Weight and mask ``[O, I]`` of a layer at this sparsity; `importance` of each output, ``[O]``."""
    outputs = moments.xy.shape[1]
    rows = outputs if pattern.name == "columns" else (pattern.rows or 1)
    whole, diagonal_of_whole = solve(moments, None)
    weight, inverse = whole, diagonal_of_whole.expand(outputs, -1).clone()
    many = outputs // rows * _ROUNDS > _WORTH_A_BASIS
    kept = torch.ones_like(weight, dtype=torch.bool)
    for number in range(1, _ROUNDS + 1):
        worth = importance[:, None] * weight.square() / inverse * kept
        kept = kept & mask(worth, pattern, ramp(number / _ROUNDS, sparsity, 1.0))
        weight = torch.zeros_like(weight)
        for start in range(0, outputs, rows):
            # outputs of a block share their inputs, so one solution serves them all
            part = slice(start, start + rows)
            used = kept[start].nonzero()[:, 0]
            if len(used) == len(diagonal_of_whole):
                weight[part], inverse[part] = whole[part], diagonal_of_whole
            elif len(used):
                few = many and moments.basis.shape[1] < len(used)
                fitted, diagonal = (solve_by_basis if few else solve)(moments, used, part)
                weight[part, used] = fitted
                inverse[part, used] = diagonal
    return weight, kept


@torch.no_grad()
def drop_unread(module: nn.Module, samples: Tensor) -> None:
    """Set to zero, in place, the weights and biases of outputs that the dense layer behind them multiplies by zeros
    only, and nothing else reads: once inputs are pruned (``columns``), the neurons that made them can go too.

    Args:
        samples: inputs of the network, float32 ``[N, …]``; the network's output must not depend on what goes.
    """
    dense = called(module, (nn.Linear,), samples[:1])
    importance = output_importance(module, dense, samples)
    for name, behind in pairwise(in_order(module, dense, samples[:1])):
        layer, reader = dense[name], dense[behind]
        if layer.out_features == reader.in_features:
            unread = (reader.weight == 0).all(0) & (importance[name] == 0)
            layer.weight[unread] = 0
            if layer.bias is not None:
                layer.bias[unread] = 0
