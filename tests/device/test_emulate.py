"""``emulate``: QEMU runs the shipped library's own bytes on the target's CPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecsi.bundle import Bundle
from edgecsi.device import Emulated, count_instructions, emulate, open_device, state, toolchain
from edgecsi.errors import DataError, DeviceError, ToolchainError
from tests import _tiny

pytestmark = pytest.mark.needs("qemu-aarch64", "qemu-x86_64")

X = np.random.default_rng(3).normal(size=(20, 8))


@pytest.fixture(params=["aarch64", "x86_64"])
def arch(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(libraries: Callable[..., Path], tmp_path: Path) -> Callable[..., Bundle]:
    def make(arch: str, *flags: str) -> Bundle:
        return _tiny.make_bundle(tmp_path / f"tiny-{arch}", libraries(arch, *flags), _tiny.manifest(arch))

    return make


def test_many_samples_in_one_process(make: Callable[..., Bundle], arch: str) -> None:
    device = open_device("emulate")
    np.testing.assert_allclose(device.run(make(arch), "full", X), _tiny.full(X), rtol=1e-5)


def test_several_inputs_and_outputs(make: Callable[..., Bundle], arch: str) -> None:
    total, product = Emulated().run(make(arch), "pair", (X[:, :3], X[:, 3:6]))
    np.testing.assert_allclose(total, X[:, :3] + X[:, 3:6], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(product, X[:, :3] * X[:, 3:6], rtol=1e-5, atol=1e-6)


def test_every_call_is_timed_but_marked_as_emulated(make: Callable[..., Bundle]) -> None:
    device = Emulated()
    assert device.time(make("aarch64"), "full", X, 50, flush_bytes=4096).shape == (50,)
    assert device.info().emulated
    assert device.info().description.startswith("QEMU ")


def test_instructions_are_counted(make: Callable[..., Bundle], arch: str) -> None:
    bundle = make(arch)
    encoder, full = (count_instructions(bundle, entry) for entry in ("encoder", "full"))
    assert 20 < encoder < 200
    assert encoder + 100 < full < 3000
    assert abs(count_instructions(bundle, "full") - full) <= 5


def test_an_instruction_the_cpu_lacks_is_named(tmp_path: Path) -> None:
    """sdot exists on the Pi 5's cortex-a76, and not on the Pi 4's cortex-a72."""
    about = _tiny.manifest("aarch64")
    source = _tiny.SOURCE.replace(
        "return encode(x, ws) || decode(ws, y);",
        '__asm__ volatile(".arch_extension dotprod\\n sdot v0.4s, v1.16b, v2.16b" ::: "v0");'
        "return encode(x, ws) || decode(ws, y);",
    )
    library = _tiny.compile_library(tmp_path / "lib.so", about, source=source)
    bundle = _tiny.make_bundle(tmp_path / "b", library, about)
    with pytest.raises(DeviceError, match="SIGILL"):
        Emulated().run(bundle, "full", X)


def test_an_endless_kernel_ends_in_bounded_time(make: Callable[..., Bundle]) -> None:
    begin = time.monotonic()
    with pytest.raises(DeviceError, match="no end after 1 s"):
        Emulated(deadline=1).run(make("aarch64", "-DHANG"), "full", X)
    assert time.monotonic() - begin < 60


def test_a_crashing_kernel_is_an_error(make: Callable[..., Bundle], arch: str) -> None:
    with pytest.raises(DeviceError, match="crashed"):
        Emulated().run(make(arch, "-DCRASH"), "full", X)


def test_an_error_code_is_passed_on(make: Callable[..., Bundle], arch: str) -> None:
    with pytest.raises(DeviceError, match="code -2"):
        Emulated().run(make(arch, "-DFAIL"), "full", X)


def test_wrong_shapes_are_refused_before_anything_starts(make: Callable[..., Bundle]) -> None:
    with pytest.raises(DataError):
        Emulated().run(make("aarch64"), "full", X[:, :5])


def test_functions_the_runner_does_not_have_are_named(tmp_path: Path) -> None:
    about = _tiny.manifest("aarch64")
    source = _tiny.SOURCE + "double lgamma(double); API double unusual(double x) { return lgamma(x); }"
    library = _tiny.compile_library(tmp_path / "lib.so", about, source=source)
    bundle = _tiny.make_bundle(tmp_path / "b", library, about)
    with pytest.raises(DeviceError, match="lgamma"):
        Emulated().run(bundle, "full", X)


def test_a_missing_emulator_says_how_to_install_it(
    make: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = make("aarch64")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="apt-get install qemu-user"):
        Emulated().run(bundle, "full", X)


def test_a_program_that_is_not_qemu_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    impostor = tmp_path / "qemu-aarch64"
    impostor.write_text("#!/bin/sh\necho hello\n")
    impostor.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    with pytest.raises(ToolchainError, match="is not QEMU"):
        Emulated().info()


def test_the_runner_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = toolchain.runner("aarch64")

    def no_compiler(*_, **__):
        raise AssertionError

    monkeypatch.setattr(toolchain, "zig_cc", no_compiler)
    assert toolchain.runner("aarch64") == first


def test_an_unwritable_cache_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGECSI_CACHE", str(tmp_path / "file"))
    with pytest.raises(ToolchainError, match="EDGECSI_CACHE"):
        toolchain.runner("aarch64")


def test_the_runner_refuses_what_is_no_library(tmp_path: Path) -> None:
    """Started by hand on rubbish it says so; it neither crashes nor hangs."""
    runner = toolchain.runner("x86_64")
    for content in (b"", b"\x7fELF", b"\0" * 4096):
        (tmp_path / "lib.so").write_bytes(content)
        command = [
            toolchain.qemu("x86_64"),
            runner,
            "lib.so",
            "f",
            "run",
            "1",
            "1",
            "0",
            "in",
            "out",
            "1",
            "1",
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
        assert done.returncode == 1
        assert b"not a library" in done.stderr


def test_a_run_that_is_kept_from_the_cpu_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(1.5); print('done')"]
    monkeypatch.setattr(state, "process_state", lambda pid: ("R", 0.1))
    assert emulate._run(sleeper, 0.5).stdout == "done\n"
    monkeypatch.setattr(state, "process_state", lambda pid: ("R", 0.6))
    with pytest.raises(subprocess.TimeoutExpired):
        emulate._run(sleeper, 0.5)
