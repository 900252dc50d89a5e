"""A device of another processor on this machine: an aarch64 Debian userland, run by QEMU, reached over a real sshd.

Runner, agent, loader, C library and bundle there are the very aarch64 files that ship. It needs root, and once the
network, so it is made before the tests: ``python -m tests._arm64`` (``.ci/run`` does that). It lies in the cache of
whoever runs the tests; tests that need it are skipped where it is missing, and fail in CI. ``python -m tests._arm64
serve`` keeps such a device for whoever has no board at hand (docs/how-to/set-up-a-pi.md).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecsi.device.install_rpc import runtime_libraries
from edgecsi.disk import cache_dir
from tests._sshd import Sshd, serving

_CACHE = cache_dir()  # before the tests get one of their own
ROOT = _CACHE / "tests" / "arm64-bookworm"
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_COMMAND = """export QEMU_CPU={cpu} HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec unshare -m sh -c 'mount --bind "$1" "$2/root" && mount -t proc proc "$2/proc" &&
    exec chroot "$2" /bin/sh -c "cd /root && exec /bin/sh -c \\"\\$SSH_ORIGINAL_COMMAND\\""' sh "{home}" "{root}"
"""


def make() -> None:
    """Make the userland, unless it is there; about three minutes. Needs root, mmdebstrap, arch-test and
    qemu-user-static."""
    _register()
    if not ROOT.is_dir():
        unfinished = ROOT.with_name(f"{ROOT.name}.{os.getpid()}")
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        command = ["mmdebstrap", "--arch=arm64", "--variant=minbase", "--include=libstdc++6", "bookworm"]
        subprocess.run([*command, str(unfinished)], check=True)
        unfinished.rename(ROOT)
    runtime_libraries("aarch64")


def missing() -> str:
    """What there is not; empty if a device can be played."""
    if os.getuid() != 0:
        return "root"
    if not ROOT.is_dir():
        return f"{ROOT} (python -m tests._arm64 makes it)"
    try:
        _register()
    except OSError as error:
        return f"binfmt_misc ({error})"
    return ""


def _register() -> None:
    """Let the kernel start aarch64 programs under QEMU, as Debian's package would have it."""
    if not (_BINFMT / "register").exists():
        subprocess.run(
            ["mount", "-t", "binfmt_misc", "none", str(_BINFMT)], check=False, stderr=subprocess.DEVNULL
        )
    if not (_BINFMT / "qemu-aarch64").exists():
        (_BINFMT / "register").write_bytes(Path("/usr/lib/binfmt.d/qemu-aarch64.conf").read_bytes())


@contextlib.contextmanager
def arm64(cpu: str) -> Iterator[Sshd]:
    """The device, with this CPU of QEMU's, for as long as the block lasts; skips the test if there is none."""
    if lacking := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{lacking} is missing", pytrace=False)
        pytest.skip(f"{lacking} is missing")
    with serving(command=_COMMAND.replace("{cpu}", cpu).replace("{root}", str(ROOT))) as server:
        yield server


def serve(cpu: str = "cortex-a72") -> None:
    """Be the device ``ssh://board`` until Ctrl-C or a request to end; says how a shell comes to know it."""
    make()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with arm64(cpu) as server, contextlib.suppress(KeyboardInterrupt):
        print(f"export EDGECSI_SSH_CONFIG={server.config}", flush=True)
        print(f"# in another shell; then ssh://board is a {cpu} there. Ctrl-C here ends it.", flush=True)
        signal.pause()


def lend_libraries() -> None:
    """Give the tests' own cache TVM's aarch64 libraries, which were fetched before."""
    source = _CACHE / "rpc"
    if not source.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{source} is missing", pytrace=False)
        pytest.skip(f"{source} is missing (python -m tests._arm64 makes it)")
    shutil.copytree(source, cache_dir() / "rpc", dirs_exist_ok=True)


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else make()
