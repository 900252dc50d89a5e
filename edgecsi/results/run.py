"""Measures everything in scenarios.py and writes docs/results.md: ``python -m edgecsi.results.run``.

Every step is a command of edgecsi that a reader can repeat; the commands stand in the raw results, one JSON a
scenario in docs/results. The table is made from whatever raw results there are, so parts can be measured
anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgecsi import disk
from edgecsi.bench.environment import judge, machine, other_load, snapshot
from edgecsi.bench.limits import measure_limits
from edgecsi.bench.measure import timed
from edgecsi.bench.result import Result, read_result
from edgecsi.bundle import Bundle, Loaded, read_bundle, read_golden
from edgecsi.channels.shipped import test_set
from edgecsi.codegen.zig import zig_cc
from edgecsi.device import Local
from edgecsi.errors import DeviceError, EdgecsiError, ToolchainError
from edgecsi.models import registry
from edgecsi.report.text import limits_table
from edgecsi.results.bars import code_digest
from edgecsi.results.cycles import estimate_cycles
from edgecsi.results.files import KINDS, own_folder, page_of, read_all, write_json
from edgecsi.results.page import outcome, page
from edgecsi.results.readme import write_readme
from edgecsi.results.scenarios import FACTS, SCENARIOS, Fact, Scenario

QUIET = 0.05
"""Cores' worth of other work with which measuring may begin."""
KEPT_SAMPLES = 2000
QUANTILES = (0.0, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0)
BINS = 100
COMMAND_TIMEOUT = 600.0
SMALL, COLD_BYTES = "csinet-cr4+prune90-bsr16x4-int8-dynamic", 8 << 20
"""A network so fast that what is around its calls shows; bytes read before a call with a cold L2."""
BUILDERS = 2
"""Builds at a time, before anything is timed."""
EDGECSI = [sys.executable, "-m", "edgecsi"]
CALIBRATION, CALIBRATION_SAMPLES = "calibration.npy", 64
"""The beginning of the shipped test set. Finding int8 ranges with all of it takes a minute a network, and
changes no latency."""
Json = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m edgecsi.results.run", description=__doc__)
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder that holds results.md")
    parser.add_argument("--quick", action="store_true", help="the cut-down protocol; the report says so")
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="for every engine and scenario, at least"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="scenarios and facts whose name has it")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table again")
    parser.add_argument(
        "--anyway", action="store_true", help="measure on a busy machine; results are suspect"
    )
    chosen = parser.parse_args(arguments)
    folder = own_folder(chosen.docs / "results", machine().cpu)
    try:
        if not chosen.table:
            if not chosen.anyway:
                require_quiet()
            folder.mkdir(parents=True, exist_ok=True)
            measure_all(folder, chosen.only, None if chosen.quick else chosen.seconds, _say)
        write_pages(chosen.docs)
    except EdgecsiError as error:
        _say(f"error: {error}")
        return error.exit_code
    return 0


def write_pages(docs: Path) -> None:
    """The pages of all kinds of CPU, and the figures of README.md, from the raw results there are."""
    first = docs / "results"
    for folder in (first, *(sub for sub in sorted(first.glob("*")) if sub.is_dir())):
        if (stored := read_all(folder)) or folder == first:
            disk.write(page_of(docs, folder), page(stored))
    write_readme(docs.parent / "README.md", read_all(first))


def require_quiet(seconds: float = 2.0) -> None:
    """Watches the machine for a moment.

    Raises:
        DeviceError: other processes work on it.
    """
    before = snapshot()
    time.sleep(seconds)
    load = other_load(before, snapshot())
    if load is not None and load > QUIET:
        raise DeviceError(
            f"the machine is busy: other processes use {load:.2f} of a core",
            "latencies measured now would be theirs as much as ours",
            "stop them, or measure with --anyway: every result will be marked suspect",
        )


def measure_all(folder: Path, only: str, seconds: float | None, say: Callable[[str], None]) -> None:
    """Measures the scenarios and facts whose name contains ``only``.

    Everything is built first, two builds at a time; what is timed then has the machine to itself. Whatever
    fails is kept as the result of that item, and the rest goes on.

    Args:
        folder: for the raw results.
        only: part of the names.
        seconds: for every engine and scenario; None for the quick protocol.
        say: told what is being done.
    """
    scenarios = [scenario for scenario in SCENARIOS if only in scenario.name]
    items: dict[str, Callable[[Path], Json]] = {}
    if only in "limits":  # first: layers are held against them
        items["limits"] = _limits
    items |= {scenario.name: partial(measure_scenario, scenario, seconds=seconds) for scenario in scenarios}
    items |= {fact.name: partial(measure_fact, fact) for fact in FACTS if only in fact.name}
    if only in "cycles":
        items["cycles"] = _cycles
    begin = time.monotonic()
    with disk.scratch(runs=True) as scratch:
        np.save(scratch / CALIBRATION, test_set(CALIBRATION_SAMPLES))
        build_all(scenarios, scratch, say)
        for number_done, (name, item) in enumerate(items.items(), 1):
            say(f"{number_done}/{len(items)} {name}, {time.monotonic() - begin:.0f} s ...")
            try:
                stored = item(scratch)
            except Exception as error:  # one item must not cost the others; what it was stands in the page
                stored = {"kind": _kind(name), "error": words(error)}
            stored["code"] = code_digest()
            write_json(folder / f"{name}.json", stored)
            say(f"  {stored['error'][1] or stored['error'][0] if 'error' in stored else outcome(stored)}")


def build_all(scenarios: Sequence[Scenario], scratch: Path, say: Callable[[str], None]) -> None:
    """Builds the bundles of all scenarios, each once, into ``scratch``; a failure is kept beside them."""
    commands = {slug(scenario): build_command(scenario) for scenario in scenarios}
    say(f"building {len(commands)} bundles ...")

    def build(name: str, command: list[str]) -> None:
        begin = time.monotonic()
        try:
            run_edgecsi(command, scratch, threads=1)
        except Exception as error:  # told by the scenarios that need this bundle
            write_json(scratch / f"{name}.error", {"error": words(error)})
        say(f"  {name}, {time.monotonic() - begin:.0f} s")

    with ThreadPoolExecutor(BUILDERS) as pool:
        list(pool.map(build, commands, commands.values()))


def build_command(scenario: Scenario) -> list[str]:
    """The arguments of ``edgecsi`` that build a scenario's bundle."""
    model, recipe, calibration = source(scenario)
    command = ["build", model, "--target", scenario.target, "-o", slug(scenario)]
    command += ["--recipe", recipe] if recipe else []
    command += ["--calib", CALIBRATION] if calibration else []
    command += ["--batch", str(scenario.batch)] if scenario.batch else []
    return command + (["--random-weights"] if _without_weights(model) else [])


def source(scenario: Scenario) -> tuple[str, str, str]:
    """(model, recipe, calibration): the shipped compressed network if there is one."""
    if scenario.shipped and (registry.WEIGHTS / f"{scenario.shipped}.safetensors").is_file():
        return scenario.shipped, "", ""
    return scenario.model, scenario.recipe, scenario.calibration


def measure_scenario(scenario: Scenario, scratch: Path, seconds: float | None) -> Json:
    """Measures a scenario; :func:`build_all` has built its bundle."""
    model, _, _ = source(scenario)
    bundle = slug(scenario)
    command = ["bench", bundle, "--entry", scenario.entry, "--device", scenario.device]
    if scenario.against:
        command += ["--against", ",".join(scenario.against), "--model", model]
    if scenario.batch:
        command += ["--batch", str(scenario.batch), "--threads", str(scenario.threads)]
    command += ["--quick"] if seconds is None else ["--seconds", f"{seconds:g}"]
    command += ["--json", "result.json"]
    random = ":" in model or _without_weights(model)
    stored: Json = {
        "kind": "scenario",
        "scenario": dataclasses.asdict(scenario),
        "quick": seconds is None,
        "weights": "random" if random else "trained",
        "commands": [" ".join(["edgecsi", *part]) for part in (build_command(scenario), command)],
    }
    failed = scratch / f"{bundle}.error"
    if failed.exists():
        stored.update(json.loads(failed.read_text(encoding="utf-8")))
        return stored
    try:
        run_edgecsi(command, scratch)
        return stored | reduced(read_result(scratch / "result.json"))
    except EdgecsiError as error:
        return stored | {"error": words(error)}


def reduced(result: Result) -> Json:
    """A result without its megabytes: every engine keeps quantiles, a histogram and a share of its samples.

    All engines together keep at most :data:`KEPT_SAMPLES` samples, evenly spaced in time.
    """
    tree = dataclasses.asdict(result)
    share = KEPT_SAMPLES // max(1, 2 * len(result.engines))
    for engine, plain in zip(result.engines, tree["engines"], strict=True):
        del plain["rounds"]
        for name in ("samples", "cold_samples"):
            plain[name] = distribution(getattr(engine, name), share)
    return {"result": tree}


def distribution(samples: Sequence[int], keep: int) -> Json:
    """Quantiles, histogram (logarithmic bins) and up to ``keep`` evenly spaced samples of times in ns."""
    values = np.asarray(samples, dtype=np.int64)
    low, high = int(values.min()), int(values.max())
    edges = np.unique(np.rint(np.geomspace(max(low, 1), high + 1, BINS + 1)).astype(np.int64))
    counts = np.histogram(values, bins=np.concatenate([edges[:-1], [high + 1]]))[0]
    chosen = np.unique(np.linspace(0, values.size - 1, min(keep, values.size)).astype(np.int64))
    return {
        "count": int(values.size),
        "quantiles_ns": {f"{q:g}": int(np.percentile(values, q, method="inverted_cdf")) for q in QUANTILES},
        "histogram": {"edges_ns": [*edges[:-1].tolist(), high + 1], "counts": counts.tolist()},
        "kept_ns": values[chosen].tolist(),
    }


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
    return [_seconds(lambda: run_edgecsi(_plain_build("csinet-cr4", "timed"), scratch)) for _ in range(3)]


def help_seconds(scratch: Path) -> list[float]:
    """Five times ``edgecsi --help``, in seconds."""
    return [_seconds(lambda: run_edgecsi(["--help"], scratch)) for _ in range(5)]


def run_above_c_us(scratch: Path, flush_bytes: int = 0) -> list[float]:
    """What ``run`` costs above the C call, in µs: differences of medians, measured in turns; ``flush_bytes`` are read
    before every call."""
    folder = scratch / "overhead"
    if not folder.exists():
        run_edgecsi(_plain_build(SMALL, folder.name), scratch)
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
    return [_built("csinet-cr4-joint90-host", scratch).library.stat().st_size / 1e3]


def transformer_int16_share(scratch: Path) -> list[float]:
    """Time of the transformer codec in int16 as a share of that in fp32, in turns."""
    device, codecs = Local(), [_built(f"transformer-codec{kind}-host", scratch) for kind in ("", "-int16")]
    x, found = read_golden(codecs[0], "full")[0][0][0], []
    for _ in range(100):
        fp32, int16 = (np.median(device.time(codec, "full", x, 20)) for codec in codecs)
        found.append(float(int16 / fp32))
    return found


def program_memory_mb(scratch: Path) -> list[float]:
    """Peak resident memory of the bundle's own C example, in MB (10⁶ bytes), three runs."""
    bundle, program = _built("csinet-cr16-full", scratch), scratch / "example"
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


def run_edgecsi(arguments: Sequence[str], folder: Path, threads: int | None = None) -> None:
    """Runs one edgecsi command in a fresh process; PyTorch keeps to ``threads`` in it, if given.

    Raises:
        ToolchainError: it failed; its own words are the reason.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    try:
        done = subprocess.run(
            [*EDGECSI, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise ToolchainError(
            f"edgecsi {' '.join(arguments)} did not end", f"after {COMMAND_TIMEOUT:.0f} s", "run it by hand"
        ) from None
    if done.returncode != 0:
        said = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.strip()][-3:]
        raise ToolchainError(f"edgecsi {' '.join(arguments)} failed", " / ".join(said), "run it by hand")


def _limits(_scratch: Path) -> Json:
    limits = measure_limits()
    return {"kind": "limits", **dataclasses.asdict(limits), "text": limits_table(limits)}


def _cycles(scratch: Path) -> Json:
    scenario = next(s for s in SCENARIOS if s.name.startswith("instructions-csinet-cr4-joint90"))
    model, recipe, calibration = source(scenario)
    cycles = estimate_cycles(model, recipe, str(scratch / CALIBRATION) if calibration else "")
    return {"kind": "cycles", **dataclasses.asdict(cycles)}


def _built(name: str, scratch: Path) -> Bundle:
    """The bundle of a scenario."""
    scenario = next(s for s in SCENARIOS if s.name == name)
    folder = scratch / slug(scenario)
    if not folder.exists():
        run_edgecsi(build_command(scenario), scratch)
    return read_bundle(folder)


def _plain_build(model: str, out: str) -> list[str]:
    random = ["--random-weights"] if _without_weights(model) else []
    return ["build", model, "--target", "host", "-o", out, *random]


def _without_weights(model: str) -> bool:
    """Whether this is a network of the zoo, and ships without weights."""
    return ":" not in model and "+" not in model and registry.find(model).weights is None


def slug(scenario: Scenario) -> str:
    """The folder of a scenario's bundle; scenarios that differ only in the entry share it."""
    model, recipe, _ = source(scenario)
    name = re.sub(r"[^A-Za-z0-9]+", "-", model.rpartition(":")[2])
    batch = f"batch{scenario.batch}" if scenario.batch else ""
    return "-".join(part for part in (name, recipe, scenario.target, batch) if part)


def _kind(name: str) -> str:
    return name if name in KINDS else "fact" if any(fact.name == name for fact in FACTS) else "scenario"


def words(error: Exception) -> list[str]:
    """An error as raw results keep it: what, why, fix."""
    if isinstance(error, EdgecsiError):
        return [error.what, error.why, error.fix]
    return [type(error).__name__, str(error) or type(error).__name__, "this is a bug of edgecsi"]


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
