"""Tuning elsewhere, held against tuning here: ``python -m edgecsi.results.farm [--model csinet-cr16]``.

The same layers are tuned on this machine, on this machine through SSH (an ``sshd`` of its own, on the loopback), and by
one and by two of TVM's servers behind its tracker, each server on a CPU of its own. What was chosen elsewhere is then
measured here, in turns with what was chosen here; and the busier of two servers should work at most 1/1.6 of the time
that one alone does. Results are in farm.json, in the folder of this CPU, and in docs/how-to/tune-on-a-farm.md.

Every one of the four parts takes a quarter of ``--minutes`` at most. A part that is done, and the records of one that is
not, are kept in the user's cache until all are: the same command goes on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgecsi import disk
from edgecsi import target as targets
from edgecsi.bench.environment import judge, machine, snapshot
from edgecsi.device.loopback import loopback
from edgecsi.device.rpc_device import Rpc
from edgecsi.errors import ToolchainError
from edgecsi.kernels.records import Record, read_records
from edgecsi.results import script
from edgecsi.results.files import Json, own_folder, write_between, write_json
from edgecsi.tune.isolated import Devices, Isolated, TuningDevice
from edgecsi.tune.measure import LayerBench
from edgecsi.tune.network import tune
from edgecsi.tune.search import Setting
from edgecsi.tune.work import Work, works_of

WITHIN, FASTER = 1.03, 1.6
KEY, STARTING_SECONDS = "farm", 60.0
MARKS = "<!-- farm -->", "<!-- /farm -->"
WAYS = LOCAL, SSH, ONE, TWO = "local", "ssh", "one server", "two servers"
_NOTHING: Json = {"complete": False, "seconds": 0.0, "busy": 0.0}


class Busy(Rpc):
    """A board of a tracker that notes how long its sessions took."""

    seconds = 0.0

    def _watch(self, files: Path, subject: str) -> None:
        began = time.monotonic()
        try:
            super()._watch(files, subject)
        finally:
            self.seconds += time.monotonic() - began


@script.in_words
def main(arguments: Sequence[str] | None = None) -> int:
    """The script; its exit code is 1 if a bar is missed, or time is up."""
    parser = script.parser("farm", __doc__, "results/")
    parser.add_argument("--model", default="csinet-cr16", help="MODEL to tune")
    parser.add_argument("--trials", type=int, default=16, metavar="N", help="settings a layer")
    parser.add_argument("--minutes", type=float, default=12.0, help="for all searches together")
    parser.add_argument(
        "--port", type=int, default=9190, help="of the tracker; the servers take those behind it"
    )
    chosen = parser.parse_args(arguments)
    before = snapshot()
    kept = disk.cache(f"farm/{re.sub(r'[^a-zA-Z0-9+.-]', '_', chosen.model)}-{chosen.trials}")
    search_all(chosen.model, chosen.trials, 60 * chosen.minutes / len(WAYS), chosen.port, kept)
    parts = {way: _part(kept, way) for way in WAYS}
    if left := [way for way, part in parts.items() if not part["complete"]]:
        script.say(f"time is up before {', '.join(left)}; the same command goes on")
        return 1
    found = {
        "kind": "farm", "date": datetime.now(UTC).isoformat(timespec="seconds"), "model": chosen.model,
        "trials": chosen.trials, "ratios": ratios(chosen.model, {way: _choices(kept, way) for way in WAYS}),
        "faster": parts[ONE]["busy"] / parts[TWO]["busy"], "parts": parts, "machine": asdict(machine()),
        "validity": asdict(judge(before, snapshot(), where=machine())),
    }  # fmt: skip
    write_json(own_folder(chosen.docs / "results", machine().cpu) / "farm.json", found)
    text = summary(found)
    write_between(chosen.docs / "how-to" / "tune-on-a-farm.md", *MARKS, f"\n{text}\n")
    script.say(text)
    shutil.rmtree(kept)
    return int(max(found["ratios"].values()) > WITHIN or found["faster"] < FASTER)


def search_all(model: str, trials: int, seconds: float, port: int, kept: Path) -> None:
    """Tune on every way that is not done, so many seconds each."""

    def search(way: str, devices: str | Sequence[Any]) -> None:
        part, file = _part(kept, way), kept / f"{way}.jsonl"
        if not part["seconds"]:
            file.unlink(missing_ok=True)  # it was killed before it could say how long it worked
        write_json(kept / f"{way}.json", _NOTHING)
        began = time.monotonic()

        def tell(done: float, total: float, what: str) -> None:
            if "measured" not in what:
                script.say(f"{way}: {what} ({done:.0f} of {total:.0f}, {time.monotonic() - began:.0f} s)")

        complete = False
        try:
            complete = tune(
                model,
                "host",
                device=devices,
                trials=trials,
                minutes=seconds / 60,
                records=file,
                progress=tell,
            ).complete
        finally:
            busy = max((one.seconds for one in devices if isinstance(one, Busy)), default=0.0)
            part = {
                "complete": complete, "seconds": part["seconds"] + time.monotonic() - began,
                "busy": part["busy"] + busy,
            }  # fmt: skip
            write_json(kept / f"{way}.json", part)

    left = [way for way in WAYS if not _part(kept, way)["complete"]]
    if LOCAL in left:
        search(LOCAL, "local")
    if SSH in left:
        with loopback() as spec:
            if spec is None:
                raise ToolchainError(
                    "there is no sshd", "it makes the device", "apt-get install openssh-server"
                )
            search(SSH, spec)
    if ONE in left or TWO in left:
        with servers(port):
            for way, count in ((ONE, 1), (TWO, 2)):
                if way in left:
                    with ExitStack() as opened:
                        board = f"tracker://127.0.0.1:{port}/{KEY}"
                        search(way, [opened.enter_context(closing(Busy(board))) for _ in range(count)])


def summary(found: Json) -> str:
    """What was found, in a few sentences."""
    others = " and ".join(f"{ratio:.3f} ({way})" for way, ratio in found["ratios"].items())
    one, two = (found["parts"][way] for way in (ONE, TWO))
    return (
        f"{found['model']} on {found['machine']['cpu']}, {found['trials']} settings a layer: what is chosen elsewhere "
        f"takes {others} of the time of what is chosen here, all layers measured here in turns. Behind a tracker one "
        f"server measures for {one['busy']:.0f} s, the busier of two for {two['busy']:.0f} s (1/{found['faster']:.2f}); "
        f"with compiling, which this machine does for both, they take {one['seconds']:.0f} and {two['seconds']:.0f} s."
    )


def _part(kept: Path, way: str) -> Json:
    file = kept / f"{way}.json"
    return dict(json.loads(file.read_text())) if file.is_file() else dict(_NOTHING)


def _choices(kept: Path, way: str) -> dict[str, Record]:
    lines = read_records([kept / f"{way}.jsonl"]).lines
    return {record.workload: record for record in lines if record.kind == "choice"}


def ratios(model: str, found: dict[str, dict[str, Record]]) -> dict[str, float]:
    """What the choices of every way take, all layers together, against those found here: measured here, in turns."""
    works = works_of(model, targets.load("host"))
    device: TuningDevice = Isolated("local")
    sums: dict[str, float] = dict.fromkeys(found, 0.0)
    try:
        for key, work in works.items():
            for way, us in _beside(
                work, {way: choices[key] for way, choices in found.items()}, device
            ).items():
                sums[way] += us * len(work.names)
    finally:
        device.close()
    return {way: sums[way] / sums["local"] for way in found if way != "local"}


def _beside(work: Work, choices: dict[str, Record], device: TuningDevice) -> dict[str, float]:
    settings = {way: Setting.of(r.kernel, r.knobs) for way, r in choices.items()}
    different = list(dict.fromkeys(settings.values()))
    bench = LayerBench(work.choice.op, targets.load("host"), Devices([device]), work.beside)
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
