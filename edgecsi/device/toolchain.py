"""The small C programs devices need, compiled once into the user's cache, and the emulator's whereabouts."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

from edgecsi import disk
from edgecsi.bundle import fast_call as source
from edgecsi.codegen.zig import zig_cc
from edgecsi.errors import EdgecsiError, ToolchainError

GLIBC = "2.28"
"""The oldest C library of a device."""
_HERE = Path(__file__).parent / "native"
_COMPILE_SECONDS = 900  # zig builds its static C library first, which takes minutes on a busy small machine


def runner(arch: str) -> Path:
    """The static program that runs a library under an emulator (``runner.c``).

    Args:
        arch: ``x86_64`` or ``aarch64``.

    Raises:
        ToolchainError: ziglang is missing or cannot compile it.
    """
    return _compile("runner.c", f"runner-{arch}", ["-static", "-O2"], f"{arch}-linux-musl")


def remote_runner(arch: str) -> Path:
    """The program that runs a library on a device, loaded by the device's own loader (``remote.c``).

    Args:
        arch: ``x86_64`` or ``aarch64``.

    Raises:
        ToolchainError: ziglang is missing or cannot compile it.
    """
    flags = ["-O2", "-s", "-ldl", "-lpthread"]
    return _compile("remote.c", f"remote-{arch}", flags, f"{arch}-linux-gnu.{GLIBC}")


def agent(arch: str) -> Path:
    """The program that speaks TVM's RPC on a device (``agent.c``); as :func:`remote_runner`."""
    return _compile(
        "agent.c", f"agent-{arch}", ["-O2", "-s", "-ldl", "-lpthread"], f"{arch}-linux-gnu.{GLIBC}"
    )


def nothing(arch: str) -> Path:
    """A library for TVM whose function ``nothing`` does nothing (``nothing.c``); as :func:`remote_runner`."""
    return _compile(
        "nothing.c", f"nothing-{arch}.so", ["-shared", "-fPIC", "-O2"], f"{arch}-linux-gnu.{GLIBC}"
    )


def agent_source() -> bytes:
    """What :func:`agent` compiles."""
    return (_HERE / "agent.c").read_bytes()


def timer() -> Path:
    """The shared library that times calls in this process (``timer.c``)."""
    return _compile("timer.c", "timer.so", ["-shared", "-fPIC", "-O2", "-mcpu=baseline"])


def fast_call() -> Path | None:
    """The module that calls libraries from Python (:mod:`edgecsi.bundle.fast_call`), for this Python and this numpy; None
    where Python's headers are missing.

    Raises:
        ToolchainError: ziglang is missing or cannot compile it.
    """
    import numpy as np

    headers = [sysconfig.get_path("include"), np.get_include()]
    if not Path(headers[0], "Python.h").is_file():
        return None
    built = source.place()
    if not built.is_file():
        disk.cache("device", runs=True)
        with disk.whole(built, disk.CACHE_FIX) as beside:
            include = [f"-I{folder}" for folder in headers]
            zig_cc(["-shared", "-fPIC", "-O2", "-mcpu=baseline", *include, source.SOURCE, "-o", beside])
    return built


@cache
def prepare_fast_call() -> None:
    """Once a process, :func:`fast_call`; without it calls from Python are slower, which is no reason to fail."""
    with suppress(EdgecsiError):
        fast_call()


def icount_plugin(emulator: Path) -> Path:
    """The QEMU plugin that counts instructions (``icount.c``), for the API of this QEMU."""
    version = qemu_version(emulator)
    api = 1 if version < (9, 0) else 2 if version < (9, 1) else 3
    return _compile(
        "icount.c", f"icount-{api}.so", ["-shared", "-fPIC", "-O2", "-mcpu=baseline", f"-DPLUGIN_API={api}"]
    )


def qemu(arch: str) -> Path:
    """QEMU's user-mode emulator for this architecture.

    Raises:
        ToolchainError: it is not installed.
    """
    for name in (f"qemu-{arch}", f"qemu-{arch}-static"):
        if found := shutil.which(name):
            return Path(found)
    raise ToolchainError(
        f"qemu-{arch} is missing", "bundles for another CPU run under QEMU", "apt-get install qemu-user"
    )


@cache
def qemu_version(emulator: Path) -> tuple[int, ...]:
    """For example ``(7, 2, 22)``.

    Raises:
        ToolchainError: the program does not answer as QEMU does.
    """
    try:
        answer = subprocess.run(
            [emulator, "--version"], capture_output=True, text=True, errors="replace", timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolchainError(f"{emulator} does not start", str(error), "apt-get install qemu-user") from None
    match = re.search(r"version (\d+(?:\.\d+)+)", answer)
    if match is None:
        raise ToolchainError(f"{emulator} is not QEMU", answer[:200], "apt-get install qemu-user")
    return tuple(int(part) for part in match[1].split("."))


def _compile(source: str, name: str, flags: Sequence[str | Path], triple: str = "") -> Path:
    """Compile a source of this folder, unless the same zig did it before with the same flags."""
    try:
        zig = metadata.version("ziglang")
    except metadata.PackageNotFoundError:
        raise ToolchainError("ziglang is missing", f"it compiles {source}", "pip install ziglang") from None
    texts = [(_HERE / source).read_bytes(), *(header.read_bytes() for header in sorted(_HERE.glob("*.h")))]
    recipe = "\0".join([zig, triple, *map(str, flags)]).encode()
    key = hashlib.sha256(b"\0".join([*texts, recipe])).hexdigest()
    built = disk.cache("device", runs=True) / f"{key[:16]}-{name}"
    if not built.is_file():
        with disk.whole(built, disk.CACHE_FIX) as beside:
            zig_cc([*flags, _HERE / source, "-lm", "-o", beside], triple=triple, timeout=_COMPILE_SECONDS)
    return built
