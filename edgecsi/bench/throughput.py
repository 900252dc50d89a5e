"""How many samples a second: batches on several threads, against the best that another engine makes of them.

A base station decodes for many terminals at once. There the time of one call says little; what counts is how
many samples a second all threads together get through.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgecsi import verdict
from edgecsi.bench import measure, statistics
from edgecsi.bench.measure import Call
from edgecsi.bench.parts import as_samples
from edgecsi.bench.peers import Array, Batched, find_peers
from edgecsi.bench.result import Gain, Rate, Skipped, Throughput
from edgecsi.bundle import Bundle, read_golden
from edgecsi.device import Device, Remote
from edgecsi.device.protocol import MeasuringProtocol
from edgecsi.device.remote import MIN_ROUNDS as ROUNDS
from edgecsi.device.rpc_device import Rpc
from edgecsi.errors import CheckFailed, ToolchainError, UsageError
from edgecsi.progress import Progress
from edgecsi.verdict import Difference

if TYPE_CHECKING:
    from torch import nn

PEER_BATCHES = (1, 8, 64)
PEER_THREADS = (1, 2)
REST = 0.005
"""Seconds between two turns: threads of the engine before may still spin, waiting for work."""


@dataclass(frozen=True)
class BatchedEngine:
    """An engine ready to be measured: one call computes ``samples`` samples."""

    name: str
    version: str
    answer: Difference
    batch: int
    threads: int
    samples: int
    call: Call


def measure_rates(
    engines: Sequence[BatchedEngine], protocol: MeasuringProtocol, progress: Progress | None = None
) -> tuple[Throughput, float]:
    """Measures engines in turns; the first one is compared with the best of every other engine.

    Args:
        engines: edgecsi first.
        protocol: its ``seconds`` are spent on every engine (at least 20 rounds, at most ``limit``).
        progress: told after every round.

    Returns:
        What was found, and how many cores the first engine kept busy.
    """
    with measure.undisturbed():
        counts = [_calls_a_turn(engine.call, protocol) for engine in engines]
        rounds: list[list[float]] = [[] for _ in engines]
        spent = [0.0 for _ in engines]
        computed, done = 0.0, 0.0
        while done < 1.0 and max(spent) < protocol.limit:
            for index, engine in enumerate(engines):
                time.sleep(REST)
                for _ in range(protocol.settle):
                    engine.call()
                begin_computing, begin = time.process_time(), time.perf_counter()
                for _ in range(counts[index]):
                    engine.call()
                seconds = time.perf_counter() - begin
                computed += time.process_time() - begin_computing if index == 0 else 0.0
                rounds[index].append(seconds / (counts[index] * engine.samples))
                spent[index] += seconds
            done = min(len(rounds[0]) / ROUNDS, min(spent) / protocol.seconds, 1.0)
            if progress is not None:
                progress(done, 1.0, "measuring batches")
    rates = tuple(_rate(engine, times) for engine, times in zip(engines, rounds, strict=True))
    best: dict[str, int] = {}
    for index, rate in enumerate(rates[1:], 1):
        if rate.name not in best or rate.median > rates[best[rate.name]].median:
            best[rate.name] = index
    gains = tuple(
        Gain(
            name,
            rates[index].batch,
            rates[index].threads,
            # The other's time over ours is our rate over the other's.
            statistics.ratio(_single(rounds[index]), _single(rounds[0])),
        )
        for name, index in best.items()
    )
    return Throughput(rates, gains), computed / max(spent[0], 1e-9)


def device_rate(
    bundle: Bundle,
    entry: str,
    device: Device,
    protocol: MeasuringProtocol,
    batch: int,
    threads: int,
    check: Callable[[Array, Array], Difference],
) -> tuple[Throughput, float]:
    """Samples a second on another device: over ``ssh://`` on any number of threads, through RPC on one, and only in
    batches that the bundle has an entry for.

    Args:
        bundle: what to run.
        entry: which one.
        device: where.
        protocol: how much.
        batch, threads: every thread takes so many samples at once.
        check: holds outputs against what they should be.

    Returns:
        What was found, and how many cores were kept busy.

    Raises:
        CheckFailed: a wrong answer is not timed.
        DeviceError: the device cannot run it, or is lost.
    """
    sizes = bundle.batch_entries(entry)
    used = used_sizes(sizes, batch)
    inputs, expected = (as_samples(arrays[0]) for arrays in read_golden(bundle, entry))
    answers = [
        check(_one(device.run(bundle, sizes[size], repeated(inputs, size))), repeated(expected, size))
        for size in used
    ]
    x = repeated(inputs, batch)
    if isinstance(device, Remote):
        found = device.rates(bundle, [sizes[size] for size in used], x, threads, protocol)
        seconds, cores = found.seconds, found.cores
    else:
        series = device.measure(bundle, sizes[batch], x, protocol)
        if series.lost is not None:
            raise series.lost
        seconds, cores = np.array([turn.mean() / 1e9 for turn in series.rounds]), 1.0
    answer = max(answers, key=lambda difference: difference.max_rel_diff)
    version = bundle.manifest.created_with.edgecsi
    engine = BatchedEngine("edgecsi", version, answer, batch, threads, batch * threads, lambda: None)
    return Throughput((_rate(engine, (seconds / (batch * threads)).tolist()),), ()), cores


def used_sizes(sizes: Iterable[int], batch: int) -> list[int]:
    """Those batches, largest first, that a number of samples is divided into."""
    used = []
    for size in sizes:
        if batch >= size:
            used.append(size)
            batch %= size
    return used


def refuse_batches(bundle: Bundle, entry: str, device: Device, batch: int, threads: int) -> None:
    """Refuses what cannot be measured in batches, before anything is measured.

    Raises:
        UsageError: the entry maps other than one array of samples to another; the device has no latencies, or only
            some ways of calling.
        BundleError: there is no such entry.
    """
    sizes, described = bundle.batch_entries(entry), bundle.entry(entry)
    if not described.maps_samples:
        several = next((name for name in sizes.values() if name != entry), "")
        raise UsageError(
            f"{entry} cannot be measured in batches",
            f"they are of one array of samples that becomes another, and it takes {len(described.inputs)} inputs and "
            f"gives {len(described.outputs)} outputs, or some without a sample axis",
            "leave --batch out: single calls are measured"
            + (f", of --entry {several} too" if several else ""),
        )
    if batch % min(sizes):
        raise UsageError(
            f"{entry} cannot be measured in batches of {batch}", f"a call takes {min(sizes)} samples",
            f"give a multiple of {min(sizes)}",
        )  # fmt: skip
    if device.spec == "emulate":
        raise UsageError("batches cannot be measured emulated", "there are no times", "use a real device")
    if isinstance(device, Rpc) and (threads > 1 or batch not in sizes):
        why = (
            "TVM's RPC calls a function on one thread"
            if threads > 1
            else f"TVM's RPC calls one function, and the bundle has none for {batch}: it has {sorted(sizes)}"
        )
        raise UsageError(
            f"{device.spec} cannot measure batches of {batch} on {threads} threads", why,
            f"use ssh://, or a bundle that was built with --batch {batch}, on one thread",
        )  # fmt: skip


def _one(outputs: Array | tuple[Array, ...]) -> Array:
    assert not isinstance(outputs, tuple)  # refuse_batches saw to that
    return outputs


def batched_peers(
    module: nn.Module,
    samples: Array,
    entry: str,
    names: Sequence[str],
    reference: Callable[[Array], Array],
    progress: Progress | None = None,
) -> tuple[list[BatchedEngine], list[Skipped]]:
    """Other engines in every batch of 1, 8, 64 and on 1 and 2 threads, each checked against PyTorch.

    Args:
        module: the model, float32.
        samples: float32 ``[N, *shape]``, N ≥ 1; repeated as often as a batch needs.
        entry: which part of the model.
        names: of the engines.
        reference: what PyTorch answers.
        progress: told which engine is being prepared.

    Returns:
        What can be measured; and the engines that cannot, with the reason.
    """
    engines: list[BatchedEngine] = []
    skipped: list[Skipped] = []
    for peer in find_peers(names):
        if (reason := peer.available()) is not None:
            skipped.append(Skipped(peer.name, reason, peer.install))
            continue
        if not isinstance(peer, Batched):
            skipped.append(
                Skipped(peer.name, "batches are measured against onnxruntime only", "--against onnxruntime")
            )
            continue
        refused: dict[int, str] = {}
        try:
            for done, batch in enumerate(PEER_BATCHES):
                if progress is not None:
                    progress(done, len(PEER_BATCHES), f"preparing {peer.name} for batches of {batch}")
                x = repeated(samples, batch)
                try:
                    expected = reference(x)
                except Exception as error:  # the network may be the user's, and take one batch only
                    refused[batch] = " ".join(str(error).split())[:200]
                    continue
                prepared = peer.prepare_threads(module, x, entry, PEER_THREADS)
                for threads, run in zip(PEER_THREADS, prepared, strict=True):
                    found = verdict.require(peer.name, run(x), expected, peer.allowed)
                    call = _bound(run, x)
                    engines.append(
                        BatchedEngine(peer.name, peer.version(), found, batch, threads, batch, call)
                    )
        except (ToolchainError, CheckFailed) as error:
            skipped.append(Skipped(peer.name, f"{error.what}: {error.why}", error.fix))
        if refused:
            batches, why = ", ".join(map(str, refused)), next(iter(refused.values()))
            skipped.append(
                Skipped(peer.name, f"the network takes no batches of {batches}: {why}", "leave --batch out")
            )
    return engines, skipped


def repeated(samples: Array, count: int) -> Array:
    """``count`` samples: those there are, again and again."""
    return np.ascontiguousarray(np.resize(samples, (count, *samples.shape[1:])))


def _bound(run: Callable[[Array], Array], x: Array) -> Call:
    return lambda: run(x)


def _calls_a_turn(call: Call, protocol: MeasuringProtocol) -> int:
    _, median = measure.warm_up(call, limit=2.0)
    return max(1, math.ceil(protocol.turn * 1e9 / median))


def _rate(engine: BatchedEngine, seconds_a_sample: Sequence[float]) -> Rate:
    rounds = 1 / np.array(seconds_a_sample)
    return Rate(
        name=engine.name,
        version=engine.version,
        answer=engine.answer,
        batch=engine.batch,
        threads=engine.threads,
        median=float(np.median(rounds)),
        interval=statistics.median_interval(rounds),
        rounds=tuple(float(rate) for rate in rounds),
    )


def _single(values: Sequence[float]) -> list[statistics.Floats]:
    return [np.array([value], np.float64) for value in values]
