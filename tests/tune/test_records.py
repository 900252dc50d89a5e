"""Files of records: torn, shared, stale."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from edgecsi import target as targets
from edgecsi.cli import main
from edgecsi.errors import InputError, ToolchainError
from edgecsi.kernels.records import (
    SHIPPED,
    Record,
    Records,
    append,
    as_t4,
    current,
    known_records,
    own_file,
    read_records,
    write_records,
)
from edgecsi.kernels.variants import all_kernels, candidates
from edgecsi.kernels.workload import code, describe, workload
from edgecsi.lower.select_kernels import Choice
from edgecsi.lower.use_records import use_records
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense, Half

X86 = targets.load("x86")


def dense(rows: int, inputs: int, outputs: int, density: float = 1.0, seed: int = 0) -> Dense:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((outputs, inputs)).astype(np.float32)
    if density < 1:
        weight *= rng.random(weight.shape) < density
    return Dense(name="fc", x=Layout((rows, inputs)), y=Layout((rows, outputs)), weight=weight)


def record(number: int = 0, **changes: object) -> Record:
    made = Record(
        "trial", f"{number:016x}", "fc", "f32_dense", {"unroll": number}, "c0de", X86.id, X86.mcpu,
        version("apache-tvm"), "measured", 1.5 + number, date="2026-11-29T00:00:00+00:00",
    )  # fmt: skip
    return replace(made, **changes)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x86.jsonl"
    lines = [record(i) for i in range(5)]
    append(path, lines[:2])
    append(path, lines[2:])
    assert read_records([path]) == Records(lines, 0)
    assert read_records([tmp_path / "none.jsonl"]).lines == []


def test_a_build_reads_choices_alone(tmp_path: Path) -> None:
    """Whatever a layer is called, and also among trials that are torn."""
    path, named = tmp_path / "x86.jsonl", '"kind":"trial"'
    chosen = [record(i, kind="choice", default_us=9.0, layer=named, why=named) for i in range(2)]
    append(path, [chosen[0], *(record(i) for i in range(300))])
    path.write_bytes(path.read_bytes()[:-40])
    append(path, [chosen[1]])
    assert read_records([path], trials=False).lines == chosen
    assert known_records(X86, [path]).lines[-2:] == chosen
    (tmp_path / "trials.jsonl").write_bytes(path.read_bytes().replace(b'"choice"', b'"trial"'))
    assert read_records([tmp_path / "trials.jsonl"], trials=False).lines == []


def test_a_line_torn_at_any_byte_loses_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x86.jsonl"
    append(path, [record(0), record(1)])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        append(path, [record(2)])
        found = read_records([path])
        kept = [record(0), record(1), record(2)] if cut == len(whole) - 1 else [record(0), record(2)]
        assert found.lines == kept, cut
        assert found.torn == (0 if cut in (first, len(whole) - 1) else 1)


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x86.jsonl"
    append(path, [record(0)])
    whole = bytearray(path.read_bytes())
    at = whole.index(b"1.5")
    whole[at] = ord("0")
    path.write_bytes(whole)
    assert read_records([path]) == Records([], 1)


def test_no_file_of_records_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x86.jsonl"
    path.write_bytes(b"\x00" * (1 << 17))
    with pytest.raises(InputError, match="no file of records"):
        read_records([path])
    for text in ("[]", "1", '{"sum": 1}', "{" * 5000, '{"kind": NaN}', "null", '"x"'):
        path.write_text(text + "\n")
        assert read_records([path]).torn == 1


def _write(path: Path, begin: int) -> None:
    for number in range(begin, begin + 50):
        append(path, [record(number)])


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x86.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(path, start)) for start in (0, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = read_records([path])
    assert found.torn == 0
    assert len({r.workload for r in found.lines}) == 100


def test_a_file_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ToolchainError, match="cannot be written"):
        append(tmp_path / "file" / "x86.jsonl", [record(0)])


def choice() -> tuple[Record, Dense]:
    op = dense(1, 64, 32)
    kernel = all_kernels()["f32_dense"]
    knobs = dict(kernel.knobs(op, X86)) | {"unroll": 8}
    return record(
        kind="choice",
        workload=workload(op),
        kernel=kernel.name,
        knobs=knobs,
        code=code(kernel, op, X86, knobs),
    ), op


def test_a_true_choice_is_used() -> None:
    made, op = choice()
    found = Records([made]).choice(op, X86)
    assert found is not None
    assert found[0].name == "f32_dense"
    assert found[1]["unroll"] == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "rpi4"}, {"tvm": "0.1"}, {"code": "0123456789abcdef"}, {"kernel": "f32_gone"},
        {"knobs": {"unroll": 3}}, {"knobs": {"other": 1}}, {"kind": "trial"}, {"kernel": "f32_softmax"},
    ],
    ids=lambda c: "-".join(c),
)  # fmt: skip
def test_a_choice_of_another_world_is_not(changes: dict[str, object]) -> None:
    made, op = choice()
    assert Records([replace(made, **changes)]).choice(op, X86) is None


def test_records_of_another_cpu_are_not_used() -> None:
    made, op = choice()
    host = replace(targets.load("x86"), id="host", mcpu="znver4")
    assert Records([replace(made, target="host", cpu="znver5")]).choice(op, host) is None


def test_measured_comes_before_counted_and_later_before_earlier() -> None:
    made, op = choice()
    counted = replace(made, means="counted", us=0.1)
    later = replace(made, us=1.25)
    for lines in ([made, later, counted], [counted, made, later]):
        found = Records(lines).choice(op, X86)
        assert found is not None
        assert found[2] == later


def test_a_layer_says_its_record_its_time_and_the_defaults() -> None:
    """In `build --explain` and in the manifest."""
    made, op = choice()
    made = replace(made, us=14.4, default_us=20.9)
    kernel, knobs, cost = candidates(op, X86)[0][0]
    layer = Choice(node=None, op=op, kernel=kernel, knobs=knobs, cost=cost, why="predicted")
    use_records([layer], X86, Records([made]))
    assert layer.why == f"14.40 µs measured, the default 20.90 (record {made.id})"
    assert layer.knobs == made.knobs
    counted = replace(
        made, means="counted", us=0.25, default_us=0.25, knobs=knobs, code=code(kernel, op, X86, knobs)
    )
    layer.knobs = knobs
    use_records([layer], X86, Records([counted]))
    assert layer.why == f"0.250 M instructions counted (record {counted.id})"


def test_retraining_does_not_change_the_work_but_zeros_do() -> None:
    assert workload(dense(1, 64, 32, seed=1)) == workload(dense(1, 64, 32, seed=2))
    assert workload(dense(1, 64, 32)) != workload(dense(1, 64, 32, density=0.1))
    assert workload(dense(1, 64, 32)) != workload(dense(1, 64, 48))
    halves = replace(dense(1, 64, 32), y=Layout((1, 64), "float16"), y_quant=Half(2.0))
    assert workload(halves) == workload(replace(halves, y_quant=Half(0.5)))
    assert workload(halves) != workload(dense(1, 64, 32))
    json.dumps(describe(dense(1, 64, 32)))


def test_pruning_keeps_what_is_of_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x86.jsonl"
    lines = [
        record(0, us=9.0),
        record(0),
        record(1, tvm="0.1"),
        record(0, kind="choice"),
        record(0, kind="choice", us=2.0),
    ]
    write_records(path, lines)
    assert current(lines) == [record(0), record(0, kind="choice", us=2.0)]
    with path.open("ab") as stream:
        stream.write(b'{"torn')
    assert main(["records", "prune", str(path)]) == 0
    assert "2 of 5 records kept, 1 torn" in capsys.readouterr().out
    assert read_records([path]) == Records([record(0), record(0, kind="choice", us=2.0)], 0)


def test_merge_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append(tmp_path / "a.jsonl", [record(0), record(1)])
    append(tmp_path / "b.jsonl", [record(1), record(2, status="crashed", us=0.0)])
    both = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    assert main(["records", "merge", *both, "-o", str(tmp_path / "c.jsonl")]) == 0
    assert "3 records" in capsys.readouterr().out
    assert main(["records", "export", str(tmp_path / "c.jsonl"), "-o", str(tmp_path / "t4.json")]) == 0
    tree = json.loads((tmp_path / "t4.json").read_text())
    assert tree == json.loads(json.dumps(as_t4(read_records([tmp_path / "c.jsonl"]).lines)))
    assert [r["invalidity"] for r in tree["results"]] == ["correct", "correct", "runtime"]


def test_what_ships_are_choices_that_gain() -> None:
    files = sorted(SHIPPED.glob("*.jsonl"))
    assert files
    for path in files:
        found = read_records([path])
        assert found.torn == 0
        for line in found.lines:
            assert line.kind == "choice"
            assert path.name == own_file(targets.load(line.target), line.cpu).name
            assert line.us < 0.97 * line.default_us


def test_own_files_are_told_apart_by_target_and_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGECSI_DATA", str(tmp_path))
    assert own_file(X86, "AMD Zen 4") == tmp_path / "records" / "x86-64-v3-amd-zen-4.jsonl"
