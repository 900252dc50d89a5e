"""What Linux says about a machine: the files that describe it, read here or by a shell there.

Nothing but the CPU's name is interpreted: ``bench/environment.py`` and ``probe.py`` do that, for this machine and for
others alike.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

State = Mapping[str, str]
"""Path without the first ``/`` → content; and under names of their own, what commands say."""

_CPU = "sys/devices/system/cpu"
FILES = (
    "proc/cpuinfo",
    "proc/device-tree/model",
    "proc/loadavg",
    "proc/meminfo",
    "proc/stat",
    "proc/uptime",
    f"{_CPU}/cpu0/cache/index[0-9]/level",
    f"{_CPU}/cpu0/cache/index[0-9]/type",
    f"{_CPU}/cpu0/cache/index[0-9]/size",
    f"{_CPU}/cpu[0-9]*/cpufreq/scaling_cur_freq",
    f"{_CPU}/cpu0/cpufreq/scaling_governor",
    f"{_CPU}/cpu0/cpufreq/scaling_max_freq",
    f"{_CPU}/cpu0/cpufreq/cpuinfo_max_freq",
    "sys/class/thermal/thermal_zone*/temp",
)
THROTTLED = "vcgencmd get_throttled"
THROTTLE_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
"""Raspberry Pi, ``vcgencmd get_throttled``: bits 0-3 say what is so now, bits 16-19 what happened since
boot."""
SCRIPT = f"""
say() {{ printf '%s\\0' "$1"; shift; "$@" 2>/dev/null | tr -d '\\000'; printf '\\0'; }}
for file in {" ".join(f"/{file}" for file in FILES)}; do
    [ -r "$file" ] && say "${{file#/}}" cat "$file"
done
say cores sh -c 'getconf _NPROCESSORS_ONLN || nproc'
say uname uname -srm
command -v vcgencmd >/dev/null && say '{THROTTLED}' vcgencmd get_throttled
"""
"""Writes the state of the machine whose shell runs it; :func:`parse` reads it."""


def read(root: Path = Path("/")) -> dict[str, str]:
    """The state of this machine, or of one whose files lie below ``root``; takes about a millisecond."""
    state = {
        "uname": "{0.sysname} {0.release} {0.machine}".format(os.uname()),
        "cores": str(os.cpu_count() or 1),
    }
    for pattern in FILES:
        for path in sorted(root.glob(pattern)):
            try:
                state[str(path.relative_to(root))] = path.read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
    if shutil.which("vcgencmd"):
        try:
            said = subprocess.run(THROTTLED.split(), capture_output=True, text=True, timeout=5, check=False)
            state[THROTTLED] = said.stdout
        except (OSError, subprocess.TimeoutExpired):
            pass
    return state


def parse(written: bytes) -> dict[str, str]:
    """What :data:`SCRIPT` wrote."""
    parts = written.decode(errors="replace").split("\0")
    return dict(zip(parts[::2], parts[1::2], strict=False))


def cpu_name(state: State) -> str:
    """The board's name (ARM kernels name no CPU) or the CPU's, the same however the state was read:
    ``Raspberry Pi 4 Model B Rev 1.4``, ``AMD EPYC (family 25)``; empty where Linux names neither."""
    cpuinfo = state.get("proc/cpuinfo", "")
    fields = dict(re.findall(r"^(model name|cpu family|Model)\s*:\s*(.*\S)\s*$", cpuinfo, re.MULTILINE))
    if board := state.get("proc/device-tree/model", "").strip("\x00 \n") or fields.get("Model"):
        return str(board)
    name, family = fields.get("model name", ""), fields.get("cpu family", "")
    return f"{name} (family {family})" if name and family else name


def process_state(pid: int) -> tuple[str, float]:
    """Linux's letter for a process's state, and the CPU seconds it has had; ``X`` where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return "X", 0.0
    return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
