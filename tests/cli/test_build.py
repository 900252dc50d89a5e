"""``build`` on a small network of the user's own, and on what cannot be built."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgecsi.cli import main

NETWORK = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = torch.nn.Linear(48, 16)
        self.decoder = torch.nn.Sequential(torch.nn.Linear(16, 48), torch.nn.Sigmoid())

    def forward(self, x):
        return self.decoder(self.encoder(x))

def make():
    return Net()

def strange():
    class Strange(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x.reshape(6, 8)) + torch.linalg.eigvalsh(torch.eye(6) + x[0, 0]).sum()
    return Strange(), torch.zeros(1, 48)
"""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "net.py"
    path.write_text(NETWORK)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, network: Path) -> Path:
    out = tmp_path_factory.mktemp("build") / "net"
    assert (
        main(["build", f"{network}:make", "--input-shape", "1,48", "--target", "host", "-o", str(out)]) == 0
    )
    return out


def test_a_built_bundle_runs_and_was_checked(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(bundle), "--json", "-"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["check"]["status"] == "passed"
    assert set(manifest["check"]["entries"]) == {"encoder", "decoder", "full"}
    np.save(tmp_path / "x.npy", np.zeros((3, 48), np.float32))
    assert main(["run", str(bundle), "-i", str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]) == 0
    assert np.load(tmp_path / "y.npy").shape == (3, 48)


def test_eval_takes_a_npy_of_whatever_the_network_takes(
    bundle: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((10, 48)))
    options = ["--data", str(tmp_path / "x.npy"), "--model", f"{network}:make", "--json", "-"]
    assert main(["eval", str(bundle), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["differences"]) == {"encoder", "decoder", "full"}
    assert found["nmse_db"] is not None  # it answers arrays of the shape it was given
    assert found["rho"] is None  # but they are no channels


def test_a_dry_run_explains_and_writes_nothing(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "net"
    options = ["--input-shape", "1,48", "--target", "rpi4", "--dry-run", "--explain", "-o", str(out)]
    assert main(["build", f"{network}:make", *options]) == 0
    output = capsys.readouterr().out
    assert "f32_dense" in output
    assert "nothing was written" in output
    assert list(tmp_path.iterdir()) == []


def test_dump_ir_writes_every_pass(network: Path, tmp_path: Path) -> None:
    options = ["--input-shape", "1,48", "--target", "host", "--dry-run", "--entry", "encoder"]
    assert main(["build", f"{network}:make", *options, "--dump-ir", str(tmp_path)]) == 0
    names = sorted(path.name for path in (tmp_path / "encoder").iterdir())
    assert len(names) >= 3
    assert names[0].startswith("00-")


def test_unsupported_operators_are_listed_together(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", f"{network}:strange", "--target", "host", "-o", str(tmp_path / "x")]) == 3
    error = capsys.readouterr().err
    assert "svd" in error
    assert "eigh" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["csinet-cr5", "--target", "host"], 3, "csinet-cr4"),
        (["csinet-cr16", "--target", "rpi9"], 3, "rpi4"),
        (["csinet-cr16"], 2, "--target"),
        (["csinet-cr16", "--target", "host", "--entry", "middle"], 2, "encoder"),
        (["csinet-cr16", "--target", "host", "--input-shape", "1,x"], 2, "1,2,32,32"),
        (["csinet-cr16", "--target", "host", "--weights", "missing.pth"], 3, "missing.pth"),
        (["csinet-cr16", "--target", "host", "--recipe", "int9"], 3, "int9"),
        (["missing.py:make", "--target", "host"], 3, "missing.py"),
        (["NET:nothing", "--target", "host"], 3, "make"),
        (["NET:make", "--target", "host"], 3, "--input-shape"),
        (["NET:make", "--target", "host", "--input-shape", "0,48"], 3, "0"),
        (["NET:make", "--target", "host", "--input-shape", "1,2147483648"], 3, "2147483648"),
        (["NET:make", "--target", "host", "--input-shape", "1,47"], 3, "47"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(
    network: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    named: str,
) -> None:
    arguments = [text.replace("NET", str(network)) for text in arguments]
    assert main(["build", *arguments, "-o", str(tmp_path / "out")]) == code
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_never_replaced(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    options = ["--input-shape", "1,48", "--target", "host", "-o", str(tmp_path)]
    assert main(["build", f"{network}:make", *options]) == 3
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_bundle_is_replaced_by_its_next_build(bundle: Path, network: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    before = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    options = ["--input-shape", "1,48", "--target", "host", "-o", str(copy)]
    assert main(["build", f"{network}:make", *options]) == 0
    after = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    assert before == after  # same inputs, same bytes


def test_a_detector_is_evaluated_by_its_bit_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "fullycon")
    assert main(["build", "fullycon", "--random-weights", "--target", "host", "-o", out]) == 0
    capsys.readouterr()
    assert main(["eval", out, "--data", "mimo:500:seed=1", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nmse_db"] is None
    rates = found["bit_error_rates"]
    assert rates["snr_db"] == [8, 9, 10, 11, 12, 13]
    assert rates["zero_forcing"][-1] < rates["zero_forcing"][0] < rates["matched_filter"][0]
    assert main(["eval", out, "--data", "mimo:0"]) == 3


CHANNELS = """
import numpy as np
import torch
from edgecsi.channels.shipped import test_set

class Codec(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2048, 16))
        self.decoder = torch.nn.Sequential(torch.nn.Linear(16, 2048), torch.nn.Unflatten(1, (2, 32, 32)))

    def forward(self, x):
        return self.decoder(self.encoder(x))

def make():
    x = torch.from_numpy(test_set(64)).flatten(1)
    mean = x.mean(0)
    axes = torch.linalg.svd(x - mean, full_matrices=False)[2][:16]
    net = Codec()
    with torch.no_grad():
        net.encoder[1].weight.copy_(axes)
        net.encoder[1].bias.copy_(-axes @ mean)
        net.decoder[0].weight.copy_(axes.T)
        net.decoder[0].bias.copy_(mean)
    return net.eval(), torch.zeros(1, 2, 32, 32)

def untrained():
    torch.manual_seed(0)
    return Codec().eval(), torch.zeros(1, 2, 32, 32)
"""
FOUR = ("fp32 network", "compressed network in PyTorch", "library", "loss")


@pytest.mark.filterwarnings("default")
def test_accuracy_has_the_same_figures_wherever_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "codec.py").write_text(CHANNELS)
    build = ["build", "codec.py:make", "--target", "host", "--entry", "full", "-o", "b"]
    assert main([*build, "--recipe", "int8-weights"]) == 0
    shown = {"build": capsys.readouterr()}
    assert "untrained" not in shown["build"].err
    for verb, *options in (
        ("inspect",),
        ("eval", "--data", "test", "--samples", "64", "--model", "codec.py:make"),
        ("bench", "--quick", "--seconds", "0.02", "--json", "bench.json"),
    ):
        assert main([verb, "b", *options]) == 0
        shown[verb] = capsys.readouterr()
    assert main(["report", "bench.json", "--markdown", "-"]) == 0
    shown["report"] = capsys.readouterr()
    for verb, said in shown.items():
        lines = [line.strip(" |").replace(" | ", "  ") for line in said.out.splitlines()]
        for name in FOUR:
            (line,) = [text for text in lines if re.match(rf"{name}:?\s+(NMSE )?-?\d", text)]
            assert " dB" in line, (verb, line)


def test_calibration_without_a_recipe_is_refused_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "csinet-cr16", "--target", "host", "--calib", "no.npy", "--dry-run"]) == 2
    assert "--recipe" in capsys.readouterr().err


def test_an_untrained_network_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "codec.py").write_text(CHANNELS)
    build = ["build", f"{tmp_path}/codec.py:untrained", "--target", "host", "--dry-run"]
    assert main(build) == 0
    assert "codec.py:untrained looks untrained: NMSE" in capsys.readouterr().err
    assert main([*build, "--quiet"]) == 0
    assert "untrained" not in capsys.readouterr().err
