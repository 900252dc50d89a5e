"""Every fault of a deployment, struck everywhere it can strike.

After each: what was active still runs, or the new release does, whole; the error says what to do; it took bounded
time; and the next deployment succeeds without anybody touching the device. The points are counted, and
``EDGECSI_FAULT_COUNTS=FILE`` has them written there; ``docs/reliability.md`` has the numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgecsi.bundle import Bundle
from edgecsi.deploy import Options, deploy
from edgecsi.errors import EdgecsiError
from tests.deploy.conftest import active, place
from tests.deploy.faults import count
from tests.deploy.simulated import Plan, Simulated

ENTRIES = ["decoder", "encoder", "full", "pair"]  # the trial run
DEPLOY = [
    *("probe", "look", "info", "lock", "survey", "stage", "receive", "receive", "verify", "settle"),
    *(*ENTRIES, "activate", "prune", "unlock"),
]
SCRIPTED = [n for n, step in enumerate(DEPLOY, 1) if n > DEPLOY.index("lock") and step not in ENTRIES]
BOUND_SECONDS = 20.0
Device = Callable[[], Path]


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


def test_a_deployment_has_the_messages_the_plans_count(bundles: list[Bundle], device: Device) -> None:
    remote = Simulated(device())
    deploy(bundles[1], remote)
    assert remote.steps == DEPLOY


@pytest.mark.parametrize("message", range(1, len(DEPLOY) + 1), ids=lambda n: f"{n}-{DEPLOY[n - 1]}")
@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "hang"])
def test_the_connection_drops(bundles: list[Bundle], device: Device, kind: str, message: int) -> None:
    error = strike(bundles, device(), Plan(**{kind: message}))
    assert error is not None
    count(f"connection {kind.replace('_', 's ') if kind != 'hang' else 'hangs in'} a message")


@pytest.mark.parametrize("kind", ["cut", "flip"])
def test_what_is_sent_does_not_arrive_as_it_left(bundles: list[Bundle], device: Device, kind: str) -> None:
    for message, step in enumerate(DEPLOY, 1):
        if step == "receive":
            assert strike(bundles, device(), Plan(**{kind: message})) is not None
            count({"cut": "connection drops inside a file", "flip": "a byte flips on the way"}[kind])


def _commands(bundles: list[Bundle], home: Path) -> list[int]:
    """How many commands each message of a deployment runs."""
    counts: list[int] = []

    class Counting(Simulated):
        def run(self, *arguments, **named):  # type: ignore[no-untyped-def]
            done = super().run(*arguments, **named)
            counts.append(self.commands)
            return done

    deploy(bundles[1], Counting(home))
    return counts


@pytest.mark.parametrize("kind", ["kill_at", "reboot_at"])
@pytest.mark.parametrize("message", SCRIPTED, ids=lambda n: f"{n}-{DEPLOY[n - 1]}")
def test_the_device_dies_before_any_command(
    bundles: list[Bundle], device: Device, kind: str, message: int
) -> None:
    commands = _commands(bundles, device())[message - 1]
    # The first commands only define functions' names and settings: one strike stands for them.
    for command in _spread(commands, 6 if DEPLOY[message - 1] in CHANGING else 2):
        error = strike(bundles, device(), Plan(**{kind: (message, command)}), may_succeed=True)
        assert error is not None or DEPLOY[message - 1] == "unlock"
        count(
            {"kill_at": "device's shell killed before a command", "reboot_at": "power lost before a command"}[
                kind
            ]
        )


CHANGING = {"lock", "stage", "settle", "activate", "prune"}


def _spread(commands: int, points: int) -> Iterator[int]:
    """The last commands, where the work is done."""
    yield from range(max(1, commands - points + 1), commands + 1)
