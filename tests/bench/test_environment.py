"""When a result is valid, suspect or invalid."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgecsi.bench.environment import judge, machine, other_load, snapshot
from edgecsi.bench.result import Snapshot
from edgecsi.device.state import read

QUIET = Snapshot(
    date="2026-01-01T00:00:00+00:00",
    clock=100.0,
    load_average=(0.0, 0.0, 0.0),
    governor="performance",
    frequency=(1800.0, 1800.0),
    temperature=50.0,
    throttled=0,
    busy=1000.0,
    stolen=0.0,
    own=5.0,
)
# Ten seconds later we have used all of them ourselves.
LATER = dataclasses.replace(QUIET, clock=110.0, busy=1010.0, own=15.0)


def test_a_quiet_machine_is_valid() -> None:
    assert judge(QUIET, LATER).state == "valid"
    assert judge(QUIET, LATER).reasons == ()


def test_load_of_other_processes_is_suspect() -> None:
    loaded = dataclasses.replace(LATER, busy=1015.0)
    assert other_load(QUIET, loaded) == pytest.approx(0.5)
    found = judge(QUIET, loaded)
    assert found.state == "suspect"
    assert "0.50 of a core" in found.reasons[0]


def test_a_hypervisor_that_takes_time_away_is_suspect() -> None:
    found = judge(QUIET, dataclasses.replace(LATER, stolen=1.0))
    assert found.state == "suspect"
    assert "hypervisor" in found.reasons[0]


def test_a_frequency_change_is_suspect() -> None:
    found = judge(QUIET, dataclasses.replace(LATER, frequency=(600.0, 1500.0)))
    assert found.state == "suspect"
    assert "1800 to 1500 MHz" in found.reasons[0]
    assert judge(QUIET, dataclasses.replace(LATER, frequency=(600.0, 1790.0))).state == "valid"


@pytest.mark.parametrize(
    ("before", "after", "state"),
    [
        (0x0, 0x4, "invalid"),  # throttled when we ended
        (0x1, 0x0, "invalid"),  # under-voltage when we began
        (0x0, 0x40000, "invalid"),  # throttled in between: the bit since boot is new
        (0x40000, 0x40000, "suspect"),  # throttled some time before us
        (0x0, 0x0, "valid"),
    ],
)
def test_throttling_on_a_pi(before: int, after: int, state: str) -> None:
    found = judge(dataclasses.replace(QUIET, throttled=before), dataclasses.replace(LATER, throttled=after))
    assert found.state == state


def test_emulated_times_are_never_valid() -> None:
    found = judge(QUIET, LATER, emulated=True, notes=["did not settle"])
    assert found.state == "invalid"
    assert found.reasons[0].startswith("emulated")
    assert "did not settle" in found.reasons


BOARD = dataclasses.replace(machine(), cpu="Raspberry Pi 4 Model B Rev 1.4")


@pytest.mark.parametrize(
    ("missing", "named"), [("busy", "/proc/stat"), ("frequency", "frequency"), ("throttled", "vcgencmd")]
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_cannot_be_read_makes_it_suspect(missing: str, named: str, when: str) -> None:
    first, last = QUIET, LATER
    if when == "before":
        first = dataclasses.replace(QUIET, **{missing: None})
    else:
        last = dataclasses.replace(LATER, **{missing: None})
    found = judge(first, last, where=BOARD)
    assert found.state == "suspect"
    assert named in found.reasons[0]
    assert judge(QUIET, LATER, where=BOARD).state == "valid"


def test_a_server_has_no_vcgencmd() -> None:
    blind = {"throttled": None, "temperature": None, "governor": None}
    first, last = (dataclasses.replace(snapshot, **blind) for snapshot in (QUIET, LATER))
    assert judge(first, last, where=dataclasses.replace(BOARD, cpu="Intel(R) Xeon(R)")).state == "valid"


def test_a_board_is_read_from_proc_and_sys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "vcgencmd").write_text("#!/bin/sh\necho throttled=0x50005\n")
    (tools / "vcgencmd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    for name, text in {
        "proc/cpuinfo": "processor\t: 0\nFeatures\t: asimd\n",
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        "proc/loadavg": "0.50 0.25 0.10 1/100 4242\n",
        "proc/stat": "cpu  100 20 30 9000 5 2 3 7 0 0\ncpu0 1 2\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1800000\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "600000\n",
        "sys/class/thermal/thermal_zone0/temp": "48312\n",
        "sys/devices/system/cpu/cpu0/cache/index0/level": "1\n",
        "sys/devices/system/cpu/cpu0/cache/index0/type": "Data\n",
        "sys/devices/system/cpu/cpu0/cache/index0/size": "32K\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    state = read(tmp_path)
    found = snapshot(state)
    assert found.governor == "ondemand"
    assert found.frequency == (1800.0, 600.0)
    assert found.temperature == pytest.approx(48.312)
    assert found.load_average == (0.5, 0.25, 0.1)
    assert found.throttled == 0x50005
    assert found.busy is not None
    assert found.stolen is not None
    assert found.busy / found.stolen == pytest.approx(155 / 7)
    described = machine(state)
    assert described.cpu == "Raspberry Pi 4 Model B Rev 1.4"
    assert described.caches == {"L1d": "32K"}


def test_this_machine_can_be_described() -> None:
    described = machine()
    assert described.cpu
    assert described.versions["numpy"]
    before = snapshot()
    assert judge(before, snapshot()).state in ("valid", "suspect", "invalid")
