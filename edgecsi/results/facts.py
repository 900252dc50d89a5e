"""The tool's own figures: what a build, a call from Python and a program take."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from edgecsi.bench.environment import judge, machine, snapshot
from edgecsi.bench.measure import timed
from edgecsi.bundle import Loaded, read_bundle, read_golden
from edgecsi.codegen.zig import zig_cc
from edgecsi.device import Local
from edgecsi.errors import EdgecsiError, ToolchainError
from edgecsi.results.bundles import built, plain_build, run_edgecsi, words
from edgecsi.results.files import Json
from edgecsi.results.scenarios import Fact

SMALL, COLD_BYTES = "csinet-cr4+prune90-bsr16x4-int8-dynamic", 8 << 20
"""A network so fast that what is around its calls shows; bytes read before a call with a cold L2."""


def measure_fact(fact: Fact, scratch: Path) -> Json:
    """Measures one of the tool's own figures."""
    known: dict[str, Callable[[Path], list[float]]] = {
        "build_seconds": build_seconds,
        "help_seconds": help_seconds,
        "run_above_c_us": run_above_c_us,
        "run_above_c_cold_us": partial(run_above_c_us, flush_bytes=COLD_BYTES),
        "joint_library_kb": joint_library_kb,
        "program_memory_mb": program_memory_mb,
        "transformer_int16_share": transformer_int16_share,
        "tune_joint_seconds": tune_joint_seconds,
        "rank_of_estimates": lambda scratch: [1 - calibrated(scratch)["rank_after"]],
        "estimates_off": lambda scratch: [1 - calibrated(scratch)["within_after"]],
    }
    stored: Json = {
        "kind": "fact",
        "fact": dataclasses.asdict(fact),
        "machine": dataclasses.asdict(machine()),
    }
    before = snapshot()
    try:
        stored["values"] = known[fact.name](scratch)
        stored["value"] = float(np.median(stored["values"]))
    except EdgecsiError as error:
        stored["error"] = words(error)
    after = snapshot()
    stored["validity"] = dataclasses.asdict(judge(before, after, where=machine()))
    stored["date"] = after.date
    return stored


def build_seconds(scratch: Path) -> list[float]:
    """Three builds of CsiNet CR 1/4 for this machine, each a fresh process, in seconds."""
    return [_seconds(lambda: run_edgecsi(plain_build("csinet-cr4", "timed"), scratch)) for _ in range(3)]


def help_seconds(scratch: Path) -> list[float]:
    """Five times ``edgecsi --help``, in seconds."""
    return [_seconds(lambda: run_edgecsi(["--help"], scratch)) for _ in range(5)]


def run_above_c_us(scratch: Path, flush_bytes: int = 0) -> list[float]:
    """What ``run`` costs above the C call, in µs: differences of medians, measured in turns; ``flush_bytes`` are read
    before every call."""
    folder = scratch / "overhead"
    if not folder.exists():
        run_edgecsi(plain_build(SMALL, folder.name), scratch)
    device, bundle = Local(), read_bundle(folder)
    loaded, x = Loaded(bundle), read_golden(bundle, "encoder")[0][0][0]
    other = np.ones(max(1, flush_bytes // 8), np.uint64)

    def call() -> float:
        if flush_bytes:
            other.sum()
        return float(timed(lambda: loaded.run(x, entry="encoder"), 1)[0])

    differences = []
    for _ in range(100):
        from_python = np.median([call() for _ in range(50)])
        from_c = np.median(device.time(bundle, "encoder", x, 50, flush_bytes=flush_bytes))
        differences.append(float(from_python - from_c) / 1e3)
    return differences


def joint_library_kb(scratch: Path) -> list[float]:
    """Size of the library of the joint CsiNet CR 1/4, all entries of batch 1, in kB (1000 bytes)."""
    return [built("csinet-cr4-joint90-host", scratch).library.stat().st_size / 1e3]


def transformer_int16_share(scratch: Path) -> list[float]:
    """Time of the transformer codec in int16 as a share of that in fp32, in turns."""
    device, codecs = Local(), [built(f"transformer-codec{kind}-host", scratch) for kind in ("", "-int16")]
    x, found = read_golden(codecs[0], "full")[0][0][0], []
    for _ in range(100):
        fp32, int16 = (np.median(device.time(codec, "full", x, 20)) for codec in codecs)
        found.append(float(int16 / fp32))
    return found


def tune_joint_seconds(scratch: Path) -> list[float]:
    """A search of the joint CsiNet CR 1/4 with no records but those that ship, imports included, in seconds."""
    records = scratch / "nothing-known.jsonl"
    records.unlink(missing_ok=True)
    command = ["tune", SMALL, "--target", "host", "--records", records.name]
    return [_seconds(lambda: run_edgecsi(command, scratch))]


def calibrated(scratch: Path) -> Json:
    """What ``edgecsi targets calibrate`` says of its estimates on this machine; measured once."""
    file = scratch / "calibration.json"
    if not file.exists():
        run_edgecsi(["targets", "calibrate", "host", "-o", "calibrated.toml", "--json", file.name], scratch)
    return dict(json.loads(file.read_text()))


def program_memory_mb(scratch: Path) -> list[float]:
    """Peak resident memory of the bundle's own C example, in MB (10⁶ bytes), three runs."""
    bundle, program = built("csinet-cr16-full", scratch), scratch / "example"
    folder, name = bundle.path, bundle.manifest.name
    zig_cc(
        ["-O2", folder / "example" / "main.c", "-L", folder, f"-l{name}", "-lm", "-o", program], cwd=scratch
    )
    return [peak_memory_mb([program, folder / "golden.npz"], folder) for _ in range(3)]


def peak_memory_mb(command: Sequence[str | Path], libraries: Path) -> float:
    """Runs a program that takes at least some 10 ms and watches its peak resident memory, in MB.

    It is read from ``/proc``, again and again until the end: what ``wait4`` tells includes the memory of the
    process that started it.

    Raises:
        ToolchainError: the program failed, or was too quick to be watched.
    """
    started = subprocess.Popen(
        command, env={**os.environ, "LD_LIBRARY_PATH": str(libraries)}, stdout=subprocess.DEVNULL
    )
    status = Path("/proc", str(started.pid), "status")
    peak = 0
    while started.poll() is None:
        with suppress(FileNotFoundError, ProcessLookupError):  # it may end between two looks
            found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
            # Until it has become the program, it is still a copy of this process.
            if found and os.path.realpath(status.with_name("exe")) == str(Path(command[0]).resolve()):
                peak = max(peak, int(found[1]))
        time.sleep(0.001)
    if started.returncode != 0 or peak == 0:
        raise ToolchainError(
            f"{command[0]} could not be watched", f"exit code {started.returncode}", "run it by hand"
        )
    return peak * 1024 / 1e6


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
