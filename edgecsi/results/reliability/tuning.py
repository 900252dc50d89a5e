"""A search that is killed at random times and goes on: with made-up measurements, or for real.

``python -m edgecsi.results.reliability.tuning KILLS SEED`` does it with made-up ones: the real tuning searches, threads,
signals, files and all, but times come from a formula instead of a compiler, so that a turn takes milliseconds. The
process forks a search for every kill.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from edgecsi import target as targets
from edgecsi.cli import end_on_signals
from edgecsi.errors import CheckFailed
from edgecsi.kernels.records import Record, Records, append, read_records
from edgecsi.kernels.variants import candidates
from edgecsi.kernels.workload import code as code_of
from edgecsi.kernels.workload import workload
from edgecsi.lower.select_kernels import Choice
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense
from edgecsi.tune import in_place, network, work
from edgecsi.tune.isolated import TuningDevice
from edgecsi.tune.search import Setting, Time

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
SHAPES = ((256, 64), (96, 320), (48, 48))
TARGET = "x86-64-v4"
_WHAT = """\
A search is killed at random times, in turn with SIGINT, SIGTERM and SIGKILL, and started again, until it is done. Not a
line that was written is lost or torn but the last, nothing is measured twice, and the end is what an unbroken search
comes to. A file of records is cut at every byte of its last line, and written on: no other line is lost. Two searches
write to one file at once. Records of another target, CPU, TVM, kernel or code are there, and none is used."""


@dataclass
class _Fake:
    """In the place of :class:`edgecsi.tune.measure.LayerBench`: half a millisecond a setting, times made of its knobs."""

    op: Any
    target: Any
    devices: Any
    beside: int = 0
    count: bool = False
    means: str = "measured"

    def __post_init__(self) -> None:
        self.outcomes: dict[Setting, Any] = {}

    def quick(self, settings: Sequence[Setting]) -> list[Time | None]:
        with self.devices.one() as device:
            time.sleep(0.0005 * len(settings))
            device.measured += len(settings)
        for setting in settings:
            self.outcomes[setting] = SimpleNamespace(status="ok", time=self._time(setting))
        return [self._time(setting) for setting in settings]

    careful = quick

    def _time(self, setting: Setting) -> Time:
        digest = hashlib.sha256(repr((self.op.name, setting)).encode()).digest()
        return Time(5.0 + digest[0] / 64, 0.01)

    def code(self, setting: Setting) -> str:
        return "c0de"

    def record(self, setting: Setting, cpu: str) -> Record:
        return Record(
            "trial", workload(self.op), self.op.name, setting.kernel, dict(setting.knobs), "c0de",
            self.target.id, cpu, version("apache-tvm"), "measured", self._time(setting).median,
        )  # fmt: skip


def nowhere() -> TuningDevice:
    """A device of which nothing is asked but how much was measured on it."""
    return cast(TuningDevice, SimpleNamespace(spec="nowhere", measured=0, state=lambda: {"uname": "Linux"}))


def made_up(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Take away from tuning all that compiles, loads or measures."""
    target = targets.load(TARGET)
    rng = np.random.default_rng(0)
    chosen: list[Any] = []
    for number, (outputs, inputs) in enumerate(SHAPES):
        weight = rng.standard_normal((outputs, inputs)).astype(np.float32)
        op = Dense(name=f"fc{number}", x=Layout((1, inputs)), y=Layout((1, outputs)), weight=weight)
        kernel, knobs, cost = candidates(op, target)[0][0]
        node: Any = SimpleNamespace(output=SimpleNamespace(name=op.name))
        chosen.append(Choice(node, op, kernel, knobs, cost, "predicted"))
    whole = SimpleNamespace(chosen=chosen, planned=lambda label, *rest: label)
    fakes: dict[str, Any] = {
        "LayerBench": _Fake,
        "lowered_entries": lambda *arguments: {"full": whole},
        "in_place": SimpleNamespace(
            measure=lambda plans, *rest: {
                name: [np.full(9, 60.0 - (name != "default"))] * 9 for name in plans
            },
            compare=in_place.compare,
            faster=lambda one, other: False,
        ),
    }
    for name, fake in fakes.items():
        patch(network, name, fake)
    patch(work, "code", lambda *arguments: "c0de")


def simulate(kills: int, seed: int = 0) -> dict[str, int]:
    """Kill searches of made-up times, in this process's children; returns what happened, counted.

    Raises:
        CheckFailed: something was lost, measured twice, or came out otherwise.
    """
    made_up()
    _let_interrupt()
    numbers = random.Random(seed)
    counts = Counter({"kills": 0, **{f"killed by {struck.name}": 0 for struck in SIGNALS}, "lines torn": 0})
    with tempfile.TemporaryDirectory(prefix="edgecsi-") as folder:
        unbroken = Path(folder, "unbroken.jsonl")
        began = time.monotonic()
        _require(_ended(_child(unbroken)) == 0, "an unbroken search failed")
        whole = time.monotonic() - began
        wanted = _outcome(unbroken)
        number = 0
        while counts["kills"] < kills:
            file = Path(folder, f"{number}.jsonl")
            number += 1
            while True:
                before = read_records([file]).lines
                child = _child(file)
                if counts["kills"] < kills:
                    time.sleep(1.6 * numbers.random() * whole)
                    struck = SIGNALS[counts["kills"] % len(SIGNALS)]
                    os.kill(child, struck)
                code = _ended(child)
                found = read_records([file])
                _require(found.lines[: len(before)] == before, "lines were lost")
                if code == 0:
                    break
                counts["kills"] += 1
                counts[f"killed by {signal.Signals(struck).name}"] += 1
                counts["lines torn"] += found.torn
            _require(_outcome(file) == wanted, "another end than an unbroken search's")
            counts["searches that reached the end"] += 1
        file = Path(folder, "shared.jsonl")
        both = [_child(file), _child(file)]
        _require([_ended(child) for child in both] == [0, 0], "two searches disturb each other")
        _require(read_records([file]).torn == 0, "two searches tear each other's lines")
        last = {
            record.workload: record.setting
            for record in read_records([file]).lines
            if record.kind == "choice"
        }
        _require(sorted(last.items()) == wanted[1], "two searches on one file come to another end")
        counts["searches, two at a time on one file"] += len(both)
        counts["cuts of a file"] = tear(Path(folder, "torn.jsonl"), read_records([unbroken]).lines[:4])
    counts["records of other circumstances, none used"] = foreign()
    return dict(counts)


def foreign() -> int:
    """Records of another target, CPU, version of TVM, kernel, code or knobs are not used; returns how many.

    Raises:
        CheckFailed: one is used, or a right one is not.
    """
    target = targets.load(TARGET)
    exact = replace(target, mcpu="znver4")
    op = Dense(name="fc", x=Layout((1, 64)), y=Layout((1, 32)), weight=np.ones((32, 64), np.float32) / 3)
    kernel, knobs, _ = candidates(op, exact)[0][0]
    right = Record(
        "choice", workload(op), op.name, kernel.name, dict(knobs), code_of(kernel, op, exact, knobs), exact.id,
        exact.mcpu, version("apache-tvm"), "measured", 1.0, 2.0,
    )  # fmt: skip
    others: list[dict[str, Any]] = [
        {"target": "rpi4"}, {"cpu": "znver5"}, {"cpu": "sapphirerapids"}, {"tvm": "0.26.0"}, {"kernel": "f32_gone"},
        {"kernel": "f32_softmax"}, {"code": "0" * 16}, {"knobs": {"other": 1}}, {"workload": "0" * 16}, {"kind": "trial"},
    ]  # fmt: skip
    _require(Records([right]).choice(op, exact) is not None, "a record that fits is not used")
    for change in others:
        _require(
            Records([replace(right, **change)]).choice(op, exact) is None, f"a record with {change} is used"
        )
        if change.keys() & {"target", "cpu", "tvm"}:
            trial = replace(right, kind="trial", **change)
            _require(
                not Records([trial]).trials(exact, exact.mcpu, "measured"), f"a trial with {change} is used"
            )
    return len(others)


def _let_interrupt() -> None:
    """A shell that starts this in the background has SIGINT ignored, by its children as well: none would ever end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _child(file: Path) -> int:
    """A search in a child process; its number."""
    child = os.fork()
    if child == 0:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        code = 1
        try:
            end_on_signals()
            network.tune("made-up", TARGET, device=nowhere(), records=file, trials=12)
            code = 0
        except KeyboardInterrupt:
            code = 130
        except SystemExit:
            code = 143
        finally:
            os._exit(code)
    return child


def _ended(child: int) -> int:
    """Its exit code; a signal's number, negative."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _outcome(file: Path) -> tuple[set[Any], list[tuple[str, Any]]]:
    """Settings tried, and the choices at the end.

    Raises:
        CheckFailed: one was tried twice.
    """
    lines = read_records([file]).lines
    tried = [record.setting for record in lines if record.kind == "trial"]
    _require(len(tried) == len(set(tried)), "something was measured twice")
    last = {record.workload: record.setting for record in lines if record.kind == "choice"}
    return set(tried), sorted(last.items())


def _require(good: bool, what: str) -> None:
    if not good:
        raise CheckFailed(f"a killed search: {what}", "tuning promises the opposite", "mend it")


def kill_for_real(kills: int) -> dict[str, int]:
    """The same with `edgecsi tune` of a small network on this machine: minutes.

    Raises:
        CheckFailed: a line was lost, or the search does not reach its end.
    """
    _let_interrupt()
    numbers = random.Random(0)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="edgecsi-") as folder:
        command = [sys.executable, "-m", "edgecsi", "tune", "fullycon", "--target", "host", "--trials", "12"]
        for struck in (SIGNALS * kills)[:kills]:
            file = Path(folder, f"{counts['searches that reached the end']}.jsonl")
            before = read_records([file]).lines
            process = subprocess.Popen([*command, "--records", str(file)], stderr=subprocess.DEVNULL)
            try:
                process.wait(5 + 20 * numbers.random())
            except subprocess.TimeoutExpired:
                process.send_signal(struck)
            code = process.wait(60)
            _require(read_records([file]).lines[: len(before)] == before, "lines were lost")
            counts["searches that reached the end" if code == 0 else "kills"] += 1
        file = Path(folder, "last.jsonl")
        _require(subprocess.run([*command, "--records", str(file)], check=False).returncode == 0, "no end")
    return dict(counts)


def tear(path: Path, lines: Sequence[Record]) -> int:
    """Cut a file of records at every byte of its last line, write another behind it, and look whether all else is
    there; returns the number of cuts.

    Raises:
        CheckFailed: something else was lost.
    """
    append(path, lines[:-1])
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        append(path, lines[-1:])
        kept = lines if cut == len(whole) - 1 else [*lines[:-2], lines[-1]]
        _require(read_records([path]).lines == list(kept), f"a line was lost by a tear at byte {cut}")
    return len(whole) - start


def section(counts: Mapping[str, int]) -> list[str]:
    """The part of docs/reliability.md about tuning, in paragraphs; nothing without counts."""
    if not counts:
        return []
    rows = [f"| {kind} | {number:,} |" for kind, number in counts.items()]
    return [
        "## Tuning",
        "    python -m edgecsi.results.reliability tuning",
        _WHAT,
        "\n".join(["| what | times |", "|---|---:|", *rows]),
    ]


def main() -> None:
    """Simulate, and print the counts as JSON."""
    sys.stdout.write(json.dumps(simulate(int(sys.argv[1]), int(sys.argv[2]))) + "\n")


if __name__ == "__main__":
    main()
