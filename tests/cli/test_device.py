"""``edgecsi device``: names, probing, setting up and cleaning, against a real sshd."""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgecsi import cpu
from edgecsi import target as targets
from edgecsi.bench.environment import machine
from edgecsi.cli import main
from edgecsi.device import names
from edgecsi.device.board import Board
from edgecsi.device.local import cpu_name
from edgecsi.device.probe import describe, throttled
from edgecsi.device.state import THROTTLED
from tests._sshd import Sshd
from tests._sshd import sshd as sshd


@pytest.fixture(autouse=True)
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither the user's nor a project's devices.toml is seen or left."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_names_are_added_listed_used_and_removed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "add", "pi4", "ssh://pi@raspberrypi"]) == 0
    assert main(["device", "add", "farm", "tracker://10.0.0.1:9190/rpi4"]) == 0
    assert names.resolve("pi4") == "ssh://pi@raspberrypi"
    capsys.readouterr()
    assert main(["device", "list", "--json", "-"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [named["name"] for named in listed] == ["farm", "pi4"]
    assert main(["device", "remove", "pi4"]) == 0
    assert main(["device", "remove", "pi4"]) == 2
    assert "no devices.toml names it" in capsys.readouterr().err


def test_a_projects_names_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert main(["device", "add", "pi4", "ssh://mine"]) == 0
    assert main(["device", "add", "pi4", "ssh://the-projects", "--project"]) == 0
    deep = tmp_path / "work" / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert names.resolve("pi4") == "ssh://the-projects"


@pytest.mark.parametrize("name", ["", "local", "a b", "-x", "a/b", "emulate", "ssh://x"])
def test_impossible_names_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "add", "--", name, "ssh://pi"]) == 2
    assert not names.user_file().exists()


@pytest.mark.parametrize(
    "spec", ["pi", "ssh://-oProxyCommand=id", "rpc://pi", "tracker://pi:1", "http://pi", "ssh://"]
)
def test_impossible_addresses_are_refused(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "add", "pi", spec]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 3


@pytest.mark.parametrize(
    "text",
    [
        "[devices]\npi = 3\n",
        '[devices]\n"a b" = "ssh://x"\n',
        "[boards]\n",
        "not toml",
        '[devices]\npi = "ssh://a\\nb"\n',
    ],
)
def test_a_broken_file_of_names_is_an_error(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work" / "devices.toml").write_text(text)
    assert main(["device", "list"]) == 3
    assert "devices.toml" in capsys.readouterr().err


def test_a_strangers_file_of_names_cannot_run_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work" / "devices.toml").write_text('[devices]\npi = "ssh://-oProxyCommand=touch pwned"\n')
    assert main(["device", "probe", "pi"]) == 2
    assert not (tmp_path / "work" / "pwned").exists()


def test_an_unknown_device_lists_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    main(["device", "add", "pi4", "ssh://pi@raspberrypi"])
    assert main(["device", "probe", "pi5"]) == 2
    assert "pi4" in capsys.readouterr().err


@pytest.mark.needs("ssh", "sshd")
def test_from_a_bare_device_to_a_clean_one(sshd: Sshd, capsys: pytest.CaptureFixture[str]) -> None:
    main(["device", "add", "board", sshd.spec])
    capsys.readouterr()
    assert main(["device", "probe", "board", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bits"] == 64
    assert found["glibc"].startswith("2.")
    assert found["cores"] >= 1
    assert found["folder"] == str(sshd.home / ".edgecsi")
    assert found["target"]
    assert found["troubles"] == []
    assert found["board"] == cpu_name() == machine().cpu  # what results are compared by

    assert main(["device", "setup", "board", "--json", "-"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["bytes"] < 1_000_000
    assert main(["device", "status", "board", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"]["files"] > 0

    (sshd.home / ".edgecsi" / "mine").write_text("a file of the user's")
    assert main(["device", "clean", "board"]) == 0
    assert [path.name for path in (sshd.home / ".edgecsi").iterdir()] == ["mine"]
    (sshd.home / ".edgecsi" / "mine").unlink()
    assert main(["device", "clean", "board"]) == 0
    assert not (sshd.home / ".edgecsi").exists()


@pytest.mark.needs("ssh", "sshd")
def test_a_target_file_of_the_board_is_a_target(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgecsi.device import Remote

    measured = {"read_gbps": {"32768": 400.0, "1048576": 100.0, "33554432": 20.0}, "fp32_gflops": 200.0,
                "int8_gops": 800.0, "int8_instruction": "avx2", "vector_bytes": 32}  # fmt: skip
    monkeypatch.setattr(Remote, "run_program", lambda *_, **__: json.dumps(measured))
    assert main(["device", "probe", sshd.spec, "--write-target", str(tmp_path / "my-board.toml")]) == 0
    target = targets.load(str(tmp_path / "my-board.toml"))
    assert target.id == "my-board"
    assert target.peak_gmacs_f32 == pytest.approx(100)
    assert not target.missing_on_this_cpu()


@pytest.mark.needs("ssh", "sshd")
def test_a_target_file_has_the_limits_that_were_measured_over_ssh(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the very program, which tries everything twice here instead of sixty times."""
    source = (resources.files("edgecsi.bench") / "native" / "limits.c").read_text("utf-8")
    assert source.count("#define TRIALS 60") == 1
    sources = tmp_path / "sources"
    (sources / "native").mkdir(parents=True)
    (sources / "native" / "limits.c").write_text(source.replace("#define TRIALS 60", "#define TRIALS 2"))
    monkeypatch.setattr("edgecsi.bench.native_code.resources", SimpleNamespace(files=lambda _: sources))
    written = tmp_path / "my-board.toml"
    assert main(["device", "probe", sshd.spec, "--write-target", str(written)]) == 0
    assert str(written) in capsys.readouterr().out
    target, base = targets.load(str(written)), tomllib.loads(written.read_text())["extends"]
    assert (target.arch, target.features) == (cpu.machine(), targets.load(base).features)
    assert target.l1_gbps > target.l3_gbps > 0.1
    assert target.peak_gmacs_f32 > 0.1
    assert not list((sshd.home / ".edgecsi").rglob("*limits*"))  # nothing stays


@pytest.mark.needs("ssh", "sshd")
def test_limits_are_measured_on_the_device(sshd: Sshd) -> None:
    from contextlib import closing

    from edgecsi.device import open_device

    with closing(open_device(sshd.spec)) as device:
        program = sshd.folder / "program"
        program.write_text("#!/bin/sh\necho measured; exit 0\n")
        assert device.run_program(program) == "measured\n"


@pytest.mark.needs("ssh", "sshd")
def test_a_folder_of_its_own(sshd: Sshd, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "setup", f"{sshd.spec}{tmp_path}/other place"]) == 0
    assert (tmp_path / "other place" / "files").is_dir()
    assert main(["device", "setup", f"{sshd.spec}/proc/none"]) == 5
    assert "cannot be written" in capsys.readouterr().err


PI = {
    "uname": "Linux 6.1.21-v8+ aarch64",
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4",
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n"
    "CPU part\t: 0xd08\n",
    "proc/meminfo": "MemTotal:        3884360 kB\n",
    "cores": "4",
    "libc": "glibc 2.36",
    "shell": " 7f 45 4c 46 02",
    "folder": "/home/pi/.edgecsi",
    "free": "/dev/root 30000000 1000000 29000000 4% /",
    "try": "written\nruns\n",
    THROTTLED: "throttled=0x50005\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1800000\n",
    "sys/class/thermal/thermal_zone0/temp": "48312\n",
}


def pi(**changes):
    state = {**PI, **changes}
    return Board("pi4", state["folder"], state, state)


def test_a_pi_is_described() -> None:
    found = describe(pi())
    assert found.board == "Raspberry Pi 4 Model B Rev 1.4"
    assert (found.arch, found.bits, found.cpu, found.target) == ("aarch64", 64, "cortex-a72", "rpi4")
    assert (found.mhz, found.max_mhz, found.celsius) == (600, 1800, pytest.approx(48.312))
    assert found.throttled == (
        "under-voltage now", "throttled now", "under-voltage since boot", "throttled since boot"
    )  # fmt: skip
    assert found.troubles == ()
    assert throttled({}) is None


@pytest.mark.parametrize(
    ("changes", "what", "cure"),
    [
        (
            {"shell": " 7f 45 4c 46 01"},
            "its kernel has 64 bits, but its programs have 32",
            "64-bit Raspberry Pi OS",
        ),
        ({"uname": "Linux 6.1 armv7l"}, "armv7l", "aarch64"),
        ({"libc": "", "ldd": "musl libc (aarch64)"}, "no glibc", "Debian"),
        ({"libc": "glibc 2.27"}, "2.27", "2.28"),
        ({"try": "written\n"}, "noexec", "ssh://HOST/FOLDER"),
        ({"try": ""}, "cannot be written", "ssh://HOST/FOLDER"),
    ],
)
def test_traps_are_named_with_their_cure(changes: Any, what: str, cure: str) -> None:
    (first, *_) = describe(pi(**changes)).troubles
    assert what in first.what
    assert cure in first.cure


def test_ldd_is_asked_where_getconf_is_missing() -> None:
    assert pi(libc="", ldd="ldd (Debian GLIBC 2.31-13) 2.31").glibc == "2.31"
    assert pi(libc="", ldd="ldd (Ubuntu GLIBC 2.39-0ubuntu8) 2.39").glibc == "2.39"


def test_the_c_library_is_asked_where_there_is_no_ldd() -> None:
    text = "GNU C Library (Buildroot) stable release version 2.38.\nCopyright"
    assert pi(libc="", ldd="", loader=text).glibc == "2.38"
    assert pi(libc="", ldd="", loader="").glibc == ""


def test_too_little_space_is_refused() -> None:
    from edgecsi.errors import DeviceError

    full = pi(free="/dev/root 30 20 10 4% /")
    with pytest.raises(DeviceError, match="too little space"):
        full.check(None, 20_000)
