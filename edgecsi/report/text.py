"""Results as plain text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from edgecsi import verdict
from edgecsi.bench.result import LayerTime, Limits, Result, Throughput
from edgecsi.bench.statistics import Ratio

ANY = 10**6
"""Columns of what is no terminal."""


def table(result: Result, room: int = ANY) -> str:
    """The result as plain text for a terminal that has room for so many columns."""
    return "\n\n".join(
        part
        for part in (
            _head(result),
            _latencies(result, room),
            _throughput(result.throughput, room),
            _notes(result),
            times_table(result.layers, room),
        )
        if part
    )


def _head(result: Result) -> str:
    protocol = "quick protocol" if result.protocol.quick else f"{result.protocol.seconds:g} s an engine"
    threads = "one thread, " if result.throughput is None else ""
    lines = [
        f"{result.bundle.name}, entry {result.entry}, for {result.bundle.target} on {result.device}",
        f"{result.machine.cpu}, {result.machine.cores} cores; {threads}{protocol}, {result.after.date}",
        f"differs from PyTorch by {result.answer.max_rel_diff:.1e} of the largest output",
        f"validity: {result.validity.state}" + "".join(f"\n  {reason}" for reason in result.validity.reasons),
    ]
    if accuracy := result.bundle.accuracy.named():
        lines += [
            f"NMSE on {result.bundle.data or 'the data of the build'}:",
            *(f"  {a}: {b}" for a, b in accuracy.items()),
        ]
    if result.instructions is not None:
        lines.append(
            f"instructions per inference under emulation: {result.instructions:,} (a proxy, no latency)"
        )
    return "\n".join(lines)


def _latencies(result: Result, room: int) -> str:
    if not result.engines:
        return ""
    rows = [["µs", "median", "95 % interval", "p90", "p95", "p99", "min", "max", "cold L2", "edgecsi is"]]
    ratios = {comparison.to: comparison for comparison in result.comparisons}
    for engine in result.engines:
        warm = engine.warm
        compared = ratios.get(engine.name)
        rows.append(
            [
                f"{engine.name} {engine.version}",
                number(warm.median),
                f"{number(warm.interval.low)}-{number(warm.interval.high)}",
                number(warm.p90),
                number(warm.p95),
                number(warm.p99),
                number(warm.minimum),
                number(warm.maximum),
                number(engine.cold.median),
                "" if compared is None else ratio_text(compared.warm),
            ]
        )
    return columns(rows, room=room)


def ratio_text(ratio: Ratio) -> str:
    """``0.31 (0.30-0.32)``."""
    return f"{ratio.ratio:.3f} ({ratio.interval.low:.3f}-{ratio.interval.high:.3f})"


def _notes(result: Result) -> str:
    lines = []
    if result.engines:
        lines.append(
            '"95 % interval" holds the median of this run; another run may lie outside (--repeat N shows it)'
        )
        lines.append(
            '"cold L2" = single calls, each after 8 MB of other data, as in a program that does more than this'
        )
    if result.instructions is not None:
        lines.append("the count of instructions holds however busy this machine is; times need a board")
    elif result.validity.state != "valid":
        lines.append(
            f"{result.validity.state}: do not quote these times; end what else runs, and measure again"
        )
    if result.comparisons:
        lines.append('"edgecsi is" = its time over that engine\'s, with 95 % interval; below 1 it is faster')
    lines += [
        f"{engine.name} is less exact: its answer is off by {engine.answer.max_rel_diff:.1e} of the largest output"
        for engine in result.engines
        if engine.answer.max_rel_diff > verdict.OTHER_ENGINE and engine.name != result.engines[0].name
    ]
    for engine in result.engines:
        if engine.warm.outliers.count:
            far = engine.warm.outliers
            lines.append(
                f"{engine.name}: {far.count} of {engine.warm.samples:,} samples above {number(far.limit)} µs "
                f"({100 * far.share:.2f} %, kept), largest {number(far.largest)} µs"
            )
        if engine.warm.p99 is None:
            lines.append(f"{engine.name}: {engine.warm.samples} samples are too few for p99")
    if result.c_call is not None:
        lines.append(f"the C call alone: {number(result.c_call.median)} µs")
    if result.cold_starts:
        load, first = (
            float(np.median([getattr(start, name) for start in result.cold_starts]))
            for name in ("load_ms", "first_call_ms")
        )
        memory = max(start.bundle_bytes for start in result.cold_starts)
        lines.append(
            f"fresh process ({len(result.cold_starts)}): load {load:.2f} ms, first call {first:.2f} ms, "
            f"{memory / 2**20:.1f} MB more memory; library {result.bundle.library_bytes / 1e3:,.0f} kB"
        )
    lines += _behaviour(result)
    lines += [
        f"not measured: {skipped.name}: {skipped.reason} -> {skipped.fix}" for skipped in result.skipped
    ]
    return "\n".join(lines)


def _behaviour(result: Result) -> list[str]:
    """Deadline, rate, long run and self-check, a line each."""
    lines = []
    if (rate := result.periodic) is not None:
        lines.append(
            f"at {rate.rate:g} calls a second: {number(rate.call.median)} µs the call, "
            f"{number(rate.response.median)} µs from when it was due (p90 {number(rate.response.p90)})"
        )
    if (run := result.sustained) is not None:
        since = "" if run.since is None else f" after {run.since:.0f} s"
        energy = "" if run.energy_uj is None else f", {number(run.energy_uj)} µJ a call"
        lines.append(
            f"over {len(run.seconds)} turns of a second: {run.trend}, {run.change:+.1%}{since}{energy}"
        )
    if (runs := result.runs) is not None:
        lines += [
            f"{name}, {len(medians)} runs in processes of their own: medians {number(min(medians))} to "
            f"{number(max(medians))} µs, a spread of {runs.spread(name):.1%}; this is the middle run"
            for name, medians in runs.medians.items()
        ]
    if (check := result.self_check) is not None:
        lines.append(
            f"against itself: {ratio_text(check.ratio)}" + ("" if check.agrees else ", which should hold 1")
        )
        if check.program is not None:
            lines.append(
                f"the bundle's own C program: {number(check.program)} µs, {number(check.c_call)} µs by edgecsi "
                f"({check.program / check.c_call - 1:+.1%})"
            )
    if (deadline := result.deadline) is not None:
        lines.append(
            f"deadline of {number(deadline.limit)} µs: {'met' if deadline.met else 'MISSED'}, {deadline.metric} is "
            f"{number(deadline.found)} µs"
        )
    return lines


def _throughput(found: Throughput | None, room: int) -> str:
    if found is None:
        return ""
    rows = [["samples/s", "batch", "threads", "median", "95 % interval"]]
    rows += [
        [
            f"{rate.name} {rate.version}",
            str(rate.batch),
            str(rate.threads),
            f"{rate.median:,.0f}",
            f"{rate.interval.low:,.0f}-{rate.interval.high:,.0f}",
        ]
        for rate in found.rates
    ]
    lines = [
        f"edgecsi does {ratio_text(gain.ratio)} times the samples/s of {gain.to} at its best, "
        f"batch {gain.batch} on {gain.threads} thread{'s' if gain.threads > 1 else ''}"
        for gain in found.gains
    ]
    return "\n".join([columns(rows, room=room), *lines])


def times_table(layers: Sequence[LayerTime], room: int = ANY) -> str:
    """Measured layers as plain text; empty if there are none."""
    if not layers:
        return ""
    total = sum(layer.us for layer in layers)
    known = any(layer.share is not None for layer in layers)
    rows = [["layer", "kernel", "µs", "of all", "predicted", "GB/s", "GMAC/s"]]
    rows[0] += ["of the estimate"] if known else []
    for layer in layers:
        row = [
            layer.name,
            layer.kernel,
            f"{layer.us:.2f}",
            f"{layer.us / total:.0%}" if total else "-",
            number(layer.predicted_us),
            number(layer.gbps),
            number(layer.gmacs),
        ]
        if known:
            row.append("-" if layer.share is None else f"{layer.share:.0%} {layer.bound}")
        rows.append(row)
    return columns(rows, room=room)


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


def columns(rows: list[list[str]], indent: str = "", room: int = ANY) -> str:
    """Rows of text in aligned columns, the first one to the left, the others to the right; where they have no room, the
    cells of a row one after the other with their names."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if len(indent) + sum(widths) + 2 * (len(widths) - 1) > room:
        return "\n".join(_block(rows[0], row, room) for row in rows[1:])
    return "\n".join(
        (
            indent
            + "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            )
        ).rstrip()
        for row in rows
    )


def _block(head: Sequence[str], row: Sequence[str], room: int) -> str:
    cells = [f"{name} {cell}" for name, cell in zip(head[1:], row[1:], strict=True) if cell]
    below = textwrap.wrap(
        "  ".join(cells), room, initial_indent="  ", subsequent_indent="  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join([f"{row[0]}, {head[0]}" if head[0] == "µs" else row[0], *below])


def number(value: float | None) -> str:
    """Three significant digits, no exponent; ``-`` for None."""
    if value is None:
        return "-"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"
