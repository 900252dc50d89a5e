"""Tuning elsewhere, held against tuning here: ``python -m edgecsi.results.farm [--model csinet-cr16]``.

The same layers are tuned on this machine, on this machine through SSH (an ``sshd`` of its own, on the loopback), and by
one and by two of TVM's servers behind its tracker, each server on a CPU of its own. What was chosen elsewhere is then
measured here, in turns with what was chosen here; and the busier of two servers should work at most 1/1.6 of the time
that one alone does. Results are in farm.json, in the folder of this CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from edgecsi import disk
from edgecsi import target as targets
from edgecsi.bench.environment import judge, machine, snapshot
from edgecsi.device import open_device
from edgecsi.device.loopback import loopback
from edgecsi.errors import ToolchainError
from edgecsi.kernels.records import Record, read_records
from edgecsi.kernels.workload import workload
from edgecsi.results import script
from edgecsi.results.files import own_folder, write_json
from edgecsi.tune.isolated import Devices, Isolated, Timer
from edgecsi.tune.measure import Bench
from edgecsi.tune.network import tune
from edgecsi.tune.search import Setting
from edgecsi.tune.work import Work, works_of

WITHIN, FASTER = 1.03, 1.6
KEY, STARTING_SECONDS = "farm", 60.0


class Busy:
    """A device that notes how long it measured, a server's CPU its own."""

    def __init__(self, spec: str) -> None:
        self._device: Any = open_device(spec)
        self.spec, self.seconds = spec, 0.0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._device, name)
        if name not in ("run", "time"):
            return method

        def noting(*arguments: Any, **options: Any) -> Any:
            began = time.monotonic()
            try:
                return method(*arguments, **options)
            finally:
                self.seconds += time.monotonic() - began

        return noting


@script.in_words
def main(arguments: Sequence[str] | None = None) -> int:
    """The script; its exit code is 1 if a bar is missed."""
    parser = script.parser("farm", __doc__, "results/")
    parser.add_argument("--model", default="csinet-cr16", help="MODEL to tune")
    parser.add_argument("--trials", type=int, default=16, metavar="N", help="settings a layer")
    parser.add_argument(
        "--port", type=int, default=9190, help="of the tracker; the servers take those behind it"
    )
    chosen = parser.parse_args(arguments)
    found = measure(chosen.model, chosen.trials, chosen.port)
    write_json(own_folder(chosen.docs / "results", machine().cpu) / "farm.json", found)
    for way, ratio in found["ratios"].items():
        print(f"{way}: its choices take {ratio:.3f} of the time of those found here")
    print(f"two servers: the busier works 1/{found['faster']:.2f} of the time that one does, "
          f"{found['seconds']['two servers']:.0f} s in all, {found['seconds']['one server']:.0f} with one")  # fmt: skip
    return int(max(found["ratios"].values()) > WITHIN or found["faster"] < FASTER)


def measure(model: str, trials: int, port: int) -> dict[str, Any]:
    """Tune on every way, and compare."""
    before = snapshot()
    seconds: dict[str, float] = {}
    busy: dict[str, float] = {}
    found: dict[str, dict[str, Record]] = {}
    with disk.scratch() as folder:

        def search(way: str, devices: str | Sequence[Any]) -> None:
            sys.stderr.write(f"tuning {model}: {way}\n")
            file = folder / f"{way}.jsonl"
            began = time.monotonic()
            tune(model, "host", device=devices, trials=trials, records=file)
            seconds[way] = time.monotonic() - began
            busy[way] = max((d.seconds for d in devices if isinstance(d, Busy)), default=0.0)
            found[way] = {r.workload: r for r in read_records([file]).lines if r.kind == "choice"}

        search("local", "local")
        with loopback() as spec:
            if spec is None:
                raise ToolchainError(
                    "there is no sshd", "it makes the device", "apt-get install openssh-server"
                )
            search("ssh", spec)
        with servers(port):
            board = f"tracker://127.0.0.1:{port}/{KEY}"
            for way, count in (("one server", 1), ("two servers", 2)):
                boards = [Busy(board) for _ in range(count)]
                search(way, boards)
                for one in boards:
                    one.close()
    return {
        "kind": "farm", "model": model, "ratios": ratios(model, found), "seconds": seconds, "busy": busy,
        "faster": busy["one server"] / busy["two servers"], "machine": asdict(machine()),
        "validity": asdict(judge(before, snapshot(), where=machine())),
    }  # fmt: skip


def ratios(model: str, found: dict[str, dict[str, Record]]) -> dict[str, float]:
    """What the choices of every way take, all layers together, against those found here: measured here, in turns."""
    works = works_of(model, targets.load("host"))
    timer: Timer = Isolated("local")
    sums: dict[str, float] = dict.fromkeys(found, 0.0)
    try:
        for key, work in works.items():
            for way, us in _beside(work, {w: c[key] for w, c in found.items() if key in c}, timer).items():
                sums[way] += us * len(work.names)
    finally:
        timer.close()
    return {way: sums[way] / sums["local"] for way in found if way != "local"}


def _beside(work: Work, choices: dict[str, Record], timer: Timer) -> dict[str, float]:
    assert workload(work.choice.op) in {r.workload for r in choices.values()}
    settings = {way: Setting.of(r.kernel, r.knobs) for way, r in choices.items()}
    different = list(dict.fromkeys(settings.values()))
    bench = Bench(work.choice.op, targets.load("host"), Devices([timer]), work.beside)
    times = dict(zip(different, bench.careful(different), strict=True))
    return {way: time.median for way, s in settings.items() if (time := times[s]) is not None}


@contextmanager
def servers(port: int) -> Iterator[None]:
    """TVM's tracker and two of its servers, on the loopback."""
    cpus = sorted(os.sched_getaffinity(0))
    tracker = [sys.executable, "-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1", "--port", str(port),
               "--port-end", str(port + 1)]  # fmt: skip
    server = [sys.executable, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1", "--tracker", f"127.0.0.1:{port}",
              "--key", KEY, "--port", str(port + 1), "--port-end", str(port + 9)]  # fmt: skip
    running = [subprocess.Popen(tracker, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]
    try:
        time.sleep(3.0)
        for number in range(2):
            pinned = ["taskset", "-c", str(cpus[-1 - number % len(cpus)]), *server]
            running.append(subprocess.Popen(pinned, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        ask = [sys.executable, "-m", "tvm.exec.query_rpc_tracker", "--host", "127.0.0.1", "--port", str(port)]
        deadline = time.monotonic() + STARTING_SECONDS
        while True:
            said = subprocess.run(ask, capture_output=True, text=True, check=False).stdout
            if f"server:{KEY}" in said and said.count(f"server:{KEY}") >= 2:
                break
            if time.monotonic() > deadline:
                raise ToolchainError(
                    "the servers do not start", said.strip()[-200:] or "no answer", "try another --port"
                )
            time.sleep(1.0)
        yield
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(30)


if __name__ == "__main__":
    sys.exit(main())
