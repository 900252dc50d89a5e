"""Writing whole or not at all, temporary folders, and what the disk refuses."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from edgecsi import disk
from edgecsi.errors import EdgecsiError, InputError, ToolchainError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    disk.write(path, "one")
    disk.write(path, b"two")
    assert path.read_text() == "two"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), ValueError("no"), RuntimeError("no"), OSError(28, "full")]
)
def test_whatever_is_raised_the_old_file_stands(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    disk.write(path, "old")

    def half() -> None:
        with disk.whole(path) as beside:
            beside.write_text("half")
            raise error

    with pytest.raises((type(error), ToolchainError)):
        half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_link_stays_a_link_and_a_pipe_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    disk.write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    disk.write(Path("/dev/null"), "gone")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("number", "kind", "why"),
    [
        (errno.ENOSPC, ToolchainError, "the disk is full"),
        (errno.EDQUOT, ToolchainError, "quota"),
        (errno.EROFS, ToolchainError, "read-only"),
        (errno.EACCES, ToolchainError, "permission"),
        (errno.EIO, ToolchainError, "error"),
        (errno.ENOENT, InputError, "does not exist"),
        (errno.ENOTDIR, InputError, "no folder"),
    ],
)
def test_what_the_system_refuses_is_said_in_three_lines(
    number: int, kind: type[EdgecsiError], why: str
) -> None:
    error = disk.refusal(OSError(number, os.strerror(number)), Path("/somewhere/a.txt"))
    assert type(error) is kind
    assert why in error.why
    assert str(error).count("\n") == 2


def test_a_place_that_cannot_be_is_refused_before_and_after_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a", tmp_path, tmp_path / ("n" * 300)):
        for attempt in (disk.check, lambda p: disk.write(p, "x")):
            with pytest.raises(InputError):
                attempt(path)
    disk.check(tmp_path / "new")
    assert names(tmp_path) == ["file"]


def test_libraries_that_write_meet_a_full_disk(tmp_path: Path, small_files: None) -> None:
    import numpy as np
    import torch
    from safetensors.numpy import save_file

    numbers = np.zeros(100_000, np.float32)
    writers = {
        "numpy": numbers.tofile,
        "torch": lambda path: torch.save({"a": torch.zeros(100_000)}, path),
        "safetensors": lambda path: save_file({"a": numbers}, path),
    }
    for name, writer in writers.items():
        with pytest.raises(ToolchainError, match=name), disk.whole(tmp_path / f"{name}.npy") as beside:
            writer(beside)
    assert names(tmp_path) == []


def abandoned(folder: Path, kind: str) -> Path:
    path = folder / f"{disk.PREFIX}dead{disk.SUFFIX}"
    if kind == "file":
        path.write_text("half")
    else:
        (path / "deep").mkdir(parents=True)
    long_ago = time.time() - 3600
    os.utime(path, (long_ago, long_ago))
    return path


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path, kind: str) -> None:
    dead = abandoned(tmp_path, kind)
    foreign = tmp_path / ".edgecsi-notes.txt"
    foreign.write_text("mine")
    disk.write(tmp_path / "a.txt", "new")
    assert not dead.exists()
    assert names(tmp_path) == [foreign.name, "a.txt"]


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from edgecsi import disk\n"
        "with disk.whole(pathlib.Path(sys.argv[1])) as beside:\n"
        " import os; os.utime(beside, (0, 0)); print(beside, flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "theirs")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        beside = Path(process.stdout.readline().strip())
        disk.write(tmp_path / "ours", "x")
        assert beside.exists()
        process.kill()
    disk.write(tmp_path / "ours", "x")
    assert not beside.exists()


def test_a_temporary_folder_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with disk.scratch() as folder:
        assert folder.parent == tmp_path
        (folder / "a").write_text("x")
    assert names(tmp_path) == []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(ToolchainError, match="TMPDIR"), disk.scratch():
        pass


@pytest.mark.parametrize("at", range(8))
def test_whichever_folder_cannot_be_opened_once_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The folder itself, to lock it and to empty it, and those in it."""
    real, opened = os.open, iter(range(99))

    def failing(path: str | Path, flags: int, *rest: int, **named: int) -> int:
        if flags & os.O_DIRECTORY and next(opened) == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, flags, *rest, **named)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "open", failing)
    with suppress(ToolchainError), disk.scratch() as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_text("x")
    assert names(tmp_path) == []


def test_where_nothing_may_run_the_cache_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shut = tmp_path / "shut"
    shut.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(shut))
    monkeypatch.setenv("EDGECSI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(disk, "is_noexec", lambda folder: folder == shut)
    with disk.scratch(runs=True) as folder:
        assert folder.parent == tmp_path / "cache" / "tmp"
    with disk.scratch() as folder:
        assert folder.parent == shut
    monkeypatch.setattr(disk, "is_noexec", lambda folder: True)
    with pytest.raises(ToolchainError, match="noexec"), disk.scratch(runs=True):
        pass


def test_a_home_that_cannot_be_written_is_helped_by_another_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The C compiler keeps what it makes there as well."""
    from edgecsi.codegen.zig import zig_cc

    for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setenv("EDGECSI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.c").write_text("int a(void) { return 1; }")
    zig_cc(["-c", "a.c", "-o", "a.o"], cwd=tmp_path)
    assert names(tmp_path) == ["a.c", "a.o", "cache"]
    assert "zig" in names(tmp_path / "cache")


def test_a_cache_that_cannot_be_made_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGECSI_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ToolchainError, match="EDGECSI_CACHE"):
        disk.cache("zig")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    program = (
        "import sys, time; from edgecsi import cli, disk\n"
        "cli.end_on_signals()\n"
        "with disk.scratch() as folder:\n"
        " print(folder, flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        assert Path(process.stdout.readline().strip()).is_dir()
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert names(tmp_path) == []


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("EDGECSI_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(ToolchainError) as caught:
        disk.cache_dir()
    assert caught.value.fix == "set HOME, or EDGECSI_CACHE"


def test_drawing_says_nothing_of_folders_that_cannot_be_written() -> None:
    """matplotlib would, in two lines."""
    shut = dict.fromkeys(("HOME", "EDGECSI_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), "/sys/edgecsi")
    done = subprocess.run(
        [sys.executable, "-c", "from edgecsi import drawing; drawing.figure(1, 1)"],
        env=os.environ | shut, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
