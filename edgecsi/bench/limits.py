"""What one core of this machine can do at best, measured: the yardstick for kernels (`edgecsi bench
--limits`)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

from edgecsi import disk
from edgecsi.bench.environment import judge, machine, snapshot
from edgecsi.bench.native_code import built, program_output
from edgecsi.bench.result import Limits, Machine, Validity
from edgecsi.device import Device
from edgecsi.disk import cache_dir
from edgecsi.errors import EdgecsiError
from edgecsi.target import Target


def known_limits() -> Limits:
    """This machine's limits, measured when they are needed for the first time and kept in the user's cache.

    Raises:
        ToolchainError: as :func:`measure_limits`.
    """
    return kept_limits() or measure_limits()


def kept_limits() -> Limits | None:
    """This machine's limits if they were measured before; nothing is measured now."""
    here = machine()
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        tree = json.loads(_kept().read_text(encoding="utf-8"))
        if tree["machine"]["cpu"] == here.cpu:
            validity = Validity(tree["validity"]["state"], tuple(tree["validity"]["reasons"]))
            return _limits(tree, here, validity)
    return None


def measure_limits() -> Limits:
    """Measures this machine's limits and keeps them for :func:`known_limits`; takes a few seconds (and a few
    more to compile, the first time).

    Raises:
        ToolchainError: the measuring program cannot be built or run.
    """
    before = snapshot()
    measured = json.loads(program_output("limits.c"))
    found = _limits(measured, machine(), judge(before, snapshot(), where=machine()))
    # a cache that cannot be written costs a few seconds the next time
    with contextlib.suppress(EdgecsiError):
        disk.write(_kept(), json.dumps(dataclasses.asdict(found)))
    return found


def limits_of(device: Device, target: Target) -> Limits:
    """Another device's limits, measured there; takes some ten seconds.

    Args:
        device: where.
        target: how to compile for it.

    Raises:
        DeviceError: it cannot be reached, or the program does not run there.
        ToolchainError: the measuring program cannot be compiled.
    """
    program, state = built("limits.c", target), device.state()
    where, before = machine(state), snapshot(state)
    measured = json.loads(device.run_program(program))
    after = snapshot(device.state())
    after = dataclasses.replace(after, own=after.clock - before.clock)  # it keeps one core busy all the time
    return _limits(measured, where, judge(before, after, where=where, emulated=device.info().emulated))


def _kept() -> Path:
    return cache_dir() / "bench" / "limits.json"


def _limits(measured: dict[str, Any], where: Machine, validity: Validity) -> Limits:
    return Limits(
        machine=where,
        read_gbps={int(size): float(rate) for size, rate in measured["read_gbps"].items()},
        fp32_gflops=float(measured["fp32_gflops"]),
        int8_gops=float(measured["int8_gops"]),
        int8_instruction=str(measured["int8_instruction"]),
        vector_bytes=int(measured["vector_bytes"]),
        validity=validity,
    )
