"""One bundle measured by the whole protocol, alone or against other engines: what ``edgecsi bench`` calls."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgecsi import verdict
from edgecsi.bench import measure, parts, statistics, throughput
from edgecsi.bench.competitors import Loader, checked_module, prepare_peers, pytorch_output
from edgecsi.bench.cross_check import OWN, over_rpc, same_rounds
from edgecsi.bench.environment import judge, machine, snapshot
from edgecsi.bench.layers import layer_times
from edgecsi.bench.limits import kept_limits
from edgecsi.bench.measure import FULL, QUICK, Call
from edgecsi.bench.peers import Array, find_peers
from edgecsi.bench.result import Machine, Result, Skipped, Snapshot, Validity
from edgecsi.bundle import Bundle, Loaded, read_bundle, read_golden
from edgecsi.device import Device, Remote, open_device
from edgecsi.device.protocol import MeasuringProtocol
from edgecsi.errors import ConnectionLost, DeviceError, UsageError
from edgecsi.names import split_batch
from edgecsi.progress import Progress
from edgecsi.verdict import Difference


class BrokenOff(ConnectionLost):
    """The way to a device broke while it was measured.

    Args:
        lost: what happened.
        result: of what was measured until then, marked as invalid.
    """

    def __init__(self, lost: DeviceError, result: Result) -> None:
        super().__init__(lost.what, lost.why, lost.fix)
        self.result = result


def run_bench(
    path: str | Path,
    *,
    entry: str | None = None,
    device: str | Device = "local",
    quick: bool = False,
    seconds: float | None = None,
    against: Sequence[str] = (),
    load_module: Loader | None = None,
    batch: int | None = None,
    threads: int = 1,
    cross_check: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Measures one entry of a bundle: latencies on one thread, or the throughput of batches.

    Args:
        path: the bundle's folder.
        entry: ``encoder``, ``decoder``, ``full``, ...; default: ``full``, or the only one.
        device: where; a name or a device.
        quick: the cut-down protocol; an emulated device has no other.
        seconds: spend so many on every engine, instead of what the protocol says.
        against: peers to compare with, on ``local`` only.
        load_module: gives the PyTorch model that the peers take, from the bundle's manifest; needed with
            ``against``.
        batch: measure samples a second: every thread takes so many at once (:meth:`Loaded.run_many`), and the
            peers are measured in batches of 1, 8 and 64 on 1 and 2 threads.
        threads: of edgecsi, with ``batch``.
        cross_check: on ``ssh://``, measure through TVM's RPC as well, and a call that does nothing both ways.
        progress: told how far it is.

    Returns:
        The result. Under emulation it has the answer and the instruction count, and no latencies; with
        ``batch`` it has the throughput, and no latencies.

    Raises:
        BundleError: no bundle, no such entry, or a changed file.
        CheckFailed: the library answers wrongly, so it is not timed; or the peers' model has other weights.
        DeviceError: the device cannot run the bundle.
        BrokenOff: the way to the device broke in the middle; it has the result so far.
        UsageError: an unknown engine or device, or peers asked for on a device that has none.
    """
    if isinstance(device, str):
        with contextlib.closing(open_device(device)) as opened:
            return run_bench(
                path, entry=entry, device=opened, quick=quick, seconds=seconds, against=against,
                load_module=load_module, batch=batch, threads=threads, cross_check=cross_check, progress=progress,
            )  # fmt: skip
    opened = device
    peers = find_peers(against)  # before anything takes long
    bundle = read_bundle(Path(path))
    entry = bundle.chosen(entry)
    if peers:
        _refuse_peers(opened, load_module)
    if cross_check and not isinstance(opened, Remote):
        raise UsageError(
            f"{opened.spec} cannot be cross-checked",
            "that compares SSH with RPC on one device",
            "use ssh://HOST",
        )
    if peers and split_batch(entry)[1] > 1:
        raise UsageError(
            f"other engines cannot be measured on {entry}", "it is several calls at once, and they are given single ones",
            f"compare --entry {split_batch(entry)[0]}, or batches: --batch {split_batch(entry)[1]}",
        )  # fmt: skip
    elsewhere = opened.spec != "local"
    if batch is not None:
        throughput.refuse_batches(bundle, entry, opened, batch, threads)
    # the times of a device under QEMU say nothing, however long they are taken
    protocol = QUICK if quick or (elsewhere and opened.info().emulated) else FULL
    if seconds is not None:
        protocol = replace(protocol, seconds=seconds)
    if batch is not None and elsewhere:
        return _throughput_elsewhere(bundle, entry, opened, protocol, batch, threads)
    if elsewhere:
        return _elsewhere(bundle, entry, opened, protocol, cross_check, progress)

    loaded = Loaded(bundle)
    inputs, expected = read_golden(bundle, entry)
    if batch is not None:
        return _throughput(
            loaded, entry, protocol, batch, threads, against, load_module, (inputs, expected), progress
        )
    return _latencies(loaded, opened, entry, protocol, against, load_module, (inputs, expected), progress)


def _refuse_peers(device: Device, load_module: Loader | None) -> None:
    if device.spec != "local":
        raise UsageError(
            f"other engines cannot be measured on {device.spec}",
            "they are installed on this machine only",
            "measure without them; a bundle for this machine's CPU can be held against them with --device local",
        )
    if load_module is None:
        raise UsageError(
            "other engines need the PyTorch model", "a bundle holds none", "pass load_module= with against="
        )


def _latencies(
    loaded: Loaded,
    device: Device,
    entry: str,
    protocol: MeasuringProtocol,
    against: Sequence[str],
    load_module: Loader | None,
    golden: tuple[Sequence[Array], Sequence[Array]],
    progress: Progress | None,
) -> Result:
    """In this process, Python to Python, in turns with other engines."""
    bundle, (inputs, expected) = loaded.bundle, golden
    described = bundle.entry(entry)
    sample = [
        np.array(array[0]) for array in inputs
    ]  # golden arrays are read-only, which PyTorch does not take
    answers = {OWN: _check_bundle(loaded, entry, inputs, expected)}
    versions = {OWN: bundle.manifest.created_with.edgecsi}
    calls: dict[str, Call] = {OWN: lambda: loaded.run(*sample, entry=entry)}
    skipped: list[Skipped] = []
    if against and load_module is not None:
        module = checked_module(load_module, bundle.manifest, entry, sample, [array[0] for array in expected])
        prepared = prepare_peers(module, sample, entry, against, progress)
        skipped = prepared.skipped
        answers |= prepared.answers
        versions |= prepared.versions
        calls |= prepared.calls(sample)

    before = snapshot()
    series = measure.interleave(calls, protocol, progress)
    once = [array[:1].reshape(tensor.shape) for array, tensor in zip(inputs, described.inputs, strict=True)]
    device.time(bundle, entry, once, protocol.samples // 10)  # warm again
    c_call = device.time(bundle, entry, once, protocol.samples)
    after = snapshot()

    engines = tuple(parts.engine(name, versions[name], answers[name], one) for name, one in series.items())
    return Result(
        bundle=parts.measured(bundle, entry),
        entry=entry,
        device=device.spec,
        protocol=protocol,
        machine=machine(),
        before=before,
        after=after,
        validity=judge(before, after, where=machine(), notes=parts.suspicions(series)),
        answer=answers[OWN],
        engines=engines,
        comparisons=parts.comparisons(series),
        skipped=tuple(skipped),
        c_call=statistics.summarise(c_call / 1e3),
        cold_starts=parts.cold_starts(device, bundle, entry, sample, protocol),
        layers=layer_times(device, bundle, entry, kept_limits(), parts.passes(protocol)),
    )


def _elsewhere(
    bundle: Bundle,
    entry: str,
    device: Device,
    protocol: MeasuringProtocol,
    cross_check: bool,
    progress: Progress | None,
) -> Result:
    """On another device than this process: the C face, by the same protocol; or, where instructions can be
    counted, these."""
    info = device.info()
    inputs, expected = read_golden(bundle, entry)
    sample = [array[0] for array in inputs]
    where, begin = _there(device)
    outputs = device.run(bundle, entry, [parts.as_samples(array) for array in inputs])
    several = outputs if isinstance(outputs, tuple) else (outputs,)
    found = parts.worst(
        OWN, several, [parts.as_samples(array) for array in expected], parts.allowed(bundle.manifest, entry)
    )
    result = Result(
        bundle=parts.measured(bundle, entry),
        entry=entry,
        device=device.spec,
        protocol=protocol,
        machine=where,
        before=begin,
        after=begin,
        validity=judge(begin, begin, where=where, emulated=info.emulated),
        answer=found,
    )
    if info.emulated and (count := device.count_instructions(bundle, entry, sample)) is not None:
        after = snapshot(device.state())
        return replace(
            result, after=after, validity=judge(begin, after, where=where, emulated=True), instructions=count
        )
    before = snapshot(device.state())
    series = device.measure(bundle, entry, sample, protocol, progress)
    version = bundle.manifest.created_with.edgecsi
    engine = parts.engine(OWN, version, found, series)
    result = replace(result, before=before, after=before, engines=(engine,), c_call=engine.warm)
    if series.lost is not None:
        lost = f"{series.lost.what} after {series.samples.size:,} calls: {series.lost.why}"
        raise BrokenOff(series.lost, replace(result, validity=Validity("invalid", (lost,))))
    after = snapshot(device.state())
    # What a server does not tell of itself: it kept one core busy all the time.
    own = series.cpu_seconds if series.cpu_seconds is not None else after.clock - before.clock
    after = replace(after, own=own)
    if cross_check and isinstance(device, Remote):
        both = {OWN: series} | over_rpc(series, device, bundle, entry, sample, protocol, progress)
        exact = Difference(0.0, 0.0)
        engines = tuple(
            parts.engine(name, version, found if OWN in name else exact, one) for name, one in both.items()
        )
        result = replace(result, engines=engines, comparisons=parts.comparisons(same_rounds(both)))
    notes = parts.suspicions({OWN: series})
    return replace(
        result,
        after=after,
        validity=judge(before, after, where=where, emulated=info.emulated, notes=notes),
        cold_starts=parts.cold_starts(device, bundle, entry, sample, protocol),
        layers=layer_times(device, bundle, entry, None, parts.passes(protocol)),
    )


def _there(device: Device) -> tuple[Machine, Snapshot]:
    """The machine that a device is, and how it is now."""
    info, state = device.info(), device.state()
    where = machine(state)
    return where if info.arch == "" else replace(where, cpu=info.description), snapshot(state)


def _throughput(
    loaded: Loaded,
    entry: str,
    protocol: MeasuringProtocol,
    batch: int,
    threads: int,
    against: Sequence[str],
    load_module: Loader | None,
    golden: tuple[Sequence[Array], Sequence[Array]],
    progress: Progress | None,
) -> Result:
    manifest = loaded.manifest
    inputs, expected = (parts.as_samples(arrays[0]) for arrays in golden)
    count = batch * threads
    x = throughput.repeated(inputs, count)
    found = parts.worst(
        OWN,
        [loaded.run_many(x, entry, threads)],
        [throughput.repeated(expected, count)],
        parts.allowed(manifest, entry),
    )
    version = manifest.created_with.edgecsi
    call: Call = lambda: loaded.run_many(x, entry, threads)  # noqa: E731
    engines = [throughput.BatchedEngine(OWN, version, found, batch, threads, count, call)]
    skipped: list[Skipped] = []
    if against and load_module is not None:
        module = checked_module(load_module, manifest, entry, [golden[0][0][0]], [golden[1][0][0]])
        others, skipped = throughput.batched_peers(
            module, inputs, entry, against, lambda x: pytorch_output(module, x, entry), progress
        )
        engines += others
    before = snapshot()
    measured, cores = throughput.measure_rates(engines, protocol, progress)
    after = snapshot()
    notes = [f"edgecsi got {cores:.1f} of {threads} cores"] if cores < parts.FEW * threads else []
    return Result(
        bundle=parts.measured(loaded.bundle, entry),
        entry=entry,
        device="local",
        protocol=protocol,
        machine=machine(),
        before=before,
        after=after,
        validity=judge(before, after, where=machine(), notes=notes),
        answer=found,
        skipped=tuple(skipped),
        throughput=measured,
    )


def _throughput_elsewhere(
    bundle: Bundle, entry: str, device: Device, protocol: MeasuringProtocol, batch: int, threads: int
) -> Result:
    where, before = _there(device)
    allowed = parts.allowed(bundle.manifest, entry)
    found, cores = throughput.device_rate(
        bundle, entry, device, protocol, batch, threads,
        lambda y, expected: verdict.require(OWN, y, expected, allowed),
    )  # fmt: skip
    after = snapshot(device.state())
    after = replace(after, own=cores * (after.clock - before.clock))
    notes = [f"edgecsi got {cores:.1f} of {threads} cores"] if cores < parts.FEW * threads else []
    return Result(
        bundle=parts.measured(bundle, entry),
        entry=entry,
        device=device.spec,
        protocol=protocol,
        machine=where,
        before=before,
        after=after,
        validity=judge(before, after, where=where, emulated=device.info().emulated, notes=notes),
        answer=found.rates[0].answer,
        throughput=found,
    )


def _check_bundle(
    loaded: Loaded, entry: str, inputs: Sequence[Array], expected: Sequence[Array]
) -> Difference:
    """The largest difference over all golden samples."""
    outputs: list[tuple[Array, ...]] = []
    for index in range(len(inputs[0])):
        y = loaded.run(*(array[index] for array in inputs), entry=entry)
        outputs.append(y if isinstance(y, tuple) else (y,))
    stacked = [np.stack(several) for several in zip(*outputs, strict=True)]
    return parts.worst(OWN, stacked, expected, parts.allowed(loaded.manifest, entry))
