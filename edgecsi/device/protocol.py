"""What every device can do, whatever lies between us and it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgecsi.bundle import Bundle

Array = NDArray[np.float32]
Samples = NDArray[Any] | Sequence[NDArray[Any]]


@dataclass(frozen=True)
class DeviceInfo:
    """What a device says about itself.

    Attributes:
        spec: how the user named it, for example ``local``.
        description: its CPU, or the emulator, in words.
        arch: ``x86_64`` or ``aarch64``; empty if the bundle decides (``emulate``).
        features: CPU features as ``/proc/cpuinfo`` names them; empty if the bundle decides.
        emulated: its times say nothing about real hardware.
    """

    spec: str
    description: str
    arch: str
    features: frozenset[str]
    emulated: bool


class Device(Protocol):
    """Somewhere a bundle runs. Every method ends in bounded time with a result or a typed error."""

    spec: str

    def info(self) -> DeviceInfo:
        """What the device is."""
        ...

    def run(self, bundle: Bundle, entry: str, x: Samples) -> Array | tuple[Array, ...]:
        """Run an entry on many samples.

        Args:
            bundle: what to run.
            entry: ``encoder``, ``decoder``, ``full``, …
            x: ``[N, *shape[1:]]`` for an entry whose input is ``shape``, N a multiple of ``shape[0]``; a
                sequence of such arrays if it has several inputs.

        Returns:
            The outputs in the same layout, float32; a tuple if the entry has several.

        Raises:
            DataError: ``x`` does not fit the entry.
            DeviceError: the device cannot run the bundle, or the library failed, crashed or never ended.
        """
        ...

    def time(
        self, bundle: Bundle, entry: str, x: Samples, repeats: int, *, flush_bytes: int = 0
    ) -> NDArray[np.float64]:
        """Time single calls, one after the other, without Python in between.

        Args:
            bundle: what to run.
            entry: as for :meth:`run`.
            x: as for :meth:`run`; call i takes sample i modulo N.
            repeats: number of calls.
            flush_bytes: how much memory to read before each call, 8 MB for times with a cold L2 cache.

        Returns:
            Nanoseconds of each call, float64 ``[repeats]``.

        Raises:
            DataError, DeviceError: as :meth:`run` does.
        """
        ...
