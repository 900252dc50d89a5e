import json
from pathlib import Path

import pytest

from edgecsi.cli import main


def test_compress_writes_a_model_that_build_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.safetensors"
    options = ["--recipe", "int8-weights", "--data", "cdl-c:20:seed=1", "--json", "-"]
    assert main(["compress", "csinet-cr16", "-o", str(out), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes_after"] < 0.5 * found["bytes_before"]
    assert found["metric"] == "nmse_db"
    assert main(["build", str(out), "--target", "host", "--dry-run", "--json", "-"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert {layer["bits"] for layer in manifest["entries"]["full"]["layers"] if layer["op"] == "dense"} == {8}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["csinet-cr16", "--recipe", "no-such-recipe", "--data", "cdl-c:20"], 3),
        (["csinet-cr5", "--recipe", "int8-weights", "--data", "cdl-c:20"], 3),
        (["csinet-cr16", "--recipe", "int8-weights", "--data", "missing.npz"], 3),
        (["csinet-cr16", "--recipe", "int8-weights"], 2),
    ],
)
def test_compress_refuses_what_makes_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    assert main(["compress", *arguments, "-o", str(tmp_path / "x.safetensors")]) == code
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
