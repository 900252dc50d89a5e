"""Weight clustering: tables, and what a network keeps of its accuracy."""

from __future__ import annotations

import copy

import torch
from torch import nn

from edgecsi.compress.cluster import Shared, finish_sharing, kmeans, start_sharing
from edgecsi.compress.layers import ClusteredLinear
from edgecsi.compress.recipe import Cluster


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, outputs)).requires_grad_(False)


def _correlated(count: int, inputs: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(count, inputs // 4) @ torch.randn(inputs // 4, inputs)


def test_kmeans_finds_the_values_there_are() -> None:
    values = torch.tensor([-3.0, -1.0, 0.0, 2.0])
    weight = values[torch.randint(4, (20, 30), generator=torch.Generator().manual_seed(0))]
    index, table = kmeans(weight, 16)
    torch.testing.assert_close(table[index.long()], weight)
    assert bool((table[1:] >= table[:-1]).all())


def test_errors_cancel_where_inputs_depend_on_each_other() -> None:
    layer, x = _layer(64, 48), _correlated(500, 64)
    wanted = layer(x)
    plain, clustered = copy.deepcopy(layer), copy.deepcopy(layer)
    index, table = kmeans(plain[0].weight, 16)
    plain[0].weight.copy_(table[index.long()])
    start_sharing(clustered, Cluster(), x)
    finish_sharing(clustered)
    assert isinstance(clustered[0], ClusteredLinear)
    errors = [float((network(x) - wanted).square().sum()) for network in (clustered, plain)]
    assert errors[0] < 0.2 * errors[1]


def test_training_moves_weights_between_entries_but_not_away_from_zero() -> None:
    layer, x = _layer(32, 16), _correlated(400, 32)
    pruned = torch.rand(16, 32, generator=torch.Generator().manual_seed(2)) < 0.5
    layer[0].weight[pruned] = 0
    target = x @ torch.randn(32, 16, generator=torch.Generator().manual_seed(3))
    start_sharing(layer, Cluster(), x)
    shared = layer[0].requires_grad_(True)
    assert isinstance(shared, Shared)
    before = shared.layer()
    optimizer = torch.optim.Adam(shared.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    after = shared.layer()
    torch.testing.assert_close(after(x), shared(x).detach())
    assert float((after(x) - target).square().mean()) < 0.7 * float((before(x) - target).square().mean())
    assert bool((after.index != before.index).any())
    assert len(after.table) == 16
    assert bool((after.table[after.index.long()][pruned] == 0).all())
