"""What does not answer rightly on the device is not activated there."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecsi.bundle import Bundle, golden_npz, read_golden, write_bundle
from edgecsi.deploy import Options, deploy
from edgecsi.errors import CheckFailed, DeviceError
from tests import _tiny
from tests._builds import build_for
from tests.deploy.conftest import active, place
from tests.deploy.faults import count
from tests.deploy.simulated import Plan, Simulated

Device = Callable[[], Path]


def _refused(home: Path, bundle: Bundle, bundles: list[Bundle], match: str, hangs: bool = False) -> None:
    """Nothing but what hangs is to meet a deadline, however busy this machine is."""
    begin = time.monotonic()
    with pytest.raises(CheckFailed, match=match):
        deploy(bundle, Simulated(home), Options(deadline=1) if hangs else Options())
    assert time.monotonic() - begin < 60
    assert active(home) == bundles[0].manifest.digest
    assert {path.name for path in (place(home) / "releases").iterdir()} == {bundles[0].manifest.digest}
    deploy(bundles[1], Simulated(home))
    assert active(home) == bundles[1].manifest.digest
    count("wrong, crashing or hanging on the device")


@pytest.mark.parametrize(
    ("flag", "match"),
    [
        ("-DHANG", "no answer after 1 s"),
        ("-DCRASH", "it crashed"),
        ("-DFAIL", "the library returned code"),
    ],
)
def test_a_library_that_hangs_crashes_or_fails(
    bundles: list[Bundle],
    device: Device,
    libraries: Callable[..., Path],
    tmp_path: Path,
    flag: str,
    match: str,
) -> None:
    about = dataclasses.replace(_tiny.manifest(), build_number=9)
    bad = _tiny.make_bundle(tmp_path / "bad", libraries(_tiny.HOST, flag), about)
    _refused(device(), bad, bundles, match, hangs=flag == "-DHANG")


@pytest.mark.parametrize("off", [1e-3, np.nan, np.inf])
def test_an_answer_that_differs(bundles: list[Bundle], device: Device, tmp_path: Path, off: float) -> None:
    about = dataclasses.replace(_tiny.manifest(), build_number=9)
    files = _tiny.files(bundles[1].library, about)
    with np.load(bundles[1].path / "golden.npz") as golden:
        values: dict[str, dict[str, np.ndarray]] = {}
        for key in golden.files:
            entry, _, tensor = key.partition(".")
            values.setdefault(entry, {})[tensor] = golden[key].copy()
    values["pair"]["product"][-1] += off
    files["golden.npz"] = golden_npz(about.entries, values)
    _refused(device(), write_bundle(tmp_path / "bad", about, files), bundles, "pair of tiny-net is wrong")


@pytest.mark.parametrize(
    ("tool", "says", "match"),
    [
        ("getconf", "glibc 2.17", "glibc"),
        ("uname", "Linux 6.1 armv7l", "armv7l"),
        ("uname", "Linux 6.1 riscv64", "riscv64"),
        ("uname", "Linux 6.1 aarch64", "aarch64|32"),
    ],
)
def test_what_cannot_run_there_is_refused_before_it_is_copied(
    bundles: list[Bundle], tmp_path: Path, tool: str, says: str, match: str
) -> None:
    device = Simulated(tmp_path / "device")
    shim = device.state / "tools" / tool
    shim.write_text(f"#!/bin/sh\necho '{says}'\n")
    shim.chmod(0o755)
    with pytest.raises(DeviceError, match=match):
        deploy(bundles[0], device)
    assert not place(tmp_path / "device").exists()
    count("a device that cannot run it")


def test_a_bundle_for_another_processor_or_cpu_is_refused_before_it_is_copied(
    libraries: Callable[..., Path], tmp_path: Path
) -> None:
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[_tiny.HOST]
    foreign = _tiny.make_bundle(tmp_path / "foreign", libraries(other), _tiny.manifest(other))
    featured = _tiny.make_bundle(tmp_path / "featured", libraries(), _tiny.manifest(features=("amx_fp99",)))
    for bundle, match in ((foreign, other), (featured, "amx_fp99")):
        with pytest.raises(DeviceError, match=match):
            deploy(bundle, Simulated(tmp_path / "device"))
        count("a device that cannot run it")
    assert not place(tmp_path / "device").exists()


def test_too_little_room_is_seen_before_the_copy(bundles: list[Bundle], device: Device) -> None:
    home = device()
    simulated = Simulated(home)
    shim = simulated.state / "tools" / "df"
    shim.write_text("#!/bin/sh\necho head\necho /dev/sda1 100 98 2 98% /\n")
    shim.chmod(0o755)
    with pytest.raises(DeviceError, match="too little room"):
        deploy(bundles[1], simulated)
    assert "receive" not in simulated.steps
    assert active(home) == bundles[0].manifest.digest
    shim.unlink()
    deploy(bundles[1], Simulated(home))
    count("too little room")


def test_a_folder_without_programs_is_named(bundles: list[Bundle], device: Device) -> None:
    home = device()
    simulated = Simulated(home, Plan(tool=("chmod", 1, "")))  # as if mounted with noexec: nothing can be run
    shim = simulated.state / "tools" / "chmod"
    shim.write_text('#!/bin/sh\n[ "$2" = incoming/try ] || exec /usr/bin/chmod "$@"\n')
    with pytest.raises(DeviceError, match="noexec"):
        deploy(bundles[1], simulated)
    shim.unlink()
    deploy(bundles[1], Simulated(home))
    count("noexec")


def test_an_older_build_needs_a_word(bundles: list[Bundle], device: Device) -> None:
    home = device()
    deploy(bundles[2], Simulated(home))
    from edgecsi.errors import BundleError

    with pytest.raises(BundleError, match="build number 2, the device 3"):
        deploy(bundles[1], Simulated(home))
    assert active(home) == bundles[2].manifest.digest
    deploy(bundles[1], Simulated(home), Options(downgrade=True))
    assert active(home) == bundles[1].manifest.digest


NETWORK = """
import torch
from torch import nn

class Scheduler(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.users, self.fc = nn.Embedding(9, 8), nn.Linear(8, 6)

    def forward(self, users, gain):
        y = self.fc(self.users(users)) * gain
        return {"y": y, "best": y.argmax(-1), "first": y[..., 0].topk(3, -1)[1]}

def make():
    return Scheduler().eval(), (torch.arange(7)[None], torch.tensor(0.5))
"""


def test_entries_with_integers_are_proved_too(tmp_path: Path) -> None:
    """Golden values are float32 and int32, side by side, on their way there and back."""
    (tmp_path / "net.py").write_text(NETWORK)
    built = build_for(f"{tmp_path}/net.py:make", "host", tmp_path / "net").bundle
    assert built is not None
    assert [t.dtype for t in built.entry("full").outputs] == ["float32", "int32", "int32"]
    deploy(built, Simulated(tmp_path / "device"))
    inputs, outputs = read_golden(built, "full")
    outputs[1][-1, 0, 3] += 1
    tensors = (*built.entry("full").inputs, *built.entry("full").outputs)
    values = {t.name: array for t, array in zip(tensors, (*inputs, *outputs), strict=True)}
    about = dataclasses.replace(built.manifest, build_number=2)
    files = {name: (built.path / name).read_bytes() for name in built.manifest.files}
    files["golden.npz"] = golden_npz(about.entries, {"full": values})
    with pytest.raises(CheckFailed, match="best is off by"):
        deploy(write_bundle(tmp_path / "bad", about, files), Simulated(tmp_path / "device"))
