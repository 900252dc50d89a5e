"""``eval`` and ``bench`` on a hand-made library that moves every entry a tenth of the way to 0.5."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgecsi.bench.competitors import fp32_model
from edgecsi.bundle import Check, Entry, ModelOrigin, Tensor, golden_npz, read_bundle, write_bundle
from edgecsi.cli import main
from edgecsi.device import Local
from edgecsi.errors import CheckFailed
from edgecsi.evaluate import evaluate as evaluate_bundle
from edgecsi.evaluate import evaluate_data, judge
from edgecsi.models.load import load_model
from tests import _tiny

SHAPE = (1, 2, 32, 32)
SOURCE = r"""
#define API __attribute__((visibility("default")))
API const char *tiny_net_strerror(int code) { return code ? "null pointer" : "ok"; }
API const char *tiny_net_manifest(void) { return MANIFEST; }
API int tiny_net_full(const float *x, float *y) {
    if (!x || !y) return -1;
    for (int i = 0; i < 2048; i++) y[i] = SCALE * x[i] + 0.05f;
    return 0;
}
API int tiny_net_full_ws(const float *x, float *y, void *ws) { return ws ? tiny_net_full(x, y) : -1; }
API int tiny_net_full_profile(const float *x, float *y, void *ws, double *ns) {
    ns[0] = 1000; return tiny_net_full_ws(x, y, ws);
}
"""
NETWORK = """
import torch

class Shrink(torch.nn.Module):
    def forward(self, x):
        return 0.9 * x + 0.05

def make():
    return Shrink(), torch.full((1, 2, 32, 32), 0.5)
"""
CODEC = """
import torch
from torch import nn

class Codec(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(2048, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 2048), nn.Unflatten(1, (2, 32, 32)))

    def forward(self, x):
        return self.decoder(self.encoder(x))

def make():
    torch.manual_seed(0)
    return Codec(), torch.full((1, 2, 32, 32), 0.5)
"""

SIGNS = """
import numpy as np
import torch
from pathlib import Path

WEIGHT = Path(__file__).with_name("weight.npy")

class Signs(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x):
        return torch.sign(x @ self.weight.T)

def make():
    if not WEIGHT.exists():
        np.save(WEIGHT, np.random.default_rng(1).normal(size=(32, 96)).astype(np.float32))
    return Signs(torch.from_numpy(np.load(WEIGHT))), torch.ones(1, 96)
"""


def make_bundle(folder: Path, spec: str, scale: float = 0.9) -> Path:
    entry = Entry(
        (Tensor("csi", SHAPE),),
        (Tensor("reconstruction", SHAPE),),
        0,
        2048,
        0,
        (_tiny._layer("shrink", 2048),),
    )
    about = dataclasses.replace(
        _tiny.manifest(), entries={"full": entry}, model=ModelOrigin(spec, "own", None, None)
    )
    library = _tiny.compile_library(folder / "l.so", about, f"-DSCALE={scale}", source=SOURCE)
    x = np.random.default_rng(0).random((2, *SHAPE), np.float32)
    golden = {"full": {"csi": x, "reconstruction": np.float32(0.9) * x + np.float32(0.05)}}
    contents = {about.library: library, about.header: b"", "golden.npz": golden_npz(about.entries, golden)}
    return write_bundle(folder / "bundle", about, contents).path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("network") / "net.py"
    path.write_text(NETWORK)
    return f"{path}:make"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, network: str) -> Path:
    return make_bundle(tmp_path_factory.mktemp("shrink"), network)


def test_eval_gives_nmse_rho_and_the_difference_to_pytorch(
    bundle: Path, network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", str(bundle), "--data", "test", "--samples", "20", "--model", network]
    assert main([*arguments, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 20
    assert found["nmse_db"] == pytest.approx(-20, abs=1e-3)  # a tenth of the amplitude is missing
    assert found["nmse_db_pytorch"] == pytest.approx(-20, abs=1e-3)
    assert found["rho"] == pytest.approx(1, abs=1e-6)
    assert found["differences"]["full"]["max_rel_diff"] < 1e-6


def test_eval_does_not_run_code_that_a_bundle_names(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(bundle), "--data", "test", "--samples", "5"]) == 0
    output = capsys.readouterr().out
    assert "-20.00 dB" in output
    assert "not compared with PyTorch" in output
    assert "--model" in output


def test_answers_that_overflow_are_said_without_warnings(
    tmp_path: Path, network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = make_bundle(tmp_path, network, scale=1e39)
    main(["eval", str(wild), "--data", "test", "--samples", "5", "--json", "-"])
    assert "Warning" not in capsys.readouterr().err


def test_eval_of_a_wrong_library_is_exit_code_6(
    tmp_path: Path, network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = make_bundle(tmp_path, network, scale=0.8)
    assert main(["eval", str(wrong), "--data", "test", "--samples", "5", "--model", network]) == 6
    assert "answers wrongly" in capsys.readouterr().err


def test_values_on_an_edge_are_left_to_rounding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sign of a sum that is nearly nothing is another for another order of additions; nothing else may be."""
    (tmp_path / "signs.py").write_text(SIGNS)
    network, out, data = f"{tmp_path}/signs.py:make", str(tmp_path / "out"), tmp_path / "x.npy"
    assert main(["build", network, "--target", "host", "-o", out]) == 0
    capsys.readouterr()
    rng = np.random.default_rng(0)
    weight = np.load(tmp_path / "weight.npy").astype(np.float64)
    x = rng.normal(size=(100, 96))
    x -= np.outer(x @ weight[0], weight[0]) / (weight[0] @ weight[0])
    np.save(data, x.astype(np.float32))
    evaluate = ["eval", out, "--data", str(data), "--model", network]
    assert main(evaluate) == 0
    assert "rounding alone decides" in capsys.readouterr().out
    bundle, check = read_bundle(Path(out)), Check("not run", "the build has not come to it")
    unchecked = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, check=check))
    found = evaluate_bundle(unchecked, np.load(data), "x", device=Local(), reference=load_model(network))
    assert (
        found.differences["full"].max_rel_diff == 2
    )  # a build sees all, and keeps the library's answers to ties

    class Wrong(Local):
        def run(self, bundle: Any, entry: str, x: Any) -> Any:
            y = np.array(super().run(bundle, entry, x))
            y[0, 1] *= -1  # which nothing leaves to rounding
            return y

    with pytest.raises(CheckFailed, match="answers wrongly"):
        judge(bundle, evaluate_data(bundle, str(data), Wrong(), model=network)[0])
    np.save(tmp_path / "weight.npy", weight.astype(np.float32)[::-1])  # the library is now another network's
    assert main(evaluate) == 3
    assert "was built from other weights" in capsys.readouterr().err


def test_a_compressed_decoder_of_ones_own_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Channels go in, PyTorch makes the codewords; other engines get the network before it was compressed."""
    (tmp_path / "codec.py").write_text(CODEC)
    network, small, out = (
        f"{tmp_path}/codec.py:make",
        str(tmp_path / "small.safetensors"),
        str(tmp_path / "out"),
    )
    compress = [
        "compress",
        network,
        "--recipe",
        "int8-weights",
        "--data",
        "umi:100",
        "--accept-loss",
        "-o",
        small,
    ]
    assert main(compress) == 0
    build = ["build", network, "--weights", small, "--target", "host", "--entry", "decoder", "-o", out]
    assert main(build) == 0
    capsys.readouterr()
    assert main(["eval", out, "--data", "test", "--samples", "9"]) == 3
    assert "--model" in capsys.readouterr().err
    reference = ["--model", network, "--weights", small]
    assert main(["eval", out, "--data", "test", "--samples", "9", *reference, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"]["decoder"]["max_rel_diff"] < 1e-4
    plain = fp32_model(read_bundle(Path(out)).manifest, network, small)
    assert type(plain.decoder[0]) is torch.nn.Linear


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--data", "missing.npz"], 3),
        (["--data", "cdl-c:0"], 3),
        (["--data", "test", "--device", "toaster"], 2),
        (["--data", "test", "--model", "csinet-cr5"], 3),
        (["--data", "test", "--samples", "0"], 2),
        ([], 2),
    ],
)
def test_eval_refuses_what_makes_no_sense(
    bundle: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int
) -> None:
    assert main(["eval", str(bundle), *options]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_bench_reports_and_writes_its_samples(
    bundle: Path, network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    options = [
        "--quick",
        "--against",
        "torch",
        "--model",
        network,
        "--json",
        str(out),
        "--plot",
        str(picture),
    ]
    assert main(["bench", str(bundle), *options]) == 0
    table = capsys.readouterr().out
    assert "quick protocol" in table
    assert "torch" in table
    found = json.loads(out.read_text())
    assert len(found["engines"][0]["samples"]) >= 200
    assert picture.stat().st_size > 1000


def test_bench_takes_a_bundle_or_measures_limits(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 2
    assert main(["bench", str(bundle), "--limits"]) == 2
    assert "--limits" in capsys.readouterr().err


def test_bench_refuses_an_unknown_engine_at_once(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(bundle), "--against", "onnxruntime,abacus"]) == 2
    assert "abacus" in capsys.readouterr().err
