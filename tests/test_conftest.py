"""What a test run says at its end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgecsi import cpu
from tests import conftest
from tests._cpu import skip_without


def test_instructions_that_no_test_executed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    target: Any = SimpleNamespace(missing_on_this_cpu=lambda: ["avx512_vnni", "amx_int8"])
    with pytest.raises(pytest.skip.Exception) as skipped:
        skip_without(target)
    report = SimpleNamespace(longrepr=("file.py", 1, f"Skipped: {skipped.value}"))
    other = SimpleNamespace(longrepr=("file.py", 2, "Skipped: valgrind is missing"))
    reporter: Any = SimpleNamespace(stats={"skipped": [report, other]}, write_line=said.append)
    monkeypatch.setattr(cpu, "features", lambda: {"avx2", "avx512f", "avx512vbmi", "avx_vnni"})
    conftest.pytest_terminal_summary(reporter)
    assert said == ["Not tested, for this CPU lacks it: amx_int8, avx512_vnni (1 tests skipped)"]
    monkeypatch.setattr(cpu, "features", lambda: conftest.INSTRUCTIONS)
    reporter.stats = {}
    conftest.pytest_terminal_summary(reporter)
    assert len(said) == 1
