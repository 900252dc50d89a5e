"""Files as edgecsi writes them: whole or not at all; and the places for what is made again or thrown away.

:func:`whole` (and :func:`write`) is the one way to write a file, :func:`scratch` the one temporary folder,
:func:`cache` a folder below ``$EDGECSI_CACHE``. What a killed process leaves of the first two is named
``.edgecsi-….tmp``, and removed by the next one that looks there. Whatever the disk refuses becomes an error of three
lines, :func:`refusal`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from edgecsi.errors import EdgecsiError, InputError, ToolchainError

PREFIX, SUFFIX = ".edgecsi-", ".tmp"
_ABANDONED = 60
"""Seconds after which what nobody holds is taken for a dead process's: before, it may just not be locked yet."""
_TRIED = 1 << 16
"""Bytes that are written to learn whether a disk has room."""
_NOT_THERE = {
    errno.ENOENT: "its folder does not exist",
    errno.ENOTDIR: "a part of its path is no folder",
    errno.EISDIR: "it is a folder",
    errno.ENAMETOOLONG: "its name is too long",
    errno.EEXIST: "it exists already",
}
_REFUSED = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than is allowed",
    errno.EROFS: "it is on a read-only file system",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "an input/output error: the disk, or the way to it, is failing",
}
KNOWN = frozenset({*_NOT_THERE, *_REFUSED})
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
ANOTHER = "free some space, or write to another place"
CACHE_FIX = "set EDGECSI_CACHE to a folder that can be written"


def refusal(
    error: OSError | RuntimeError, path: Path, fix: str = ANOTHER, what: str = "cannot be written"
) -> EdgecsiError:
    """The error for what the system refused: InputError where the path is wrong, else ToolchainError."""
    number = error.errno if isinstance(error, OSError) else None
    said = str(error.strerror or error) if isinstance(error, OSError) else str(error)
    if (number is None or number == errno.EIO) and is_full(path):
        number = errno.ENOSPC
    if number in _NOT_THERE:
        return InputError(f"{path} {what}", _NOT_THERE[number], "check the path" if fix == ANOTHER else fix)
    why = _REFUSED.get(number, said.strip().splitlines()[-1] if said.strip() else type(error).__name__)  # type: ignore[arg-type]
    return ToolchainError(f"{path} {what}", why, fix)


def is_full(path: Path) -> bool:
    """Whether the file system of a path has no room left; libraries do not always say why they could not write."""
    existing = next((p for p in (path, *path.absolute().parents) if os.path.exists(p)), Path("/"))
    with suppress(OSError):
        return shutil.disk_usage(existing).free < 1 << 16
    return False


@contextmanager
def whole(path: Path, fix: str = ANOTHER) -> Iterator[Path]:
    """A name beside `path` to write to; at the end it takes the place of `path`, whose folder is made if need be.

    If anything is raised, or the process is killed, `path` is what it was. A link stays one, and what is no regular
    file (``/dev/stdout``) is written directly.

    Raises:
        InputError, ToolchainError: see :func:`refusal`; also for a RuntimeError, which is how PyTorch and safetensors
            report a disk that is full.
    """
    target = Path(os.path.realpath(path))
    if os.path.exists(target) and not os.path.isfile(target) and not os.path.isdir(target):
        yield target
        return
    beside = target.parent / f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}"
    handle = -1
    try:
        if os.path.isdir(target):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with suppress(FileNotFoundError):
            target.lstat()  # a name that is too long
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        handle = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield beside
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(beside, target)
    except (OSError, RuntimeError) as error:
        raise refusal(error, path, fix) from error
    except Exception as error:
        if type(error).__module__.startswith("safetensors"):
            raise refusal(OSError(str(error)), path, fix) from error
        raise
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        if handle >= 0:
            with suppress(OSError):  # it holds the lock only: what was written went through another one
                os.close(handle)


class _Enough(Exception):
    pass


def check(path: Path, fix: str = ANOTHER) -> None:
    """Learn before long work whether its result can be written; errors as for :func:`whole`."""
    with suppress(_Enough), whole(path, fix) as beside:
        if beside.name.startswith(PREFIX):
            beside.write_bytes(bytes(_TRIED))
        raise _Enough


def check_file(path: Path) -> None:
    """As :func:`check`, for a file that the user named: its folder has to be there, as a name may be mistyped."""
    parent = path.absolute().parent
    if not parent.is_dir():
        raise refusal(FileNotFoundError(errno.ENOTDIR if parent.exists() else errno.ENOENT, ""), path)
    check(path)


def check_folder(folder: Path) -> None:
    """Learn before long work whether a folder can be written or made; nothing is made yet."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise refusal(NotADirectoryError(errno.ENOTDIR, ""), folder)
    try:
        check(there / f"{PREFIX}tried{SUFFIX}")
    except EdgecsiError as error:
        raise type(error)(f"{folder} cannot be written", error.why, error.fix) from error


def write(path: Path, content: str | bytes, fix: str = ANOTHER) -> None:
    """Write a file, whole or not at all; errors as for :func:`whole`."""
    with whole(path, fix) as beside:
        beside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def scratch(runs: bool = False) -> Iterator[Path]:
    """A temporary folder, gone at the end.

    Args:
        runs: a library or a program in it is going to be run. Then it lies below the cache where the system's
            temporary folder is mounted ``noexec``.

    Raises:
        ToolchainError: there is no place for it.
    """
    with ExitStack() as stack:
        try:
            parent = Path(tempfile.gettempdir())
            if runs and is_noexec(parent):
                parent = cache("tmp", runs=True)
            sweep(parent)
            folder = parent / f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}"
            folder.mkdir(mode=0o700)
            stack.enter_context(held(folder))
        except OSError as error:
            where = Path(tempfile.tempdir or "the temporary folder")
            raise ToolchainError(
                f"{where} takes no temporary files",
                refusal(error, where).why,
                "make room, or set TMPDIR to another folder",
            ) from error
        yield folder


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Nobody sweeps this folder away while it is in use; in the end it is removed."""
    handle = -1
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        for _ in range(2):  # a call that failed once
            shutil.rmtree(folder, ignore_errors=True)
        if handle >= 0:
            with suppress(OSError):
                os.close(handle)


def sweep(folder: Path) -> None:
    """Remove what dead processes of this user left in a folder; what is in use is locked."""
    with suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            if entry.name.startswith(PREFIX) and entry.name.endswith(SUFFIX):
                with suppress(OSError):
                    _remove_abandoned(Path(entry.path))


def _remove_abandoned(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if status.st_uid != os.geteuid() or time.time() - status.st_mtime < _ABANDONED:
            return
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISDIR(status.st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def own_folder(below: str, shared: str, ours: str = "") -> Path:
    """A folder of edgecsi's at this user's: ``$ours``, else ``$shared/edgecsi``, else ``~/below/edgecsi``.

    Raises:
        ToolchainError: there is no home folder: no HOME, and a user that /etc/passwd does not know, as in containers.
    """
    if ours and (folder := os.environ.get(ours)):
        return Path(folder)
    if folder := os.environ.get(shared):
        return Path(folder) / "edgecsi"
    try:
        return Path.home() / below / "edgecsi"
    except RuntimeError as error:
        raise ToolchainError(
            "this user has no home folder", str(error), f"set HOME, or {ours or shared}"
        ) from error


def cache_dir() -> Path:
    """Where edgecsi keeps what it can make again: ``$EDGECSI_CACHE``, else ``$XDG_CACHE_HOME/edgecsi``, else
    ``~/.cache/edgecsi``."""
    return own_folder(".cache", "XDG_CACHE_HOME", "EDGECSI_CACHE")


def cache(name: str, runs: bool = False) -> Path:
    """A folder of the cache, made if need be.

    Args:
        name: which. runs: libraries or programs in it are going to be run.

    Raises:
        ToolchainError: it cannot be made or written, or is mounted ``noexec``.
    """
    folder, fix = cache_dir() / name, CACHE_FIX
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolchainError(f"{folder} cannot be written", str(refusal(error, folder).why), fix) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ToolchainError(f"{folder} cannot be written", "permission denied", fix)
    if runs and is_noexec(folder):
        raise ToolchainError(
            f"nothing can be run in {folder}",
            "it is mounted noexec, and so is the folder for temporary files"
            if name == "tmp"
            else "it is mounted noexec",
            "set EDGECSI_CACHE to a folder where programs may run",
        )
    return folder


def is_noexec(folder: Path) -> bool:
    """Whether programs and libraries below this folder may not be run."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)
    except OSError:
        return False
