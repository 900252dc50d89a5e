"""docs/results.md, made from the raw results that results.py keeps."""

from __future__ import annotations

from collections.abc import Mapping

from edgecsi.bench.result import Machine
from edgecsi.report.text import number
from edgecsi.results.bars import (
    CLOSE,
    LEAST,
    PEERS,
    doubts,
    figure,
    held,
    open_bars,
    program_difference,
    reached,
    stale,
    to_peer,
)
from edgecsi.results.files import Json
from edgecsi.results.scenarios import FACTS, KERNELS, MAIN, NARROW, PAPERS, SCENARIOS, Scenario
from edgecsi.results.tables import before_table, cycles_table, knobs_table, markdown, shipped_table, why_not
from edgecsi.verdict import OTHER_ENGINE

PAGE = """\
# Results

Written by `python -m edgecsi.results.run` from the raw results in [results/](results/). How it is
measured, and what valid, suspect and invalid mean, is in [how-we-measure.md](how-we-measure.md). Every
raw result holds the commands that repeat it.

{about}

## Against ONNX Runtime

One interleaved run a row, one thread, batch 1, Python to Python. The ratio is edgecsi's time over ONNX
Runtime's fp32 time for the same model, with its 95 % interval; below 1, edgecsi is faster. *Cold L2* is
edgecsi's time, and its ratio to ONNX Runtime's, where other code has filled the L2 cache between two calls.
In brackets behind edgecsi's time: what of it is the C call, the rest being Python's; and an *estimate* of what this core
needs for these layers in their present format, reading the weights or multiplying as fast as our own loops do
(below). It is no bound: another format, or a kernel that reads better than the loop, may take less.

A bar is reached by a valid measurement of today's code only, in one run with its peer, by the whole protocol.

{main}

## All engines, fp32

Medians in µs, all engines in one interleaved run (cold L2 in brackets).

{engines}

## Compressed networks

The same, with zeros and int8, built without tuning. ONNX Runtime still runs the dense fp32 model, as zeros
gain it nothing. `x86` is the portable AVX2 build. *Random* weights have the shapes and the zeros of the
compressed network, but have learned nothing; latency does not depend on that.

{kernels}

### Against OpenVINO in bf16

The same network, the other engine in sixteen bits too: its answers are less exact, *off by* so much of the largest
output. `python -m edgecsi.results.run --only openvino-bf16` measures it.

{narrow}

### Networks of other papers

Written from the papers' descriptions (`edgecsi/results/papers/networks.py`), with random weights: attention, grouped
convolutions, codebooks and bits. `python -m edgecsi.results.run --only papers-` measures them.

{papers}

### Bars not reached, and why

Times as shares of ONNX Runtime's; the estimate is explained above, *Python* is what `run` takes around the C call.

{missed}

### What searching the knobs would add

The layers of each row timed alone, one after the other, with their default knobs and with the best of up to 24 settings
(`python -m edgecsi.results.knobs`). Kernels that are far from their estimate and gain nothing here lack ideas, not knobs.

{knobs}

## Against an earlier commit

C calls of two libraries in turns, A B B A: the one built by the code of a commit, the other by today's, both with the
packages that are installed now. *Today* names what is another recipe now. `python -m edgecsi.results.before COMMIT`
measures it.

{before}

## Shipped compressed networks

Whether every compressed network that ships answers on every target what PyTorch's simulation of it answers:
NMSE in dB on samples of the shipped test set, bit error rate of a detector on random transmissions (samples at
each of six SNRs, the mean of all). Libraries that this machine's CPU cannot run were run under QEMU with exactly
the target's CPU. The bar is a difference of {tolerance} dB. *Equal* are the entries whose outputs were those of
PyTorch bit for bit; behind them the largest difference of any other entry, relative to its largest output.
`python -m edgecsi.results.shipped` verifies what has changed since.

{shipped}

## Batches

Samples a second: edgecsi with batches of 64 on each of two threads, ONNX Runtime fp32 with batches of 1, 8
and 64 on one and two threads, in one interleaved run. The ratio is to ONNX Runtime's best; above 1, edgecsi
is faster.

{batches}

## Instructions on the Raspberry Pi's CPUs

Counted exactly under QEMU user mode, per inference. A proxy, no latency: it says nothing of memory, and
on a board bytes are time.

{instructions}

### Cycles, estimated

{cycles}

## The tool itself

{facts}

## What this core can do at best

{limits}
"""


def page(stored: Mapping[str, Json]) -> str:
    """The page, from the raw results by name; what is not there is said to be not measured."""
    return PAGE.format(
        about=_about(stored),
        main=_ratios(stored, MAIN),
        engines=_engines(stored),
        kernels=_ratios(stored, KERNELS),
        narrow=_ratios(stored, NARROW, "openvino-bf16"),
        papers=_ratios(stored, PAPERS),
        missed=_missed(stored),
        knobs=knobs_table(stored.get("knobs")),
        shipped=shipped_table(stored.get("shipped")),
        before=before_table(stored.get("before")),
        tolerance=f"{stored.get('shipped', {}).get('tolerance_db', 0.01):g}",
        batches=_batches(stored),
        instructions=_instructions(stored),
        cycles=cycles_table(stored.get("cycles")),
        facts=_facts(stored),
        limits=_limits(stored.get("limits")),
    )


def outcome(stored: Json) -> str:
    """A result in a few words."""
    if stored["kind"] == "fact":
        return f"{number(stored['value'])} {stored['fact']['unit']}"
    if stored["kind"] != "scenario":
        return "done"
    result = stored["result"]
    if result["throughput"] is not None:
        rate = result["throughput"]["rates"][0]["median"]
        gains = [f", {gain['ratio']['ratio']:.2f} × {gain['to']}" for gain in result["throughput"]["gains"]]
        return f"{rate:,.0f} samples/s{''.join(gains)}"
    if result["instructions"] is not None:
        return f"{result['instructions'] / 1e6:.3f} M instructions"
    found = to_peer(stored, stored["scenario"].get("peer", "onnxruntime"))
    own = result["engines"][0]["warm"]["median"]
    return f"{number(own)} µs" + (f", ratio {found['warm']['ratio']:.3f}" if found else "")


def _about(stored: Mapping[str, Json]) -> str:
    """Machine, versions and dates; several machines are all named."""
    dates = sorted({_date(entry) for entry in stored.values()} - {""})
    machines = {_machine_line(entry) for entry in stored.values()} - {""}
    versions = sorted(
        {
            f"{engine['name']} {engine['version']}"
            for entry in stored.values()
            if "result" in entry
            for engine in entry["result"]["engines"]
        }
    )
    quick = any(entry.get("quick") for entry in stored.values())
    lines = [f"- Measured: {' to '.join(dict.fromkeys([dates[0], dates[-1]])) if dates else 'not yet'}"]
    lines += [f"- Machine: {line}" for line in sorted(machines)]
    lines += [f"- Engines: {', '.join(versions)}"] if versions else []
    seconds = sorted(
        {
            entry["result"]["protocol"]["seconds"]
            for entry in stored.values()
            if "result" in entry and not entry["quick"]
        }
    )
    if seconds:
        spent = " to ".join(f"{value:g}" for value in dict.fromkeys([seconds[0], seconds[-1]]))
        lines.append(f"- Time: at least {spent} s for every engine and row, and 1,000 calls")
    lines += ["- Some rows were measured with the quick protocol, and are marked so."] if quick else []
    return "\n".join(lines)


def _machine_line(entry: Json) -> str:
    described = entry["result"]["machine"] if "result" in entry else entry.get("machine")
    if not described:
        return ""
    known = Machine(**described)
    caches = ", ".join(f"{name} {size}" for name, size in known.caches.items())
    virtual = ", virtual machine" if known.hypervisor else ""
    versions = ", ".join(f"{name} {version}" for name, version in known.versions.items())
    return f"{known.cpu}, {known.cores} cores{virtual} ({caches}); {known.system}; {versions}"


def _date(entry: Json) -> str:
    if "result" in entry:
        return str(entry["result"]["after"]["date"])[:10]
    return str(entry.get("date", ""))[:10]


def _ratios(stored: Mapping[str, Json], group: str, to: str = "onnxruntime") -> str:
    rows = [
        [
            "what",
            "weights",
            "built for",
            "edgecsi µs (C call, estimate)",
            f"{PEERS[to]} µs",
            "ratio (95 %)",
            "bar",
            "reached",
            "cold L2 µs (ratio)",
            "validity",
        ]
    ]
    for scenario in SCENARIOS:
        if scenario.group != group or scenario.device != "local" or scenario.batch:
            continue
        bar = "" if scenario.bar is None else f"≤ {scenario.bar:g}"
        entry = stored.get(scenario.name)
        head = [scenario.title, "" if entry is None else entry.get("weights", ""), scenario.target]
        if entry is None and "+" in scenario.model:
            continue  # a compressed network that ships; without a bar it is listed once it is measured
        if entry is None or "error" in entry:
            rows.append([*head, "", "", why_not(entry), bar, "", "", ""])
            continue
        found = to_peer(entry, to)
        own, own_cold = (entry["result"]["engines"][0][state]["median"] for state in ("warm", "cold"))
        c_call = entry["result"]["c_call"]
        own_times = f"{number(own)} ({number(c_call and c_call['median'])}, {number(_estimate_us(entry))})"
        if found is None:
            skipped = entry["result"]["skipped"]
            why = skipped[0]["reason"] if skipped else "not compared"
            rows.append([*head, own_times, why, "", bar, "", number(own_cold), _validity(entry)])
            continue
        warm, cold = found["warm"], found["cold"]
        peer = next(e for e in entry["result"]["engines"] if e["name"] == to)
        apart = peer["answer"]["max_rel_diff"]
        rows.append(
            [
                *head,
                own_times,
                number(peer["warm"]["median"]) + (f" (off by {apart:.0e})" if apart > OTHER_ENGINE else ""),
                f"**{warm['ratio']:.3f}** ({warm['interval']['low']:.3f}-{warm['interval']['high']:.3f})",
                bar,
                reached(entry, scenario),
                f"{number(own_cold)} ({cold['ratio']:.3f})",
                _validity(entry),
            ]
        )
    return markdown(rows)


def _missed(stored: Mapping[str, Json]) -> str:
    """Every bar that is not reached, with the parts of its time where it is a time."""
    rows = [["what", "bar", "measured", "why not", "C call", "estimate", "Python"]]
    for scenario, why in open_bars(stored):
        entry = stored.get(scenario.name)
        bar = f"{'≥' if isinstance(scenario, Scenario) and scenario.batch else '≤'} {scenario.bar:g}"
        value = None if entry is None or "error" in entry else figure(entry, scenario)
        rows.append([scenario.title, bar, "" if value is None else f"{value:.3f}", why, *_parts(entry)])
    return markdown(rows) if len(rows) > 1 else "All bars are reached."


def _parts(entry: Json | None) -> list[str]:
    """C call, estimate and Python as shares of ONNX Runtime's time."""
    result = (entry or {}).get("result")
    if not result or not result["engines"] or entry is None or to_peer(entry) is None:
        return ["", "", ""]
    peer = next(e for e in result["engines"] if e["name"] == "onnxruntime")["warm"]["median"]
    c_call, estimate = result["c_call"], _estimate_us(entry)
    python = None if c_call is None else max(result["engines"][0]["warm"]["median"] - c_call["median"], 0.0)
    times = (c_call and c_call["median"], estimate, python)
    return ["" if time is None else f"{time / peer:.3f}" for time in times]


def _estimate_us(entry: Json) -> float | None:
    """What the layers are estimated to take on this machine: reading the weights, or multiplying."""
    shares = [
        layer["share"] * layer["us"] for layer in entry["result"]["layers"] if layer["share"] is not None
    ]
    return sum(shares) if shares else None


def _engines(stored: Mapping[str, Json]) -> str:
    names = ["edgecsi", *dict.fromkeys(name for s in SCENARIOS if s.group == MAIN for name in s.against)]
    rows = [["µs", *names]]
    for scenario in SCENARIOS:
        entry = stored.get(scenario.name)
        if scenario.group != MAIN or scenario.device != "local" or entry is None or "error" in entry:
            continue
        engines = {engine["name"]: engine for engine in entry["result"]["engines"]}
        rows.append(
            [
                scenario.title,
                *(
                    f"{number(engines[name]['warm']['median'])} ({number(engines[name]['cold']['median'])})"
                    if name in engines
                    else "-"
                    for name in names
                ),
            ]
        )
    return markdown(rows)


def _instructions(stored: Mapping[str, Json]) -> str:
    rows = [["what", "weights", "millions", "bar", "reached"]]
    for scenario in SCENARIOS:
        if scenario.device != "emulate":
            continue
        bar = "" if scenario.bar is None else f"≤ {scenario.bar:g}"
        entry = stored.get(scenario.name)
        head = [scenario.title, "" if entry is None else entry.get("weights", "")]
        if entry is None or "error" in entry:
            rows.append([*head, why_not(entry), bar, ""])
            continue
        millions = entry["result"]["instructions"] / 1e6
        rows.append([*head, f"**{millions:.3f}**", bar, reached(entry, scenario)])
    return markdown(rows)


def _batches(stored: Mapping[str, Json]) -> str:
    """A table of all settings under a line with the outcome, for each scenario with batches."""
    parts = []
    for scenario in SCENARIOS:
        if not scenario.batch:
            continue
        entry = stored.get(scenario.name)
        title = f"{scenario.title}, batch {scenario.batch} on {scenario.threads} threads"
        if entry is None or "error" in entry:
            parts.append(f"{title}: {why_not(entry)}.")
            continue
        found = entry["result"]["throughput"]
        lines = [
            f"{title}, {entry['weights']} weights: **{gain['ratio']['ratio']:.2f}** times "
            f"({gain['ratio']['interval']['low']:.2f}-{gain['ratio']['interval']['high']:.2f}) the samples a "
            f"second of {gain['to']} at its best (bar ≥ {scenario.bar:g}, reached: "
            f"{reached(entry, scenario)}; {_validity(entry)})."
            for gain in found["gains"]
        ]
        rows = [["engine", "batch", "threads", "samples/s", "95 %"]]
        rows += [
            [
                f"{rate['name']} {rate['version']}",
                str(rate["batch"]),
                str(rate["threads"]),
                f"{rate['median']:,.0f}",
                f"{rate['interval']['low']:,.0f}-{rate['interval']['high']:,.0f}",
            ]
            for rate in found["rates"]
        ]
        parts += ["\n".join(lines) or f"{title}: not compared.", markdown(rows)]
    return "\n\n".join(parts)


def _limits(entry: Json | None) -> str:
    if entry is None or "error" in entry:
        return f"{why_not(entry).capitalize()}."
    return f"```\n{entry['text']}\n```"


def _facts(stored: Mapping[str, Json]) -> str:
    rows = [["what", "median", "bar", "reached", "validity"]]
    for fact in FACTS:
        entry = stored.get(fact.name)
        bar = f"≤ {fact.bar:g} {fact.unit}"
        if entry is None or "error" in entry:
            rows.append([fact.title, why_not(entry), bar, "", ""])
            continue
        value = float(entry["value"])
        state = entry["validity"]["state"]
        rows.append([fact.title, f"**{number(value)} {fact.unit}**", bar, reached(entry, fact), state])
    return markdown([*rows, *_self_check(stored.get("self_check"))])


def _self_check(check: Json | None) -> list[list[str]]:
    """The measurement against itself: `python -m edgecsi.results.self_check`."""
    rows = [
        ("a library measured against itself: intervals that hold 1", f"≥ {LEAST:.0%}"),
        ("the bundle's own C program against the C call of `edgecsi bench`", f"≤ {CLOSE:.0%} apart"),
    ]
    if check is None:
        return [[title, "not measured", bar, "", ""] for title, bar in rows]
    found = [
        (f"{check['held']} of {check['runs']}", held(check)),
        (f"{program_difference(check):+.1%}", abs(program_difference(check)) <= CLOSE),
    ]
    doubt = doubts(check)
    yes = f"not shown: {doubt}" if doubt else "yes"
    return [
        [title, f"**{figure}**", bar, yes if fine else "no", check["validity"]["state"]]
        for (title, bar), (figure, fine) in zip(rows, found, strict=True)
    ]


def _validity(entry: Json) -> str:
    validity = entry["result"]["validity"]
    words = [validity["state"], *validity["reasons"]]
    words += ["quick"] if entry["quick"] else []
    return "; ".join([*words, "measured before a change"] if stale(entry) else words)
