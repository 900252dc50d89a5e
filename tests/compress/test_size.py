"""Bytes of stored weights: the smallest of the forms that a library has."""

from __future__ import annotations

import torch
from torch import nn

from edgecsi.compress.size import stored_bytes
from edgecsi.models.compressed.layers import ClusteredLinear

ALL = 64 * 128


def dense(kept: torch.Tensor) -> nn.Sequential:
    layer = nn.Linear(128, 64, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.where(kept, 0.1, 0.0))
    return nn.Sequential(layer)


def test_a_full_layer_takes_all_its_weights() -> None:
    assert stored_bytes(dense(torch.ones(64, 128) > 0)) == 4 * ALL


def test_half_precision_numbers_take_two_bytes() -> None:
    net = dense(torch.ones(64, 128) > 0)
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight.half().float())
    assert stored_bytes(net) == 2 * ALL


def test_rows_and_columns_of_zeros_are_left_out_and_the_others_listed() -> None:
    kept = torch.ones(64, 128) > 0
    kept[:, ::2] = False
    assert stored_bytes(dense(kept)) == 4 * ALL // 2 + 2 * 64
    kept[:16] = False
    assert stored_bytes(dense(kept)) == 4 * 48 * 64 + 2 * 64 + 2 * 48
    assert stored_bytes(dense(torch.zeros(64, 128) > 0)) == 0


def test_scattered_blocks_are_stored_with_their_places() -> None:
    kept = torch.zeros(4, 128) > 0
    for row in range(4):
        kept[row, row::8] = True
    blocks = kept.repeat_interleave(16, 0)
    assert stored_bytes(dense(blocks)) == 64 * (16 * 4 + 2) + 4 * 5


def test_clusters_take_the_bits_of_an_index_and_the_table() -> None:
    index = torch.arange(16, dtype=torch.uint8).repeat(4, 8)
    layer = ClusteredLinear(index, torch.linspace(-1, 1, 16), torch.zeros(4))
    assert stored_bytes(nn.Sequential(layer)) == 4 * 128 // 2 + 16 * 4 + 4 * 4
