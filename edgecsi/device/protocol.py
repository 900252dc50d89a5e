"""What every device can do, whatever lies between us and it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgecsi.bundle import Bundle
from edgecsi.device.state import State
from edgecsi.errors import DeviceError
from edgecsi.progress import Progress

Array = NDArray[np.float32]
Samples = NDArray[Any] | Sequence[NDArray[Any]]
Nanoseconds = NDArray[np.int64]

EVICTION_BYTES = 8 << 20
"""Read before a call to push everything else out of the L2 cache."""
EMPTY_CALLS = 1001
"""That do nothing, timed to know what timing costs; also in native/remote.c."""


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


@dataclass(frozen=True)
class MeasuringProtocol:
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
class Series:
    """The samples of one engine, in ns: ``rounds`` with a warm cache, ``cold`` after 8 MB of other data.

    ``settled`` tells whether the warm-up reached a steady median, ``complete`` whether the protocol's
    number of samples was reached within its limit. ``threads`` is CPU time over elapsed time: above 1,
    the engine did not keep to its one thread; below, it did not get the core to itself. ``cpu_seconds`` is
    what measuring used on the device in all, ``nothing`` the series of calls that do nothing, which is
    what timing itself costs; None where they are not known. ``lost`` is why the rest is missing.
    """

    rounds: list[Nanoseconds]
    cold: Nanoseconds
    settled: bool
    complete: bool
    threads: float
    cpu_seconds: float | None = None
    nothing: Series | None = None
    lost: DeviceError | None = None

    @property
    def samples(self) -> Nanoseconds:
        """Every sample, in the order it was measured."""
        return np.concatenate(self.rounds)


@dataclass(frozen=True)
class FirstCall:
    """What a fresh process took to load a bundle and to call it once (ms), its peak memory, and what of that
    loading and calling added (bytes)."""

    load_ms: float
    first_call_ms: float
    process_peak_bytes: int
    bundle_bytes: int


@dataclass(frozen=True)
class Rates:
    """Batches on several threads: ``seconds`` that each thread's batch took, of every round; ``cores`` that they kept
    busy."""

    seconds: NDArray[np.float64]
    cores: float


@dataclass(frozen=True)
class Paced:
    """Calls at a rate: µs of each call, and from when it was due to its answer; and how many were due before the one
    before had ended."""

    calls: NDArray[np.float64]
    responses: NDArray[np.float64]
    late: int


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

    def measure(
        self,
        bundle: Bundle,
        entry: str,
        x: Samples,
        protocol: MeasuringProtocol,
        progress: Progress | None = None,
    ) -> Series:
        """Time single calls of the C face by the whole protocol: warm-up, turns, cold L2; all on the device.

        Args:
            bundle: what to run.
            entry: as for :meth:`run`.
            x: one call's samples.
            protocol: how much.
            progress: told how far it is.

        Returns:
            The series; with ``lost`` if the way to the device broke after the first samples.

        Raises:
            DataError, DeviceError: as :meth:`run` does.
        """
        ...

    def profile(
        self, bundle: Bundle, entry: str, x: Samples, passes: int, seconds: float
    ) -> NDArray[np.float64]:
        """Nanoseconds of every layer, ``[passes, layers]``; fewer passes if they take longer than
        ``seconds``, at least 5. Raises as :meth:`run` does."""
        ...

    def first_calls(self, bundle: Bundle, entry: str, x: Samples, count: int) -> list[FirstCall]:
        """``count`` fresh processes that load the bundle and call it once. Raises as :meth:`run` does."""
        ...

    def count_instructions(self, bundle: Bundle, entry: str, x: Samples | None = None) -> int | None:
        """Instructions of one call, None where they cannot be counted. Raises as :meth:`run` does."""
        ...

    def state(self) -> State:
        """What Linux says about the device now."""
        ...

    def run_program(
        self,
        program: Path,
        files: Sequence[Path] = (),
        *,
        library: Path | None = None,
        timeout: float = 120.0,
    ) -> str:
        """Run a program that was compiled for the device; returns what it printed.

        Args:
            program: its file here.
            files: its arguments, files here.
            library: the shared library that it needs.
            timeout: seconds.

        Raises:
            DeviceError: it cannot be run there, fails, or does not end in time.
        """
        ...

    def close(self) -> None:
        """Let go of the device; what runs there for us ends."""
        ...
