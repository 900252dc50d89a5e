"""The parts of a result: made of series, of a bundle's manifest, and of what a device answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgecsi import verdict
from edgecsi.bench import measure, statistics
from edgecsi.bench.cross_check import OWN
from edgecsi.bench.measure import Series
from edgecsi.bench.peers import Array
from edgecsi.bench.result import ColdStart, Comparison, Engine, MeasuredBundle
from edgecsi.bundle import Bundle, Manifest
from edgecsi.device import Device
from edgecsi.device.protocol import MeasuringProtocol
from edgecsi.verdict import Difference

FEW, MANY = 0.9, 1.1
"""CPU time over elapsed time of an engine that has one core to itself and keeps to it lies between."""


def as_samples(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Golden arrays ``[samples, *shape]`` as devices take them: ``[samples * shape[0], *shape[1:]]``."""
    return array.reshape(-1, *array.shape[2:])


def worst(name: str, outputs: Sequence[Array], expected: Sequence[Array], allowed: float) -> Difference:
    found = [verdict.require(name, y, e, allowed) for y, e in zip(outputs, expected, strict=True)]
    return max(found, key=lambda difference: difference.max_rel_diff)


def allowed(manifest: Manifest, entry: str) -> float:
    """The bar on this device: what the build allowed, and what another device may add."""
    checked = manifest.check.entries.get(entry)
    return verdict.elsewhere(
        checked.allowed if checked is not None else None, manifest.entries[entry].quantised
    )


def engine(name: str, version: str, answer: Difference, series: Series) -> Engine:
    return Engine(
        name=name,
        version=version,
        answer=answer,
        warm=statistics.summarise(series.samples / 1e3),
        cold=statistics.summarise(series.cold / 1e3),
        settled=series.settled,
        complete=series.complete,
        threads=series.threads,
        rounds=tuple(turn.size for turn in series.rounds),
        samples=tuple(series.samples.tolist()),
        cold_samples=tuple(series.cold.tolist()),
    )


def comparisons(series: Mapping[str, Series]) -> tuple[Comparison, ...]:
    own = series[OWN]

    def floats(rounds: Sequence[measure.Nanoseconds]) -> list[statistics.Floats]:
        return [turn.astype(np.float64) for turn in rounds]

    def singles(series: Series) -> list[statistics.Floats]:
        return [np.array([value], np.float64) for value in series.cold]

    return tuple(
        Comparison(
            name,
            statistics.ratio(floats(own.rounds), floats(other.rounds)),
            statistics.ratio(singles(own), singles(other)),
        )
        for name, other in series.items()
        if name != OWN
    )


def suspicions(series: Mapping[str, Series]) -> list[str]:
    notes = [f"{name} did not settle while warming up" for name, one in series.items() if not one.settled]
    if not all(one.complete for one in series.values()):
        notes.append("the time limit ended it before the protocol's number of samples")
    notes += [f"{name} used {one.threads:.1f} threads" for name, one in series.items() if one.threads > MANY]
    scarcest = min(one.threads for one in series.values())
    if scarcest < FEW:
        notes.append(f"engines got as little as {scarcest:.2f} of their core")
    return notes


def measured(bundle: Bundle, entry: str) -> MeasuredBundle:
    manifest, check = bundle.manifest, bundle.manifest.check
    described, checked = bundle.entry(entry), check.entries.get(entry)
    return MeasuredBundle(
        name=manifest.name,
        digest=manifest.digest,
        model=manifest.model.spec,
        recipe=manifest.model.recipe,
        target=manifest.target.id,
        library_bytes=manifest.files[manifest.library].bytes,
        weight_bytes=described.weight_bytes,
        macs=described.macs,
        nmse_db=checked.nmse_db if checked is not None else None,
        nmse_db_pytorch=checked.nmse_db_pytorch if checked is not None else None,
        nmse_db_fp32=checked.nmse_db_fp32 if checked is not None else None,
        data=f"{check.samples} samples of {check.data}" if check.samples else check.data,
    )


def passes(protocol: MeasuringProtocol) -> int:
    """How often every layer is timed."""
    return 20 if protocol.quick else 200


def cold_starts(
    device: Device, bundle: Bundle, entry: str, sample: Sequence[Array], protocol: MeasuringProtocol
) -> tuple[ColdStart, ...]:
    return tuple(
        ColdStart(one.load_ms, one.first_call_ms, one.process_peak_bytes, one.bundle_bytes)
        for one in device.first_calls(bundle, entry, sample, protocol.cold_starts)
    )
