"""``rpc://``, ``rpc+ssh://`` and ``tracker://``: devices through TVM's RPC.

    rpc+ssh://pi@raspberrypi    our agent there speaks RPC over the SSH connection: no port is open anywhere
    rpc://127.0.0.1:9090        a ``python -m tvm.exec.rpc_server`` of the same TVM, reached through a tunnel of yours
    tracker://127.0.0.1:9190/rpi4   any free board of that key

Each use is a session of its own in a process of its own (``rpc.py``), with a deadline on every step.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.bundle import Bundle
from edgecsi.device import names, toolchain
from edgecsi.device.install_rpc import rpc_folder
from edgecsi.device.protocol import (
    Array,
    DeviceInfo,
    FirstCall,
    MeasuringProtocol,
    Nanoseconds,
    Samples,
    Series,
)
from edgecsi.device.remote import Remote
from edgecsi.device.rpc import CONNECT_SECONDS, KINDS, Job
from edgecsi.device.samples import from_rows, to_calls, to_rows
from edgecsi.device.ssh import Ssh
from edgecsi.device.state import State
from edgecsi.errors import ConnectionLost, DeviceError, Unreachable
from edgecsi.progress import Progress
from edgecsi.schema import to_tree

_STEP = re.compile(r"step (\w+) ([0-9.]+)")
_REPORT = "if another bundle runs there, this is a bug of edgecsi: please report it"


class Rpc:
    """A device behind TVM's RPC.

    Args:
        spec: ``rpc://host:port`` or ``tracker://host:port/key``; or ``rpc+ssh://…`` together with ``board``.
        board: the machine behind ``rpc+ssh://``.
        deadline: seconds after which a run is given up; None for as long as the slowest of kernels needs.
        connect_seconds: after which connecting is given up.
        time_nothing: let :meth:`measure` time calls that do nothing besides.
    """

    def __init__(
        self,
        spec: str,
        board: Remote | None = None,
        *,
        deadline: float | None = None,
        connect_seconds: float = CONNECT_SECONDS,
        time_nothing: bool = False,
    ) -> None:
        self.spec, self._board, self._deadline = spec, board, deadline
        self._connect_seconds, self._time_nothing = connect_seconds, time_nothing

    @staticmethod
    def opened(spec: str) -> Rpc:
        """The device of such an address.

        Raises:
            UsageError: it is none.
        """
        names.check(spec)
        over_ssh = spec.startswith("rpc+ssh://")
        return Rpc(spec, Remote.over_ssh(spec.removeprefix("rpc+")) if over_ssh else None)

    @property
    def shell(self) -> Remote | None:
        """The machine behind it, where there is a way to its shell."""
        return self._board

    def info(self) -> DeviceInfo:
        """See :meth:`edgecsi.device.protocol.Device.info`; a bare server does not say what it is."""
        if self._board is None:
            return DeviceInfo(self.spec, "a TVM RPC server", "", frozenset(), emulated=False)
        found = self._board.info()
        return DeviceInfo(self.spec, found.description, found.arch, found.features, found.emulated)

    def run(self, bundle: Bundle, entry: str, x: Samples) -> Array | tuple[Array, ...]:
        """See :meth:`edgecsi.device.protocol.Device.run`."""
        described = bundle.entry(entry)
        calls = to_calls(described, x)
        count = len(calls[0])
        seconds = 60 + count * (0.1 + 1e-7 * described.macs)
        with self._session(bundle, entry, calls, "run", seconds) as folder:
            flat = np.fromfile(folder / "out", np.float32).reshape(count, -1)
        return from_rows(described, flat)

    def time(
        self, bundle: Bundle, entry: str, x: Samples, repeats: int, *, flush_bytes: int = 0
    ) -> NDArray[np.float64]:
        """See :meth:`edgecsi.device.protocol.Device.time`; only the first sample is used."""
        ns: NDArray[np.float64] = self.time_in_turns(bundle, [entry], x, 1, repeats, flush_bytes=flush_bytes)[
            0, 0
        ]
        return ns

    def time_in_turns(
        self,
        bundle: Bundle,
        entries: Sequence[str],
        x: Samples,
        turns: int,
        repeats: int,
        *,
        flush_bytes: int = 0,
    ) -> NDArray[np.float64]:
        """Several entries of equal tensors, timed in turns in one session, since a session takes a second to begin.

        Returns:
            ns of every call: turns × entries × repeats. Errors as for :meth:`time`.
        """
        described, total = bundle.entry(entries[0]), turns * len(entries) * repeats
        macs = max(bundle.entry(entry).macs for entry in entries)
        seconds = 60 + total * (0.05 + 1e-7 * macs + 1e-8 * flush_bytes)
        calls = to_calls(described, x)
        with self._session(
            bundle, entries[0], calls, "time", seconds, others=tuple(entries[1:]), turns=turns, repeats=repeats,
            flush=flush_bytes,
        ) as folder:  # fmt: skip
            return np.fromfile(folder / "out", np.float64).reshape(turns, len(entries), repeats)

    def measure(
        self,
        bundle: Bundle,
        entry: str,
        x: Samples,
        protocol: MeasuringProtocol,
        progress: Progress | None = None,
    ) -> Series:
        """See :meth:`edgecsi.device.protocol.Device.measure`."""
        calls = to_calls(bundle.entry(entry), x)
        seconds = 120 + 3 * protocol.limit + protocol.cold_samples
        kept: list[tuple[str, Nanoseconds]] = []
        empty = str(toolchain.nothing(bundle.manifest.target.arch)) if self._time_nothing else ""
        lost, said = None, np.zeros(2)
        try:
            with self._session(
                bundle, entry, calls, "measure", seconds, protocol=protocol, kept=kept, empty=empty
            ) as folder:
                said = np.fromfile(folder / "out", np.float64)
        except ConnectionLost as error:
            if not any(kind == "turn" for kind, _ in kept):
                raise
            lost = error
        rounds = [ns for kind, ns in kept if kind == "turn"]
        once = {kind: ns for kind, ns in kept if kind != "turn"}
        nothing = (
            Series([once["nothing"]], once["nothing cold"], settled=True, complete=True, threads=1.0)
            if "nothing" in once
            else None
        )
        return Series(
            rounds, once["cold"], bool(said[0]), bool(said[1]), threads=1.0, nothing=nothing, lost=lost
        )

    def profile(
        self, bundle: Bundle, entry: str, x: Samples, passes: int, seconds: float
    ) -> NDArray[np.float64]:
        """No passes: TVM's RPC cannot call what times the layers."""
        return np.empty((0, len(bundle.entry(entry).layers)))

    def first_calls(self, bundle: Bundle, entry: str, x: Samples, count: int) -> list[FirstCall]:
        """None: a session's own start would be measured, not the bundle's."""
        return []

    def count_instructions(self, bundle: Bundle, entry: str, x: Samples | None = None) -> int | None:
        """None: TVM's RPC does not count them."""
        return None

    def state(self) -> State:
        """See :meth:`edgecsi.device.protocol.Device.state`; empty for a bare server."""
        return {} if self._board is None else self._board.state()

    def run_program(
        self,
        program: Path,
        files: Sequence[Path] = (),
        *,
        library: Path | None = None,
        timeout: float = 120.0,
    ) -> str:
        """See :meth:`edgecsi.device.protocol.Device.run_program`; a bare server cannot."""
        if self._board is None:
            raise DeviceError(
                f"{program.name} cannot run on {self.spec}", "TVM's RPC calls functions only", "use ssh://"
            )
        return self._board.run_program(program, files, library=library, timeout=timeout)

    def close(self) -> None:
        """See :meth:`edgecsi.device.protocol.Device.close`."""
        if self._board is not None:
            self._board.close()

    @contextlib.contextmanager
    def _session(
        self,
        bundle: Bundle,
        entry: str,
        calls: list[Array],
        what: str,
        seconds: float,
        kept: list[tuple[str, Nanoseconds]] | None = None,
        **options: Any,
    ) -> Iterator[Path]:
        """A session carried out; the block reads its results from the folder."""
        described = bundle.entry(entry)
        where: dict[str, Any] = {}
        if self._board is not None:
            self._board.board.check(bundle)
            folder = rpc_folder(self._board.connection, self._board.board)
            ssh = self._board.connection
            assert isinstance(ssh, Ssh)
            where["command"] = tuple(ssh.command([f"{folder}/agent", folder]))
        else:
            server = names.endpoint(self.spec)
            where |= {"host": server.host, "port": server.port, "key": server.key}
        job = Job(
            library=str(bundle.library),
            function=entry,
            inputs=described.inputs,
            outputs=described.outputs,
            what=what,  # type: ignore[arg-type]
            seconds=self._deadline or seconds,
            connect=self._connect_seconds,
            **where,
            **options,
        )
        with tempfile.TemporaryDirectory(prefix="edgecsi-") as name:
            files = Path(name)
            to_rows(calls).tofile(files / "in")
            (files / "job.json").write_text(json.dumps(to_tree(job)))
            try:
                self._watch(files, f"{bundle.library.name}, {entry}")
            finally:
                if kept is not None:
                    kept += _turns(files / "turns")
            yield files

    def _watch(self, files: Path, subject: str) -> None:
        """Start the process and see that every step ends in time."""
        with (files / "errors").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "edgecsi.device.rpc", str(files)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                start_new_session=True,
                env=os.environ | {"TVM_USE_RUNTIME_LIB": "1"},  # nothing is compiled there
            )
        step, seconds, ended, held = "start", 60.0, "", b""
        begin, stdout = time.monotonic(), process.stdout
        assert stdout is not None
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(stdout, selectors.EVENT_READ)
                while True:
                    left = begin + seconds - time.monotonic()
                    if left <= 0 or not selector.select(left):
                        raise self._late(step, seconds, subject)
                    if not (piece := os.read(stdout.fileno(), 65536)):
                        break
                    *lines, held = (held + piece).split(b"\n")
                    for line in lines:
                        ended, begin = line.decode(errors="replace"), time.monotonic()
                        if match := _STEP.fullmatch(ended):
                            step, seconds = match[1], float(match[2])
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
            process.wait()
            stdout.close()
        if ended != "done":
            said = (files / "errors").read_text(errors="replace").strip().splitlines()
            why = said[-1] if said else "its process ended without a word"
            why = ended.removeprefix("error ") if ended.startswith("error ") else why
            raise self._failed(step, why, subject)

    def _late(self, step: str, seconds: float, subject: str) -> DeviceError:
        if step == "connect":
            return Unreachable(
                f"{self.spec} does not answer", f"no RPC session after {seconds:.0f} s",
                "restart the server there: one whose session crashed accepts connections, and never answers",
            )  # fmt: skip
        return DeviceError(
            f"{subject}: {step} did not end on {self.spec}", f"no end after {seconds:.0f} s", _REPORT
        )

    def _failed(self, step: str, why: str, subject: str) -> DeviceError:
        if step == "start":
            return DeviceError("TVM's RPC client does not start", why, "run `edgecsi doctor`")
        if step == "connect":
            return Unreachable(
                f"{self.spec} cannot be reached",
                why,
                "see that the server runs, and has the same version of TVM",
            )
        if re.search(
            r"rpc|socket|channel|recv|EOF|disconnect|closed|pipe|reset|ended without",
            why,
            re.IGNORECASE,
        ):
            return ConnectionLost(
                f"the RPC session with {self.spec} broke off at {step}", why,
                f"the library may have crashed it ({subject}), or the connection is gone: try again",
            )  # fmt: skip
        return DeviceError(f"{subject}: {step} failed on {self.spec}", why, _REPORT)


def _turns(path: Path) -> list[tuple[str, Nanoseconds]]:
    """The turns that were written; one that was cut short is left out."""
    found: list[tuple[str, Nanoseconds]] = []
    data = np.fromfile(path, np.int64) if path.is_file() else np.empty(0, np.int64)
    while data.size >= 2 and data.size >= 2 + data[1]:
        found.append((KINDS[data[0]], data[2 : 2 + data[1]]))
        data = data[2 + data[1] :]
    return found
