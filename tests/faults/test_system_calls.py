"""A part of the campaign of docs/reliability.md: system calls that fail while edgecsi works."""

from __future__ import annotations

import pytest

from edgecsi.results.reliability.faults import inject
from edgecsi.results.reliability.page import page
from tests._every_case import EVERY_CASE

SHARE = 1 if EVERY_CASE else 3


@pytest.mark.parametrize(
    ("work", "every", "points"), [("write", 1, 60), ("compress", 12, 10), ("build", 60, 5)]
)
def test_whatever_call_fails_the_output_is_whole(work: str, every: int, points: int) -> None:
    found = inject(work, SHARE * every)
    assert found
    for name, tried in found.items():
        assert not tried["findings"], name
        assert set(tried["outcomes"]) <= {"finished", "refused", "killed"}
    assert sum(sum(tried["points"].values()) for tried in found.values()) >= points / SHARE


def test_the_page_says_how_many_of_the_calls_failed() -> None:
    work = {"calls": {"open": 20, "write": 19}, "points": {"ENOSPC": 2, "EIO": 3, "kill": 3}, "findings": {}}
    text = page({}, {"build": work | {"outcomes": {"refused": 5, "killed": 3}}}, {}, {}, {}, {})
    assert "| build | 39 | 3 | 8 | 0 | 5 | 3 |" in text
