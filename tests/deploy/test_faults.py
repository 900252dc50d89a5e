"""Every fault of a deployment, struck everywhere it can strike.

After each: what was active still runs, or the new release does, whole; the error says what to do; it took bounded
time; and the next deployment succeeds without anybody touching the device. With ``EDGECSI_EVERY_CASE``, as in CI, the
points are all of them; else every message is struck, those that change the device in every way, and some commands stand
for their neighbours. ``EDGECSI_FAULT_COUNTS=FILE`` counts them there (``docs/reliability.md`` has the numbers).
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from edgecsi.bundle import Bundle
from edgecsi.deploy import Options, deploy, rollback
from edgecsi.errors import DeviceError, EdgecsiError
from tests._every_case import EVERY_CASE
from tests.deploy.conftest import active, place
from tests.deploy.faults import count, recover, strike
from tests.deploy.simulated import Plan, Simulated, copy

ENTRIES = ["decoder", "encoder", "full", "pair"]  # the trial run
DEPLOY = [
    *("probe", "look", "info", "lock", "survey", "stage", "receive", "receive", "verify", "settle"),
    *(*ENTRIES, "activate", "prune", "unlock"),
]
CHANGING = {"lock", "stage", "settle", "activate", "prune"}
SCRIPTED = [n for n, step in enumerate(DEPLOY, 1) if n > DEPLOY.index("lock") and step not in ENTRIES]
Device = Callable[[], Path]


def test_a_deployment_has_the_messages_the_plans_count(bundles: list[Bundle], device: Device) -> None:
    remote = Simulated(device())
    deploy(bundles[1], remote)
    assert remote.steps == DEPLOY


DROPS = ("drop_before", "drop_after", "hang")


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        pytest.param(message, kind, id=f"{message}-{step}-{kind}")
        for message, step in enumerate(DEPLOY, 1)
        for number, kind in enumerate(DROPS)
        if EVERY_CASE or step in CHANGING or message % len(DROPS) == number
    ],
)
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


def _counted(home: Path, work: Callable[[Simulated], object]) -> list[int]:
    """How many commands the device ran for each message."""
    counts: list[int] = []

    class Counting(Simulated):
        def run(self, *arguments, **named):
            done = super().run(*arguments, **named)
            counts.append(self.commands)
            return done

    work(Counting(home))
    return counts


@pytest.fixture(scope="module")
def commands(bundles: list[Bundle], _template: Path, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """How many commands the device runs for each message of a deployment."""
    home = copy(_template, tmp_path_factory.mktemp("counted") / "device")
    return _counted(home, lambda remote: deploy(bundles[1], remote))


@pytest.mark.parametrize("kind", ["kill_at", "reboot_at"])
@pytest.mark.parametrize("message", SCRIPTED, ids=lambda n: f"{n}-{DEPLOY[n - 1]}")
def test_the_device_dies_before_any_command(
    bundles: list[Bundle], device: Device, commands: list[int], kind: str, message: int
) -> None:
    # The first commands only define functions' names and settings: one strike stands for them.
    points = list(_spread(commands[message - 1], 6 if DEPLOY[message - 1] in CHANGING else 2))
    for command in points if EVERY_CASE else points[kind == "kill_at" :: 2]:
        error = strike(bundles, device(), Plan(**{kind: (message, command)}), may_succeed=True)
        assert error is not None or DEPLOY[message - 1] == "unlock"
        count(
            {"kill_at": "device's shell killed before a command", "reboot_at": "power lost before a command"}[
                kind
            ]
        )


def _spread(commands: int, points: int) -> Iterator[int]:
    """The last commands, where the work is done."""
    yield from range(max(1, commands - points + 1), commands + 1)


FULL, READ_ONLY, DENIED, IO = (
    "No space left on device",
    "Read-only file system",
    "Permission denied",
    "Input/output error",
)


@pytest.fixture(scope="module")
def uses(
    bundles: list[Bundle], _template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], int]:
    """How often a deployment uses this tool of the device."""
    folder = tmp_path_factory.mktemp("uses")

    @cache
    def counted(tool: str) -> int:
        dry = Simulated(copy(_template, folder / tool), Plan(tool=(tool, 10**6, "")))
        deploy(bundles[1], dry)
        return int(dry.faulty_use().read_text())

    return counted


@pytest.mark.parametrize(
    ("tool", "says"),
    [
        *(("cat", FULL), ("cp", FULL), ("mkdir", FULL), ("ln", FULL), ("mv", FULL), ("sync", FULL)),
        *(("mkdir", READ_ONLY), ("ln", READ_ONLY), ("mkdir", DENIED), ("ln", DENIED), ("mv", DENIED)),
        *(("sync", IO), ("sha256sum", IO), ("cat", IO)),
    ],
)
def test_the_devices_disk_refuses(
    bundles: list[Bundle], device: Device, uses: Callable[[str], int], tool: str, says: str
) -> None:
    for use in range(1, min(uses(tool), 4 if EVERY_CASE else 2) + 1):
        error = strike(bundles, device(), Plan(tool=(tool, use, says)), may_succeed=True)
        if error is not None and says in error.why:
            assert "deploy again" not in error.fix, error  # the fix is the disk's
        count(f"the device says: {says}")


@pytest.mark.parametrize("message", range(1, len(DEPLOY) + 1), ids=lambda n: f"{n}-{DEPLOY[n - 1]}")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the child only deploys, and dies
def test_this_side_is_killed(bundles: list[Bundle], device: Device, message: int) -> None:
    home = device()
    child = os.fork()
    if child == 0:  # killed by the plan, like kill -9
        try:
            deploy(bundles[1], Simulated(home, Plan(die_after=message)))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert active(home) in (bundles[0].manifest.digest, bundles[1].manifest.digest)
    recover(bundles, home)
    count("our process killed after a message")


@pytest.fixture(scope="module")
def updated(
    bundles: list[Bundle], _template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Path]:
    """Makes folders of devices on which build 2 is active, and build 1 the previous."""
    folder, numbers = tmp_path_factory.mktemp("updated"), itertools.count()
    home = copy(_template, folder / "device")
    deploy(bundles[1], Simulated(home))
    return lambda: copy(home, folder / f"device{next(numbers)}")


def _rolled_back(bundles: list[Bundle], home: Path, plan: Plan) -> EdgecsiError | None:
    """Go back from build 2 to build 1 with a fault; afterwards either runs, and the next rollback works."""
    one, two = bundles[0].manifest.digest, bundles[1].manifest.digest
    error = None
    try:
        rollback(Simulated(home, plan), "tiny-net", Options(wait=5))
    except EdgecsiError as caught:
        error = caught
    now = active(home)
    assert {now, active(home, "previous")} == {one, two}
    assert error is not None or now == one
    again = rollback(Simulated(home), "tiny-net", Options(wait=5))
    assert again.previous == now
    assert active(home) == again.digest != now
    return error


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "hang", "kill_at", "reboot_at"])
def test_a_rollback_is_interrupted(bundles: list[Bundle], updated: Device, kind: str) -> None:
    if kind in ("drop_before", "drop_after", "hang"):
        assert _rolled_back(bundles, updated(), Plan(**{kind: 1})) is not None
        count("rollback interrupted")
        return
    (commands,) = _counted(updated(), lambda remote: rollback(remote, "tiny-net"))
    points = (2, *range(commands // 2, commands, 6), *_spread(commands, 10))
    for command in points if EVERY_CASE else points[kind == "kill_at" :: 2]:
        _rolled_back(bundles, updated(), Plan(**{kind: (1, command)}))
        count("rollback interrupted")


def test_there_is_nothing_to_go_back_to(bundles: list[Bundle], device: Device) -> None:
    home = device()
    with pytest.raises(DeviceError, match="has no previous release"):
        rollback(Simulated(home), "tiny-net")
    assert active(home) == bundles[0].manifest.digest
    count("rollback impossible")


@pytest.mark.parametrize("damage", ["libtiny-net.so", "manifest.json", "golden.npz", "gone", "dangling"])
def test_a_damaged_previous_release_is_not_activated(
    bundles: list[Bundle], updated: Device, damage: str
) -> None:
    home = updated()
    previous = (place(home) / "previous").resolve()
    if damage == "gone":
        shutil.rmtree(previous)
    elif damage == "dangling":
        previous.rename(previous.with_name("f" * 64))
    else:
        data = bytearray((previous / damage).read_bytes())
        data[len(data) // 2] ^= 1
        (previous / damage).write_bytes(data)
    with pytest.raises(DeviceError, match="damaged: it is not activated"):
        rollback(Simulated(home), "tiny-net")
    assert active(home) == bundles[1].manifest.digest
    deploy(bundles[2], Simulated(home))
    assert active(home) == bundles[2].manifest.digest
    count("rollback impossible")
