"""What ends the compiler ends a child process, and becomes an error that names the layer."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from edgecsi import target as targets
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


def test_an_interruption_ends_the_child_too(tmp_path: Path) -> None:
    def slow() -> bytes:
        (tmp_path / "pid").write_text(str(os.getpid()))
        os.kill(os.getppid(), signal.SIGINT)
        signal.pause()
        return b""

    with pytest.raises(KeyboardInterrupt):
        in_child(slow)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


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
