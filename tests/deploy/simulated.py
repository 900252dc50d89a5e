"""A device in a folder of this machine, that fails as planned.

The device's half of a deployment runs for real, in bash, whose DEBUG trap lets a plan strike before any single
command. A reboot ends everything, changes the boot id and empties every file that was not written through.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgecsi.deploy import Here
from edgecsi.device.transport import STEP_SECONDS, Done
from edgecsi.errors import ConnectionLost, DeviceError

PREAMBLE = r"""
set -o posix
cat() { case "${1-}" in */boot_id) command cat "$SIMULATED_BOOT" ;; *) command cat "$@" ;; esac; }
strike() {
    simulated_commands=$((simulated_commands + 1))
    echo $simulated_commands >"$SIMULATED_COUNT"
    [ $simulated_commands != "$SIMULATED_KILL_AT" ] || kill -9 $$
}
simulated_commands=0
set -o functrace
trap strike DEBUG
"""

TOOL = r"""#!/bin/sh
# Stands for one of the device's tools: notes what is written through, and fails when its time has come.
tool=${0##*/}
if [ "$tool" = "$SIMULATED_TOOL" ] && [ "${1-}" != --help ]; then
    uses=0
    [ ! -f "$SIMULATED_USES" ] || read -r uses <"$SIMULATED_USES"
    uses=$((uses + 1))
    echo $uses >"$SIMULATED_USES"
    if [ $uses = "$SIMULATED_USE" ]; then
        [ "$tool" != cat ] || head -c 100
        echo "$tool: $SIMULATED_ERROR" >&2
        exit 1
    fi
fi
if [ "$tool" = sync ] && [ "${1-}" != --help ]; then # only noted: the real thing takes long
    stat -c %i "$@" >>"$SIMULATED_SYNCED"
    exit 0
fi
exec "/usr/bin/$tool" "$@"
"""


_PROBED: dict[tuple[str, ...], tuple[bytes, Done]] = {}


@dataclass(frozen=True)
class Plan:
    """What goes wrong, and at which message (counted from 1; 0: never).

    Attributes:
        drop_before: the message does not get there. drop_after: its answer does not get back.
        cut: of what is sent, half gets there, then the connection is gone.
        kill_at: (message, command): the device's shell is killed before it runs that command.
        reboot_at: the same, and everything that was not written through is lost.
        flip: one byte of what the message sends arrives as another.
        tool: (name, use, what it says): that use of that tool fails.
        die_after: this process is killed.
        hang: the message takes for ever.
    """

    drop_before: int = 0
    drop_after: int = 0
    cut: int = 0
    kill_at: tuple[int, int] = (0, 0)
    reboot_at: tuple[int, int] = (0, 0)
    flip: int = 0
    tool: tuple[str, int, str] = ("", 0, "")
    die_after: int = 0
    hang: int = 0


class Simulated(Here):
    """The device whose folder is ``folder``; see :class:`Plan`."""

    name = "simulated"

    def __init__(self, folder: Path, plan: Plan = Plan()) -> None:
        self.plan, self.messages, self.struck, self.steps = plan, 0, False, list[str]()
        self.state = folder.with_name(f"{folder.name}.state")
        self.state.mkdir(exist_ok=True)
        folder.mkdir(exist_ok=True)
        tools = self.state / "tools"
        if not tools.is_dir():
            tools.mkdir()
            (self.state / "boot").write_text("boot-1\n")
            (self.state / "synced").touch()
        self.faulty_use().unlink(missing_ok=True)
        tool, use, says = plan.tool
        for name in {tool, "sync"} - {""}:
            (tools / name).write_text(TOOL)
            (tools / name).chmod(0o755)
        super().__init__(
            folder,
            {
                "PATH": f"{tools}:{os.environ['PATH']}",
                "SIMULATED_BOOT": str(self.state / "boot"),
                "SIMULATED_COUNT": str(self.state / "count"),
                "SIMULATED_SYNCED": str(self.state / "synced"),
                "SIMULATED_USES": str(self.faulty_use()),
                "SIMULATED_TOOL": tool,
                "SIMULATED_USE": str(use),
                "SIMULATED_ERROR": says,
                "SIMULATED_KILL_AT": "0",
            },
        )

    def faulty_use(self) -> Path:
        return self.state / "uses"

    @property
    def commands(self) -> int:
        """How many commands the last message ran."""
        return int((self.state / "count").read_text())

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | Path | None = None,
        output: Path | None = None,
        timeout: float = STEP_SECONDS,
    ) -> Done:
        self.messages += 1
        self.steps.append(step(argv))
        now, plan = self.messages, self.plan
        if now == plan.drop_before:
            raise self._lost()
        if now == plan.hang:
            self.struck = True
            raise DeviceError("sh did not end on simulated", "it was given up after 60 s", "try again")
        data = input.read_bytes() if isinstance(input, Path) else input or b""
        if now == plan.cut:
            data = data[: len(data) // 2]
        if now == plan.flip and data:
            data = data[:7] + bytes([data[7] ^ 16]) + data[8:]
            self.struck = True
        for message, command in (plan.kill_at, plan.reboot_at):
            if message == now:
                self.environment["SIMULATED_KILL_AT"] = str(command)
        script = ["bash", "-c", PREAMBLE + argv[2], *argv[3:]] if argv[0] == "sh" else list(argv)
        if self.steps[-1] == "probe" and not plan.tool[0] and (self.home / argv[4]).is_dir():
            done = self._probed(script, timeout)
        else:
            done = super().run(script, input=data, output=output, timeout=timeout)
        self.environment["SIMULATED_KILL_AT"] = "0"
        if now == plan.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if now in (plan.cut, plan.drop_after):
            raise self._lost()
        if now == plan.reboot_at[0] and done.code == 137:
            self.reboot()
            raise self._lost()
        self.struck |= done.code == 137 or (bool(plan.tool[0]) and self._used() >= plan.tool[1])
        return done

    def _probed(self, script: list[str], timeout: float) -> Done:
        """What this machine is takes half of a deployment to find out, and is asked once: only the folder is another."""
        home = os.fsencode(self.home.resolve())
        if tuple(script[3:]) not in _PROBED:
            _PROBED[tuple(script[3:])] = home, super().run(script, timeout=timeout)
        before, done = _PROBED[tuple(script[3:])]
        return replace(done, stdout=done.stdout.replace(before, home))

    def reboot(self) -> None:
        """What was not written through is lost."""
        boot = self.state / "boot"
        boot.write_text(f"boot-{int(boot.read_text().rpartition('-')[2]) + 1}\n")
        synced = set((self.state / "synced").read_text().split())
        for path in self.home.rglob("*"):
            if path.is_file() and not path.is_symlink() and str(path.stat().st_ino) not in synced:
                path.write_bytes(b"")

    def _used(self) -> int:
        return int(self.faulty_use().read_text() or 0) if self.faulty_use().exists() else 0

    def _lost(self) -> ConnectionLost:
        self.struck = True
        return ConnectionLost("the connection to simulated was lost", "it went away", "try again")


def step(argv: Sequence[str]) -> str:
    """What a message is for."""
    if argv[0] == "sh":
        return argv[4] if argv[3] == "edgecsi" else argv[3]
    return argv[4] if argv[1] == "run" else argv[1]


def copy(source: Path, target: Path) -> Path:
    """A second device like the first, its history included."""
    for suffix in ("", ".state"):
        shutil.copytree(
            source.with_name(f"{source.name}{suffix}"),
            target.with_name(f"{target.name}{suffix}"),
            symlinks=True,
        )
    # The copies have other inodes; all of it was written through.
    synced = target.with_name(f"{target.name}.state") / "synced"
    synced.write_text("".join(f"{path.stat().st_ino}\n" for path in target.rglob("*") if path.is_file()))
    return target
