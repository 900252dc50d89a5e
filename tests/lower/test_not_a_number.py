"""Operators that TVM defines let not-a-number and infinity through as PyTorch does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import edgecsi
from tests._builds import build_for, pytorch

NETWORK = """
import torch
from torch import nn

class Most(nn.Module):
    def forward(self, x):
        return torch.cat([
            x.amax(1, keepdim=True), x.amin(1, keepdim=True), x.amax(2, keepdim=True).expand(1, 8, 40),
            torch.maximum(x, x.flip(1)), torch.minimum(x.flip(2), x), torch.cummax(x, 2)[0],
            nn.functional.adaptive_max_pool1d(x, 1).expand(1, 8, 40), x.clamp(-0.5, 0.5), x.abs().clamp(min=0.5),
            x.isnan().float(), x.isfinite().float(), (x != x).float(), (x != x.flip(1)).float(),
        ], 1)

def most():
    return Most().eval(), torch.zeros(1, 8, 40)
"""


def test_what_tvm_defines(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    result = build_for(f"{tmp_path}/net.py:most", "host", tmp_path / "bundle")
    assert result.bundle is not None
    x = np.random.default_rng(0).standard_normal((1, 8, 40)).astype(np.float32)
    x[0, [1, 4, 5], [3, 39, 0]] = np.nan
    x[0, 6, 0], x[0, 7, 0] = np.inf, -np.inf
    names: dict[str, object] = {}
    exec(NETWORK, names)
    want = pytorch(names["most"]()[0], x)
    np.testing.assert_array_equal(edgecsi.load(tmp_path / "bundle").run(x), want)
