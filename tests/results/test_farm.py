"""Tuning elsewhere, held against tuning here: in parts, which are kept until all are done."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgecsi.results import farm
from edgecsi.results.farm import LOCAL, ONE, SSH, TWO, WAYS


class Board:
    """In the place of :class:`edgecsi.results.farm.Busy`: every search measures for nine seconds on it."""

    def __init__(self, spec: str) -> None:
        self.seconds = 9.0

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Searches that are only noted; the one that is noted third ends too early, the fourth is interrupted."""
    noted: list[str] = []
    monkeypatch.setenv("EDGECSI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(farm, "loopback", lambda: nullcontext("ssh://here"))
    monkeypatch.setattr(farm, "servers", lambda port: nullcontext())
    monkeypatch.setattr(farm, "Busy", Board)
    monkeypatch.setattr(farm, "ratios", lambda model, found: {SSH: 1.001, ONE: 0.99, TWO: 1.01})

    def tune(model: str, target: str, *, device: Any, records: Path, **options: Any) -> Any:
        noted.append(records.stem)
        records.touch()
        if len(noted) == 4:
            raise KeyboardInterrupt
        return SimpleNamespace(complete=len(noted) != 3)

    monkeypatch.setattr(farm, "tune", tune)
    return noted


def test_what_is_done_is_kept_and_the_same_command_goes_on(searches: list[str], tmp_path: Path) -> None:
    command = ["--model", "fullycon", "--docs", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        farm.main(command)
    assert searches == list(WAYS)
    assert farm.main(command) == 1  # two servers are as busy as one
    assert searches[4:] == [ONE, TWO]
    found = json.loads((tmp_path / "results" / "farm.json").read_text())
    assert {way: part["busy"] for way, part in found["parts"].items()} == {LOCAL: 0, SSH: 0, ONE: 18, TWO: 18}
    assert "1.001 (ssh)" in farm.summary(found)
    assert not list((tmp_path / "cache" / "farm").iterdir())
    assert farm.main(command) == 1
    assert searches[6:] == list(WAYS)
