"""Faults of a deployment: the tests strike and count them, this runs the tests and says how many."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from edgecsi.errors import CheckFailed

TESTS = "tests/deploy"
_WHAT = """\
A device in a folder, on which the device's half of a deployment runs for real, fails as planned: the connection is lost
before, after and inside of every message; either side is killed at every message, the device before single commands; it
loses its power there, and with it every file that was not written through; its disk refuses; others deploy at the same
time; the network answers wrongly. The same over a real `sshd`. After each, what was active still is, or the new release
is, whole; the error says what to do; and the next deployment succeeds without anybody touching the device. A
program that has the library loaded makes 10,000 calls and more while 20 deployments and 20 rollbacks go on, which remove
the very file it has mapped: no crash, every answer right."""


def count_faults() -> dict[str, int]:
    """Run the tests of deploying; returns fault points by kind.

    Raises:
        CheckFailed: a test failed, so a fault was not survived.
    """
    with tempfile.TemporaryDirectory(prefix="edgecsi-") as folder:
        counts = Path(folder, "counts")
        counts.touch()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", TESTS],
            env=os.environ | {"EDGECSI_FAULT_COUNTS": str(counts)},
            check=False,
        )
        if done.returncode != 0:
            raise CheckFailed("a fault of a deployment was not survived", f"pytest {TESTS} failed", "mend it")
        return dict(sorted(Counter(counts.read_text(encoding="utf-8").splitlines()).items()))


def section(counts: Mapping[str, int]) -> list[str]:
    """The part of docs/reliability.md about deploying, in paragraphs; nothing without counts."""
    if not counts:
        return []
    rows = [f"| {kind} | {number} |" for kind, number in counts.items()]
    return [
        "## Deploying",
        "    python -m edgecsi.results.reliability deployment",
        _WHAT,
        "\n".join(["| fault | points |", "|---|---:|", *rows, f"| **all** | **{sum(counts.values())}** |"]),
    ]
