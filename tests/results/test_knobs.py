"""Searching knobs: which setting is chosen, what the page says that adds, and whether that can be believed."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgecsi.bench.result import Snapshot
from edgecsi.errors import ToolchainError, UsageError
from edgecsi.results import knobs
from edgecsi.tune import harness

QUIET = Snapshot(
    "2026-01-02T03:04:05+00:00", 0.0, (0.0, 0.0, 0.0), "performance", (3000.0,), 40.0, 0, 0.0, 0.0, 0.0
)
LATER = dataclasses.replace(QUIET, clock=10.0)
LINEAR = "linear-90-16x4-int8-host"
NETWORK = "mlp-joint90-host"


MICROSECONDS = {0: 10, 1: 12, 2: 8, 3: 12, 4: 12}
"""What the settings of a layer seem to take; the first is the default."""


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[harness.Case]]:
    """Stands for running the settings of a layer; remembers them."""
    asked: list[Sequence[harness.Case]] = []

    def run_cases(cases: Sequence[harness.Case], *_: object, **__: object) -> list[tuple[None, None, float]]:
        asked.append(cases)
        return [(None, None, MICROSECONDS[number] / 1e6) for number in range(len(cases))]

    monkeypatch.setattr(harness, "run_cases", run_cases)
    monkeypatch.setattr(knobs, "_MOST", 4)
    snapshots = itertools.cycle((QUIET, LATER))
    monkeypatch.setattr(knobs, "snapshot", lambda: next(snapshots))
    return asked


def run(docs: Path, only: str) -> int:
    return knobs.main(["--docs", str(docs), "--only", only])


def kept(docs: Path) -> dict[str, Any]:
    rows: dict[str, Any] = json.loads((docs / "results" / knobs.FILE).read_text())["rows"]
    return rows


def table(docs: Path) -> list[str]:
    """The rows of the page's table."""
    section = (docs / "results.md").read_text().split("### What searching the knobs would add")[1]
    return [line for line in section.split("\n## ")[0].splitlines() if line.startswith("| ")][1:]


def test_the_fastest_setting_of_a_layer_is_chosen(
    tmp_path: Path, timed: list[Sequence[harness.Case]]
) -> None:
    assert run(tmp_path, LINEAR) == 0
    ((default, _, third, *_),) = timed
    (layer,) = kept(tmp_path)[LINEAR]["layers"]
    assert layer["kernel"] == default.kernel.name
    assert (layer["default"], layer["best"]) == (default.knobs, third.knobs)
    assert layer["default"] != layer["best"]
    assert (layer["default_us"], layer["best_us"]) == pytest.approx((10, 8))
    assert table(tmp_path) == ["| Linear 2048→512, 90 % 16×4 int8 | 10.0 | 8.00 | 20% | valid |"]


def test_a_default_that_is_the_fastest_stays(
    tmp_path: Path, timed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MICROSECONDS, 0, 5)
    assert run(tmp_path, LINEAR) == 0
    (layer,) = kept(tmp_path)[LINEAR]["layers"]
    assert layer["best"] == layer["default"]
    assert table(tmp_path) == ["| Linear 2048→512, 90 % 16×4 int8 | 5.00 | 5.00 | 0% | valid |"]


def test_the_layers_of_a_network_are_summed_up(tmp_path: Path, timed: list[Sequence[harness.Case]]) -> None:
    assert run(tmp_path, NETWORK) == 0
    row = kept(tmp_path)[NETWORK]
    assert len(row["layers"]) == len(timed) == 8
    assert (row["default_us"], row["best_us"]) == pytest.approx((80, 64))
    assert table(tmp_path) == ["| MLP 60-600×7-20, joint | 80.0 | 64.0 | 20% | valid |"]


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ({"clock": 10.0, "busy": 5.0}, "suspect; other processes used 0.50 of a core"),
        ({"throttled": 0b100}, "invalid; throttled while measuring"),
    ],
)
def test_what_cannot_be_believed_is_marked(
    tmp_path: Path, timed: list[Any], monkeypatch: pytest.MonkeyPatch, after: dict[str, Any], said: str
) -> None:
    snapshots: Iterator[Snapshot] = iter((QUIET, dataclasses.replace(LATER, **after)))
    monkeypatch.setattr(knobs, "snapshot", lambda: next(snapshots))
    assert run(tmp_path, LINEAR) == 0
    assert kept(tmp_path)[LINEAR]["validity"]["state"] == said.split(";")[0]
    assert table(tmp_path) == [f"| Linear 2048→512, 90 % 16×4 int8 | 10.0 | 8.00 | 20% | {said} |"]


def test_a_part_is_searched_again_and_the_rest_is_kept(
    tmp_path: Path, timed: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, NETWORK) == 0
    path = tmp_path / "results" / knobs.FILE
    path.write_text(path.read_text().replace('"rows": {', '"rows": {"no-longer-there": {},'))
    assert run(tmp_path, LINEAR) == 0
    assert list(kept(tmp_path)) == [LINEAR, NETWORK]  # in the order of the other tables
    assert [row.split(" | ")[-2] for row in table(tmp_path)] == ["20%", "20%"]

    def broken(*_: object) -> None:
        raise ToolchainError("it cannot be compiled", "it is wrong", "report it")

    monkeypatch.setattr(knobs, "search", broken)
    assert run(tmp_path, LINEAR) == 0
    assert f"{LINEAR}: failed: it is wrong" in capsys.readouterr().err
    assert table(tmp_path)[0] == "| Linear 2048→512, 90 % 16×4 int8 | failed: it is wrong |  |  |  |"
    assert "| 80.0 | 64.0 |" in table(tmp_path)[1]


def test_no_such_row_is_a_mistake(tmp_path: Path) -> None:
    assert run(tmp_path, "no-such") == UsageError.exit_code
    assert not list(tmp_path.iterdir())


def test_layers_are_really_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs, "REPEAT", 1)
    monkeypatch.setattr(knobs, "_MOST", 1)
    assert run(tmp_path, LINEAR) == 0
    row = kept(tmp_path)[LINEAR]
    assert 0.01 < row["default_us"] < 1000
