"""The result of a measurement as data (JSON, docs/report-format.md). Nothing here measures: `edgecsi.report` shows it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgecsi.bench.statistics import Interval, Ratio, Summary
from edgecsi.errors import DataError

SCHEMA = 1
MAX_BYTES = 1 << 30
State = Literal["valid", "suspect", "invalid"]


@dataclass(frozen=True)
class Machine:
    """What does not change during a measurement."""

    cpu: str
    cores: int
    architecture: str
    system: str
    hypervisor: bool
    caches: dict[str, str]
    versions: dict[str, str]


@dataclass(frozen=True)
class Snapshot:
    """What does change. Frequencies in MHz, temperature in °C, times in seconds; None where it cannot be
    read.

    ``busy``, ``stolen`` and ``own`` are CPU seconds since boot (since the start, for ``own``): of all
    processes, taken by the hypervisor, and of this process with its finished children.
    """

    date: str
    clock: float
    load_average: tuple[float, float, float] | None
    governor: str | None
    frequency: tuple[float, ...] | None
    temperature: float | None
    throttled: int | None
    busy: float | None
    stolen: float | None
    own: float


@dataclass(frozen=True)
class Validity:
    """``valid``: believe it. ``suspect``: something disturbed it. ``invalid``: it is not a latency of
    this machine."""

    state: State
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Protocol:
    """How much is measured. A series ends when it has both ``samples`` calls and ``seconds``, or at
    ``limit``.

    Attributes:
        quick: whether this is the cut-down protocol; every report says so.
        samples: calls per engine, at least.
        seconds: time per engine, at least.
        limit: seconds per engine, at most, for networks too slow for ``samples``.
        turn: seconds one engine runs before the next has its turn.
        turn_calls: calls in a turn, at least.
        settle: untimed calls at the start of a turn, so that an engine finds its own data in the cache again.
        cold_samples: calls with a cold L2.
        cold_starts: fresh processes.
    """

    quick: bool
    samples: int
    seconds: float
    limit: float = 60.0
    turn: float = 0.005
    turn_calls: int = 5
    settle: int = 2
    cold_samples: int = 200
    cold_starts: int = 5


@dataclass(frozen=True)
class Answer:
    """How far an output is from PyTorch's: absolute, and relative to the largest output."""

    max_abs_diff: float
    max_rel_diff: float


@dataclass(frozen=True)
class ColdStart:
    """One fresh process that loads a bundle and calls it once: milliseconds, and its peak memory in bytes.

    ``process_peak_bytes`` is the peak of the whole Python process, ``bundle_bytes`` what loading and the call
    added to its resident memory.
    """

    load_ms: float
    first_call_ms: float
    process_peak_bytes: int
    bundle_bytes: int


@dataclass(frozen=True)
class MeasuredBundle:
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

    bundle: MeasuredBundle
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


@dataclass(frozen=True)
class Limits:
    """One core's limits.

    Attributes:
        machine: which machine.
        read_gbps: bytes of the working set → GB/s reading it again and again (1 GB = 10⁹ bytes).
        fp32_gflops: GFLOP/s of fp32 multiply-adds on registers, a multiply-add being two.
        int8_gops: GOP/s of the CPU's best int8 dot product, counted the same way; 0 if it has none.
        int8_instruction: which that is: ``avx512_vnni``, ``avx_vnni``, ``avx2``, ``sdot``, ``neon`` or empty.
        vector_bytes: width of the vectors used.
        validity: whether the machine was quiet.
    """

    machine: Machine
    read_gbps: dict[int, float]
    fp32_gflops: float
    int8_gops: float
    int8_instruction: str
    vector_bytes: int
    validity: Validity

    def read_rate(self, size: int) -> float:
        """GB/s with which a working set of ``size`` bytes is read again and again.

        A smaller set is never slower than a larger one; between two that were measured, the time of a pass is
        interpolated, as a part of the set may still be found in the nearer cache.
        """
        sizes = sorted(self.read_gbps)
        rates = [max(self.read_gbps[held] for held in sizes[i:]) for i in range(len(sizes))]
        if size <= sizes[0]:
            return rates[0]
        if size >= sizes[-1]:
            return rates[-1]
        passes = [held / rate for held, rate in zip(sizes, rates, strict=True)]
        return size / float(np.interp(size, sizes, passes))


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
