"""The quick mode of every experiment, from the command line; a second run takes everything from the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgecsi.cli import main
from edgecsi.compress import reconstruct
from edgecsi.results.papers import guo_detection
from edgecsi.training.tasks import Detection, Reconstruction

COLUMNS = {
    "erak": {"bytes", "gzip_bytes", "nmse_db", "rho", "latency_us", "loss_to_control_db"},
    "guo-csi": {"weights", "MACs", "nmse_db"},
    "guo-detection": {"BER 8 dB", "BER 10 dB", "smaller"},
    "patterns": {"pattern", "zeros", "loss_db"},
}


def run(name: str, out: Path, *options: str) -> dict[str, Any]:
    assert main(["experiments", "run", name, "--quick", "-o", str(out), *options]) == 0
    assert {path.name for path in out.iterdir()} == {f"{name}.json", f"{name}.md", f"{name}.svg"}
    written: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return written


@pytest.mark.parametrize("name", COLUMNS)
def test_quick_mode(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guo_detection, "_QUICK", {8.0: 4000, 10.0: 4000})
    monkeypatch.setattr(Detection, "held_out", 1000)
    monkeypatch.setattr(reconstruct, "_ROUNDS", 1)
    for task in (Detection, Reconstruction):
        monkeypatch.setattr(task, "report", lambda self, model: {})
    first = run(name, tmp_path / "first")
    assert COLUMNS[name] <= set(first["rows"][0])
    assert len(first["rows"]) >= 2
    assert all(curve[0] for panel in first["panels"].values() for curve in panel.values())

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a row that was finished is made again")

    for module, function in (
        ("common.compress", never),
        ("common.Prunable.pruned", never),
        ("guo_csi.train", never),
    ):
        monkeypatch.setattr(f"edgecsi.results.papers.{module}", function)
    assert run(name, tmp_path / "again")["rows"] == first["rows"]


def test_latencies_come_with_a_second_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []

    def time(model: str, before: dict[str, Any] | None) -> dict[str, Any]:
        timed.append(model)
        if before is None:
            before = {
                "library": "l",
                "library_bytes": 4000 - len(timed),
                "latency_us": 8.0 / len(timed),
                "validity": "valid",
            }
        return before

    monkeypatch.setattr("edgecsi.cli.experiments._time", time)
    rows = run("erak", tmp_path, "--latency")["rows"]
    assert timed[0] == "csinet-cr16"
    assert len(timed) == len(rows)
    assert [row["latency_us"] for row in rows[:2]] == [8.0, 4.0]
    assert rows[1]["time"] == "−50.0 %"
    assert run("erak", tmp_path)["rows"] == rows  # what was measured stays known
    assert main(["experiments", "run", "patterns", "--latency", "-o", str(tmp_path)]) == 2


def test_a_network_is_built_and_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgecsi.cli.experiments import _time

    found = _time("fullycon", None)
    assert found["library_bytes"] > 4 * 130_000
    assert found["latency_us"] > 0
    known = found | {"latency_us": -1.0, "validity": "valid"}
    assert _time("fullycon", known) == known
    assert _time("fullycon", known | {"validity": "suspect"})["latency_us"] > 0
