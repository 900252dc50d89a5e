import json
import shutil
from pathlib import Path

import pytest

from edgecsi import demo
from edgecsi.channels import files
from edgecsi.channels.shipped import test_set as shipped_channels
from edgecsi.cli import main


def test_the_demo_goes_the_whole_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_EMULATED_SAMPLES", 8)
    monkeypatch.setattr(files, "load", lambda _data: shipped_channels(128))
    assert main(["demo", "-o", str(tmp_path / "demo")]) == 0
    output = capsys.readouterr().out
    assert "for rpi4" in output
    assert "NMSE" in output
    for name in ("csinet-cr4-host", "csinet-cr4-arm"):
        assert (tmp_path / "demo" / name / "manifest.json").is_file()
    engines = json.loads((tmp_path / "demo" / "bench-host.json").read_text())["engines"]
    assert engines[0]["name"] == "edgecsi"
    assert "Where the time goes" in (tmp_path / "demo" / "report.html").read_text()
    if shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin:/bin"):
        assert "the same again sent 0 bytes; every byte there is as it was deployed" in output
    if shutil.which("qemu-aarch64"):
        assert "instructions per inference" in output
