"""Broken and hostile files of every kind, for every reader: two minutes of the campaign of docs/reliability.md in CI."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecsi.results.reliability import fuzz
from edgecsi.results.reliability.readers import readers
from tests._every_case import EVERY_CASE


def test_every_reader_refuses_broken_files_in_three_lines(tmp_path: Path) -> None:
    minutes, batch = (2, 6) if EVERY_CASE else (0, 3)
    found = fuzz.fuzz(fuzz.Tally(), minutes, tmp_path / "findings", batch=batch)
    assert not found.findings
    assert {kind.partition(":")[0] for kind in found.kinds} == {reader.name for reader in readers(tmp_path)}
    assert len(found.kinds) >= 60
    assert sum(kind.refused for kind in found.kinds.values()) > 500


def test_what_is_counted_survives_being_written_and_added_to() -> None:
    tally = fuzz.Tally({"a: b": fuzz.Kind(5, 2, 3)}, fuzz.Counter({"DataError: no": 3}), {}, 1, 2.5)
    again = fuzz.Tally.of(tally.tree())
    again.add(tally)
    assert again.tree()["executions"] == 10
    assert again.tree()["errors"] == {"DataError: no": 6}


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (KeyError("x"), "KeyError"),
        (MemoryError(), "MemoryError"),
        (RuntimeWarning("overflow"), "RuntimeWarning"),
    ],
)
def test_anything_but_a_typed_error_is_a_finding(tmp_path: Path, raised: Exception, words: str) -> None:
    def read(path: Path) -> None:
        raise raised

    reader = fuzz.Reader("nothing", ".bin", "bytes", "", read)
    with pytest.raises(fuzz.Finding, match=words):
        fuzz.read(reader, b"", tmp_path)
