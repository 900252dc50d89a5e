"""Talking to a device's half of a deployment (``far_side.sh``): one message a step, every refusal explained."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from edgecsi.device.transport import SLOWEST, STEP_SECONDS, Connection, Done
from edgecsi.errors import BundleError, DeviceError, EdgecsiError, UsageError

CHANGED, UNTRUSTED, NOTHING, NOEXEC, LOST, LOCKED, SHORT, WHICH = range(71, 79)
"""Exit codes of ``far_side.sh``."""


class FarSide:
    """The steps, for one place on one device.

    Args:
        connection: the way there.
        place: the bundle's folder there; relative to the user's home unless it begins with ``/`` or ``~/``.
        token: names this deployment in everything it leaves there; hexadecimal digits.
    """

    def __init__(self, connection: Connection, place: str, token: str) -> None:
        self.connection, self.place, self.token = connection, place, token

    def ask(
        self, step: str, *arguments: str, input: bytes | Path | None = None, timeout: float = STEP_SECONDS
    ) -> Done:
        """Send one message; whatever its exit code.

        Raises:
            DeviceError: the connection is gone, or it did not end in time.
        """
        argv = ["sh", "-c", _script(), "edgecsi", step, self.place, self.token, *arguments]
        return self.connection.run(argv, input=input, timeout=timeout)

    def do(
        self, step: str, *arguments: str, input: bytes | Path | None = None, timeout: float = STEP_SECONDS
    ) -> str:
        """Send one message that has to succeed; returns what it printed.

        Raises:
            EdgecsiError: it did not.
        """
        done = self.ask(step, *arguments, input=input, timeout=timeout)
        if done.code != 0:
            raise self.refusal(step, done)
        return done.text

    def send(self, source: bytes | Path, name: str) -> int:
        """Copy one file into the incoming folder; returns its bytes.

        Raises:
            EdgecsiError: it did not get there whole.
        """
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        self.do("receive", name, str(size), input=source, timeout=STEP_SECONDS + size / SLOWEST)
        return size

    def refusal(self, step: str, done: Done) -> EdgecsiError:
        """A step's failure, with what to do about it."""
        where, said = self.connection.name, done.said
        if done.code == UNTRUSTED:
            return BundleError(
                f"{where} refuses the bundle: nobody it trusts has signed it", said,
                "sign it with a listed key (edgecsi sign), or change the list on the device",
            )  # fmt: skip
        if done.code == CHANGED and step.endswith("rollback"):
            return DeviceError(
                f"the previous release on {where} is damaged: it is not activated", said,
                "deploy a bundle again; what is current is as it was",
            )  # fmt: skip
        if done.code == CHANGED:
            return DeviceError(
                f"the bundle did not arrive on {where} as it left: it is not activated", said,
                "deploy again; if it happens again, check the device's storage and the bundle (edgecsi inspect)",
            )  # fmt: skip
        if done.code == WHICH:
            names = done.text.split()
            return UsageError(
                f"{where} has {len(names)} bundles, not one" if names else f"no bundle is deployed on {where}",
                f"they are {', '.join(names)}" if names else f"there is none in {self.place}",
                "name one of them" if names else "deploy one: edgecsi deploy",
            )  # fmt: skip
        if done.code == NOTHING:
            return DeviceError(
                f"{where} has no previous release in {self.place}", said, "deploy the bundle you want"
            )
        if done.code == NOEXEC:
            return DeviceError(
                f"{where} cannot run bundles from {self.place}",
                "the folder's file system is mounted with noexec",
                "choose a folder elsewhere on the device with --root",
            )
        if done.code == LOST:
            return DeviceError(
                f"another deployment took over on {where}", "it waited, and saw no sign of life from this one",
                "see what it deployed (edgecsi device status), then deploy again if need be",
            )  # fmt: skip
        if done.code == SHORT:
            return DeviceError(f"a file did not get to {where} whole", said, "deploy again")
        return DeviceError(f"{where} could not {_DOING.get(step, step)}", said, _fix(said))


_DOING = {
    "lock": "prepare the bundle's folder",
    "survey": "list what it has",
    "stage": "prepare the copy",
    "receive": "take the bundle's files",
    "verify": "verify the bundle",
    "settle": "put the release in its place",
    "activate": "activate the release",
    "prune": "remove old releases",
    "rollback": "go back",
    "only_rollback": "go back",
    "status": "say what is active",
}

_FIXES = {
    "No space left": "free some space there, or choose a folder on another disk with --root",
    "Disk quota exceeded": "free some of the account's quota there, or choose another folder with --root",
    "Read-only file system": "choose a folder that can be written with --root; a card that became read-only is worn out",
    "Permission denied": "choose a folder of the account's own with --root, or give it to the account (chown)",
    "Input/output error": "the device's storage fails: replace its card or disk",
    "File exists": "something else lies where the bundle goes: choose another folder with --root",
    "Not a directory": "something else lies where the bundle goes: choose another folder with --root",
    "not found": "the device lacks a basic tool: install coreutils or BusyBox there",
}


def _fix(said: str) -> str:
    return next(
        (fix for sign, fix in _FIXES.items() if sign in said), "deploy again; what is current is as it was"
    )


@cache
def _script() -> str:
    return resources.files("edgecsi.deploy").joinpath("far_side.sh").read_text(encoding="utf-8")
