"""Results as pictures; needs matplotlib (the extra ``data``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgecsi import disk, drawing
from edgecsi.bench.result import Result
from edgecsi.errors import DataError, ToolchainError


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
        figure = drawing.figure(8, 4.5)
    except ImportError:
        raise ToolchainError(
            "the picture cannot be drawn", "matplotlib is not installed", "pip install matplotlib"
        ) from None
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
    with disk.whole(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
