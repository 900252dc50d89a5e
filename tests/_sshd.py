"""A real ``sshd`` on loopback, with keys, a home folder and a client configuration of its own.

``EDGECSI_SSH_CONFIG`` points the program (and processes it starts) to that configuration, in which the device is
called ``board``: ``ssh://board``, or ``ssh://board/some/folder`` for a second device on the same server.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest


@cache
def _keys() -> Path:
    """A folder of keys that all servers have, made once."""
    folder = Path(tempfile.mkdtemp(prefix="sshd-keys-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("host", "other_host", "user", "stranger"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
        subprocess.run(command, check=True, timeout=60)
    return folder


class Sshd:
    """A running server; ``home`` is the home folder that commands see there."""

    def __init__(self, folder: Path, *, command: str = "", settings: str = "") -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir()
        for key in _keys().iterdir():
            shutil.copy(key, folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        shutil.copy(folder / "user.pub", folder / "authorized")
        home = shlex.quote(str(self.home))
        run = command.replace("{home}", str(self.home)) or f'cd {home} && exec sh -c "$SSH_ORIGINAL_COMMAND"'
        (folder / "sshd.sh").write_text(f"#!/bin/sh\n{run}\n")
        (folder / "sshd.sh").chmod(0o755)
        self._settings = (
            f"Port {self.port}\nListenAddress 127.0.0.1\nAuthorizedKeysFile {folder}/authorized\nStrictModes no\n"
            f"PidFile none\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"PermitRootLogin yes\nMaxStartups 100\nMaxSessions 100\nForceCommand {folder}/sshd.sh\n"
            # A shell that sshd starts reads ~/.bashrc, which is the device's business, not the user's, and costs time
            # with every message; and a post-quantum exchange of keys takes six times as long as this one.
            f"SetEnv HOME={self.home}\nKexAlgorithms curve25519-sha256\n{settings}\n"
        )
        self.config = folder / "config"
        self.known_hosts = folder / "known_hosts"
        self.trust("host")
        self.configure()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def spec(self) -> str:
        return "ssh://board"

    def trust(self, key: str) -> None:
        """Let the client know this host key, and no other."""
        public = " ".join((self.folder / f"{key}.pub").read_text().split()[:2])
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {public}\n")

    def configure(self, *, key: str = "user", host: str = "127.0.0.1", more: str = "") -> None:
        """Write the client's configuration."""
        self.config.write_text(
            f"Host board\n HostName {host}\n Port {self.port}\n{more}\n"
            f"Host *\n IdentityFile {self.folder}/{key}\n IdentitiesOnly yes\n IdentityAgent none\n"
            f" UserKnownHostsFile {self.known_hosts}\n GlobalKnownHostsFile /dev/null\n"
            " StrictHostKeyChecking yes\n"
        )

    def start(self, host_key: str = "host") -> None:
        """Start it, and wait until it listens."""
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        config = self.folder / "sshd_config"
        config.write_text(f"{self._settings}HostKey {self.folder}/{host_key}\n")
        sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        assert sshd is not None
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sshd, "-D", "-e", "-f", str(config)], stderr=log, stdin=subprocess.DEVNULL
            )
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        raise RuntimeError((self.folder / "log").read_text())

    def stop(self) -> None:
        """End the server; connections that are open stay."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def drop(self) -> int:
        """Cut every connection off, as a network does; returns how many processes served them."""
        assert self._process is not None
        pids = _children(self._process.pid)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    def close(self) -> None:
        if self._process is not None:
            self.drop()
        self.stop()


def _children(parent: int) -> list[int]:
    """The server's own processes below it (not the commands they run)."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, rest = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
            name = stat.parent.joinpath("comm").read_text().strip()
            if int(rest[1]) == parent and name.startswith("sshd"):
                found += [*_children(pid), pid]
    return found


def running(folder: Path, words: str = "") -> list[str]:
    """Command lines, with these words in them, of programs of ours that run from a folder of a device."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text.startswith(str(folder)) and words in text:
                found.append(text)
    return found


def until(holds: Callable[[], object]) -> None:
    """Wait for this, at most half a minute."""
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that in 30 s")


@contextlib.contextmanager
def serving(**options: str) -> Iterator[Sshd]:
    """A server in a folder with a short name, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="sshd-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        server = Sshd(Path(folder), **options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EDGECSI_SSH_CONFIG", str(server.config))
            try:
                yield server
            finally:
                server.close()


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    """A server for one test; the test needs ``@pytest.mark.needs("sshd")``."""
    with serving() as server:
        yield server
