"""What the measurement finds where there is nothing to find: a library against itself, and against the C program of
its own bundle."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgecsi import disk
from edgecsi.bench import measure, statistics
from edgecsi.bench.behaviour import SelfCheck
from edgecsi.bench.peers import Array
from edgecsi.bench.statistics import Ratio
from edgecsi.bundle import Bundle, Loaded, TargetInfo, read_golden
from edgecsi.codegen.zig import zig_cc
from edgecsi.device import Device
from edgecsi.device.protocol import MeasuringProtocol
from edgecsi.errors import DeviceError, ToolchainError
from edgecsi.progress import Progress

TURNS = 5
"""Of the C call and the program, one after the other."""
WARM_CALLS = 50
"""That are not counted, where every turn is a process."""


def self_check(
    bundle: Bundle, entry: str, device: Device, protocol: MeasuringProtocol, progress: Progress | None = None
) -> SelfCheck:
    """The library as two engines, in turns by the same protocol; then the C call and the bundle's program, in turns.

    Args:
        bundle: built for the device.
        entry: which one.
        device: ``local``, or one over SSH: there the two are processes, started anew for every turn.
        protocol: how much.
        progress: told how far it is.
    """
    samples = [array[:1].reshape(t.shape) for array, t in zip(read_golden(bundle, entry)[0], bundle.entry(entry).inputs,
                                                              strict=True)]  # fmt: skip
    if device.spec == "local":
        ratio = against_itself(bundle, entry, protocol, progress)
    else:
        ratio = turns_against_itself(bundle, entry, device, samples, protocol, progress)
    turns: list[tuple[float, float]] = []
    own = 0.0
    with disk.scratch(runs=True) as scratch:
        try:
            binary = compiled_program(
                bundle, scratch, None if device.spec == "local" else bundle.manifest.target
            )
        except ToolchainError:
            binary = None
        for _ in range(TURNS):
            own = float(np.median(device.time(bundle, entry, samples, protocol.samples))) / 1e3
            if binary is not None:
                turns.append((own, program_median(bundle, binary, entry, device)))
    c_call, program = middle_turn(turns) if turns else (own, None)
    return SelfCheck(ratio, c_call, program)


def middle_turn(turns: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The turn whose quotient is the median: what disturbed a turn disturbed both of its figures."""
    return sorted(turns, key=lambda turn: turn[1] / turn[0])[len(turns) // 2]


def against_itself(
    bundle: Bundle, entry: str, protocol: MeasuringProtocol, progress: Progress | None = None
) -> Ratio:
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


def turns_against_itself(
    bundle: Bundle,
    entry: str,
    device: Device,
    samples: Sequence[Array],
    protocol: MeasuringProtocol,
    progress: Progress | None = None,
) -> Ratio:
    """The same on another device: A B B A, each turn a process of its own."""
    calls, turns = [protocol.samples] * 2, 6 if protocol.quick else 20
    one, other = measure.c_calls_in_turns(
        [bundle, bundle], entry, device, samples, calls, turns, WARM_CALLS, progress
    )
    return statistics.ratio(one, other)


def compiled_program(bundle: Bundle, folder: Path, target: TargetInfo | None = None) -> Path:
    """The bundle's ``example/main.c``, compiled as its first lines say; for this machine, or for a target.

    Raises:
        ToolchainError: it cannot be compiled.
    """
    binary = folder / "main"
    source = bundle.path.resolve() / "example" / "main.c"
    library = bundle.path.resolve()
    triple = "" if target is None else f"{target.arch}-linux-gnu.{target.glibc}"
    zig_cc(
        ["-O2", source, "-L", library, f"-l{bundle.manifest.name}", "-lm", "-o", binary],
        triple=triple,
        cwd=folder,
    )
    return binary


def program_median(bundle: Bundle, binary: Path, entry: str, device: Device) -> float:
    """Runs the program on a device: the median in µs that it prints for an entry.

    Raises:
        DeviceError: it failed, or prints no time.
    """
    golden = bundle.path.resolve() / "golden.npz"
    said = device.run_program(binary, [golden], library=bundle.library.resolve(), timeout=300)
    found = re.search(rf"^{re.escape(entry)}\s+([\d.]+) us ", said, re.MULTILINE)
    if found is None:
        raise DeviceError(
            f"the example program of {bundle.manifest.name} failed", f"it prints no time of {entry}",
            "run `edgecsi doctor`",
        )  # fmt: skip
    return float(found[1])
