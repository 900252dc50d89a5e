"""What tuning found, on a page: of its own, and beside what was measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from edgecsi.cli import main
from edgecsi.tune import network
from edgecsi.tune.result import Candidate, InPlace, TunedLayer, TuneResult
from tests import _results
from tests.report.test_report import Page, overlaps

CONV = TunedLayer(
    "decoder.0", ("decoder.2",), "conv2d 8x16", Candidate("f32_conv2d_direct", {"rows": 4}),
    Candidate("f32_conv2d_winograd", {"tiles": 2}), 20.9, 14.4, True, 9, 1,
    {"f32_conv2d_direct": (20.9, 22.0, 90.0, 21.5), "f32_conv2d_winograd": (15.0, 14.4, 16.1)}, "MACs", 0.83,
)  # fmt: skip
DENSE = TunedLayer(
    "fc", (), "dense 2048x512", Candidate("f32_dense", {"rows": 8}), Candidate("f32_dense", {"rows": 8}),
    57.0, 57.0, False, 4, 0, {"f32_dense": (57.0, 60.0, 58.0, 57.2)}, "bytes", 0.95,
)  # fmt: skip
FOUND = TuneResult(
    "csinet-cr4", "host", "znver4", "local", "measured", "2026-11-01T00:00:00+00:00", (CONV, DENSE),
    {"full": InPlace(150.0, 137.0, 0.913, 0.91, 0.917)}, "/records/host.jsonl", 13, 5, 42.0, True,
)  # fmt: skip


def written(folder: Path, found: TuneResult = FOUND) -> str:
    path = folder / "tuned.json"
    path.write_text(json.dumps(dataclasses.asdict(found)))
    return str(path)


def test_a_search_is_a_report_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["report", written(tmp_path), "-o", str(page), "--csv", "-"]) == 0
    parsed = Page(page.read_text())
    for words in (
        "csinet-cr4, tuned for host on znver4: full takes 137 µs, 150 with the defaults; the ratio is 0.913",
        "1 of 2 kinds of layers use another choice",
        "decoder.0 ×2",
        "f32_conv2d_winograd tiles=2",
        "83% (MACs)",
        "13 settings measured in 42 s, 5 more were known",
        "f32_conv2d_direct: 4, best 20.9; 1 beyond",
    ):
        assert words in parsed.text
    drawings = page.read_text().split("<svg")[1:]
    assert len(drawings) == 3
    assert [lying for drawing in drawings for lying in overlaps(drawing)] == []
    assert "decoder.0,f32_conv2d_direct rows=4" in capsys.readouterr().out


def test_a_search_stands_beside_results(tmp_path: Path) -> None:
    run, page = _results.written(tmp_path, "run", _results.result()), tmp_path / "page.html"
    assert main(["report", str(run), written(tmp_path), "-o", str(page)]) == 0
    text = Page(page.read_text()).text
    assert text.index("Conditions") < text.index("Tuning: csinet-cr4 for host")
    assert main(["report", str(tmp_path), "-o", str(page)]) == 0
    assert "What was tried" in page.read_text()
    assert main(["compare", str(run), written(tmp_path)]) == 3


def test_counts_are_marked_and_an_unfinished_search_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = dataclasses.replace(FOUND, means="counted", complete=False)
    assert main(["report", written(tmp_path, counted), "--markdown", "-"]) == 0
    text = capsys.readouterr().out
    assert "a proxy for time" in text
    assert "The search is not finished" in text
    assert "M instr." in text


def test_a_hostile_search_is_refused_or_escaped(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    evil = dataclasses.replace(FOUND, model="<script>alert(1)</script>")
    assert main(["report", written(tmp_path, evil), "-o", str(page)]) == 0
    assert "<script>alert" not in page.read_text()
    tree = dataclasses.asdict(FOUND)
    for change in (
        {"schema": 99},
        {"layers": 3},
        {"model": "x" * 20_000},
        {"entries": {"full": {"ratio": "1"}}},
    ):
        (tmp_path / "bad.json").write_text(json.dumps(tree | change))
        assert main(["report", str(tmp_path / "bad.json"), "-o", str(page)]) == 3


def test_tune_writes_the_page_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "tune", lambda *arguments, **options: FOUND)
    page = tmp_path / "page.html"
    assert main(["tune", "csinet-cr4", "--target", "host", "--report", str(page)]) == 0
    assert "83% (MACs)" in page.read_text()
    assert (
        main(["tune", "csinet-cr4", "--target", "host", "--report", str(tmp_path / "no" / "page.html")]) == 3
    )
