"""This machine as a device to deploy to: the same steps, in a shell of its own instead of over SSH."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgecsi.device.transport import STEP_SECONDS, Done
from edgecsi.errors import DeviceError


class Here:
    """A :class:`edgecsi.deploy.far_side.Remote` without a way to go.

    Args:
        home: where relative places begin.
        environment: more variables for what is started.
    """

    name = "this machine"

    def __init__(self, home: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        self.home = home or Path.home()
        self.environment = {**os.environ, **(environment or {}), "HOME": str(self.home)}

    def run(
        self, argv: Sequence[str], *, input: bytes | Path | None = None, timeout: float = STEP_SECONDS
    ) -> Done:
        """See :meth:`edgecsi.deploy.far_side.Remote.run`.

        Raises:
            DeviceError: the program is missing, or did not end in time.
        """
        with contextlib.ExitStack() as files:
            stdin = files.enter_context(input.open("rb")) if isinstance(input, Path) else subprocess.PIPE
            try:
                process = subprocess.Popen(
                    argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.home,
                    env=self.environment, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise DeviceError(
                    f"{argv[0]} does not start", str(error.strerror), "see that it is installed"
                ) from None
            try:
                stdout, stderr = process.communicate(
                    None if isinstance(input, Path) else input or b"", timeout=timeout
                )
            except subprocess.TimeoutExpired:
                raise DeviceError(
                    f"{argv[0]} did not end on {self.name}", f"it was given up after {timeout:.0f} s",
                    "see that the machine is not overloaded, then try again",
                ) from None  # fmt: skip
            finally:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.communicate()
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        return Done(code, stdout, stderr)
