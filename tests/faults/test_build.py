"""Builds that go wrong: a typed error, in bounded time, and the previous bundle is whole."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from edgecsi.bundle import read_bundle
from edgecsi.codegen import zig
from edgecsi.errors import BundleError, EdgecsiError, TargetError, ToolchainError
from edgecsi.pipeline import STAGES, BuildOptions, build

NETWORK = """
import torch

def first():
    torch.manual_seed(1)
    return torch.nn.Linear(12, 5), torch.zeros(1, 12)

def second():
    torch.manual_seed(2)
    return torch.nn.Linear(12, 5), torch.zeros(1, 12)
"""


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NETWORK)
    return path


@pytest.fixture
def previous(network: Path, tmp_path: Path) -> Path:
    """A bundle that stands where the next build goes."""
    out = tmp_path / "builds" / "net"
    build(BuildOptions(f"{network}:first", "host", out=out))
    return out


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def fake_zig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that is run in place of zig; write it."""
    folder = tmp_path / "fake"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder / "ziglang.py"


def test_a_missing_linker_is_named_with_the_command_that_installs_it(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "python"  # sees no installed package
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(ToolchainError, match="pip install ziglang"):
        build(BuildOptions(f"{network}:first", "host", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_interpreter_that_is_gone_is_an_error_too(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    with pytest.raises(ToolchainError, match="edgecsi doctor"):
        build(BuildOptions(f"{network}:first", "host", out=tmp_path / "out"))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.exit('error: NoSpaceLeft')", "disk is full"),
        ("import sys; sys.exit('ld.lld: error: undefined symbol: frobnicate')", "frobnicate"),
        ("import os; os.kill(os.getpid(), 9)", "doctor"),
        ("pass", "library.so"),  # says that all is well and writes nothing
    ],
)
def test_a_failing_linker_leaves_the_previous_bundle(
    network: Path, previous: Path, fake_zig: Path, program: str, words: str
) -> None:
    before = _contents(previous)
    fake_zig.write_text(program)
    with pytest.raises(ToolchainError, match=words):
        build(BuildOptions(f"{network}:second", "host", out=previous))
    assert _contents(previous) == before
    assert [p.name for p in previous.parent.iterdir()] == ["net"]


def test_a_linker_that_hangs_is_given_up(tmp_path: Path, fake_zig: Path) -> None:
    fake_zig.write_text("import time; time.sleep(600)")
    start = time.monotonic()
    with pytest.raises(ToolchainError, match="did not finish"):
        zig.zig_cc(["-shared", "-o", tmp_path / "x.so"], timeout=1)
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("name", ["kernels.o", "weights.bin", "driver.c"])
def test_a_full_disk_while_the_library_is_made(
    network: Path, previous: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The disk of temporary files, which is often another one."""
    before = _contents(previous)
    write_bytes, write_text = Path.write_bytes, Path.write_text

    def full(original):
        def write(self, content, **options):
            if self.name == name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
            return original(self, content, **options)

        return write

    monkeypatch.setattr(Path, "write_bytes", full(write_bytes))
    monkeypatch.setattr(Path, "write_text", full(write_text))
    with pytest.raises(ToolchainError, match="disk is full"):
        build(BuildOptions(f"{network}:second", "host", out=previous))
    assert _contents(previous) == before
    assert [p.name for p in previous.parent.iterdir()] == ["net"]


def test_no_room_for_temporary_files(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(ToolchainError, match="gone"):
        build(BuildOptions(f"{network}:first", "host", out=tmp_path / "out"))


@pytest.mark.parametrize("which", [1, 2], ids=["the trial that is checked", "the bundle"])
def test_a_full_disk_while_a_bundle_is_written(
    network: Path, previous: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    before, fsync, libraries = _contents(previous), os.fsync, []

    def full(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").endswith(".so"):
            libraries.append(handle)
        if len(libraries) == which:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ToolchainError, match="disk is full"):
        build(BuildOptions(f"{network}:second", "host", out=previous))
    assert _contents(previous) == before
    assert [p.name for p in previous.parent.iterdir()] == ["net"]


@pytest.mark.parametrize("stage", range(len(STAGES)), ids=[s.__name__ for s in STAGES])
def test_ctrl_c_in_any_stage_leaves_the_previous_bundle(network: Path, previous: Path, stage: int) -> None:
    before = _contents(previous)
    options = BuildOptions(f"{network}:second", "host", out=previous)

    def interrupt(done: float, total: float, what: str) -> None:
        if done == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(options, interrupt)
    assert _contents(previous) == before
    assert [p.name for p in previous.parent.iterdir()] == ["net"]


@pytest.mark.parametrize("delay", [0.1, 1.0, 2.0, 3.0])
def test_a_signal_at_any_time_leaves_one_whole_bundle(network: Path, previous: Path, delay: float) -> None:
    """The real thing: SIGINT to the program."""
    command = [sys.executable, "-m", "edgecsi", "build", f"{network}:second", "--target", "host"]
    process = subprocess.Popen(
        [*command, "-o", previous], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (0, 130, -signal.SIGINT), errors
    read_bundle(previous)  # the old one or the new one, every byte of it
    assert [p.name for p in previous.parent.iterdir()] == ["net"]


def test_two_builds_into_one_folder_end_with_one_of_the_two(network: Path, tmp_path: Path) -> None:
    out, failures = tmp_path / "builds" / "net", []

    def one(factory: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "edgecsi", "build", f"{network}:{factory}", "--target", "host", "-o", out],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        if done.returncode:
            failures.append(done.stderr)

    threads = [threading.Thread(target=one, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert read_bundle(out).manifest.model.spec.rsplit(":")[-1] in ("first", "second")
    assert [p.name for p in out.parent.iterdir()] == ["net"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_no_bundle_is_refused_before_any_work(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    out = tmp_path / "out"
    precious = tmp_path / "elsewhere" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("precious")
    match kind:
        case "folder":
            precious = precious.parent.rename(out) / "thesis.tex"
        case "file":
            precious = precious.rename(out)
        case "link":
            out.symlink_to(precious.parent)
    done: list[str] = []
    with pytest.raises(BundleError):
        build(BuildOptions(f"{network}:first", "host", out=out), lambda d, t, what: done.append(what))
    assert len(done) == 1  # the first stage
    assert precious.read_text() == "precious"


def test_a_folder_that_cannot_be_written_is_an_error(network: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgecsiError):
        build(BuildOptions(f"{network}:first", "host", out=tmp_path / "file" / "out"))


@pytest.mark.parametrize(
    ("line", "words"),
    [('mcpu = "cpu-of-the-future"', "cpu-of-the-future"), ('mcpu = "znver4"', "does not declare .*avx512f")],
)
def test_a_target_whose_libraries_could_crash_is_refused(
    network: Path, tmp_path: Path, line: str, words: str
) -> None:
    """A CPU that LLVM does not know, and one that can do more than the target asks of the CPU."""
    path = tmp_path / "mine.toml"
    path.write_text(f'extends = "x86-64-v3"\n{line}\n')
    with pytest.raises(TargetError, match=words):
        build(BuildOptions(f"{network}:first", str(path), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
