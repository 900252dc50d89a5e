"""The way to a device: commands and files over the system's OpenSSH.

The user's configuration, agent, jump hosts and known hosts hold, as with ``ssh HOST``. One connection carries
everything (OpenSSH's multiplexing). Nothing is asked: what needs a password or a yes fails with a message.
The other side needs a POSIX shell, ``cat``, ``chmod``, ``mv`` and ``wc``, which BusyBox has; no sftp, no scp.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import selectors
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgecsi.device.transport import Connection, Done, Session
from edgecsi.errors import ConnectionLost, DeviceError, ToolchainError, Unreachable, UsageError

CONNECT_SECONDS = 15.0
"""For name, network, keys and the device's shell together."""
FOLDER = ".edgecsi"
"""Where everything of ours lies on a device, below the user's home folder."""

_SPEC = re.compile(
    r"(?:(?P<user>[^@/:\s]+)@)?(?P<host>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^@/:\s\[\]]+)(?::(?P<port>\d{1,5}))?(?P<folder>/.*)?"
)

_ALIVE = 5  # seconds of silence after which the other side is asked for a sign of life, three times


@dataclass(frozen=True)
class Address:
    """Where SSH goes.

    Attributes:
        host: a name, an address, or an alias of the user's SSH configuration.
        user: None for what the configuration says.
        port: None for what the configuration says.
        folder: where our files go there; relative to the user's home unless it begins with ``/``.
    """

    host: str
    user: str | None = None
    port: int | None = None
    folder: str = FOLDER

    @staticmethod
    def parse(text: str) -> Address:
        """Reads ``ssh://[user@]host[:port][/folder]``.

        Raises:
            UsageError: it is none, or host or user begin with ``-``.
        """
        scheme, _, rest = text.partition("://")
        match = _SPEC.fullmatch(rest)
        if scheme != "ssh" or match is None or not text.isprintable():
            raise UsageError(
                f"{text!r} is no SSH address",
                "one looks like ssh://user@host:port; user and port may be left out",
                "for example --device ssh://pi@raspberrypi",
            )
        host, user, port = match["host"].strip("[]"), match["user"], match["port"]
        if host.startswith("-") or (user or "").startswith("-"):
            raise UsageError(
                f"{text!r} is no SSH address",
                "ssh would take a name that begins with - for an option",
                "give the host's name, or an alias from ~/.ssh/config",
            )
        if port is not None and not 0 < int(port) < 65536:
            raise UsageError(f"{text!r} is no SSH address", f"there is no port {port}", "give 1 to 65535")
        folder = (match["folder"] or "").rstrip("/")
        return Address(host, user, int(port) if port else None, folder or FOLDER)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        login = f"{self.user}@{host}" if self.user else host
        folder = "" if self.folder == FOLDER else self.folder
        return f"ssh://{login}{f':{self.port}' if self.port else ''}{folder}"

    @property
    def login(self) -> str:
        """``user@host`` or ``host``."""
        return f"{self.user}@{self.host}" if self.user else self.host


class Ssh(Connection):
    """A :class:`Connection` over ``ssh``; connects when first used.

    Args:
        address: where to.
        connect_seconds: after which connecting is given up.
    """

    def __init__(self, address: Address, *, connect_seconds: float = CONNECT_SECONDS) -> None:
        self.address, self.name = address, address.login
        self._connect_seconds = connect_seconds
        self._lock = threading.Lock()
        self._master: _Master | None = None

    def process(self, argv: Sequence[str], stdin: int | IO[bytes], stdout: int | IO[bytes]) -> Session:
        """See :meth:`Connection.process`."""
        return _SshSession(self, self._connected(), argv, stdin, stdout)

    def command(self, argv: Sequence[str]) -> list[str]:
        """What to start here so that ``argv`` runs there, for as long as this connection is open."""
        return self._connected().command(argv)

    def close(self) -> None:
        """See :meth:`Connection.close`."""
        with self._lock:
            if self._master is not None:
                self._master.close()
                self._master = None

    def __enter__(self) -> Ssh:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connected(self) -> _Master:
        with self._lock:
            if self._master is not None and not self._master.alive():
                self._master.close()
                self._master = None
            if self._master is None:
                self._master = _Master(self.address, self._connect_seconds)
                weakref.finalize(self, self._master.close)  # should nobody do it
            return self._master


class _SshSession(Session):
    """One command over the connection; a :class:`Session`."""

    def __init__(
        self, ssh: Ssh, master: _Master, argv: Sequence[str], stdin: int | IO[bytes], stdout: int | IO[bytes]
    ) -> None:
        self._master = master
        super().__init__(master.command(argv), Path(argv[0]).name, f"on {ssh.name}", stdin, stdout)

    def communicate(self, given: bytes | None, timeout: float) -> Done:
        """Feed it, and wait for its end."""
        done = super().communicate(given, timeout)
        if done.code == 255 and (lost := self._master.lost(done.stderr)):
            raise lost
        return done

    def kill(self) -> None:
        """See :meth:`Session.kill`; ssh tells the other side."""
        _end(self._process)
        self._errors.close()


class _Master:
    """The one connection, over which sessions are opened.

    It is a session itself, whose command reads our end of a pipe: when this process dies, however it does, the
    pipe ends, the command ends, and the connection with it.
    """

    def __init__(self, address: Address, seconds: float) -> None:
        if (ssh := shutil.which("ssh")) is None:
            raise ToolchainError(
                "ssh is missing", "devices are reached through it", "apt-get install openssh-client"
            )
        self._address = address
        self._folder = tempfile.mkdtemp(prefix="edgecsi-", dir=_short_folder())
        self._errors = Path(self._folder, "errors")
        command = [ssh, *_options(seconds), "-S", os.path.join(self._folder, "s")]
        if config := os.environ.get("EDGECSI_SSH_CONFIG"):
            command += ["-F", config]
        where = [*(["-p", str(address.port)] if address.port else []), "--", address.login]
        self._sessions = [*command, "-oControlMaster=no", "-oProxyCommand=false", *where]
        # (without the master a session would connect by itself: false prevents that)
        mark = f"edgecsi {secrets.token_hex(8)}"
        try:
            with self._errors.open("wb") as errors:
                self._process = subprocess.Popen(
                    [*command, "-oControlMaster=yes", *where, f"echo {mark}; exec cat"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    bufsize=0,
                    start_new_session=True,  # Ctrl-C is for this process; it ends the others
                )
            self._greet(mark.encode(), seconds)
        except BaseException:
            self.close()
            raise

    def alive(self) -> bool:
        return self._process.poll() is None

    def command(self, argv: Sequence[str]) -> list[str]:
        """What runs a command on the device, started here."""
        return [*self._sessions, shlex.join(argv)]

    def lost(self, said: bytes) -> DeviceError | None:
        """The error behind a session's exit code 255; None if it is the command's own."""
        refused = b"mux_client" in said or b"ssession open refused" in said.lower()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)  # a session may see the end before the connection does
        if self.alive() and not refused:
            return None
        why = self._said() or said.decode(errors="replace").strip().splitlines()[-1:]
        return ConnectionLost(
            f"the connection to {self._address.login} was lost",
            why[-1][:300] if why else "it went away",
            "see that the device is on and reachable, then give the same command again",
        )

    def close(self) -> None:
        if (process := getattr(self, "_process", None)) is not None:
            _end(process)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _greet(self, mark: bytes, seconds: float) -> None:
        """Wait for the device's shell to say the agreed words, and nothing else."""
        heard, deadline = b"", time.monotonic() + seconds
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not heard.endswith(mark + b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise Unreachable(
                        f"{self._address.login} does not answer",
                        f"no shell was there after {seconds:.0f} s",
                        f"see that the device is on, and that `ssh {self._address.login} true` works",
                    )
                if not (piece := os.read(stdout.fileno(), 65536)):
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.wait(5)
                    raise _why_unreachable(self._address, self._said(), heard)
                heard += piece
        if noise := heard.removesuffix(mark + b"\n"):
            raise Unreachable(
                f"the shell of {self._address.login} writes text of its own before any command's",
                f"it begins with {noise[:80].decode(errors='replace')!r}",
                "let its start-up files (~/.bashrc) print in interactive shells only",
            )

    def _said(self) -> list[str]:
        """What ssh itself wrote to its standard error, lines."""
        with contextlib.suppress(OSError):
            return self._errors.read_text(errors="replace").strip().splitlines()
        return []


def _options(seconds: float) -> list[str]:
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": str(max(1, int(seconds))),
        "ServerAliveInterval": str(_ALIVE),
        "ServerAliveCountMax": "3",
        "LogLevel": "ERROR",
        # What a configuration may ask for an interactive session, and would break ours.
        "ClearAllForwardings": "yes",
        "ControlPersist": "no",
        "EscapeChar": "none",
        "PermitLocalCommand": "no",
        "RemoteCommand": "none",
        "RequestTTY": "no",
    }
    return [f"-o{name}={value}" for name, value in options.items()]


def _short_folder() -> str | None:
    """Where the connection's socket goes: its path may have some 100 bytes only."""
    return "/tmp" if len(tempfile.gettempdir()) > 50 else None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the pipes to a process; it ends by itself or is ended."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _why_unreachable(address: Address, lines: Sequence[str], heard: bytes) -> Unreachable:
    """What ssh said, as an error that says what to do."""
    login, said = address.login, "\n".join(lines)
    last = lines[-1][:300] if lines else "ssh ended without a word"
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
        return Unreachable(
            f"{login} has another host key than it had before",
            "either the device was set up anew, or something pretends to be it; nothing was sent",
            f"if it was set up anew: ssh-keygen -R {_known_as(address)}, then connect once with ssh {login}",
        )
    if "Host key verification failed" in said:
        return Unreachable(
            f"{login} is not among the known hosts", "its host key was never accepted",
            f"connect once with `ssh {_with_port(address)}` and compare the fingerprint",
        )  # fmt: skip
    if "Could not resolve hostname" in said:
        return Unreachable(
            f"there is no host {address.host}", last, "check the name, or give the device's IP address"
        )
    if re.search(r"Permission denied|authentication failures", said):
        return Unreachable(
            f"{login} does not let us in", last,
            f"install your key there: ssh-copy-id {_with_port(address)} (a password is never asked for)",
        )  # fmt: skip
    if "Connection refused" in said:
        return Unreachable(
            f"{login} is there, but its SSH server is not", last,
            "start it there (on a Raspberry Pi: sudo raspi-config, Interface Options, SSH), or check the port",
        )  # fmt: skip
    if re.search(r"timed out|No route to host|unreachable|Host is down", said):
        return Unreachable(f"{login} does not answer", last, "see that the device is on and in this network")
    if heard or not lines or "closed by" in said or "Connection reset" in said:
        return Unreachable(
            f"{login} ended the connection before a command could run", last,
            f"see what `ssh {_with_port(address)} true` says, and the device's log",
        )  # fmt: skip
    return Unreachable(f"{login} cannot be reached", last, f"see what `ssh {_with_port(address)} true` says")


def _with_port(address: Address) -> str:
    return f"-p {address.port} {address.login}" if address.port else address.login


def _known_as(address: Address) -> str:
    """The name under which the host's key is kept."""
    return f"'[{address.host}]:{address.port}'" if address.port not in (None, 22) else address.host
