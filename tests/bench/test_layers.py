"""Layers held against the machine's limits, and the limits kept in the cache."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecsi.bench import layers, limits
from edgecsi.bench.environment import machine
from edgecsi.bench.result import Limits, Validity
from edgecsi.bundle import Bundle, Entry, Layer
from edgecsi.cli import main
from edgecsi.device import Local
from edgecsi.report.text import times_table
from tests import _tiny

MEASURED = {
    "read_gbps": {"32768": 400.0, "1048576": 100.0, "33554432": 20.0},
    "fp32_gflops": 200.0,
    "int8_gops": 800.0,
    "int8_instruction": "avx512_vnni",
    "vector_bytes": 64,
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty cache, and a list of the programs that were run to measure."""
    ran: list[str] = []

    def program_output(source: str) -> str:
        ran.append(source)
        return json.dumps(MEASURED)

    monkeypatch.setenv("EDGECSI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "bench").mkdir(parents=True)
    monkeypatch.setattr(limits, "program_output", program_output)
    return ran


libraries = _tiny.libraries


def layer(kernel: str, size: int, macs: int, density: float = 1.0) -> Layer:
    return Layer("fc", "dense", kernel, "", {}, density, 8, size, macs, 1.0)


def entry(*parts: Layer) -> Entry:
    return Entry((), (), 0, 0, sum(part.bytes for part in parts), parts)


def known() -> Limits:
    return limits._limits(MEASURED, machine(), Validity("valid"))


def test_limits_are_measured_once(cache: list[str]) -> None:
    first = limits.known_limits()
    assert limits.known_limits() == first
    assert cache == ["limits.c"]
    limits.measure_limits()
    assert len(cache) == 2
    limits._kept().write_text('{"machine": 3}')
    assert limits.known_limits().read_gbps == first.read_gbps
    assert len(cache) == 3
    tree = dataclasses.asdict(first)
    tree["machine"]["cpu"] = "another"
    limits._kept().write_text(json.dumps(tree))
    limits.known_limits()
    assert len(cache) == 4


def test_bytes_take_as_long_as_where_the_whole_entry_lives() -> None:
    small, large = layer("f32_dense", 20_000, 0), layer("f32_dense", (1 << 20) - 20_000, 0)
    assert layers.limit_us(small, entry(small), known())[0] == pytest.approx(20_000 / 400e3)
    assert layers.limit_us(small, entry(small, large), known())[0] == pytest.approx(20_000 / 100e3)
    noisy = dataclasses.replace(known(), read_gbps={1000: 5.0, 2000: 10.0})
    assert (noisy.read_rate(500), noisy.read_rate(3000)) == (10.0, 10.0)
    cached = dataclasses.replace(known(), read_gbps={1000: 10.0, 2000: 5.0})
    assert cached.read_rate(1500) == pytest.approx(1500 / 250)  # a pass takes 100 ns, 250, 400
    huge = layer("f32_dense", 10**9, 0)
    assert layers.limit_us(huge, entry(huge), known())[0] == pytest.approx(10**9 / 20e3)


@pytest.mark.parametrize(
    ("kernel", "gops"),
    [
        ("f32_dense", 200),
        ("f32_qs8w_dense", 200),
        ("qs8_conv2d_vnni", 800),
        ("qd8_qs8w_dense_vnni", 800),
        ("f32_conv2d_winograd", 450),
        ("f32_conv2d_winograd4", 800),
        ("f32_conv2d_winograd4_9x1", 400),
        ("f32_conv2d_winograd4_1x5", 200 * 5 / 3),
        ("qd16_qs16w_conv2d_vnni", 400),
        ("f16_conv2d_direct", 400),
        ("qd16_qs16w_conv2d_winograd_vnni", 900),
    ],
)
def test_multiply_adds_count_by_what_the_kernel_multiplies(kernel: str, gops: int) -> None:
    part = layer(kernel, 0, 1_000_000, density=0.25)
    assert layers.limit_us(part, entry(part), known())[1] == pytest.approx(2 * 250_000 / (1e3 * gops))


def test_every_layer_is_measured_with_its_share(bundle: Bundle) -> None:
    found = layers.measure_layers(bundle, known())
    assert set(found) == set(bundle.manifest.entries)
    assert [time.name for time in found["full"]] == ["layer0", "layer1"]
    for time in found["full"]:
        assert time.us >= 0
        assert time.bound == "MACs"  # the hand-made layers say they have no weights
        assert time.share is not None
    text = times_table(found["full"])
    assert "of the estimate" in text
    without = layers.layer_times(Local(), bundle, "full", passes=5)
    assert without[0].share is None
    assert "of the estimate" not in times_table(without)


def test_inspect_measures(
    bundle: Bundle, cache: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(bundle.path), "--measure", "--json", str(tmp_path / "out.json")]) == 0
    text = capsys.readouterr().out
    assert "full, measured" in text
    assert "200 GFLOP/s" in text
    tree = json.loads((tmp_path / "out.json").read_text())
    assert [layer["name"] for layer in tree["measured"]["full"]] == ["layer0", "layer1"]


def test_what_cannot_run_here_is_not_measured(
    libraries: Callable[..., Path], tmp_path: Path, cache: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    about = _tiny.manifest(features=("avx9000",))
    made = _tiny.make_bundle(tmp_path / "foreign", _tiny.compile_library(tmp_path / "l.so", about), about)
    assert main(["inspect", str(made.path), "--measure"]) == 0
    assert "layers are not measured: " in capsys.readouterr().out
    assert cache == []


def test_build_measures_only_what_it_explains_and_builds(capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--explain", "--dry-run"]):
        assert main(["build", "csinet-cr4", "--target", "host", "--measure", *options]) == 2
        assert "--measure needs --explain" in capsys.readouterr().err
