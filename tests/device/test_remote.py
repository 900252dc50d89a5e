"""``ssh://``: bundles on another machine, which is a real sshd on this one."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecsi.bench import bench
from edgecsi.bench.result import read_result, write_result
from edgecsi.bundle import Bundle
from edgecsi.cli import main
from edgecsi.device import Local, Remote, open_device
from edgecsi.device.protocol import MeasuringProtocol
from edgecsi.errors import ConnectionLost, DataError, DeviceError
from tests import _tiny
from tests._sshd import Sshd, running, serving, until
from tests.deploy.faults import count

pytestmark = pytest.mark.needs("ssh", "sshd")

X = np.random.default_rng(3).normal(size=(20, 8))
PROTOCOL = MeasuringProtocol(
    quick=True, samples=500, seconds=0.05, limit=2.0, turn=0.002, turn_calls=5, settle=2, cold_samples=10
)


@pytest.fixture
def remote(sshd: Sshd) -> Iterator[Remote]:
    device = open_device(sshd.spec)
    yield device
    device.close()


@pytest.fixture
def make(libraries: Callable[..., Path], tmp_path: Path) -> Callable[..., Bundle]:
    def make(*flags: str) -> Bundle:
        return _tiny.make_bundle(tmp_path / "tiny", libraries(_tiny.HOST, *flags), _tiny.manifest())

    return make


def test_many_samples_stream_through(remote: Remote, bundle: Bundle) -> None:
    many = np.random.default_rng(1).normal(size=(100_000, 8))
    np.testing.assert_allclose(remote.run(bundle, "full", many), _tiny.full(many), rtol=2e-5)


def test_the_answers_are_those_of_this_machine(remote: Remote, bundle: Bundle) -> None:
    np.testing.assert_array_equal(remote.run(bundle, "full", X), Local().run(bundle, "full", X))


def test_several_inputs_and_outputs(remote: Remote, bundle: Bundle) -> None:
    total, product = remote.run(bundle, "pair", (X[:, :3], X[:, 3:6]))
    np.testing.assert_allclose(total, X[:, :3] + X[:, 3:6], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(product, X[:, :3] * X[:, 3:6], rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused_before_anything_travels(remote: Remote, bundle: Bundle) -> None:
    with pytest.raises(DataError):
        remote.run(bundle, "full", X[:, :5])


def test_it_says_what_it_is(remote: Remote) -> None:
    info = remote.info()
    assert (info.spec, info.arch, info.emulated) == ("ssh://board", _tiny.HOST, False)
    assert info.features == Local().info().features
    assert remote.board.glibc


def test_times_are_taken_there(remote: Remote, bundle: Bundle) -> None:
    assert remote.time(bundle, "full", X, 50, flush_bytes=4096).shape == (50,)
    series = remote.measure(bundle, "full", X[:1], PROTOCOL)
    assert series.complete
    assert series.samples.size >= 500
    assert series.cold.size == 10
    assert series.threads > 0
    assert series.nothing is not None
    assert np.median(series.nothing.samples) < 1000


def test_layers_and_first_calls(remote: Remote, bundle: Bundle) -> None:
    assert remote.profile(bundle, "full", X[:1], 7, 1.0).shape == (7, 2)
    for start in remote.first_calls(bundle, "full", X[:1], 3):
        assert 0 < start.load_ms < 10_000
        assert 0 < start.first_call_ms < 10_000
        assert start.process_peak_bytes > 100_000


def test_a_cpu_can_be_named(sshd: Sshd, bundle: Bundle) -> None:
    with closing(Remote.over_ssh(sshd.spec, cpu=0)) as device:
        np.testing.assert_allclose(device.run(bundle, "full", X), _tiny.full(X), rtol=2e-5)
    with closing(Remote.over_ssh(sshd.spec, cpu=900)) as device, pytest.raises(DeviceError, match="CPU 900"):
        device.run(bundle, "full", X)


def test_nothing_is_copied_twice(remote: Remote, bundle: Bundle, sshd: Sshd) -> None:
    remote.run(bundle, "full", X)
    files = sorted((sshd.home / ".edgecsi" / "files").iterdir())
    assert len(files) == 2  # the runner and the library
    stamps = [file.stat().st_mtime_ns for file in files]
    again = open_device(sshd.spec)
    again.run(bundle, "full", X)
    again.close()
    assert [file.stat().st_mtime_ns for file in files] == stamps


def test_a_changed_file_is_found_and_replaced(remote: Remote, bundle: Bundle, sshd: Sshd) -> None:
    remote.run(bundle, "full", X)
    for file in (sshd.home / ".edgecsi" / "files").iterdir():
        file.write_bytes(b"rubbish")
    again = open_device(sshd.spec)
    np.testing.assert_allclose(again.run(bundle, "full", X), _tiny.full(X), rtol=2e-5)
    again.close()
    count("a file changed on the device")


@pytest.mark.parametrize(
    ("flag", "message"), [("-DCRASH", "crashed"), ("-DFAIL", "code .* lacks a required feature")]
)
def test_a_failing_kernel_is_an_error_and_the_next_run_works(
    remote: Remote, make: Callable[..., Bundle], bundle: Bundle, flag: str, message: str
) -> None:
    broken = make(flag)
    with pytest.raises(DeviceError, match=message):
        remote.run(broken, "full", X)
    with pytest.raises(DeviceError, match=message):
        remote.measure(broken, "full", X[:1], PROTOCOL)
    with pytest.raises(DeviceError, match=message):
        remote.first_calls(broken, "full", X[:1], 1)
    np.testing.assert_allclose(remote.run(broken, "encoder", X), _tiny.encoder(X), rtol=2e-5)
    count("a kernel that aborts or fails, over SSH")


def test_an_endless_kernel_ends_in_bounded_time(sshd: Sshd, make: Callable[..., Bundle]) -> None:
    device = open_device(sshd.spec)
    device._deadline = 1.0
    begin = time.monotonic()
    with pytest.raises(DeviceError, match="no end after 1 s"):
        device.run(make("-DHANG"), "full", X)
    assert time.monotonic() - begin < 20
    assert running(sshd.home) == []
    np.testing.assert_allclose(device.run(make("-DHANG"), "encoder", X), _tiny.encoder(X), rtol=2e-5)
    device.close()
    count("a kernel without end, over SSH")


def test_a_bundle_for_another_cpu_is_refused_by_name(
    remote: Remote, libraries: Callable[..., Path], tmp_path: Path
) -> None:
    lacking = _tiny.make_bundle(tmp_path / "l", libraries(), _tiny.manifest(features=("amx_of_the_future",)))
    with pytest.raises(DeviceError, match="amx_of_the_future"):
        remote.run(lacking, "full", X)
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[_tiny.HOST]
    foreign = _tiny.make_bundle(tmp_path / "f", libraries(other), _tiny.manifest(other))
    with pytest.raises(DeviceError, match=f"built for {other}"):
        remote.run(foreign, "full", X)
    count("a bundle for another CPU")


def test_interrupting_ends_the_program_there(sshd: Sshd, make: Callable[..., Bundle]) -> None:
    """Ctrl-C at the user's: the session is cut off, and nothing of ours runs on."""
    device = open_device(sshd.spec)
    device.info()
    killer = threading.Timer(1.5, device.close)
    killer.start()
    with pytest.raises(DeviceError):
        device.run(make("-DHANG"), "full", X)
    killer.join()
    until(lambda: not running(sshd.home))
    count("our process ends while something runs there")


@pytest.mark.needs("busybox")
def test_a_device_with_nothing_but_busybox(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From probing to cleaning, on a shell and tools that are BusyBox's."""
    subprocess.run(["busybox", "--install", "-s", str(tmp_path)], check=True)
    command = f"cd {{home}} && HOME={{home}} PATH={tmp_path} && export HOME PATH && exec {tmp_path}/sh -c"
    with serving(command=f'{command} "$SSH_ORIGINAL_COMMAND"') as small:
        assert main(["device", "probe", small.spec]) == 0
        assert "glibc 2." in capsys.readouterr().out
        with closing(open_device(small.spec)) as device:
            np.testing.assert_allclose(device.run(bundle, "full", X), _tiny.full(X), rtol=2e-5)
        assert main(["deploy", str(bundle.path), small.spec]) == 0
        assert main(["device", "clean", small.spec, "--bundles"]) == 0
        assert list(small.home.iterdir()) == []


def test_ctrl_c_ends_the_program_there_too(sshd: Sshd, make: Callable[..., Bundle], tmp_path: Path) -> None:
    """The whole command line: exit code 130, nothing of ours runs on the device afterwards."""
    np.save(tmp_path / "x.npy", X)
    command = [sys.executable, "-m", "edgecsi", "run", str(make("-DHANG").path), "--device", sshd.spec]
    command += ["-i", str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: running(sshd.home, " run "))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said.strip()) == (130, "interrupted")
    assert not (tmp_path / "y.npy").exists()
    until(lambda: not running(sshd.home))
    count("our process ends while something runs there")


@pytest.mark.parametrize("way", ["", "rpc+"])
def test_the_program_there_ends_when_ours_is_killed(
    sshd: Sshd, make: Callable[..., Bundle], tmp_path: Path, way: str
) -> None:
    """kill -9 here, while a kernel that never ends runs there: it is noticed at once, not at a deadline."""
    if way:
        assert main(["device", "setup", sshd.spec, "--rpc"]) == 0
    np.save(tmp_path / "x.npy", X)
    command = [sys.executable, "-m", "edgecsi", "run", str(make("-DHANG").path), "--device", way + sshd.spec]
    command += ["-i", str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]
    work = "/agent " if way else " run "
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        until(lambda: running(sshd.home, work))
        time.sleep(2.0 if way else 0.2)  # until TVM has loaded it
        process.kill()
        process.wait()
        begin = time.monotonic()
        until(lambda: not running(sshd.home))
    assert time.monotonic() - begin < 10
    count("our process ends while something runs there")


def test_an_idle_device_runs_nothing_of_ours(sshd: Sshd, remote: Remote, bundle: Bundle) -> None:
    remote.run(bundle, "full", X)
    remote.close()
    until(lambda: not running(sshd.home))
    until(lambda: sshd.drop() == 0)


def test_bench_writes_the_same_result_as_here(
    sshd: Sshd, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = MeasuringProtocol(
        quick=True, samples=50, seconds=0.01, limit=2.0, turn=0.001, cold_samples=5, cold_starts=1
    )
    monkeypatch.setattr(bench, "QUICK", short)
    result = bench.run_bench(bundle.path, device=sshd.spec, quick=True)
    assert result.device == "ssh://board"
    assert result.engines[0].warm.samples >= 50
    assert result.cold_starts[0].load_ms > 0
    assert [layer.name for layer in result.layers] == ["layer0", "layer1"]
    assert result.validity.state in ("valid", "suspect")
    write_result(result, tmp_path / "r.json")
    assert read_result(tmp_path / "r.json") == result


def test_a_dropped_connection_keeps_what_was_measured(
    sshd: Sshd, make: Callable[..., Bundle], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Calls with a cold cache come first, and take long with this library.
    monkeypatch.setattr(bench, "FULL", replace(bench.FULL, cold_samples=5))
    device = open_device(sshd.spec)
    dropped = []

    def drop(*_):
        if not dropped:
            dropped.append(sshd.drop())

    with pytest.raises(bench.BrokenOff) as caught:
        bench.run_bench(make("-DSLOW").path, device=device, seconds=50, progress=drop)
    assert "lost" in str(caught.value)
    result = caught.value.result
    assert result.validity.state == "invalid"
    assert "lost" in result.validity.reasons[0]
    assert result.engines[0].warm.samples >= 5
    assert not result.engines[0].complete
    np.testing.assert_allclose(device.run(bundle, "full", X), _tiny.full(X), rtol=2e-5)
    device.close()
    count("connection lost in the middle of a measurement")


def test_bench_writes_what_it_has_when_the_connection_drops(
    sshd: Sshd,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 5, and the result of the calls until then."""
    measured = bench.run_bench(bundle.path, device="emulate", quick=True)

    def broken(*_, **__):
        raise bench.BrokenOff(
            ConnectionLost("the connection to board was lost", "it broke", "try again"), measured
        )

    monkeypatch.setattr(bench, "run_bench", broken)
    command = ["bench", str(bundle.path), "--device", sshd.spec, "--json", str(tmp_path / "r.json")]
    assert main(command) == 5
    assert "the connection to board was lost" in capsys.readouterr().err
    assert read_result(tmp_path / "r.json").validity == measured.validity


def test_throttling_on_the_device_makes_the_times_invalid(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vcgencmd there says that it throttled between the two looks."""
    short = MeasuringProtocol(
        quick=True, samples=50, seconds=0.01, limit=2.0, turn=0.001, cold_samples=5, cold_starts=1
    )
    monkeypatch.setattr(bench, "QUICK", short)
    tools = tmp_path / "tools"
    tools.mkdir()
    # Each look asks once: it is fine until the third.
    (tools / "vcgencmd").write_text(
        f"#!/bin/sh\necho x >>{tools}/asked\n"
        f'[ "$(wc -l <{tools}/asked)" -ge 4 ] && echo throttled=0x40004 || echo throttled=0x0\n'
    )
    (tools / "vcgencmd").chmod(0o755)
    command = f'cd {{home}} && HOME={{home}} PATH={tools}:$PATH && export HOME PATH && exec sh -c "$SSH_ORIGINAL_COMMAND"'
    with serving(command=command) as throttling:
        result = bench.run_bench(bundle.path, device=throttling.spec, quick=True)
    assert result.validity.state == "invalid"
    assert any("throttled while measuring" in reason for reason in result.validity.reasons)
    count("throttling in the middle of a measurement")


def test_inspect_measures_layers_there(
    sshd: Sshd, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(bundle.path), "--measure", "--device", sshd.spec]) == 0
    assert "measured on ssh://board" in capsys.readouterr().out
