"""A target file for a board that was measured: what ``edgecsi device probe --write-target`` writes."""

from __future__ import annotations

import json
from pathlib import Path

from edgecsi import target as targets
from edgecsi.bench.result import Limits
from edgecsi.device.probe import Probe
from edgecsi.errors import DeviceError, TargetError


def write_target(path: Path, probe: Probe, limits: Limits) -> targets.Target:
    """Write a target file with the board's own caches and limits, and read it back.

    Args:
        path: ends in ``.toml``; its name is the target's.
        probe: the board.
        limits: measured there.

    Raises:
        DeviceError: no target that ships fits the board, so there is nothing to extend; or its CPU is emulated.
        TargetError: the file's name cannot be a target's.
    """
    if probe.emulated:
        raise DeviceError(
            f"no target file can be written for {probe.name}", "its CPU is emulated, so its limits mean nothing",
            f"build for {probe.target}" if probe.target else "use a real board",
        )  # fmt: skip
    if probe.target is None:
        raise DeviceError(
            f"no target file can be written for {probe.name}", "no target that ships fits its CPU",
            "write one by hand: docs/how-to/add-a-target.md",
        )  # fmt: skip
    base = targets.load(probe.target)
    caches = probe.cache_bytes
    l1, l2, l3 = caches.get(1, base.l1_bytes), caches.get(2, base.l2_bytes), caches.get(3, 0)
    largest = max(limits.read_gbps)
    values: dict[str, object] = {
        "extends": probe.target,
        "description": f"{probe.board}, measured",
        "l1_bytes": l1,
        "l2_bytes": l2,
        "l1_gbps": limits.read_rate(l1 // 2),
        "l2_gbps": limits.read_rate(l2 // 2),
        "l3_bytes": l3,
        "l3_gbps": limits.read_rate(min(4 * l2, largest)),
        "memory_gbps": limits.read_rate(largest) if 0 < 2 * l3 <= largest else 0.0,
        "peak_gmacs_f32": limits.fp32_gflops / 2,
        "cores": probe.cores,
    }
    lines = [
        "# Written by `edgecsi device probe --write-target`: one core's limits as they were measured there."
    ]
    lines += [f"{key} = {_toml(value)}" for key, value in values.items() if value]
    if path.suffix != ".toml":
        raise TargetError(f"{path} is no name for a target file", "such names end in .toml", "give FILE.toml")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return targets.load(str(path.resolve()))


def _toml(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if value >= 1 else f"{value:.3f}"
    return json.dumps(value, ensure_ascii=False)
