"""What the measurement finds where there is nothing to find: a library against itself, and against the C program of
its own bundle."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgecsi import disk
from edgecsi.bench import measure, statistics
from edgecsi.bench.behaviour import SelfCheck
from edgecsi.bench.measure import Progress
from edgecsi.bench.result import Protocol
from edgecsi.bench.statistics import Ratio
from edgecsi.bundle import Bundle, Loaded, read_golden
from edgecsi.codegen.zig import zig_cc
from edgecsi.device import Device
from edgecsi.errors import ToolchainError

TURNS = 5
"""Of the C call and the program, one after the other."""


def self_check(
    bundle: Bundle, entry: str, device: Device, protocol: Protocol, progress: Progress | None = None
) -> SelfCheck:
    """The library as two engines, in turns by the same protocol; then the C call and the bundle's program, in turns.

    Args:
        bundle: built for this machine.
        entry: which one.
        device: ``local``.
        protocol: how much.
        progress: told how far it is.
    """
    ratio = against_itself(bundle, entry, protocol, progress)
    samples = [array[:1].reshape(t.shape) for array, t in zip(read_golden(bundle, entry)[0], bundle.entry(entry).inputs,
                                                              strict=True)]  # fmt: skip
    turns: list[tuple[float, float]] = []
    own = 0.0
    with disk.scratch(runs=True) as scratch:
        try:
            binary = compiled_program(bundle, scratch)
        except ToolchainError:
            binary = None
        for _ in range(TURNS):
            own = float(np.median(device.time(bundle, entry, samples, protocol.samples))) / 1e3
            if binary is not None:
                turns.append((own, program_median(bundle, binary, entry)))
    c_call, program = middle_turn(turns) if turns else (own, None)
    return SelfCheck(ratio, c_call, program)


def middle_turn(turns: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The turn whose quotient is the median: what disturbed a turn disturbed both of its figures."""
    return sorted(turns, key=lambda turn: turn[1] / turn[0])[len(turns) // 2]


def against_itself(bundle: Bundle, entry: str, protocol: Protocol, progress: Progress | None = None) -> Ratio:
    """Time of a library over its own, loaded twice and measured as two engines; 1 but for what the measurement
    makes of it."""
    x = [array[0] for array in read_golden(bundle, entry)[0]]
    one, other = Loaded(bundle), Loaded(bundle)
    series = measure.interleave(
        {"once": lambda: one.run(*x, entry=entry), "again": lambda: other.run(*x, entry=entry)},
        protocol,
        progress,
    )
    first, second = ([turn.astype(np.float64) for turn in series[name].rounds] for name in ("once", "again"))
    return statistics.ratio(first, second)


def compiled_program(bundle: Bundle, folder: Path) -> Path:
    """The bundle's ``example/main.c``, compiled as its first lines say.

    Raises:
        ToolchainError: it cannot be compiled.
    """
    binary = folder / "main"
    source = bundle.path.resolve() / "example" / "main.c"
    library = bundle.path.resolve()
    zig_cc(["-O2", source, "-L", library, f"-l{bundle.manifest.name}", "-lm", "-o", binary], cwd=folder)
    return binary


def program_median(bundle: Bundle, binary: Path, entry: str) -> float:
    """Runs the program: the median in µs that it prints for an entry.

    Raises:
        ToolchainError: it failed, or prints no time.
    """
    folder = bundle.path.resolve()
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    try:
        done = subprocess.run(
            [binary, folder / "golden.npz"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        found = re.search(rf"^{re.escape(entry)}\s+([\d.]+) us ", done.stdout, re.MULTILINE)
        if found is None:
            raise ValueError(f"it prints no time of {entry}")
        return float(found[1])
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ToolchainError(
            f"the example program of {bundle.manifest.name} failed", str(error), "run `edgecsi doctor`"
        ) from None
