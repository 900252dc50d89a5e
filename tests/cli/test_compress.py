import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from edgecsi.channels.metrics import nmse_db
from edgecsi.channels.shipped import test_set as shipped_channels
from edgecsi.cli import main
from edgecsi.errors import Notice


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
        (["csinet-cr16", "--recipe", "int8-static"], 3),
        (["csinet-cr16", "--recipe", "prune90"], 3),
    ],
)
def test_compress_refuses_what_makes_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    assert main(["compress", *arguments, "-o", str(tmp_path / "x.safetensors")]) == code
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_the_old_file_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], small_files: None
) -> None:
    out = tmp_path / "small.safetensors"
    out.write_text("old")
    assert (
        main(["compress", "csinet-cr16", "-o", str(out), "--recipe", "int8-weights", "--data", "test"]) == 4
    )
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "small.safetensors" in error
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


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
    assert main(["compress", "csinet-cr16", "--recipe", "int8-dynamic", "--sensitivity"]) == 2
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


@pytest.mark.parametrize("recipe", ["int8-dynamic", "int16", "f16"])
def test_recipes_that_need_no_data_do_as_a_build_does(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from edgecsi.compress.post_training import compressed
    from edgecsi.models.load import load_model

    def codes(module: torch.nn.Module) -> dict[str, bytes]:
        tensors = {n: t for n, t in module.state_dict().items() if t.dtype == torch.float16}
        return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}

    out = tmp_path / "small.safetensors"
    assert main(["compress", "csinet-cr16", "--recipe", recipe, "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert "without --data nothing is fitted" in said.err
    assert "on what stands in for data" in said.out
    x = torch.from_numpy(shipped_channels(4))
    with torch.no_grad():
        made = load_model(str(out)).module
        y = made(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)  # what stays in fp32
            built = compressed(load_model("csinet-cr16"), recipe, None).module
        expected = built(x)
    if recipe != "f16":
        assert float((y - expected).abs().max()) < 1e-6
        return
    # The means that are taken out are those of other samples, so rounding differs; the weights and the loss do not.
    assert codes(made) == codes(built) != {}
    found, wanted = (nmse_db(x.numpy(), answer.numpy()) for answer in (y, expected))
    assert found == pytest.approx(wanted, abs=0.01)


def test_what_stands_in_for_the_data_of_ones_own_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nclass Table(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.e = torch.nn.Embedding(9, 64)\n"
        "        self.f = torch.nn.Linear(64, 64)\n"
        "    def forward(self, n):\n        return self.f(self.e(n))\n"
        "def table():\n    return Table(), torch.zeros(1, 3, dtype=torch.int64)\n"
        "def dense():\n    return torch.nn.Sequential(torch.nn.Linear(12, 4)), torch.zeros(1, 12)\n"
    )
    options = ["--recipe", "int8-weights", "-o", str(tmp_path / "small.safetensors")]
    assert main(["compress", f"{tmp_path}/net.py:dense", *options]) == 0
    assert "difference_db" in capsys.readouterr().out
    assert main(["compress", f"{tmp_path}/net.py:table", *options]) == 3
    assert "nobody knows which" in capsys.readouterr().err
