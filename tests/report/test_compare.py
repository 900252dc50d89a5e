"""Better, worse, same or cannot tell: as often as it should be."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from edgecsi.bench.result import LayerTime, Result, Validity
from edgecsi.bench.statistics import Interval, median_interval
from edgecsi.cli import main
from edgecsi.errors import DataError
from edgecsi.report.compare import BeforeAfter, compare, text
from edgecsi.report.read import Shown
from edgecsi.report.trend import steps
from tests import _results


def shown(found: Result, name: str = "a") -> Shown:
    samples = {engine.name: np.array(engine.samples) for engine in found.engines}
    return Shown(name, found, samples)


def verdicts(
    change: float, pairs: int, peer: float | None = None, wander: float = 0.003
) -> list[BeforeAfter]:
    """Pairs of runs, the second slower by ``change``; from run to run the machine wanders a little."""
    generator = np.random.default_rng(7)
    runs = [
        _results.result(45 * (1 + change * (i % 2)), i, peer, float(generator.normal(0, wander)), cheap=True)
        for i in range(2 * pairs)
    ]
    return [compare(shown(a), shown(b)) for a, b in zip(runs[::2], runs[1::2], strict=True)]


def test_two_runs_of_one_library_are_the_same_in_95_of_100() -> None:
    found = verdicts(0.0, 100)
    assert sum(one.changes[0].verdict == "same" for one in found) >= 95
    assert not any(one.worse_than(0.0) for one in found)


def test_five_percent_are_found() -> None:
    found = verdicts(0.05, 20)
    assert all(one.changes[0].verdict == "worse" for one in found)
    assert all(one.worse_than(0.03) for one in found)
    assert not any(one.worse_than(0.10) for one in found)
    assert all(one.changes[0].verdict == "better" for one in verdicts(-0.05, 10))


def test_three_thousandths_are_the_same() -> None:
    found = verdicts(0.003, 20)
    assert sum(one.changes[0].verdict == "same" for one in found) >= 19


def test_what_the_machine_did_cancels_against_an_engine_measured_in_both_runs() -> None:
    before = _results.result(45, 1, peer=500.0)
    slower_machine = _results.result(45, 2, peer=500.0, drift=0.08)
    found = compare(shown(before), shown(slower_machine))
    first = found.changes[0]
    assert (first.what, first.verdict) == ("one call, against onnxruntime", "same")
    assert any("machine changed" in note for note in found.notes)
    assert not found.worse_than(0.03)
    slower_library = compare(shown(before), shown(_results.result(48, 3, peer=500.0, drift=0.08)))
    assert slower_library.changes[0].verdict == "worse"
    assert slower_library.worse_than(0.05)


def test_few_noisy_calls_are_not_decided() -> None:
    runs = []
    for seed in range(2):
        found = _results.result(45, seed)
        one = found.engines[0]
        samples = np.random.default_rng(seed).normal(45e3, 9e3, 60).astype(int)
        few = dataclasses.replace(one, samples=tuple(samples.tolist()), rounds=(60,))
        runs.append(shown(dataclasses.replace(found, engines=(few,))))
    found = compare(*runs)
    assert found.changes[0].verdict == "cannot tell"
    assert compare(*runs, metric="p99").changes[0].verdict == "cannot tell"


@pytest.mark.parametrize("metric", ["p90", "p99"])
def test_high_percentiles_have_intervals_of_their_own(metric: str) -> None:
    before, after = _results.result(45, 1), _results.result(60, 2)
    found = compare(shown(before), shown(after), metric).changes[0]
    assert (found.what, found.verdict) == (f"one call, {metric}", "worse")
    assert found.interval is not None


NORMAL = _results.result()


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (_results.emulated(), "a count is no latency"),
        (dataclasses.replace(NORMAL, machine=dataclasses.replace(NORMAL.machine, cpu="EPYC")), "EPYC"),
        (dataclasses.replace(NORMAL, entry="encoder"), "encoder"),
        (dataclasses.replace(NORMAL, protocol=dataclasses.replace(NORMAL.protocol, quick=True)), "quick"),
        (dataclasses.replace(NORMAL, validity=Validity("invalid", ("throttled",))), "throttled"),
    ],
)
def test_what_cannot_be_compared_is_refused(other: Result, reason: str) -> None:
    for pair in ((NORMAL, other), (other, NORMAL)):
        with pytest.raises(DataError) as error:
            compare(*map(shown, pair))
        assert reason in error.value.why


def test_what_makes_it_doubtful_is_said() -> None:
    suspect = dataclasses.replace(NORMAL, validity=Validity("suspect", ("other load",)))
    other = dataclasses.replace(suspect, bundle=dataclasses.replace(suspect.bundle, recipe="int8-dynamic"))
    notes = compare(shown(NORMAL), shown(other)).notes
    assert any("other load" in note for note in notes)
    assert any("int8-dynamic" in note for note in notes)


def test_bytes_nmse_and_layers_are_compared_and_never_fail() -> None:
    bundle = dataclasses.replace(NORMAL.bundle, library_bytes=800_000, nmse_db=-19.0)
    layer = dataclasses.replace(NORMAL.layers[0], us=40.0, interval=Interval(39.9, 40.1))
    other = dataclasses.replace(NORMAL, bundle=bundle, layers=(layer,))
    found = compare(shown(NORMAL), shown(other))
    assert {c.what: c.verdict for c in found.changes[1:]} == {
        "library bytes": "worse",
        "NMSE": "worse",
        "layer encoder.fc (f32_dense)": "worse",
    }
    assert not found.worse_than(0.0)


def timed_layer(us: float, seed: int, name: str = "encoder.fc") -> LayerTime:
    """A layer as it is measured: 200 passes, and where it lies in memory this time."""
    generator = np.random.default_rng([seed, len(name)])
    placed = us * float(np.exp(generator.normal(0, 0.015))) + float(generator.normal(0, 0.02))
    passes = np.round(placed * np.exp(np.abs(generator.normal(0, 0.02, 200))), 2)
    return dataclasses.replace(
        NORMAL.layers[0], name=name, us=float(np.median(passes)), interval=median_interval(passes)
    )


@pytest.mark.parametrize(
    ("change", "expected", "least"),
    [(1.0, "same", 95), (1.003, "same", 95), (1.25, "worse", 95), (0.75, "better", 95)],
)
@pytest.mark.parametrize("us", [2.0, 15.0])
def test_layers_are_judged_by_their_intervals(change: float, expected: str, least: int, us: float) -> None:
    found = [
        compare(
            shown(dataclasses.replace(NORMAL, engines=(), layers=(timed_layer(us, 2 * pair),))),
            shown(dataclasses.replace(NORMAL, engines=(), layers=(timed_layer(us * change, 2 * pair + 1),))),
        ).changes[-1]
        for pair in range(100)
    ]
    assert sum(one.verdict == expected for one in found) >= least
    assert all(one.interval is not None for one in found)


def test_a_layer_in_between_is_not_decided_and_one_without_interval_neither() -> None:
    wide = dataclasses.replace(NORMAL.layers[0], us=15.0, interval=Interval(13.0, 18.0))
    narrow = dataclasses.replace(NORMAL.layers[0], us=15.5, interval=Interval(15.4, 15.6))
    old = dataclasses.replace(narrow, us=40.0, interval=None)
    results = [shown(dataclasses.replace(NORMAL, layers=(layer,))) for layer in (wide, narrow, old)]
    for pair in ((results[0], results[1]), (results[1], results[2])):
        assert compare(*pair).changes[-1].verdict == "cannot tell"


def test_layers_that_only_one_has_are_named() -> None:
    one = dataclasses.replace(NORMAL, layers=(timed_layer(5, 0), timed_layer(2, 1, "encoder.conv")))
    other = dataclasses.replace(NORMAL, layers=(timed_layer(5, 2), timed_layer(2, 3, "encoder.relu")))
    notes = compare(shown(one), shown(other)).notes
    assert "layers only before: encoder.conv" in notes
    assert "layers only after: encoder.relu" in notes


def test_two_folders_are_compared_entry_by_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {"before": {"encoder": 10, "decoder": 45, "full": 60}, "after": {"encoder": 10, "decoder": 55}}
    for seed, (folder, entries) in enumerate(times.items()):
        (tmp_path / folder).mkdir()
        for entry, us in entries.items():
            found = dataclasses.replace(_results.result(us, seed), entry=entry)
            _results.written(tmp_path / folder, entry, found)
    both = [str(tmp_path / folder) for folder in times]
    assert main(["compare", *both, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {e["after"].split()[0]: e["changes"][0]["verdict"] for e in found["entries"]} == {
        "encoder": "same",
        "decoder": "worse",
    }
    assert found["notes"] == ["only before: full"]
    assert main(["compare", *both, "--fail-above", "5%"]) == 6
    assert "decoder is slower" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    _results.written(empty, "other", dataclasses.replace(NORMAL, entry="other"))
    assert main(["compare", both[0], str(empty)]) == 3


def test_calls_of_one_layer_are_told_apart_by_their_order() -> None:
    (layer,) = NORMAL.layers
    calls = (dataclasses.replace(layer, kernel="elementwise", us=0.3, interval=Interval(0.3, 0.3)), layer)
    found = compare(
        shown(dataclasses.replace(NORMAL, layers=calls)), shown(dataclasses.replace(NORMAL, layers=calls))
    )
    layers = [change for change in found.changes if change.what.startswith("layer")]
    assert [change.what for change in layers] == [
        "layer encoder.fc (elementwise)",
        "layer encoder.fc (f32_dense)",
    ]
    assert {change.verdict for change in layers} == {"same"}


def test_counts_of_instructions_are_exact() -> None:
    found = compare(shown(_results.emulated()), shown(_results.emulated(1_100_000)))
    assert found.changes[0].verdict == "worse"
    assert found.worse_than(0.05)


def test_the_exit_code_is_6_only_for_a_certain_slowdown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, same, slower = (
        str(_results.written(tmp_path, name, _results.result(us, seed)))
        for seed, (name, us) in enumerate([("before", 45), ("same", 45), ("slower", 50)])
    )
    assert main(["compare", before, slower, "--fail-above", "5%"]) == 6
    assert "5%" in capsys.readouterr().err
    assert main(["compare", before, slower]) == 0
    capsys.readouterr()
    assert main(["compare", before, same, "--fail-above", "5%", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["changes"][0]["verdict"] == "same"
    assert main(["compare", before, slower, "--fail-above", "20%"]) == 0
    assert main(["compare", before, slower, "--fail-above", "5 percent"]) == 2


def test_a_step_in_a_history_is_found_and_scatter_is_not() -> None:
    generator = np.random.default_rng(3)
    quiet = 45 * np.exp(generator.normal(0, 0.004, 30))
    assert steps(quiet) == []
    stepped = quiet * np.where(np.arange(30) >= 18, 1.06, 1.0)
    (step,) = steps(stepped)
    assert step.index == 18
    assert step.change == pytest.approx(0.06, abs=0.01)
    assert sum(bool(steps(45 * np.exp(generator.normal(0, 0.01, 20)))) for _ in range(50)) <= 2


def test_a_folder_is_a_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for day in range(8):
        found = _results.result(45 * (1.08 if day >= 5 else 1), day)
        after = dataclasses.replace(found.after, date=f"2026-11-{day + 1:02d}T00:00:00+00:00")
        _results.written(tmp_path, f"run{day}", dataclasses.replace(found, after=after))
    assert main(["compare", str(tmp_path)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "%" in line and "run" in line]
    assert "run5" in line
    assert "+8" in line
    assert main(["compare", str(tmp_path), "--fail-above", "5%"]) == 6


def test_a_narrow_terminal_gets_lines_instead_of_columns() -> None:
    one = shown(_results.result())
    found = compare(one, one)
    wide, narrow = (text(found, room).split("\n\n")[1].splitlines() for room in (200, 60))
    assert max(map(len, wide)) > 60 >= max(map(len, narrow))
    assert any("before" in line and "after" in line and "ratio" in line for line in narrow)
