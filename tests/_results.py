"""Made-up results whose samples behave as real ones do: rounds share a mood, calls have a tail."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np

from edgecsi.bench import statistics
from edgecsi.bench.result import (
    Comparison,
    Engine,
    LayerTime,
    Machine,
    MeasuredBundle,
    MeasuringProtocol,
    Result,
    Snapshot,
    Validity,
    write_result,
)
from edgecsi.verdict import Difference

MACHINE = Machine("Xeon", 2, "x86_64", "Linux", True, {"L2": "2048K"}, {"edgecsi": "0.1.0"})
STATE = Snapshot("2026-11-01T00:00:00+00:00", 1.0, None, None, (2000.0,), 50.0, None, 1.0, 0.0, 1.0)
BUNDLE = MeasuredBundle("csinet", "ab" * 32, "csinet-cr4", None, "host", 400_000, nmse_db=-20.0, data="test")
ROUNDS, CALLS = 200, 40


def moods(seed: int, rounds: int = ROUNDS, rho: float = 0.62, spread: float = 0.01) -> np.ndarray:
    """One factor a round, around 1; neighbours correlate as they were seen to."""
    generator = np.random.default_rng(seed)
    series = generator.normal(0, spread * np.sqrt(1 - rho**2), rounds)
    series[0] /= np.sqrt(1 - rho**2)
    for index in range(1, rounds):
        series[index] += rho * series[index - 1]
    return np.exp(series)


def engine(name: str, us: float, seed: int, machine: np.ndarray | None = None, cheap: bool = False) -> Engine:
    """An engine of ``us`` µs; ``machine`` is the mood of every round, shared by the engines of one run;
    with ``cheap``, only the median of its summary is its own."""
    generator = np.random.default_rng([seed, len(name)])
    mood = moods(seed) if machine is None else machine
    calls = 1e3 * us * mood[:, None] * np.exp(np.abs(generator.normal(0, 0.01, (ROUNDS, CALLS))))
    slow = generator.random((ROUNDS, CALLS)) < 0.02
    samples = np.rint(calls * np.where(slow, 1.6, 1.0)).astype(np.int64).ravel()
    summary = (
        dataclasses.replace(_summary(), median=float(np.median(samples)) / 1e3)
        if cheap
        else (statistics.summarise(samples / 1e3))
    )
    return Engine(
        name, "1", Difference(1e-6, 1e-6), summary, summary, True, True, 1.0, (CALLS,) * ROUNDS,
        tuple(samples.tolist()), tuple(samples[:100].tolist()),
    )  # fmt: skip


@cache
def _summary() -> statistics.Summary:
    return statistics.summarise(np.linspace(44.0, 46.0, 2000))


def result(
    us: float = 45.0, seed: int = 0, peer: float | None = None, drift: float = 0.0, cheap: bool = False
) -> Result:
    """A run; ``drift`` is what the machine does to everything in it, as from run to run."""
    machine = moods(1000 + seed) * (1 + drift)
    own = engine("edgecsi", us, seed, machine, cheap)
    engines, comparisons = (own,), ()
    if peer is not None:
        other = engine("onnxruntime", peer, seed, machine)
        rounds = [np.split(np.array(e.samples, float), ROUNDS) for e in (own, other)]
        ratio = statistics.ratio(rounds[0], rounds[1])
        engines, comparisons = (own, other), (Comparison("onnxruntime", ratio, ratio),)
    return Result(
        bundle=BUNDLE,
        entry="full",
        device="local",
        protocol=MeasuringProtocol(False, 1000, 1.0),
        machine=MACHINE,
        before=STATE,
        after=STATE,
        validity=Validity("valid"),
        answer=Difference(1e-6, 1e-6),
        engines=engines,
        comparisons=comparisons,
        layers=(
            LayerTime(
                "encoder.fc",
                "f32_dense",
                us / 3,
                None,
                10.0,
                5.0,
                "bytes",
                0.9,
                statistics.Interval(us / 3, us / 3),
            ),
        ),
    )


def emulated(count: int = 1_000_000) -> Result:
    """A count of instructions."""
    found = result()
    return dataclasses.replace(
        found, engines=(), layers=(), comparisons=(), instructions=count, device="emulate",
        validity=Validity("invalid", ("emulated",)),
    )  # fmt: skip


def written(folder: Path, name: str, found: Result) -> Path:
    """Its file."""
    path = folder / f"{name}.json"
    write_result(found, path)
    return path
