"""Where the time of an entry goes: every layer measured, and held against the limits of this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgecsi.bench.result import LayerTime, Limits
from edgecsi.bundle import Bundle, Entry, Layer, Loaded, read_golden

PASSES = 500
SECONDS = 2.0
_INTEGER_INPUTS = ("qs8_", "qd8_")
"""Kernels whose name begins so multiply int8 by int8; the others multiply in fp32, whatever their weights."""


def measure_layers(bundle: Bundle, limits: Limits | None) -> dict[str, tuple[LayerTime, ...]]:
    """Measures the layers of every entry of a bundle on this machine, with the golden inputs.

    Args:
        bundle: built for this machine.
        limits: of this machine; without them no shares are given.

    Raises:
        DeviceError: the bundle cannot run here.
        BundleError: it cannot be loaded.
    """
    loaded = Loaded(bundle)
    return {
        name: layer_times(loaded, name, [array[0] for array in read_golden(bundle, name)[0]], limits)
        for name in sorted(loaded.entries)
    }


def layer_times(
    loaded: Loaded,
    entry: str,
    inputs: Sequence[NDArray[np.float32]],
    limits: Limits | None = None,
    passes: int = PASSES,
) -> tuple[LayerTime, ...]:
    """The median time of every layer over ``passes`` calls (fewer if they take more than 2 s, at least 5).

    Args:
        loaded: the bundle.
        entry: which one.
        inputs: one array per input, of the entry's shapes.
        limits: see :func:`measure_layers`.
        passes: how many calls.
    """
    described = loaded.entries[entry]
    end = time.monotonic() + SECONDS
    measured: list[list[float]] = []
    while len(measured) < passes and (time.monotonic() < end or len(measured) < 5):
        measured.append(loaded.profile(*inputs, entry=entry))
    medians = np.median(np.array(measured), axis=0) / 1e3
    return tuple(
        _layer_time(layer, described, float(us), limits)
        for layer, us in zip(described.layers, medians, strict=True)
    )


def _layer_time(layer: Layer, entry: Entry, us: float, limits: Limits | None) -> LayerTime:
    carried_out = layer.macs * layer.density
    bound: Literal["bytes", "MACs"] | None = None
    share = None
    if limits is not None and (layer.bytes or carried_out):
        bytes_us, macs_us = limit_us(layer, entry, limits)
        bound = "bytes" if bytes_us >= macs_us else "MACs"
        share = max(bytes_us, macs_us) / max(us, 1e-3)
    return LayerTime(
        name=layer.name,
        kernel=layer.kernel,
        us=us,
        predicted_us=layer.predicted_us,
        gbps=layer.bytes / max(1e3 * us, 1e-3),
        gmacs=carried_out / max(1e3 * us, 1e-3),
        bound=bound,
        share=share,
    )


def limit_us(layer: Layer, entry: Entry, limits: Limits) -> tuple[float, float]:
    """The least time in µs that this machine needs for a layer's weights, and for its multiply-adds.

    The weights of a whole entry are read once a call, so they live in the cache that holds all of them and
    the workspace. Multiply-adds with zeros that are left out do not count.
    """
    lives_in = entry.weight_bytes + entry.workspace
    bytes_us = layer.bytes / (1e3 * limits.read_rate(lives_in))
    integer = layer.kernel.startswith(_INTEGER_INPUTS) and limits.int8_gops > 0
    rate = limits.int8_gops if integer else limits.fp32_gflops
    return bytes_us, 2 * layer.macs * layer.density / (1e3 * rate)
