"""Attention and recurrent layers taken apart answer what PyTorch's own answer, with every argument."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgecsi.models.compressed.taken_apart import Attention, OneRow, Recurrent


def same(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inputs", [1, 2, 3])
@pytest.mark.parametrize("batch_first", [False, True])
def test_attention(inputs: int, batch_first: bool) -> None:
    torch.manual_seed(inputs)
    widths: dict[str, Any] = {"kdim": 12, "vdim": 8} if inputs == 3 else {}
    original = nn.MultiheadAttention(16, 4, bias=inputs != 2, batch_first=batch_first, **widths).eval()
    for parameter in original.parameters():
        nn.init.normal_(parameter, std=0.3)
    apart = Attention(original, inputs).eval()
    query, other = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    given = [query] * 3 if inputs == 1 else [query, other, other]
    if inputs == 3:
        given = [query, other[..., :12], other[..., :8]]
    length = given[1].shape[1]
    if not batch_first:
        given = [given[0].transpose(0, 1)] * 3 if inputs == 1 else [x.transpose(0, 1) for x in given]
    padded = torch.zeros(2, length, dtype=torch.bool)
    padded[0, -1] = True
    asked: list[dict[str, Any]] = [
        {}, {"need_weights": False}, {"key_padding_mask": padded}, {"attn_mask": torch.randn(5, length)},
        {"attn_mask": torch.rand(5, length) > 0.8, "need_weights": False, "key_padding_mask": padded},
        {"attn_mask": torch.randn(8, 5, length), "average_attn_weights": False},
    ]  # fmt: skip
    for arguments in asked:
        wanted, found = original(*given, **arguments), apart(*given, **arguments)
        same(found[0], wanted[0])
        assert (found[1] is None) == (wanted[1] is None)
        if wanted[1] is not None:
            same(found[1], wanted[1])
    alone = [x[0] if batch_first else x[:, 0] for x in given]
    same(apart(*alone), original(*alone))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent(kind: type[nn.LSTM | nn.GRU]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6)
    for batch_first, bias, both, layers in itertools.product(
        (False, True), (False, True), (False, True), (1, 2)
    ):
        original = kind(6, 5, layers, bias=bias, batch_first=batch_first, bidirectional=both).eval()
        apart = Recurrent(original)
        state: Any = torch.randn(layers * (1 + both), 3 if batch_first else 4, 5)
        state = (state, 2 * state) if kind is nn.LSTM else state
        with torch.no_grad():
            for given in ((x,), (x[0],), (x, state)):
                same(apart(*given), original(*given))


@pytest.mark.parametrize(
    "original",
    [
        nn.Conv1d(4, 6, 3, 2, 1), nn.Conv1d(4, 6, 1), nn.Conv1d(4, 4, 3, padding="same", dilation=2, groups=2),
        nn.ConvTranspose1d(4, 6, 1, bias=False),
    ],
)  # fmt: skip
def test_one_row(original: nn.Conv1d | nn.ConvTranspose1d) -> None:
    x: Tensor = torch.randn(2, 4, 9)
    assert OneRow.fits(original, True)
    with torch.no_grad():
        same(OneRow(original)(x), original(x))
        same(OneRow(original)(x[0]), original(x[0]))


def test_layers_nothing_can_stand_for() -> None:
    assert not Attention.fits(nn.MultiheadAttention(8, 2, add_bias_kv=True), 1)
    assert not Recurrent.fits(nn.RNN(4, 4))
    assert not Recurrent.fits(nn.LSTM(4, 4, proj_size=2))
    assert not OneRow.fits(nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"), True)
    assert not OneRow.fits(nn.Conv1d(4, 4, 3, padding=1), False)
