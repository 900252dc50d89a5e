"""``nn.TransformerEncoder`` answers as its fast path does: zeros where padding is behind the tokens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from edgecsi.errors import ModelError
from tests.lower._answers import TOLERANCE, Answers

LENGTH = 6


@pytest.fixture(autouse=True)
def _fast_path() -> Iterator[None]:
    """As PyTorch begins; compressed layers of other tests turn it off."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(True)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


class Padded(nn.Module):
    def __init__(self, norm: bool, numbers: bool, mask_check: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        last = nn.LayerNorm(8, bias=True) if norm else None
        if last is not None:
            nn.init.normal_(last.bias)
        self.encoder = nn.TransformerEncoder(layer, 2, last, mask_check=mask_check)
        self.numbers = numbers

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        mask = padded > 0
        if self.numbers:
            mask = torch.zeros_like(padded, dtype=torch.float32).masked_fill(mask, float("-inf"))
        y: Tensor = self.encoder(x, src_key_padding_mask=mask)
        return y


@pytest.mark.parametrize(("norm", "numbers"), [(False, False), (True, True)])
def test_padded_places_answer_as_pytorch_answers(norm: bool, numbers: bool) -> None:
    module = Padded(norm, numbers).eval()
    x = torch.randn(2, LENGTH, 8)
    behind = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1]], dtype=torch.int32)
    among = torch.tensor([[0, 1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1]], dtype=torch.int32)
    compiled = Answers(module, (x, behind))
    for padded in (behind, torch.zeros_like(behind), among):
        with torch.no_grad():
            assert max(compiled.wrong(x, padded).values(), default=0.0) <= TOLERANCE, padded


def test_tokens_that_would_be_moved_are_refused_by_that_name() -> None:
    padded = torch.tensor([[0, 0, 0, 0, 1, 1]], dtype=torch.int32)
    with pytest.raises(ModelError, match=r"mask_check=False.* moves tokens"):
        Answers(
            Padded(norm=False, numbers=False, mask_check=False).eval(), (torch.randn(1, LENGTH, 8), padded)
        )


def test_without_compressed_layers_pytorch_keeps_its_fast_path() -> None:
    code = "import torch, edgecsi.compress, edgecsi.models.load; assert torch.backends.mha.get_fastpath_enabled()"
    subprocess.run([sys.executable, "-c", code], check=True)
