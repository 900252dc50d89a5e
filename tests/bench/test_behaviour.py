"""Deadlines, long runs, calls at a rate, and the measurement against itself."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgecsi.bench import bench, observe
from edgecsi.bench.behaviour import Second
from edgecsi.bench.deadline import Limit, held, parse_limit
from edgecsi.bench.environment import snapshot
from edgecsi.bench.statistics import NEEDED
from edgecsi.bench.sustained import Meter, judge_trend, paced, refuse_too_few, sustained
from edgecsi.bundle import Bundle
from edgecsi.cli import main
from edgecsi.device import open_device
from edgecsi.device.protocol import MeasuringProtocol
from edgecsi.errors import UsageError
from edgecsi.report.read import read_shown
from tests import _results, _tiny

SHORT = MeasuringProtocol(
    quick=True, samples=50, seconds=0.01, limit=2.0, turn=0.001, cold_samples=5, cold_starts=1
)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "QUICK", SHORT)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("0.5ms", Limit(500, "p99")),
        ("0.5ms:p99", Limit(500, "p99")),
        ("80us:median", Limit(80, "median")),
        ("80 µs", Limit(80, "p99")),
        ("1s:max", Limit(1e6, "max")),
    ],
)
def test_a_deadline_is_a_time_and_a_metric(text: str, limit: Limit) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize("text", ["", "fast", "0.5", "0ms", "-1ms", "0.5ms:p42", "0.5ms:", "1e3us", "nanms"])
def test_anything_else_is_no_deadline(text: str) -> None:
    with pytest.raises(UsageError, match="no deadline"):
        parse_limit(text)


def test_a_deadline_is_held_against_the_tail() -> None:
    found = _results.result(45)
    assert held(found, Limit(60, "median")).met
    assert not held(found, Limit(60, "p99")).met
    assert not held(found, Limit(60, "max")).met
    with pytest.raises(UsageError, match=r"too few for p99\.9"):
        held(found, Limit(60, "p99.9"))
    with pytest.raises(UsageError, match="no latencies"):
        held(_results.emulated(), Limit(60, "p99"))


def rows(
    medians: Sequence[float], mhz: Sequence[float] | float = 1800, throttled: Sequence[int] = ()
) -> list[Second]:
    speeds = [float(mhz)] * len(medians) if isinstance(mhz, int | float) else mhz
    return [
        Second(float(i), 100, us, us, us, us, 60.0, speed, i in throttled, None)
        for i, (us, speed) in enumerate(zip(medians, speeds, strict=True))
    ]


def test_a_long_run_is_steady_drifts_or_throttles() -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, 120)
    assert judge_trend(rows(45 + noise))[0] == "steady"
    one_bad_second = 45 + noise
    one_bad_second[50] = 200
    assert judge_trend(rows(one_bad_second))[0] == "steady"
    trend, change, since = judge_trend(rows(45 + noise + np.linspace(0, 4.5, 120)))
    assert trend == "drifts"
    assert change == pytest.approx(0.09, abs=0.02)
    assert since is not None
    slow = np.where(np.arange(120) >= 70, 90.0, 45.0)
    trend, change, since = judge_trend(rows(slow, np.where(np.arange(120) >= 70, 900, 1800).tolist()))
    assert (trend, change) == ("throttles", pytest.approx(1.0))
    assert since == pytest.approx(72, abs=3)
    # It throttled and recovered: the last tenth alone would call it steady.
    recovered = np.where((np.arange(120) >= 40) & (np.arange(120) < 80), 90.0, 45.0)
    assert judge_trend(rows(recovered, throttled=range(40, 80)))[0] == "throttles"
    assert judge_trend(rows([45.0]))[0] == "steady"


def test_every_second_of_a_long_run_is_kept(tmp_path: Path) -> None:
    meter_file = tmp_path / "power1_input"
    meter_file.write_text("5000000\n")

    def turn() -> np.ndarray:
        time.sleep(0.02)
        return np.full(50, 45.0)

    found = sustained(turn, 0.2, state=snapshot, meter=Meter(meter_file))
    assert len(found.seconds) >= 3
    assert found.trend == "steady"
    assert found.seconds[0].power == pytest.approx(5, rel=0.01)
    assert found.energy_uj is not None
    assert 0.9 * 5e6 * 0.02 / 50 <= found.energy_uj < 50 * 5e6 * 0.02 / 50  # a busy machine sleeps longer
    assert sustained(turn, 0.01, state=snapshot).energy_uj is None


def test_an_interrupted_long_run_keeps_what_was_seen(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(3))

    def turn() -> np.ndarray:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return np.full(50, 45.0)

    assert len(sustained(turn, 60, state=snapshot).seconds) == 3
    with pytest.raises(KeyboardInterrupt):
        sustained(turn, 60, state=snapshot)
    seen = sustained(lambda: np.full(50, 45.0), 0.001, state=snapshot)
    monkeypatch.setattr(observe, "sustained", lambda *arguments, **named: seen)
    with contextlib.closing(open_device("local")) as device:
        found = observe.observe(_results.result(), bundle.path, device, observe.Wanted(sustained=60.0))
    assert found.validity.state == "suspect"
    assert any("interrupted" in reason for reason in found.validity.reasons)


def test_a_deadline_that_cannot_be_decided_costs_no_measurement(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NEEDED, 99.9, 1 << 40)
    out = tmp_path / "bench.json"
    arguments = ["bench", str(bundle.path), "--quick", "--seconds", "0.01", "--deadline", "1ms:p99.9"]
    assert main([*arguments, "--json", str(out)]) == 2
    assert json.loads(out.read_text())["deadline"] is None


def test_energy_is_counted_where_the_meter_counts(tmp_path: Path) -> None:
    path = tmp_path / "energy_uj"
    path.write_text("1000")
    meter = Meter(path)
    path.write_text("4000")
    meter.read()
    assert meter.microjoules == 3000
    path.write_text("10")  # it began again
    meter.read()
    assert meter.microjoules >= 3000
    for name, text in (("temp1_input", "1"), ("energy1_input", "many")):
        (tmp_path / name).write_text(text)
        with pytest.raises(UsageError):
            Meter(tmp_path / name)


def test_calls_at_a_rate_come_when_they_are_due() -> None:
    begin = time.perf_counter()
    found = paced(lambda: None, 200, 0.25)
    assert 0.2 < time.perf_counter() - begin < 2
    assert found.calls.size == found.responses.size == 50
    assert (found.responses >= found.calls - 1).all()
    busy = paced(lambda: time.sleep(0.02), 200, 0.1)
    assert busy.late > 10
    assert busy.responses[-1] > busy.calls[-1] + 50_000  # waiting counts
    with pytest.raises(UsageError, match="too few"):
        refuse_too_few(10, 1)


def test_bench_finds_all_of_it_and_saves_it(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--quick", "--rate", "2000/s", "--sustained", "1s", "--self-check", "--deadline", "1s:max"]
    arguments = ["bench", str(bundle.path), *options, "--save", str(tmp_path / "history")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for words in (
        "at 2000 calls a second",
        "turns of a second",
        "against itself",
        "deadline of 1,000,000 µs: met",
    ):
        assert words in printed
    assert main(arguments) == 0
    first, second = read_shown([tmp_path / "history"])
    result = first.result
    assert result.periodic is not None
    assert result.sustained is not None
    assert result.sustained.rate == 2000
    assert result.self_check is not None
    assert result.self_check.ratio.ratio == pytest.approx(1, abs=0.5)
    assert result.commands[1].startswith(f"edgecsi bench {bundle.path} --")
    assert "--self-check" in result.commands[1]
    assert "--save" not in result.commands[1]
    assert second.name != first.name


def test_a_missed_deadline_ends_with_6_and_keeps_the_result(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    arguments = ["bench", str(bundle.path), "--quick", "--deadline", "0.001us:median", "--json", str(out)]
    assert main(arguments) == 6
    assert "misses its deadline" in capsys.readouterr().err
    assert json.loads(out.read_text())["deadline"]["metric"] == "median"


@pytest.mark.parametrize(
    "options",
    [
        ["--deadline", "soon"],
        ["--rate", "often"],
        ["--rate", "0/s"],
        ["--sustained", "long"],
        ["--meter", "/dev/null"],
    ],
)
def test_what_makes_no_sense_is_a_usage_error(bundle: Bundle, options: list[str]) -> None:
    assert main(["bench", str(bundle.path), "--quick", *options]) == 2


def test_the_way_to_build_it_again_asks_for_weights_of_ones_own(tmp_path: Path, bundle: Bundle) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(bundle.path, folder)
    _tiny.reseal(folder, lambda tree: tree["model"].update(spec="net.py:make", sha256="ab" * 32))
    found = observe.repeatable(_results.result(), folder, ["mine"])
    (about, build, _), target = found.commands, bundle.manifest.target.id
    assert f"WEIGHTS is the file with the SHA-256 {'ab' * 32}" in about
    assert build == f"edgecsi build net.py:make --target {target} --weights WEIGHTS --name tiny-net -o mine"
    _tiny.reseal(folder, lambda tree: tree["model"].update(sha256=None))
    assert "--weights" not in " ".join(observe.repeatable(_results.result(), folder, ["mine"]).commands)
