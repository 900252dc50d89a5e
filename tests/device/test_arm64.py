"""The very files that go to a Raspberry Pi, on an aarch64 Debian with its own loader and C library (under QEMU)."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edgecsi.bench import bench
from edgecsi.bundle import Bundle
from edgecsi.cli import main
from edgecsi.device import open_device
from edgecsi.device.protocol import MeasuringProtocol
from edgecsi.errors import DeviceError
from tests import _tiny
from tests._arm64 import arm64, lend_libraries
from tests._every_case import EVERY_CASE
from tests._sshd import Sshd

pytestmark = pytest.mark.needs("ssh", "sshd", "qemu-aarch64-static")

X = np.random.default_rng(3).normal(size=(20, 8)).astype(np.float32)
PROTOCOL = MeasuringProtocol(
    quick=True, samples=50, seconds=0.01, limit=5.0, turn=0.002, turn_calls=5, settle=2, cold_samples=3
)
SHORT = MeasuringProtocol(
    quick=True, samples=50, seconds=0.01, limit=5.0, turn=0.001, cold_samples=3, cold_starts=1
)


@pytest.fixture(scope="module")
def pi4():
    with arm64("cortex-a72") as server:
        yield server


@pytest.fixture
def bundle(libraries: Callable[..., Path], tmp_path: Path):
    return _tiny.make_bundle(tmp_path / "tiny", libraries("aarch64"), _tiny.manifest("aarch64"))


def test_a_pi_is_recognised_by_its_cpu(pi4: Sshd, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "probe", pi4.spec, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["arch"], found["bits"], found["cpu"], found["target"]) == (
        "aarch64",
        64,
        "cortex-a72",
        "rpi4",
    )
    assert found["emulated"]
    assert "asimd" in found["features"]
    assert "asimddp" not in found["features"]
    assert "Debian" in found["system"]


def test_a_bundle_runs_there(pi4: Sshd, bundle: Bundle) -> None:
    with closing(open_device(pi4.spec)) as device:
        np.testing.assert_allclose(device.run(bundle, "full", X), _tiny.full(X), rtol=1e-5)
        series = device.measure(bundle, "full", X[:1], PROTOCOL)
        assert series.samples.size >= 50
        assert device.profile(bundle, "full", X[:1], 5, 1.0).shape == (5, 2)
        assert device.first_calls(bundle, "full", X[:1], 1)[0].load_ms > 0


def test_its_times_are_marked_as_emulated(pi4: Sshd, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "QUICK", SHORT)
    result = bench.run_bench(bundle.path, device=pi4.spec)
    assert result.protocol.quick  # a longer one would prove no more
    assert result.validity.state == "invalid"
    assert result.validity.reasons[0].startswith("emulated")
    assert result.machine.cpu == "cortex-a72 (QEMU)"
    assert result.engines[0].warm.samples >= 50


def test_a_pi_5s_bundle_is_refused_on_a_pi_4_by_name(
    pi4: Sshd, libraries: Callable[..., Path], tmp_path: Path
) -> None:
    about = _tiny.manifest("aarch64", features=("asimd", "asimddp"))
    newer = _tiny.make_bundle(tmp_path / "newer", libraries("aarch64"), about)
    with closing(open_device(pi4.spec)) as device, pytest.raises(DeviceError, match="asimddp"):
        device.run(newer, "full", X)
    with arm64("cortex-a76") as pi5, closing(open_device(pi5.spec)) as device:
        np.testing.assert_allclose(device.run(newer, "full", X), _tiny.full(X), rtol=1e-5)
        assert device.info().description == "cortex-a76 (QEMU)"


@pytest.mark.parametrize(
    ("target", "cpu"), [*([("rpi4", "cortex-a72")] if EVERY_CASE else []), ("rpi5", "cortex-a76")]
)
def test_a_network_through_the_aarch64_agent(
    target: str, cpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very files that ship: compiled for the board, benched through TVM's RPC in its CPU."""
    lend_libraries()
    monkeypatch.setattr(bench, "QUICK", SHORT)
    out = tmp_path / "bench.json"
    assert main(["build", "csinet-cr4", "--target", target, "-o", str(tmp_path / "csinet-pi")]) == 0
    with arm64(cpu) as pi:
        assert main(["device", "setup", pi.spec, "--rpc"]) == 0
        arguments = ["--device", f"rpc+{pi.spec}", "--quick", "--json", str(out)]
        assert main(["bench", str(tmp_path / "csinet-pi"), *arguments]) == 0
    found = json.loads(out.read_text())
    assert found["bundle"]["target"] == target
    assert found["machine"]["cpu"] == f"{cpu} (QEMU)"
    assert (found["validity"]["state"], found["validity"]["reasons"][0][:8]) == ("invalid", "emulated")
    assert found["engines"][0]["answer"]["max_rel_diff"] < 1e-4


def test_rpc_through_the_aarch64_agent(pi4: Sshd, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    lend_libraries()
    assert main(["device", "setup", pi4.spec, "--rpc", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] < 8_000_000
    with closing(open_device(f"rpc+{pi4.spec}")) as device:
        np.testing.assert_allclose(device.run(bundle, "full", X), _tiny.full(X), rtol=1e-5)
        assert device.info().emulated
    assert main(["device", "clean", pi4.spec]) == 0
    assert not (pi4.home / ".edgecsi").exists()
