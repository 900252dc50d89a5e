"""The script behind docs/results.md: what it keeps, and what it writes."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgecsi import target
from edgecsi.bench.measure import QUICK
from edgecsi.bench.result import (
    Comparison,
    Engine,
    Gain,
    LayerTime,
    Machine,
    MeasuredBundle,
    Rate,
    Result,
    Snapshot,
    Throughput,
    Validity,
    write_result,
)
from edgecsi.bench.statistics import Interval, Ratio, summarise
from edgecsi.errors import DataError, DeviceError, ToolchainError
from edgecsi.models import registry
from edgecsi.results import bundles, workloads
from edgecsi.results import page as results_page
from edgecsi.results import run as results
from edgecsi.results.cycles import Cycles, Loop
from edgecsi.results.scenarios import FACTS, SCENARIOS
from edgecsi.verdict import Difference

NOW = Snapshot("2026-01-02T03:04:05+00:00", 0.0, None, None, None, None, None, None, None, 0.0)


def engine(name: str, microseconds: float) -> Engine:
    samples = (1e3 * microseconds * np.random.default_rng(0).lognormal(0, 0.1, 50_000)).astype(np.int64)
    cold = samples[:200] * 2
    return Engine(
        name,
        "1.0",
        Difference(0.0, 0.0),
        summarise(samples / 1e3),
        summarise(cold / 1e3),
        True,
        True,
        1.0,
        (25_000, 25_000),
        tuple(samples.tolist()),
        tuple(cold.tolist()),
    )


def result(**changes: Any) -> Result:
    ratio = Ratio(0.25, Interval(0.24, 0.26), 100)
    made = Result(
        bundle=MeasuredBundle("csinet-cr4", "0" * 64, "csinet-cr4", None, "host", 1000),
        entry="full",
        device="local",
        protocol=QUICK,
        machine=Machine("A CPU", 2, "x86_64", "Linux", False, {"L2": "1024K"}, {"numpy": "2.0"}),
        before=NOW,
        after=NOW,
        validity=Validity("suspect", ("other processes used 1.00 of a core",)),
        answer=Difference(0.0, 0.0),
        engines=(engine("edgecsi", 25), engine("onnxruntime", 100)),
        comparisons=(Comparison("onnxruntime", ratio, dataclasses.replace(ratio, ratio=0.3)),),
        c_call=summarise([23.0]),
        layers=(
            LayerTime("fc", "f32_dense", 10.0, None, 1.0, 1.0, "bytes", 0.5),
            LayerTime("relu", "elementwise", 1.0, None, 0.0, 0.0),
        ),
    )
    return dataclasses.replace(made, **changes)


def throughput() -> Throughput:
    interval, exact = Interval(90.0, 110.0), Difference(0.0, 0.0)
    rates = (
        Rate("edgecsi", "1.0", exact, 64, 2, 400.0, interval, (400.0,)),
        Rate("onnxruntime", "2.0", exact, 8, 2, 100.0, interval, (100.0,)),
    )
    return Throughput(rates, (Gain("onnxruntime", 8, 2, Ratio(4.0, Interval(3.9, 4.1), 20)),))


@pytest.fixture
def fake_edgecsi(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands for the command line: remembers what was called, and leaves the result that bench would."""
    called: list[list[str]] = []

    def run(arguments: list[str], folder: Path, threads: int | None = None, code: Path | None = None) -> None:
        called.append(list(arguments))
        if arguments[0] == "build":
            if "x86" in arguments:
                raise ToolchainError("edgecsi build failed", "no such target", "wait")
            (folder / arguments[arguments.index("-o") + 1]).mkdir()
        if arguments[0] == "bench":
            emulated = "emulate" in arguments
            found = result(engines=(), comparisons=(), instructions=2_345_678) if emulated else result()
            if "--batch" in arguments:
                found = result(engines=(), comparisons=(), throughput=throughput())
            write_result(found, folder / arguments[arguments.index("--json") + 1])

    monkeypatch.setattr(results, "run_edgecsi", run)
    monkeypatch.setattr(bundles, "run_edgecsi", run)
    monkeypatch.setattr(results, "library_of", lambda scenario, _: f"bytes of {scenario.name}")
    return called


def test_a_stored_distribution_is_small_and_keeps_its_shape() -> None:
    samples = (1e5 * np.random.default_rng(0).lognormal(0, 0.2, 300_000)).astype(np.int64).tolist()
    kept = results.distribution(samples, 500)
    assert kept["count"] == 300_000
    assert kept["quantiles_ns"]["50"] == pytest.approx(1e5, rel=0.01)
    assert kept["quantiles_ns"]["100"] == max(samples)
    assert sum(kept["histogram"]["counts"]) == 300_000
    assert len(kept["histogram"]["edges_ns"]) == len(kept["histogram"]["counts"]) + 1
    assert len(kept["kept_ns"]) == 500
    assert len(json.dumps(kept)) < 20_000
    assert results.distribution([7, 7], 10)["histogram"] == {"edges_ns": [7, 8], "counts": [2]}


def test_all_scenarios_are_measured_kept_and_written(
    tmp_path: Path, fake_edgecsi: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(results.script, "say", said.append)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "csinet-cr16-training.json").write_text('{"machine": "another report"}')
    assert results.main(["--docs", str(tmp_path), "--anyway", "--quick", "--only", "csinet-cr4"]) == 0
    stored = results.read_all(tmp_path / "results")
    assert "csinet-cr4-full" in stored
    assert "csinet-cr16-full" not in stored
    for path in (tmp_path / "results").iterdir():
        assert path.stat().st_size < 100_000
    assert stored["csinet-cr4-full"]["commands"][0].startswith("edgecsi build csinet-cr4 --target host -o ")
    assert stored["csinet-cr4-joint90-x86"]["error"][1] == "no such target"
    assert stored["csinet-cr4-joint90-host"]["result"]["bundle"]["library_bytes"] == 1000
    builds = [command for command in fake_edgecsi if command[0] == "build"]
    assert len({command[command.index("-o") + 1] for command in builds}) == len(builds)
    batch = next(command for command in fake_edgecsi if "--threads" in command)
    assert batch[batch.index("--batch") + 1] == "64"
    text = (tmp_path / "results.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| CsiNet CR 1/4, full, fp32 |"))
    assert (
        "**0.250** (0.240-0.260) | ≤ 0.7 | not shown: suspect: other processes used 1.00 of a core | 50.2 (0.300) | "
        "suspect; other processes used 1.00 of a core; quick" in row
    )
    assert "| 25.0 (23.0, 5.00) | 100 |" in row.replace("100.0", "100")
    assert "| CsiNet CR 1/4, full, fp32, rpi4 | trained | **2.346** | ≤ 2.4 | yes |" in text
    assert "failed: no such target" in text
    assert "**4.00** times (3.90-4.10) the samples a second of onnxruntime at its best (bar ≥ 3" in text
    assert "| onnxruntime 2.0 | 8 | 2 | 100 | 90-110 |" in text
    assert "- Machine: A CPU, 2 cores (L2 1024K)" in text
    assert "2026-01-02" in text
    assert "not measured" in text


def test_an_estimate_is_no_bound_and_is_not_cut_where_the_call_beats_it() -> None:
    scenario = next(s for s in SCENARIOS if s.name == "csinet-cr4-full")
    layers = (
        LayerTime("fc", "f32_dense", 10.0, None, 1.0, 1.0, "bytes", 3.0),
    )  # 30 µs, where the call takes 23
    stored = {
        "kind": "scenario",
        "scenario": dataclasses.asdict(scenario),
        "quick": True,
        "weights": "trained",
    }
    text = results_page.page({scenario.name: stored | results.reduced(result(layers=layers))})
    row = next(line for line in text.splitlines() if line.startswith(f"| {scenario.title} |"))
    assert "25.0 (23.0, 30.0)" in row
    missed = next(line for line in text.split("| what | bar |")[1].splitlines() if scenario.title in line)
    assert "| 0.230 | 0.300 |" in missed
    assert "an *estimate* of what this core" in text
    assert "It is no bound" in text
    assert "the limit" not in text


def test_a_bundle_is_built_once_for_its_scenarios(tmp_path: Path, fake_edgecsi: list[list[str]]) -> None:
    entries = [
        scenario for scenario in SCENARIOS if scenario.name in ("csinet-cr16-full", "csinet-cr16-decoder")
    ]
    results.build_all(entries, tmp_path, lambda _: None)
    for scenario in entries:
        stored = results.measure_scenario(scenario, tmp_path, seconds=2.5)
        assert "--seconds 2.5" in stored["commands"][1]
    assert [command[0] for command in fake_edgecsi] == ["build", "bench", "bench"]


def test_a_row_stands_while_its_library_is_the_same(
    tmp_path: Path, fake_edgecsi: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "results"
    names = ["csinet-cr16-full", "csinet-cr16-decoder"]
    assert results.main(["--docs", str(tmp_path), "--anyway", "--quick", "--only", "csinet-cr16-"]) == 0
    for name in names:
        path = folder / f"{name}.json"
        stored = json.loads(path.read_text())
        assert stored["library"] == f"bytes of {name}"
        results.write_json(path, stored | {"code": "of yesterday"})
    monkeypatch.setattr(results, "library_of", lambda scenario, _: f"bytes of {names[0]}")
    fake_edgecsi.clear()
    results.recheck(folder, "", lambda _: None)
    assert [command[0] for command in fake_edgecsi] == ["build"]
    found = {name: stored["code"] for name, stored in results.read_all(folder).items() if name in names}
    assert found == {names[0]: results.code_digest(), names[1]: "of yesterday"}


def test_a_failure_costs_only_its_own_row(
    tmp_path: Path, fake_edgecsi: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nobody expected this")

    monkeypatch.setattr(results.script, "say", lambda _: None)
    monkeypatch.setattr(results, "read_result", broken)
    assert results.main(["--docs", str(tmp_path), "--anyway", "--only", "linear-90-16x4"]) == 0
    stored = results.read_all(tmp_path / "results")
    assert stored["linear-90-16x4-int8-host"]["error"][:2] == ["ZeroDivisionError", "nobody expected this"]
    assert "failed: nobody expected this" in (tmp_path / "results.md").read_text()


def test_shipped_compressed_weights_are_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    scenario = next(scenario for scenario in SCENARIOS if scenario.shipped)
    assert results.source(scenario) == ("csinet-cr4", "int8-static", "test")
    (tmp_path / f"{scenario.shipped}.safetensors").touch()
    assert results.source(scenario) == ("csinet-cr4+int8-static", "", "")
    command = results.build_command(scenario)
    assert "--recipe" not in command
    assert "--random-weights" not in command
    dense = next(scenario for scenario in SCENARIOS if scenario.name == "csinet-cr4-full")
    assert "--random-weights" in results.build_command(dense)


def test_the_page_can_be_written_from_nothing(tmp_path: Path) -> None:
    assert results.main(["--docs", str(tmp_path), "--table"]) == 0
    text = (tmp_path / "results.md").read_text()
    assert "Measured: not yet" in text
    assert all(scenario.title in text for scenario in SCENARIOS if "+" not in scenario.model)


def test_it_refuses_to_begin_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(results, "other_load", lambda *_: 0.8)
    with pytest.raises(DeviceError, match=r"busy: other processes use 0\.80"):
        results.require_quiet(0)
    monkeypatch.setattr(results.script, "say", lambda _: None)
    assert results.main(["--docs", str(tmp_path)]) == DeviceError.exit_code
    assert not list(tmp_path.iterdir())


def test_scenarios_name_things_that_exist() -> None:
    names = [item.name for item in (*SCENARIOS, *FACTS)]
    assert len(set(names)) == len(names)
    for scenario in SCENARIOS:
        if ":" in scenario.model:
            module, _, factory = scenario.model.partition(":")
            assert callable(getattr(importlib.import_module(module), factory))
        else:
            registry.find(scenario.model.partition("+")[0])
    assert {scenario.target for scenario in SCENARIOS} <= set(target.list_targets())


def test_pruned_workloads_have_their_pattern() -> None:
    module, example = workloads.linear_block16x4()
    weight = module.weight.detach()
    blocks = weight.reshape(32, 16, 512, 4).abs().amax(dim=(1, 3))
    assert (blocks == 0).float().mean().item() == pytest.approx(0.9, abs=0.001)
    assert (weight[:, :][blocks.repeat_interleave(16, 0).repeat_interleave(4, 1) > 0] != 0).all()
    assert module(example).shape == (1, 512)
    again, _ = workloads.linear_block16x4()
    assert torch.equal(again.weight, weight)
    detector, example = workloads.mlp_block16x4()
    widths = [layer.out_features for layer in detector if isinstance(layer, nn.Linear)]
    assert widths == [600] * 7 + [20]
    assert detector(example).shape == (1, 20)


def test_blocks_at_an_edge_count_as_blocks() -> None:
    pruned = workloads.prune_blocks(torch.ones(5, 7), 4, 4, 0.5)
    assert torch.equal(pruned, torch.cat([torch.ones(4, 7), torch.zeros(1, 7)]))
    assert torch.equal(workloads.prune_blocks(pruned, 4, 4, 0.0), pruned)


def test_raw_results_come_back_as_they_were(tmp_path: Path) -> None:
    value = {
        "kind": "limits",
        "read_gbps": {"32768": 1.5},
        "list": [{"a": [1, 2]}, {}],
        "empty": {},
        "text": "µs",
    }
    results.write_json(tmp_path / "a.json", {**value, "read_gbps": {32768: 1.5}})
    assert results.read_all(tmp_path) == {"a": value}
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(DataError, match=r"b\.json"):
        results.read_all(tmp_path)


def test_tables_escape_what_would_break_them() -> None:
    assert results_page.markdown([["a", "b"], ["1|2", "3"]]) == "| a | b |\n|---|---|\n| 1\\|2 | 3 |"


def test_estimated_cycles_are_added_up_by_cpu(tmp_path: Path) -> None:
    loop = Loop("cortex-a72", "fc", "f32_dense", 8, 4.0, 16, 10.0)
    found = Cycles("a-model", "llvm-mca-16", (loop, loop, dataclasses.replace(loop, cpu="cortex-a76")))
    (tmp_path / "results").mkdir()
    results.write_json(tmp_path / "results" / "cycles.json", {"kind": "cycles", **dataclasses.asdict(found)})
    assert results.main(["--docs", str(tmp_path), "--table"]) == 0
    text = (tmp_path / "results.md").read_text()
    assert "| cortex-a72 | fc | f32_dense | 8 | 4.0 | 16 | 4.0 | 10.0 |" in text
    assert "cortex-a72: 20 thousand, cortex-a76: 10 thousand" in text
    assert "An estimate by llvm-mca-16" in text
