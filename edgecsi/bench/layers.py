"""Where the time of an entry goes: every layer measured, and held against the limits of the device."""

from __future__ import annotations

from typing import Literal

import numpy as np

from edgecsi.bench.result import LayerTime, Limits
from edgecsi.bench.statistics import Floats, median_interval
from edgecsi.bundle import Bundle, Entry, Layer, read_golden
from edgecsi.device import Device, Local
from edgecsi.kernels.variants import products

PASSES = 500
SECONDS = 2.0
_INTEGER_INPUTS = ("qs8_", "qd8_")
"""Kernels whose name begins so multiply int8 by int8; the others multiply in fp32, whatever their weights."""
_INT16_INPUTS = "qd16_"
"""The same for int16, half as many at once."""
_HALF_INPUTS = "f16_"
"""The same for half precision, twice as many at once as in fp32."""


def measure_layers(
    bundle: Bundle, limits: Limits | None, device: Device | None = None
) -> dict[str, tuple[LayerTime, ...]]:
    """Measures the layers of every entry of a bundle, with the golden inputs.

    Args:
        bundle: built for the device.
        limits: of the device; without them no shares are given.
        device: where; this machine by default.

    Raises:
        DeviceError: the bundle cannot run there.
        BundleError: it cannot be loaded.
    """
    where = device or Local()
    return {
        name: layer_times(where, bundle, name, limits, passes=PASSES)
        for name in sorted(bundle.manifest.entries)
    }


def layer_times(
    device: Device, bundle: Bundle, entry: str, limits: Limits | None = None, passes: int = PASSES
) -> tuple[LayerTime, ...]:
    """Every layer's median, with its interval, over ``passes`` calls (fewer if they take more than 2 s, at least 5).

    Args:
        device: where.
        bundle: which bundle; its golden input is used.
        entry: which one.
        limits: see :func:`measure_layers`.
        passes: how many calls.
    """
    described = bundle.entry(entry)
    inputs = [array[0] for array in read_golden(bundle, entry)[0]]
    measured = device.profile(bundle, entry, inputs, passes, SECONDS)
    if not len(measured):  # the device cannot tell
        return ()
    return tuple(
        _layer_time(layer, described, times / 1e3, limits)
        for layer, times in zip(described.layers, np.asarray(measured).T, strict=True)
    )


def _layer_time(layer: Layer, entry: Entry, times: Floats, limits: Limits | None) -> LayerTime:
    us = float(np.median(times))
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
        interval=median_interval(times),
    )


def limit_us(layer: Layer, entry: Entry, limits: Limits) -> tuple[float, float]:
    """The least time in µs that this machine needs for a layer's weights, and for its multiply-adds.

    The weights of a whole entry are read once a call, so they live in the cache that holds all of them and
    the workspace. Multiply-adds with zeros that are left out do not count, and Winograd's form has fewer.
    """
    lives_in = entry.weight_bytes + entry.workspace
    bytes_us = layer.bytes / (1e3 * limits.read_rate(lives_in))
    rate = limits.fp32_gflops
    if layer.kernel.startswith(_INTEGER_INPUTS) and limits.int8_gops > 0:
        rate = limits.int8_gops
    elif layer.kernel.startswith(_INT16_INPUTS) and limits.int8_gops > 0:
        rate = limits.int8_gops / 2
    elif layer.kernel.startswith(_HALF_INPUTS):
        rate = 2 * limits.fp32_gflops
    return bytes_us, 2 * products(layer.kernel) * layer.macs * layer.density / (1e3 * rate)
