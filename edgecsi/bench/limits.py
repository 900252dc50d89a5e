"""What one core of this machine can do at best, measured: the yardstick for kernels (`edgecsi bench
--limits`)."""

from __future__ import annotations

import json
from dataclasses import dataclass

from edgecsi.bench.environment import Machine, Validity, judge, machine, snapshot
from edgecsi.bench.native_code import program_output


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

    def read_us(self, size: int) -> float:
        """Microseconds one pass over ``size`` bytes takes at least, with the rate of the next larger
        working set."""
        rate = next((rate for held, rate in sorted(self.read_gbps.items()) if held >= size), None)
        return size / (1e3 * (rate if rate is not None else self.read_gbps[max(self.read_gbps)]))


def measure_limits() -> Limits:
    """Measures this machine's limits; takes a few seconds (and a few more to compile, the first time).

    Raises:
        ToolchainError: the measuring program cannot be built or run.
    """
    before = snapshot()
    measured = json.loads(program_output("limits.c"))
    after = snapshot()
    return Limits(
        machine=machine(),
        read_gbps={int(size): rate for size, rate in measured["read_gbps"].items()},
        fp32_gflops=measured["fp32_gflops"],
        int8_gops=measured["int8_gops"],
        int8_instruction=measured["int8_instruction"],
        vector_bytes=measured["vector_bytes"],
        validity=judge(before, after),
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
