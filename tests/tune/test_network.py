"""Tuning a small network for real: records, resuming, candidates that misbehave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgecsi import target as targets
from edgecsi.bundle import read_bundle
from edgecsi.cli.output import as_json
from edgecsi.device import open_device
from edgecsi.device.state import THROTTLED
from edgecsi.errors import CheckFailed, ConnectionLost, DeviceError, UsageError
from edgecsi.kernels.records import append, read_records
from edgecsi.kernels.variants import all_kernels
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense
from edgecsi.pipeline import BuildOptions, build
from edgecsi.report.read import read
from edgecsi.results.reliability import tuning
from edgecsi.tune import in_place, network
from edgecsi.tune.isolated import Devices, Isolated, compiling_elsewhere
from edgecsi.tune.measure import LayerBench
from edgecsi.tune.network import tune
from edgecsi.tune.result import TuneResult
from edgecsi.tune.search import Found, Setting
from tests._every_case import EVERY_CASE

NET = """
import torch
def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(48, 40), torch.nn.ReLU(), torch.nn.Linear(40, 24)), torch.zeros(1, 48)
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:make"


def quickly(model: str, records: Path, **options: Any) -> TuneResult:
    return tune(model, "x86", trials=6, records=records, **options)


def test_a_network_is_tuned_and_the_next_build_uses_it(model: str, tmp_path: Path) -> None:
    file = tmp_path / "x86.jsonl"
    result = quickly(model, file, batches=(4,))
    assert len(result.layers) == 4  # each alone, and for four at once
    assert set(result.entries) == {"full", "full_b4"}
    assert all(layer.best_us <= layer.default_us for layer in result.layers)
    assert result.measured == sum(r.kind == "trial" for r in read_records([file]).lines)
    (tmp_path / "tuned.json").write_text(as_json(result))
    assert read([tmp_path / "tuned.json"]) == ([], [result])
    options = BuildOptions(model=model, target="x86", out=tmp_path / "tuned", records=(file,), batches=(4,))
    build(options)
    manifest = read_bundle(tmp_path / "tuned").manifest
    whys = [layer.why for entry in manifest.entries.values() for layer in entry.layers]
    assert all("measured" in why and "(record " in why for why in whys)
    build(replace(options, out=tmp_path / "plain", records=None))
    plain = read_bundle(tmp_path / "plain").manifest
    assert not any("record" in layer.why for layer in plain.entries["full"].layers)
    build(replace(options, out=tmp_path / "again"))
    again = read_bundle(tmp_path / "again").manifest
    assert again.files[again.library] == manifest.files[manifest.library]


def test_what_is_known_is_not_measured_again(model: str, tmp_path: Path) -> None:
    first = quickly(model, tmp_path / "x86.jsonl")
    second = quickly(model, tmp_path / "x86.jsonl")
    assert second.known == first.measured
    assert second.measured <= first.measured / 2


def test_a_chosen_record_changes_the_kernel_that_is_built(tmp_path: Path, model: str) -> None:
    """Made by hand, as no default of so small a network is slow enough."""
    file = tmp_path / "x86.jsonl"
    quickly(model, file)
    choices = [r for r in read_records([file]).lines if r.kind == "choice"]
    op = Dense(x=Layout((1, 48)), y=Layout((1, 40)), weight=np.ones((40, 48), np.float32))
    kernel = all_kernels()["f32_dense"]
    space = kernel.space(op, targets.load("x86"))
    changed = [replace(c, knobs={**c.knobs, "unroll": max(space["unroll"])}) for c in choices]
    append(tmp_path / "wrong.jsonl", changed)
    options = BuildOptions(model=model, target="x86", dry_run=True, records=(tmp_path / "wrong.jsonl",))
    layers = build(options).manifest.entries["full"].layers
    stale = [c for c, k in zip(choices, changed, strict=True) if c.knobs != k.knobs]
    assert sum("record" in layer.why for layer in layers) == len(layers) - len(stale)


def test_what_was_chosen_is_measured_again_and_dropped_if_it_wins_no_more(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x86.jsonl"
    with pytest.raises(UsageError, match="nothing was chosen"):
        quickly(model, file, recheck=True)
    layer = quickly(model, file).layers[0]
    lines = [r for r in read_records([file]).lines if r.kind == "choice"]
    before = next(r for r in lines if r.workload == layer.workload)
    slower = next(
        r for r in read_records([file]).lines
        if r.kind == "trial" and r.workload == layer.workload and r.knobs != layer.default.knobs and r.us > 0
    )  # fmt: skip
    old = replace(
        before, kernel=slower.kernel, knobs=slower.knobs, code=slower.code, us=0.001, default_us=9.0
    )
    append(file, [old])
    monkeypatch.setattr(
        network, "decide", lambda default, final, tried: Found(default, final[default], final[default])
    )
    assert quickly(model, file, recheck=True).measured == 2
    after = [r for r in read_records([file]).lines if r.kind == "choice" and r.workload == before.workload][
        -1
    ]
    assert after.us == after.default_us < 9.0
    assert after.knobs == layer.default.knobs


class Broken:
    """A device that does something bad with some candidates, or goes away."""

    spec = "broken"

    def __init__(self, bad: dict[str, Exception], away: int = 0) -> None:
        self.inner: Any = open_device("local")
        self.bad, self.away, self.calls = bad, away, 0

    def info(self) -> Any:
        return self.inner.info()

    def state(self) -> Any:
        return self.inner.state()

    def run(self, bundle: Any, entry: str, x: Any) -> Any:
        self.calls += 1
        if self.away and self.calls > 3:
            self.away -= 1
            raise ConnectionLost("pi went away", "the cable", "plug it in")
        if entry in self.bad:
            raise self.bad[entry]
        return self.inner.run(bundle, entry, x)

    def time(self, *arguments: Any, **options: Any) -> Any:
        return self.inner.time(*arguments, **options)

    def count_instructions(self, *arguments: Any) -> Any:
        return None

    def close(self) -> None:
        pass


class Counting(Broken):
    """A device that notices how many use it at a time."""

    def __init__(self) -> None:
        super().__init__({})
        self.now = self.most = 0

    def time(self, *arguments: Any, **options: Any) -> Any:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return super().time(*arguments, **options)
        finally:
            self.now -= 1


def test_candidates_that_crash_or_hang_are_recorded_as_that_and_not_chosen(
    model: str, tmp_path: Path
) -> None:
    bad: dict[str, Exception] = {
        "c1": DeviceError("it failed", "it crashed (signal 11)", ""),
        "c2": DeviceError("it failed", "no end after 20 s", ""),
    }
    result = quickly(model, tmp_path / "x86.jsonl", device=Broken(bad))
    lines = read_records([tmp_path / "x86.jsonl"]).lines
    assert {"crashed", "hung"} <= {r.status for r in lines}
    assert sum(layer.failed for layer in result.layers) > 0
    failed = {r.setting for r in lines if r.status != "ok"}
    assert not failed & {r.setting for r in lines if r.kind == "choice"}


class Turns(Broken):
    """A device whose messages take long: it times all entries by one, unless one of them fails."""

    def time_in_turns(
        self, bundle: Any, entries: Any, x: Any, turns: int, repeats: int, *, flush_bytes: int = 0
    ) -> Any:
        self.calls += 1
        if "together" in self.bad:
            raise self.bad["together"]
        return np.array([[self.inner.time(bundle, e, x, repeats) for e in entries] for _ in range(turns)])

    def time(self, *arguments: Any, **options: Any) -> Any:
        assert "together" in self.bad
        return super().time(*arguments, **options)


def test_where_a_message_takes_long_one_times_all() -> None:
    op = Dense(x=Layout((1, 48)), y=Layout((1, 40)), weight=np.ones((40, 48), np.float32))
    target = targets.load("x86")
    kernel = all_kernels()["f32_dense"]
    settings = [Setting.of(kernel.name, kernel.knobs(op, target) | {"unroll": unroll}) for unroll in (2, 4)]
    for bad in ({}, {"together": DeviceError("one of them hangs", "no end", "")}):
        bench = LayerBench(op, target, Devices([Turns(dict(bad))]))
        assert all(time is not None and time.median > 0 for time in bench.quick(settings))


def test_a_device_that_was_throttled_is_said_to_be(model: str, tmp_path: Path) -> None:
    """As a Raspberry Pi's ``vcgencmd`` says it; and progress says how far the search came."""
    board, told = Broken({}), []
    answers = iter(["throttled=0x0", "throttled=0x40004"])
    board.state = lambda: {THROTTLED: next(answers)}
    result = quickly(model, tmp_path / "x86.jsonl", device=board, progress=lambda *now: told.append(now[2]))
    assert result.slowed == ("throttled while measuring",)
    assert any("measured; all layers" in words for words in told)


def test_several_devices_share_the_search(model: str, tmp_path: Path) -> None:
    """Each measures; none for two searches at a time."""
    boards = [Counting(), Counting()]
    result = quickly(model, tmp_path / "x86.jsonl", device=boards)
    assert len(result.layers) == 2
    assert all(board.most == 1 for board in boards)
    assert result.device == "broken, broken"


def test_a_device_that_comes_back_is_waited_for(model: str, tmp_path: Path) -> None:
    assert quickly(model, tmp_path / "x86.jsonl", device=Broken({}, away=3)).measured > 0


def test_a_device_that_stays_away_ends_the_search_and_nothing_is_lost(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "AWAY_SECONDS", -1.0)
    with pytest.raises(ConnectionLost):
        quickly(model, tmp_path / "x86.jsonl", device=Broken({}, away=1000))
    assert all(r.kind == "trial" for r in read_records([tmp_path / "x86.jsonl"]).lines)


def test_nothing_that_can_be_measured_is_a_failure(model: str, tmp_path: Path) -> None:
    every: dict[str, Exception] = {f"c{i}": DeviceError("it failed", "it crashed", "") for i in range(64)}
    with pytest.raises(CheckFailed, match="nothing was found"):
        quickly(model, tmp_path / "x86.jsonl", device=Broken(every))
    assert not any(r.kind == "choice" for r in read_records([tmp_path / "x86.jsonl"]).lines)


def test_too_little_time_is_said_to_be_that(model: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing was found"):
        quickly(model, tmp_path / "x86.jsonl", minutes=1e-9)


def test_a_wrong_answer_is_no_record_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    op = Dense(x=Layout((1, 48)), y=Layout((1, 40)), weight=np.ones((40, 48), np.float32))
    target = targets.load("x86")
    kernel = all_kernels()["f32_dense"]
    bench = LayerBench(op, target, Devices([open_device("local")]))
    bench._expected = bench._expected * np.float32(1.001)
    setting = Setting.of(kernel.name, kernel.knobs(op, target))
    assert bench.quick([setting]) == [None]
    assert bench.outcomes[setting].status == "wrong"


def test_a_target_this_machine_lacks_is_refused(model: str) -> None:
    with pytest.raises(UsageError, match="cannot be tuned on this machine"):
        tune(model, "rpi4")


@pytest.mark.needs("qemu-aarch64")
def test_without_a_board_instructions_rank_and_are_marked(model: str, tmp_path: Path) -> None:
    file = tmp_path / "rpi4.jsonl"
    result = tune(model, "rpi4", device="emulate", trials=3, records=file)
    assert result.means == "counted"
    assert {r.means for r in read_records([file]).lines} == {"counted"}
    assert {r.cpu for r in read_records([file]).lines} == {"cortex-a72"}


def test_a_crash_in_the_process_that_measures_is_survived(tmp_path: Path) -> None:
    device = Isolated("local", deadline=3)
    device._child()
    bundle: Any = SimpleNamespace(library=Path("libx.so"))
    os.kill(device._process.pid, signal.SIGSEGV)
    with pytest.raises(DeviceError, match="process of its own"):
        device._ask("run", bundle)
    device._child()
    os.kill(device._process.pid, signal.SIGSTOP)
    with pytest.raises(DeviceError) as caught:
        device._ask("run", bundle)
    assert "no end after 3 s" in caught.value.why
    device.close()


def test_nothing_is_compiled_on_the_cpu_that_measures() -> None:
    cpus, timer = os.sched_getaffinity(0), Isolated("local")
    with compiling_elsewhere([timer]):
        assert timer.cpu not in os.sched_getaffinity(0) or len(cpus) == 1
    assert os.sched_getaffinity(0) == cpus


def test_two_devices_take_at_most_five_eighths_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the time that is spent measuring, by the busier of them; made-up measurements all take the same."""
    tuning.made_up(monkeypatch.setattr)
    boards: Any = [tuning.nowhere(), tuning.nowhere()]
    result = tune("made-up", tuning.TARGET, device=boards, records=tmp_path / "r.jsonl", trials=24)
    total = sum(board.measured for board in boards)
    assert total > result.measured
    assert max(board.measured for board in boards) <= total / 1.6


def test_killed_again_and_again_it_loses_nothing() -> None:
    """The real search with made-up times, in a process without threads, which forks; see the module. Ctrl-C is ignored
    where it starts, as by what a script starts in the background."""
    kills = 50 if EVERY_CASE else 15
    command = [
        "sh",
        "-c",
        'trap "" INT; exec "$@"',
        "sh",
        sys.executable,
        "-m",
        "edgecsi.results.reliability.tuning",
        str(kills),
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["kills"] == kills
    assert counts["searches that reached the end"] >= 1


@pytest.mark.parametrize(("patience", "turns"), [(60.0, in_place.TURNS), (0.0, in_place.ENOUGH_TURNS)])
def test_confirming_on_a_device_far_away_ends(
    patience: float, turns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every turn is a message: where these take long, fewer have to do."""
    monkeypatch.setattr(in_place, "PATIENCE", patience)
    monkeypatch.setattr(in_place, "trial_bundle", lambda *_: None)
    plan: Any = SimpleNamespace(inputs=[SimpleNamespace(shape=(1, 4), dtype="float32")])
    device: Any = SimpleNamespace(time=lambda *_: np.ones(in_place.CALLS))
    found = in_place.measure({"default": plan, "tuned": plan}, targets.load("host"), device, tmp_path, False)
    assert {name: len(series) for name, series in found.items()} == {"default": turns, "tuned": turns}
