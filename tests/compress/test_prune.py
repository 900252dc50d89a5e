"""Pruning: exactly the wanted blocks are zero, and the rest makes up for them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgecsi.compress.codeword import (
    group_codeword,
    mix_codeword,
    mix_unless_pruned,
    permute_codeword,
    rotate_codeword,
)
from edgecsi.compress.least_squares import compensate
from edgecsi.compress.prune import Pruner, global_masks, mask, prunable, ramp
from edgecsi.compress.recipe import Pattern, Prune
from edgecsi.compress.reconstruct import drop_unread, reconstruct
from edgecsi.errors import ModelError, RecipeError


class Pair(nn.Module):
    """Encoder and decoder of one dense layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32))
        self.decoder = nn.Sequential(nn.Linear(32, 64), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.decoder(self.encoder(x))
        return y


@pytest.fixture
def pair() -> Pair:
    torch.manual_seed(0)
    return Pair().requires_grad_(True).eval()


@pytest.fixture
def samples() -> torch.Tensor:
    """On ten dimensions, as channels are on few."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(500, 10, generator=generator) @ torch.randn(10, 64, generator=generator) * 0.1


@pytest.mark.parametrize(
    "name", ["unstructured", "bsr16x1", "bsr8x1", "bsr4x1", "bsr16x4", "rows", "columns"]
)
def test_masks_are_whole_blocks_of_the_wanted_share(name: str) -> None:
    pattern = Pattern.parse(name)
    keep = mask(torch.rand(64, 128), pattern, 0.75)
    assert float(keep.double().mean()) == 0.25
    rows, columns = pattern.rows or 64, pattern.columns or 128
    blocks = keep.reshape(64 // rows, rows, 128 // columns, columns).double().mean((1, 3))
    assert set(blocks.flatten().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(("name", "keep", "group"), [("2:4", 2, 4), ("1:4", 1, 4)])
def test_n_of_m_keeps_the_largest_of_every_group(name: str, keep: int, group: int) -> None:
    worth = torch.rand(8, 32)
    kept = mask(worth, Pattern.parse(name), 1 - keep / group).reshape(8, -1, group)
    assert bool((kept.sum(-1) == keep).all())
    groups = worth.reshape(8, -1, group)
    assert bool((groups[kept].reshape(8, -1, keep).amin(-1) >= groups.masked_fill(kept, 0).amax(-1)).all())


def test_the_ramp_is_a_cubic_that_ends() -> None:
    values = [ramp(t / 10, 0.9, 0.6) for t in range(11)]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[6:] == [0.9] * 5
    assert ramp(0.3, 0.9, 0.6) == pytest.approx(0.9 * 0.875)


def test_global_ranking_takes_from_the_weak_layer_but_never_empties_it() -> None:
    worth = {"weak": torch.rand(16, 16) * 1e-6, "strong": torch.rand(16, 16) + 1}
    masks = global_masks(worth, Pattern.parse("bsr4x1"), 0.5)
    assert bool(masks["strong"].all())
    assert int(masks["weak"].sum()) == 4


def test_what_is_pruned_stays_zero_and_never_comes_back(pair: Pair) -> None:
    step = Prune(pattern="bsr4x1", sparsity=0.75, ramp=0.5)
    pruner = Pruner(pair, step)
    optimizer = torch.optim.Adam(pair.parameters(), 1e-2)
    gone: dict[str, torch.Tensor] = {}
    for number in range(1, 21):
        optimizer.zero_grad()
        pair(torch.randn(8, 64)).square().mean().backward()
        optimizer.step()
        pruner.update(number / 20)
        for name, layer in prunable(pair, step).items():
            zero = layer.weight == 0
            assert name not in gone or bool(zero[gone[name]].all())
            gone[name] = zero
    assert pruner.final
    assert {name: float(zero.double().mean()) for name, zero in gone.items()} == {
        "encoder.1": 0.75,
        "decoder.0": 0.75,
    }


def test_sensitivity_spares_the_layer_that_matters(pair: Pair, samples: torch.Tensor) -> None:
    wanted = pair.encoder(samples).detach()

    def score(module: nn.Module) -> float:  # only the encoder counts
        return float((module.encoder(samples) - wanted).square().mean())

    pruner = Pruner(pair, Prune(pattern="unstructured", sparsity=0.4, scope="sensitivity"), score)
    assert pruner.shares["decoder.0"] > 0.7
    assert pruner.shares["encoder.1"] < 0.1
    assert sum(pruner.shares.values()) / 2 == pytest.approx(0.4, abs=0.01)


def test_the_codeword_can_be_permuted_and_rotated_for_free(pair: Pair, samples: torch.Tensor) -> None:
    with torch.no_grad():
        pair.encoder[1].weight[::2, :32] = 0
        pair.encoder[1].weight[1::2, 32:] = 0
    before = pair(samples)
    permute_codeword(pair, 16)
    torch.testing.assert_close(pair(samples), before)
    halves = (pair.encoder[1].weight != 0).reshape(2, 16, 2, 32).any(1).any(-1)
    assert int(halves.sum()) == 2, "outputs with like zeros share a block"
    rotate_codeword(pair, samples)
    torch.testing.assert_close(pair(samples), before, rtol=1e-3, atol=1e-4)
    spread = pair.encoder(samples).detach().std(0)
    assert bool((spread[:10] / spread[0] - 1).abs().max() < 0.01), "all are spread alike"
    assert float(spread[10:].max()) < 0.1 * float(spread[0]), "ten dimensions carry everything"
    mix_codeword(pair, samples)
    torch.testing.assert_close(pair(samples), before, rtol=1e-3, atol=1e-4)
    spread = pair.encoder(samples).detach().std(0)
    assert float(spread.min()) > 0.3 * float(spread.max()), "all entries share what there is"


def test_a_pruned_codeword_is_not_mixed(pair: Pair) -> None:
    samples = torch.randn(200, 64)
    with torch.no_grad():
        pair.decoder[0].weight[:, :4] = 0
    before = [layer.weight.clone() for layer in (pair.encoder[1], pair.decoder[0])]
    mix_unless_pruned(pair, samples)
    for layer, weight in zip((pair.encoder[1], pair.decoder[0]), before, strict=True):
        assert torch.equal(layer.weight, weight)


def test_entries_of_a_codeword_can_be_grouped_by_parts_of_the_image(pair: Pair) -> None:
    """Four parts of 16 values with 8 dimensions each, well mixed: grouping finds them again."""
    generator = torch.Generator().manual_seed(5)
    local = torch.block_diag(*[torch.randn(16, 8, generator=generator) for _ in range(4)])
    mixing = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0]
    order = torch.randperm(8, generator=generator)
    local = local.reshape(8, 8, 32)[order].reshape(64, 32)
    with torch.no_grad():
        pair.decoder[0].weight.copy_(local @ mixing)
        pair.encoder[1].weight.copy_(torch.linalg.pinv(local @ mixing))
    samples = torch.randn(200, 64, generator=generator)
    before = pair(samples)
    group_codeword(pair, samples, 8)
    torch.testing.assert_close(pair(samples), before, rtol=1e-3, atol=1e-3)
    strong = pair.decoder[0].weight.detach().reshape(8, 8, 4, 8).square().sum((1, 3)).sqrt()
    assert int((strong > 0.01 * float(strong.max())).sum()) == 8, "every part is in one group of entries"
    spread = pair.encoder(samples).detach().std(0)
    assert bool((spread / spread[0] - 1).abs().max() < 0.01), "all are spread alike"
    sizes = [layer.weight.detach().square().mean() for layer in (pair.encoder[1], pair.decoder[0])]
    assert float(sizes[0] / sizes[1]) == pytest.approx(1, rel=1e-3), "one learning rate suits both"


def test_errors_of_rounded_weights_cancel(pair: Pair, samples: torch.Tensor) -> None:
    layer = pair.encoder[1]
    x = samples.double()
    xx = x.T @ x / len(x) + 1e-3 * torch.eye(64, dtype=torch.float64)
    weight = layer.weight.detach().double().clone()
    weight[::2, ::3] = 0
    step = float(weight.abs().max()) / 4

    def nearest(values: torch.Tensor, _rows: torch.Tensor) -> torch.Tensor:
        return (values / step).round().clamp(-4, 4) * step

    def error(rounded: torch.Tensor) -> float:
        return float((x @ (rounded - weight).T).square().sum())

    rounded = compensate(weight, xx, nearest)
    assert bool((rounded[weight == 0] == 0).all())
    torch.testing.assert_close(rounded, nearest(rounded, torch.arange(len(rounded))))
    plain = nearest(weight, torch.arange(len(weight)))
    assert error(rounded) < 0.3 * error(plain)


@pytest.mark.parametrize("name", ["unstructured", "bsr4x1", "bsr8x4", "2:4", "columns", "rows"])
def test_reconstruction_beats_magnitude(pair: Pair, samples: torch.Tensor, name: str) -> None:
    pattern = Pattern.parse(name)
    step = Prune(pattern=name, sparsity=0.5)
    wanted = pair(samples).detach()
    plain, fitted = copy.deepcopy(pair), copy.deepcopy(pair)
    Pruner(plain, step).update(1.0)
    masks = reconstruct(
        fitted, prunable(fitted, step), pattern, dict.fromkeys(prunable(pair, step), 0.5), samples
    )
    for layer, kept in masks.items():
        weight = fitted.get_submodule(layer).weight
        assert bool((weight[~kept] == 0).all())
        assert float(kept.double().mean()) == pytest.approx(0.5, abs=0.02)

    def error(module: nn.Module) -> float:
        return float((module(samples) - wanted).square().mean().detach())

    # of whole outputs nothing is left to make up with
    assert error(fitted) < (0.8 if name == "rows" else 0.3) * error(plain)


def test_errors_are_clear(pair: Pair) -> None:
    with pytest.raises(RecipeError, match=r"does not divide encoder\.1 \[32, 64\], decoder\.0 \[64, 32\]"):
        Pruner(pair, Prune(pattern="bsr5x1", sparsity=0.5))
    with pytest.raises(RecipeError, match="no layer to prune"):
        Pruner(pair, Prune(pattern="rows", sparsity=0.5, exclude=("*",)))
    with pytest.raises(ModelError, match="would lose all its weights"):
        Pruner(pair, Prune(pattern="bsr32x32", sparsity=0.9))


class _Skip(nn.Module):
    """Four dense layers in a row; the second one's outputs are read once more at the end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skipped = torch.relu(self.b(torch.relu(self.a(x))))
        y: torch.Tensor = self.d(torch.relu(self.c(skipped))) + skipped
        return y


def test_neurons_that_only_made_pruned_inputs_go_too() -> None:
    network, x = (
        _Skip().requires_grad_(False),
        torch.randn(300, 8, generator=torch.Generator().manual_seed(1)),
    )
    for reader in (network.b, network.c, network.d):
        reader.weight[:, :3] = 0
    wanted = network(x)
    drop_unread(network, x)
    torch.testing.assert_close(network(x), wanted)
    for layer in (network.a, network.c):
        assert not bool(layer.weight[:3].any() | layer.bias[:3].any())
        assert bool(layer.weight[3:].any(1).all())
    assert bool(network.b.weight.any(1).all()), "the end of the network reads it"
