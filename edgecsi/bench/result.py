"""The result of a measurement as data (JSON, docs/report-format.md). Nothing here measures: `edgecsi.report` shows it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from edgecsi import disk
from edgecsi.bench.behaviour import Deadline, Periodic, Runs, SelfCheck, Sustained
from edgecsi.bench.statistics import Interval, Ratio, Summary
from edgecsi.device.protocol import MeasuringProtocol
from edgecsi.errors import DataError
from edgecsi.schema import convert, one_line
from edgecsi.verdict import Accuracy, Difference

SCHEMA = 3
MAX_BYTES = 128 << 20
_FIX = "write one with edgecsi bench --json FILE"
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
    """The bundle that was measured. ``library_bytes`` is the size of its library, ``weight_bytes`` that of the
    entry's weights; NMSE in dB against the true channel, as the build found it on ``data``."""

    name: str
    digest: str
    model: str
    recipe: str | None
    target: str
    library_bytes: int
    weight_bytes: int | None = None
    macs: int | None = None
    nmse_db: float | None = None
    nmse_db_pytorch: float | None = None
    nmse_db_fp32: float | None = None
    data: str = ""

    @property
    def accuracy(self) -> Accuracy:
        """What the build found."""
        return Accuracy.of(self.recipe, self.nmse_db_fp32, self.nmse_db_pytorch, self.nmse_db)


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
    answer: Difference
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
        us: median over the passes.
        predicted_us: what the choice of the kernel was based on; None for kernels without an estimate.
        gbps: GB/s of weights.
        gmacs: GMAC/s, zeros that are left out not counted.
        bound: what this machine's limits say must take longest: reading the weights or multiplying; None if
            there is neither, or the limits are not known.
        share: the least possible time, by that limit, over ``us``.
        interval: of ``us``; None in results of older schemas.
    """

    name: str
    kernel: str
    us: float
    predicted_us: float | None
    gbps: float
    gmacs: float
    bound: Literal["bytes", "MACs"] | None = None
    share: float | None = None
    interval: Interval | None = None


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
    answer: Difference
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
        deadline: one that was asked for, and whether it was met.
        periodic: calls at a given rate.
        sustained: a long run, second by second.
        self_check: the library against itself.
        runs: the medians of several runs, of which this result is the middle one.
        commands: of edgecsi, that build the bundle and measure it again.
        program: the bundle's own example/main.c, which prints the C call's median.
    """

    bundle: MeasuredBundle
    entry: str
    device: str
    protocol: MeasuringProtocol
    machine: Machine
    before: Snapshot
    after: Snapshot
    validity: Validity
    answer: Difference
    engines: tuple[Engine, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    c_call: Summary | None = None
    cold_starts: tuple[ColdStart, ...] = ()
    layers: tuple[LayerTime, ...] = ()
    instructions: int | None = None
    throughput: Throughput | None = None
    deadline: Deadline | None = None
    periodic: Periodic | None = None
    sustained: Sustained | None = None
    self_check: SelfCheck | None = None
    runs: Runs | None = None
    commands: tuple[str, ...] = ()
    program: str = ""
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
    disk.write(path, to_json(result))


def read_result(path: Path) -> Result:
    """Reads what :func:`write_result` or ``edgecsi bench --json`` wrote, of this schema or an older one.

    Raises:
        DataError: the file is missing, too large, no result, or of a newer schema.
    """
    return decode_result(read_tree(path), path)


def read_tree(path: Path) -> Any:
    """The JSON of a file that may be a result, or one with the results of the project in it.

    Raises:
        DataError: the file is missing, too large, or no JSON; a number that is not finite is none.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MB")
        # Hundreds of thousands of samples: the strict reader of edgecsi.schema takes ten times as long.
        return msgspec.json.decode(data)
    except (OSError, ValueError, RecursionError) as error:
        raise _no_result(path, error) from None


def decode_result(tree: Any, path: Path) -> Result:
    """A result from its JSON.

    Args:
        tree: of schema 1 to this one.
        path: where it is from, for the error.

    Raises:
        DataError: it is no result, or of a newer schema.
    """
    if not isinstance(tree, dict) or tree.get("kind") != "edgecsi bench":
        raise _no_result(path, "it has no kind 'edgecsi bench'")
    # Schemas 2 and 3 only added fields that may be left out.
    schema = tree.get("schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise _no_result(path, f"it has schema {one_line(schema)}, this edgecsi reads 1 to {SCHEMA}")
    return convert(tree | {"schema": SCHEMA}, Result, what=str(path), error=DataError, fix=_FIX)


def _no_result(path: Path, why: object) -> DataError:
    return DataError(f"{path} is not a result of edgecsi bench", one_line(why), _FIX)
