import json
from pathlib import Path

import pytest

from edgecsi import cpu
from edgecsi.cli import main


def test_targets_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in ("rpi3", "rpi4", "rpi5", "x86-64-v3", "x86-64-v4", "host"))
    assert "the same as rpi4" in output


def test_show_tells_all_and_whether_it_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "show", "host"]) == 0
    assert "runs here         yes" in capsys.readouterr().out
    assert main(["targets", "show", "rpi5", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["mcpu"] == "cortex-a76"


def test_show_of_an_unknown_target_is_exit_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "show", "rpi9"]) == 3
    assert "rpi5" in capsys.readouterr().err


def test_declared_features_are_what_the_compiler_uses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "check"]) == 0
    assert capsys.readouterr().out.count(" ok ") == 8


def test_check_finds_a_feature_too_many_and_one_too_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = tmp_path / "board.toml"
    board.write_text('extends = "rpi4"\nfeatures = ["fp", "asimd", "asimddp"]\n')
    assert main(["targets", "check", str(board), "--json", "-"]) == 3
    output = capsys.readouterr()
    assert list(json.loads(output.out).values()) == [{"undeclared": ["crc32"], "unused": ["asimddp"]}]
    assert "board.toml" in output.err


def test_check_of_a_cpu_llvm_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = tmp_path / "board.toml"
    board.write_text('extends = "rpi4"\nmcpu = "cortex-z9"\n')
    assert main(["targets", "check", str(board)]) == 3
    assert "cortex-z9" in capsys.readouterr().err


def test_a_machine_with_more_than_its_name_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual machines show features under the name of an older CPU."""
    oldest = {"x86_64": "haswell", "aarch64": "cortex-a53"}[cpu.machine()]
    monkeypatch.setattr(cpu, "llvm_name", lambda: oldest)
    assert main(["targets", "check", "host"]) == 0
