"""docs/results.md, made from the raw results that results.py keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgecsi.bench.result import Machine
from edgecsi.report.text import number
from edgecsi.results.scenarios import FACTS, KERNELS, MAIN, SCENARIOS

Json = dict[str, Any]

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
In brackets behind edgecsi's time: what of it is the C call, the rest being Python's; and what this core's
limits (below) ask for at least, layer by layer: reading the weights or multiplying.

{main}

## All engines, fp32

Medians in µs, all engines in one interleaved run (cold L2 in brackets).

{engines}

## Compressed networks

The same, with zeros and int8, built without tuning. ONNX Runtime still runs the dense fp32 model, as zeros
gain it nothing. `x86` is the portable AVX2 build. *Random* weights have the shapes and the zeros of the
compressed network, but have learned nothing; latency does not depend on that.

{kernels}

### Bars not reached, and what stops them

Each time as a share of ONNX Runtime's. The *limit* is what this core needs at least to read the layers' weights
from the cache that holds them, or to multiply (below); *Python* is what `run` takes around the C call. A bar
below the limit cannot be reached on this machine by any kernel; one below the limit and Python together not
through `run`.

{missed}

### What searching the knobs would add

The layers of each row timed alone, one after the other, with their default knobs and with the best of up to 24 settings
(`python -m edgecsi.results.knobs`). Kernels that are far from their limit and gain nothing here lack ideas, not knobs.

{knobs}

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
        missed=_missed(stored),
        knobs=_knobs(stored.get("knobs")),
        shipped=_shipped(stored.get("shipped")),
        tolerance=f"{stored.get('shipped', {}).get('tolerance_db', 0.01):g}",
        batches=_batches(stored),
        instructions=_instructions(stored),
        cycles=_cycles(stored.get("cycles")),
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
    found = _to_onnxruntime(stored)
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


def _ratios(stored: Mapping[str, Json], group: str) -> str:
    rows = [
        [
            "what",
            "weights",
            "built for",
            "edgecsi µs (C call, limit)",
            "ONNX Runtime µs",
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
            rows.append([*head, "", "", _why_not(entry), bar, "", "", ""])
            continue
        found = _to_onnxruntime(entry)
        own, own_cold = (entry["result"]["engines"][0][state]["median"] for state in ("warm", "cold"))
        c_call = entry["result"]["c_call"]
        own_times = f"{number(own)} ({number(c_call and c_call['median'])}, {number(_least_us(entry))})"
        if found is None:
            skipped = entry["result"]["skipped"]
            why = skipped[0]["reason"] if skipped else "not compared"
            rows.append([*head, own_times, why, "", bar, "", number(own_cold), _validity(entry)])
            continue
        warm, cold = found["warm"], found["cold"]
        peer = next(e for e in entry["result"]["engines"] if e["name"] == "onnxruntime")
        rows.append(
            [
                *head,
                own_times,
                number(peer["warm"]["median"]),
                f"**{warm['ratio']:.3f}** ({warm['interval']['low']:.3f}-{warm['interval']['high']:.3f})",
                bar,
                _reached(warm["ratio"], scenario.bar),
                f"{number(own_cold)} ({cold['ratio']:.3f})",
                _validity(entry),
            ]
        )
    return markdown(rows)


def _missed(stored: Mapping[str, Json]) -> str:
    """The rows above their bar, with the part of each that no kernel can save."""
    rows = [["what", "bar", "ratio", "C call", "limit", "limit + Python", "what stops it"]]
    for scenario in SCENARIOS:
        entry = stored.get(scenario.name)
        if entry is None or "error" in entry or scenario.device != "local" or scenario.batch:
            continue
        found, c_call, least = _to_onnxruntime(entry), entry["result"]["c_call"], _least_us(entry)
        if scenario.bar is None or found is None or found["warm"]["ratio"] <= scenario.bar:
            continue
        if c_call is None or least is None:
            continue
        least = min(least, c_call["median"])  # a limit is measured too, and may come out a little high
        engines = entry["result"]["engines"]
        peer = next(e for e in engines if e["name"] == "onnxruntime")["warm"]["median"]
        python = max(engines[0]["warm"]["median"] - c_call["median"], 0.0)
        if least / peer > scenario.bar:
            why = "the limit of this core"
        elif (least + python) / peer > scenario.bar:
            why = "the limit of this core and Python"
        else:
            why = f"the kernels take {c_call['median'] / least:.1f} times the limit"
        shares = (found["warm"]["ratio"], c_call["median"] / peer, least / peer, (least + python) / peer)
        rows.append([scenario.title, f"≤ {scenario.bar:g}", *(f"{share:.3f}" for share in shares), why])
    return markdown(rows) if len(rows) > 1 else "All bars are reached."


def _knobs(entry: Json | None) -> str:
    if entry is None:
        return "Not searched yet."
    rows = [["what", "default knobs µs", "best knobs µs", "gain", "validity"]]
    for row in entry["rows"].values():
        if "error" in row:
            rows.append([row["title"], _why_not(row), "", "", ""])
            continue
        gain = 1 - row["best_us"] / row["default_us"]
        state = "; ".join([row["validity"]["state"], *row["validity"]["reasons"]])
        rows.append([row["title"], number(row["default_us"]), number(row["best_us"]), f"{gain:.0%}", state])
    return markdown(rows)


def _least_us(entry: Json) -> float | None:
    """What the layers take at least on this machine: reading the weights, or multiplying."""
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
            rows.append([*head, _why_not(entry), bar, ""])
            continue
        millions = entry["result"]["instructions"] / 1e6
        rows.append([*head, f"**{millions:.3f}**", bar, _reached(millions, scenario.bar)])
    return markdown(rows)


def _shipped(entry: Json | None) -> str:
    if entry is None:
        return "Not verified yet."
    rows = [
        [
            "network",
            "built for",
            "run on",
            "samples",
            "NMSE or BER",
            "PyTorch",
            "difference dB",
            "equal",
            "library kB",
            "reached",
        ]
    ]
    for result in entry["results"].values():
        head = [result["model"], result["target"], result["cpu"]]
        if "error" in result:
            rows.append([*head, "", _why_not(result), "", "", "", "", "no"])
            continue
        apart = abs(result["difference_db"])
        reached = "yes" if apart <= entry["tolerance_db"] else "no"
        rows.append(
            [
                *head,
                str(result["samples"]),
                f"{result['edgecsi']:.4g}",
                f"{result['pytorch']:.4g}",
                f"{apart:.1g}",
                _equal(result["differences"]),
                f"{result['library_bytes'] / 1e3:,.0f}",
                f"{reached}, before a change" if result["outdated"] else reached,
            ]
        )
    return markdown(rows)


def _equal(differences: Mapping[str, float]) -> str:
    equal = [name for name, apart in differences.items() if apart == 0]
    largest = max(differences.values(), default=0.0)
    return "; ".join([", ".join(equal) or "none", *([f"{largest:.0e}"] if largest else [])])


def _batches(stored: Mapping[str, Json]) -> str:
    """A table of all settings under a line with the outcome, for each scenario with batches."""
    parts = []
    for scenario in SCENARIOS:
        if not scenario.batch:
            continue
        entry = stored.get(scenario.name)
        title = f"{scenario.title}, batch {scenario.batch} on {scenario.threads} threads"
        if entry is None or "error" in entry:
            parts.append(f"{title}: {_why_not(entry)}.")
            continue
        found = entry["result"]["throughput"]
        lines = [
            f"{title}, {entry['weights']} weights: **{gain['ratio']['ratio']:.2f}** times "
            f"({gain['ratio']['interval']['low']:.2f}-{gain['ratio']['interval']['high']:.2f}) the samples a "
            f"second of {gain['to']} at its best (bar ≥ {scenario.bar:g}, reached: "
            f"{'yes' if gain['ratio']['ratio'] >= (scenario.bar or 0) else 'no'}; {_validity(entry)})."
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


def _cycles(entry: Json | None) -> str:
    if entry is None or "error" in entry:
        return f"{_why_not(entry).capitalize()}."
    rows = [["CPU", "layer", "kernel", "instructions", "cycles", "MACs", "MACs per cycle", "thousand cycles"]]
    for row in entry["loops"]:
        estimated = row["thousand_cycles"]
        rows.append(
            [
                row["cpu"],
                row["layer"],
                row["kernel"],
                str(row["instructions"]),
                f"{row['cycles']:.1f}",
                str(row["macs"]),
                f"{row['macs'] / row['cycles']:.1f}",
                "" if estimated is None else f"{estimated:.1f}",
            ]
        )
    sums = [
        f"{cpu}: {sum(r['thousand_cycles'] or 0 for r in entry['loops'] if r['cpu'] == cpu):.0f} thousand"
        for cpu in dict.fromkeys(row["cpu"] for row in entry["loops"])
    ]
    return (
        f"An estimate by {entry['tool']} of the innermost loop that multiplies most, for {entry['model']}: "
        "instructions, cycles and multiply-adds of one pass of the loop, everything in the L1 cache; the "
        f"last column is that for all multiply-adds of the layer. Sums: {', '.join(sums)}. "
        f"{entry['notes']}\n\n" + markdown(rows)
    )


def _limits(entry: Json | None) -> str:
    if entry is None or "error" in entry:
        return f"{_why_not(entry).capitalize()}."
    return f"```\n{entry['text']}\n```"


def _facts(stored: Mapping[str, Json]) -> str:
    rows = [["what", "median", "bar", "reached", "validity"]]
    for fact in FACTS:
        entry = stored.get(fact.name)
        bar = f"≤ {fact.bar:g} {fact.unit}"
        if entry is None or "error" in entry:
            rows.append([fact.title, _why_not(entry), bar, "", ""])
            continue
        value = float(entry["value"])
        state = entry["validity"]["state"]
        rows.append([fact.title, f"**{number(value)} {fact.unit}**", bar, _reached(value, fact.bar), state])
    return markdown(rows)


def _to_onnxruntime(entry: Json) -> Json | None:
    comparisons: list[Json] = entry["result"]["comparisons"]
    return next((found for found in comparisons if found["to"] == "onnxruntime"), None)


def _why_not(entry: Json | None) -> str:
    return "not measured" if entry is None else f"failed: {(entry['error'][1] or entry['error'][0])[:120]}"


def _validity(entry: Json) -> str:
    validity = entry["result"]["validity"]
    words = [validity["state"], *validity["reasons"]]
    return "; ".join([*words, "quick"] if entry["quick"] else words)


def _reached(value: float, bar: float | None) -> str:
    if bar is None:
        return ""
    return "yes" if value <= bar else f"no, {value / bar - 1:.0%} above"


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first row being its head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    columns = lines[0].replace("\\|", "").count("|") - 1
    return "\n".join([lines[0], "|" + "---|" * columns, *lines[1:]])
