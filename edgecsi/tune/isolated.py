"""A device in a process of its own: what a candidate does to it, it does not do to the search.

A candidate may crash, never end, or write where it should not. So the process that measures is another one, which is
ended and started afresh when it dies or misses its deadline. It keeps to one CPU, and :func:`compiling_elsewhere` leaves
that alone.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgecsi.bundle import Bundle
from edgecsi.device import Device, DeviceInfo, open_device
from edgecsi.device.protocol import Array, Samples
from edgecsi.device.state import State, process_state
from edgecsi.errors import DeviceError, EdgecsiError, UsageError

_START_SECONDS, _PATIENCE = 300.0, 15
_REST = "the setting is left out; the search goes on"


class TuningDevice(Protocol):
    """What tuning needs of a device; see :class:`edgecsi.device.Device`."""

    spec: str

    def info(self) -> DeviceInfo: ...
    def state(self) -> State: ...
    def run(self, bundle: Bundle, entry: str, x: Samples) -> Array | tuple[Array, ...]: ...
    def time(
        self, bundle: Bundle, entry: str, x: Samples, repeats: int, *, flush_bytes: int = 0
    ) -> NDArray[np.float64]: ...
    def count_instructions(self, bundle: Bundle, entry: str, x: Samples | None = None) -> int | None: ...
    def close(self) -> None: ...


@runtime_checkable
class TakingTurns(Protocol):
    """A device that times several entries in turns by one message, since its messages take long."""

    def time_in_turns(
        self,
        bundle: Bundle,
        entries: Sequence[str],
        x: Samples,
        turns: int,
        repeats: int,
        *,
        flush_bytes: int = 0,
    ) -> NDArray[np.float64]: ...


class Devices:
    """Equal devices, each of which measures for one at a time."""

    def __init__(self, devices: Sequence[TuningDevice]) -> None:
        self.count = len(devices)
        self._free: queue.SimpleQueue[TuningDevice] = queue.SimpleQueue()
        for device in devices:
            self._free.put(device)

    @contextmanager
    def one(self) -> Iterator[TuningDevice]:
        """A device that nobody uses, as soon as there is one."""
        device = self._free.get()
        try:
            yield device
        finally:
            self._free.put(device)


class Isolated:
    """A device of this machine, in a child process.

    Args:
        spec: as for :func:`edgecsi.device.open_device`.
        deadline: seconds for one request.
        number: with several of them, which this is; each has a CPU of its own, as far as there are some.
    """

    def __init__(self, spec: str, deadline: float = 20.0, number: int = 0) -> None:
        self.spec, self.deadline = spec, deadline
        cpus = sorted(os.sched_getaffinity(0))
        self.cpu = cpus[-1 - number % len(cpus)]
        self._inner: Device = open_device(spec)
        self._process: Any = None
        self._pipe: Connection | None = None

    def info(self) -> DeviceInfo:
        """What the device is."""
        return self._inner.info()

    def state(self) -> State:
        """What the machine says about itself."""
        return self._inner.state()

    def run(self, bundle: Bundle, entry: str, x: Samples) -> Array | tuple[Array, ...]:
        """See :meth:`edgecsi.device.protocol.Device.run`."""
        found: Array | tuple[Array, ...] = self._ask("run", bundle, entry, x)
        return found

    def time(
        self, bundle: Bundle, entry: str, x: Samples, repeats: int, *, flush_bytes: int = 0
    ) -> NDArray[np.float64]:
        """See :meth:`edgecsi.device.protocol.Device.time`."""
        taken: NDArray[np.float64] = self._ask("time", bundle, entry, x, repeats, flush_bytes=flush_bytes)
        return taken

    def count_instructions(self, bundle: Bundle, entry: str, x: Samples | None = None) -> int | None:
        """A real CPU does not count them."""
        return None

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _ask(self, method: str, bundle: Bundle, *arguments: Any, **options: Any) -> Any:
        what = f"{bundle.library.name} failed in a process of its own"
        pipe = self._child()
        try:
            began, before = time.monotonic(), process_state(self._process.pid)[1]
            pipe.send((method, bundle, arguments, options))
            while not pipe.poll(self.deadline):
                state, used = process_state(self._process.pid)
                starved = (
                    state == "R" and used - before < self.deadline
                )  # others had the CPU: it does not hang
                if starved and time.monotonic() - began < _PATIENCE * self.deadline:
                    continue
                self.close()
                raise DeviceError(what, f"no end after {self.deadline:.0f} s", _REST)
            answer = pipe.recv()
        except (EOFError, OSError) as error:
            code = self._exit_code()
            self.close()
            raise DeviceError(what, f"it crashed ({code})", _REST) from error
        if isinstance(answer, EdgecsiError):
            raise answer
        return answer

    def _child(self) -> Connection:
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self.spec, self.cpu), daemon=True)
            self._process.start()
            theirs.close()
            try:
                if not self._pipe.poll(_START_SECONDS):
                    raise EOFError
                self._pipe.recv()
            except EOFError:
                self.close()
                raise UsageError(
                    "the process that measures does not start",
                    "it ended, or said nothing in five minutes; a script that is run again by it must not tune again",
                    'call from below `if __name__ == "__main__":`, or run `edgecsi doctor`',
                ) from None
        return self._pipe

    def _exit_code(self) -> str:
        self._process.join(5)
        code = self._process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


@contextmanager
def compiling_elsewhere(devices: Sequence[TuningDevice]) -> Iterator[None]:
    """What this thread does meanwhile, and threads and processes it starts, keeps off the CPUs that measure."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus - {device.cpu for device in devices if isinstance(device, Isolated)} or cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


def _serve(pipe: Connection, spec: str, cpu: int) -> None:
    """The child: answers until nobody asks any more."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all of a terminal's processes; who asked ends us
    os.sched_setaffinity(0, {cpu})
    device = open_device(spec)
    pipe.send("ready")
    while True:
        try:
            method, bundle, arguments, options = pipe.recv()
        except EOFError:
            return
        try:
            answer: Any = getattr(device, method)(bundle, *arguments, **options)
        except EdgecsiError as error:
            answer = error
        pipe.send(answer)
