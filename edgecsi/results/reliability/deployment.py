"""Faults of deployments, and of runs and measurements on devices: the tests strike and count them, this runs the tests
and says how many."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgecsi.errors import CheckFailed

DEPLOYING = """\
A device in a folder, on which the device's half of a deployment runs for real, fails as planned: the connection is lost
before, after and inside of every message; either side is killed at every message, the device before single commands; it
loses its power there, and with it every file that was not written through; its disk refuses; others deploy at the same
time; the network answers wrongly. The same over a real `sshd`. After each, what was active still is, or the new release
is, whole; the error says what to do; and the next deployment succeeds without anybody touching the device. A
program that has the library loaded makes 10,000 calls and more while 20 deployments and 20 rollbacks go on, which remove
the very file it has mapped: no crash, every answer right."""
RUNNING = """\
Between this machine and a device that runs or times a bundle, over a real `sshd` and through TVM's RPC, everything fails
once: each message of the way there, the device's disk, the network in the middle of a measurement, TVM's server while it
connects, takes, loads and runs; kernels abort and never end, the runner is killed, our own process is, a port belongs to
somebody else. Each ends in bounded time with an error that says what to do, nothing of ours runs on at the device, what
was measured is kept and marked as invalid, and the next run works."""


@dataclass(frozen=True)
class Suite:
    """Tests that count what they strike, and the part of the page about them; ``name`` is its command and file."""

    name: str
    title: str
    text: str
    tests: tuple[str, ...]


SUITES = (
    Suite("deployment", "Deploying", DEPLOYING, ("tests/deploy",)),
    Suite(
        "devices",
        "Running and timing on devices",
        RUNNING,
        ("tests/device/test_faults.py", "tests/device/test_remote.py", "tests/device/test_rpc.py"),
    ),
)


def count_faults(suite: Suite) -> dict[str, int]:
    """Run the tests; returns fault points by kind.

    Raises:
        CheckFailed: a test failed, so a fault was not survived.
    """
    with tempfile.TemporaryDirectory(prefix="edgecsi-") as folder:
        counts = Path(folder, "counts")
        counts.touch()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *suite.tests],
            env=os.environ | {"EDGECSI_FAULT_COUNTS": str(counts), "EDGECSI_EVERY_CASE": "1"},
            check=False,
        )
        if done.returncode != 0:
            tests = " ".join(suite.tests)
            raise CheckFailed("a fault was not survived", f"pytest {tests} failed", "mend it")
        return dict(sorted(Counter(counts.read_text(encoding="utf-8").splitlines()).items()))


def section(suite: Suite, counts: Mapping[str, int]) -> list[str]:
    """The part of docs/reliability.md about a suite, in paragraphs; nothing without counts."""
    if not counts:
        return []
    rows = [f"| {kind} | {number} |" for kind, number in counts.items()]
    return [
        f"## {suite.title}",
        f"    python -m edgecsi.results.reliability {suite.name}",
        suite.text,
        "\n".join(["| fault | points |", "|---|---:|", *rows, f"| **all** | **{sum(counts.values())}** |"]),
    ]
