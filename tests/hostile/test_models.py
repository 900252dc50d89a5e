"""Networks that cannot be compiled, and strange ones that can. Nothing is written for the former."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import edgecsi
from edgecsi.errors import EdgecsiError, InputError, UnsupportedOperators
from edgecsi.pipeline import BuildOptions, build
from tests._builds import pytorch

HOSTILE = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(8, 8)
        self.register_buffer("count", torch.zeros(1))
        self.run = forward

    def forward(self, x):
        return self.run(self, x)

def given(forward):
    return Net(forward).eval(), torch.rand(1, 8)

def unsupported():
    return given(lambda self, x: torch.special.i0(self.fc(x)) + torch.linalg.svdvals(x).sum())

def depends_on_data():
    return given(lambda self, x: self.fc(x) if x.sum() > 0 else x)

def dynamic_shape():
    return given(lambda self, x: self.fc(x)[x > 0.5])

def counts():
    def forward(self, x):
        self.count += 1
        return self.fc(x) + self.count
    return given(forward)

def nan_weight():
    net, x = given(lambda self, x: self.fc(x))
    net.fc.weight.data[3, 2] = float("nan")
    return net, x

def infinite_weight():
    net, x = given(lambda self, x: self.fc(x))
    net.fc.bias.data[1] = float("inf")
    return net, x

def nan_buffer():
    net, x = given(lambda self, x: self.fc(x) * self.count)
    net.count[0] = float("nan")
    return net, x

def nan_tensor():
    net, x = given(lambda self, x: self.fc(x) * self.table)
    net.table = torch.full((8,), float("nan"))
    return net, x

def raises():
    return given(lambda self, x: 1 / 0)

def leaves():
    raise SystemExit(0)

def two_inputs():
    return given(lambda self, x, y: x)

def nothing():
    return given(lambda self, x: None)

def complex_numbers():
    return given(lambda self, x: torch.view_as_complex(self.fc(x).reshape(1, 4, 2)))

def empty_output():
    return given(lambda self, x: self.fc(x)[:, 8:])

def not_a_module():
    return 3

def flat():
    return nn.Linear(8, 8).eval()
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    path = tmp_path / "hostile.py"
    path.write_text(HOSTILE)
    return path


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("depends_on_data", "decides by the values"),
        ("dynamic_shape", ""),
        ("counts", "own state"),
        ("nan_weight", "fc.weight"),
        ("infinite_weight", "fc.bias"),
        ("nan_buffer", "count"),
        ("nan_tensor", "table"),
        ("raises", "division"),
        ("leaves", "leaves"),
        ("two_inputs", ""),
        ("nothing", "None"),
        ("complex_numbers", ""),
        ("empty_output", ""),
        ("not_a_module", "int"),
        ("missing", "missing"),
        ("flat", "--input-shape"),
    ],
)
def test_a_network_that_cannot_be_compiled_is_a_typed_error(
    hostile: Path, tmp_path: Path, factory: str, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        build(BuildOptions(f"{hostile}:{factory}", "host", out=tmp_path / "out"))
    assert words in str(caught.value)
    assert caught.value.what
    assert caught.value.fix
    assert [p.name for p in tmp_path.iterdir() if p.name != "__pycache__"] == ["hostile.py"]


def test_all_unsupported_operators_are_listed(hostile: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperators) as caught:
        build(BuildOptions(f"{hostile}:unsupported", "host", out=tmp_path / "out"))
    assert len(caught.value.operators) >= 2


@pytest.mark.parametrize(
    "shape", [(1, 0), (0, 8), (1, 2**31), (2**31, 8), (1, -8), (1, 9), (), (1, 2, 3, 4, 5, 6, 7)]
)
def test_impossible_shapes_are_refused(hostile: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(EdgecsiError):
        build(BuildOptions(f"{hostile}:flat", "host", out=tmp_path / "out", input_shape=shape))
    assert not (tmp_path / "out").exists()


STRANGE = """
import torch
from torch import nn

def network(change):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 16))
    with torch.no_grad():
        for parameter in net.parameters():
            change(parameter)
    return net.eval(), torch.rand(1, 2, 8, 8)

def all_zero():
    return network(lambda p: p.zero_())

def one_weight():
    def only_first(p):
        p.reshape(-1)[1:] = 0
    return network(only_first)

def full_density():
    return network(lambda p: p.copy_(p.sign() + p))

def denormal():
    return network(lambda p: p.mul_(1e-40))

def huge():
    return network(lambda p: p.mul_(1e15))

def odd_names():
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("a*/ int x = 1; /*", nn.Linear(8, 8))
    net.add_module("%s ' %d", nn.Linear(8, 8))
    net.add_module("ünïcode \\N{SNOWMAN}", nn.Linear(8, 8))
    return net.eval(), torch.rand(1, 8)

def single_number():
    torch.manual_seed(0)
    return nn.Linear(1, 1).eval(), torch.rand(1, 1)

def primes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 7, (3, 5), padding=(1, 2)), nn.Flatten(), nn.Linear(7 * 11 * 13, 17))
    return net.eval(), torch.rand(1, 3, 11, 13)
"""


@pytest.mark.parametrize(
    "factory",
    ["all_zero", "one_weight", "full_density", "denormal", "huge", "odd_names", "single_number", "primes"],
)
def test_strange_networks_are_compiled_all_the_same(tmp_path: Path, factory: str) -> None:
    path = tmp_path / "strange.py"
    path.write_text(STRANGE)
    result = build(BuildOptions(f"{path}:{factory}", "host", out=tmp_path / "out"))
    densities = [layer.density for layer in result.manifest.entries["full"].layers if layer.macs]
    if factory == "all_zero":
        assert set(densities) == {0.0}
    if factory == "full_density":
        assert set(densities) == {1.0}
    scope: dict[str, object] = {}
    exec(STRANGE, scope)
    module, x = scope[factory]()
    wanted = pytorch(module, x.numpy())
    found = edgecsi.load(tmp_path / "out").run(x.numpy())
    assert np.abs(found - wanted).max() <= 1e-5 * max(np.abs(wanted).max(), np.finfo(np.float32).tiny)


def test_recursion_without_end_is_an_error_of_three_lines(tmp_path: Path) -> None:
    path = tmp_path / "deep.py"
    path.write_text(
        textwrap.dedent("""
        import torch
        class Deep(torch.nn.Module):
            def forward(self, x):
                return self.forward(x)
        def make():
            return Deep(), torch.rand(1, 8)
        """)
    )
    done = subprocess.run(
        [sys.executable, "-m", "edgecsi", "build", f"{path}:make", "--target", "x86", "-o", tmp_path / "out"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
