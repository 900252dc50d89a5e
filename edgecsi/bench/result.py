"""The result of a measurement: as data (JSON, docs/report-format.md), as a plain-text table, as a picture."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from edgecsi.bench.environment import Machine, Snapshot, Validity
from edgecsi.bench.measure import Answer, ColdStart, Protocol
from edgecsi.bench.statistics import Interval, Ratio, Summary
from edgecsi.errors import DataError, ToolchainError

SCHEMA = 1
MAX_BYTES = 1 << 30
T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """The bundle that was measured. ``library_bytes`` is the size of its library."""

    name: str
    digest: str
    model: str
    recipe: str | None
    target: str
    library_bytes: int


@dataclass(frozen=True)
class Engine:
    """One engine's latency, Python to Python. Summaries are in µs, samples in ns and in the order of
    measuring.

    Attributes:
        name: ``edgecsi`` or a peer.
        version: of the engine.
        answer: its difference to PyTorch, found before timing.
        warm: calls in turns with the other engines.
        cold: single calls, each after 8 MB of other data.
        settled: whether the warm-up reached a steady median.
        complete: whether the protocol's number of samples was reached.
        threads: CPU time over elapsed time.
        rounds: how many of ``samples`` belong to each round, in order.
        samples: ns of every warm call.
        cold_samples: ns of every cold call.
    """

    name: str
    version: str
    answer: Answer
    warm: Summary
    cold: Summary
    settled: bool
    complete: bool
    threads: float
    rounds: tuple[int, ...]
    samples: tuple[int, ...]
    cold_samples: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """Time of edgecsi over time of a peer, from the same rounds; below 1, edgecsi is faster."""

    to: str
    warm: Ratio
    cold: Ratio


@dataclass(frozen=True)
class Skipped:
    """An engine that was asked for and not measured: why, and the command that may help."""

    name: str
    reason: str
    fix: str


@dataclass(frozen=True)
class LayerTime:
    """One layer's median in µs from separate passes, and the rates it means.

    Attributes:
        name, kernel: as in the manifest.
        us: measured.
        predicted_us: what the choice of the kernel was based on; None for kernels without an estimate.
        gbps: GB/s of weights.
        gmacs: GMAC/s, zeros that are left out not counted.
        bound: what this machine's limits say must take longest: reading the weights or multiplying; None if
            there is neither, or the limits are not known.
        share: the least possible time, by that limit, over ``us``.
    """

    name: str
    kernel: str
    us: float
    predicted_us: float | None
    gbps: float
    gmacs: float
    bound: Literal["bytes", "MACs"] | None = None
    share: float | None = None


@dataclass(frozen=True)
class Rate:
    """One engine's throughput in one setting.

    Attributes:
        name, version: of the engine.
        answer: its difference to PyTorch, found before timing.
        batch: samples that one thread (edgecsi) or one call (the others) takes at once.
        threads: how many.
        median: samples per second, over the rounds.
        interval: of the median.
        rounds: samples per second of every round, in order.
    """

    name: str
    version: str
    answer: Answer
    batch: int
    threads: int
    median: float
    interval: Interval
    rounds: tuple[float, ...]


@dataclass(frozen=True)
class Gain:
    """Samples per second of edgecsi over those of a peer in its best setting; above 1, edgecsi is faster."""

    to: str
    batch: int
    threads: int
    ratio: Ratio


@dataclass(frozen=True)
class Throughput:
    """Batches on several threads: edgecsi first, then every peer in every setting; and edgecsi against the
    best setting of each peer."""

    rates: tuple[Rate, ...]
    gains: tuple[Gain, ...]


@dataclass(frozen=True)
class Result:
    """Everything one run of ``edgecsi bench`` found out.

    Attributes:
        bundle: what was measured.
        entry: which of its entries.
        device: where.
        protocol: how much was measured.
        machine: which machine measured.
        before: its state before the timed calls.
        after: its state after them.
        validity: whether the times can be believed.
        answer: the bundle's difference to PyTorch.
        engines: edgecsi first, then the peers; empty under emulation, which has no latencies.
        comparisons: edgecsi against each peer.
        skipped: peers that could not be measured.
        c_call: the C function timed from C, in µs.
        cold_starts: fresh processes.
        layers: where the time goes.
        instructions: of one inference, counted under emulation.
        throughput: of batches; a measurement of its own, without latencies.
    """

    bundle: Measured
    entry: str
    device: str
    protocol: Protocol
    machine: Machine
    before: Snapshot
    after: Snapshot
    validity: Validity
    answer: Answer
    engines: tuple[Engine, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    c_call: Summary | None = None
    cold_starts: tuple[ColdStart, ...] = ()
    layers: tuple[LayerTime, ...] = ()
    instructions: int | None = None
    throughput: Throughput | None = None
    schema: int = SCHEMA
    kind: Literal["edgecsi bench"] = "edgecsi bench"

    def engine(self, name: str) -> Engine:
        """The engine of this name.

        Raises:
            DataError: it was not measured.
        """
        for engine in self.engines:
            if engine.name == name:
                return engine
        raise DataError(
            f"the result has no engine {name!r}",
            f"it has {', '.join(engine.name for engine in self.engines) or 'none'}",
            f"measure again with --against {name}",
        )


def to_json(result: Result) -> str:
    """The result as JSON text, the same text for the same result; samples on one line each."""
    tree = dataclasses.asdict(result)
    held: list[str] = []
    for engine in tree["engines"]:
        for name in ("rounds", "samples", "cold_samples"):
            held.append(json.dumps(engine[name], separators=(",", ":")))
            engine[name] = f"\0{len(held) - 1}\0"
    text = json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False)
    for index, line in enumerate(held):
        text = text.replace(f'"\\u0000{index}\\u0000"', line, 1)
    return text + "\n"


def write_result(result: Result, path: Path) -> None:
    """Writes the result as JSON; the file is whole or not there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(to_json(result), encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_result(path: Path) -> Result:
    """Reads what :func:`write_result` or ``edgecsi bench --json`` wrote.

    Raises:
        DataError: the file is missing, too large, no result, or of a newer schema.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MB")
        tree = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict) or tree.get("kind") != "edgecsi bench":
            raise ValueError("it has no kind 'edgecsi bench'")
        if tree.get("schema") != SCHEMA:
            raise ValueError(f"it has schema {tree.get('schema')!r}, this edgecsi reads {SCHEMA}")
        result: Result = _decode(Result, tree, "result")
        return result
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not a result of edgecsi bench",
            str(error)[:300],
            "write one with edgecsi bench --json FILE",
        ) from None


def table(result: Result) -> str:
    """The result as plain text for a terminal."""
    return "\n\n".join(
        part
        for part in (
            _head(result),
            _latencies(result),
            _throughput(result.throughput),
            _notes(result),
            layer_table(result.layers),
        )
        if part
    )


def plot(result: Result, path: Path) -> None:
    """Draws the distribution of every engine's latencies, warm and cold, as a PNG.

    Raises:
        ToolchainError: matplotlib is not installed.
        DataError: the result has no latencies.
    """
    if not result.engines:
        raise DataError(
            f"{result.bundle.name} has no latencies to draw", "it ran emulated", "measure on a real CPU"
        )
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ToolchainError(
            "the picture cannot be drawn", "matplotlib is not installed", "pip install matplotlib"
        ) from None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for index, engine in enumerate(result.engines):
        for samples, style, label in (
            (engine.samples, "-", f"{engine.name} {engine.version}"),
            (engine.cold_samples, ":", None),
        ):
            ordered = np.sort(np.asarray(samples, dtype=float)) / 1e3
            share = np.arange(1, ordered.size + 1) / ordered.size
            axes.plot(ordered, share, style, color=f"C{index}", label=label)
    axes.set_xscale("log")
    axes.set_xlabel("latency, µs (dotted: cold L2)")
    axes.set_ylabel("share of calls at most as slow")
    axes.set_title(
        f"{result.bundle.name} {result.entry}, one thread, {result.machine.cpu} ({result.validity.state})"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(beside, format="png", dpi=120)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def columns(rows: list[list[str]], indent: str = "") -> str:
    """Rows of text in aligned columns, the first one to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        (
            indent
            + "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            )
        ).rstrip()
        for row in rows
    )


def number(value: float | None) -> str:
    """Three significant digits, no exponent; ``-`` for None."""
    if value is None:
        return "-"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def _head(result: Result) -> str:
    protocol = "quick protocol" if result.protocol.quick else f"{result.protocol.seconds:g} s an engine"
    threads = "one thread, " if result.throughput is None else ""
    lines = [
        f"{result.bundle.name}, entry {result.entry}, for {result.bundle.target} on {result.device}",
        f"{result.machine.cpu}, {result.machine.cores} cores; {threads}{protocol}, {result.after.date}",
        f"differs from PyTorch by {result.answer.max_rel_diff:.1e} of the largest output",
        f"validity: {result.validity.state}" + "".join(f"\n  {reason}" for reason in result.validity.reasons),
    ]
    if result.instructions is not None:
        lines.append(
            f"instructions per inference under emulation: {result.instructions:,} (a proxy, no latency)"
        )
    return "\n".join(lines)


def _latencies(result: Result) -> str:
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
    return columns(rows)


def ratio_text(ratio: Ratio) -> str:
    """``0.31 (0.30-0.32)``."""
    return f"{ratio.ratio:.3f} ({ratio.interval.low:.3f}-{ratio.interval.high:.3f})"


def _notes(result: Result) -> str:
    lines = []
    if result.comparisons:
        lines.append('"edgecsi is" = its time over that engine\'s, with 95 % interval; below 1 it is faster')
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
    lines += [
        f"not measured: {skipped.name}: {skipped.reason} -> {skipped.fix}" for skipped in result.skipped
    ]
    return "\n".join(lines)


def _throughput(found: Throughput | None) -> str:
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
    return "\n".join([columns(rows), *lines])


def layer_table(layers: Sequence[LayerTime]) -> str:
    """Measured layers as plain text; empty if there are none."""
    if not layers:
        return ""
    total = sum(layer.us for layer in layers)
    known = any(layer.share is not None for layer in layers)
    rows = [["layer", "kernel", "µs", "of all", "predicted", "GB/s", "GMAC/s"]]
    rows[0] += ["of the limit"] if known else []
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
    return columns(rows)


def _decode(kind: Any, value: Any, path: str) -> Any:
    """JSON to the annotated type; ValueError naming the path of what does not fit."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{path} is {value!r}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _decode(next(member for member in arguments if member is not type(None)), value, path)
    if origin is tuple and isinstance(value, list):
        variable = len(arguments) == 2 and arguments[1] is Ellipsis
        if variable or len(value) == len(arguments):
            kinds = [arguments[0]] * len(value) if variable else list(arguments)
            return tuple(
                _decode(k, item, f"{path}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True))
            )
    elif origin in (dict, Mapping) and isinstance(value, dict):
        return {key: _decode(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    elif dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        if hints.keys() != value.keys():
            raise ValueError(
                f"{path} has not the fields it should: {', '.join(sorted(hints.keys() ^ value.keys()))}"
            )
        return kind(**{name: _decode(hints[name], value[name], f"{path}.{name}") for name in hints})  # type: ignore[operator]
    elif kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    elif type(value) is kind:
        return value
    raise ValueError(f"{path} is not valid: {str(value)[:60]!r}")
