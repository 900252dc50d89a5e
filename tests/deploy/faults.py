"""Striking one fault, checking what must hold after any, and counting it for ``docs/reliability.md``."""

from __future__ import annotations

import os
import time
from pathlib import Path

from edgecsi.bundle import Bundle
from edgecsi.deploy import Options, deploy
from edgecsi.errors import EdgecsiError
from tests.deploy.conftest import active, place
from tests.deploy.simulated import Plan, Simulated

BOUND_SECONDS = 60.0  # most take one; a busy machine takes longer


def count(kind: str) -> None:
    """Note that one fault of this kind was struck and survived."""
    if path := os.environ.get("EDGECSI_FAULT_COUNTS"):
        with Path(path).open(
            "a", encoding="utf-8"
        ) as stream:  # one write a line, so that processes may share it
            stream.write(f"{kind}\n")


def strike(
    bundles: list[Bundle], home: Path, plan: Plan, *, may_succeed: bool = False
) -> EdgecsiError | None:
    """Deploy build 2 where build 1 is active, with a fault; checks what must hold after any."""
    faulty, begin, error = Simulated(home, plan), time.monotonic(), None
    try:
        deploy(bundles[1], faulty, Options(wait=5))
    except EdgecsiError as caught:
        error = caught
    assert time.monotonic() - begin < BOUND_SECONDS
    old, new = bundles[0].manifest.digest, bundles[1].manifest.digest
    if error is not None:
        assert all((error.what, error.why, error.fix)), error
    else:
        assert may_succeed or not faulty.struck, "the fault went unnoticed"
        assert active(home) == new
    assert active(home) in (old, new)
    recover(bundles, home)
    return error


def recover(bundles: list[Bundle], home: Path) -> None:
    """The next deployment, by anybody, needs no help, and leaves nothing behind."""
    old, new = bundles[0].manifest.digest, bundles[1].manifest.digest
    begin = time.monotonic()
    deploy(bundles[1], Simulated(home), Options(wait=5))
    assert time.monotonic() - begin < BOUND_SECONDS
    assert active(home) == new
    assert active(home, "previous") == old
    assert not list((place(home) / "incoming").iterdir())
    assert not (place(home) / "lock").is_symlink()
    assert {path.name for path in (place(home) / "releases").iterdir()} == {old, new}
