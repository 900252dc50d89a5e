"""Tests of instructions that the CPU they run on may not have."""

from __future__ import annotations

import pytest

from edgecsi.target import Target

LACKS = "this CPU lacks "


def skip_without(target: Target) -> None:
    """Skip a test that runs a target's code natively where it cannot; `conftest` sums up what that leaves untested."""
    if missing := target.missing_on_this_cpu():
        pytest.skip(f"{LACKS}{', '.join(missing)}")
