"""Searching knobs: every layer is timed with its default and a few others, and the page says what that adds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgecsi.bench import knobs
from edgecsi.bench.results_page import page


def test_the_layers_of_a_row_are_searched_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knobs, "REPEAT", 1)
    monkeypatch.setattr(knobs, "_MOST", 3)
    said: list[str] = []
    knobs.search_all(tmp_path, "linear-90-16x4-int8-host", said.append)
    assert len(said) == 1
    stored = json.loads((tmp_path / knobs.FILE).read_text())
    row = stored["rows"]["linear-90-16x4-int8-host"]
    assert [layer["kernel"] for layer in row["layers"]] != []
    assert 0 < row["best_us"] <= row["default_us"]
    text = page({"knobs": stored})
    assert "| Linear 2048→512, 90 % 16×4 int8 |" in text.split("searching the knobs")[1]
