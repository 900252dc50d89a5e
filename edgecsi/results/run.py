"""Measures everything in scenarios.py and writes docs/results.md: ``python -m edgecsi.results.run``.

Every step is a command of edgecsi that a reader can repeat; the commands stand in the raw results, one JSON a
scenario in docs/results. The table is made from whatever raw results there are, so parts can be measured
anew.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from edgecsi import disk
from edgecsi.bench.environment import machine, other_load, snapshot
from edgecsi.bench.limits import measure_limits
from edgecsi.bench.peers import find_peers
from edgecsi.bench.result import Result, read_result
from edgecsi.channels.shipped import test_set
from edgecsi.errors import DeviceError, EdgecsiError
from edgecsi.report.text import limits_table
from edgecsi.results import script
from edgecsi.results.bars import code_digest, stale
from edgecsi.results.bundles import (
    CALIBRATION,
    build_all,
    build_command,
    library_of,
    run_edgecsi,
    slug,
    source,
    without_weights,
    words,
)
from edgecsi.results.cycles import estimate_cycles
from edgecsi.results.facts import measure_fact
from edgecsi.results.files import (
    KINDS,
    Json,
    leave_own_records_out,
    own_folder,
    page_of,
    read_all,
    write_json,
)
from edgecsi.results.page import outcome, page
from edgecsi.results.readme import write_readme
from edgecsi.results.scenarios import FACTS, SCENARIOS, Scenario

QUIET = 0.05
"""Cores' worth of other work with which measuring may begin."""
KEPT_SAMPLES = 2000
QUANTILES = (0.0, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0)
BINS = 100
CALIBRATION_SAMPLES = 64
"""The beginning of the shipped test set. Finding int8 ranges with all of it takes a minute a network, and
changes no latency."""


@script.in_words
def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = script.parser("run", __doc__, "results.md", times=True)
    parser.add_argument("--quick", action="store_true", help="the cut-down protocol; the report says so")
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="for every engine and scenario, at least"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="scenarios and facts whose name has it")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table again")
    parser.add_argument(
        "--recheck",
        action="store_true",
        help="measure nothing; rows whose library is made today byte for byte stand",
    )
    chosen = parser.parse_args(arguments)
    folder = own_folder(chosen.docs / "results", machine().cpu)
    if chosen.recheck:
        recheck(folder, chosen.only, script.say)
    elif not chosen.table:
        if not chosen.anyway:
            require_quiet()
        folder.mkdir(parents=True, exist_ok=True)
        measure_all(folder, chosen.only, None if chosen.quick else chosen.seconds, script.say)
    write_pages(chosen.docs)
    return 0


def write_pages(docs: Path) -> None:
    """The pages of all kinds of CPU, and the figures of README.md, from the raw results there are."""
    first = docs / "results"
    folders = [first, *(sub for sub in sorted(first.glob("*")) if sub.is_dir())]
    kinds = {folder: read_all(folder) for folder in folders}
    for folder, stored in kinds.items():
        if stored or folder == first:
            disk.write(page_of(docs, folder), page(stored))
    write_readme(docs.parent / "README.md", list(kinds.values()))


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


def recheck(folder: Path, only: str, say: Callable[[str], None]) -> None:
    """Builds again what was measured with other code: a row whose library is made byte for byte is one of today's code.

    Args:
        folder: with the raw results.
        only: part of the names.
        say: told what is being done.
    """
    stored = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    old = {
        entry["scenario"]["name"]: (path, entry)
        for path, entry in stored.items()
        if entry.get("kind") == "scenario" and only in path.stem and "library" in entry and stale(entry)
    }
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in old]
    with disk.scratch(runs=True) as scratch:
        np.save(scratch / CALIBRATION, test_set(CALIBRATION_SAMPLES))
        build_all(scenarios, scratch, say)
        for scenario in scenarios:
            path, entry = old[scenario.name]
            same = library_of(scenario, scratch) == entry["library"]
            say(f"{scenario.name}: {'the same library' if same else 'another library, to be measured again'}")
            if same:
                write_json(path, entry | {"code": code_digest()})


def measure_scenario(scenario: Scenario, scratch: Path, seconds: float | None) -> Json:
    """Measures a scenario; :func:`build_all` has built its bundle."""
    model, _, _ = source(scenario)
    bundle = slug(scenario)
    command = ["bench", bundle, "--entry", scenario.entry, "--device", scenario.device]
    if against := [peer.name for peer in find_peers(scenario.against) if peer.available() is None]:
        command += ["--against", ",".join(against), "--model", model]
    if scenario.batch:
        command += ["--batch", str(scenario.batch), "--threads", str(scenario.threads)]
    command += ["--quick"] if seconds is None else ["--seconds", f"{seconds:g}"]
    command += ["--json", "result.json"]
    random = ":" in model or without_weights(model)
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
        return (
            stored
            | {"library": library_of(scenario, scratch)}
            | reduced(read_result(scratch / "result.json"))
        )
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


def _limits(_scratch: Path) -> Json:
    limits = measure_limits()
    return {"kind": "limits", **dataclasses.asdict(limits), "text": limits_table(limits)}


def _cycles(scratch: Path) -> Json:
    scenario = next(s for s in SCENARIOS if s.name.startswith("instructions-csinet-cr4-joint90"))
    model, recipe, calibration = source(scenario)
    cycles = estimate_cycles(model, recipe, str(scratch / CALIBRATION) if calibration else "")
    return {"kind": "cycles", **dataclasses.asdict(cycles)}


def _kind(name: str) -> str:
    return name if name in KINDS else "fact" if any(fact.name == name for fact in FACTS) else "scenario"


if __name__ == "__main__":
    leave_own_records_out()
    sys.exit(main())
