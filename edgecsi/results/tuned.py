"""All networks that ship, tuned on this machine: ``python -m edgecsi.results.tuned [--target x86] [--minutes 25]``.

Every network is tuned, equal layers of different networks once, and the whole network timed with its choices and with
the defaults, in turns. Results are kept network by network in docs/results/tuned-<target>.json, so that a run that was
interrupted goes on, and shown in tuned.md beside them (in the folder of this CPU). What most networks have is searched
first, and a network whose choice a later one gave up is timed again. ``--ship`` writes the choices that gain `WORTH` of a
network in place to edgecsi/records.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from edgecsi import disk
from edgecsi import target as targets
from edgecsi.bench.environment import judge, machine, snapshot
from edgecsi.errors import CheckFailed, DeviceError, EdgecsiError, UsageError
from edgecsi.kernels.records import SHIPPED, Record, current, own_file, read_records, write_records
from edgecsi.models import registry
from edgecsi.report.text import number
from edgecsi.results import script
from edgecsi.results.files import Json, own_folder, write_between, write_json
from edgecsi.results.tables import markdown
from edgecsi.results.zoo import computes
from edgecsi.schema import convert
from edgecsi.target import Target
from edgecsi.tune.network import tune
from edgecsi.tune.result import TunedLayer, TuneResult
from edgecsi.tune.work import LoweredEntries, Work, kinds_of, lowered_entries

DOCS = Path("docs")
FOLDER = DOCS / "results"
MARKS = "<!-- tuned -->", "<!-- /tuned -->"
TRIALS = 32
CONFIRMING, LEAST_MINUTES = 15.0, 0.2
"""Seconds that confirming a network takes, before any did; the least time for a search."""
TIMES = 2
"""How often a network is timed in one run: two that share a kind of layer may give up each other's choice in turns."""
WORTH = 0.03
"""A choice that gains less of a network's time does not ship."""
WORTH_COUNTED = 0.01
"""The same of a network's instructions, which have no noise, if all of its choices together gain `WORTH`."""
_ABOUT = """\
Made by `python -m edgecsi.results.tuned`, target by target. Every network that ships is tuned (equal layers of different
networks once), then timed as a whole with the choices and with the defaults, in turns, in one library. Where the choices
together gain no more than noise in place, all are given up: such a network is the default's very bytes, ratio 1."""

_COUNTED = (
    " Counted under QEMU, not measured on a board: a choice has to save instructions and cycles of its hot loop, as "
    "llvm-mca estimates them; layers that wait for memory keep their defaults."
)


@script.in_words
def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = script.parser("tuned", __doc__)
    parser.add_argument("--target", default="host", help="default: host; rpi4 and rpi5 are emulated")
    parser.add_argument("--minutes", type=float, default=25.0, help="for all that is left")
    parser.add_argument(
        "--only",
        nargs="+",
        default=["*"],
        metavar="PATTERN",
        help="networks of these names: 'crnet-*' 'fullycon'",
    )
    parser.add_argument(
        "--again", action="store_true", help="also networks that are done, every layer searched anew"
    )
    parser.add_argument("--records", type=Path, metavar="FILE", help="default: your own")
    parser.add_argument("--ship", action="store_true", help="measure nothing; write edgecsi/records")
    chosen = parser.parse_args(arguments)
    if chosen.ship:
        ship(chosen.records)
    else:
        tune_all(chosen.target, chosen.minutes, chosen.only, chosen.again, chosen.records)
    stored = _stored()
    disk.write(_folder() / "tuned.md", page(stored))
    write_between(DOCS / "how-to" / "tune.md", *MARKS, "\n" + summary(stored, _folder()) + "\n")
    return 0


def networks() -> list[str]:
    """All that ships weights."""
    return sorted(path.stem for path in registry.WEIGHTS.glob("*.safetensors"))


def tune_all(name: str, minutes: float, only: Sequence[str], again: bool, records: Path | None) -> None:
    """Tune what is not done, layers of the most networks first; then confirm again what later networks gave up.

    With `again` every layer is searched anew, as there may be kernels that its last search did not know.
    """
    since = datetime.now(UTC).replace(microsecond=0) if again else True
    target = targets.load(name)
    file = _folder() / f"tuned-{target.id}.json"
    device = "emulate" if target.missing_on_this_cpu() else "local"
    kept: Json = json.loads(file.read_text()) if file.exists() else {}
    done: Json = {} if again else kept.get("networks", {})
    deadline = time.monotonic() + 60 * minutes
    lowered: dict[str, LoweredEntries] = {}
    overhead: list[float] = []
    failed: set[str] = set()
    timed: Counter[str] = Counter()
    while left := [
        n
        for n in networks()
        if any(fnmatchcase(n, pattern) for pattern in only)
        and computes(n, name)
        and n not in failed
        and timed[n] < TIMES
        and not _is_settled(done, n, target, records)
    ]:
        for network in left:
            if network not in lowered:
                sys.stderr.write(f"reading {network}\n")
                lowered[network] = lowered_entries(network, target, None, None, None, None, None, False)
        first = [n for n in left if n not in done] or left
        network, share = next_of({n: kinds_of(lowered[n]) for n in first}, _chosen(done))
        seconds = deadline - time.monotonic()
        searching = seconds - len(left) * (sum(overhead) / len(overhead) if overhead else CONFIRMING)
        if seconds <= 0 or (network in done and searching <= 0):
            sys.stderr.write(f"time is up with {len(left)} networks left; the same command goes on\n")
            return
        began = time.monotonic()
        confirming: list[float] = []

        def note(now: float, total: float, what: str, confirming: list[float] = confirming) -> None:
            if what.startswith("confirming"):
                confirming.append(time.monotonic())

        before = snapshot()
        try:
            found = tune(
                network, name, device=device, trials=TRIALS, minutes=max(share * searching / 60, LEAST_MINUTES),
                records=records, settled=since, lowered=lowered[network], progress=note,
            )  # fmt: skip
        except (CheckFailed, DeviceError, UsageError) as error:
            sys.stderr.write(f"{network} is left out: {error}\n")
            failed.add(network)
            continue
        timed[network] += 1
        overhead.append(time.monotonic() - (confirming or [began])[0])
        tree = asdict(found)
        for layer in tree["layers"]:
            del layer["times"]
        tree["records"] = Path(tree["records"]).name  # where they lie is this machine's
        done[network] = tree | {"validity": asdict(judge(before, snapshot(), where=machine()))}
        write_json(file, {
            "kind": "tuned", "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": asdict(machine()),
            "networks": dict(sorted(done.items())),
        })  # fmt: skip
        ratios = ", ".join(f"{entry} {c.ratio:.3f}" for entry, c in found.entries.items())
        state = "" if found.complete else ", unfinished"
        sys.stderr.write(
            f"{network}: {ratios} ({found.measured} settings, {found.seconds:.0f} s{state}); "
            f"{len(first) - 1} left, {deadline - time.monotonic():.0f} s\n"
        )


def next_of(works: Mapping[str, Mapping[str, Work]], covered: Collection[str]) -> tuple[str, float]:
    """The network whose layers that nobody searched take longest, each counted for all networks that have it; and its
    share of that sum over all."""
    count = Counter(key for layers in works.values() for key in layers)
    costs = {key: work.choice.cost.seconds for layers in works.values() for key, work in layers.items()}
    open_to = {key: seconds * count[key] for key, seconds in costs.items() if key not in covered}
    value = {name: sum(open_to.get(key, 0.0) for key in layers) for name, layers in works.items()}
    best = max(value, key=lambda name: value[name])
    total = sum(open_to.values())
    return best, value[best] / total if total else 1.0


def _is_settled(done: Json, name: str, target: Target, records: Path | None) -> bool:
    """Whether a network was tuned to its end, with choices that still stand: later networks may have given some up."""
    if name not in done or not done[name]["complete"]:
        return False
    found = done[name]
    lines = read_records([records or own_file(target, found["cpu"])]).lines
    latest = {r.workload: (r.kernel, dict(r.knobs)) for r in lines if r.kind == "choice"}
    return all(
        latest.get(layer["workload"]) == (layer["best"]["kernel"], layer["best"]["knobs"])
        for layer in found["layers"]
        if layer["kept"]
    )


def _chosen(done: Json) -> set[str]:
    """The kinds of layers that were searched."""
    return {layer["workload"] for network in done.values() for layer in network["layers"]}


def ship(records: Path | None) -> None:
    """Write the choices that are worth it, of every target that was tuned here."""
    for tree in _stored().values():
        results = [_result(found) for found in tree["networks"].values()]
        wanted = {w for result in results for w in worth_shipping(result)}
        some = results[0]
        lines = current(read_records([records or own_file(targets.load(some.target), some.cpu)]).lines)
        kept = [r for r in lines if _choice_of(r, some) and r.workload in wanted]
        if kept:
            write_records(SHIPPED / f"{some.target}-{some.cpu}.jsonl", sorted(kept, key=lambda r: r.workload))
        sys.stderr.write(f"{some.target}: {len(kept)} records\n")


def worth_shipping(result: TuneResult) -> set[str]:
    """The workloads whose choices gain `WORTH` of their network's time, or `WORTH_COUNTED` of its instructions, the
    network as a whole gaining `WORTH` surely."""
    total = sum(entry.default_us for entry in result.entries.values())
    sure = all(entry.high <= 1 for entry in result.entries.values())
    gains = sum(entry.default_us * (1 - entry.high) for entry in result.entries.values()) > WORTH * total
    least = total * (WORTH if result.means == "measured" else WORTH_COUNTED)
    return {
        layer.workload
        for layer in result.layers
        if layer.kept and sure and gains and (result.means == "measured" or _sure_by_count(layer))
        and (layer.default_us - layer.best_us) * (1 + len(layer.others)) > least
    }  # fmt: skip


def _sure_by_count(layer: TunedLayer) -> bool:
    """Whether both a layer's instructions and the cycles that they are estimated to take fall by `WORTH`: each by itself
    is a poor guess of a board's time."""
    return (
        layer.default_cycles is not None
        and layer.best_cycles is not None
        and layer.best_cycles <= (1 - WORTH) * layer.default_cycles
        and layer.best_us <= (1 - WORTH) * layer.default_us
    )


def _choice_of(record: Record, some: TuneResult) -> bool:
    return record.kind == "choice" and (record.target, record.cpu, record.means) == (
        some.target,
        some.cpu,
        some.means,
    )


def _result(tree: Json) -> TuneResult:
    fields = {key: value for key, value in tree.items() if key != "validity"}
    layers = [layer | {"times": {}} for layer in tree["layers"]]
    return convert(fields | {"layers": layers}, TuneResult, what="a tuned network", error=EdgecsiError)


def geometric_mean(entries: Sequence[Mapping[str, float]]) -> tuple[float, float, float]:
    """Of ratios with 95 % intervals that are independent: the mean and its interval."""
    logs = [math.log(entry["ratio"]) for entry in entries]
    widths = [(math.log(entry["high"]) - math.log(entry["low"])) / 2 for entry in entries]
    middle = sum(logs) / len(logs)
    half = math.sqrt(sum(width**2 for width in widths)) / len(logs)
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def summary(stored: Mapping[str, Json], folder: Path) -> str:
    """What tuning brings, in a few sentences for its how-to."""
    parts = []
    for tree in stored.values():
        found = tree["networks"]
        first = next(iter(found.values()))
        entries = {
            f"{name}, {e}": c for name, network in found.items() for e, c in network["entries"].items()
        }
        middle, low, high = geometric_mean(list(entries.values()))
        most = min(entries, key=lambda name: entries[name]["ratio"])
        over = f"geometric mean over {len(entries)} entries of {len(found)} networks"
        if first["means"] == "counted":
            said = f", under emulation: {middle:.3f} of the defaults' instructions ({over})"
        else:
            said = f" on {tree['machine']['cpu']}: {middle:.3f} of the defaults' time ({low:.3f} to {high:.3f}, {over})"
        parts.append(f"For {first['target']}{said}, most for {most}: {entries[most]['ratio']:.3f}.")
    link = f"../{folder.relative_to(DOCS).as_posix()}/tuned.md"
    return "\n".join([*parts, f"Entry by entry: [what tuning brings]({link})."])


def _stored() -> dict[str, Json]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(_folder().glob("tuned-*.json"))}


def _folder() -> Path:
    return own_folder(FOLDER, machine().cpu)


def page(stored: Mapping[str, Json]) -> str:
    """docs/results/tuned.md."""
    parts = [
        "# What tuning brings",
        _ABOUT,
    ]
    for tree in stored.values():
        found = tree["networks"]
        first = next(iter(found.values()))
        counted = first["means"] == "counted"
        unit, scale = ("1000 instructions", 1e3) if counted else ("µs", 1.0)
        entries = [entry for network in found.values() for entry in network["entries"].values()]
        middle, low, high = geometric_mean(entries)
        worst = max(entry["high"] for entry in entries)
        states = [network["validity"]["state"] for network in found.values()]
        valid = _COUNTED if counted else f" Of {len(states)} measurements {states.count('valid')} are valid."
        if short := sum(not network["complete"] for network in found.values()):
            valid += f" In {short} of them the search was cut short."
        head = (
            "network",
            "entry",
            f"default, {unit}",
            f"tuned, {unit}",
            "ratio",
            "95 % interval",
            "kinds of layers changed",
        )
        rows = [
            (name, entry, number(scale * c["default_us"]), number(scale * c["tuned_us"]), f"{c['ratio']:.3f}",
             f"{c['low']:.3f} to {c['high']:.3f}", f"{sum(layer['kept'] for layer in network['layers'])}")
            for name, network in found.items()
            for entry, c in network["entries"].items()
        ]  # fmt: skip
        parts += [
            f"## {first['target']} ({first['cpu']}, {first['means']})",
            (
                f"{tree['machine']['cpu']}, {tree['date'][:10]}. Geometric mean of tuned over default: **{middle:.3f}** "
                f"({low:.3f} to {high:.3f}) over {len(entries)} entries of {len(found)} networks; no interval goes "
                f"beyond {worst:.3f}.{valid}"
            ),
            markdown([head, *rows]),
        ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
