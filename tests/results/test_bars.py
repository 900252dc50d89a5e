"""A bar is reached by a valid measurement of today's code, with its peer, and by nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edgecsi.results import bars
from edgecsi.results.files import own_folder, page_of, write_json
from edgecsi.results.page import page
from edgecsi.results.readme import write_readme
from edgecsi.results.scenarios import FACTS, SCENARIOS

MAIN = next(s for s in SCENARIOS if s.bar is not None and s.device == "local" and not s.batch)
COUNTED = next(s for s in SCENARIOS if s.bar is not None and s.device == "emulate")
BATCHED = next(s for s in SCENARIOS if s.bar is not None and s.batch)


def entry(ratio: float = 0.01, **changes: Any) -> dict[str, Any]:
    interval = {"low": ratio, "high": ratio}
    compared = {"ratio": ratio, "interval": interval}
    result = {
        "validity": {"state": "valid", "reasons": []},
        "comparisons": [{"to": "onnxruntime", "warm": compared, "cold": compared}],
        "instructions": None,
        "throughput": None,
    }
    return {
        "kind": "scenario",
        "quick": False,
        "code": bars.code_digest(),
        "result": result | changes.pop("result", {}),
    } | changes


def test_a_valid_row_below_its_bar_reaches_it() -> None:
    assert bars.reached(entry(), MAIN) == "yes"
    assert bars.reached(entry(10.0), MAIN).startswith("no, ")
    assert bars.reached(entry(), dataclasses.replace(MAIN, bar=None)) == ""


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (None, "not measured"),
        (entry(error=["what", "it broke", "fix"]), "it broke"),
        (entry(result={"comparisons": []}), "ONNX Runtime was not measured"),
        (entry(result={"validity": {"state": "suspect", "reasons": ["other load"]}}), "suspect: other load"),
        (entry(result={"validity": {"state": "invalid", "reasons": ["throttled"]}}), "invalid: throttled"),
        (entry(quick=True), "quick"),
        (entry(code="of yesterday"), "before a change"),
    ],
)
def test_anything_else_reaches_none(row: dict[str, Any] | None, why: str) -> None:
    found = bars.reached(row, MAIN)
    assert found.startswith("no")
    assert why in found
    assert (MAIN, found) in list(bars.open_bars({} if row is None else {MAIN.name: row}))


def test_a_bar_against_another_engine_is_reached_beside_that_engine_only() -> None:
    narrow = next(s for s in SCENARIOS if s.peer == "openvino-bf16" and s.bar is not None)
    assert bars.reached(entry(), narrow) == "no: OpenVINO in bf16 was not measured beside it"
    interval = {"low": 0.5, "high": 0.5}
    compared = {"to": narrow.peer, "warm": {"ratio": 0.5, "interval": interval}, "cold": {"ratio": 0.4}}
    summary = {"median": 100.0}
    engines = [
        {"name": name, "version": "1", "warm": summary, "cold": summary, "answer": {"max_rel_diff": apart}}
        for name, apart in (("edgecsi", 0.0), (narrow.peer, 0.02))
    ]
    row = entry(weights="trained")
    row["result"] |= {
        "comparisons": [compared], "engines": engines, "c_call": summary, "layers": [], "after": {"date": "2026"},
        "machine": {"cpu": "Zen 4", "cores": 2, "architecture": "x86_64", "system": "Linux", "hypervisor": False,
                    "caches": {}, "versions": {}},
        "protocol": {"seconds": 1.0},
    }  # fmt: skip
    assert bars.reached(row, narrow) == "yes"
    assert "| 100 (off by 2e-02) | **0.500** (0.500-0.500) | ≤ 0.667 | yes |" in page({narrow.name: row})


def test_instructions_batches_and_facts_are_looked_at() -> None:
    counted = entry(result={"instructions": 1000, "comparisons": []})
    assert bars.reached(counted, COUNTED) == "yes"
    assert bars.reached(entry(result={"instructions": 10**9}), COUNTED).startswith("no, ")
    gains = {"gains": [{"to": "onnxruntime", "ratio": {"ratio": 0.5}}]}
    assert "below" in bars.reached(entry(result={"throughput": gains}), BATCHED)
    assert {item.name for item, _ in bars.open_bars({})} >= {
        COUNTED.name,
        BATCHED.name,
        *(f.name for f in FACTS),
    }


def test_with_nothing_measured_no_bar_is_reached() -> None:
    text = page({})
    assert "All bars are reached." not in text
    assert text.count("no: not measured") >= len([s for s in SCENARIOS if s.bar is not None])


def test_another_kind_of_cpu_is_added_beside(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    assert own_folder(folder, "Zen 4") == folder
    folder.mkdir()
    write_json(folder / "a.json", {"kind": "fact", "machine": {"cpu": "Zen 4"}})
    assert own_folder(folder, "Zen 4") == folder
    write_json(folder / "b.json", {"kind": "fact", "machine": {"cpu": "Zen 4"}})
    write_json(folder / "stray.json", {"kind": "fact", "machine": {"cpu": "Intel(R) Xeon(R) (family 6)"}})
    other = own_folder(folder, "Intel(R) Xeon(R) (family 6)")
    assert other == folder / "intel-xeon"
    assert page_of(tmp_path, folder) == tmp_path / "results.md"
    assert page_of(tmp_path, other) == tmp_path / "results-intel-xeon.md"


def test_the_figures_of_the_readme_are_those_of_the_results(tmp_path: Path) -> None:
    row = entry(0.5)
    row["result"] |= {
        "machine": {"cpu": "Zen 4", "cores": 2, "architecture": "x86_64", "system": "Linux", "hypervisor": False,
                    "caches": {}, "versions": {}},
        "engines": [{"name": "edgecsi", "warm": {"median": 10.0}}, {"name": "onnxruntime", "warm": {"median": 20.0}}],
    }  # fmt: skip
    readme = tmp_path / "README.md"
    readme.write_text("# x\n<!-- report -->\nold 99\n<!-- /report -->\nrest\n")
    write_readme(readme, [{"csinet-cr4-full": row}])
    text = readme.read_text()
    assert "| fp32 | 10.0 | 20.0 | 0.500 of its time |" in text
    assert "Zen 4" in text
    assert "old 99" not in text
    assert text.endswith("<!-- /report -->\nrest\n")
    old = entry() | row | {"code": "older"}
    write_readme(readme, [{"csinet-cr4-full": old}])
    assert "measured before a change" in readme.read_text()
    write_readme(readme, [{"csinet-cr4-full": old}, {"csinet-cr4-full": row}])
    assert "measured before a change" not in readme.read_text(), "the CPU that was measured with today's code"
