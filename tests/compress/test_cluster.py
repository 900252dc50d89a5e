"""Weight clustering: tables, and what a network keeps of its accuracy."""

from __future__ import annotations

import copy

import torch
from torch import nn

from edgecsi.compress.cluster import Moving, Shared, finish_sharing, kmeans, start_sharing
from edgecsi.compress.recipe import Cluster
from edgecsi.compress.round_pair import Side, round_pair, scales
from edgecsi.models.compressed.layers import ClusteredLinear


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


def test_a_weight_worth_three_counts_as_three_in_kmeans() -> None:
    weight = torch.randn(300, generator=torch.Generator().manual_seed(0))
    worth = torch.randint(1, 4, weight.shape, generator=torch.Generator().manual_seed(1))
    _, wanted = kmeans(weight.repeat_interleave(worth), 4)
    _, table = kmeans(weight, 4, worth)
    torch.testing.assert_close(table, wanted, rtol=1e-3, atol=1e-3)


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
    assert isinstance(shared, Moving)
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


class _Pair(nn.Module):
    """64 values through a codeword of 16, and something nonlinear behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        first, last = nn.Linear(64, 16), nn.Linear(16, 64)
        basis = torch.linalg.qr(torch.randn(64, 64))[0][:, :16]
        with torch.no_grad():
            first.weight.copy_(basis.T)
            last.weight.copy_(basis)
        self.encoder, self.decoder = nn.ModuleList([first]), nn.ModuleList([last])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.decoder[0](self.encoder[0](x)).tanh()
        return y


def _fading(count: int) -> torch.Tensor:
    """Inputs of which the first are strong and the last weak."""
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(4)) * 0.9 ** torch.arange(64)


def test_two_layers_around_a_codeword_cancel_each_others_errors() -> None:
    network, x = _Pair().requires_grad_(False), _fading(600)
    wanted = network(x)
    errors = {}
    for way, names in {"together": ["*"], "apart": ["encoder*", "decoder*"]}.items():
        clustered = copy.deepcopy(network)
        for name in names:
            start_sharing(clustered, Cluster(layers=(name,)), x)
        finish_sharing(clustered)
        assert isinstance(clustered.encoder[0], ClusteredLinear)
        assert isinstance(clustered.decoder[0], ClusteredLinear)
        errors[way] = float((clustered(x) - wanted).square().sum())
    assert errors["together"] < 0.6 * errors["apart"]


def test_rounding_a_pair_leaves_entries_of_the_tables_times_a_scale_per_row() -> None:
    generator = torch.Generator().manual_seed(0)
    encoder, decoder = (torch.randn(size, 8, generator=generator, dtype=torch.float64) for size in (40, 24))
    mixing = torch.diag(0.85 ** torch.arange(40, dtype=torch.float64))  # few inputs are strong
    table = torch.linspace(-3, 3, 16, dtype=torch.float64)
    sides = (
        Side(encoder.clone(), mixing @ mixing.T, table),
        Side(decoder.clone(), torch.eye(24).double(), table),
    )
    round_pair(*sides)
    for side in sides:
        distance = (side.weight / side.scale)[..., None] - table
        assert float(distance.abs().amin(-1).max()) < 1e-12

    def cost(one: torch.Tensor, other: torch.Tensor) -> float:
        error = (other @ one.T - decoder @ encoder.T) @ mixing
        return float(error.square().sum())

    nearest = [
        scales(weight) * table[((weight / scales(weight))[..., None] - table).abs().argmin(-1)]
        for weight in (encoder, decoder)
    ]
    assert cost(*(side.weight for side in sides)) < 0.4 * cost(*nearest)


def test_a_pair_keeps_its_entries_while_the_tables_train() -> None:
    network, x = _Pair().requires_grad_(False), _fading(600)
    start_sharing(network, Cluster(), x)
    shared = network.decoder[0].requires_grad_(True)
    assert type(shared) is Shared
    before = shared.layer()
    optimizer = torch.optim.Adam(shared.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        (network(x) - x).square().mean().backward()
        optimizer.step()
    after = shared.layer()
    torch.testing.assert_close(after(x[:, :16]), shared(x[:, :16]).detach())
    assert torch.equal(after.index, before.index)
    assert not torch.equal(after.table, before.table)
    assert after.scale is not None
    assert before.scale is not None
    assert not torch.equal(after.scale, before.scale)
