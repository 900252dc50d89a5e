"""``ssh://``: another machine. Our runner loads the library there, with the device's own loader, and does
everything there; only inputs and results travel (``native/remote.c``)."""

from __future__ import annotations

import contextlib
import signal
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from edgecsi.bundle import Bundle, Entry
from edgecsi.device import install
from edgecsi.device import state as states
from edgecsi.device.board import Board
from edgecsi.device.protocol import (
    EVICTION_BYTES,
    Array,
    DeviceInfo,
    FirstCall,
    MeasuringProtocol,
    Nanoseconds,
    Paced,
    Rates,
    Samples,
    Series,
)
from edgecsi.device.samples import from_rows, to_calls, to_rows
from edgecsi.device.ssh import Address, Ssh
from edgecsi.device.state import State
from edgecsi.device.transport import SLOWEST, Connection, Done, Session
from edgecsi.errors import ConnectionLost, DeviceError
from edgecsi.progress import Progress

_FAILED, _CODE, _TOO_LONG, _ALONE, _CRASHED = 1, 3, 4, 5, 128
_GRACE = 30.0  # seconds that we wait longer than the runner, which should be the first to give up
_CHUNK = 1 << 20
_MAX_FRAME = 1 << 30
MIN_ROUNDS = 20
"""Of batches: fewer have no interval worth its name."""


class Remote:
    """A machine behind a :class:`Connection`.

    Args:
        spec: how the user named it.
        connection: the way there.
        folder: where our files go there.
        cpu: keep to this CPU there; None for any.
    """

    def __init__(
        self,
        spec: str,
        connection: Connection,
        folder: str,
        *,
        cpu: int | None = None,
    ) -> None:
        self.spec, self.connection, self.folder = spec, connection, folder
        self._cpu = cpu
        self._deadline: float | None = None  # of a run; None: as long as the slowest of kernels needs
        self._prepared: tuple[Board, str] | None = None

    @staticmethod
    def over_ssh(spec: str, *, cpu: int | None = None) -> Remote:
        """The device of an ``ssh://`` address.

        Raises:
            UsageError: it is none.
        """
        address = Address.parse(spec)
        return Remote(str(address), Ssh(address), address.folder, cpu=cpu)

    @property
    def board(self) -> Board:
        """What it is; asked, and made ready, when first used.

        Raises:
            DeviceError, ToolchainError: as :func:`edgecsi.device.install.prepare`.
        """
        return self._ready()[0]

    def info(self) -> DeviceInfo:
        """See :meth:`edgecsi.device.protocol.Device.info`.

        Raises:
            DeviceError: it cannot be reached, or cannot run bundles.
        """
        from edgecsi.device.probe import cpu_of

        board = self.board
        return DeviceInfo(self.spec, cpu_of(board), board.arch, board.features, board.emulated)

    def run(self, bundle: Bundle, entry: str, x: Samples) -> Array | tuple[Array, ...]:
        """See :meth:`edgecsi.device.protocol.Device.run`; inputs and outputs stream."""
        described = bundle.entry(entry)
        calls = to_calls(described, x)
        count = len(calls[0])
        fed = to_rows(calls)
        joined = np.empty((count, sum(tensor.size for tensor in described.outputs)), np.float32)
        seconds = 60 + count * (0.05 + 1e-7 * described.macs) + (fed.nbytes + joined.nbytes) / SLOWEST
        with self._job(bundle, entry, "run", fed, seconds, {"calls": count}) as job:
            job.read_into(memoryview(joined.data).cast("B"))
        return from_rows(described, joined)

    def time(
        self, bundle: Bundle, entry: str, x: Samples, repeats: int, *, flush_bytes: int = 0
    ) -> NDArray[np.float64]:
        """See :meth:`edgecsi.device.protocol.Device.time`."""
        described = bundle.entry(entry)
        fed, calls = self._calls(described, x)
        seconds = 60 + repeats * (0.05 + 1e-7 * described.macs + 1e-8 * flush_bytes)
        options = {"calls": calls, "repeats": repeats, "flush": flush_bytes}
        with self._job(bundle, entry, "time", fed, seconds, options) as job:
            ((_, content),) = job.frames()
            return np.frombuffer(content, np.float64)

    def measure(
        self,
        bundle: Bundle,
        entry: str,
        x: Samples,
        protocol: MeasuringProtocol,
        progress: Progress | None = None,
    ) -> Series:
        """See :meth:`edgecsi.device.protocol.Device.measure`."""
        options = {
            "samples": protocol.samples, "seconds": protocol.seconds, "limit": protocol.limit, "turn": protocol.turn,
            "turn_calls": protocol.turn_calls, "settle": protocol.settle, "cold": protocol.cold_samples,
            "flush": EVICTION_BYTES,
        }  # fmt: skip
        fed, _ = self._calls(bundle.entry(entry), x)
        seconds = 120 + 3 * protocol.limit + protocol.cold_samples
        warm: tuple[float, ...] = (0.0, 0.0)
        done: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)
        rounds: list[Nanoseconds] = []
        others: dict[bytes, Nanoseconds] = {}
        counted, spent, lost = 0, 0.0, None
        try:
            with self._job(bundle, entry, "measure", fed, seconds, options) as job:
                for kind, content in job.frames():
                    if kind == b"WARM":
                        warm = struct.unpack("<2d", content)
                    elif kind == b"TURN":
                        rounds.append(np.frombuffer(content, np.int64))
                        counted += rounds[-1].size
                        spent += float(rounds[-1].sum()) / 1e9
                        if progress is not None:
                            share = min(counted / protocol.samples, spent / protocol.seconds, 1.0)
                            progress(share, 1.0, f"measuring on {self.spec}")
                    elif kind == b"DONE":
                        done = struct.unpack("<5d", content)
                    else:
                        others[kind] = np.frombuffer(content, np.int64)
        except ConnectionLost as error:
            if not rounds:
                raise
            lost = error
        complete, computed, elapsed, cpu_seconds, _peak = done
        return Series(
            rounds,
            others[b"COLD"],
            settled=bool(warm[0]),
            complete=bool(complete),
            threads=computed / elapsed if elapsed else 1.0,
            cpu_seconds=cpu_seconds,
            nothing=Series([others[b"VOID"]], others[b"VCLD"], settled=True, complete=True, threads=1.0),
            lost=lost,
        )

    def profile(
        self, bundle: Bundle, entry: str, x: Samples, passes: int, seconds: float
    ) -> NDArray[np.float64]:
        """See :meth:`edgecsi.device.protocol.Device.profile`."""
        described = bundle.entry(entry)
        fed, _ = self._calls(described, x)
        options = {"passes": passes, "seconds": seconds}
        with self._job(bundle, entry, "profile", fed, 120 + 2 * seconds, options) as job:
            rows = [np.frombuffer(content, np.float64) for _, content in job.frames()]
        return np.array(rows).reshape(len(rows), len(described.layers))

    def first_calls(self, bundle: Bundle, entry: str, x: Samples, count: int) -> list[FirstCall]:
        """See :meth:`edgecsi.device.protocol.Device.first_calls`."""
        fed, _ = self._calls(bundle.entry(entry), x)
        with self._job(bundle, entry, "cold", fed, 60.0 + 30 * count, {"starts": count}) as job:
            found = [struct.unpack("<4d", content) for _, content in job.frames()]
        return [FirstCall(load, first, int(peak), int(added)) for load, first, peak, added in found]

    def count_instructions(self, bundle: Bundle, entry: str, x: Samples | None = None) -> int | None:
        """None: a real CPU's own counters need rights that a user has not."""
        return None

    def state(self) -> State:
        """See :meth:`edgecsi.device.protocol.Device.state`."""
        done = self.connection.run(["sh", "-c", states.SCRIPT])
        return states.parse(done.stdout)

    def run_program(
        self,
        program: Path,
        files: Sequence[Path] = (),
        *,
        library: Path | None = None,
        timeout: float = 120.0,
    ) -> str:
        """See :meth:`edgecsi.device.protocol.Device.run_program`."""
        board, _ = self._ready()
        argv = [install.keep(self.connection, board.folder, program, mode=0o755)]
        argv += [install.keep(self.connection, board.folder, file) for file in files]
        if library is not None:  # the loader finds it by the name it says it has, wherever it lies
            argv = ["env", f"LD_PRELOAD={install.keep(self.connection, board.folder, library)}", *argv]
        done = self.connection.run(argv, timeout=timeout)
        if done.code:
            raise DeviceError(f"{program.name} failed on {self.connection.name}", done.said, _REPORT)
        return done.stdout.decode(errors="replace")

    def rates(
        self, bundle: Bundle, entries: Sequence[str], x: Array, threads: int, protocol: MeasuringProtocol
    ) -> Rates:
        """Compute batches over and over on several threads, as :meth:`edgecsi.bundle.Loaded.run_many` divides them.

        Args:
            bundle: what to run.
            entries: those that compute one thing in batches, the largest first; each with one input and output.
            x: float32 ``[N, *shape]``: the batch of each thread, N a multiple of the last entry's first axis.
            threads: how many.
            protocol: at least ``seconds``, at most ``limit``, in rounds of ``turn``.

        Raises:
            DataError, DeviceError: as :meth:`run` does.
        """
        fed, calls = self._calls(bundle.entry(entries[-1]), x)
        options = {
            "calls": calls, "threads": threads, "turn": protocol.turn, "seconds": protocol.seconds,
            "limit": protocol.limit, "rounds": MIN_ROUNDS,
        }  # fmt: skip
        with self._job(bundle, ",".join(entries), "rate", fed, 120 + 3 * protocol.limit, options) as job:
            found = {kind: np.frombuffer(content, np.float64) for kind, content in job.frames()}
        _, computed, spent = found[b"DONE"]
        return Rates(found[b"RATE"], computed / max(spent, 1e-9))

    def paced(self, bundle: Bundle, entry: str, x: Samples, rate: float, count: int) -> Paced:
        """Call ``count`` times, ``rate`` times a second, asleep in between. Raises as :meth:`run` does."""
        described = bundle.entry(entry)
        fed, calls = self._calls(described, x)
        options = {"calls": calls, "repeats": count, "period": 1 / rate}
        seconds = 60 + count * (1 / rate + 0.05 + 1e-7 * described.macs)
        with self._job(bundle, entry, "paced", fed, seconds, options) as job:
            found = {kind: np.frombuffer(content, np.float64) for kind, content in job.frames()}
        return Paced(found[b"CALL"] / 1e3, found[b"RESP"] / 1e3, int(found[b"LATE"][0]))

    def read(self, path: str) -> str:
        """The text of a small file there, of ``/sys`` for example.

        Raises:
            DeviceError: it cannot be read.
        """
        done = self.connection.run(["cat", path])
        if done.code:
            raise DeviceError(f"{path} cannot be read on {self.connection.name}", done.said, "check the path")
        return done.text

    def close(self) -> None:
        """See :meth:`edgecsi.device.protocol.Device.close`."""
        self.connection.close()

    def _ready(self) -> tuple[Board, str]:
        if self._prepared is None:
            self._prepared = install.prepare(self.connection, self.folder)
        return self._prepared

    @staticmethod
    def _calls(described: Entry, x: Samples) -> tuple[Array, int]:
        """The calls as the runner reads them, and how many."""
        rows = to_rows(to_calls(described, x))
        return rows, len(rows)

    @contextlib.contextmanager
    def _job(
        self,
        bundle: Bundle,
        entry: str,
        mode: str,
        fed: Array,
        seconds: float,
        options: Mapping[str, float] = {},
    ) -> Iterator[_Job]:
        """The runner at work on an entry (of ``rate``, several); at the end of the block it must have succeeded."""
        described = [bundle.entry(name) for name in entry.split(",")]
        board, runner = self._ready()
        board.check(bundle, bundle.library.stat().st_size)
        library = install.keep(self.connection, board.folder, bundle.library)
        deadline = self._deadline or seconds
        argv = [runner, mode, library, bundle.manifest.cname, entry]
        for several in ([one.inputs for one in described], [one.outputs for one in described]):
            argv.append(",".join(str(tensor.size) for tensors in several for tensor in tensors))
        given = {
            "held": 1,
            "deadline": deadline,
            "workspace": max(one.workspace for one in described),
            "layers": len(described[0].layers),
        }
        given |= {"cpu": self._cpu} if self._cpu is not None else {}
        argv += [f"{name}={value}" for name, value in {**given, **options}.items()]
        job = _Job(self.connection.start(argv), fed, deadline + _GRACE)
        what = f"{bundle.library.name} failed in {entry} on {self.connection.name}"
        try:
            with contextlib.suppress(_Ended):
                yield job
            done = job.finish()
        finally:
            job.kill()
        if done.code or job.short:
            raise _failure(what, done, deadline)


class _Ended(Exception):
    """The runner wrote less than it should; its exit code says why."""


class _Job:
    """A session with the runner: a thread feeds it while its results are read; a clock ends both. Its standard input
    stays open until it has ended: should we die, the runner sees that at once."""

    def __init__(self, session: Session, fed: Array, seconds: float) -> None:
        self._session = session
        self.short = False
        self._clock = threading.Timer(seconds, session.kill)
        self._clock.daemon = True
        self._clock.start()
        self._feeder = threading.Thread(
            target=self._feed, args=(memoryview(fed.data).cast("B"),), daemon=True
        )
        self._feeder.start()

    def read_into(self, whole: memoryview) -> None:
        """Fill ``whole`` with what it writes."""
        at = 0
        while at < len(whole):
            at += self._some(whole[at:])

    def frames(self) -> Iterator[tuple[bytes, bytes]]:
        """Pairs (kind, content) until it ends."""
        head = bytearray(8)
        while True:
            first = self._read(memoryview(head)[:1])
            if not first:
                return
            self.read_into(memoryview(head)[1:])
            kind, length = struct.unpack("<4sI", head)
            if length > _MAX_FRAME:
                raise DeviceError("the runner wrote what it cannot mean", f"{length} bytes at once", _REPORT)
            content = bytearray(length)
            self.read_into(memoryview(content))
            yield kind, bytes(content)

    def finish(self) -> Done:
        """How it ended."""
        rest = memoryview(bytearray(_CHUNK))
        while self._read(rest):
            pass
        self._feeder.join(_GRACE)
        return self._session.finish(_GRACE)

    def kill(self) -> None:
        self._clock.cancel()
        self._session.kill()
        self._feeder.join(5)

    def _some(self, into: memoryview) -> int:
        if not (got := self._read(into)):
            self.short = True
            raise _Ended
        return got

    def _read(self, into: memoryview) -> int:
        stdout: IO[bytes] = self._session.stdout
        try:
            part = stdout.read(min(len(into), _CHUNK))
        except (OSError, ValueError):  # the clock cut it off
            return 0
        into[: len(part)] = part
        return len(part)

    def _feed(self, data: memoryview) -> None:
        with contextlib.suppress(OSError, ValueError):
            stdin = self._session.stdin
            for at in range(0, len(data), _CHUNK):
                piece = data[at : at + _CHUNK]
                while piece:
                    piece = piece[stdin.write(piece) :]


_REPORT = "if another bundle runs there, this is a bug of edgecsi: please report it"
_WHY: Mapping[int, Callable[[Done, float], str]] = {
    _CODE: lambda done, _: f"the library returned code {done.said}",
    _TOO_LONG: lambda _, deadline: f"no end after {deadline:.0f} s",
    _ALONE: lambda _done, _deadline: "the device found nobody who waited for its answer",
    _CRASHED + signal.SIGILL: lambda _done, _deadline: "it used an instruction that this CPU lacks (SIGILL)",
}


def _failure(what: str, done: Done, deadline: float) -> DeviceError:
    if explain := _WHY.get(done.code):
        return DeviceError(what, explain(done, deadline), _REPORT)
    if done.code > _CRASHED:
        return DeviceError(what, f"it crashed ({done.said})", _REPORT)
    return DeviceError(what, done.said if done.code else "it ended before its answer was whole", _REPORT)
