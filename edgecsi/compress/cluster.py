"""Weight clustering: the weights of a dense layer share a few values (Han et al., arXiv 1510.00149)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgecsi.compress.choose import dense_layers
from edgecsi.compress.codeword import codeword_layers, mix_unless_pruned
from edgecsi.compress.least_squares import compensate, moments_of, solve_rows
from edgecsi.compress.recipe import Cluster
from edgecsi.compress.round_pair import Side, round_pair, scales
from edgecsi.compress.watch import Tell, in_order, output_metric, say_nothing
from edgecsi.models.compressed.layers import ClusteredLinear

_ROUNDS = 300
_TABLE_STRETCH = 1.15  # the table, once errors are made up for
_METRIC_FLOOR = 0.3  # of the mean weight of an error in the decoder, added to all
_PULL_PER_STEP = 0.003  # of the way back to its entry that a weight goes in every step
_CENTROID_LR_FACTOR = 0.05  # of a centroid, where that of biases is 1: thousands of weights move with it
_WEIGHT_LR_FACTOR = 0.3  # of a weight


@torch.no_grad()
def kmeans(weight: Tensor, centroids: int, worth: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One-dimensional k-means (Lloyd) of a weight, started from equally filled bins.

    If the weight has zeros, one centroid is exactly zero and they keep it, so that pruned stays pruned.

    Args:
        worth: what an error of each weight weighs, of its shape; without it they all weigh the same.

    Returns:
        index uint8 of the weight's shape, and table float32 ``[centroids]`` in rising order.
    """
    flat = weight.detach().flatten().double()
    pruned = flat == 0
    values, order = flat[~pruned].sort()
    free = centroids - int(bool(pruned.any()))
    if len(values) == 0:
        return torch.zeros_like(weight, dtype=torch.uint8), torch.zeros(centroids)
    weighs = torch.ones_like(values) if worth is None else worth.flatten()[~pruned][order].double()
    # in one dimension a cluster is a run of the sorted values: only its ends move, and sums come from a
    # prefix
    count = torch.cat([values.new_zeros(1), weighs.cumsum(0)])
    total = torch.cat([values.new_zeros(1), (weighs * values).cumsum(0)])
    table = values[((torch.arange(free) + 0.5) / free * len(values)).long()]
    for _ in range(_ROUNDS):
        ends = torch.searchsorted(values, (table[1:] + table[:-1]) / 2)
        ends = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), len(values))])
        held = count[ends[1:]] - count[ends[:-1]]
        means = (total[ends[1:]] - total[ends[:-1]]) / held.clamp_min(1e-300)
        moved = torch.where(held > 0, means, table)
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
    """A dense layer whose weights are entries of a table, times the scale of their output and the gain of their input.

    What trains is the bias, the table, slowly, and the scales and gains.

    Args:
        layer: its weights are entries of `table`, float32 ``[K]``, times `scale` ``[O, 1]`` and `gain` ``[I]``, each if
            there is one.
    """

    start: Tensor
    index: Tensor

    def __init__(
        self, layer: nn.Linear, table: Tensor, scale: Tensor | None = None, gain: Tensor | None = None
    ) -> None:
        super().__init__()
        self.bias = layer.bias
        self.register_buffer("start", table)
        self.moved = nn.Parameter(torch.zeros_like(table))
        self._factors: list[str] = []
        entry = layer.weight.detach()
        for name, factor in (("scale", scale), ("gain", gain)):
            if factor is not None:
                entry = entry / factor
                self.register_buffer(f"{name}_start", factor)
                self.register_parameter(f"{name}_share", nn.Parameter(torch.ones_like(factor)))
                self._factors.append(name)
        self.register_buffer("index", _nearest(table, entry))

    def forward(self, x: Tensor) -> Tensor:
        entry: Any = _Lookup.apply(self.table(), self.index)  # type: ignore[no-untyped-call]
        for name in self._factors:
            entry = entry * self._factor(name)
        return functional.linear(x, entry, self.bias)

    def table(self) -> Tensor:
        return self.start + _CENTROID_LR_FACTOR * self.moved

    def layer(self) -> ClusteredLinear:
        factors = {name: self._factor(name).detach().flatten() for name in self._factors}
        bias = None if self.bias is None else self.bias.detach()
        return ClusteredLinear(self.index.to(torch.uint8), self.table().detach(), bias, **factors)

    def _factor(self, name: str) -> Tensor:
        start, share = getattr(self, f"{name}_start"), getattr(self, f"{name}_share")
        factor: Tensor = start * share
        return factor


class Moving(Shared):
    """The same, but weights move between the entries, at a third of the pace of the rest.

    Gradients pass the choice of the entry unchanged (Bengio et al., arXiv 1308.3432), so a weight takes another one
    when it has moved far enough. It is drawn back to its entry all the while: otherwise more and more weights wander to
    where two entries meet and jump between them (Nagel et al., arXiv 2203.11086). Weights that are zero stay zero.
    """

    origin: Tensor
    kept: Tensor

    def __init__(self, layer: nn.Linear, table: Tensor) -> None:
        super().__init__(layer, table)
        self.register_buffer("origin", layer.weight.detach())
        self.register_buffer("kept", layer.weight.detach() != 0)
        self.shift = nn.Parameter(torch.zeros_like(layer.weight))

    def forward(self, x: Tensor) -> Tensor:
        weight = self._choose()
        entry: Any = _Lookup.apply(self.table(), self.index)  # type: ignore[no-untyped-call]
        if self.training:
            with torch.no_grad():
                self.shift.add_((entry - weight) * (_PULL_PER_STEP / _WEIGHT_LR_FACTOR))
        return functional.linear(x, entry + (weight - weight.detach()) * self.kept, self.bias)

    def layer(self) -> ClusteredLinear:
        self._choose()
        return super().layer()

    def _choose(self) -> Tensor:
        """Bring the index up to date; returns the weights as they have moved, float32 ``[O, I]``."""
        weight = self.origin + _WEIGHT_LR_FACTOR * self.shift
        with torch.no_grad():
            self.index = torch.where(self.kept, _nearest(self.table(), weight), self.start.abs().argmin())
        return weight

    def table(self) -> Tensor:
        table = super().table()
        return table if bool(self.kept.all()) else torch.where(self.start == 0, 0.0, table)


def _nearest(table: Tensor, weight: Tensor) -> Tensor:
    """Index of the entry next to each weight; training leaves a table in any order."""
    order = table.argsort()
    ordered = table[order]
    return order[torch.searchsorted((ordered[1:] + ordered[:-1]) / 2, weight)]


@torch.no_grad()
def start_sharing(module: nn.Module, step: Cluster, samples: Tensor, tell: Tell = say_nothing) -> None:
    """Give every chosen dense layer its table, in place.

    A layer is first fitted to its data, so that no centroid is spent on weights of inputs that never vary, and then
    its weights take such centroids that the errors cancel. If nothing is pruned yet, the two layers around the
    codeword take theirs together, and keep them: their errors cancel so well that moving one weight only harms.

    Args:
        samples: inputs of the network, float32 ``[N, …]``. tell: told of every layer.

    Raises:
        RecipeError: the recipe chooses no layer.
    """
    found = dense_layers(module, samples[:1], step.layers, step.exclude, "cluster")
    name_of = {layer: name for name, layer in found.items()}
    around = [name_of[layer] for layer in codeword_layers(module) or () if layer in name_of]
    together = mix_unless_pruned(module, samples) and len(around) == 2
    reference = copy.deepcopy(module)
    order = in_order(reference, found, samples[:1])
    for number, name in enumerate(order):
        tell(f"clustering {name}", number, len(order))
        if together and name in around:
            if name == around[0]:
                _share_together(module, around[0], around[1], step.centroids, samples)
            continue
        layer = found[name]
        moments = moments_of(module, reference, name, samples)
        weight = solve_rows(layer.weight.double(), moments.xx, moments.xy)
        # a weight that makes up for the errors of others is farther out than it was
        table = kmeans(weight, step.centroids)[1].double() * _TABLE_STRETCH
        rounded = compensate(weight, moments.xx, _nearest_of(table))
        layer.weight.copy_(rounded)
        if layer.bias is not None:
            layer.bias.copy_(moments.y_mean - rounded @ moments.x_mean)
        module.set_submodule(name, Moving(layer, table.float()))


def _share_together(module: nn.Module, encoder: str, decoder: str, centroids: int, samples: Tensor) -> None:
    """Give the layers on both sides of a codeword, which has no mean, their tables."""
    last, first = module.get_submodule(encoder), module.get_submodule(decoder)
    assert isinstance(last, nn.Linear)
    assert isinstance(first, nn.Linear)
    inputs = moments_of(module, module, encoder, samples)
    metric = output_metric(module, decoder, samples)
    # the network is linear only near what it sees now, so no error is for nothing
    metric.diagonal().add_((_METRIC_FLOOR * metric.diagonal().mean()).clamp_min(1e-12))
    sides = []
    for weight, weighs in ((last.weight.T.double(), inputs.xx), (first.weight.double(), metric)):
        scale = scales(weight)
        worth = (weighs.diagonal()[:, None] * scale**2).expand_as(weight)
        sides.append(Side(weight.clone(), weighs, kmeans(weight / scale, centroids, worth)[1].double()))
    before, behind = sides
    round_pair(before, behind)
    last.weight.copy_(before.weight.T)
    assert last.bias is not None
    last.bias.copy_(-last.weight @ inputs.x_mean.float())
    first.weight.copy_(behind.weight)
    module.set_submodule(encoder, Shared(last, before.table.float(), gain=before.scale[:, 0].float()))
    module.set_submodule(decoder, Shared(first, behind.table.float(), scale=behind.scale.float()))


def _nearest_of(table: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    middle = (table[1:] + table[:-1]) / 2
    return lambda values, _rows: table[torch.searchsorted(middle, values.contiguous())]


def finish_sharing(module: nn.Module) -> None:
    """Replace what :func:`start_sharing` put in by :class:`ClusteredLinear`, in place."""
    for name, part in list(module.named_modules()):
        if isinstance(part, Shared):
            module.set_submodule(name, part.layer())
