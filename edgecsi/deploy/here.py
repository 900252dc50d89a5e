"""This machine as a device to deploy to: the same steps, in a shell of its own instead of over SSH."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from edgecsi.device.transport import STEP_SECONDS, Done, Session
from edgecsi.errors import DeviceError


class Here:
    """A :class:`edgecsi.device.transport.Connection` to where we are.

    Args:
        home: where relative places begin.
        environment: more variables for what is started.
    """

    name = "this machine"

    def __init__(self, home: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        self.home = home or Path.home()
        self.environment = {**os.environ, **(environment or {}), "HOME": str(self.home)}

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | Path | None = None,
        output: Path | None = None,
        timeout: float = STEP_SECONDS,
    ) -> Done:
        """See :meth:`Connection.run`."""
        with contextlib.ExitStack() as files:
            source = files.enter_context(input.open("rb")) if isinstance(input, Path) else subprocess.PIPE
            sink = files.enter_context(output.open("wb")) if output is not None else subprocess.PIPE
            session = _Process(self, argv, source, sink)
            return session.communicate(None if isinstance(input, Path) else input or b"", timeout)

    def start(self, argv: Sequence[str]) -> Session:
        """See :meth:`Connection.start`."""
        return _Process(self, argv, subprocess.PIPE, subprocess.PIPE)

    def push(
        self, source: Path | bytes, remote: str, *, mode: int = 0o644, timeout: float | None = None
    ) -> None:
        """See :meth:`Connection.push`."""
        write = 'cat >"$1.part" && chmod "$2" "$1.part" && mv -f "$1.part" "$1"'
        done = self.run(
            ["sh", "-c", write, "push", remote, f"{mode:o}"], input=source, timeout=timeout or 600
        )
        if done.code:
            raise DeviceError(
                f"{remote} cannot be written", done.said, "free some space, or choose another folder"
            )

    def pull(self, remote: str, local: Path, *, timeout: float = STEP_SECONDS) -> None:
        """See :meth:`Connection.pull`."""
        done = self.run(["cat", remote], output=local, timeout=timeout)
        if done.code:
            local.unlink(missing_ok=True)
            raise DeviceError(f"{remote} cannot be read", done.said, "see if it is there")

    def close(self) -> None:
        """Nothing stays open."""


class _Process:
    """One command; a :class:`Session`."""

    def __init__(
        self, here: Here, argv: Sequence[str], stdin: int | IO[bytes], stdout: int | IO[bytes]
    ) -> None:
        self._argv = argv
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by kill(); nobody has to read it in time
        try:
            self._process = subprocess.Popen(
                argv, stdin=stdin, stdout=stdout, stderr=self._errors, cwd=here.home, env=here.environment,
                bufsize=0, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            raise DeviceError(f"{argv[0]} does not start", str(error), "see that it is installed") from None

    @property
    def stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def finish(self, timeout: float = STEP_SECONDS) -> Done:
        """See :meth:`Session.finish`."""
        return self.communicate(b"", timeout)

    def communicate(self, given: bytes | None, timeout: float) -> Done:
        """Feed it, and wait for its end."""
        if self._process.stdin is not None and self._process.stdin.closed:
            self._process.stdin = None
        try:
            stdout, _ = self._process.communicate(given, timeout=timeout)
            code = self._process.returncode
            self._errors.seek(0)
            return Done(code if code >= 0 else 128 - code, stdout or b"", self._errors.read())
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"{Path(self._argv[0]).name} did not end", f"it was given up after {timeout:.0f} s",
                "see that the machine is not overloaded, then try again",
            ) from None  # fmt: skip
        finally:
            self.kill()

    def kill(self) -> None:
        """See :meth:`Session.kill`."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._errors.close()
