"""What a way to a device can do: run commands there and copy files. ``ssh.py`` is the real one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgecsi.errors import DeviceError

STEP_SECONDS = 60.0
"""For a command that does nothing long."""
SLOWEST = 50_000.0
"""Bytes a second below which copying is given up."""


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code (128 + signal, as the shell has it) and what it wrote."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text, without the last newline."""
        return self.stdout.decode(errors="replace").rstrip("\n")

    @property
    def said(self) -> str:
        """The last line of standard error, or else of standard output: why a command failed."""
        for stream in (self.stderr, self.stdout):
            if lines := stream.decode(errors="replace").strip().splitlines():
                return lines[-1][:300]
        return f"exit code {self.code}"


class Session:
    """A command that runs on a device, to talk to, by a process of this machine. It should end when its standard input
    ends.

    Args:
        argv: what is started, in a session of its own: Ctrl-C is for us, who end it.
        name, where: how messages call it: ``NAME did not end WHERE``.
        stdin, stdout: its streams, as :class:`subprocess.Popen` takes them.
        settings: more for :class:`subprocess.Popen`.

    Raises:
        OSError: it does not start.
    """

    def __init__(
        self,
        argv: Sequence[str],
        name: str,
        where: str,
        stdin: int | IO[bytes],
        stdout: int | IO[bytes],
        **settings: Any,
    ) -> None:
        self._name, self._where = name, where
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by kill(); nobody has to read it in time
        try:
            self._process = subprocess.Popen(
                argv, stdin=stdin, stdout=stdout, stderr=self._errors, bufsize=0, start_new_session=True,
                **settings,
            )  # fmt: skip
        except OSError:
            self._errors.close()
            raise

    @property
    def stdin(self) -> IO[bytes]:
        """What it reads; unbuffered."""
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """What it writes; unbuffered."""
        assert self._process.stdout is not None
        return self._process.stdout

    def finish(self, timeout: float = STEP_SECONDS) -> Done:
        """Close its input and wait for its end; the result has what it wrote and nobody read yet.

        Raises:
            ConnectionLost: the way to the device broke off.
            DeviceError: it did not end in time.
        """
        return self.communicate(b"", timeout)

    def communicate(self, given: bytes | None, timeout: float) -> Done:
        """Feed it, and wait for its end; as :meth:`finish`."""
        if self._process.stdin is not None and self._process.stdin.closed:
            self._process.stdin = None
        try:
            stdout, _ = self._process.communicate(given, timeout=timeout)
            code = self._process.returncode
            self._errors.seek(0)
            return Done(code if code >= 0 else 128 - code, stdout or b"", self._errors.read())
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"{self._name} did not end {self._where}", f"it was given up after {timeout:.0f} s",
                "see that nothing is overloaded there, then try again",
            ) from None  # fmt: skip
        finally:
            self.kill()

    def kill(self) -> None:
        """Cut it off. Harmless after its end."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._errors.close()


_PUSH = """cat >"$1.part" && chmod "$2" "$1.part" || { rm -f "$1.part"; exit 1; }
[ "$(wc -c <"$1.part")" -eq "$3" ] && mv -f "$1.part" "$1" && exit
rm -f "$1.part"; echo "cut short" >&2; exit 1"""


class Connection(ABC):
    """A way to a machine with a POSIX shell. Every method ends in bounded time, with a result or a
    :class:`DeviceError`; after :class:`ConnectionLost` the next call connects anew."""

    name: str
    """How messages call the device."""

    @abstractmethod
    def process(self, argv: Sequence[str], stdin: int | IO[bytes], stdout: int | IO[bytes]) -> Session:
        """Start what runs a command there, with these streams."""

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | Path | None = None,
        output: Path | None = None,
        timeout: float = STEP_SECONDS,
    ) -> Done:
        """Run a command in the user's home folder and wait for its end.

        Args:
            argv: program and arguments; no shell there sees anything but these words.
            input: what it reads; a file is streamed. Nothing by default.
            output: where its standard output goes, streamed; by default into the result.
            timeout: seconds.

        Returns:
            How it ended, whatever its exit code.

        Raises:
            Unreachable, ConnectionLost: there is no way to the device, or no longer.
            DeviceError: it did not end in time.
        """
        with contextlib.ExitStack() as files:
            source = files.enter_context(input.open("rb")) if isinstance(input, Path) else subprocess.PIPE
            sink = files.enter_context(output.open("wb")) if output is not None else subprocess.PIPE
            session = self.process(argv, source, sink)
            return session.communicate(None if isinstance(input, Path) else input or b"", timeout)

    def start(self, argv: Sequence[str]) -> Session:
        """Start a command to talk to; see :meth:`run`."""
        return self.process(argv, subprocess.PIPE, subprocess.PIPE)

    def push(self, source: Path | bytes, remote: str, *, mode: int = 0o644) -> None:
        """Copy a file there, whole or not at all; its folder must exist. It may take as long as at 50 kB/s.

        Args:
            source: a file here, or its content.
            remote: its path there.
            mode: its permissions there.

        Raises:
            Unreachable, ConnectionLost: as :meth:`run`.
            DeviceError: it cannot be written, or was cut short.
        """
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        argv = ["sh", "-c", _PUSH, "push", remote, f"{mode:o}", str(size)]
        done = self.run(argv, input=source, timeout=STEP_SECONDS + size / SLOWEST)
        if done.code:
            raise DeviceError(
                f"{remote} cannot be written on {self.name}",
                done.said,
                "free some space there, or name another folder",
            )

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file from there.

        Raises:
            Unreachable, ConnectionLost: as :meth:`run`.
            DeviceError: it cannot be read.
        """
        done = self.run(["cat", remote], output=local, timeout=STEP_SECONDS)
        if done.code:
            local.unlink(missing_ok=True)
            raise DeviceError(f"{remote} cannot be read on {self.name}", done.said, "see if it is there")

    @abstractmethod
    def close(self) -> None:
        """End the connection and every command that still runs over it."""
