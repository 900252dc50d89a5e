"""A board in the user's words: what it is, how it feels, and which target to build for."""

from __future__ import annotations

import re

from edgecsi import cpu
from edgecsi.device.board import Board


def cpu_of(board: Board) -> str:
    """Its name, or its CPU's: ``Raspberry Pi 4 Model B Rev 1.4``, ``AMD EPYC``, ``cortex-a72 (QEMU)``."""
    name = board.state.get("proc/device-tree/model", "").strip()
    if board.emulated:
        return f"{cpu.arm_name(board.cpu.get('implementer'), board.cpu.get('part')) or board.arch} (QEMU)"
    if not name and (
        found := re.search(r"^model name\s*:\s*(.+)$", board.state.get("proc/cpuinfo", ""), re.MULTILINE)
    ):
        name = found[1]
    return name or cpu.arm_name(board.cpu.get("implementer"), board.cpu.get("part")) or board.arch
