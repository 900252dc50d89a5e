"""This machine as a device to deploy to: the same steps, in a shell of its own instead of over SSH."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from edgecsi.device.transport import Connection, Session
from edgecsi.errors import DeviceError


class Here(Connection):
    """A :class:`edgecsi.device.transport.Connection` to where we are.

    Args:
        home: where relative places begin.
        environment: more variables for what is started.
    """

    name = "this machine"

    def __init__(self, home: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        self.home = home or Path.home()
        self.environment = {**os.environ, **(environment or {}), "HOME": str(self.home)}

    def close(self) -> None:
        """Nothing stays open."""

    def process(self, argv: Sequence[str], stdin: int | IO[bytes], stdout: int | IO[bytes]) -> Session:
        """See :meth:`Connection.process`."""
        name = Path(argv[0]).name
        try:
            return Session(argv, name, "here", stdin, stdout, cwd=self.home, env=self.environment)
        except OSError as error:
            raise DeviceError(f"{argv[0]} does not start", str(error), "see that it is installed") from None
