"""A whole measurement, on a hand-made bundle and its PyTorch twin."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgecsi import cpu, verdict
from edgecsi.bench import bench, peers
from edgecsi.bench import result as report
from edgecsi.bench.competitors import pytorch_output, require_installed
from edgecsi.bench.peers.conversion import converting, missing, silent_streams
from edgecsi.bench.peers.litert import CONVERTER
from edgecsi.bench.peers.protocol import entry_module
from edgecsi.bundle import Bundle, Manifest
from edgecsi.device.protocol import MeasuringProtocol
from edgecsi.errors import BundleError, CheckFailed, DataError, ToolchainError, UsageError
from edgecsi.report.plot import plot
from edgecsi.report.text import table
from tests import _tiny

SHORT = MeasuringProtocol(
    quick=True, samples=50, seconds=0.01, limit=2.0, turn=0.001, cold_samples=5, cold_starts=1
)


class Encoder(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x[:, 0::2] + x[:, 1::2]


class Decoder(nn.Module):
    def forward(self, codeword: Tensor) -> Tensor:
        return torch.sigmoid(codeword).repeat_interleave(2, dim=1)


class Pair(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"sum": a + b, "product": a * b}


class Twin(nn.Module):
    """What the hand-made library computes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.pair = Encoder(), Decoder(), Pair()

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class Fake:
    """A peer that is PyTorch under another name, or fails in a chosen way."""

    install = "pip install fake"

    def __init__(
        self,
        name: str,
        absent: str | None = None,
        refuses: bool = False,
        wrong: float = 0,
        allowed: float = verdict.OTHER_ENGINE,
    ) -> None:
        self.name, self.absent, self.refuses, self.wrong, self.allowed = name, absent, refuses, wrong, allowed

    def available(self) -> str | None:
        return self.absent

    def version(self) -> str:
        return "1.0"

    def prepare(self, module: nn.Module, example: peers.Array, entry: str) -> peers.Run:
        if self.refuses:
            raise ToolchainError("fake cannot take this network", "it has corners", "leave it out")
        part = entry_module(module, entry)

        def run(x: peers.Array) -> peers.Array:
            with torch.inference_mode():
                return part(torch.from_numpy(x)).numpy() + np.float32(self.wrong)

        return run


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "QUICK", SHORT)
    monkeypatch.setattr(bench, "FULL", dataclasses.replace(SHORT, quick=False))


@pytest.fixture
def with_peers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def use(*fakes: Fake) -> None:
        monkeypatch.setattr(peers, "all_peers", lambda: list(fakes))

    return use


def twin(_: Manifest) -> nn.Module:
    return Twin().eval()


def test_a_bundle_alone(bundle: Bundle) -> None:
    result = bench.run_bench(bundle.path, quick=True)
    (engine,) = result.engines
    assert engine.name == "edgecsi"
    assert engine.warm.samples == len(engine.samples) == sum(engine.rounds) >= 50
    assert (engine.warm.p999 is None) == (engine.warm.samples < 10_000)
    assert result.answer.max_rel_diff < 1e-5
    assert result.c_call is not None
    assert result.c_call.median < engine.warm.median
    assert [layer.name for layer in result.layers] == ["layer0", "layer1"]
    assert result.cold_starts[0].load_ms > 0
    assert result.bundle.library_bytes == bundle.library.stat().st_size
    printed = table(result)
    assert "quick protocol" in printed
    assert "validity:" in printed


def test_against_peers_that_work_and_peers_that_do_not(
    bundle: Bundle, with_peers: Callable[..., None]
) -> None:
    with_peers(
        Fake("good"),
        Fake("gone", absent="not installed: gone"),
        Fake("picky", refuses=True),
        Fake("wrong", wrong=1),
        Fake("coarse", wrong=0.01, allowed=0.1),
    )
    result = bench.run_bench(
        bundle.path, against=["good", "gone", "picky", "wrong", "coarse"], load_module=twin, quick=True
    )
    assert [engine.name for engine in result.engines] == ["edgecsi", "good", "coarse"]
    assert len(result.engines[0].rounds) == len(result.engines[1].rounds)
    compared = result.comparisons[0]
    assert compared.to == "good"
    assert 0 < compared.warm.interval.low <= compared.warm.ratio <= compared.warm.interval.high < 1
    reasons = {skipped.name: skipped for skipped in result.skipped}
    assert reasons["gone"].reason == "not installed: gone"
    assert reasons["gone"].fix == "pip install fake"
    assert "corners" in reasons["picky"].reason
    assert "wrongly" in reasons["wrong"].reason
    printed = table(result)
    assert "not measured: gone: not installed: gone -> pip install fake" in printed
    assert re.findall("(.*) is less exact", printed) == ["coarse"]


def test_bf16_is_an_engine_of_its_own_and_refused_by_name_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"avx2", "avx512_vnni"}))
    with pytest.raises(ToolchainError, match=r"openvino-bf16 .* this CPU has no arithmetic in bf16") as error:
        require_installed(["openvino-bf16"])
    assert "pip" not in error.value.fix
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"avx512_bf16"}))
    peer, plain = peers.find_peers(["openvino-bf16", "openvino"])
    assert peer.available() == plain.available()
    assert peer.allowed > plain.allowed


def test_unknown_engines_and_entries_are_refused_before_anything_runs(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="no engine 'caffe'"):
        bench.run_bench(bundle.path, against=["caffe"])
    with pytest.raises(BundleError, match="no entry 'middle'"):
        bench.run_bench(bundle.path, entry="middle")
    with pytest.raises(UsageError, match="need the PyTorch model"):
        bench.run_bench(bundle.path, entry="pair", against=["torch"])
    with pytest.raises(UsageError, match="emulate"):
        bench.run_bench(bundle.path, device="emulate", against=["torch"])


def test_an_entry_with_several_inputs_and_outputs(bundle: Bundle, with_peers: Callable[..., None]) -> None:
    from edgecsi.bench.peers.onnxruntime import OnnxRuntime
    from edgecsi.bench.peers.pytorch import PyTorch

    with_peers(OnnxRuntime(), PyTorch(), Fake("plain"))
    names = ["onnxruntime", "torch", "plain"]
    result = bench.run_bench(bundle.path, entry="pair", against=names, load_module=twin, quick=True)
    assert result.answer.max_abs_diff < 1e-6
    measured = {engine.name: engine.answer.max_abs_diff for engine in result.engines}
    reasons = {skipped.name: skipped.reason for skipped in result.skipped}
    assert "one input and one output" in reasons.pop("plain")
    assert measured.keys() == {"edgecsi", *names[:2]} - reasons.keys()
    assert max(measured.values()) < 1e-6
    assert set(reasons) <= {"onnxruntime"}
    assert "not installed" in reasons.get("onnxruntime", "not installed")


def test_peers_must_get_the_weights_of_the_bundle(bundle: Bundle) -> None:
    class Other(Twin):
        def forward(self, x: Tensor) -> Tensor:
            return 1.1 * super().forward(x)

    with pytest.raises(CheckFailed, match="not the model"):
        bench.run_bench(bundle.path, against=["torch"], load_module=lambda _: Other())


def test_a_wrong_library_is_not_timed(bundle: Bundle, tmp_path: Path) -> None:
    about = _tiny.manifest()
    wrong = _tiny.SOURCE.replace("gain = 2;", "gain = 3;")
    library = _tiny.compile_library(tmp_path / "library.so", about, source=wrong)
    made = _tiny.make_bundle(tmp_path / "wrong", library, about)
    with pytest.raises(CheckFailed, match="edgecsi answers wrongly"):
        bench.run_bench(made.path, quick=True)


@pytest.mark.needs("qemu-x86_64")
def test_emulation_counts_instructions_and_gives_no_latency(bundle: Bundle) -> None:
    result = bench.run_bench(bundle.path, device="emulate")
    assert result.validity.state == "invalid"
    assert result.engines == ()
    assert result.instructions is not None
    assert 50 < result.instructions < 5000
    assert "a proxy" in table(result)
    with pytest.raises(DataError):
        plot(result, bundle.path / "no.png")


def test_a_result_survives_its_file(bundle: Bundle, tmp_path: Path) -> None:
    result = bench.run_bench(bundle.path, against=["torch"], load_module=twin, quick=True)
    path = tmp_path / "results" / "result.json"
    path.parent.mkdir()
    report.write_result(result, path)
    assert report.read_result(path) == result
    assert report.to_json(report.read_result(path)) == path.read_text()
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]
    tree = json.loads(path.read_text())
    assert (tree["kind"], tree["schema"]) == ("edgecsi bench", 3)
    assert tree["engines"][0]["samples"] == list(result.engines[0].samples)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"kind": "edgecsi bench", "schema": 2}',
        '{"kind": "edgecsi bench", "schema": 1, "entry": 3}',
    ],
)
def test_what_is_no_result_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"result\.json"):
        report.read_result(path)
    with pytest.raises(DataError):
        report.read_result(tmp_path / "missing.json")


def test_a_picture_of_the_distribution(bundle: Bundle, tmp_path: Path) -> None:
    plot(bench.run_bench(bundle.path, quick=True), tmp_path / "latency.png")
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("onnxruntime", ["onnxruntime", "onnx", "onnxscript"]),
        ("openvino", ["openvino", "onnx", "onnxscript"]),
        *([("openvino-bf16", ["openvino", "onnx", "onnxscript"])] if "avx512_bf16" in cpu.features() else []),
        ("litert", ["ai_edge_litert", *([] if CONVERTER in os.environ else ["litert_torch"])]),
        ("executorch", ["executorch"]),
    ],
)
def test_an_installed_engine_answers_as_pytorch_does(name: str, packages: list[str]) -> None:
    (peer,) = peers.find_peers([name])
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    # `available` alone must not decide: it could call an engine missing that is there.
    assert (peer.available() is None) == (not absent)
    if absent:
        pytest.skip(f"{', '.join(absent)} missing: {peer.install}")
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.LeakyReLU(0.3), nn.Flatten(), nn.Linear(48, 5)
    ).eval()
    x = np.random.default_rng(0).random((1, 2, 4, 4), dtype=np.float32)
    run = peer.prepare(module, x, "full")
    expected = pytorch_output(module, x, "full")
    first = run(x)
    verdict.require(name, first, expected, peer.allowed / verdict.ELSEWHERE)
    kept = first.copy()
    run(x + 1)
    np.testing.assert_array_equal(first, kept, err_msg="a later call changed it")


def test_a_model_with_methods_has_entries_too() -> None:
    class Methods(nn.Module):
        def encode(self, x: Tensor) -> Tensor:
            return x + 1

        def forward(self, x: Tensor) -> Tensor:
            return self.encode(x)

    assert entry_module(Methods(), "encoder")(torch.ones(1)).item() == 2
    with pytest.raises(UsageError, match="no entry 'decoder'"):
        entry_module(Methods(), "decoder")


def test_a_converter_is_silent_and_its_failure_named(capfd: pytest.CaptureFixture[str]) -> None:
    def convert() -> None:
        with converting("engine"):
            print("chatter")
            raise RuntimeError("no such operator\nand a long story")

    with pytest.raises(ToolchainError) as caught:
        convert()
    assert "engine cannot take this network" in str(caught.value)
    assert "no such operator" in str(caught.value)
    with silent_streams():
        print("more chatter")
    assert capfd.readouterr() == ("", "")
    assert missing("json", "no_such_package") == "not installed: no_such_package"
