"""Who may deploy, when several want to, or the one who did is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecsi.bundle import Bundle
from edgecsi.deploy import Options, deploy, rollback
from edgecsi.deploy import lock as locks
from edgecsi.errors import DeviceError, EdgecsiError
from tests.deploy.conftest import active, place
from tests.deploy.faults import count
from tests.deploy.simulated import Simulated

Device = Callable[[], Path]
OTHER = "0123456789abcdef {boot} {lease} other-machine.1 1 1 eve@elsewhere, process 1"


def _locked(home: Path, boot: str = "boot-1", lease: str = "1") -> None:
    (place(home) / "lock").symlink_to(OTHER.format(boot=boot, lease=lease))


@pytest.mark.parametrize(
    ("boot", "lease"), [("boot-0", "600"), ("boot-1", "1"), ("", ""), ("boot-1", "nan"), ("boot-1", "-1")]
)
def test_a_lock_without_a_living_owner_is_taken(
    bundles: list[Bundle], device: Device, boot: str, lease: str
) -> None:
    home = device()
    _locked(home, boot, lease)
    begin = time.monotonic()
    deploy(bundles[1], Simulated(home), Options(wait=5))
    assert time.monotonic() - begin < 30
    assert active(home) == bundles[1].manifest.digest
    count("stale lock")


def test_an_owner_of_this_computer_whose_process_ended_is_gone(bundles: list[Bundle], device: Device) -> None:
    home = device()
    machine = locks._machine()
    (place(home) / "lock").symlink_to(f"abc boot-1 600 {machine} 999999999 5 us@here")
    deploy(bundles[1], Simulated(home))
    assert active(home) == bundles[1].manifest.digest
    count("stale lock")


@pytest.mark.parametrize("hours", [-10_000, 10_000])
def test_a_clock_that_jumps_changes_nothing(
    bundles: list[Bundle], device: Device, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = device()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)
    for path in [place(home), *place(home).rglob("*")]:
        import os

        os.utime(path, (now() + 3600 * hours,) * 2, follow_symlinks=False)
    _locked(home, lease="1")
    deploy(bundles[1], Simulated(home), Options(wait=5))
    assert active(home) == bundles[1].manifest.digest
    assert active(home, "previous") == bundles[0].manifest.digest
    count("clock jumps")


def test_somebody_at_work_is_waited_for_and_then_named(bundles: list[Bundle], device: Device) -> None:
    home = device()
    _locked(home, lease="2")
    stop = threading.Event()

    def work() -> None:  # what arrives there shows that somebody is at work
        number = 0
        while not stop.wait(0.1):
            number += 1
            (place(home) / "incoming" / f"file{number}").touch()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        with pytest.raises(DeviceError, match="eve@elsewhere, process 1 deploys to simulated right now"):
            deploy(bundles[1], Simulated(home), Options(wait=1))
    finally:
        stop.set()
        worker.join()
    assert active(home) == bundles[0].manifest.digest
    deploy(bundles[1], Simulated(home))
    count("somebody else deploys")


def test_who_lost_the_lock_stops(bundles: list[Bundle], device: Device) -> None:
    home = device()

    class Interrupted(Simulated):
        def run(self, argv, **named):
            if "verify" in argv:
                (place(home) / "lock").unlink()
                _locked(home)
            return super().run(argv, **named)

    with pytest.raises(DeviceError, match="another deployment took over"):
        deploy(bundles[1], Interrupted(home))
    assert active(home) == bundles[0].manifest.digest
    deploy(bundles[1], Simulated(home), Options(wait=5))
    count("lock lost")


def test_several_at_once_all_end_and_leave_a_whole_release(bundles: list[Bundle], device: Device) -> None:
    home = device()
    errors: list[EdgecsiError] = []

    def one(bundle: Bundle) -> None:
        try:
            deploy(bundle, Simulated(home), Options(downgrade=True, wait=120))
        except EdgecsiError as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(bundle,)) for bundle in bundles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    assert not errors
    assert active(home) in {bundle.manifest.digest for bundle in bundles}
    assert active(home, "previous")
    assert not list((place(home) / "incoming").iterdir())
    rollback(Simulated(home), "tiny-net")
    count("several deploy at once")


def test_a_folder_where_the_lock_goes_is_nobodys(bundles: list[Bundle], device: Device) -> None:
    home = device()
    (place(home) / "lock").mkdir()
    with pytest.raises(DeviceError, match="lock is none of ours"):
        deploy(bundles[1], Simulated(home))
    assert active(home) == bundles[0].manifest.digest
