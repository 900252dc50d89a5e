"""This machine as a device to deploy to: the same steps, in a shell of its own instead of over SSH."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from edgecsi.device.transport import STEP_SECONDS, Done, LocalProcess, Session
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
            session = self._process(argv, source, sink)
            return session.communicate(None if isinstance(input, Path) else input or b"", timeout)

    def start(self, argv: Sequence[str]) -> Session:
        """See :meth:`Connection.start`."""
        return self._process(argv, subprocess.PIPE, subprocess.PIPE)

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

    def _process(self, argv: Sequence[str], stdin: int | IO[bytes], stdout: int | IO[bytes]) -> LocalProcess:
        name = Path(argv[0]).name
        try:
            return LocalProcess(argv, name, "here", stdin, stdout, cwd=self.home, env=self.environment)
        except OSError as error:
            raise DeviceError(f"{argv[0]} does not start", str(error), "see that it is installed") from None
