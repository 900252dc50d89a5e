"""One deployment at a time on a device: a lock that no crash, reboot or change of a clock leaves behind for good.

The lock is politeness, not safety: every step is safe beside any other (own folders, atomic renames), and each
looks first whether the lock is still its own. What decides that an owner is gone never reads a wall clock:

- the device started anew since (its boot id is another one);
- the owner was a process of this computer, and that process is gone or has given up;
- for as long as the owner itself promised, nothing on the device changed.
"""

from __future__ import annotations

import getpass
import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

from edgecsi.deploy.far_side import LOCKED, FarSide
from edgecsi.errors import DeviceError

_POLL_SECONDS = 0.5
_MAX_LEASE = 600.0
_ours: set[str] = set()
"""Tokens of this process's deployments that go on."""


@dataclass(frozen=True)
class Holder:
    """Who has the lock: the text ``TOKEN BOOT SECONDS MACHINE PID START WHO`` of the link."""

    token: str
    lease: float
    machine: str
    pid: int
    start: str
    who: str

    @staticmethod
    def parse(text: str) -> Holder:
        """Whatever stands there; what makes no sense has no owner that lives, and a short lease."""
        token, _, lease, machine, pid, start, who = (text.split(" ", 6) + [""] * 7)[:7]
        seconds = float(lease) if re.fullmatch(r"\d{1,6}(\.\d+)?", lease) else 0.0
        number = int(pid) if re.fullmatch(r"\d{1,9}", pid) else 0
        return Holder(token, min(seconds, _MAX_LEASE), machine, number, start, _printable(who) or "somebody")

    def is_gone(self) -> bool:
        """Whether it was a process of this computer that is no more, or ours, and has given up."""
        if self.machine != _machine():
            return False
        if self.pid == os.getpid() and self.start == _start(self.pid):
            return self.token not in _ours
        return self.start != _start(self.pid)


def acquire(far: FarSide, lease: float, wait: float, step: str = "lock") -> str:
    """Take the lock.

    Args:
        far: where.
        lease: after how many seconds without a change others may think that we are gone.
        wait: how many seconds to wait for somebody who is at work.
        step: what takes it, and may do more in the same message.

    Returns:
        What the step printed.

    Raises:
        DeviceError: somebody else deploys there, or the device refused.
    """
    owner = f"{_machine()} {os.getpid()} {_start(os.getpid())} {_who()}"
    begin = unchanged_since = time.monotonic()
    seen, before = "-", ""
    _ours.add(far.token)
    try:
        while True:
            done = far.ask(step, owner, f"{lease:g}", seen)
            if done.code == 0:
                return done.text
            if done.code != LOCKED:
                raise far.refusal(step, done)
            now = time.monotonic()
            if done.text != before:
                before, unchanged_since = done.text, now
            holder = Holder.parse(done.text.removeprefix("held ").splitlines()[0])
            if holder.is_gone() or now - unchanged_since > holder.lease:
                seen = holder.token
                continue
            if now - begin > max(wait, holder.lease + 2):
                raise DeviceError(
                    f"{holder.who} deploys to {far.connection.name} right now", f"waited for {now - begin:.0f} s",
                    "try again when that has ended",
                )  # fmt: skip
            time.sleep(_POLL_SECONDS)
    except BaseException:
        _ours.discard(far.token)
        raise


def release(far: FarSide) -> None:
    """Give the lock back. Without a connection it stays, and is known to be nobody's.

    Raises:
        EdgecsiError: the device cannot be reached, or somebody else has the lock.
    """
    _ours.discard(far.token)
    far.do("unlock")


def abandon(far: FarSide) -> None:
    """Say, on this side only, that the owner of the lock has given up."""
    _ours.discard(far.token)


def _machine() -> str:
    """This computer, as long as it runs, and the name space its process numbers belong to."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return "unknown"


def _start(pid: int) -> str:
    """When a process began, in ticks since the computer did; ``-`` if there is none."""
    try:
        return (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()[19]
        )
    except (OSError, IndexError):
        return "-"


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return _printable(f"{user}@{platform.node()}, process {os.getpid()}")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in text)[:200]
