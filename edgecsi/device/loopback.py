"""This machine as a device behind SSH, for the demo: an ``sshd`` of its own on 127.0.0.1, with keys of its own and a
home folder of its own, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SPEC = "ssh://demo-device"
_SECONDS = 10.0


@contextlib.contextmanager
def loopback() -> Iterator[str | None]:
    """Serve for as long as the block lasts; other users of this process's SSH see this device only.

    Yields:
        The device's address, or None where there is no ``sshd``, or it does not start.
    """
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if sshd is None or shutil.which("ssh") is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="edgecsi-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        port = _write_files(folder)
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd gives its rights away
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [sshd, "-D", "-e", "-f", str(folder / "sshd_config")], stdin=subprocess.DEVNULL, stderr=log
            )
        before = os.environ.get("EDGECSI_SSH_CONFIG")
        os.environ["EDGECSI_SSH_CONFIG"] = str(folder / "config")
        try:
            yield SPEC if _listens(server, port) else None
        finally:
            if before is None:
                del os.environ["EDGECSI_SSH_CONFIG"]
            else:
                os.environ["EDGECSI_SSH_CONFIG"] = before
            server.terminate()
            server.wait()


def _write_files(folder: Path) -> int:
    """Keys and configurations of both sides; returns the port."""
    (folder / "home").mkdir()
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
        subprocess.run(command, check=True, timeout=60)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    home = shlex.quote(str(folder / "home"))
    command_file = folder / "command.sh"
    command_file.write_text(f'#!/bin/sh\ncd {home} && exec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    command_file.chmod(0o755)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        "StrictModes no\nPidFile none\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        # The shell that sshd starts reads ~/.bashrc: not this user's.
        f"PermitRootLogin yes\nForceCommand {command_file}\nSetEnv HOME={folder}/home\n"
    )
    public = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}\n")
    (folder / "config").write_text(
        f"Host {SPEC.partition('//')[2]}\n HostName 127.0.0.1\n Port {port}\n IdentityFile {folder}/user\n"
        f" IdentitiesOnly yes\n IdentityAgent none\n UserKnownHostsFile {folder}/known_hosts\n"
        " GlobalKnownHostsFile /dev/null\n StrictHostKeyChecking yes\n"
    )
    return port


def _listens(server: subprocess.Popen[bytes], port: int) -> bool:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        time.sleep(0.05)
    return False
