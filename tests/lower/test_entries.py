"""Entries of several tensors, integers, and children that are no halves: what is built, and what it is called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgecsi
from edgecsi.errors import ModelError, UsageError
from edgecsi.models.entries import entries_of
from tests._builds import build_for

NETWORK = """
import torch
from torch import nn

class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(24, 8)

    def forward(self, csi, gain):
        code = torch.sigmoid(self.fc(csi) * gain)
        return code, {"quality": code.mean(), "unused": None, "best": code.argmax(1)}

def make():
    torch.manual_seed(0)
    return Several().eval(), (torch.rand(1, 24), torch.rand(1, 1))
"""


def test_tensors_are_named_in_manifest_header_and_python(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    result = build_for(f"{tmp_path}/net.py:make", "host", tmp_path / "out")
    entry = result.manifest.entries["full"]
    assert [t.name for t in entry.inputs] == ["csi", "gain"]
    assert {t.name: t.dtype for t in entry.outputs} == {"y": "float32", "quality": "float32", "best": "int32"}
    assert result.manifest.check.status == "passed"
    header = (tmp_path / "out" / result.manifest.header).read_text()
    assert "const float *csi, const float *gain" in header
    assert "int32_t *best" in header
    scope: dict[str, object] = {}
    exec(NETWORK, scope)
    module, (csi, gain) = scope["make"]()  # type: ignore[operator]
    with torch.no_grad():
        code, rest = module(csi, gain)
    found = dict(
        zip(
            [t.name for t in entry.outputs],
            edgecsi.load(tmp_path / "out").run(csi.numpy(), gain.numpy()),
            strict=True,
        )
    )
    assert np.allclose(found["y"], code, atol=1e-6)
    assert np.allclose(found["quality"], rest["quality"], atol=1e-6)
    assert found["quality"].shape == ()
    assert found["best"].dtype == np.int32
    assert (found["best"] == rest["best"].numpy()).all()


def test_outputs_that_nobody_wants_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    network = f"{tmp_path}/net.py:make"
    chosen = build_for(network, "host", tmp_path / "out", outputs=("best", "y")).manifest
    assert [t.name for t in chosen.entries["full"].outputs] == ["best", "y"]
    assert chosen.check.status == "passed"
    with pytest.raises(UsageError, match="no entry has an output 'worst'\nthere are y, quality, best"):
        build_for(network, "host", tmp_path / "none", dry_run=True, outputs=("worst",))


class Transformer(nn.Module):
    """Children of these names that are no halves of a codec."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 8), nn.Linear(8, 8)
        self.code = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x.reshape(1, 8, 8))) + self.code(x).mean()


def test_children_that_are_no_halves_are_built_as_one_and_it_is_said_why() -> None:
    entries = entries_of("net", Transformer().eval(), torch.rand(1, 64))
    assert list(entries) == ["full"]
    assert "no halves" in entries["full"].note
    assert "encode and decode" in entries["full"].note


def test_what_is_no_tensor_is_no_output() -> None:
    class Text(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return x, "done"

    with pytest.raises(ModelError, match="returns str"):
        entries_of("net", Text(), torch.rand(1, 4))
