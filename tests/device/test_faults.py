"""Faults while bundles run and are timed on devices: each ends in bounded time with an error that says what to do, and
the next run works without anybody touching the device. Counted as those of deployments are (tests/deploy/faults.py)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edgecsi.bundle import Bundle
from edgecsi.cli import main
from edgecsi.device import Remote
from edgecsi.device.rpc_device import Rpc
from edgecsi.device.ssh import FOLDER
from edgecsi.errors import DeviceError, Unreachable
from tests import _tiny
from tests._sshd import Sshd, running, until
from tests.deploy.faults import count
from tests.deploy.simulated import Plan, Simulated

X = np.random.default_rng(3).normal(size=(20, 8))
RUN = ["probe", "look", "push", "keep", "info", "look", "push", "keep"]
"""The messages to a bare device before a bundle runs there."""
NOTHING = Plan()


def _run(bundle: Bundle, home: Path, plan: Plan = NOTHING) -> Simulated:
    connection = Simulated(home, plan)
    answer = Remote("simulated", connection, FOLDER).run(bundle, "full", X)
    np.testing.assert_allclose(answer, _tiny.full(X), rtol=2e-5)
    return connection


def _struck(bundle: Bundle, home: Path, plan: Plan) -> DeviceError:
    """One fault; afterwards the same device works."""
    begin = time.monotonic()
    with pytest.raises(DeviceError) as caught:
        _run(bundle, home, plan)
    assert time.monotonic() - begin < 60
    assert len(str(caught.value).splitlines()) == 3
    for part in _parts(home):
        os.utime(part, (time.time() - 7200,) * 2)  # two hours later
    _run(bundle, home)
    assert not _parts(home), "parts of broken copies stay behind"
    return caught.value


def _parts(home: Path) -> list[Path]:
    return list((home / FOLDER / "files").glob("*.*"))


@pytest.mark.parametrize("message", range(1, len(RUN) + 1), ids=lambda n: f"{n}-{RUN[n - 1]}")
def test_the_connection_drops_at_a_message(bundle: Bundle, tmp_path: Path, message: int) -> None:
    if message == 1:
        assert _run(bundle, tmp_path / "whole").steps == RUN
    for kind in (
        "drop_before",
        "drop_after",
        "hang",
        *(["cut", "flip"] if RUN[message - 1] == "push" else []),
    ):
        error = _struck(bundle, tmp_path / kind, Plan(**{kind: message}))
        assert kind != "flip" or "did not arrive whole" in error.why
        count("connection fails at a message of a run")


@pytest.mark.parametrize(
    ("tool", "says"),
    [("cat", "No space left on device"), ("mv", "Permission denied")],
)
def test_the_devices_disk_refuses(bundle: Bundle, tmp_path: Path, tool: str, says: str) -> None:
    whole = _run(bundle, tmp_path / "whole", Plan(tool=(tool, 10**6, "")))
    uses = int(whole.faulty_use().read_text())
    error = _struck(bundle, tmp_path / "device", Plan(tool=(tool, uses, says)))
    assert says in error.why or "cannot be written" in error.why
    count("the device's disk refuses while a run is prepared")


@pytest.mark.needs("ssh", "sshd")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSEGV])
def test_the_runner_there_is_killed(
    sshd: Sshd, bundle: Bundle, libraries: Callable[..., Path], tmp_path: Path, sent: signal.Signals
) -> None:
    """By the board's own guard against running out of memory, say: its process, or the one that watches it."""
    hanging = _tiny.make_bundle(tmp_path / "hang", libraries(_tiny.HOST, "-DHANG"), _tiny.manifest())
    with closing(Remote.over_ssh(sshd.spec)) as device:
        device.info()

        def strike() -> None:
            until(lambda: running(sshd.home, " run "))
            os.kill(_pids(sshd.home, " run ")[0], sent)

        striker = threading.Thread(target=strike)
        striker.start()
        with pytest.raises(DeviceError):
            device.run(hanging, "full", X)
        striker.join()
        until(lambda: not running(sshd.home))
        np.testing.assert_allclose(device.run(bundle, "full", X), _tiny.full(X), rtol=2e-5)
    count("the runner is killed on the device")


def _pids(folder: Path, words: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace") if path.exists() else ""
        if text.startswith(str(folder)) and words in text:
            found.append(int(path.parent.name))
    return sorted(found)


@pytest.mark.needs("ssh", "sshd")
def test_the_port_belongs_to_another_program(
    sshd: Sshd, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """sshd's, which greets whoever comes."""
    begin = time.monotonic()
    for spec in (f"rpc://127.0.0.1:{sshd.port}", f"tracker://127.0.0.1:{sshd.port}/pi"):
        with pytest.raises(Unreachable, match=r"cannot be reached|does not answer"):
            Rpc(spec, connect_seconds=5).run(bundle, "full", X)
        count("port in use by another program")
    assert main(["device", "setup", sshd.spec, "--rpc"]) == 0
    capsys.readouterr()
    assert main(["device", "share", sshd.spec, f"tracker://127.0.0.1:{sshd.port}/pi"]) == 5
    assert "is no tracker" in capsys.readouterr().err
    count("port in use by another program")
    assert time.monotonic() - begin < 120
