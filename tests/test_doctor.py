import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgecsi import doctor
from edgecsi.cli import main


def quick(monkeypatch: pytest.MonkeyPatch, **results: str) -> None:
    """Replace everything that starts programs; ``results`` says which of them fails and how."""
    monkeypatch.setattr(doctor, "_link", lambda folder, triple, options: results.get("link", ""))
    monkeypatch.setattr(doctor, "_run", lambda command, timeout: ("", results.get("run", "")))
    monkeypatch.setattr(
        doctor,
        "_try_python",
        lambda source: ("", results.get("tvm" if "import tvm" in source else "torch", "")),
    )


def test_the_pair_of_tvm_and_ffi_really_works_here() -> None:
    assert [finding.status for finding in doctor._tvm()] == ["ok"]


def test_the_linker_really_works_here() -> None:
    assert [(finding.part, finding.status) for finding in doctor._linker()] == [
        ("linker for x86_64", "ok"),
        ("linker for aarch64", "ok"),
    ]


@pytest.mark.needs("qemu-aarch64")
def test_the_emulator_really_works_here() -> None:
    (finding,) = doctor._emulator()
    assert finding.status == "ok"
    assert "cortex-a72" in finding.detail


def test_a_process_that_crashes_is_a_finding_and_not_our_end() -> None:
    source = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    assert doctor._run([sys.executable, "-c", source], timeout=30)[1] == "crashed with signal 11"


def test_a_process_that_hangs_is_ended() -> None:
    assert "did not end" in doctor._run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.3)[1]


def test_a_wrong_tvm_pair_is_fatal_and_the_fix_pins_both(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick(monkeypatch, tvm="crashed with signal 11")
    assert main(["doctor"]) == 4
    output = capsys.readouterr()
    assert "apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1" in output.out
    assert "tvm + tvm-ffi" in output.err
    assert "Traceback" not in output.err


def test_only_optional_parts_missing_is_fine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick(monkeypatch)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "missing (optional)" in output
    assert "sudo apt-get install qemu-user" in output


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(name: str) -> str:
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", nothing)
    findings = {finding.part: finding for finding in doctor._packages()}
    assert findings["ziglang"].fatal
    assert "pip install 'ziglang" in findings["ziglang"].fix


def test_without_an_installation_there_is_still_a_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> list[str]:
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "requires", nothing)
    assert [(finding.part, finding.fatal) for finding in doctor._packages()] == [("edgecsi", True)]


def test_a_package_of_the_wrong_version_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "0.1.15.post2")
    findings = {finding.part: finding for finding in doctor._packages()}
    assert findings["apache-tvm-ffi"].status == "broken"
    assert "==0.1.14.post1" in findings["apache-tvm-ffi"].detail


def test_a_cache_that_cannot_be_written_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("EDGECSI_CACHE", str(file / "cache"))
    (finding,) = doctor._cache()
    assert finding.fatal
    assert "EDGECSI_CACHE" in finding.fix


def test_the_linker_is_not_blamed_for_a_cache_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGECSI_CACHE", str(tmp_path / "file" / "cache"))
    for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("_packages", "_torch", "_tvm", "_extras"):
        monkeypatch.setattr(doctor, name, lambda: iter(()))
    faults = [finding for finding in doctor.examine() if finding.status == "broken"]
    assert {"cache", "linker"} <= {finding.part for finding in faults}
    assert all("EDGECSI_CACHE" in finding.fix for finding in faults)


@pytest.mark.needs("qemu-aarch64")
def test_the_emulator_is_not_blamed_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch, link="did not end within 300 s")
    (finding,) = doctor._emulator()
    assert (finding.status, finding.needed) == ("broken", False)
    assert "qemu" not in finding.fix
    quick(monkeypatch, run="crashed with signal 11")
    (finding,) = doctor._emulator()
    assert "reinstall qemu-user" in finding.fix


def test_a_folder_for_temporary_files_that_is_not_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", "/sys/edgecsi")
    (finding,) = doctor._temporary()
    assert finding.status == "ok"
    assert "/sys/edgecsi (TMPDIR) cannot be written" in finding.detail


@pytest.mark.needs("ssh")
def test_ssh_has_a_version() -> None:
    (finding,) = doctor._ssh()
    assert "OpenSSH" in finding.detail


def test_a_full_disk_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = doctor.shutil._ntuple_diskusage(10**9, 10**9, 1000)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert [finding.status for finding in doctor._cache()] == ["ok", "broken"]


@pytest.mark.parametrize(
    ("version", "wanted", "fine"),
    [
        ("2.13.0+cpu", ">=2.13,<2.14", True),
        ("2.14.0", ">=2.13,<2.14", False),
        ("0.1.14.post1", "==0.1.14.post1", True),
        ("0.1.15.post2", "==0.1.14.post1", False),
        ("8.10", ">=8.2", True),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, wanted: str, fine: bool) -> None:
    assert doctor.satisfies(version, wanted) is fine


def test_doctor_does_not_import_what_it_examines() -> None:
    source = "import sys, edgecsi.doctor; sys.exit(any(m in sys.modules for m in ('torch', 'tvm', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", source]).returncode == 0


def test_a_report_has_graph_and_error_and_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.secret = torch.nn.Linear(4, 3)\n"
        "        torch.nn.init.constant_(self.secret.weight, 0.123456789)\n"
        "    def forward(self, x):\n"
        "        y = self.secret(x)\n"
        "        return torch.linalg.svd(y[None])[1]\n"
        "def make():\n"
        "    return Net().eval(), torch.ones(1, 4)\n"
    )
    out = tmp_path / "report.zip"
    assert main(["doctor", "--report", f"{tmp_path / 'net.py'}:make", "-o", str(out)]) == 0
    with zipfile.ZipFile(out) as archive:
        held = {name: archive.read(name).decode() for name in archive.namelist()}
    assert {"error.txt", "machine.txt", "build.txt", "export-full.txt"} <= set(held)
    assert "svd" in held["error.txt"]
    assert "Traceback" in held["error.txt"]
    assert "torch 2." in held["machine.txt"]
    assert "return torch.linalg.svd(y[None])[1]" in held["export-full.txt"]
    assert not [name for name, text in held.items() if "0.1234" in text]
    good = tmp_path / "good.zip"
    assert (
        main(["doctor", "--report", f"{tmp_path / 'net.py'}:make", "-o", str(tmp_path / "no" / "x.zip")]) == 3
    )
    assert not good.exists()
