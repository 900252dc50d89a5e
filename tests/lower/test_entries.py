"""Entries of several tensors, integers, and children that are no halves: what is built, and what it is called."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgecsi
from edgecsi import verdict
from edgecsi.bundle import read_bundle, read_golden
from edgecsi.device import Local
from edgecsi.errors import ModelError, UsageError
from edgecsi.models.entries import entries_of
from tests._builds import build_for
from tests.lower._answers import Answers

pytestmark = pytest.mark.filterwarnings("ignore::edgecsi.errors.Notice")  # untrained networks

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
    module, (csi, gain) = scope["make"]()
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
    example = subprocess.run([sys.executable, tmp_path / "out" / "example" / "run.py"], check=False)
    assert example.returncode == 0  # scalars and integers among the golden values


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


@dataclass
class Answer:
    codeword: Tensor
    parts: list[Tensor]
    name: str = "csi"


def test_what_is_no_tensor_is_no_output() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> tuple[Answer, dict[str, object]]:
            return Answer(x * 2, [x.mean()]), {"rate": 0.25, "largest": x.amax(-1)}

    class Text(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "done"

    full = entries_of("net", Mixed().eval(), torch.rand(1, 4))["full"]
    assert full.output_names == ("codeword", "parts", "largest")
    assert full.note == "left out of its answers, as no tensors: str, float"
    compiled = Answers(full.module, [full.example_input])
    assert len(compiled.entry.outputs) == 3
    assert not compiled.wrong(full.example_input)
    with pytest.raises(ModelError, match="returns str"):
        entries_of("net", Text(), torch.rand(1, 4))


def test_a_network_that_writes_to_its_input_writes_to_a_copy() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x -= 0.5
            x[:, 0] *= 2
            return x.relu()

    x = torch.rand(1, 4)
    kept, full = x.clone(), entries_of("net", Centred().eval(), x)["full"]
    compiled = Answers(full.module, [x])
    assert not compiled.wrong(x)
    assert torch.equal(x, kept)


BORDERS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, function, layer=None):
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x):
        return self.function(self.layer, x)

def channels():
    return torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(0))

def half():
    return nn.Linear(8, 4).half(), torch.rand(1, 8).half()

def double():
    return nn.Linear(8, 4).double(), torch.rand(1, 8).double()

def half_inside():
    return Net(lambda conv, x: conv(x.half()).float(), nn.Conv2d(2, 4, 3).half()), channels()

def bfloat_attention():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).bfloat16()
    return Net(lambda f, x: f(x[:, 0].bfloat16()).float(), layer), channels()

def one_number():
    return Net(lambda _, x: x.norm()), channels()

def ties():
    return Net(lambda _, x: torch.zeros_like(x[0].reshape(1, -1)).scatter(1, x.flatten(1).topk(64)[1], 1.0)), channels()

def mixed():
    return Net(lambda _, x: x + (x > 0.5).float().mean()), channels()
"""


@pytest.mark.parametrize(
    "factory", ["half", "double", "half_inside", "bfloat_attention", "one_number", "ties", "mixed"]
)
def test_networks_are_checked_in_their_own_types_and_by_what_rounding_leaves_to_them(
    tmp_path: Path, factory: str
) -> None:
    """Equal numbers among channels, sums in half precision and means over the batch make no network wrong."""
    (tmp_path / "net.py").write_text(BORDERS)
    manifest = build_for(f"{tmp_path}/net.py:{factory}", "host", tmp_path / "out").manifest
    assert manifest.check.status == "passed"
    assert manifest.entries["full"].inputs[0].dtype == "float32"
    # What rounding decided here it decides on a device too, which is held to the golden values.
    bundle = read_bundle(tmp_path / "out")
    (x,), (wanted,) = read_golden(bundle, "full")
    y = np.asarray(Local().run(bundle, "full", x.reshape(-1, *x.shape[2:]))).reshape(wanted.shape)
    allowed = verdict.elsewhere(manifest.check.entries["full"].allowed, quantised=False)
    assert verdict.difference(y, wanted).max_rel_diff <= allowed


def test_what_rounding_does_not_explain_is_wrong() -> None:
    wanted, still = np.linspace(1, 2, 50, dtype=np.float32), np.full(50, 1e-7)
    assert verdict.within_rounding(wanted, wanted, still) == verdict.FP32
    assert verdict.within_rounding(wanted + 1e-3, wanted, still) is None
    moved = np.where(np.arange(50) < 2, 1.0, still)  # on an edge
    assert verdict.within_rounding(np.where(moved == 1, 9, wanted), wanted, moved) == verdict.FP32
    assert verdict.within_rounding(np.where(moved == 1, 9, wanted + 1e-3), wanted, moved) is None
    for many in (5, 50):
        assert verdict.within_rounding(wanted, wanted, np.where(np.arange(50) < many, 1.0, still)) is None
    amplified = np.full(50, 0.009)  # however much rounding moves: by a thousandth no answer may be off
    assert verdict.within_rounding(wanted + 3e-3, wanted, amplified) is None
    assert verdict.within_rounding(wanted + 1e-3, wanted, amplified) == verdict.AMPLIFIED_MOST
    assert (
        verdict.within_rounding(wanted + 1e-2, wanted, amplified, coarseness=16)
        == 16 * verdict.AMPLIFIED_MOST
    )
    assert verdict.within_rounding(wanted + 4e-2, wanted, amplified, coarseness=16) is None


LIMITS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)

def outputs():
    return Net(lambda x: tuple(x * i + 1 for i in range(9))), torch.rand(1, 4)

def dimensions():
    return Net(lambda x: x * 2 + 1), torch.rand(1, 1, 1, 2, 1, 1, 1, 1, 2)

def nothing():
    return Net(lambda x: (x * 2, x[:, :0])), torch.rand(1, 4)
"""


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("outputs", "full has 9 outputs\n1 to 8.*--keep-output"),
        ("dimensions", "x of full"),
        ("nothing", r"\[1, 0\]"),
    ],
)
def test_what_no_bundle_can_have_is_a_fault_of_the_network(tmp_path: Path, factory: str, words: str) -> None:
    (tmp_path / "net.py").write_text(LIMITS)
    with pytest.raises(ModelError, match=f"(?s){words}"):
        build_for(f"{tmp_path}/net.py:{factory}", "host", tmp_path / "out", dry_run=True)
