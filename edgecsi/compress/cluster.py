"""Weight clustering: the weights of a dense layer share a few values (Han et al., arXiv 1510.00149)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgecsi.compress.layers import ClusteredLinear
from edgecsi.compress.recipe import Cluster, matches
from edgecsi.compress.reconstruct import compensate, moments_of, solve_rows
from edgecsi.compress.watch import in_order
from edgecsi.errors import RecipeError

_ROUNDS = 60


@torch.no_grad()
def kmeans(weight: Tensor, centroids: int) -> tuple[Tensor, Tensor]:
    """One-dimensional k-means (Lloyd) of a weight, started from equally filled bins.

    If the weight has zeros, one centroid is exactly zero and they keep it, so that pruned stays pruned.

    Returns:
        index uint8 of the weight's shape, and table float32 ``[centroids]`` in rising order.
    """
    flat = weight.detach().flatten().double()
    pruned = flat == 0
    values = flat[~pruned].sort().values
    free = centroids - int(bool(pruned.any()))
    if len(values) == 0:
        return torch.zeros_like(weight, dtype=torch.uint8), torch.zeros(centroids)
    # in one dimension a cluster is a run of the sorted values: only its ends move, and sums come from a
    # prefix
    prefix = torch.cat([values.new_zeros(1), values.cumsum(0)])
    table = values[((torch.arange(free) + 0.5) / free * len(values)).long()]
    for _ in range(_ROUNDS):
        ends = torch.searchsorted(values, (table[1:] + table[:-1]) / 2)
        ends = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), len(values))])
        count = ends[1:] - ends[:-1]
        means = (prefix[ends[1:]] - prefix[ends[:-1]]) / count.clamp_min(1)
        moved = torch.where(count > 0, means, table)
        if torch.equal(moved, table):
            break
        table = moved
    if free < centroids:
        table = torch.cat([table, table.new_zeros(1)]).sort().values
    index = torch.searchsorted(((table[1:] + table[:-1]) / 2).contiguous(), flat)
    if free < centroids:
        zero = int((table == 0).nonzero()[0])
        index[pruned] = zero
    return index.to(torch.uint8).reshape(weight.shape), table.float()


class _Lookup(torch.autograd.Function):
    """``table[index]``; the gradient of an entry is the sum over its weights."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.entries = len(table)
        return table[index]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        sums = torch.bincount(index.flatten(), gradients[0].flatten(), minlength=ctx.entries)
        return sums.to(gradients[0].dtype), None


class Shared(nn.Module):
    """A dense layer whose table trains; a zero that stands for pruned weights stays."""

    index: Tensor
    trained: Tensor

    def __init__(self, layer: nn.Linear, index: Tensor, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index.long())
        self.table = nn.Parameter(table)
        self.bias = layer.bias
        has_zeros = bool((layer.weight == 0).any())
        self.register_buffer(
            "trained", (table != 0) if has_zeros else torch.ones_like(table, dtype=torch.bool)
        )

    def forward(self, x: Tensor) -> Tensor:
        table = self.table * self.trained
        weight: Any = _Lookup.apply(table, self.index)  # type: ignore[no-untyped-call]
        return functional.linear(x, weight, self.bias)

    def layer(self) -> ClusteredLinear:
        table = (self.table * self.trained).detach()
        bias = None if self.bias is None else self.bias.detach()
        return ClusteredLinear(self.index.to(torch.uint8), table, bias)


@torch.no_grad()
def start_sharing(module: nn.Module, step: Cluster, samples: Tensor) -> None:
    """Give every chosen dense layer its table, in place.

    A layer is first fitted to its data, so that no centroid is spent on weights of inputs that never vary, and then
    its weights take the nearest centroid input by input, so that the errors cancel.

    Args:
        samples: inputs of the network, float32 ``[N, …]``.

    Raises:
        RecipeError: the recipe chooses no layer.
    """
    found = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and matches(name, step.layers, step.exclude)
    }
    if not found:
        raise RecipeError(
            "there is no layer to cluster",
            f"no dense layer is called like {list(step.layers)} and not like {list(step.exclude)}",
            "change layers or exclude",
        )
    reference = copy.deepcopy(module).eval()
    module.eval()
    for name in in_order(reference, found, samples[:1]):
        layer = found[name]
        moments = moments_of(module, reference, name, samples)
        weight = solve_rows(layer.weight.double(), moments.xx, moments.xy)
        table = kmeans(weight, step.centroids)[1].double()
        rounded = compensate(weight, moments.xx, _nearest_of(table))
        layer.weight.copy_(rounded)
        if layer.bias is not None:
            layer.bias.copy_(moments.y_mean - rounded @ moments.x_mean)
        index = torch.searchsorted((table[1:] + table[:-1]) / 2, rounded)
        module.set_submodule(name, Shared(layer, index, table.float()))


def _nearest_of(table: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    middle = (table[1:] + table[:-1]) / 2
    return lambda values, _rows: table[torch.searchsorted(middle, values.contiguous())]


def finish_sharing(module: nn.Module) -> None:
    """Replace what :func:`start_sharing` put in by :class:`ClusteredLinear`, in place."""
    for name, part in list(module.named_modules()):
        if isinstance(part, Shared):
            module.set_submodule(name, part.layer())
