"""What one core of this machine can do at best, measured: the yardstick for kernels (`edgecsi bench
--limits`)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecsi.bench.environment import Machine, Validity, judge, machine, snapshot
from edgecsi.bench.native_code import program_output
from edgecsi.disk import cache_dir


@dataclass(frozen=True)
class Limits:
    """One core's limits.

    Attributes:
        machine: which machine.
        read_gbps: bytes of the working set → GB/s reading it again and again (1 GB = 10⁹ bytes).
        fp32_gflops: GFLOP/s of fp32 multiply-adds on registers, a multiply-add being two.
        int8_gops: GOP/s of the CPU's best int8 dot product, counted the same way; 0 if it has none.
        int8_instruction: which that is: ``avx512_vnni``, ``avx_vnni``, ``avx2``, ``sdot``, ``neon`` or empty.
        vector_bytes: width of the vectors used.
        validity: whether the machine was quiet.
    """

    machine: Machine
    read_gbps: dict[int, float]
    fp32_gflops: float
    int8_gops: float
    int8_instruction: str
    vector_bytes: int
    validity: Validity

    def read_rate(self, size: int) -> float:
        """GB/s with which a working set of ``size`` bytes is read again and again.

        A smaller set is never slower than a larger one; between two that were measured, the time of a pass is
        interpolated, as a part of the set may still be found in the nearer cache.
        """
        sizes = sorted(self.read_gbps)
        rates = [max(self.read_gbps[held] for held in sizes[i:]) for i in range(len(sizes))]
        if size <= sizes[0]:
            return rates[0]
        if size >= sizes[-1]:
            return rates[-1]
        passes = [held / rate for held, rate in zip(sizes, rates, strict=True)]
        return size / float(np.interp(size, sizes, passes))


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
    found = _limits(measured, machine(), judge(before, snapshot()))
    with contextlib.suppress(OSError):  # a cache that cannot be written costs a few seconds the next time
        beside = _kept().with_suffix(f".{os.getpid()}.tmp")
        beside.write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")
        os.replace(beside, _kept())
    return found


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


def limits_table(limits: Limits) -> str:
    """The limits as plain text."""
    lines = [
        f"one core of {limits.machine.cpu}, {8 * limits.vector_bytes}-bit vectors ({limits.validity.state})",
        f"  fp32 multiply-add  {limits.fp32_gflops:8.1f} GFLOP/s",
        f"  int8 dot product   {limits.int8_gops:8.1f} GOP/s    {limits.int8_instruction}",
    ]
    lines += [
        f"  read {size >> 10:6d} KiB    {rate:8.1f} GB/s     {size / (1e3 * rate):8.2f} µs a pass"
        for size, rate in sorted(limits.read_gbps.items())
    ]
    return "\n".join([*lines, *(f"  note: {reason}" for reason in limits.validity.reasons)])
