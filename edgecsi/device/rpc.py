"""TVM's RPC client, in a process of its own: ``python -m edgecsi.device.rpc FOLDER``, started by ``rpc_device.py``.

One session, one process: whatever a dying server or a broken connection does to TVM, only this process is hit, and
its parent ends it when a step takes too long. Before every step it says which, with its seconds; at the end ``done``,
or ``error`` and why. ``FOLDER/job.json`` is a :class:`Job`, ``FOLDER/in`` the calls' inputs, ``FOLDER/out`` outputs or
times, ``FOLDER/turns`` the turns of a measurement as soon as they are there.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgecsi.bundle import Tensor
from edgecsi.device.protocol import EMPTY_CALLS, EVICTION_BYTES, MeasuringProtocol
from edgecsi.device.transport import SLOWEST
from edgecsi.device.turns import in_turns
from edgecsi.errors import ToolchainError
from edgecsi.schema import decode_json, read_bytes

CONNECT_SECONDS = 30.0
LOAD_SECONDS = 60.0
KINDS = ("cold", "turn", "nothing", "nothing cold")
"""What ``FOLDER/turns`` holds: for each of them int64 kind, number of calls, and the ns of each."""


@dataclass(frozen=True)
class Job:
    """What one session does.

    Attributes:
        command: what speaks RPC on its standard input and output; or empty, then:
        host, port: of a server or tracker.
        key: under which a tracker knows its boards; empty for a server.
        library: path here of what is uploaded and loaded.
        function: which of its functions.
        inputs, outputs: its tensors.
        what: run every call of the input; time ``repeats`` calls; or measure by the protocol.
        others, turns: functions of the same tensors that are timed in so many turns with it.
        seconds: for that.
        repeats, flush: see :meth:`edgecsi.device.protocol.Device.time`.
        protocol: see :meth:`edgecsi.device.protocol.Device.measure`.
        connect: seconds for connecting.
        empty: path here of a library whose function ``nothing`` does nothing, to time that besides; or empty.
    """

    library: str
    function: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    what: Literal["run", "time", "measure"]
    seconds: float
    command: tuple[str, ...] = field(default=())
    host: str = ""
    port: int = 0
    key: str = ""
    others: tuple[str, ...] = ()
    turns: int = 1
    repeats: int = 0
    flush: int = 0
    protocol: MeasuringProtocol | None = None
    connect: float = CONNECT_SECONDS
    empty: str = ""


_PR_SET_PDEATHSIG = 1
# Started by TVM with the numbers of two descriptors at the end of its arguments.
_PIPE = """import os, sys
read, write = map(int, sys.argv[-2:])
os.dup2(read, 0), os.dup2(write, 1)
os.execvp(sys.argv[1], sys.argv[1:-2])"""


def carry_out(folder: Path, job: Job, say: Callable[[str], None]) -> None:
    """One session from its beginning to its end.

    Args:
        folder: of the job's files.
        job: what to do.
        say: told the name and the seconds of a step before it begins.
    """
    say("start 300")
    # TVM would import it, which takes four times as long as all the rest, and nothing here is of PyTorch.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    import tvm
    from tvm import rpc

    say(f"connect {job.connect}")
    if job.command:
        pipe = tvm.get_global_func("rpc.CreatePipeClient")(sys.executable, "-c", _PIPE, *job.command)
        session = rpc.RPCSession(pipe)
    elif job.key:
        limit = int(job.seconds + 2 * LOAD_SECONDS)
        session = rpc.connect_tracker(job.host, job.port).request(job.key, session_timeout=limit, max_retry=1)
    else:
        session = rpc.connect(job.host, job.port)

    files = {f"{os.urandom(8).hex()}.so": Path(path) for path in (job.library, job.empty) if path}
    say(f"upload {CONNECT_SECONDS + sum(file.stat().st_size for file in files.values()) / SLOWEST}")
    for name, file in files.items():
        session.upload(bytearray(file.read_bytes()), name)
    say(f"load {LOAD_SECONDS}")
    module, *empty = [session.load_module(name) for name in files]
    work = _Work(folder, job, tvm, module, session.cpu(0))
    say(f"{job.what} {job.seconds}")
    work.do(empty)
    for name in files:
        session.remove(name)


class _Work:
    """The last step: one loaded function on the device."""

    def __init__(self, folder: Path, job: Job, tvm: Any, module: Any, device: Any) -> None:
        self.folder, self.job, self.module, self.device = folder, job, module, device
        self.function = module[job.function]
        self.inputs = [tvm.runtime.empty(one.shape, one.dtype, device) for one in job.inputs]
        self.outputs = [tvm.runtime.empty(one.shape, one.dtype, device) for one in job.outputs]
        sizes = [one.size for one in job.inputs]
        self.calls = np.fromfile(folder / "in", np.float32).reshape(-1, sum(sizes))
        self.splits = np.cumsum(sizes)[:-1]

    def do(self, empty: Sequence[Any]) -> None:
        if self.job.what == "run":
            with (self.folder / "out").open("wb") as out:
                for call in self.calls:
                    self._give(call)
                    self.function(*self.inputs, *self.outputs)
                    for output in self.outputs:
                        out.write(np.ascontiguousarray(output.numpy()).tobytes())
            return
        self._give(self.calls[0])
        if self.job.what == "time":
            functions = (self.job.function, *self.job.others)
            each = [
                self._times(self.job.repeats, self.job.flush, function)
                for _ in range(self.job.turns)
                for function in functions
            ]
            np.concatenate(each).tofile(self.folder / "out")
            return
        protocol = self.job.protocol
        assert protocol is not None
        with (self.folder / "turns").open("ab", buffering=0) as turns:

            def keep(kind: str, ns: NDArray[Any]) -> None:
                turns.write(np.concatenate([[KINDS.index(kind), ns.size], ns]).astype(np.int64).tobytes())

            for module in empty:
                keep("nothing", 1e9 * self._evaluate(module, "nothing", EMPTY_CALLS, 0))
                keep(
                    "nothing cold",
                    1e9 * self._evaluate(module, "nothing", protocol.cold_samples, EVICTION_BYTES),
                )
            series = in_turns(self._times, protocol, keep=keep)
        np.array([series.settled, series.complete], np.float64).tofile(self.folder / "out")

    def _give(self, call: NDArray[np.float32]) -> None:
        for tensor, part, one in zip(self.inputs, np.split(call, self.splits), self.job.inputs, strict=True):
            tensor.copyfrom(part.view(one.dtype).reshape(one.shape))

    def _times(self, calls: int, flush: int, function: str = "") -> NDArray[np.float64]:
        """Nanoseconds of single calls of the job's function or another, TVM's way."""
        name = function or self.job.function
        return 1e9 * self._evaluate(self.module, name, calls, flush, *self.inputs, *self.outputs)

    def _evaluate(self, module: Any, name: str, calls: int, flush: int, *tensors: Any) -> NDArray[np.float64]:
        """Seconds of single calls of a module's function."""
        evaluator = module.time_evaluator(name, self.device, number=1, repeat=calls, cache_flush_bytes=flush)
        return np.array(evaluator(*tensors).results)


def main(arguments: Sequence[str]) -> int:
    """The program; returns its exit code."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # however our parent dies, the session ends
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever TVM prints is no message of ours
    folder = Path(arguments[0])
    data = read_bytes(folder / "job.json", error=ToolchainError)
    job = decode_json(data, Job, what="job.json", error=ToolchainError)
    try:
        carry_out(folder, job, lambda step: print(f"step {step}", file=channel))
    except Exception as error:  # TVM's own errors have many types; all of them mean that the session failed
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        print(f"error {lines[-1][:300] if lines else type(error).__name__}", file=channel)
        channel.flush()
        os._exit(1)
    print("done", file=channel)
    channel.flush()
    os._exit(0)  # TVM's destructors talk to a server that may be gone


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
