"""TVM's RPC: our agent over SSH, TVM's own server, TVM's tracker; and what happens when any of them dies."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgecsi
from edgecsi.bench import bench
from edgecsi.bundle import Bundle
from edgecsi.cli import main
from edgecsi.device import Local, Remote, install_rpc, open_device
from edgecsi.device.names import endpoint
from edgecsi.device.protocol import MeasuringProtocol
from edgecsi.device.rpc_device import Rpc
from edgecsi.device.share import share
from edgecsi.errors import DeviceError, ToolchainError, Unreachable
from tests import _tiny
from tests._sshd import Sshd, serving
from tests.deploy.faults import count

X = np.random.default_rng(3).normal(size=(5, 8)).astype(np.float32)
PROTOCOL = MeasuringProtocol(
    quick=True, samples=200, seconds=0.02, limit=2.0, turn=0.002, turn_calls=5, settle=2, cold_samples=10
)


def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def program(module, *arguments):
    """One of TVM's programs, for as long as the block lasts; with everything it starts."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(number):
    for _ in range(1800):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", number), 1):
            return
        time.sleep(0.1)
    raise AssertionError("the server did not come")


@pytest.fixture(scope="module")
def board() -> Iterator[Sshd]:
    """A device that is set up for RPC."""
    with serving() as sshd:
        assert main(["device", "setup", sshd.spec, "--rpc"]) == 0
        yield sshd


@pytest.fixture
def agent(board: Sshd) -> Iterator[Rpc]:
    with contextlib.closing(open_device(f"rpc+{board.spec}")) as device:
        yield device


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of TVM's own server."""
    number = port()
    with program(
        "tvm.exec.rpc_server", "--host", "127.0.0.1", "--port", str(number), "--port-end", str(number + 1)
    ):
        wait_for(number)
        yield number


@pytest.mark.needs("ssh", "sshd")
def test_the_agent_runs_and_times_over_ssh(agent: Rpc, bundle: Bundle, board: Sshd) -> None:
    np.testing.assert_array_equal(agent.run(bundle, "full", X), Local().run(bundle, "full", X))
    total, product = agent.run(bundle, "pair", (X[:, :3], X[:, 3:6]))
    np.testing.assert_allclose(total, X[:, :3] + X[:, 3:6], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(product, X[:, :3] * X[:, 3:6], rtol=1e-5, atol=1e-6)
    series = agent.measure(bundle, "full", X[:1], PROTOCOL)
    assert series.complete
    assert series.samples.size >= 200
    assert series.cold.size == 10
    (folder,) = (board.home / ".edgecsi" / "rpc").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["agent", "libtvm_ffi.so", "libtvm_runtime.so"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8_000_000


@pytest.mark.needs("ssh", "sshd")
def test_integers_are_given_as_such(agent: Rpc, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n\nclass Net(torch.nn.Module):\n    def forward(self, scale, ids, x):\n"
        "        return x * scale + ids, ids * 3\n\n"
        "def make():\n    return Net(), (torch.tensor(0.5), torch.arange(4)[None], torch.ones(1, 4))\n"
    )
    made = edgecsi.build(f"{tmp_path}/net.py:make", "host", out=tmp_path / "net").bundle
    x = [np.float32([0.5, 2]), np.arange(8).reshape(2, 4), X[:2, :4]]
    for y, here in zip(agent.run(made, "full", x), Local().run(made, "full", x), strict=True):
        assert y.dtype == here.dtype
        np.testing.assert_array_equal(y, here)


@pytest.mark.needs("ssh", "sshd")
def test_bench_compares_ssh_with_rpc_on_one_device(
    board: Sshd, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = MeasuringProtocol(
        quick=True, samples=500, seconds=0.2, limit=5.0, turn=0.005, cold_samples=5, cold_starts=1
    )
    monkeypatch.setattr(bench, "QUICK", short)
    result = bench.run_bench(bundle.path, device=board.spec, quick=True, cross_check=True)
    names = [engine.name for engine in result.engines]
    assert names == ["edgecsi", "edgecsi over RPC", "nothing", "nothing over RPC"]
    assert [one.to for one in result.comparisons] == ["edgecsi over RPC"]
    for engine in result.engines[2:]:
        assert engine.warm.median < 1.0  # µs
    assert 0.2 < result.comparisons[0].warm.ratio < 5  # a kernel of 50 ns shows the overheads of both


@pytest.mark.needs("ssh", "sshd")
def test_a_device_that_is_not_set_up_says_how(board: Sshd, bundle: Bundle, tmp_path: Path) -> None:
    device = open_device(f"rpc+{board.spec}{tmp_path}/elsewhere")
    with contextlib.closing(device), pytest.raises(DeviceError, match="edgecsi device setup --rpc"):
        device.run(bundle, "full", X)
    count("a device that is not set up")


@pytest.mark.needs("ssh", "sshd")
def test_kernels_that_crash_or_never_end_cost_one_session(
    board: Sshd, libraries: Callable[..., Path], tmp_path: Path
) -> None:
    with contextlib.closing(Remote.over_ssh(board.spec)) as remote:
        device, hasty = Rpc(f"rpc+{board.spec}", remote), Rpc(f"rpc+{board.spec}", remote, deadline=2.0)
        for flag, one, message in (
            ("-DCRASH", device, "broke off at run"),
            ("-DHANG", hasty, "run did not end"),
        ):
            library = libraries(_tiny.HOST, flag)
            broken = _tiny.make_bundle(tmp_path / flag, library, _tiny.manifest())
            begin = time.monotonic()
            with pytest.raises(DeviceError, match=message):
                one.run(broken, "full", X)
            assert time.monotonic() - begin < 60
            count("a kernel that aborts or never ends, over RPC")
        np.testing.assert_allclose(device.run(broken, "encoder", X), _tiny.encoder(X), rtol=1e-5)
    (folder,) = (board.home / ".edgecsi" / "rpc").iterdir()
    for _ in range(100):
        if not list(folder.glob("work.*")):
            return
        time.sleep(0.1)
    raise AssertionError("an agent left its files")


@pytest.mark.needs("ssh", "sshd")
def test_a_tunnel_that_drops_keeps_what_was_measured(board: Sshd, bundle: Bundle) -> None:
    with contextlib.closing(open_device(f"rpc+{board.spec}")) as device:
        device.info()
        others = set(_turns())
        dropper = threading.Thread(target=_drop_when_measuring, args=(board, others))
        dropper.start()
        series = device.measure(bundle, "full", X[:1], replace(PROTOCOL, seconds=600, limit=600))
        dropper.join()
    assert series.lost is not None
    assert not series.complete
    assert series.samples.size > 10
    count("connection lost in the middle of a measurement")


def _turns() -> Iterator[Path]:
    """Where clients write what they measured."""
    return Path(tempfile.gettempdir()).glob("edgecsi-*/turns")


def _drop_when_measuring(board: Sshd, others: set[Path]) -> None:
    """Cut the connection once the client wrote some turns."""
    while not any(path.stat().st_size > 5000 for path in _turns() if path not in others):
        time.sleep(0.1)
    board.drop()


def test_tvms_own_server(server: int, bundle: Bundle) -> None:
    device = Rpc.opened(f"rpc://127.0.0.1:{server}")
    np.testing.assert_array_equal(device.run(bundle, "full", X), Local().run(bundle, "full", X))
    assert device.time(bundle, "full", X[:1], 20).shape == (20,)
    ns = device.time_in_turns(bundle, ["full", "full"], X[:1], 2, 5, flush_bytes=1000)
    assert ns.shape == (2, 2, 5)
    assert (ns > 0).all()


@pytest.mark.parametrize("after", [0, 8, 600, 9000, -1500])
def test_a_server_that_dies_at_any_step(server: int, bundle: Bundle, after: Any) -> None:
    """The connection ends after so many bytes of ours: while connecting, uploading, loading, running."""
    size = bundle.library.stat().st_size
    with cutting(server, after if after >= 0 else size - after) as cut:
        begin = time.monotonic()
        with pytest.raises(DeviceError) as caught:
            Rpc(f"rpc://127.0.0.1:{cut}", connect_seconds=5).run(bundle, "full", np.repeat(X, 100, axis=0))
    assert time.monotonic() - begin < 60
    assert len(str(caught.value).splitlines()) == 3
    count("an RPC server dies: connect, upload, load, run")


def test_what_is_no_server_is_refused_in_time(bundle: Bundle) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        number = deaf.getsockname()[1]
        with pytest.raises(Unreachable, match="cannot be reached"):
            Rpc(f"rpc://127.0.0.1:{number}").run(bundle, "full", X)
        deaf.listen()
        begin = time.monotonic()
        with pytest.raises(Unreachable, match="does not answer"):
            Rpc(f"rpc://127.0.0.1:{number}", connect_seconds=2).run(bundle, "full", X)
        assert time.monotonic() - begin < 60
    count("no RPC server there, or one that never answers")


@pytest.mark.needs("ssh", "sshd")
def test_two_agents_behind_tvms_tracker_serve_two_benches_at_once(board: Sshd, bundle: Bundle) -> None:
    """The boards have no port: a bridge here registers each, and leads to the agent there."""
    number = port()
    with program(
        "tvm.exec.rpc_tracker", "--host", "127.0.0.1", "--port", str(number), "--port-end", str(number + 1)
    ):
        wait_for(number)
        spec = f"tracker://127.0.0.1:{number}/tiny"
        said: list[str] = []

        def serve(_):
            with contextlib.closing(Remote.over_ssh(board.spec)) as remote:
                share(remote, endpoint(spec), sessions=1, say=said.append)

        protocol = replace(PROTOCOL, seconds=1.0)
        with ThreadPoolExecutor(4) as pool:
            bridges = [pool.submit(serve, number) for number in range(2)]
            benches = [
                pool.submit(Rpc.opened(spec).measure, bundle, "full", X[:1], protocol) for _ in range(2)
            ]
            assert all(bench.result().complete for bench in benches)
            for bridge in bridges:
                bridge.result()
    assert len([line for line in said if "waits for tiny" in line]) == 2


def test_a_tracker_that_is_not_there(board: Sshd, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "share", board.spec, f"tracker://127.0.0.1:{port()}/tiny"]) == 5
    assert "there is no tracker" in capsys.readouterr().err
    assert main(["device", "share", board.spec, "rpc://127.0.0.1:1"]) == 2


@contextlib.contextmanager
def cutting(server, count):
    """A port that leads to the server, until the client has sent so many bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            behind = socket.create_connection(("127.0.0.1", server))
            back = threading.Thread(target=pump, args=(behind, client, 1 << 60))
            back.start()
            pump(client, behind, count)
            for end in (client, behind):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            back.join()
            client.close()
            behind.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
        thread.join(20)


def pump(source, sink, left):
    with contextlib.suppress(OSError):
        while left > 0 and (piece := source.recv(min(left, 4096))):
            sink.sendall(piece)
            left -= len(piece)


def test_a_runtime_with_other_contents_is_not_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever serves the wheel cannot change what runs on the board."""
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[_tiny.HOST]
    wheel = tmp_path / "fetched.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for member in install_rpc.TVM.values():
            archive.writestr(member, b"not TVM")
    monkeypatch.setenv("EDGECSI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(install_rpc, "_fetch", lambda *_: wheel)
    with pytest.raises(ToolchainError, match="sha256"):
        install_rpc.runtime_libraries(other)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    count("TVM's runtime was changed on its way")
