"""What ``edgecsi bench`` finds out beside latencies, on a device behind SSH (a real sshd on this machine)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edgecsi.bench.throughput import used_sizes
from edgecsi.bundle import Bundle
from edgecsi.cli import main
from edgecsi.device import Remote
from edgecsi.device.protocol import MeasuringProtocol
from edgecsi.errors import DeviceError
from tests import _tiny
from tests._sshd import Sshd, serving

QUICK = ["--quick", "--seconds", "0.05"]


@pytest.fixture(scope="module")
def board() -> Iterator[Sshd]:
    with serving() as server:
        yield server


@pytest.mark.needs("ssh", "sshd")
def test_batches_on_several_threads(board: Sshd, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    arguments = ["--device", board.spec, *QUICK, "--batch", "5", "--threads", "2", "--json", str(out)]
    assert main(["bench", str(bundle.path), *arguments]) == 0
    found = json.loads(out.read_text())
    (rate,) = found["throughput"]["rates"]
    assert (rate["batch"], rate["threads"]) == (5, 2)
    assert len(rate["rounds"]) >= 20
    assert rate["median"] > 100  # a call takes 50 ns, but others may have the cores
    assert found["device"] == board.spec
    assert found["validity"]["state"] in ("valid", "suspect")


@pytest.mark.needs("ssh", "sshd")
def test_batches_go_to_the_largest_entries_and_a_failing_one_is_an_error(
    board: Sshd, bundle: Bundle, libraries, tmp_path: Path
) -> None:
    protocol = MeasuringProtocol(True, 200, 0.02, 1.0, 0.002, 5, 2, 5)
    x = np.ones((3, 8), np.float32)
    with closing(Remote.over_ssh(board.spec)) as device:
        found = device.rates(
            bundle, ["full", "full"], x, 3, protocol
        )  # two entries of one size: the first takes all
        assert found.seconds.size >= 20
        assert 0 < found.cores < 4
        for flag, message in (("-DCRASH", "crashed"), ("-DFAIL", "lacks a required feature")):
            broken = _tiny.make_bundle(tmp_path / flag, libraries(_tiny.HOST, flag), _tiny.manifest())
            with pytest.raises(DeviceError, match=message):
                device.rates(broken, ["full"], x, 2, protocol)
            with pytest.raises(DeviceError, match=message):
                device.paced(broken, "full", x, 1000, 5)
    assert used_sizes([64, 8, 1], 73) == [64, 8, 1]
    assert used_sizes([64, 8, 1], 16) == [8]


@pytest.mark.needs("ssh", "sshd")
def test_the_rate_of_reports_energy_and_the_measurement_itself(
    board: Sshd, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (board.home / "energy_uj").write_text("5000")
    out, meter = tmp_path / "r.json", ["--meter", str(board.home / "energy_uj")]
    options = [*QUICK, "--rate", "500/s", "--sustained", "1s", *meter, "--self-check", "--cpu", "0"]
    assert main(["bench", str(bundle.path), "--device", board.spec, *options, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["periodic"]["call"]["samples"] >= 20
    assert found["periodic"]["response"]["median"] >= found["periodic"]["call"]["median"]
    assert found["sustained"]["rate"] == 500
    assert found["sustained"]["energy_uj"] == 0  # the counter stands still
    assert 0.2 < found["self_check"]["ratio"]["ratio"] < 5
    assert "against itself" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("device", "options", "why"),
    [
        ("rpc+ssh://board", ["--rate", "100/s"], "TVM's RPC calls a function in a row only"),
        ("rpc://127.0.0.1:1", ["--self-check"], "starts no program"),
        ("rpc://127.0.0.1:1", ["--sustained", "1s", "--meter", "/sys/energy_uj"], "no way to its files"),
        ("rpc+ssh://board", ["--batch", "3"], "the bundle has none for 3: it has [1]"),
        ("tracker://127.0.0.1:1/pi", ["--batch", "1", "--threads", "2"], "on one thread"),
        ("emulate", ["--batch", "1"], "there are no times"),
        ("emulate", ["--rate", "100/s"], "emulated times mean nothing"),
        ("ssh://board", ["--batch", "4", "--rate", "100/s"], "batches are measured"),
        ("ssh://board", ["--batch", "4", "--entry", "pair"], "2 inputs"),
        ("ssh://board", ["--batch", "4", "--threads", "2", "--cpu", "0"], "--cpu keeps to one CPU"),
        ("rpc+ssh://board", ["--cpu", "0"], "over SSH"),
        ("ssh://board", ["--sustained", "1s", "--meter", "/sys/class/thermal/temp"], "energy is read from"),
    ],
)
def test_what_a_device_cannot_give_is_refused_before_anything_is_measured(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], device: str, options: list[str], why: str
) -> None:
    """No device is there at all, and nothing waits for one."""
    assert main(["bench", str(bundle.path), "--device", device, *options]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert "Traceback" not in said
