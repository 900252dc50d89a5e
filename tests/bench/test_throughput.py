"""Batches on several threads, on the hand-made bundle against fake engines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from torch import nn

from edgecsi.bench import bench, measure, peers, throughput
from edgecsi.bench import result as report
from edgecsi.bundle import Bundle
from edgecsi.cli import main
from edgecsi.device.protocol import MeasuringProtocol
from edgecsi.errors import CheckFailed, UsageError
from edgecsi.report.text import table
from tests import _tiny
from tests.bench.test_bench import Fake, twin

SHORT = MeasuringProtocol(
    quick=True, samples=1, seconds=0.01, limit=2.0, turn=0.0005, cold_samples=5, cold_starts=1
)


class Slow(Fake):
    """A peer with threads that takes a millisecond a call, whatever the batch; so batches of 64 are its best."""

    def prepare_threads(
        self, module: nn.Module, example: peers.Array, entry: str, threads: Sequence[int]
    ) -> list[peers.Run]:
        run = self.prepare(module, example, entry)

        def slowly(x: peers.Array) -> peers.Array:
            time.sleep(0.001)
            return run(x)

        return [slowly for _ in threads]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "QUICK", SHORT)
    monkeypatch.setattr(throughput, "ROUNDS", 3)
    monkeypatch.setattr(throughput, "REST", 0.0)


@pytest.fixture
def with_peers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda *fakes: monkeypatch.setattr(peers, "all_peers", lambda: list(fakes))


def test_against_the_best_setting_of_each_engine(
    bundle: Bundle, with_peers: Callable[..., None], tmp_path: Path
) -> None:
    with_peers(
        Slow("slow"), Slow("wrong", wrong=1), Slow("gone", absent="not installed: gone"), Fake("single")
    )
    names = ["slow", "wrong", "gone", "single"]
    result = bench.run_bench(bundle.path, batch=16, threads=2, against=names, load_module=twin, quick=True)
    found = result.throughput
    assert found is not None
    assert result.engines == ()
    own, *others = found.rates
    assert (own.name, own.batch, own.threads) == ("edgecsi", 16, 2)
    assert own.interval.low <= own.median <= own.interval.high
    assert len(own.rounds) >= 3
    assert [(rate.batch, rate.threads) for rate in others] == [(b, t) for b in (1, 8, 64) for t in (1, 2)]
    assert {rate.name for rate in others} == {"slow"}
    (gain,) = found.gains
    assert (gain.to, gain.batch) == ("slow", 64)
    assert gain.ratio.ratio == pytest.approx(own.median / max(rate.median for rate in others), rel=0.9)
    assert {skipped.name for skipped in result.skipped} == {"wrong", "gone", "single"}

    path = tmp_path / "result.json"
    report.write_result(result, path)
    assert report.read_result(path) == result
    printed = table(result)
    assert "samples/s" in printed
    assert "times the samples/s of slow at its best, batch 64" in printed
    assert "one thread" not in printed


def test_a_bundle_alone(bundle: Bundle) -> None:
    result = bench.run_bench(bundle.path, entry="encoder", batch=8, quick=True)
    assert result.throughput is not None
    assert len(result.throughput.rates) == 1
    assert result.throughput.gains == ()
    assert result.answer.max_rel_diff < 1e-5


def test_a_wrong_library_is_not_timed(tmp_path: Path) -> None:
    about = _tiny.manifest()
    wrong = _tiny.SOURCE.replace("gain = 2;", "gain = 3;")
    made = _tiny.make_bundle(
        tmp_path / "wrong", _tiny.compile_library(tmp_path / "library.so", about, source=wrong), about
    )
    with pytest.raises(CheckFailed, match="edgecsi answers wrongly"):
        bench.run_bench(made.path, batch=8, quick=True)


def test_other_engines_need_the_model(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="PyTorch model"):
        bench.run_bench(bundle.path, batch=8, against=["onnxruntime"])


def test_samples_are_repeated_to_fill_a_batch() -> None:
    x = measure.np.arange(6, dtype="float32").reshape(3, 2)
    assert throughput.repeated(x, 4).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert throughput.repeated(x, 1).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    "options", [["--threads", "2"], ["--batch", "8", "--device", "emulate"], ["--batch", "0"]]
)
def test_options_that_make_no_sense(
    bundle: Bundle, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(bundle.path), *options]) == 2
    assert "Traceback" not in capsys.readouterr().err
