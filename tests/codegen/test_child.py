"""What ends the compiler ends a child process, and becomes an error that names the layer."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from edgecsi import target as targets
from edgecsi.cli import end_on_signals
from edgecsi.codegen import library
from edgecsi.codegen.child import ChildFailed, in_child
from edgecsi.errors import ToolchainError
from tests._builds import lowered


def test_bytes_and_errors_come_out_of_the_child() -> None:
    mine = os.getpid().to_bytes(4)
    answer = in_child(lambda: os.getpid().to_bytes(4) + bytes(10_000_000))
    assert answer[:4] != mine
    assert answer[4:] == bytes(10_000_000)

    def refuse() -> bytes:
        raise ToolchainError("what", "why", "fix")

    with pytest.raises(ChildFailed, match="why") as found:
        in_child(refuse)
    assert str(found.value) == "why"
    assert "in refuse" in found.value.__notes__[0]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        in_child(lambda: Path("/nowhere").read_bytes())
    with pytest.raises(MemoryError):
        in_child(lambda: bytes(1 << 60))


def test_a_crash_ends_the_child_only(capfd: pytest.CaptureFixture[str]) -> None:
    def crash() -> bytes:
        os.write(2, b"LLVM ERROR: Cannot select: t1\n")
        os.abort()

    with pytest.raises(ChildFailed, match="ended by SIGABRT: LLVM ERROR: Cannot select: t1"):
        in_child(crash)
    with pytest.raises(ChildFailed, match="ended by SIGSEGV"):
        in_child(lambda: ctypes.string_at(0))
    assert capfd.readouterr() == ("", "")


def test_what_llvm_cannot_write_is_no_fault_of_a_layer() -> None:
    def full() -> bytes:
        os.write(2, b"LLVM ERROR: IO failure on output stream: File too large\n")
        os._exit(1)

    with pytest.raises(OSError, match="File too large") as found:
        in_child(full)
    assert found.value.errno == errno.EFBIG


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_an_interruption_ends_the_child_too(tmp_path: Path, number: int, raised: type[BaseException]) -> None:
    def slow() -> bytes:
        (tmp_path / "pid").write_text(str(os.getpid()))
        os.kill(os.getppid(), number)
        signal.pause()
        return b""

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        end_on_signals()
        with pytest.raises(raised):
            in_child(slow)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert _gone(int((tmp_path / "pid").read_text()))


def test_a_child_that_hangs_is_ended() -> None:
    with pytest.raises(ChildFailed, match="no end after 1 s"):
        in_child(lambda: time.sleep(600) or b"", seconds=1)


def test_a_killed_build_leaves_no_compiler_behind(tmp_path: Path) -> None:
    def slow() -> bytes:
        (tmp_path / "new").write_text(str(os.getpid()))
        (tmp_path / "new").rename(tmp_path / "pid")
        time.sleep(600)
        return b""

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        builder = os.fork()
    if builder == 0:
        in_child(slow)
        os._exit(0)
    _wait((tmp_path / "pid").exists)
    os.kill(builder, signal.SIGKILL)
    os.waitpid(builder, 0)
    _wait(lambda: _gone(int((tmp_path / "pid").read_text())))


def _gone(process: int) -> bool:
    """No process any more, or one that only waits for its parent to ask."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _wait(good: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not good():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("crash", [True, False])
def test_the_layer_that_the_compiler_cannot_do_is_named(crash: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_object = library.compile_object

    def crashing(functions: Mapping[str, Any], target: targets.Target) -> bytes:
        if any("softmax" in name for name in functions):
            if crash:
                os.abort()
            raise RuntimeError("tirx.SomePass does not know this")
        return compile_object(functions, target)

    monkeypatch.setattr(library, "compile_object", crashing)
    entry = lowered(
        torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Softmax(-1)), torch.zeros(1, 8), "host"
    )
    with pytest.raises(ToolchainError) as found:
        library.build_library("net", [entry], library.gather([entry]), b"{}", targets.host())
    assert "softmax" in found.value.what
    assert "dense" not in found.value.what
    assert ("SIGABRT" if crash else "tirx.SomePass does not know this") in found.value.why
