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
from edgecsi.compress.reconstruct import compensate, mix_unless_pruned, moments_of, solve_rows
from edgecsi.compress.watch import in_order
from edgecsi.errors import RecipeError

_ROUNDS = 60
_WIDER = 1.15  # the table, once errors are made up for
_PULL = 0.003  # of the way back to its entry that a weight goes in every step
_PACE = 0.05  # how much slower than a weight a centroid trains: thousands of weights move with it


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
    """A dense layer whose weights move between the entries of a table, and whose table trains, slowly.

    Gradients pass the choice of the entry unchanged (Bengio et al., arXiv 1308.3432), so a weight takes another one
    when it has moved far enough. It is drawn back to its entry all the while: otherwise more and more weights wander to
    where two entries meet and jump between them (Nagel et al., arXiv 2203.11086). Weights that are zero stay zero.

    Args:
        layer: its weights are entries of `table`, float32 ``[K]``, and go on training.
    """

    start: Tensor
    pruned: Tensor

    def __init__(self, layer: nn.Linear, table: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("start", table)
        self.register_buffer("pruned", layer.weight.detach() == 0)
        self.moved = nn.Parameter(torch.zeros_like(table))

    def forward(self, x: Tensor) -> Tensor:
        index, table = self._index(), self._table()
        entry: Any = _Lookup.apply(table, index)  # type: ignore[no-untyped-call]
        if self.training:
            with torch.no_grad():
                self.weight.lerp_(entry, _PULL)
        kept = ~self.pruned
        return functional.linear(x, entry + (self.weight - self.weight.detach()) * kept, self.bias)

    def layer(self) -> ClusteredLinear:
        bias = None if self.bias is None else self.bias.detach()
        return ClusteredLinear(self._index().to(torch.uint8), self._table().detach(), bias)

    def _table(self) -> Tensor:
        table = self.start + _PACE * self.moved
        return torch.where(self.start == 0, 0.0, table) if bool(self.pruned.any()) else table

    @torch.no_grad()
    def _index(self) -> Tensor:
        table = self._table()
        order = table.argsort()
        ordered = table[order]
        index = order[torch.searchsorted((ordered[1:] + ordered[:-1]) / 2, self.weight)]
        return torch.where(self.pruned, self.start.abs().argmin(), index)


@torch.no_grad()
def start_sharing(module: nn.Module, step: Cluster, samples: Tensor) -> None:
    """Give every chosen dense layer its table, in place.

    A layer is first fitted to its data, so that no centroid is spent on weights of inputs that never vary, and then
    its weights take such centroids that the errors cancel. The codeword is turned for that, if nothing is pruned yet.

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
    module.eval()
    mix_unless_pruned(module, samples)
    reference = copy.deepcopy(module)
    for name in in_order(reference, found, samples[:1]):
        layer = found[name]
        moments = moments_of(module, reference, name, samples)
        weight = solve_rows(layer.weight.double(), moments.xx, moments.xy)
        # a weight that makes up for the errors of others is farther out than it was
        table = kmeans(weight, step.centroids)[1].double() * _WIDER
        rounded = compensate(weight, moments.xx, _nearest_of(table))
        layer.weight.copy_(rounded)
        if layer.bias is not None:
            layer.bias.copy_(moments.y_mean - rounded @ moments.x_mean)
        module.set_submodule(name, Shared(layer, table.float()))


def _nearest_of(table: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    middle = (table[1:] + table[:-1]) / 2
    return lambda values, _rows: table[torch.searchsorted(middle, values.contiguous())]


def finish_sharing(module: nn.Module) -> None:
    """Replace what :func:`start_sharing` put in by :class:`ClusteredLinear`, in place."""
    for name, part in list(module.named_modules()):
        if isinstance(part, Shared):
            module.set_submodule(name, part.layer())
