"""What another machine is, and whether bundles can run there: asked of its shell, before anything is copied."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

from edgecsi.bundle import Bundle
from edgecsi.device import state as states
from edgecsi.device.state import State
from edgecsi.device.toolchain import GLIBC
from edgecsi.device.transport import Connection
from edgecsi.errors import DeviceError

ARCHES = ("x86_64", "aarch64")

_SCRIPT = f"""
{states.SCRIPT}
say libc getconf GNU_LIBC_VERSION
say ldd sh -c 'ldd --version 2>&1 | head -n 1'
say loader sh -c 'for f in /lib*/ld-linux-*.so.* /lib/*/libc.so.6 /lib*/libc.so.6; do
    [ -x "$f" ] && "$f" --version && break; done'
say os sh -c '. /etc/os-release && echo "$PRETTY_NAME"'
say page getconf PAGESIZE
say shell od -An -tx1 -N5 "$(command -v sh)"
say folder sh -c 'mkdir -p "$1" && cd "$1" && pwd -P' sh "$1"
say free sh -c 'df -Pk "$1" | tail -n 1' sh "$1"
try() {{ printf '#!/bin/sh\\necho runs\\n' >"$1" && echo written && chmod 700 "$1" && "$1"; rm -f "$1"; }}
say try try "$1/try.$$"
"""


@dataclass(frozen=True)
class Trouble:
    """Something that prevents bundles from running, and its cure, each in a line."""

    what: str
    cure: str


@dataclass(frozen=True)
class Board:
    """A machine, as its shell describes it.

    Attributes:
        name: how messages call it.
        folder: where our files go, absolute; empty if it cannot be made.
        state: what Linux says.
        answers: what the commands of the probe said, by their names there.
        cpu: what our runner said about the CPU once it was there; empty before.
    """

    name: str
    folder: str
    state: State
    answers: State
    cpu: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def arch(self) -> str:
        """The kernel's architecture: ``x86_64``, ``aarch64``, ``armv7l``, ..."""
        return self.state.get("uname", "").strip().rpartition(" ")[2]

    @property
    def bits(self) -> int | None:
        """32 or 64: of the programs there, whatever the kernel is. None if it cannot be told."""
        return {"01": 32, "02": 64}.get("".join(self.answers.get("shell", "").split()[4:5]))

    @property
    def glibc(self) -> str:
        """The version of the C library, for example ``2.36``; empty if it is no glibc."""
        # BusyBox has neither getconf nor ldd, but the loader and the library can be asked themselves.
        said = "\n".join(self.answers.get(name, "") for name in ("libc", "ldd", "loader"))
        found = re.search(r"^(?:glibc|ldd \(.*\)) (\d+\.\d+)|release version (\d+\.\d+)", said, re.MULTILINE)
        return (found[1] or found[2]) if found else ""

    @property
    def free_bytes(self) -> int | None:
        """Space left where our files go."""
        fields = self.answers.get("free", "").split()
        return int(fields[3]) * 1024 if len(fields) > 3 and fields[3].isdecimal() else None

    @property
    def emulated(self) -> bool:
        """Whether QEMU plays this machine's CPU."""
        return bool(self.cpu.get("emulated", False))

    @property
    def features(self) -> frozenset[str]:
        """The CPU's features as ``/proc/cpuinfo`` names them."""
        if "features" in self.cpu:
            return frozenset(self.cpu["features"])
        found = re.search(
            r"^(?:flags|Features)\s*:\s*(.*)$", self.state.get("proc/cpuinfo", ""), re.MULTILINE
        )
        return frozenset(found[1].split()) if found else frozenset()

    def with_cpu(self, said: str) -> Board:
        """The same board, with what ``remote info`` printed.

        Raises:
            DeviceError: that is not what it prints.
        """
        try:
            return dataclasses.replace(self, cpu=dict(json.loads(said)))
        except (ValueError, TypeError):
            raise DeviceError(
                f"the runner does not work on {self.name}",
                f"it printed {said[:80]!r}",
                "set the device up again",
            ) from None

    def troubles(self) -> list[Trouble]:
        """Why no bundle can run there; empty if one can."""
        found: list[Trouble] = []
        if self.arch == "aarch64" and self.bits == 32:
            found.append(
                Trouble(
                    "its kernel has 64 bits, but its programs have 32",
                    "install the 64-bit Raspberry Pi OS: bundles are 64-bit programs",
                )
            )
        elif self.arch not in ARCHES:
            found.append(
                Trouble(
                    f"its processor is {self.arch or 'unknown'}", f"bundles run on {' and '.join(ARCHES)}"
                )
            )
        if not self.glibc:
            found.append(
                Trouble("it has no glibc", "use a system with glibc, such as Debian or Raspberry Pi OS")
            )
        elif _version(self.glibc) < _version(GLIBC):
            found.append(
                Trouble(f"its glibc is {self.glibc}", f"install a system with glibc {GLIBC} or newer")
            )
        tried = self.answers.get("try", "").split()
        other = "name another folder: ssh://HOST/FOLDER"
        full = self.free_bytes is not None and self.free_bytes < 1 << 16
        if self.folder and "written" not in tried and full:
            found.append(Trouble(f"the disk of its folder {self.folder} is full", "free some space there"))
        elif not self.folder or "written" not in tried:
            found.append(Trouble(f"its folder {self.folder or '~/.edgecsi'} cannot be written", other))
        elif "runs" not in tried:
            found.append(
                Trouble(f"programs in {self.folder} may not run (the file system is mounted noexec)", other)
            )
        return found

    def check(self, bundle: Bundle | None = None, space: int = 0) -> None:
        """Refuse what could not work.

        Args:
            bundle: what is to run there.
            space: bytes that are to be copied.

        Raises:
            DeviceError: the first trouble; another processor; a missing feature, by name; an older glibc than
                the bundle's; no space.
        """
        if troubles := self.troubles():
            raise DeviceError(f"bundles cannot run on {self.name}", troubles[0].what, troubles[0].cure)
        if self.free_bytes is not None and space > self.free_bytes:
            raise DeviceError(
                f"{self.name} has too little space",
                f"{space:,} bytes are to be copied, {self.free_bytes:,} are left in {self.folder}",
                f"free some, or remove what edgecsi keeps there: edgecsi device clean {self.name}",
            )
        if bundle is None:
            return
        target, what = bundle.manifest.target, f"{bundle.path} cannot run on {self.name}"
        again = "build it for this device: see `edgecsi device probe`"
        if target.arch != self.arch:
            raise DeviceError(
                what, f"it is built for {target.arch} ({target.id}), {self.name} is {self.arch}", again
            )
        if missing := [feature for feature in target.features if feature not in self.features]:
            raise DeviceError(
                what,
                f"it is built for {target.id}, which needs {', '.join(missing)}; this CPU lacks them",
                again,
            )
        if _version(self.glibc) < _version(target.glibc):
            raise DeviceError(what, f"it needs glibc {target.glibc}, there is {self.glibc}", again)


def probe(connection: Connection, folder: str) -> Board:
    """Ask a machine what it is; copies nothing, but makes the folder.

    Args:
        connection: the way there.
        folder: where our files go.

    Raises:
        DeviceError: there is no way to it, or its shell does not understand us.
    """
    done = connection.run(["sh", "-c", _SCRIPT, "probe", folder])
    answers = states.parse(done.stdout)
    if "try" not in answers:
        raise DeviceError(
            f"{connection.name} does not answer as Linux does",
            done.said,
            "edgecsi needs Linux with a POSIX shell there",
        )
    return Board(connection.name, answers.get("folder", "").strip(), answers, answers)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
