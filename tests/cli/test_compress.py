import json
from pathlib import Path

import numpy as np
import pytest

from edgecsi.channels.shipped import test_set as shipped_channels
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


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_channels_of_the_papers_are_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    path, out = tmp_path / "DATA_Htrainin.mat", tmp_path / "small.safetensors"
    samples = shipped_channels(40).reshape(40, 2048)
    if version == "5":
        from scipy.io import savemat

        savemat(path, {"HT": samples})
    else:
        import h5py

        with h5py.File(path, "w") as file:
            file["HT"] = samples.T  # MATLAB stores columns first
    options = ["--recipe", "int8-dynamic", "--data", str(path), "--json", "-"]
    assert main(["compress", "csinet-cr16", "-o", str(out), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["before"] < -8  # the last four samples, read in the right order
    assert found["after"] < -6


def test_sensitivity_prices_every_layer_and_writes_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["compress", "csinet-cr16", "--recipe", "int8-dynamic", "--data", "cdl-c:40:seed=1"]
    assert main([*options, "--sensitivity", "--json", str(tmp_path / "costs.json")]) == 0
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "costs.json").read_text())
    assert {(cost["step"], cost["layer"]) for cost in found["layers"]} == {
        ("quantize", "encoder.fc"),
        ("quantize", "decoder.fc"),
    }
    for cost in found["layers"]:
        assert cost["layer"] in text
        assert cost["cost"] == pytest.approx(cost["score"] - found["before"])
    assert f"keep-fp32 = [{', '.join(json.dumps(name) for name in found['keep_fp32'])}]" in text
    assert main([*options, "--sensitivity", "-o", str(tmp_path / "x.safetensors")]) == 2
    assert main(options) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["costs.json"]


def test_a_network_of_ones_own_is_told_how_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\ndef make():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(12, 4)), torch.zeros(1, 12)\n"
    )
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((40, 12)))
    model, out = f"{tmp_path}/net.py:make", tmp_path / "small.safetensors"
    options = ["--recipe", "int8-weights", "--data", str(tmp_path / "x.npy"), "-o", str(out)]
    assert main(["compress", model, *options]) == 0
    printed = capsys.readouterr().out
    assert f"next: edgecsi build {model} --weights {out} --target rpi4" in printed
    assert main(["models", "show", str(out)]) == 0
    shown = capsys.readouterr().out
    assert model in shown
    assert "quantize, then difference_db" in shown
    assert main(["build", str(out), "--target", "host", "--dry-run"]) == 3
    assert f"give {model} --weights {out}" in capsys.readouterr().err
    assert main(["build", model, "--weights", str(out), "--target", "host", "--dry-run"]) == 0
